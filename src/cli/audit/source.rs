//! Where the audit commands read: a server, or the data folder of one that is stopped.
//!
//! Both answer the same JSON. A server shows its caller's organization; whoever holds the folder
//! sees all of it. Opening a folder takes its lock, so it is refused while a server runs there.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::actors::trail::{self, Cursor, Filter};
use crate::actors::{History, HistoryError, Moment};
use crate::cli::Context;
use crate::cli::client::Api;
use crate::cli::error::CliError;
use crate::events::{EventLog, LogOptions, ReadError};

/// Which events are asked for.
#[derive(Args, Clone, Default)]
pub struct Filters {
    /// Only events of this project, store or sandbox (its id or stream)
    #[arg(long)]
    entity: Option<String>,
    /// Only events of this type, or of all types that begin with `word.`
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only what was done with this API key (its id), or through this door (`api`, `system`)
    #[arg(long, value_name = "KEY|KIND")]
    actor: Option<String>,
    /// Only events since this time: RFC 3339, or how long ago (90s, 15m, 2h, 3d)
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<OffsetDateTime>,
    /// Only events until this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(super) until: Option<OffsetDateTime>,
}

impl Filters {
    /// The filters as the API takes them.
    pub(super) fn query(&self) -> Vec<(&'static str, String)> {
        let text = |time: &OffsetDateTime| time.format(&Rfc3339).ok();
        let pairs = [
            ("entity", self.entity.clone()),
            ("type", self.kind.clone()),
            ("actor", self.actor.clone()),
            ("from", self.since.as_ref().and_then(text)),
            ("to", self.until.as_ref().and_then(text)),
        ];
        let given = pairs.into_iter();
        given
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    fn filter(&self) -> Result<Filter, CliError> {
        let filter = Filter {
            org: None,
            entity: self.entity.clone(),
            kind: self.kind.clone(),
            actor: self.actor.clone(),
            from: self.since,
            to: self.until,
        };
        filter.check().map_err(usage)?;
        Ok(filter)
    }
}

/// The folder to read instead of asking a server.
#[derive(Args, Clone)]
pub struct Folder {
    /// Read a stopped server's data folder, with all its organizations, instead of asking a server
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Folder {
    /// The place that was chosen.
    pub(super) fn open<'a>(&self, context: &'a Context) -> Result<Source<'a>, CliError> {
        match &self.data_dir {
            Some(dir) => open_log(&dir.join("log")).map(Source::Folder),
            None => Ok(Source::Server(&context.api)),
        }
    }
}

/// What is read.
pub(super) enum Source<'a> {
    Server(&'a Api),
    Folder(EventLog),
}

impl Source<'_> {
    /// A page of events, newest first: `events` and `nextBefore`.
    pub(super) async fn page(
        &self,
        filters: &Filters,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Value, CliError> {
        match self {
            Self::Server(api) => {
                let mut query = vec![("limit", limit.to_string())];
                query.extend(filters.query());
                query.extend(before.map(|before| ("before", before.to_string())));
                api.query(&["audit", "events"], &query).await
            }
            Self::Folder(log) => {
                let (filter, cursor) = (filters.filter()?, Cursor::Before(before));
                let page = trail::page(log, &filter, cursor, limit).await;
                let page = page.map_err(damaged)?;
                let events: Vec<_> = page
                    .events
                    .iter()
                    .map(|event| trail::render(event))
                    .collect();
                Ok(json!({ "events": events, "nextBefore": page.next }))
            }
        }
    }

    /// One event in full, by its position or id.
    pub(super) async fn event(&self, name: &str) -> Result<Value, CliError> {
        let log = match self {
            Self::Server(api) => return api.get(&["audit", "events", name]).await,
            Self::Folder(log) => log,
        };
        let scope = Filter::default();
        let found = match (name.parse(), name.parse()) {
            (Ok(position), _) => trail::at(log, &scope, position).await,
            (_, Ok(id)) => trail::find(log, &scope, id).await,
            _ => return Err(usage("an event is named by its position or its id")),
        };
        let event = found.map_err(damaged)?;
        let event = event.ok_or_else(|| not_found("event not found"))?;
        let link = log.commit_link(event.position).await.map_err(damaged)?;
        let link = link.ok_or_else(|| CliError::Damaged("the event's commit is missing".into()))?;
        Ok(trail::render_whole(&event, &link))
    }

    /// The objects as they were.
    pub(super) async fn state(&self, at: &str, entity: Option<&str>) -> Result<Value, CliError> {
        match self {
            Self::Server(api) => {
                let mut query = vec![("at", at.to_owned())];
                query.extend(entity.map(|entity| ("entity", entity.to_owned())));
                api.query(&["audit", "state"], &query).await
            }
            Self::Folder(log) => {
                let at: Moment = at.parse().map_err(usage)?;
                let state = History::new(log.clone()).state(None, at, entity).await;
                state.map_err(|error| match error {
                    HistoryError::Read(error) => damaged(error),
                    other => not_found(&other.to_string()),
                })
            }
        }
    }

    /// Gives the folder back.
    pub(super) async fn close(self) {
        if let Self::Folder(log) = self {
            log.close().await;
        }
    }
}

