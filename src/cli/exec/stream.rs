//! Following a session over its WebSocket: output out, input in, signals across.
//!
//! Invariants: every queue is bounded, so a reader of ours that stops reading slows the server's
//! sending instead of filling memory; Ctrl-C is heard even then; output is written in the order
//! it came and is all written before the exit code is passed on.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;

use bytes::Bytes;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::connect_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

use super::frame::{self, Frame};
use crate::cli::client::{Api, body, refusal};
use crate::cli::error::CliError;

/// Largest message accepted from the server, which promises 64 KiB, in bytes.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Messages waiting for our standard output.
const PRINT_QUEUE_MAX: usize = 32;
/// Reads of standard input waiting for the socket.
const INPUT_QUEUE_MAX: usize = 8;
/// One read of standard input, in bytes.
const INPUT_BYTES_MAX: usize = 16 * 1024;
/// The signal of Ctrl-C.
const SIGINT: i32 = 2;
/// What a shell reports for a program that ended by Ctrl-C.
const EXIT_INTERRUPTED: i32 = 128 + SIGINT;
/// The exit code when the server closed the socket before the process ended.
const EXIT_UNKNOWN: i32 = -1;

/// Sends a signal to a session's process group.
pub async fn kill(api: &Api, sandbox: &str, session: &str, number: i32) -> Result<Value, CliError> {
    let path = ["sandboxes", sandbox, "exec", session, "kill"];
    api.send(
        Method::POST,
        &path,
        Some(body(&json!({ "signal": number }))?),
    )
    .await
}

/// Streams a session until its process ends; answers with the exit code.
///
/// The first Ctrl-C is sent to the process, the second leaves. `close_stdin`: the end of our
/// standard input is passed on.
pub async fn follow(
    api: &Api,
    sandbox: &str,
    session: &str,
    close_stdin: bool,
) -> Result<i32, CliError> {
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|error| CliError::Usage(format!("cannot watch for Ctrl-C: {error}")))?;
    let socket = connect(api, &["sandboxes", sandbox, "exec", session]).await?;
    let (sink, mut messages) = socket.split();
    tokio::spawn(forward_input(sink, close_stdin));
    let (queue, mut outcome) = start_printer();
    let mut interrupted = false;
    loop {
        tokio::select! {
            step = next_step(api, &mut messages, &queue) => match step? {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(code) => {
                    drop(queue);
                    // The reader of our output may have stopped reading: Ctrl-C still leaves.
                    return tokio::select! {
                        written = outcome => {
                            written.unwrap_or(Ok(())).map(|()| code).map_err(CliError::Output)
                        }
                        _ = interrupts.recv() => Ok(EXIT_INTERRUPTED),
                    };
                }
            },
            written = &mut outcome => {
                // The printer ends before its queue does only when writing failed.
                return written.unwrap_or(Ok(())).map(|()| EXIT_UNKNOWN).map_err(CliError::Output);
            }
            _ = interrupts.recv() => {
                if std::mem::replace(&mut interrupted, true) {
                    return Ok(EXIT_INTERRUPTED);
                }
                tokio::spawn(interrupt(api.clone(), sandbox.to_owned(), session.to_owned()));
            }
        }
    }
}

async fn interrupt(api: Api, sandbox: String, session: String) {
    if let Err(error) = kill(&api, &sandbox, &session, SIGINT).await {
        // The stream goes on; the user can still leave with a second Ctrl-C.
        let _ = writeln!(io::stderr(), "error: cannot interrupt the command: {error}");
    }
}

/// Opens the WebSocket at `path`.
pub async fn connect(
    api: &Api,
    path: &[&str],
) -> Result<
    impl Stream<Item = Result<Message, SocketError>> + Sink<Message> + Unpin + Send + 'static,
    CliError,
