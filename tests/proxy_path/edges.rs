//! Corners of the protocols: events over HTTP/2, half-closed tunnels, floods of names,
//! expectations in HTTP/2.

use std::process::Stdio;

use http_body_util::BodyExt;
use opencomputer::proxy::Outcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::clients::explicit_proxy;
use crate::two::{client2, get2};
use crate::wire::{Io, get, read_message, send};
use crate::world::{Setup, VALUE, World, echo, soon};

/// Goal: server-sent events reach a program that speaks HTTP/2 one by one, as they are sent, with
/// the token in place of the value.
#[tokio::test]
async fn events_are_not_delayed_over_http2() {
    let world = World::new(&Setup::default());
    let tls = world.authority.acceptor(&["api.test"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (go, mut next) = tokio::sync::mpsc::channel::<String>(4);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = tls.accept(stream).await else {
                continue;
            };
            let mut stream: Io = Box::new(stream);
            if read_message(&mut stream, &mut Vec::new(), false)
                .await
                .is_none()
            {
                continue;
            }
            send(
                &mut stream,
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n",
            )
            .await;
            while let Some(event) = next.recv().await {
                send(&mut stream, event).await;
            }
        }
    });
    let mut sender = client2(&world, "api.test", port).await;
    let request = get2(&format!("https://api.test:{port}/"));
    let response = soon(sender.send_request(request)).await.unwrap();
    let mut body = response.into_body();
    for event in ["one", "two", VALUE] {
        go.send(format!("data: {event}\n\n")).await.unwrap();
        let expected = format!("data: {event}\n\n").replace(VALUE, &world.token.to_string());
        let mut seen = String::new();
        while seen != expected {
            let frame = soon(body.frame()).await.expect("more events").unwrap();
            seen += &String::from_utf8_lossy(frame.data_ref().unwrap());
            assert!(expected.starts_with(&seen), "{seen}");
        }
    }
    world.finish();
}

/// Goal: a tunnel that one side has finished with carries what the other still sends.
#[tokio::test]
async fn a_half_closed_tunnel_carries_the_other_half() {
    let mut world = World::new(&Setup::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all.repeat(1000)).await.unwrap();
    });
    let mut stream = world.connect("plain.test", port).await;
    stream.write_all(b"\x01all of it").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    soon(stream.read_to_end(&mut back)).await.unwrap();
    assert_eq!(back.len(), 10_000);
    assert_eq!(world.decision().await.outcome, Outcome::Tunnelled);
    world.finish();
}

/// Goal: a program that asks for hundreds of names at once is held to the bound on new
/// certificates, and hosts that have one are served meanwhile.
#[tokio::test]
async fn a_flood_of_names_is_bounded_and_delays_no_known_host() {
    const NAMES: usize = 250;
    let mut world = World::new(&Setup {
        allowlist: vec!["api.test"],
        trail: 1024,
        ..Setup::default()
    });
    let host = world.host(echo()).await;
    world
        .ask("api.test", host.port, get("api.test", "/", ""))
        .await;
    let mut flood = JoinSet::new();
    for number in 0..NAMES {
        let name = format!("n{number}.flood.test");
        let stream = world.connect(&name, 443).await;
        let ca = world.proxy.ca_certificate_pem().to_owned();
        flood.spawn(async move {
            use rustls::pki_types::{CertificateDer, pem::PemObject};
            let roots = [CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()];
            let tls = crate::world::tls_trusting(&roots, stream, &name);
            tokio::time::timeout(std::time::Duration::from_secs(60), tls)
                .await
                .unwrap()
                .is_ok()
        });
    }
    let reply = world
        .ask("api.test", host.port, get("api.test", "/", ""))
        .await;
    assert_eq!(reply.status(), 200);
    let served = flood
        .join_all()
        .await
        .into_iter()
        .filter(|&served| served)
        .count();
    assert!((64..NAMES).contains(&served), "{served} of {NAMES}");
    let mut refused = 0;
    while refused < NAMES - served {
        let decision = world.decision().await;
        refused += usize::from(decision.reason == "leaf_limit");
    }
    world.finish();
}