fn open_log(dir: &Path) -> Result<EventLog, CliError> {
    // Opening would make a log where there is none.
    if !dir.join("log.db").is_file() {
        let text = format!(
            "{} has no event log; name a server's data folder",
            dir.display()
        );
        return Err(CliError::Usage(text));
    }
    let options = LogOptions {
        dir: dir.to_owned(),
    };
    EventLog::open(options).map_err(|error| CliError::Damaged(error.to_string()))
}

fn usage(error: impl std::fmt::Display) -> CliError {
    CliError::Usage(error.to_string())
}

fn damaged(error: ReadError) -> CliError {
    CliError::Damaged(error.to_string())
}

/// What a server says of it too, with the same exit code.
fn not_found(message: &str) -> CliError {
    CliError::Refused {
        status: 404,
        message: message.to_owned(),
    }
}

/// A time as people give it: RFC 3339, or how long ago.
pub(in crate::cli) fn time(text: &str) -> Result<OffsetDateTime, String> {
    time_before(text, OffsetDateTime::now_utc())
}

/// A point of the log as people give it, in the words of the API: a position, or a time.
pub(super) fn moment(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(text.to_owned());
    }
    let time = time(text).map_err(|error| format!("{error}, or a position"))?;
    time.format(&Rfc3339).map_err(|error| error.to_string())
}

fn time_before(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, String> {
    if text == "now" {
        return Ok(now);
    }
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    let ago = || {
        let (unit, count) = (text.chars().last()?, text.get(..text.len() - 1)?);
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            _ => return None,
        };
        let seconds = count.parse::<u32>().ok().map(i64::from)? * seconds;
        now.checked_sub(time::Duration::seconds(seconds))
    };
    ago().ok_or_else(|| "use an RFC 3339 time (2026-01-31T12:00:00Z) or how long ago (15m)".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn times_are_absolute_or_ago() {
        let now = datetime!(2026-01-02 12:00 UTC);
        let check = |text: &str| time_before(text, now).ok();
        assert_eq!(check("now"), Some(now));
        assert_eq!(check("90s"), Some(datetime!(2026-01-02 11:58:30 UTC)));
        assert_eq!(check("15m"), Some(datetime!(2026-01-02 11:45 UTC)));
        assert_eq!(check("2h"), Some(datetime!(2026-01-02 10:00 UTC)));
        assert_eq!(check("3d"), Some(datetime!(2025-12-30 12:00 UTC)));
        assert_eq!(
            check("2026-01-01T01:00:00+01:00"),
            Some(datetime!(2026-01-01 00:00 UTC))
        );
        for bad in [
            "",
            "m",
            "15",
            "-1m",
            "1w",
            "1é",
            "99999999999d",
            "yesterday",
        ] {
            assert_eq!(check(bad), None, "{bad:?}");
        }
        assert_eq!(moment("17"), Ok("17".to_owned()));
        assert!(moment("").is_err() && moment("17x").is_err());
    }
}
