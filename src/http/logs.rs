//! A sandbox's log as server-sent events (contract section 5.10).
//!
//! ```text
//! data: {"_time":…,"source":"exec_stdout","line":…,"sandbox_id":…,"exec_id":…,…}
//!
//! : keepalive
//! ```
//!
//! What is there comes first, oldest first, then what comes, until the client leaves, the sandbox is
//! deleted, `until` has passed or the server stops. A sandbox that sleeps keeps the feed. A feed is
//! read only as fast as its client takes it, from the file, so that it holds up nobody; one that
//! falls behind by the whole log goes on with the oldest line there is.

use std::collections::VecDeque;
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, HeaderName};
use actix_web::web::Bytes;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::stream;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Api;
use super::auth::WithSandbox;
use super::error::{ApiError, ApiResult};
use super::feeds::Place;
use crate::actors::{LogLine, LogQuery, LogReader, LogSource};
use crate::ids::SandboxId;

/// Of what is there: how many lines when the caller doesn't say, and at most.
const LIMIT_DEFAULT: usize = 1000;
const LIMIT_MAX: usize = 10_000;
/// Longest text that is looked for, in bytes.
const TEXT_BYTES_MAX: usize = 1024;
/// Longest silence.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How often a feed looks for what is new.
const LOOK: Duration = Duration::from_millis(500);
/// Lines sent in one piece.
const PIECE_LINES_MAX: usize = 64;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config.service(web::resource("/logs").route(web::get().to(logs)));
}

/// What is asked for, and whether to go on with what comes.
fn parse(query: &str) -> ApiResult<(LogQuery, bool)> {
    let pairs = web::Query::<Vec<(String, String)>>::from_query(query)
        .map_err(|_| ApiError::bad_request("invalid query"))?
        .into_inner();
    let mut asked = LogQuery {
        limit: LIMIT_DEFAULT,
        ..LogQuery::default()
    };
    let mut tail = true;
    for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
        match name.as_str() {
            "tail" => {
                tail = match value.as_str() {
                    "true" | "1" => true,
                    "false" | "0" => false,
                    _ => return Err(ApiError::bad_request("tail must be true or false")),
                }
            }
            "since" => asked.since = Some(time_of("since", &value)?),
            "until" => asked.until = Some(time_of("until", &value)?),
            "q" if value.chars().any(char::is_control) => {
                let text = "q must not hold control characters";
                return Err(ApiError::bad_request(text));
            }
            "q" if value.len() > TEXT_BYTES_MAX => {
                let text = format!("q must not exceed {TEXT_BYTES_MAX} bytes");
                return Err(ApiError::bad_request(text));
            }
            "q" => asked.text = Some(value),
            "source" => {
                for one in value.split(',') {
                    let known = LogSource::ALL.iter().find(|(name, _)| *name == one);
                    let unknown = || {
                        let names = LogSource::ALL.map(|(name, _)| name).join(", ");
                        ApiError::bad_request(format!("source must be of {names}"))
                    };
                    asked.sources.push(known.ok_or_else(unknown)?.1);
                }
            }
            "limit" => {
                let limit = value.parse().ok().filter(|n| (1..=LIMIT_MAX).contains(n));
                let text = || format!("limit must be between 1 and {LIMIT_MAX}");
                asked.limit = limit.ok_or_else(|| ApiError::bad_request(text()))?;
            }
            _ => {}
        }
    }
    Ok((asked, tail))
}

fn time_of(name: &str, value: &str) -> ApiResult<OffsetDateTime> {
    let text = || ApiError::bad_request(format!("{name} must be an RFC 3339 time"));
    OffsetDateTime::parse(value, &Rfc3339).map_err(|_| text())
}

