//! The server side of every HTTP connection with a sandbox, in the version agreed on.
//!
//! | Limit of HTTP/2 | Why |
//! |---|---|
//! | [`STREAMS_MAX`] requests at once | one connection is no way round the bounds on many |
//! | heads of 64 KiB, 100 fields | as in HTTP/1.1 |
//! | [`RESET_STREAMS_MAX`] resets not yet seen to, as many caused by errors | rapid reset ends the connection |
//! | windows of [`STREAM_WINDOW_BYTES`] and [`CONNECTION_WINDOW_BYTES`] | what a program may send before the host takes it |

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::body::OutBody;
use super::connection::HEAD_BYTES_MAX;
use super::exchange::Exchange;
use super::frames::Framed;
use super::framing::{Seat, Watched};
use super::gate::{IDLE_TIMEOUT, SandboxProxy};
use super::io::{Duplex, Meter};
use super::origin::Origin;
use super::refusal::Refusal;
use super::streams::{End, Streams, drive};

/// Time for a request head, idle time between requests included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// Streams a program may reset before they are accepted, or break, before its connection ends.
const RESET_STREAMS_MAX: usize = 64;
/// What a program may send ahead on one stream: the way to it is short.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// What a program may send ahead on one connection.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// What one stream holds of an answer the program does not read.
const SEND_BUFFER_BYTES_MAX: usize = 256 * 1024;
/// How often a silent HTTP/2 connection is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// How long it has for the answer.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// HTTP/1.1 with a sandbox.
pub(crate) fn http_server() -> http1::Builder {
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        // A program may end its side after the request and still wait for the answer.
        .half_close(true)
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX);
    server
}

fn http2_server(streams: Streams) -> http2::Builder<Streams> {
    let mut server = http2::Builder::new(streams);
    server
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(RESET_STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    server
}

/// Serves the requests of a connection to `origin`; `two` when HTTP/2 was agreed on.
pub(crate) async fn requests(
    proxy: Arc<SandboxProxy>,
    io: impl Duplex + 'static,
    origin: Origin,
    two: bool,
) {
    let (host, port) = (origin.host.clone(), origin.port);
    let exchange = Exchange::new(proxy.clone(), origin);
    let served = match two {
        true => serve_two(exchange, io, IDLE_TIMEOUT).await,
        false => serve_one(&exchange, io).await,
    };
    if let Err(error) = served {
        tracing::debug!(%host, %error, "connection with the sandbox ended");
        if error.is_parse() {
            proxy
                .refuse(&Refusal::Framing("malformed"), &host, port)
                .await;
        }
    }
}

async fn serve_one(exchange: &Exchange, io: impl Duplex + 'static) -> hyper::Result<()> {
    let (io, watch) = Watched::new(io);
    let service = service_fn(move |request: Request<Incoming>| {
        let (seat, watch) = (watch.next(), watch.clone());
        async move {
            let mut response = exchange.answer(request, seat).await;
            watch.settle(seat, &mut response, false);
            Ok::<_, Infallible>(response)
        }
    });
    let served = http_server()
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades()
        .await;
    exchange.relay().await;
    served
}

/// Ends when nothing but PINGs has moved for `idle`.
async fn serve_two(
    exchange: Exchange,
    io: impl Duplex + 'static,
    idle: Duration,
) -> hyper::Result<()> {
    let exchange = Arc::new(exchange);
    let service = service_fn(move |request: Request<Incoming>| {
        let exchange = exchange.clone();
        async move { Ok::<Response<OutBody>, Infallible>(exchange.answer(request, Seat::Any).await) }
    });
    let (streams, meter) = (Streams::default(), Meter::new(Arc::default()));
    let io = TokioIo::new(Framed::new(io, meter.clone()));
    let connection = http2_server(streams.clone()).serve_connection(io, service);
    tokio::select! {
        served = drive(connection, streams, End::WithConnection) => served,
        () = meter.idle_for(idle) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::{EgressSettings, SandboxCa};
    use hyper_util::rt::TokioExecutor;

    /// Goal: an HTTP/2 connection on which only PINGs move is cut, and not before its time.
    /// Method: a program that asks every few milliseconds whether the proxy lives.
    #[tokio::test]
    async fn a_connection_of_pings_alone_is_cut() {
        let (trail, _decisions) = tokio::sync::mpsc::channel(8);
        let ca = SandboxCa::generate("sb-test").unwrap();
        let proxy = SandboxProxy::new(Arc::new(EgressSettings::default()), ca, None, trail);
        let origin = Origin::new("a.test".parse().unwrap(), 443, true).unwrap();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let idle = Duration::from_millis(400);
        let begun = std::time::Instant::now();
        let served = tokio::spawn(serve_two(Exchange::new(proxy, origin), far, idle));
        let (_sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_millis(20))
            .keep_alive_while_idle(true)
            .handshake::<_, OutBody>(TokioIo::new(near))
            .await
            .unwrap();
        let driven = tokio::spawn(connection);
        let ended = tokio::time::timeout(Duration::from_secs(10), served).await;
        assert!(ended.is_ok(), "PINGs kept it open");
        assert!(begun.elapsed() >= idle);
        driven.abort();
    }
}
