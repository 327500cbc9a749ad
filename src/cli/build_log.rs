//! What a build says, shown as it comes: on a terminal with a line below it that tells how far it is.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::time::timeout;

use super::Context;
use super::error::CliError;
use super::output::printable;

/// Longest line of the stream, in bytes: a result holds its whole manifest.
const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Longest the server may be silent: it says something every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(90);
/// How often the line below the log is renewed.
const TICK: Duration = Duration::from_millis(120);
const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// Posts a request that builds, shows what is said meanwhile on standard error, and answers with the
/// result. `steps`: how many there are, if that is known.
pub(super) async fn follow(
    context: &Context,
    path: &[&str],
    body: Bytes,
    steps: Option<usize>,
) -> Result<Value, CliError> {
    let mut response = context.api.post_for_events(path, body).await?;
    let mut shown = Shown::new(context, steps);
    let mut events = Events::default();
    let mut heard = Instant::now();
    loop {
        let chunk = match timeout(TICK, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| context.api.transport(error))?,
            Err(_) if heard.elapsed() < SILENCE_MAX => {
                shown.tick();
                continue;
            }
            Err(_) => None,
        };
        let Some(chunk) = chunk else {
            shown.clear();
            return Err(CliError::Dropped(
                "the connection broke before the end of the build, which goes on without it: ask again \
                 for the same to have its result"
                    .to_owned(),
            ));
        };
        heard = Instant::now();
        events.push(&chunk)?;
        while let Some((event, data)) = events.next() {
            let data: Value = serde_json::from_str(&data)
                .map_err(|_| CliError::BadReply("an event is no valid JSON".to_owned()))?;
            match event.as_str() {
                "build_log" => shown.line(&data),
                "error" => {
                    shown.clear();
                    let message = data["error"].as_str().unwrap_or("no reason given");
                    return Err(CliError::Refused {
                        status: 500,
                        message: format!("build failed: {message}"),
                    });
                }
                "result" => {
                    shown.clear();
                    return Ok(data);
                }
                _ => {}
            }
        }
    }
}

/// The log on standard error.
struct Shown {
    quiet: bool,
    terminal: bool,
    color: bool,
    steps: Option<usize>,
    began: Instant,
    /// What is under way.
    now: String,
    ticks: usize,
}

impl Shown {
    fn new(context: &Context, steps: Option<usize>) -> Self {
        let terminal = io::stderr().is_terminal();
        Self {
            // Who wants JSON reads standard error for errors.
            quiet: context.output.json,
            terminal: terminal && !context.output.json,
            color: terminal && context.output.color,
            steps,
            began: Instant::now(),
            now: "waiting".to_owned(),
            ticks: 0,
        }
    }

    fn line(&mut self, data: &Value) {
        if self.quiet {
            return;
        }
        let step = data["step"].as_u64().unwrap_or(0);
        let kind = printable(data["type"].as_str().unwrap_or_default());
        let message = printable(data["message"].as_str().unwrap_or_default());
        self.now = self.head(step, &kind);
        self.clear();
        let text = line(&self.now, &message, self.color);
        // Nobody can be told when standard error is closed.
        let _ = writeln!(io::stderr(), "{text}");
        self.status();
    }

    fn head(&self, step: u64, kind: &str) -> String {
        match (step, self.steps) {
            (0, _) => kind.to_owned(),
            (step, Some(steps)) => format!("{step}/{steps} {kind}"),
            (step, None) => format!("{step} {kind}"),
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.status();
    }

    fn status(&self) {
        if self.terminal {
            let spinner = SPINNER[self.ticks % SPINNER.len()];
            let seconds = self.began.elapsed().as_secs();
            let _ = write!(io::stderr(), "\r\x1b[K{spinner} {} ({seconds}s)", self.now);
            let _ = io::stderr().flush();
        }
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
            let _ = io::stderr().flush();
        }
    }
}

fn line(head: &str, message: &str, color: bool) -> String {
    match color {
        true => format!("\x1b[2m[{head}]\x1b[0m {message}"),
        false => format!("[{head}] {message}"),
    }
}

/// Server-sent events, cut in any way.
#[derive(Default)]
struct Events {
    bytes: Vec<u8>,
    event: String,
    data: String,
    ready: VecDeque<(String, String)>,
}

impl Events {
    fn push(&mut self, chunk: &[u8]) -> Result<(), CliError> {
        for &byte in chunk {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.bytes);
                self.line(&String::from_utf8_lossy(&line));
            } else if self.bytes.len() < LINE_BYTES_MAX {
                self.bytes.push(byte);
            } else {
                return Err(CliError::BadReply(format!(
                    "a line of the stream exceeds {LINE_BYTES_MAX} bytes"
                )));
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &str) {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if let Some(event) = line.strip_prefix("event:") {
            self.event = event.trim_start().to_owned();
        } else if let Some(data) = line.strip_prefix("data:") {
            self.data = data.strip_prefix(' ').unwrap_or(data).to_owned();
        } else if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            let data = std::mem::take(&mut self.data);
            if !data.is_empty() {
                self.ready.push_back((event, data));
            }
        }
    }

    fn next(&mut self) -> Option<(String, String)> {
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: events are read the same however the stream is cut; comments are none.
    #[test]
    fn events_are_read_at_every_cut() {
        let text =
            b"event: build_log\ndata: {\"a\":1}\n\n: keepalive\n\nevent: result\ndata: {}\n\n";
        for cut in 0..=text.len() {
            let mut events = Events::default();
            events.push(&text[..cut]).unwrap();
            events.push(&text[cut..]).unwrap();
            let all: Vec<_> = std::iter::from_fn(|| events.next()).collect();
            let event = |name: &str, data: &str| (name.to_owned(), data.to_owned());
            assert_eq!(
                all,
                [event("build_log", "{\"a\":1}"), event("result", "{}")]
            );
        }
        let mut events = Events::default();
        assert!(events.push(&vec![b'x'; LINE_BYTES_MAX]).is_ok());
        assert!(events.push(b"x").is_err());
    }

    /// Goal: a line says which step it is of.
    #[test]
    fn lines_name_their_step() {
        assert_eq!(line("2/5 run", "hello", false), "[2/5 run] hello");
        assert_eq!(line("run", "x", true), "\x1b[2m[run]\x1b[0m x");
    }
}
