//! `oc logs`: what a sandbox's programs print, as it is printed.
//!
//! A connection that breaks is made anew behind the last line that was shown: each line is shown
//! once, in order, unless more came meanwhile than the server tells at once.

use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{sleep, timeout};

use super::Context;
use super::audit::{Line, Lines, may_pass, time};
use super::client::decode;
use super::error::CliError;
use super::output::{printable, write_stdout};
use super::slice::Words;

/// Longest silence of a server that is there; it sends something every 15 seconds.
const SILENCE_SEC_MAX: u64 = 60;
/// Pause before the connection is made anew, and how often in a row that may bring nothing.
const RETRY: Duration = Duration::from_secs(2);
const ATTEMPTS_MAX: u32 = 30;
/// Lines asked for when the connection is made anew: as many as the server gives.
const AGAIN_MAX: usize = 10_000;

/// `oc logs`
#[derive(Args)]
pub struct Logs {
    /// Sandbox id
    sandbox_id: String,
    /// Show what is there, and end
    #[arg(long = "no-tail")]
    no_tail: bool,
    /// Only since this time: RFC 3339, or how long ago (90s, 15m, 2h, 3d)
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<OffsetDateTime>,
    /// Only until this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<OffsetDateTime>,
    /// Only lines with this text
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,
    /// Only from these (repeatable, comma-separated): var_log, exec_stdout, exec_stderr, agent
    #[arg(long, value_name = "SOURCE", value_parser = Words::parse)]
    source: Vec<Words>,
    /// Of what is there, only the newest so many lines
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

/// A line as the server tells it.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "_time", with = "time::serde::rfc3339")]
    time: OffsetDateTime,
    source: String,
    line: String,
    exit_code: Option<i64>,
}

/// How far the user has seen: the time of the last line, and how many of that time.
#[derive(Clone, Copy, Default)]
struct Seen {
    at: Option<OffsetDateTime>,
    count: usize,
}

impl Seen {
    fn take(&mut self, at: OffsetDateTime) {
        match self.at == Some(at) {
            true => self.count += 1,
            false => {
                *self = Self {
                    at: Some(at),
                    count: 1,
                }
            }
        }
    }
}

/// Why a connection ended without an error.
#[derive(PartialEq, Eq)]
enum Ended {
    /// The server closed it in order.
    Closed,
    /// It broke.
    Broken,
}

impl Logs {
    /// Shows lines until the end, or until the user has enough.
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let (mut seen, mut failed, mut connected) = (Seen::default(), 0, false);
        loop {
            let before = seen;
            match self.listen(context, &mut seen, &mut connected).await {
                Ok(Ended::Closed) if self.no_tail || self.is_over() => return Ok(()),
                Ok(_) => {}
                // It was there, and is deleted now.
                Err(CliError::Refused {
                    status: 404 | 410, ..
                }) if connected => return Ok(()),
                Err(error) if !connected || !may_pass(&error) => return Err(error),
                Err(error) if failed >= ATTEMPTS_MAX => return Err(error),
                Err(_) => {}
            }
            let moved = (seen.at, seen.count) != (before.at, before.count);
            failed = if moved { 0 } else { failed + 1 };
            if failed > ATTEMPTS_MAX {
                return Ok(());
            }
            sleep(RETRY).await;
        }
    }

    fn is_over(&self) -> bool {
        self.until
            .is_some_and(|until| until < OffsetDateTime::now_utc())
    }

    fn query(&self, seen: Seen) -> Vec<(&'static str, String)> {
        let text = |at: OffsetDateTime| at.format(&Rfc3339).ok();
        let sources = Words::merge(self.source.clone()).unwrap_or_default();
        let limit = match seen.at {
            Some(_) => Some(AGAIN_MAX),
            None => self.limit,
        };
        let given = [
            ("tail", self.no_tail.then(|| "false".to_owned())),
            ("since", seen.at.or(self.since).and_then(text)),
            ("until", self.until.and_then(text)),
            ("q", self.grep.clone()),
            ("source", (!sources.is_empty()).then(|| sources.join(","))),
            ("limit", limit.map(|limit| limit.to_string())),
        ];
        let given = given.into_iter();
        given
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    async fn listen(
        &self,
        context: &Context,
        seen: &mut Seen,
        connected: &mut bool,
    ) -> Result<Ended, CliError> {
        let path = ["sandboxes", &self.sandbox_id, "logs"];
        let (after, query) = (*seen, self.query(*seen));
        let mut response = context.api.feed(&path, &query, None).await?;
        *connected = true;
        let (mut lines, silence) = (Lines::default(), Duration::from_secs(SILENCE_SEC_MAX));
        // Of the last line's time as many come again as were shown.
        let mut again = after.count;
        loop {
            let chunk = match timeout(silence, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => return Ok(Ended::Closed),
                Ok(Err(_)) | Err(_) => return Ok(Ended::Broken),
            };
            lines.push(&chunk)?;
            while let Some(line) = lines.next_line() {
                let Line::Data(data) = line else { continue };
                let value: Value = serde_json::from_slice(&data)
                    .map_err(|_| CliError::BadReply("a line is no valid JSON".to_owned()))?;
                let entry: Entry = decode(value.clone())?;
                if again > 0 && Some(entry.time) == after.at {
                    again -= 1;
                    continue;
                }
                match context.output.json {
                    true => context.output.line(&value.to_string())?,
                    false => write_stdout(&entry.text(context.output.color))?,
                }
                seen.take(entry.time);
            }
        }
    }
}

impl Entry {
    /// `HH:MM:SS.mmm <source padded to 12> <line>`
    fn text(&self, color: bool) -> String {
        let (hour, minute, second) = self.time.to_hms();
        let time = format!(
            "{hour:02}:{minute:02}:{second:02}.{:03}",
            self.time.millisecond()
        );
        let line = match self.exit_code {
            Some(code) if self.line.is_empty() => format!("[exited with code {code}]"),
            _ => printable(&self.line),
        };
        let source = format!("{:12}", printable(&self.source));
        let paint = match self.source.as_str() {
            "exec_stderr" => "31",
            "var_log" => "36",
            "agent" => "35",
            _ => "32",
        };
        match color {
            true => format!("\x1b[2m{time}\x1b[0m \x1b[{paint}m{source}\x1b[0m {line}\n"),
            false => format!("{time} {source} {line}\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a line looks as documented; what a program printed moves no cursor.
    #[test]
    fn lines_look_as_documented() {
        let entry = |source: &str, line: &str, exit_code| Entry {
            time: time::macros::datetime!(2026-01-31 02:03:04.0567 UTC),
            source: source.to_owned(),
            line: line.to_owned(),
            exit_code,
        };
        let plain = entry("var_log", "a\x1b[2Jb", None);
        assert_eq!(
            plain.text(false),
            "02:03:04.056 var_log      a\\u{1b}[2Jb\n"
        );
        assert_eq!(
            entry("exec_stderr", "x", None).text(true),
            "\x1b[2m02:03:04.056\x1b[0m \x1b[31mexec_stderr \x1b[0m x\n"
        );
        let exit = entry("exec_stdout", "", Some(7)).text(false);
        assert_eq!(exit, "02:03:04.056 exec_stdout  [exited with code 7]\n");
    }
}
