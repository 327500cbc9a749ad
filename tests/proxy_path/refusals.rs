//! Requests that are not what they seem.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::wire::{ask, get, post};
use crate::world::{PATIENCE, Setup, VALUE, World, echo, ok, soon};

/// The smuggling corpus: whatever is hidden in these bytes, the host sees at most one request,
/// never the hidden one, and the connection ends unless the request was well-formed.
#[tokio::test]
async fn smuggled_requests_do_not_reach_the_host() {
    let world = World::new(&Setup::default());
    let token = world.token;
    let hidden = format!("GET /smuggled HTTP/1.1\r\nhost: api.test\r\nx-key: {token}\r\n\r\n");
    let chunked_end = format!("0\r\n\r\n{hidden}");
    let length = chunked_end.len();
    let corpus = [
        // Both framings, in both orders.
        format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n{chunked_end}"),
        format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n\r\n{chunked_end}"),
        // Two lengths, and lengths others read differently.
        format!(
            "content-length: 0\r\ncontent-length: {}\r\n\r\n{hidden}",
            hidden.len()
        ),
        format!("content-length: 0, {}\r\n\r\n{hidden}", hidden.len()),
        format!("content-length: +0\r\n\r\n{hidden}"),
        format!("content-length: 0x0\r\n\r\n{hidden}"),
        format!("content-length: -1\r\n\r\n{hidden}"),
        format!("content-length: 99999999999999999999\r\n\r\n{hidden}"),
        format!("content-length : 0\r\n\r\n{hidden}"),
        // Odd codings.
        format!("transfer-encoding: xchunked\r\n\r\n{chunked_end}"),
        format!("transfer-encoding: chunked, identity\r\n\r\n{chunked_end}"),
        format!("transfer-encoding: gzip, chunked\r\n\r\n{chunked_end}"),
        format!("transfer-encoding: chunked\r\ntransfer-encoding: x\r\n\r\n{chunked_end}"),
        format!("transfer-encoding:\x0bchunked\r\n\r\n{chunked_end}"),
        format!("transfer-encoding : chunked\r\n\r\n{chunked_end}"),
        format!("transfer-encoding\0: chunked\r\n\r\n{chunked_end}"),
        // Folding, bare line feeds, bare carriage returns, NUL, no name.
        format!("x-a: b\r\n transfer-encoding: chunked\r\n\r\n{chunked_end}"),
        format!("transfer-encoding:\r\n chunked\r\n\r\n{chunked_end}"),
        format!("x-a: b\rtransfer-encoding: chunked\r\n\r\n{chunked_end}"),
        format!("x-a: b\0c\r\n\r\n{hidden}"),
        format!(": empty\r\n\r\n{hidden}"),
        // Damaged chunks.
        format!("transfer-encoding: chunked\r\n\r\n-1\r\n{hidden}"),
        format!("transfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n{chunked_end}"),
        format!("transfer-encoding: chunked\r\n\r\n3\r\nabcXX{chunked_end}"),
        format!("transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{hidden}"),
        format!("transfer-encoding: chunked\r\n\r\n1 \nX\r\n{chunked_end}"),
        // Bare line feeds: in a head, at its end, in the lines of chunks, after them, in trailers.
        format!("x-a: b\ntransfer-encoding: chunked\r\n\r\n{chunked_end}"),
        format!("transfer-encoding: chunked\nx-a: b\r\n\r\n{chunked_end}"),
        format!("x-a: b\n\n{hidden}"),
        format!("x-a: b\r\n\n{hidden}"),
        format!("x-a: b\n\r\n{hidden}"),
        format!("content-length: 0\n\r\n{hidden}"),
        format!("transfer-encoding: chunked\r\n\r\n0;\n{hidden}\r\n\r\n"),
        format!("transfer-encoding: chunked\r\n\r\n0\n\n{hidden}"),
        format!("transfer-encoding: chunked\r\n\r\n0\r\n\n{hidden}"),
        format!("transfer-encoding: chunked\r\n\r\n0\r\nx: y\nz: 1\r\n\r\n{hidden}"),
        format!("transfer-encoding: chunked\r\n\r\n1\r\nX\n{chunked_end}"),
    ];
    for framing in corpus {
        let host = world.host(echo()).await;
        let mut stream = world.secure("api.test", host.port).await;
        let request = format!("POST /front HTTP/1.1\r\nhost: api.test\r\n{framing}");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut replies = Vec::new();
        // The connection must end by itself: our side stays open.
        let ended = timeout(PATIENCE, stream.read_to_end(&mut replies)).await;
        assert!(
            ended.is_ok(),
            "{framing:?} keeps the connection: {:?} {:?}",
            String::from_utf8_lossy(&replies),
            host.heads()
        );
        let heads = host.heads();
        assert!(heads.len() <= 1, "{framing:?}: {heads:?}");
        assert!(
            heads.iter().all(|head| head.starts_with("POST /front ")),
            "{framing:?}"
        );
        for message in host.requests.lock().unwrap().iter() {
            let sent = format!("{}{}", message.head, message.text());
            assert!(!sent.contains("\r\nx-key: CANARY"), "{framing:?}");
        }
    }
    world.finish();
}

