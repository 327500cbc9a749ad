//! What is under way when the policy takes something away, and uploads that outlive their answer.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opencomputer::proxy::Outcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::two::{ask2, client2, get2, whole};
use crate::wire::{Io, ask, get, receive, send};
use crate::world::{Setup, VALUE, World, echo, soon};

/// A host that answers a request at once and goes on reading its body.
struct Hasty {
    port: u16,
    read: Arc<Mutex<Vec<u8>>>,
    /// Told when the body ended, or broke off.
    ended: Arc<Notify>,
}

impl Hasty {
    async fn start(world: &World, protocol: &str) -> Self {
        Self::reading_when(world, protocol, &Arc::new(Semaphore::new(9))).await
    }

    /// One that begins to read when it is told to.
    async fn reading_when(world: &World, protocol: &str, go: &Arc<Semaphore>) -> Self {
        let go = go.clone();
        let tls = world
            .authority
            .acceptor_offering(&["api.test"], &[protocol]);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let host = Self {
            port: listener.local_addr().unwrap().port(),
            read: Arc::default(),
            ended: Arc::default(),
        };
        let (read, ended) = (host.read.clone(), host.ended.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A program with HTTP/1.1 makes the proxy ask for that first.
                let Ok(stream) = tls.accept(stream).await else {
                    continue;
                };
                let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let (read, ended, go) = (read.clone(), ended.clone(), go.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (read, ended, go) = (read.clone(), ended.clone(), go.clone());
                    async move {
                        tokio::spawn(async move {
                            let _go = go.acquire().await.unwrap();
                            let mut body = request.into_body();
                            while let Some(Ok(frame)) = body.frame().await {
                                let data = frame.into_data().unwrap_or_default();
                                read.lock().unwrap().extend_from_slice(&data);
                            }
                            ended.notify_one();
                        });
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("early"))))
                    }
                });
                let io = TokioIo::new(stream);
                tokio::spawn(async move {
                    if two {
                        let mut server =
                            hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        server.initial_stream_window_size(64 * 1024);
                        let _ = server.serve_connection(io, service).await;
                    } else {
                        let server = hyper::server::conn::http1::Builder::new();
                        let _ = server.serve_connection(io, service).await;
                    }
                });
            }
        });
        host
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.read.lock().unwrap()).into_owned()
    }

    async fn has(&self, text: &str) {
        soon(async {
            while !self.text().contains(text) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

/// An upload over HTTP/2 that is sent piece by piece.
type Pieces = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

async fn begin_upload(world: &World, port: u16) -> Pieces {
    let mut client = client2(world, "api.test", port).await;
    let (pieces, body) = mpsc::channel(1);
    let body = StreamBody::new(ReceiverStream::new(body)).boxed();
    let request = Request::post("https://api.test/").body(body).unwrap();
    let reply = ask2(&mut client, request).await.unwrap();
    assert_eq!(reply.text(), "early");
    pieces
}

async fn give(pieces: &Pieces, text: String) {
    let frame = Frame::data(Bytes::from(text));
    soon(pieces.send(Ok(frame))).await.unwrap();
}

/// The other sandbox's view: the first secret no longer goes to `api.test`.
fn unbound() -> Setup {
    Setup {
        hosts: vec!["sub.api.test"],
        ..Setup::default()
    }
}

fn revoked() -> Setup {
    Setup {
        revoked: true,
        ..Setup::default()
    }
}

fn narrowed() -> Setup {
    Setup {
        allowlist: vec!["other.test"],
        ..Setup::default()
    }
}

fn off() -> Setup {
    Setup {
        network: false,
        ..Setup::default()
    }
}

/// Goal: a secret that is first used in the rest of an upload, after its answer, is in the record.
#[tokio::test]
async fn the_rest_of_an_upload_is_recorded() {
    for protocol in ["http/1.1", "h2"] {
        let mut world = World::new(&Setup::default());
        let host = Hasty::start(&world, protocol).await;
        let pieces = begin_upload(&world, host.port).await;
        give(&pieces, format!("<{}>", world.token)).await;
        host.has(&format!("<{VALUE}>")).await;
        drop(pieces);
        soon(host.ended.notified()).await;
        let decision = world.decision().await;
        assert_eq!(decision.outcome, Outcome::Allowed);
        assert_eq!(decision.status, Some(200));
        assert_eq!(decision.secrets, ["API_KEY"], "{protocol}");
        assert!(decision.bytes_up > 40, "{}", decision.bytes_up);
        world.finish();
    }
}

/// Goal: whatever takes the host or the secret away cuts the rest of an upload that has been
/// answered, and the record says so.
#[tokio::test]
async fn the_rest_of_an_upload_is_cut() {
    let cases = [
        (revoked as fn() -> Setup, "secret_revoked"),
        (unbound, "secret_not_bound_to_host"),
        (narrowed, "egress_allowlist"),
        (off, "network_disabled"),
    ];
    for protocol in ["http/1.1", "h2"] {
        for (policy, rule) in cases {
            let mut world = World::new(&Setup::default());
            let host = Hasty::start(&world, protocol).await;
            let pieces = begin_upload(&world, host.port).await;
            give(&pieces, format!("<{}>", world.token)).await;
            host.has(&format!("<{VALUE}>")).await;
            world.set_policy(&policy());
            soon(host.ended.notified()).await;
            let decision = world.decision().await;
            let told = (decision.outcome, &*decision.reason);
            assert_eq!(told, (Outcome::Refused, rule), "{protocol}");
            assert_eq!(decision.secrets, ["API_KEY"]);
            drop(pieces);
            world.finish();
        }
    }
}

/// Goal: also a body that was gathered before it was sent is cut, where the host did not take it.
#[tokio::test]
async fn the_rest_of_a_gathered_body_is_cut() {
    let mut world = World::new(&Setup::default());
    let go = Arc::new(Semaphore::new(0));
    let host = Hasty::reading_when(&world, "h2", &go).await;
    let mut client = client2(&world, "api.test", host.port).await;
    let body = format!("{}{}", "x".repeat(600_000), world.token);
    let request = Request::post("https://api.test/")
        .body(whole(body))
        .unwrap();
    let reply = ask2(&mut client, request).await.unwrap();
    assert_eq!(reply.text(), "early");
    world.set_policy(&revoked());
    go.add_permits(1);
    soon(host.ended.notified()).await;
    assert!(!host.text().contains("CANARY"));
    let decision = world.decision().await;
    let told = (decision.outcome, &*decision.reason);
    assert_eq!(told, (Outcome::Refused, "secret_revoked"));
    world.finish();
}

/// Goal: a token is not replaced in the rest of an upload once its secret was bound elsewhere; the
/// upload, which carried nothing, goes on.
#[tokio::test]
async fn nothing_is_replaced_for_a_host_that_lost_its_secret() {
    let mut world = World::new(&Setup::default());
    let host = Hasty::start(&world, "h2").await;
    let pieces = begin_upload(&world, host.port).await;
    give(&pieces, "nothing yet".to_owned()).await;
    host.has("nothing yet").await;
    world.set_policy(&unbound());
    give(&pieces, format!("[{}]", world.token)).await;
    host.has(&format!("[{}]", world.token)).await;
    drop(pieces);
    let decision = world.decision().await;
    assert_eq!(decision.outcome, Outcome::Allowed);
    assert!(decision.secrets.is_empty(), "{:?}", decision.secrets);
    assert_eq!(decision.unbound, ["API_KEY"]);
    world.finish();
}

/// A host that answers nothing, or the beginning of an answer and nothing more.
async fn slow_host(world: &World, answer: &'static [u8]) -> u16 {
    let tls = world.authority.acceptor(&["api.test"]);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let mut stream = tls.accept(stream).await.unwrap();
                let mut buffer = [0; 4096];
                while let Ok(size @ 1..) = stream.read(&mut buffer).await {
                    if buffer[..size].windows(4).any(|four| four == b"\r\n\r\n") {
                        stream.write_all(answer).await.unwrap();
                    }
                }
            });
        }
    });
    port
}

