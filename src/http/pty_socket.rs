//! The WebSocket of a terminal: its bytes as they are, both ways.
//!
//! Invariants: messages of the server are binary and under 64 KiB; text of a client is its UTF-8
//! bytes; closing the socket leaves the shell alone; the shell's end closes it with 1000, and only
//! that does. A client is heard (pings, close) also while the shell does not read what it typed.

use std::collections::VecDeque;
use std::time::Duration;

use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use actix_ws::{AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, Session};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::auth::WithSandbox;
use super::error::{ApiError, ApiResult};
use super::relay::{both_ways, cut};
use crate::sandbox::{Attachment, LEAVE_TIME_MAX, SessionOutput, StdinSink};

/// Largest message of the server.
const CHUNK_BYTES_MAX: usize = 32 * 1024;
/// Largest message taken from a client.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// What a client may have typed ahead of the shell; beyond it, it is no longer read.
const AHEAD_BYTES_MAX: usize = 1024 * 1024;
const PING: Duration = Duration::from_secs(30);

pub(super) async fn attach(
    api: web::Data<Api>,
    who: WithSandbox,
    path: web::Path<(String, String)>,
    request: HttpRequest,
    payload: web::Payload,
) -> ApiResult<HttpResponse> {
    let live = api.platform.live_sandbox(&who.caller, &who.id).await?;
    // Before the upgrade, so that an unknown terminal is a plain 404.
    let attachment = live.guest.attach_terminal(&path.1).await?;
    let (reply, session, messages) = actix_ws::handle(&request, payload)
        .map_err(|error| ApiError::bad_request(format!("not a WebSocket request: {error}")))?;
    let messages = messages
        .max_frame_size(MESSAGE_BYTES_MAX)
        .aggregate_continuations()
        .max_continuation_size(MESSAGE_BYTES_MAX);
    let stopping = api.stopping.clone();
    // Attached, the sandbox does not fall asleep by itself. Put to sleep or ended, it lets go of the
    // client, and so does a server that stops.
    let relay = async move {
        let ended = session.clone();
        tokio::select! {
            () = both_ways(
                session.clone(),
                attachment,
                async |keyboard| inward(messages, keyboard, session.clone()).await,
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

/// Carries what the client sends until it is done, and then what of it the shell has not read yet.
async fn inward(messages: AggregatedMessageStream, keyboard: StdinSink, session: Session) {
    let mut ahead = VecDeque::<Bytes>::new();
    take_keys(messages, &keyboard, session, &mut ahead).await;
    let rest = async {
        for piece in ahead {
            if keyboard.send(piece).await.is_err() {
                return;
            }
        }
    };
    // What the shell does not read in time is lost, as it is when a window is closed.
    let _ = tokio::time::timeout(LEAVE_TIME_MAX, rest).await;
}

/// Takes what the client sends until it leaves; what is left over then is in `ahead`.
async fn take_keys(
    mut messages: AggregatedMessageStream,
    keyboard: &StdinSink,
    mut session: Session,
    ahead: &mut VecDeque<Bytes>,
) {
    let mut bytes_ahead = 0;
    loop {
        // Sent piece by piece, so that a cancelled wait neither loses nor repeats one.
        let next = ahead.front().cloned();
        let typing = async {
            match next {
                Some(piece) => keyboard.send(piece).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The shell's end is the other direction's to tell.
            _ = typing => {
                let piece = ahead.pop_front();
                bytes_ahead -= piece.map_or(0, |piece| piece.len());
            }
            message = messages.next(), if bytes_ahead < AHEAD_BYTES_MAX => {
                let Some(Ok(message)) = message else { return };
                let typed = match message {
                    AggregatedMessage::Binary(bytes) => bytes,
                    AggregatedMessage::Text(text) => text.into_bytes(),
                    AggregatedMessage::Ping(bytes) => match session.pong(&bytes).await {
                        Ok(()) => continue,
                        Err(_) => return,
                    },
                    AggregatedMessage::Pong(_) => continue,
                    AggregatedMessage::Close(reason) => {
                        let _ = session.close(reason).await;
                        return;
                    }
                };
                bytes_ahead += typed.len();
                ahead.extend(pieces(typed));
            }
        }
    }
}

/// Pieces that go to the guest as one message each.
fn pieces(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let piece = bytes.split_to(bytes.len().min(CHUNK_BYTES_MAX));
        (!piece.is_empty()).then_some(piece)
    })
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
                Ok(Some(SessionOutput::Stdout(bytes) | SessionOutput::Stderr(bytes))) => {
                    for piece in pieces(bytes) {
                        session.binary(piece).await.ok()?;
                    }
                }
                Ok(Some(SessionOutput::ReplayEnd)) => {}
                Ok(Some(SessionOutput::Exit { .. })) => return Some(CloseCode::Normal),
                Ok(None) | Err(_) => return Some(cut(stopping)),
            },
            _ = ping.tick() => session.ping(b"").await.ok()?,
        }
    }
}
