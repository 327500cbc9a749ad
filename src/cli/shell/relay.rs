//! Keys out, output in, until one of both ends.
//!
//! Invariants: every queue is bounded; a terminal that takes no output, and a server that is not
//! heard, leave signals heard; all output is on the screen before the end is told.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use reqwest::Method;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval_at, timeout};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::modes::Modes;
use super::raw::{Raw, Size, size};
use crate::cli::client::{Api, body};
use crate::cli::error::CliError;
use crate::cli::exec::frame::Frame;
use crate::cli::exec::stream::{connect, read_stdin, start_printer};

/// How often the server is asked whether it is still there.
const PING: Duration = Duration::from_secs(15);
/// A server that said nothing for so long is not there.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Why it is over.
pub enum End {
    /// The shell ended.
    Shell,
    /// The connection did, with the reason.
    Lost(String),
    /// This process was told to end, by this signal.
    Signal(u8),
}

/// What this process is told by signals.
pub struct Signals {
    ends: [(Signal, u8); 4],
    resized: Signal,
    resumed: Signal,
}

impl Signals {
    /// From now on.
    pub fn listen() -> Result<Self, CliError> {
        let listen = |kind| {
            signal(kind).map_err(|error| CliError::Usage(format!("cannot watch signals: {error}")))
        };
        let end = |kind: SignalKind| {
            let number = u8::try_from(kind.as_raw_value()).unwrap_or_default();
            Ok::<_, CliError>((listen(kind)?, number))
        };
        Ok(Self {
            ends: [
                end(SignalKind::terminate())?,
                end(SignalKind::hangup())?,
                end(SignalKind::interrupt())?,
                end(SignalKind::quit())?,
            ],
            resized: listen(SignalKind::window_change())?,
            resumed: listen(SignalKind::from_raw(libc::SIGCONT))?,
        })
    }
}

/// The number of the signal that says to end.
async fn told_to_end([a, b, c, d]: &mut [(Signal, u8); 4]) -> u8 {
    tokio::select! {
        _ = a.0.recv() => a.1,
        _ = b.0.recv() => b.1,
        _ = c.0.recv() => c.1,
        _ = d.0.recv() => d.1,
    }
}

/// Gives the terminal to the shell at `path` until the end.
pub async fn run(api: &Api, path: &[&str; 4], mut signals: Signals) -> Result<End, CliError> {
    let connecting = connect(api, path);
    let socket = tokio::select! {
        socket = connecting => socket?,
        number = told_to_end(&mut signals.ends) => return Ok(End::Signal(number)),
    };
    let (sink, mut messages) = socket.split();
    let raw = Raw::enter().map_err(CliError::Input)?;
    tokio::spawn(forward_keys(sink));
    let resizer = start_resizer(api.clone(), path.map(str::to_owned));
    let (queue, mut outcome) = start_printer();
    let mut modes = Modes::default();
    let end = loop {
        tokio::select! {
            step = next_step(&mut messages, &queue, &mut modes) => {
                if let ControlFlow::Break(end) = step {
                    break end;
                }
            }
            written = &mut outcome => {
                // The printer ends before its queue does only when writing failed.
                return match written {
                    Ok(Err(error)) => Err(CliError::Output(error)),
                    _ => Ok(End::Signal(SignalKind::hangup().as_raw_value() as u8)),
                };
            }
            number = told_to_end(&mut signals.ends) => break End::Signal(number),
            _ = signals.resized.recv() => drop(resizer.send_replace(size())),
            _ = signals.resumed.recv() => {
                // Whoever had the terminal meanwhile left it in another state and size.
                raw.again().map_err(CliError::Input)?;
                resizer.send_replace(size());
            }
        }
    };
    drop(queue);
    tokio::select! {
        // What could not be written has nobody to be told.
        _ = outcome => {}
        // The reader of our output may have stopped reading.
        _ = told_to_end(&mut signals.ends) => {}
    }
    if !matches!(end, End::Shell) {
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(modes.undo().as_bytes());
        let _ = stdout.write_all(b"\r\n").and_then(|()| stdout.flush());
    }
    drop(raw);
    Ok(end)
}

/// One message from the socket to the printer; safe to cancel between the two.
async fn next_step(
    messages: &mut (impl Stream<Item = Result<Message, SocketError>> + Unpin),
    queue: &mpsc::Sender<Frame>,
    modes: &mut Modes,
) -> ControlFlow<End> {
    // Room first: a message that was taken from the socket must have a place to go. A closed
    // queue means that printing failed, which the printer itself reports.
    let Ok(room) = queue.reserve().await else {
        return std::future::pending().await;
    };
    let lost = |reason: &str| ControlFlow::Break(End::Lost(reason.to_owned()));
    match timeout(SILENCE_MAX, messages.next()).await {
        Ok(Some(Ok(Message::Binary(bytes)))) => {
            modes.see(&bytes);
            room.send(Frame::Stdout(bytes));
            ControlFlow::Continue(())
        }
        Ok(Some(Ok(Message::Close(Some(close))))) => match close.code {
            CloseCode::Normal => ControlFlow::Break(End::Shell),
            CloseCode::Away => lost("the server stopped, or the sandbox sleeps or is gone"),
            _ => lost("the sandbox does not answer"),
        },
        Ok(Some(Ok(Message::Close(None)))) | Ok(None) => lost("the server closed it"),
        Ok(Some(Ok(_))) => ControlFlow::Continue(()),
        Ok(Some(Err(error))) => lost(&error.to_string()),
        Err(_) => lost("the server does not answer"),
    }
}

/// Tells the sandbox each new size, the newest last. It ends with its sender.
fn start_resizer(api: Api, path: [String; 4]) -> watch::Sender<Option<Size>> {
    // It may have changed while the terminal was being opened.
    let (sizes, mut news) = watch::channel(size());
    news.mark_changed();
    tokio::spawn(async move {
        let [a, b, c, d] = &path;
        while news.changed().await.is_ok() {
            let newest = *news.borrow_and_update();
            let Some(newest) = newest else { continue };
            let Ok(request) = body(&newest) else { continue };
            // A size that is not heard of is no reason to end: the next one may be.
            let path = [a.as_str(), b, c, d, "resize"];
            let _ = api.send(Method::POST, &path, Some(request)).await;
        }
    });
    sizes
}

/// Sends the keys to the shell until either ends, and asks now and then whether it is there.
async fn forward_keys(mut socket: impl Sink<Message> + Unpin) {
    let mut chunks = read_stdin(Bytes::copy_from_slice);
    let mut pings = interval_at(Instant::now() + PING, PING);
    let mut typing = true;
    loop {
        let message = tokio::select! {
            keys = chunks.recv(), if typing => match keys {
                Some(keys) => Message::Binary(keys),
                None => {
                    typing = false;
                    continue;
                }
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        if socket.send(message).await.is_err() {
            return;
        }
    }
}
