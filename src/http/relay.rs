//! A client's WebSocket and a session in its sandbox, joined.
//!
//! Invariants: the directions don't wait for each other, since a process may read no more before
//! somebody has taken what it wrote; what a client sent before it closed its socket, or lost its
//! connection, reaches the process, as long as that reads it within [`LEAVE_TIME_MAX`]: a client may
//! type a command and leave. (Of a broken connection that is all that arrived, unless more than 32 KiB
//! came at once; see [`super::wire`].) Attached, a sandbox does not fall asleep by itself; put to sleep
//! or ended, it lets go of its clients, and so does a server that stops.

use std::pin::pin;
use std::time::Duration;

use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use actix_ws::{
    AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, Closed, MessageStream,
    Session,
};
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::error::{ApiError, ApiResult};
use super::wire::to_the_last_byte;
use crate::actors::InUse;
use crate::sandbox::{Attachment, LEAVE_TIME_MAX, SessionOutput, StdinSink};

/// Largest payload of one message from the server, in bytes.
pub(super) const CHUNK_BYTES_MAX: usize = 32 * 1024;
/// Largest message taken from a client, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// How often a client is asked whether it is there.
const PING: Duration = Duration::from_secs(30);

/// What a client sends; a message that is none ends it.
pub(super) struct Messages(AggregatedMessageStream);

impl Messages {
    fn new(stream: MessageStream) -> Self {
        let stream = stream
            .max_frame_size(MESSAGE_BYTES_MAX)
            .aggregate_continuations()
            .max_continuation_size(MESSAGE_BYTES_MAX);
        Self(stream)
    }

    /// The next message; `None` when the client is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<AggregatedMessage> {
        self.0.next().await?.ok()
    }
}

/// What a message means.
pub(super) enum Heard {
    Binary(Bytes),
    Text(Bytes),
    /// It was about the connection, and is answered.
    Nothing,
    /// The client is done.
    Left,
}

/// Reads a message, and answers one about the connection.
pub(super) async fn hear(message: AggregatedMessage, session: &mut Session) -> Heard {
    match message {
        AggregatedMessage::Binary(bytes) => Heard::Binary(bytes),
        AggregatedMessage::Text(text) => Heard::Text(text.into_bytes()),
        AggregatedMessage::Pong(_) => Heard::Nothing,
        AggregatedMessage::Ping(bytes) => match session.pong(&bytes).await {
            Ok(()) => Heard::Nothing,
            Err(Closed) => Heard::Left,
        },
        AggregatedMessage::Close(reason) => {
            // It is gone either way.
            let _ = session.clone().close(reason).await;
            Heard::Left
        }
    }
}

/// Pieces that are sent as one message each.
pub(super) fn pieces(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let piece = bytes.split_to(bytes.len().min(CHUNK_BYTES_MAX));
        (!piece.is_empty()).then_some(piece)
    })
}

/// Accepts a WebSocket and joins it with an attached session until either ends. `inward` carries what
/// the client sends until it is done; `outward` sends one piece of output and tells whether it was
/// the exit.
pub(super) async fn join(
    request: &HttpRequest,
    payload: web::Payload,
    (live, attachment): (InUse, Attachment),
    stopping: CancellationToken,
    inward: impl AsyncFnOnce(Messages, StdinSink, Session) + 'static,
    outward: impl AsyncFnMut(SessionOutput, &mut Session) -> Result<bool, Closed> + 'static,
) -> ApiResult<HttpResponse> {
    let refused = |error| ApiError::bad_request(format!("not a WebSocket request: {error}"));
    let payload = to_the_last_byte(request, payload).await.map_err(refused)?;
    let (reply, session, messages) = actix_ws::handle(request, payload).map_err(refused)?;
    let messages = Messages::new(messages);
    actix_web::rt::spawn(async move {
        let code = tokio::select! {
            code = both_ways(&session, messages, attachment, inward, outward) => code,
            () = live.activity.left() => Some(CloseCode::Away),
            () = stopping.cancelled() => Some(CloseCode::Away),
        };
        let code = match code {
            // A server that stops lets go of its guests in no order, so a relay may see that before
            // it hears why.
            Some(CloseCode::Error) if stopping.is_cancelled() => CloseCode::Away,
            Some(code) => code,
            None => return,
        };
        // A client that is gone has nobody to be told.
        let _ = session.close(Some(CloseReason::from(code))).await;
    });
    Ok(reply)
}

/// Carries bytes both ways until either side ends; the code to close with, unless the client is gone.
async fn both_ways(
    session: &Session,
    messages: Messages,
    mut output: Attachment,
    inward: impl AsyncFnOnce(Messages, StdinSink, Session),
    outward: impl AsyncFnMut(SessionOutput, &mut Session) -> Result<bool, Closed>,
) -> Option<CloseCode> {
    {
        let mut inward = pin!(inward(messages, output.stdin(), session.clone()));
        let ended = tokio::select! {
            () = &mut inward => None,
            code = carry_out(&mut output, session.clone(), outward) => Some(code),
        };
        match ended {
            None => {}
            Some(Some(code)) => return Some(code),
            // Gone, with what it sent before not taken yet; nobody wants the output any more.
            Some(None) => {
                let dropped = async { while let Ok(Some(_)) = output.next().await {} };
                let rest = async {
                    tokio::select! {
                        () = &mut inward => {}
                        () = dropped => {}
                    }
                };
                let _ = tokio::time::timeout(LEAVE_TIME_MAX, rest).await;
            }
        }
    }
    output.leave().await;
    None
}

/// Carries output until its end, which gives the code to close with, or until the client is gone.
async fn carry_out(
    output: &mut Attachment,
    mut session: Session,
    mut send: impl AsyncFnMut(SessionOutput, &mut Session) -> Result<bool, Closed>,
) -> Option<CloseCode> {
    let mut ping = tokio::time::interval(PING);
    loop {
        tokio::select! {
            piece = output.next() => match piece {
                Ok(Some(piece)) => match send(piece, &mut session).await {
                    Ok(true) => return Some(CloseCode::Normal),
                    Ok(false) => {}
                    Err(Closed) => return None,
                },
                // Without an exit: clients report that the stream was cut.
                Ok(None) | Err(_) => return Some(CloseCode::Error),
            },
            _ = ping.tick() => session.ping(b"").await.ok()?,
        }
    }
}