/// Goal: a fault after well-formed requests costs only what comes after it, in TLS, in plain HTTP
/// and through the explicit proxy: the ones before are answered, the faulty one and the hidden one
/// reach nobody.
#[tokio::test]
async fn a_bare_line_feed_is_found_behind_other_requests() {
    let world = World::new(&Setup::default());
    let tls = world.host(echo()).await;
    let plain = crate::world::upstream(None, echo()).await;
    let before = |target: &str| {
        format!(
            "POST {target} HTTP/1.1\r\nhost: api.test\r\ncontent-length: 3\r\n\r\n\na\n\
             POST {target} HTTP/1.1\r\nhost: api.test\r\ntransfer-encoding: chunked\r\n\r\n\
             3\r\n\na\n\r\n0\r\n\r\n"
        )
    };
    let fault = |target: &str| {
        format!(
            "POST {target} HTTP/1.1\r\nhost: api.test\r\nx-a: b\ntransfer-encoding: chunked\r\n\r\n\
             0\r\n\r\n{}",
            get("api.test", "/smuggled", "")
        )
    };
    let own = std::net::Ipv4Addr::new(169, 254, 169, 253);
    let plain_target = format!("http://api.test:{}/", plain.port);
    let ways: [(crate::wire::Io, String, &crate::world::Upstream); 3] = [
        (
            world.secure("api.test", tls.port).await,
            "/".to_owned(),
            &tls,
        ),
        (
            Box::new(world.connect("api.test", plain.port).await),
            "/".to_owned(),
            &plain,
        ),
        (
            Box::new(world.connect_ip(own.into(), 3128).await),
            plain_target,
            &plain,
        ),
    ];
    for (mut stream, target, host) in ways {
        let reached = host.count();
        let host_field = format!("host: api.test:{}", host.port);
        let all = format!("{}{}", before(&target), fault(&target));
        let all = all.replace("host: api.test", &host_field);
        stream.write_all(all.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut replies = Vec::new();
        soon(stream.read_to_end(&mut replies)).await.unwrap();
        let replies = String::from_utf8_lossy(&replies);
        assert_eq!(replies.matches("HTTP/1.1 200 ").count(), 2, "{replies}");
        assert_eq!(replies.matches("HTTP/1.1 400 ").count(), 1, "{replies}");
        assert_eq!(host.count(), reached + 2);
    }
    assert!(
        tls.heads()
            .iter()
            .chain(&plain.heads())
            .all(|head| !head.contains("x-a"))
    );
    world.finish();
}

/// A request framed twice is refused in words, and its connection ends.
#[tokio::test]
async fn a_request_with_two_framings_is_told_so() {
    let mut world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    for fields in [
        "content-length: 3\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 3\r\n",
        "content-length: 3\r\ncontent-length: 3\r\n",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nhost: api.test\r\n{fields}\r\n3\r\nabc\r\n0\r\n\r\n");
        let reply = world.ask("api.test", host.port, request).await;
        assert_eq!((reply.status(), reply.rule().as_str()), (400, "framing"));
        assert_eq!(reply.field("connection"), Some("close"));
        assert_eq!(world.decision().await.reason, "framing");
    }
    assert_eq!(host.count(), 0);
    world.finish();
}

/// Well-formed requests sent at once are answered in order, each by its own answer.
#[tokio::test]
async fn pipelined_requests_keep_their_order_past_interim_answers() {
    let world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|message| {
            let path = message.head.split(' ').nth(1).unwrap().to_owned();
            let interim = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(2);
            [
                b"HTTP/1.1 100 Continue\r\n\r\n",
                interim.as_bytes(),
                &ok(path.as_bytes()),
            ]
            .concat()
        }))
        .await;
    let mut stream = world.secure("api.test", host.port).await;
    let all: String = (0..5)
        .map(|i| get("api.test", &format!("/{i}"), ""))
        .collect();
    crate::wire::send(&mut stream, all).await;
    let mut ahead = Vec::new();
    for i in 0..5 {
        let reply = soon(crate::wire::read_message(&mut stream, &mut ahead, false))
            .await
            .unwrap();
        assert_eq!(reply.text(), format!("/{i}"));
    }
    world.finish();
}

