//! A client's WebSocket and a session in its sandbox, joined.
//!
//! Invariants: the directions don't wait for each other, since a process may read no more before
//! somebody has taken what it wrote; what a client sent before it closed its socket reaches the process, as long as
//! that reads it within [`LEAVE_TIME_MAX`]: a client may type a command and leave.

use std::pin::pin;

use actix_ws::{CloseCode, CloseReason, Session};
use tokio_util::sync::CancellationToken;

use crate::sandbox::{Attachment, LEAVE_TIME_MAX, StdinSink};

/// Carries bytes both ways until either side ends. `inward` carries what the client sends until it is
/// done; `outward` carries output until its end, which gives the code to close with, or until the
/// client is gone.
pub(super) async fn both_ways(
    session: Session,
    mut output: Attachment,
    inward: impl AsyncFnOnce(StdinSink),
    outward: impl AsyncFnOnce(&mut Attachment) -> Option<CloseCode>,
) {
    {
        let mut inward = pin!(inward(output.stdin()));
        let ended = tokio::select! {
            () = &mut inward => None,
            code = outward(&mut output) => Some(code),
        };
        match ended {
            None => {}
            Some(Some(code)) => {
                let _ = session.close(Some(CloseReason::from(code))).await;
                return;
            }
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
}

/// The code to close with when output ends that has no end of its own. A server that stops lets go of
/// its guests in no order, so a relay may see that before it hears why.
pub(super) fn cut(stopping: &CancellationToken) -> CloseCode {
    match stopping.is_cancelled() {
        true => CloseCode::Away,
        false => CloseCode::Error,
    }
}
