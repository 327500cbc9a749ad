//! The log as JSON Lines, for strangers who verify it with their own tools.
//!
//! First line `{"format":"oc.log.v1","log":…}`, then one line a commit, last
//! `{"end":{"position":…,"commit":…,"chain":…}}`. Hashes are lower-case hex; `data` is the exact
//! JSON text as a string, because the content hash is over those bytes.

use std::io::Write;

use serde::Serialize;

use super::chain::Hash;
use super::engines::{Commit, Reader};
use super::error::{EngineError, ExportError};
use super::event::{Head, Recorded};
use super::log::EventLog;

const PAGE_EVENTS: usize = 256;

#[derive(Serialize)]
struct HeaderLine {
    format: &'static str,
    log: String,
}

#[derive(Serialize)]
struct CommitLine<'a> {
    commit: u64,
    chain: String,
    events: Vec<EventLine<'a>>,
}

#[derive(Serialize)]
struct EventLine<'a> {
    id: String,
    stream: &'a str,
    revision: u64,
    position: u64,
    commit: u64,
    recorded_at_ms: i64,
    kind: &'a str,
    actor: &'a str,
    org: String,
    key: String,
    command: String,
    correlation: String,
    causation: String,
    data: &'a str,
    content_hash: String,
}

#[derive(Serialize)]
struct EndLine {
    end: End,
}

#[derive(Serialize)]
struct End {
    position: u64,
    commit: u64,
    chain: String,
}

impl EventLog {
    /// Writes the log up to the present head to `writer` and gives it back, with the head. Each
    /// event's content hash is checked on the way.
    pub async fn export_jsonl<W: Write + Send + 'static>(
        &self,
        mut writer: W,
    ) -> Result<(W, Head), ExportError> {
        let until = self.head();
        self.readers()
            .run(move |view| {
                export(view.reader(), until, &mut writer)?;
                writer.flush()?;
                Ok((writer, until))
            })
            .await
    }
}

fn export(reader: &dyn Reader, until: Head, out: &mut dyn Write) -> Result<(), ExportError> {
    line(
        out,
        &HeaderLine {
            format: "oc.log.v1",
            log: reader.log().to_string(),
        },
    )?;
    let mut next = 1;
    while next <= until.position {
        let page = reader.commits(next, PAGE_EVENTS)?;
        let Some(last) = page.last().map(Commit::head) else {
            return Err(EngineError::Damaged(format!("event {next} is missing")).into());
        };
        for commit in page.iter().take_while(|c| c.number <= until.commit) {
            let events = commit
                .events
                .iter()
                .map(|event| event_line(event))
                .collect();
            line(
                out,
                &CommitLine {
                    commit: commit.number,
                    chain: text(&commit.chain),
                    events,
                },
            )?;
        }
        next = last.position + 1;
    }
    let Head {
        position,
        commit,
        chain,
    } = until;
    line(
        out,
        &EndLine {
            end: End {
                position,
                commit,
                chain: text(&chain),
            },
        },
    )
}

fn event_line(event: &Recorded) -> EventLine<'_> {
    let optional = |id: Option<ulid::Ulid>| id.map(|id| id.to_string()).unwrap_or_default();
    EventLine {
        id: event.id.to_string(),
        stream: event.stream.as_str(),
        revision: event.revision,
        position: event.position,
        commit: event.commit,
        recorded_at_ms: event.recorded_at_ms(),
        kind: &event.kind,
        actor: &event.actor.kind,
        org: event.actor.org.map(|id| id.to_string()).unwrap_or_default(),
        key: event.actor.key.map(|id| id.to_string()).unwrap_or_default(),
        command: event.command.to_string(),
        correlation: optional(event.correlation),
        causation: optional(event.causation),
        data: event.data.get(),
        content_hash: text(&event.content_hash),
    }
}

fn line(out: &mut dyn Write, value: &impl Serialize) -> Result<(), ExportError> {
    serde_json::to_writer(&mut *out, value).map_err(std::io::Error::from)?;
    Ok(out.write_all(b"\n")?)
}

fn text(hash: &Hash) -> String {
    hex::encode(hash)
}