/// Goal: a request whose host or secret is taken away while its answer is waited for is refused in
/// words.
#[tokio::test]
async fn a_request_that_waits_ends_with_its_policy() {
    let cases = [
        (unbound as fn() -> Setup, "secret_not_bound_to_host"),
        (narrowed, "egress_allowlist"),
        (off, "network_disabled"),
    ];
    for (policy, rule) in cases {
        let mut world = World::new(&Setup::default());
        let port = slow_host(&world, b"").await;
        let fields = format!("x-key: {}\r\n", world.token);
        let mut stream = world.secure("api.test", port).await;
        send(&mut stream, get("api.test", "/", &fields)).await;
        let mut client = client2(&world, "api.test", port).await;
        let mut request = get2("https://api.test/");
        let token = world.token.to_string().parse().unwrap();
        request.headers_mut().insert("x-key", token);
        let asked = tokio::spawn(async move { ask2(&mut client, request).await });
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        world.set_policy(&policy());
        let reply = receive(&mut stream).await;
        assert_eq!((reply.status(), &*reply.rule()), (403, rule));
        let reply = soon(asked).await.unwrap().unwrap();
        assert_eq!((reply.status, &*reply.rule()), (403, rule));
        for _ in 0..2 {
            let decision = world.decision().await;
            assert_eq!(
                (decision.outcome, &*decision.reason),
                (Outcome::Refused, rule)
            );
        }
        world.finish();
    }
}