async fn logs(api: web::Data<Api>, who: WithSandbox, request: HttpRequest) -> ApiResult {
    let (query, tail) = parse(request.query_string())?;
    let until = query.until;
    let read = api.platform.read_log(&who.caller, &who.id, query);
    let mut reader = read.await?;
    let place = api.log_feeds.place(who.caller.org, "a sandbox's log")?;
    let lines = reader.history().await.map_err(ApiError::internal)?;
    let feed = Feed {
        lines,
        reader,
        tail,
        until,
        said: Instant::now(),
        stopping: api.stopping.clone(),
        api,
        who,
        _place: place,
    };
    let body = stream::unfold(feed, |mut feed| async move {
        let piece = feed.next().await?;
        Some((Ok::<_, ApiError>(piece), feed))
    });
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((HeaderName::from_static("x-accel-buffering"), "no"))
        .streaming(body))
}

/// A feed on its way to a client.
struct Feed {
    lines: VecDeque<LogLine>,
    reader: LogReader,
    tail: bool,
    until: Option<OffsetDateTime>,
    /// When something was last sent.
    said: Instant,
    stopping: CancellationToken,
    api: web::Data<Api>,
    who: WithSandbox,
    _place: Place,
}

impl Feed {
    /// What is sent next; `None` ends the feed.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.lines.is_empty() {
                let count = self.lines.len().min(PIECE_LINES_MAX);
                self.said = Instant::now();
                return Some(messages(&self.who.id, self.lines.drain(..count)));
            }
            let over = |until| OffsetDateTime::now_utc() > until;
            let admitted = self.api.still_valid(&self.who.caller);
            if !self.tail || self.until.is_some_and(over) || !admitted {
                return None;
            }
            if self.said.elapsed() >= KEEPALIVE {
                self.said = Instant::now();
                return Some(Bytes::from_static(b": keepalive\n\n"));
            }
            tokio::select! {
                () = self.stopping.cancelled() => return None,
                () = sleep(LOOK) => {}
            }
            match self.reader.more().await {
                Ok(lines) => self.lines = lines,
                Err(error) => {
                    tracing::info!(%error, "a feed of a sandbox's log ends");
                    return None;
                }
            }
            let (caller, id) = (&self.who.caller, &self.who.id);
            if self.lines.is_empty() && self.api.platform.log_is_there(caller, id).await.is_err() {
                return None;
            }
        }
    }
}

/// A line as clients get it.
#[derive(Serialize)]
struct Message<'a> {
    #[serde(flatten)]
    line: &'a LogLine,
    sandbox_id: &'a SandboxId,
}

fn messages(id: &SandboxId, lines: impl Iterator<Item = LogLine>) -> Bytes {
    let mut text = String::new();
    for line in lines {
        let message = Message {
            line: &line,
            sandbox_id: id,
        };
        // Plain data always serializes; JSON text has no line break in it.
        let data = serde_json::to_string(&message).unwrap_or_default();
        text.push_str("data: ");
        text.push_str(&data);
        text.push_str("\n\n");
    }
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is asked for is read exactly, and what can't be is refused by name.
    #[test]
    fn queries_are_read_or_refused() {
        let (asked, tail) = parse("").unwrap();
        assert_eq!((asked.limit, tail, asked.text), (1000, true, None));
        let query = "tail=false&q=a%20b&source=agent,exec_stderr&limit=10000&x=1\
                     &since=2026-01-31T12:00:00%2B01:00&until=2026-01-31T12:00:00.5Z";
        let (asked, tail) = parse(query).unwrap();
        assert_eq!(
            (asked.limit, tail, asked.text.as_deref()),
            (10_000, false, Some("a b"))
        );
        assert_eq!(asked.sources, [LogSource::Agent, LogSource::ExecStderr]);
        assert!(asked.since < asked.until);
        for (query, field) in [
            ("tail=maybe", "tail"),
            ("since=yesterday", "since"),
            ("until=2026-01-31", "until"),
            ("q=a%0Ab", "q"),
            ("source=exec_stdout,", "source"),
            ("source=stdin", "source"),
            ("limit=0", "limit"),
            ("limit=10001", "limit"),
            ("limit=-1", "limit"),
        ] {
            let refused = parse(query).unwrap_err().to_string();
            assert!(
                refused.contains(&format!("\"{field} must")),
                "{query}: {refused}"
            );
        }
    }
}