/// Goal: curl that expects `100 Continue` over HTTP/2 gets its answer: nobody waits for anybody.
#[tokio::test]
async fn an_expectation_over_http2_ends() {
    let curl = Command::new("curl").arg("--version").output().await;
    if !curl.is_ok_and(|done| String::from_utf8_lossy(&done.stdout).contains("HTTP2")) {
        println!("skipped: there is no curl with HTTP/2");
        return;
    }
    let world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    let proxy = explicit_proxy(&world).await;
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, world.proxy.ca_certificate_pem()).unwrap();
    for size in [10, 3_000_000] {
        let body = folder.path().join("body");
        std::fs::write(&body, format!("{}{}", world.token, "x".repeat(size))).unwrap();
        let mut command = Command::new("curl");
        command
            .args([
                "--silent",
                "--show-error",
                "--max-time",
                "8",
                "--http2",
                "--noproxy",
                "",
            ])
            .args([
                "--header",
                "expect: 100-continue",
                "--write-out",
                "%{http_version}",
            ])
            .args(["--output", "/dev/null", "--proxy", &proxy, "--cacert"])
            .arg(&ca)
            .arg("--data-binary")
            .arg(format!("@{}", body.display()))
            .arg(format!("https://api.test:{}/", host.port))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let done = soon(command.output()).await.unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        assert_eq!(String::from_utf8_lossy(&done.stdout), "2");
        assert!(host.last().text().starts_with("CANARY"));
        assert_eq!(host.last().field("expect"), None);
    }
    world.finish();
}

/// Goal: a program that ends its side after a whole request still gets the answer, with and without
/// TLS, also when the host takes its time.
#[tokio::test]
async fn a_half_closed_request_is_answered() {
    let world = World::new(&Setup {
        inspect_all: true,
        ..Setup::default()
    });
    let late: crate::world::Answer = std::sync::Arc::new(|_| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        crate::world::ok(b"late")
    });
    let (plain, secure) = (
        crate::world::upstream(None, late.clone()).await,
        world.host(late).await,
    );
    for tls in [false, true] {
        let mut stream: Io = match tls {
            true => world.secure("api.test", secure.port).await,
            false => Box::new(world.connect("api.test", plain.port).await),
        };
        let body = "POST / HTTP/1.1\r\nhost: api.test\r\ncontent-length: 4\r\n\r\nbody";
        send(&mut stream, body).await;
        stream.shutdown().await.unwrap();
        let reply = crate::wire::receive(&mut stream).await;
        assert_eq!((reply.status(), &*reply.text()), (200, "late"), "{tls}");
        assert_eq!(soon(stream.read(&mut [0; 9])).await.unwrap_or(0), 0);
    }
    world.finish();
}

/// Goal: a program that waits for a host with a secret to speak first is told soon why nothing comes,
/// and the record says so; on a port of HTTP it is left alone.
#[tokio::test]
async fn a_silent_program_is_told_why_nothing_comes() {
    let mut world = World::new(&Setup::default());
    for (port, begins) in [(25, "554 only TLS"), (5432, "only TLS")] {
        let mut stream = world.connect("api.test", port).await;
        let mut told = String::new();
        soon(stream.read_to_string(&mut told)).await.unwrap();
        assert!(told.starts_with(begins) && told.ends_with("\r\n"), "{told}");
        let decision = world.decision().await;
        let decided = (decision.outcome, &*decision.reason, decision.port);
        assert_eq!(decided, (Outcome::Refused, "server_speaks_first", port));
    }
    let mut stream = world.connect("api.test", 8443).await;
    let wait = std::time::Duration::from_secs(6);
    let quiet = tokio::time::timeout(wait, stream.read(&mut [0; 9])).await;
    assert!(quiet.is_err(), "it may connect ahead of need");
    world.finish();
}
