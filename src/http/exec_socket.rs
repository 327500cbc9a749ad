//! The WebSocket of an exec session: binary messages of one type byte and a payload.
//!
//! ```text
//! 0x00 client→server stdin (empty: close)   0x01 stdout   0x02 stderr
//! 0x03 exit code, 4 bytes, signed, big endian   0x04 end of the scrollback's replay
//! ```
//!
//! Messages of the server stay under 64 KiB. Closing the socket never kills the process.

use actix_web::web::{self, Bytes};
use actix_web::{HttpRequest, HttpResponse};
use actix_ws::{Closed, Session};
use tokio::sync::mpsc;

use super::Api;
use super::auth::WithSandbox;
use super::error::ApiResult;
use super::relay::{CHUNK_BYTES_MAX, Heard, Messages, hear, join};
use crate::actors::TIMED_OUT;
use crate::sandbox::{SessionOutput, StdinSink};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;
const REPLAY_END: u8 = 4;

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

/// Carries what the client sends until it is done.
async fn inward(messages: Messages, stdin: StdinSink, session: Session) {
    let (inputs, waiting) = mpsc::channel(INPUTS_MAX);
    tokio::join!(listen(messages, inputs, session), feed(waiting, &stdin));
}

async fn listen(mut messages: Messages, inputs: mpsc::Sender<Bytes>, mut session: Session) {
    while let Some(message) = messages.next().await {
        match hear(message, &mut session).await {
            Heard::Binary(bytes) if bytes.first() == Some(&STDIN) => {
                if inputs.send(bytes.slice(1..)).await.is_err() {
                    return;
                }
            }
            Heard::Binary(_) | Heard::Text(_) | Heard::Nothing => {}
            Heard::Left => return,
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

/// Sends one piece of output; true when it was the exit. `note` knows what else there is to say about
/// an exit code.
async fn to_client(
    output: SessionOutput,
    session: &mut Session,
    note: &impl Fn(i32) -> Option<String>,
) -> Result<bool, Closed> {
    match output {
        SessionOutput::Stdout(bytes) => send(STDOUT, &bytes, session).await?,
        SessionOutput::Stderr(bytes) => send(STDERR, &bytes, session).await?,
        SessionOutput::Position(_) => {}
        SessionOutput::ReplayEnd => session.binary(Bytes::from_static(&[REPLAY_END])).await?,
        SessionOutput::Exit {
            code, timed_out, ..
        } => {
            if timed_out {
                send(STDERR, TIMED_OUT, session).await?;
            }
            if let Some(note) = note(code) {
                send(STDERR, note.as_bytes(), session).await?;
            }
            send(EXIT, &code.to_be_bytes(), session).await?;
            return Ok(true);
        }
    }
    Ok(false)
}

async fn send(kind: u8, bytes: &[u8], session: &mut Session) -> Result<(), Closed> {
    for chunk in bytes.chunks(CHUNK_BYTES_MAX) {
        let mut message = Vec::with_capacity(chunk.len() + 1);
        message.push(kind);
        message.extend_from_slice(chunk);
        session.binary(message).await?;
    }
    Ok(())
}