/// Goal: an answer under way is broken off when its host or secret is taken away; one that carried
/// nothing goes on when only the secret is.
#[tokio::test]
async fn an_answer_under_way_ends_with_its_policy() {
    async fn begin(io: &mut Io, request: String) {
        send(io, request).await;
        let mut got = Vec::new();
        while !got.ends_with(b"begun") && !got.ends_with(b"begun\r\n") {
            let mut byte = [0];
            soon(io.read_exact(&mut byte)).await.unwrap();
            got.push(byte[0]);
        }
    }
    let cases = [
        (unbound as fn() -> Setup, "secret_not_bound_to_host", true),
        (narrowed, "egress_allowlist", false),
        (off, "network_disabled", false),
    ];
    for (policy, rule, clean_goes_on) in cases {
        let mut world = World::new(&Setup::default());
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun";
        let port = slow_host(&world, answer).await;
        let (mut with, mut without) = (
            world.secure("api.test", port).await,
            world.secure("api.test", port).await,
        );
        let fields = format!("x-key: {}\r\n", world.token);
        begin(&mut with, get("api.test", "/", &fields)).await;
        begin(&mut without, get("api.test", "/", "")).await;
        world.set_policy(&policy());
        let mut rest = Vec::new();
        let _ = soon(with.read_to_end(&mut rest)).await;
        assert!(rest.len() < 100, "{}", rest.len());
        // What was on its way is read first.
        let end = async { while let Ok(1..) = without.read(&mut [0; 64]).await {} };
        let quiet = std::time::Duration::from_millis(500);
        let ended = tokio::time::timeout(quiet, end).await.is_ok();
        assert_eq!(ended, !clean_goes_on, "{rule}");
        let decision = world.decision().await;
        assert_eq!(
            (decision.outcome, &*decision.reason),
            (Outcome::Refused, rule)
        );
        world.finish();
    }
}

/// Goal: what a new policy still permits is not disturbed by it.
#[tokio::test]
async fn what_is_still_permitted_goes_on() {
    let world = World::new(&Setup::default());
    let host = Hasty::start(&world, "h2").await;
    let pieces = begin_upload(&world, host.port).await;
    give(&pieces, format!("<{}>", world.token)).await;
    host.has(&format!("<{VALUE}>")).await;
    world.set_policy(&Setup {
        allowlist: vec!["api.test"],
        value: "CANARY-rotated-0003",
        ..Setup::default()
    });
    give(&pieces, format!("[{}]", world.token)).await;
    host.has(&format!("[{VALUE}]")).await;
    let fresh = world.host(echo()).await;
    let mut stream = world.secure("api.test", fresh.port).await;
    let request = get("api.test", "/", &format!("x-key: {}\r\n", world.token));
    assert_eq!(ask(&mut stream, request).await.status(), 200);
    assert_eq!(fresh.last().field("x-key"), Some("CANARY-rotated-0003"));
    world.finish();
}
