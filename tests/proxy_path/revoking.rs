//! New values and none at all, while requests are under way.

use std::sync::{Arc, Mutex};

use opencomputer::proxy::Outcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::wire::{Io, ask, get, send};
use crate::world::{OTHER_VALUE, Setup, VALUE, World, echo, soon};

/// A host that only reads, and shows what it read; answers nothing.
struct Sink {
    port: u16,
    read: Arc<Mutex<Vec<u8>>>,
    /// Set when the connection ended.
    ended: Arc<tokio::sync::Notify>,
}

impl Sink {
    async fn start(world: &World) -> Self {
        let tls = world.authority.acceptor(&["api.test", "other.test"]);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let sink = Self {
            port: listener.local_addr().unwrap().port(),
            read: Arc::default(),
            ended: Arc::default(),
        };
        let (read, ended) = (sink.read.clone(), sink.ended.clone());
        tokio::spawn(async move {
            let mut stream = tls
                .accept(listener.accept().await.unwrap().0)
                .await
                .unwrap();
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                read.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
            ended.notify_one();
        });
        sink
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

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

const UPLOAD: &str = "POST / HTTP/1.1\r\nhost: api.test\r\ntransfer-encoding: chunked\r\n\r\n";

fn revoked() -> Setup {
    Setup {
        revoked: true,
        ..Setup::default()
    }
}

/// What is under way when a value changes ends with the old value; what begins then has the new
/// one; the token is the same.
#[tokio::test]
async fn a_rotation_lets_what_is_under_way_finish() {
    let world = World::new(&Setup::default());
    let sink = Sink::start(&world).await;
    let token = world.token.to_string();
    let mut upload = world.secure("api.test", sink.port).await;
    send(
        &mut upload,
        format!("{UPLOAD}{}", chunk(&format!("<{token}>"))),
    )
    .await;
    sink.has(&format!("<{VALUE}>")).await;
    let value = "CANARY-rotated-0003";
    world.set_policy(&Setup {
        value,
        ..Setup::default()
    });
    send(&mut upload, chunk(&format!("[{token}]"))).await;
    sink.has(&format!("[{VALUE}]")).await;
    let host = world.host(echo()).await;
    let request = get("api.test", "/", &format!("x-key: {token}\r\n"));
    world.ask("api.test", host.port, request).await;
    assert_eq!(host.last().field("x-key"), Some(value));
    world.finish();
}

/// Revoking cuts an upload that has carried the secret, and puts no further value into one that
/// has not; the token is inert from then on, recorded as revoked; others go on.
#[tokio::test]
async fn a_revoked_secret_is_cut_in_the_middle_of_uploads() {
    let mut world = World::new(&Setup::default());
    let (carrying, clean) = (Sink::start(&world).await, Sink::start(&world).await);
    let token = world.token.to_string();
    let mut first = world.secure("api.test", carrying.port).await;
    send(
        &mut first,
        format!("{UPLOAD}{}", chunk(&format!("<{token}>"))),
    )
    .await;
    carrying.has(&format!("<{VALUE}>")).await;
    let mut second = world.secure("api.test", clean.port).await;
    send(&mut second, format!("{UPLOAD}{}", chunk("nothing yet"))).await;
    clean.has("nothing yet").await;

    world.set_policy(&revoked());
    soon(carrying.ended.notified()).await;
    let mut rest = Vec::new();
    let _ = soon(first.read_to_end(&mut rest)).await;
    let told = String::from_utf8_lossy(&rest);
    assert!(told.contains("secret_revoked"), "{told}");
    send(&mut second, chunk(&format!("[{token}]"))).await;
    clean.has(&format!("[{token}]")).await;
    drop((first, second));

    let cut = world.decision().await;
    assert_eq!(
        (cut.outcome, &*cut.reason),
        (Outcome::Refused, "secret_revoked")
    );
    let host = world.host(echo()).await;
    let fields = format!("x-key: {token}\r\nx-other: {}\r\n", world.other_token);
    world
        .ask("other.test", host.port, get("other.test", "/", &fields))
        .await;
    assert_eq!(host.last().field("x-key"), Some(&*token));
    assert_eq!(host.last().field("x-other"), Some(OTHER_VALUE));
    loop {
        let decision = world.decision().await;
        if decision.host == "other.test" {
            assert_eq!(decision.unbound_why["API_KEY"], "revoked");
            break;
        }
    }
    // A policy that has the value again does not bring the token back to life.
    world.set_policy(&Setup::default());
    let request = get("api.test", "/", &format!("x-key: {token}\r\n"));
    world.ask("api.test", host.port, request).await;
    assert_eq!(host.last().field("x-key"), Some(&*token));
    assert!(!clean.text().contains("CANARY"));
    world.finish();
}

/// An answer to a request that carried the secret ends when it is revoked, and one that did not
/// goes on.
#[tokio::test]
async fn a_revoked_secret_is_cut_in_the_middle_of_answers() {
    let mut world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|_| {
            b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun".to_vec()
        }))
        .await;
    async fn begin(io: &mut Io, request: String) {
        send(io, request).await;
        let mut got = Vec::new();
        while !got.ends_with(b"begun") && !got.ends_with(b"begun\r\n") {
            let mut byte = [0];
            soon(io.read_exact(&mut byte)).await.unwrap();
            got.push(byte[0]);
        }
    }
    let fields = format!("x-key: {}\r\n", world.token);
    let (mut with, mut without) = (
        world.secure("api.test", host.port).await,
        world.secure("api.test", host.port).await,
    );
    begin(&mut with, get("api.test", "/", &fields)).await;
    begin(&mut without, get("api.test", "/", "")).await;
    world.set_policy(&revoked());
    let mut rest = Vec::new();
    let _ = soon(with.read_to_end(&mut rest)).await;
    assert!(rest.len() < 100, "{}", rest.len());
    let mut byte = [0; 64];
    let quiet = std::time::Duration::from_millis(200);
    let more = tokio::time::timeout(quiet, without.read(&mut byte)).await;
    assert!(!matches!(more, Ok(Ok(0) | Err(_))), "the other one goes on");
    let decision = world.decision().await;
    assert_eq!(
        (decision.outcome, &*decision.reason),
        (Outcome::Refused, "secret_revoked")
    );
    let _ = without.shutdown().await;
    let fresh = world.host(echo()).await;
    let mut stream = world.secure("api.test", fresh.port).await;
    ask(&mut stream, get("api.test", "/", &fields)).await;
    assert_eq!(fresh.last().field("x-key"), Some(&*world.token.to_string()));
    world.finish();
}
