//! The WebSocket of an exec session: binary messages of one type byte and a payload.
//!
//! ```text
//! 0x00 client→server stdin (empty: close)   0x01 stdout   0x02 stderr
//! 0x03 exit code, 4 bytes, signed, big endian   0x04 end of the scrollback's replay
//! ```
//!
//! Messages of the server stay under 64 KiB. Closing the socket never kills the process.

use std::time::Duration;

use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use actix_ws::{AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, Session};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::auth::WithSandbox;
use super::error::{ApiError, ApiResult};
use super::relay::{both_ways, cut};
use crate::actors::TIMED_OUT;
use crate::sandbox::{Attachment, SessionOutput, StdinSink};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;
const REPLAY_END: u8 = 4;

/// Largest payload of one message from the server.
const CHUNK_BYTES_MAX: usize = 32 * 1024;
/// Largest message taken from a client.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
const PING: Duration = Duration::from_secs(30);
/// Messages of input kept for a process that doesn't read, so that pings behind them are answered.
const INPUTS_MAX: usize = 4;

pub(super) async fn attach(
    api: web::Data<Api>,
    who: WithSandbox,
    path: web::Path<(String, String)>,
    request: HttpRequest,
    payload: web::Payload,
) -> ApiResult<HttpResponse> {
    let live = api.platform.live_sandbox(&who.caller, &who.id).await?;
    // Before the upgrade, so that an unknown session is a plain 404.
    let attachment = live.guest.attach(&path.1).await?;
    let (reply, session, messages) = actix_ws::handle(&request, payload)
        .map_err(|error| ApiError::bad_request(format!("not a WebSocket request: {error}")))?;
    let messages = messages
        .max_frame_size(MESSAGE_BYTES_MAX)
        .aggregate_continuations()
        .max_continuation_size(MESSAGE_BYTES_MAX);
    let stopping = api.stopping.clone();
    // Attached, it does not fall asleep by itself. Put to sleep or ended, it lets go of the client,
    // and so does a server that stops.
    let relay = async move {
        let ended = session.clone();
        tokio::select! {
            () = both_ways(
                session.clone(),
                attachment,
                async |stdin| inward(messages, &stdin, session.clone()).await,
                async |output| outward(output, session.clone(), &stopping).await,
            ) => return,
            () = live.activity.left() => {}
            () = stopping.cancelled() => {}
        }
        let _ = ended.close(Some(CloseReason::from(CloseCode::Away))).await;
    };
    actix_web::rt::spawn(relay);
    Ok(reply)
}

/// Carries what the client sends until it is done.
async fn inward(messages: AggregatedMessageStream, stdin: &StdinSink, session: Session) {
    let (inputs, waiting) = mpsc::channel(INPUTS_MAX);
    tokio::join!(listen(messages, inputs, session), feed(waiting, stdin));
}

async fn listen(
    mut messages: AggregatedMessageStream,
    inputs: mpsc::Sender<Bytes>,
    mut session: Session,
) {
    while let Some(Ok(message)) = messages.next().await {
        if !from_client(message, &inputs, &mut session).await {
            return;
        }
    }
}

/// Hands input to the process; an empty one closes its end.
async fn feed(mut inputs: mpsc::Receiver<Bytes>, stdin: &StdinSink) {
    while let Some(bytes) = inputs.recv().await {
        // A process that no longer reads is no reason to end the socket.
        let _ = match bytes.is_empty() {
            true => stdin.close().await,
            false => stdin.send(bytes).await,
        };
    }
}

/// Carries output until its end, which gives the code to close with, or until the client is gone.
async fn outward(
    output: &mut Attachment,
    mut session: Session,
    stopping: &CancellationToken,
) -> Option<CloseCode> {
    let mut ping = tokio::time::interval(PING);
    loop {
        tokio::select! {
            chunk = output.next() => match chunk {
                Ok(Some(chunk)) => match to_client(chunk, &mut session).await {
                    Ok(true) => return Some(CloseCode::Normal),
                    Ok(false) => {}
                    Err(_) => return None,
                },
                // Without an exit: clients report that the stream was cut.
                _ => return Some(cut(stopping)),
            },
            _ = ping.tick() => session.ping(b"").await.ok()?,
        }
    }
}

/// Handles one message; false when the client is done.
async fn from_client(
    message: AggregatedMessage,
    inputs: &mpsc::Sender<Bytes>,
    session: &mut Session,
) -> bool {
    match message {
        AggregatedMessage::Binary(bytes) if bytes.first() == Some(&STDIN) => {
            inputs.send(bytes.slice(1..)).await.is_ok()
        }
        AggregatedMessage::Ping(bytes) => session.pong(&bytes).await.is_ok(),
        AggregatedMessage::Close(reason) => {
            let _ = session.clone().close(reason).await;
            false
        }
        _ => true,
    }
}

/// Sends one piece of output; true when it was the exit.
async fn to_client(output: SessionOutput, session: &mut Session) -> Result<bool, actix_ws::Closed> {
    match output {
        SessionOutput::Stdout(bytes) => send(STDOUT, &bytes, session).await?,
        SessionOutput::Stderr(bytes) => send(STDERR, &bytes, session).await?,
        SessionOutput::ReplayEnd => session.binary(Bytes::from_static(&[REPLAY_END])).await?,
        SessionOutput::Exit {
            code, timed_out, ..
        } => {
            if timed_out {
                send(STDERR, TIMED_OUT, session).await?;
            }
            send(EXIT, &code.to_be_bytes(), session).await?;
            return Ok(true);
        }
    }
    Ok(false)
}

async fn send(kind: u8, bytes: &[u8], session: &mut Session) -> Result<(), actix_ws::Closed> {
    for chunk in bytes.chunks(CHUNK_BYTES_MAX) {
        let mut message = Vec::with_capacity(chunk.len() + 1);
        message.push(kind);
        message.extend_from_slice(chunk);
        session.binary(message).await?;
    }
    Ok(())
}
