//! The feed of events, as server-sent events, for as long as the user wants.
//!
//! Invariants: events are shown in order, each one once: a broken connection is made anew behind
//! the last event that was shown. A server that stays away ends the command.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::log::Event;
use crate::cli::client::{Api, decode};
use crate::cli::error::CliError;

/// Longest silence of a server that is there; it sends something every 15 seconds.
const SILENCE_SEC_MAX: u64 = 60;
/// Pause before the connection is made anew.
const RETRY_MS: u64 = 2_000;
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
        let ended = listen(api, query, &mut after, &show).await;
        failed = if after > before { 0 } else { failed + 1 };
        match ended {
            Err(error) if failed >= ATTEMPTS_MAX || !may_pass(&error) => return Err(error),
            _ => sleep(Duration::from_millis(RETRY_MS)).await,
        }
    }
}

/// Whether a failure may be over in a moment: the server restarts, or is overloaded.
fn may_pass(error: &CliError) -> bool {
    match error {
        CliError::Unreachable { .. } => true,
        CliError::Refused { status, .. } => *status == 429 || *status >= 500,
        _ => false,
    }
}

/// One connection, until it ends.
async fn listen(
    api: &Api,
    query: &[(&'static str, String)],
    after: &mut u64,
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
        lines.push(&chunk)?;
        while let Some(data) = lines.next_data() {
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

/// What has come and is not read yet. Only `data:` lines matter: an event names its own position.
#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    read: usize,
}

impl Lines {
    fn push(&mut self, chunk: &[u8]) -> Result<(), CliError> {
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

    /// The data of the next event that is there as a whole.
    fn next_data(&mut self) -> Option<Vec<u8>> {
        loop {
            let rest = self.bytes.get(self.read..)?;
            let end = memchr::memchr(b'\n', rest)?;
            let line = rest.get(..end)?;
            self.read += end + 1;
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if let Some(data) = line.strip_prefix(b"data:") {
                return Some(data.strip_prefix(b" ").unwrap_or(data).to_vec());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: events come out whole, however the stream is cut.
    #[test]
    fn a_feed_reads_the_same_at_every_cut() {
        let text =
            b"retry: 2000\n\nid: 1\ndata: {\"a\":1}\n\n:\n\nid: 2\r\ndata:{}\r\n\r\ndata: cut";
        for cut in 0..=text.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for part in [&text[..cut], &text[cut..]] {
                lines.push(part).unwrap();
                found.extend(std::iter::from_fn(|| lines.next_data()));
            }
            assert_eq!(
                found,
                [b"{\"a\":1}".to_vec(), b"{}".to_vec()],
                "cut at {cut}"
            );
        }
        let mut lines = Lines::default();
        assert!(lines.push(&vec![b'x'; LINE_BYTES_MAX]).is_ok());
        assert!(lines.push(b"x").is_err());
    }
}