/// A host that switches protocols unasked gets no tunnel, and neither does a program that asks.
#[tokio::test]
async fn protocols_are_not_switched() {
    let world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|_| {
            format!("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n{VALUE}")
                .into_bytes()
        }))
        .await;
    let reply = world
        .ask("api.test", host.port, get("api.test", "/", ""))
        .await;
    assert_eq!(reply.status(), 502);
    assert!(["upstream_switched", "upstream_failed"].contains(&reply.rule().as_str()));
    let fields = "upgrade: websocket\r\nconnection: upgrade\r\n";
    let reply = world
        .ask("api.test", host.port, get("api.test", "/", fields))
        .await;
    assert_eq!(
        (reply.status(), reply.rule().as_str()),
        (403, "upgrade_unsupported")
    );
    assert_eq!(host.count(), 1);
    world.finish();
}

/// A value with a line break can't be smuggled into a head by its token.
#[tokio::test]
async fn a_value_that_would_break_a_header_is_refused() {
    let value = "CANARY\r\nx-injected: 1";
    let world = World::new(&Setup {
        value,
        ..Setup::default()
    });
    let host = world.host(echo()).await;
    let key = format!("x-key: {}\r\n", world.token);
    let reply = world
        .ask("api.test", host.port, get("api.test", "/", &key))
        .await;
    assert_eq!(
        (reply.status(), reply.rule().as_str()),
        (403, "secret_inexpressible")
    );
    assert_eq!(host.count(), 0);
    // In a query it has a spelling.
    let path = format!("/?k={}", world.token);
    world
        .ask("api.test", host.port, get("api.test", &path, ""))
        .await;
    assert!(
        host.last()
            .head
            .starts_with("GET /?k=CANARY%0D%0Ax-injected%3A%201 HTTP/1.1\r\n")
    );
    world.finish();
}

/// Heads beyond the limits are refused before anything is sent.
#[tokio::test]
async fn heads_are_bounded() {
    let world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    let many: String = (0..200).map(|i| format!("x-{i}: 1\r\n")).collect();
    let long = format!("x-long: {}\r\n", "a".repeat(80 * 1024));
    for fields in [many, long] {
        let mut stream = world.secure("api.test", host.port).await;
        stream
            .write_all(get("api.test", "/", &fields).as_bytes())
            .await
            .ok();
        let mut reply = Vec::new();
        let _ = soon(stream.read_to_end(&mut reply)).await;
        assert!(reply.is_empty() || reply.starts_with(b"HTTP/1.1 431"));
    }
    assert_eq!(host.count(), 0);
    world.finish();
}

