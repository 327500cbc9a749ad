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

/// Serves the requests of a connection to `origin`, which came over `tls`; `two` when HTTP/2 was
/// agreed on.
pub(crate) async fn requests(
    proxy: Arc<SandboxProxy>,
    io: impl Duplex + 'static,
    origin: Origin,
    two: bool,
    tls: Option<&'static str>,
) {
    let (host, port) = (origin.host.clone(), origin.port);
    let exchange = Exchange::new(proxy.clone(), origin).over(tls);
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

    /// A frame with a short payload (RFC 9113, section 4.1).
    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let head = [a, b, c, kind, flags];
        [&head, &stream.to_be_bytes()[..], payload].concat()
    }

    /// A program that asks on every stream there may be, and reads nothing of the answers.
    async fn ask_and_not_read(io: &mut (impl tokio::io::AsyncWrite + Unpin), authority: &str) {
        use tokio::io::AsyncWriteExt;
        let mut block = Vec::new();
        for (name, value) in [
            (":method", "GET"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", authority),
        ] {
            block.extend([0, u8::try_from(name.len()).unwrap()]);
            block.extend(name.bytes());
            block.push(u8::try_from(value.len()).unwrap());
            block.extend(value.bytes());
        }
        // The largest windows there are: nothing but the connection holds an answer up.
        let window = [&4u16.to_be_bytes()[..], &0x7fff_ffff_u32.to_be_bytes()].concat();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &window));
        bytes.extend(frame(8, 0, 0, &0x7000_0000_u32.to_be_bytes()));
        for stream in 0..STREAMS_MAX {
            bytes.extend(frame(1, 5, 2 * stream + 1, &block));
        }
        io.write_all(&bytes).await.unwrap();
    }

    /// Goal: programs that read no answers have no more than a bounded number of them in memory,
    /// also when their hosts are done; and one that goes away makes room for others. Method: five
    /// connections with 640 requests, and a host that counts what reaches it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn unread_answers_are_bounded() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        const PLACES: usize = 512;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let count = count.clone();
                tokio::spawn(async move {
                    // A long head, or a body; each larger than what a connection takes ahead.
                    let (long, size) = ("x".repeat(48_000), 48_000);
                    let answers = [
                        format!("HTTP/1.1 200 OK\r\nx-long: {long}\r\ncontent-length: 0\r\n\r\n"),
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n{long}"),
                    ];
                    let mut buffer = [0; 4096];
                    while let Ok(1..) = stream.read(&mut buffer).await {
                        let nth = count.fetch_add(1, Ordering::SeqCst);
                        let _ = stream.write_all(answers[nth % 2].as_bytes()).await;
                    }
                });
            }
        });
        let (trail, mut decisions) = tokio::sync::mpsc::channel(4096);
        tokio::spawn(async move { while decisions.recv().await.is_some() {} });
        let settings = EgressSettings {
            allow_private: vec!["127.0.0.0/8".parse().unwrap()],
            ..EgressSettings::default()
        };
        let policy = crate::proxy::Policy::new(Vec::new(), Vec::new(), true, true);
        let ca = SandboxCa::generate("sb-test").unwrap();
        let proxy = SandboxProxy::new(Arc::new(settings), ca, Some(policy), trail);
        let authority = format!("127.0.0.1:{port}");
        let mut programs = Vec::new();
        for _ in 0..5 {
            let origin = Origin::new("127.0.0.1".parse().unwrap(), port, false).unwrap();
            let (mut near, far) = tokio::io::duplex(16 * 1024);
            let exchange = Exchange::new(proxy.clone(), origin);
            tokio::spawn(serve_two(exchange, far, Duration::from_secs(60)));
            ask_and_not_read(&mut near, &authority).await;
            programs.push(near);
        }
        let until = async |least: usize| {
            let reached = async {
                while asked.load(Ordering::SeqCst) < least {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let reached = tokio::time::timeout(Duration::from_secs(30), reached).await;
            assert!(reached.is_ok(), "{asked:?}");
        };
        until(PLACES).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let most = asked.load(Ordering::SeqCst);
        // What was written to the connections before they were full needs no place any more.
        assert!(most < PLACES + 20, "{most}");
        programs.remove(0);
        until(most + 20).await;
    }
}