> {
    let request = api.socket_request(path)?;
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    match connect_async_with_config(request, Some(limits), true).await {
        Ok((socket, _)) => Ok(socket),
        Err(SocketError::Http(reply)) => {
            let status = reply.status().as_u16();
            Err(refusal(status, reply.body().as_deref().unwrap_or_default()))
        }
        Err(error) => Err(api.unreachable(&error)),
    }
}

/// One message from the socket to the printer; safe to cancel between the two.
async fn next_step(
    api: &Api,
    messages: &mut (impl Stream<Item = Result<Message, SocketError>> + Unpin),
    queue: &mpsc::Sender<Frame>,
) -> Result<ControlFlow<i32>, CliError> {
    // Room first: a message that was taken from the socket must have a place to go. A closed
    // queue means that printing failed, which the printer itself reports.
    let Ok(room) = queue.reserve().await else {
        return std::future::pending().await;
    };
    let message = match messages.next().await {
        Some(Ok(Message::Binary(bytes))) => bytes,
        Some(Ok(Message::Close(_))) | None => return Ok(ControlFlow::Break(EXIT_UNKNOWN)),
        Some(Ok(_)) => return Ok(ControlFlow::Continue(())),
        Some(Err(SocketError::ConnectionClosed | SocketError::AlreadyClosed)) => {
            return Ok(ControlFlow::Break(EXIT_UNKNOWN));
        }
        Some(Err(error)) => return Err(api.unreachable(&error)),
    };
    match frame::parse(&message) {
        Some(Frame::Exit(code)) => return Ok(ControlFlow::Break(code)),
        Some(output) => room.send(output),
        None => {}
    }
    Ok(ControlFlow::Continue(()))
}

/// Writes output on a thread of its own, because a write to a full pipe blocks. The outcome comes
/// when the queue has ended and all of it is written, or when a write fails.
pub fn start_printer() -> (mpsc::Sender<Frame>, oneshot::Receiver<io::Result<()>>) {
    let (queue, mut frames) = mpsc::channel(PRINT_QUEUE_MAX);
    let (report, outcome) = oneshot::channel();
    std::thread::spawn(move || {
        let mut written = Ok(());
        while let (Ok(()), Some(frame)) = (&written, frames.blocking_recv()) {
            written = print(&frame);
        }
        // The receiver is gone only when the command ends anyway.
        let _ = report.send(written);
    });
    (queue, outcome)
}

fn print(frame: &Frame) -> io::Result<()> {
    fn write(mut stream: impl Write, bytes: &Bytes) -> io::Result<()> {
        stream.write_all(bytes)?;
        stream.flush()
    }
    match frame {
        Frame::Stdout(bytes) => write(io::stdout().lock(), bytes),
        Frame::Stderr(bytes) => write(io::stderr().lock(), bytes),
        Frame::Exit(_) => Ok(()),
    }
}

/// What is read from our standard input until its end, each read as a message that `frame` makes of it.
pub fn read_stdin(frame: fn(&[u8]) -> Bytes) -> mpsc::Receiver<Bytes> {
    let (queue, chunks) = mpsc::channel(INPUT_QUEUE_MAX);
    // A read of a terminal can't be cancelled, so it has a thread that the end of the program ends.
    std::thread::spawn(move || {
        let mut buffer = vec![0; INPUT_BYTES_MAX];
        loop {
            match io::stdin().lock().read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal that is gone tells by a signal as well.
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    let chunk = frame(buffer.get(..length).unwrap_or_default());
                    if queue.blocking_send(chunk).is_err() {
                        return;
                    }
                }
            }
        }
    });
    chunks
}

/// Sends our standard input to the process until either ends.
async fn forward_input(mut socket: impl Sink<Message> + Unpin, close_stdin: bool) {
    let mut chunks = read_stdin(frame::stdin);
    while let Some(chunk) = chunks.recv().await {
        if socket.send(Message::Binary(chunk)).await.is_err() {
            return;
        }
    }
    if close_stdin {
        // A socket that is gone has no input to close.
        let _ = socket.send(Message::Binary(frame::stdin(b""))).await;
    }
}