/// A trail that is full delays a request until there is room; one that is gone refuses it.
#[tokio::test]
async fn no_request_passes_unrecorded() {
    let mut world = World::new(&Setup {
        trail: 1,
        ..Setup::default()
    });
    let host = world.host(echo()).await;
    let mut stream = world.secure("api.test", host.port).await;
    ask(&mut stream, get("api.test", "/1", "")).await;
    crate::wire::send(&mut stream, get("api.test", "/2", "")).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(host.count(), 1);
    world.decision().await;
    assert_eq!(crate::wire::receive(&mut stream).await.status(), 200);
    world.decision().await;
    world.decisions.close();
    let reply = ask(&mut stream, post("api.test", "text/plain", "x")).await;
    assert_eq!(
        (reply.status(), reply.rule().as_str()),
        (503, "audit_backlog")
    );
    assert_eq!(host.count(), 2);
    world.finish();
}

/// One sandbox's connections are bounded; those beyond are dropped, and room comes back.
#[tokio::test]
async fn connections_of_a_sandbox_are_bounded() {
    let mut world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    let mut held = Vec::new();
    for _ in 0..256 {
        held.push(world.connect("api.test", host.port).await);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut dropped = world.connect("api.test", host.port).await;
    let mut rest = Vec::new();
    let _ = soon(dropped.read_to_end(&mut rest)).await;
    assert_eq!(world.decision().await.reason, "connection_limit");
    held.clear();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        world
            .ask("api.test", host.port, get("api.test", "/", ""))
            .await
            .status(),
        200
    );
    world.finish();
}

/// Answers made to be read in two ways: each request gets its own answer or none, in one
/// framing, without a value in the reason phrase or beneath a transfer coding.
#[tokio::test]
async fn hostile_answers_do_not_poison_the_connection() {
    let world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|message| {
            match message.head.split(' ').nth(1).unwrap() {
                "/two" => [ok(b"first"), ok(b"poison")].concat(),
                "/both" => {
                    b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n\
                         5\r\nhello\r\n0\r\n\r\n"
                        .to_vec()
                }
                "/coded" => {
                    b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_vec()
                }
                "/reason" => {
                    format!("HTTP/1.1 200 {VALUE}\r\ncontent-length: 0\r\n\r\n").into_bytes()
                }
                path => ok(path.as_bytes()),
            }
        }))
        .await;
    let mut stream = world.secure("api.test", host.port).await;
    assert_eq!(
        ask(&mut stream, get("api.test", "/two", "")).await.text(),
        "first"
    );
    assert_eq!(
        ask(&mut stream, get("api.test", "/next", "")).await.text(),
        "/next"
    );
    let reply = ask(&mut stream, get("api.test", "/reason", "")).await;
    assert!(
        reply.head.starts_with("HTTP/1.1 200 OK\r\n"),
        "{}",
        reply.head
    );
    for (path, expected) in [("/both", "hello"), ("/coded", "response_encoding")] {
        let reply = world
            .ask("api.test", host.port, get("api.test", path, ""))
            .await;
        assert!(reply.text().contains(expected), "{path}: {reply:?}");
        assert_eq!(
            reply.head.matches("content-length").count()
                + reply.head.matches("transfer-encoding").count(),
            1
        );
    }
    world.finish();
}

/// A head whose lines end in bare line feeds is nobody's: it is answered with 400, recorded, and
/// nothing of it reaches the host.
#[tokio::test]
async fn a_head_of_bare_line_feeds_is_refused() {
    let mut world = World::new(&Setup::default());
    let host = world.host(Arc::new(|_| ok(b"done"))).await;
    for request in [
        "POST /a HTTP/1.1\nhost: api.test\ncontent-length: 0\n\n",
        "POST /a HTTP/1.1\r\nhost: api.test\r\ncontent-length: 0\r\n\n",
    ] {
        let reply = world.ask("api.test", host.port, request).await;
        assert_eq!(reply.status(), 400);
        assert_eq!(reply.field("connection"), Some("close"));
        assert_eq!(world.decision().await.reason, "framing");
    }
    assert_eq!(host.count(), 0);
    world.finish();
}
