//! The log as JSON Lines, for strangers who verify it with their own tools.
//!
//! First line `{"format":"oc.log.v1","log":…}`, then one line a commit, last
//! `{"end":{"position":…,"commit":…,"chain":…}}`. Hashes are lower-case hex; `data` is the exact
//! JSON text as a string, because the content hash is over those bytes.
//!
//! The chain spans all organizations. Of an export for one of them ([`Audience::Org`]) the other
//! events are `{"content_hash":…}` and nothing else: the chain still verifies, and a content hash
//! tells nothing, because the event's id and its command's id, 80 random bits each, are hashed too.
//!
//! An export is made piece by piece. Nothing is held between two pieces, so a slow receiver keeps
//! neither a reader nor the write-ahead log waiting.

use std::io::Write;

use serde::Serialize;
use ulid::Ulid;

use super::chain::Hash;
use super::engines::Reader;
use super::error::{EngineError, ExportError};
use super::event::{Head, Recorded};
use super::log::EventLog;
use crate::ids::OrgId;

const PAGE_EVENTS: usize = 256;
/// Size after which a piece ends, in bytes; one commit more is the most it may have.
const PIECE_BYTES: usize = 256 * 1024;

/// Whose events an export shows in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The operator, who has the files anyway.
    Everything,
    /// One organization: events that were done for it.
    Org(OrgId),
}

impl Audience {
    fn may_read(&self, event: &Recorded) -> bool {
        match self {
            Self::Everything => true,
            Self::Org(org) => event.actor.org == Some(*org),
        }
    }
}

#[derive(Serialize)]
struct HeaderLine {
    format: &'static str,
    log: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    org: Option<OrgId>,
}

#[derive(Serialize)]
struct CommitLine<'a> {
    commit: u64,
    chain: String,
    events: Vec<EventLine<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum EventLine<'a> {
    Full(Box<FullLine<'a>>),
    Withheld { content_hash: String },
}

#[derive(Serialize)]
struct FullLine<'a> {
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

/// An export under way: up to the head it was begun at.
pub struct Export {
    log: EventLog,
    progress: Progress,
}

impl Export {
    /// The next piece: whole lines, at most one commit more than 256 KiB; `None` after the last.
    pub async fn next_piece(&mut self) -> Result<Option<Vec<u8>>, ExportError> {
        let progress = self.progress;
        let (progress, piece) = self
            .log
            .readers()
            .run(move |view| {
                let mut progress = progress;
                let piece = progress.piece(view.reader())?;
                Ok::<_, ExportError>((progress, piece))
            })
            .await?;
        self.progress = progress;
        Ok(piece)
    }

    /// Where it ends.
    pub fn until(&self) -> Head {
        self.progress.until
    }
}

/// How far an export has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    audience: Audience,
    until: Head,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Header,
    /// The next commit's first position.
    Commits(u64),
    Done,
}

impl EventLog {
    /// Begins an export of the log up to the present head. Each event's content hash is checked on
    /// the way.
    pub fn export(&self, audience: Audience) -> Export {
        Export {
            log: self.clone(),
            progress: Progress::new(audience, self.head()),
        }
    }

    /// Writes the whole log up to the present head to `writer` and gives it back, with the head.
    pub async fn export_jsonl<W: Write + Send + 'static>(
        &self,
        mut writer: W,
    ) -> Result<(W, Head), ExportError> {
        let mut export = self.export(Audience::Everything);
        while let Some(piece) = export.next_piece().await? {
            writer.write_all(&piece)?;
        }
        writer.flush()?;
        Ok((writer, export.until()))
    }
}

impl Progress {
    pub(super) fn new(audience: Audience, until: Head) -> Self {
        Self {
            audience,
            until,
            stage: Stage::Header,
        }
    }

    /// As [`Export::next_piece`], of any view.
    pub(super) fn piece(&mut self, view: &dyn Reader) -> Result<Option<Vec<u8>>, ExportError> {
        let mut out = Vec::with_capacity(PIECE_BYTES);
        match self.stage {
            Stage::Done => return Ok(None),
            Stage::Header => {
                self.header(view.log(), &mut out)?;
                self.stage = Stage::Commits(1);
            }
            Stage::Commits(next) if next > self.until.position => {
                self.end(&mut out)?;
                self.stage = Stage::Done;
            }
            Stage::Commits(next) => {
                let next = self.commits(view, next, &mut out)?;
                self.stage = Stage::Commits(next);
            }
        }
        Ok(Some(out))
    }

    fn header(&self, log: Ulid, out: &mut Vec<u8>) -> Result<(), ExportError> {
        let header = HeaderLine {
            format: "oc.log.v1",
            log: log.to_string(),
            org: match self.audience {
                Audience::Everything => None,
                Audience::Org(org) => Some(org),
            },
        };
        line(out, &header)
    }

    fn end(&self, out: &mut Vec<u8>) -> Result<(), ExportError> {
        let Head {
            position,
            commit,
            chain,
        } = self.until;
        let chain = text(&chain);
        let end = End {
            position,
            commit,
            chain,
        };
        line(out, &EndLine { end })
    }

    /// Commits from position `next` on until the piece is full; returns the position behind them.
    fn commits(
        &self,
        view: &dyn Reader,
        mut next: u64,
        out: &mut Vec<u8>,
    ) -> Result<u64, ExportError> {
        for commit in view.commits(next, PAGE_EVENTS)? {
            if next > self.until.position || out.len() >= PIECE_BYTES {
                break;
            }
            let events = commit.events.iter().map(|event| self.event(event));
            let line_of = CommitLine {
                commit: commit.number,
                chain: text(&commit.chain),
                events: events.collect(),
            };
            line(out, &line_of)?;
            next = commit.head().position + 1;
        }
        match out.is_empty() {
            true => Err(EngineError::Damaged(format!("event {next} is missing")).into()),
            false => Ok(next),
        }
    }

    fn event<'a>(&self, event: &'a Recorded) -> EventLine<'a> {
        match self.audience.may_read(event) {
            true => EventLine::Full(Box::new(full_line(event))),
            false => EventLine::Withheld {
                content_hash: text(&event.content_hash),
            },
        }
    }
}

fn full_line(event: &Recorded) -> FullLine<'_> {
    let optional = |id: Option<Ulid>| id.map(|id| id.to_string()).unwrap_or_default();
    FullLine {
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

fn line(out: &mut Vec<u8>, value: &impl Serialize) -> Result<(), ExportError> {
    serde_json::to_writer(&mut *out, value).map_err(std::io::Error::from)?;
    out.push(b'\n');
    Ok(())
}

fn text(hash: &Hash) -> String {
    hex::encode(hash)
}
