//! The WebSocket of a terminal: its bytes as they are, both ways.
//!
//! Invariants: messages of the server are binary and under 64 KiB; text of a client is its UTF-8
//! bytes; closing the socket leaves the shell alone; the shell's end closes it with 1000, and only
//! that does. A client is heard (pings, close) also while the shell does not read what it typed.

use std::collections::VecDeque;

use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use actix_ws::{Closed, Session};

use super::Api;
use super::auth::WithSandbox;
use super::error::ApiResult;
use super::relay::{Heard, Messages, hear, join, pieces};
use crate::sandbox::{LEAVE_TIME_MAX, SessionOutput, StdinSink};

/// What a client may have typed ahead of the shell; beyond it, it is no longer read.
const AHEAD_BYTES_MAX: usize = 1024 * 1024;

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
    let (id, watched) = (path.into_inner().1, live.unattended());
    let note = move |code| watched.kills.note(&id, code);
    join(
        &request,
        payload,
        (live, attachment),
        api.stopping.clone(),
        inward,
        async move |output: SessionOutput, session: &mut Session| {
            to_client(output, session, &note).await
        },
    )
    .await
}

/// Carries what the client sends until it is done, and then what of it the shell has not read yet.
async fn inward(messages: Messages, keyboard: StdinSink, session: Session) {
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
    mut messages: Messages,
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
                let Some(message) = message else { return };
                match hear(message, &mut session).await {
                    Heard::Binary(typed) | Heard::Text(typed) => {
                        bytes_ahead += typed.len();
                        ahead.extend(pieces(typed));
                    }
                    Heard::Nothing => {}
                    Heard::Left => return,
                }
            }
        }
    }
}

/// Sends one piece of output; true when it was the shell's exit. `note` knows what else there is to
/// say about its code.
async fn to_client(
    output: SessionOutput,
    session: &mut Session,
    note: &impl Fn(i32) -> Option<String>,
) -> Result<bool, Closed> {
    match output {
        SessionOutput::Stdout(bytes) | SessionOutput::Stderr(bytes) => {
            for piece in pieces(bytes) {
                session.binary(piece).await?;
            }
        }
        SessionOutput::ReplayEnd | SessionOutput::Position(_) => {}
        SessionOutput::Exit { code, .. } => {
            if let Some(note) = note(code) {
                let lines = format!("{}\r\n", note.replace('\n', "\r\n"));
                session.binary(lines).await?;
            }
            return Ok(true);
        }
    }
    Ok(false)
}
