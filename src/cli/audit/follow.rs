//! The feed of events, as server-sent events, for as long as the user wants.
//!
//! Invariants: events are shown in order, each one once: a broken connection is made anew behind
//! the last event that was shown, or behind what the server has looked at in vain since. A server
//! that stays away ends the command; one that is there and has nothing to tell does not, however
//! often something on the way cuts the connection.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::log::Event;
use crate::cli::client::{Api, decode};
use crate::cli::error::CliError;

/// Longest silence of a server that is there; it sends something every 15 seconds.
const SILENCE_SEC_MAX: u64 = 60;
/// Pause before the connection is made anew.
const RETRY_MS: u64 = 2_000;
/// What is heard after this long is no greeting: the server was there all the time.
const LIVELY_SEC_MIN: u64 = 10;
/// Attempts in a row that bring nothing.
const ATTEMPTS_MAX: u32 = 30;
/// Longest line of a feed, in bytes: an event's data is 1 MiB at most, and escapes double it.
const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Shows every event behind `after` that the filters take. Ends with an error only.
pub(super) async fn follow(
    api: &Api,
    query: &[(&'static str, String)],
    mut after: u64,
    show: impl Fn(&Event) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut failed = 0;
    loop {
        let before = after;
        let (heard, ended) = {
            let (began, mut last) = (Instant::now(), Instant::now());
            let ended = listen(api, query, &mut after, &mut last, &show).await;
            (last.duration_since(began), ended)
        };
        failed = failures(failed, after > before, heard);
        match ended {
            Err(error) if failed >= ATTEMPTS_MAX || !may_pass(&error) => return Err(error),
            _ => sleep(Duration::from_millis(RETRY_MS)).await,
        }
    }
}

/// Failures in a row after one more connection, which brought something or not, and from which
/// something was `heard` last so long after it was begun.
fn failures(before: u32, brought: bool, heard: Duration) -> u32 {
    match brought || heard >= Duration::from_secs(LIVELY_SEC_MIN) {
        true => 0,
        false => before + 1,
    }
}

/// Whether a failure may be over in a moment: the server restarts, or is overloaded.
pub(in crate::cli) fn may_pass(error: &CliError) -> bool {
    match error {
        CliError::Unreachable { .. } => true,
        CliError::Refused { status, .. } => *status == 429 || *status >= 500,
        _ => false,
    }
}

/// One connection, until it ends. `heard` is when the server was last heard.
async fn listen(
    api: &Api,
    query: &[(&'static str, String)],
    after: &mut u64,
    heard: &mut Instant,
    show: &impl Fn(&Event) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut response = api.feed(&["audit", "events"], query, Some(*after)).await?;
    let (mut lines, silence) = (Lines::default(), Duration::from_secs(SILENCE_SEC_MAX));
    loop {
        let chunk = match timeout(silence, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| api.transport(error))?,
            Err(_) => {
                let silent = std::io::Error::from(std::io::ErrorKind::TimedOut);
                return Err(api.unreachable(&silent));
            }
        };
        // The server's end of it: it stops, and may come back.
        let Some(chunk) = chunk else {
            let ended = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(api.unreachable(&ended));
        };
        *heard = Instant::now();
        lines.push(&chunk)?;
        while let Some(line) = lines.next_line() {
            let data = match line {
                Line::Data(data) => data,
                Line::LookedAt(position) => {
                    *after = position.max(*after);
                    continue;
                }
            };
            let event: Value = serde_json::from_slice(&data)
                .map_err(|_| CliError::BadReply("an event is no valid JSON".to_owned()))?;
            let event: Event = decode(event)?;
            if event.position > *after {
                show(&event)?;
                *after = event.position;
            }
        }
    }
}

/// What a feed says.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) enum Line {
    /// An event, which names its own position.
    Data(Vec<u8>),
    /// A message is over, and everything up to here was in it or before it.
    LookedAt(u64),
}

/// What has come and is not read yet.
#[derive(Default)]
pub(in crate::cli) struct Lines {
    bytes: Vec<u8>,
    read: usize,
    /// The id of the message that is being read; it counts when the message is there as a whole.
    id: Option<u64>,
}

impl Lines {
    /// Takes what came.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), CliError> {
        self.bytes.drain(..self.read);
        self.read = 0;
        if self.bytes.len() + chunk.len() > LINE_BYTES_MAX {
            return Err(CliError::BadReply(format!(
                "a line of the feed exceeds {LINE_BYTES_MAX} bytes"
            )));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// The next line that matters and is there as a whole.
    pub fn next_line(&mut self) -> Option<Line> {
        loop {
            let rest = self.bytes.get(self.read..)?;
            let end = memchr::memchr(b'\n', rest)?;
            let line = rest.get(..end)?;
            self.read += end + 1;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let value = |line: &[u8]| line.strip_prefix(b" ").unwrap_or(line).to_vec();
            if let Some(data) = line.strip_prefix(b"data:") {
                return Some(Line::Data(value(data)));
            }
            if let Some(id) = line.strip_prefix(b"id:") {
                let id = String::from_utf8(value(id)).ok();
                self.id = id.and_then(|id| id.parse().ok());
            } else if line.is_empty()
                && let Some(id) = self.id.take()
            {
                return Some(Line::LookedAt(id));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: events come out whole, and how far the server has looked counts only with the whole
    /// message, however the stream is cut.
    #[test]
    fn a_feed_reads_the_same_at_every_cut() {
        let text = b"retry: 2000\n\nid: 1\ndata: {\"a\":1}\n\n:\n\nid: 2\r\ndata:{}\r\n\r\n\
                     :\nid: 7\n\nid: x\n\nid: 9\ndata: cut";
        for cut in 0..=text.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for part in [&text[..cut], &text[cut..]] {
                lines.push(part).unwrap();
                found.extend(std::iter::from_fn(|| lines.next_line()));
            }
            let wanted = [
                Line::Data(b"{\"a\":1}".to_vec()),
                Line::LookedAt(1),
                Line::Data(b"{}".to_vec()),
                Line::LookedAt(2),
                Line::LookedAt(7),
            ];
            assert_eq!(found, wanted, "cut at {cut}");
        }
        let mut lines = Lines::default();
        assert!(lines.push(&vec![b'x'; LINE_BYTES_MAX]).is_ok());
        assert!(lines.push(b"x").is_err());
    }

    /// Goal: connections that were alive are no failures, however quiet the log is and however often
    /// they are cut; a server that greets and goes, or is silent, is one after thirty.
    #[test]
    fn a_quiet_feed_does_not_end_by_itself() {
        let often = |brought, heard| {
            let more = |failed, _| failures(failed, brought, Duration::from_secs(heard));
            (0..2 * ATTEMPTS_MAX).fold(0, more)
        };
        assert_eq!(often(false, 15), 0, "one heartbeat each");
        assert_eq!(often(true, 0), 0);
        assert!(often(false, 0) >= ATTEMPTS_MAX);
    }
}
