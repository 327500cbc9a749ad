//! Being told to stop.
//!
//! The signals are listened for here and not by the web server, which would only begin to when it
//! runs: whoever stops a server the moment it is announced must be heard too. Replies that have no
//! end of their own (feeds) watch the same token, so that an orderly end does not wait for them.

use std::io;
use std::pin::pin;

use actix_web::dev::Server;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancelled by SIGTERM, SIGINT or SIGQUIT from now on. Must be called inside the server's runtime.
pub(super) fn told_to_stop() -> io::Result<CancellationToken> {
    let stopping = CancellationToken::new();
    for kind in [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::quit(),
    ] {
        let (mut told, stopping) = (signal(kind)?, stopping.clone());
        actix_rt::spawn(async move {
            told.recv().await;
            stopping.cancel();
        });
    }
    Ok(stopping)
}

/// Serves until told to stop, and then until open requests are answered or have had their time;
/// or until `broken` completes, and then not a moment longer.
pub(super) async fn serve_until<T>(
    server: Server,
    stopping: &CancellationToken,
    broken: impl Future<Output = T>,
) -> io::Result<Option<T>> {
    let handle = server.handle();
    let mut server = pin!(server);
    tokio::select! {
        ended = &mut server => ended.map(|()| None),
        () = stopping.cancelled() => {
            let ((), ended) = tokio::join!(handle.stop(true), server);
            ended.map(|()| None)
        }
        reason = broken => {
            let ((), _) = tokio::join!(handle.stop(false), server);
            Ok(Some(reason))
        }
    }
}
