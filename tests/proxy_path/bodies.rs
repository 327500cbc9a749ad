//! Bodies of every length and framing, as streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::wire::{Io, ask, get, post, read_message};
use crate::world::{Setup, VALUE, World, echo, ok, soon};

/// Twenty megabytes with tokens all along: all replaced, the length turned to chunks.
#[tokio::test]
async fn a_long_upload_is_substituted_throughout() {
    const PIECES: usize = 20 * 1024;
    let mut world = World::new(&Setup::default());
    let host = world.host(Arc::new(|_| ok(b"stored"))).await;
    let token = world.token.to_string();
    let piece = format!("{token}{}", "x".repeat(1024 - token.len()));
    let mut stream = world.secure("api.test", host.port).await;
    let head = format!(
        "PUT /big HTTP/1.1\r\nhost: api.test\r\ncontent-length: {}\r\n\r\n",
        PIECES * piece.len()
    );
    crate::wire::send(&mut stream, head).await;
    // Odd sizes, so that tokens are cut at every place.
    let block = piece.repeat(64);
    for _ in 0..PIECES / 64 {
        for part in block.as_bytes().chunks(9973) {
            stream.write_all(part).await.unwrap();
        }
    }
    stream.flush().await.unwrap();
    let reply = crate::wire::receive(&mut stream).await;
    assert_eq!(reply.text(), "stored");
    let sent = host.last();
    assert_eq!(sent.field("transfer-encoding"), Some("chunked"));
    assert_eq!(sent.field("content-length"), None);
    let expected = format!("{VALUE}{}", "x".repeat(1024 - token.len()));
    assert_eq!(sent.body.len(), PIECES * expected.len());
    assert!(
        sent.body
            .chunks(expected.len())
            .all(|part| part == expected.as_bytes())
    );
    drop(stream);
    assert_eq!(world.decision().await.bytes_up, (PIECES * 1024) as u64);
    world.finish();
}

/// Memory stays bounded because a host that does not read stops the program that writes.
#[tokio::test]
async fn a_slow_host_stops_the_upload() {
    let world = World::new(&Setup::default());
    let tls = world.authority.acceptor(&["api.test"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let _held = tls.accept(stream).await.unwrap();
        std::future::pending::<()>().await;
    });
    let mut stream = world.secure("api.test", port).await;
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let upload = tokio::spawn(async move {
        let head = "PUT / HTTP/1.1\r\nhost: api.test\r\ncontent-length: 99999999999\r\n\r\n";
        crate::wire::send(&mut stream, head).await;
        let block = vec![b'x'; 64 * 1024];
        while stream.write_all(&block).await.is_ok() {
            count.fetch_add(block.len(), Ordering::Relaxed);
        }
    });
    // Until nothing moves any more.
    let mut before = usize::MAX;
    while before != written.load(Ordering::Relaxed) {
        before = written.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    upload.abort();
    assert!(
        before > 0 && before < 24 * 1024 * 1024,
        "{before} bytes went into buffers"
    );
    world.finish();
}

/// A chunked upload of any length is substituted; a token cut by chunks is one token.
#[tokio::test]
async fn chunked_uploads_are_substituted() {
    let world = World::new(&Setup::default());
    let host = world.host(Arc::new(|_| ok(b"done"))).await;
    let token = world.token.to_string();
    let mut stream = world.secure("api.test", host.port).await;
    for cut in [0, 1, 10, 11, 12, 42, 43] {
        let mut request =
            "POST / HTTP/1.1\r\nhost: api.test\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
        for part in ["<", &token[..cut], &token[cut..], ">"]
            .iter()
            .filter(|part| !part.is_empty())
        {
            request += &format!("{:x};ext={token}\r\n{part}\r\n", part.len());
        }
        request += &format!("0\r\nx-trailer: {token}\r\n\r\n");
        ask(&mut stream, request).await;
        assert_eq!(host.last().text(), format!("<{VALUE}>"), "{cut}");
    }
    world.finish();
}

/// A client that waits for 100 Continue gets it, once, before its body.
#[tokio::test]
async fn expectations_are_answered() {
    let world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    let mut stream = world.secure("api.test", host.port).await;
    let head =
        "POST / HTTP/1.1\r\nhost: api.test\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n";
    crate::wire::send(&mut stream, head).await;
    let mut interim = [0; 25];
    soon(stream.read_exact(&mut interim)).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    let reply = ask(&mut stream, "body").await;
    assert_eq!(reply.status(), 200);
    assert_eq!(
        (host.last().field("expect"), host.last().text().as_str()),
        (None, "body")
    );
    world.finish();
}

/// Answers without a body have none, and the connection goes on after them.
#[tokio::test]
async fn answers_without_body_keep_the_connection() {
    let world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|message| match message.head.split(' ').next() {
            Some("HEAD") => b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n".to_vec(),
            Some("DELETE") => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
            Some("OPTIONS") => b"HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n".to_vec(),
            _ => ok(b"last"),
        }))
        .await;
    let mut stream = world.secure("api.test", host.port).await;
    let mut ahead = Vec::new();
    for (method, status) in [("HEAD", 200), ("DELETE", 204), ("OPTIONS", 304)] {
        let request = get("api.test", "/", "").replacen("GET", method, 1);
        crate::wire::send(&mut stream, request).await;
        let reply = soon(read_message(&mut stream, &mut ahead, true))
            .await
            .unwrap();
        assert_eq!(reply.status(), status);
        if method == "HEAD" {
            assert_eq!(reply.field("content-length"), Some("99"));
        }
    }
    assert_eq!(
        ask(&mut stream, get("api.test", "/", "")).await.text(),
        "last"
    );
    world.finish();
}

/// Events arrive as they are sent, sealed; a value cut between two of them as well.
#[tokio::test]
async fn event_streams_are_not_delayed() {
    let world = World::new(&Setup::default());
    let tls = world.authority.acceptor(&["api.test"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (go, mut next) = tokio::sync::mpsc::channel::<String>(4);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream: Io = Box::new(tls.accept(stream).await.unwrap());
        read_message(&mut stream, &mut Vec::new(), false)
            .await
            .unwrap();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        crate::wire::send(&mut stream, head).await;
        while let Some(event) = next.recv().await {
            crate::wire::send(&mut stream, event).await;
        }
    });
    let mut stream = world.secure("api.test", port).await;
    crate::wire::send(&mut stream, get("api.test", "/", "")).await;
    let mut seen = String::new();
    let (one, two) = VALUE.split_at(9);
    for (event, expected) in [
        ("data: one\n\n".to_owned(), "data: one\n\n".to_owned()),
        (format!("data: {VALUE}"), format!("data: {}", world.token)),
        (format!("\n\ndata: {one}"), "\n\ndata: ".to_owned()),
        (format!("{two}\n\n"), format!("{}\n\n", world.token)),
    ] {
        go.send(event).await.unwrap();
        let mut block = [0; 4096];
        while !seen.contains(&expected) {
            let size = soon(stream.read(&mut block)).await.unwrap();
            assert!(size > 0);
            seen += &String::from_utf8_lossy(&block[..size]);
        }
        assert!(!seen.contains(&VALUE[..9]));
        seen.clear();
    }
    world.finish();
}

/// A kept connection that the host closed meanwhile is replaced without the program noticing.
#[tokio::test]
async fn a_closed_connection_to_the_host_is_replaced() {
    let world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|_| {
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok".to_vec()
        }))
        .await;
    let mut stream = world.secure("api.test", host.port).await;
    for _ in 0..3 {
        assert_eq!(
            ask(&mut stream, post("api.test", "text/plain", "x"))
                .await
                .text(),
            "ok"
        );
    }
    assert_eq!(host.count(), 3);
    world.finish();
}

/// A rule broken in the middle of a stream ends it: the host never sees a complete request.
#[tokio::test]
async fn a_stream_is_broken_off_where_a_rule_is_broken() {
    let mut world = World::new(&Setup {
        strict: true,
        ..Setup::default()
    });
    let host = world.host(Arc::new(|_| ok(b"done"))).await;
    let mut stream = world.secure("api.test", host.port).await;
    let other = world.other_token.to_string();
    let request = format!(
        "POST / HTTP/1.1\r\nhost: api.test\r\ntransfer-encoding: chunked\r\n\r\n\
         3\r\nabc\r\n{:x}\r\n{other}\r\n0\r\n\r\n",
        other.len()
    );
    let reply = ask(&mut stream, request).await;
    assert_eq!(
        (reply.status(), reply.rule().as_str()),
        (403, "secret_not_bound_to_host")
    );
    assert_eq!(host.count(), 0);
    assert_eq!(world.decision().await.reason, "secret_not_bound_to_host");
    world.finish();
}

/// An empty POST says that it is empty, and the body of a GET of unknown length arrives.
#[tokio::test]
async fn what_hyper_would_leave_out_is_framed() {
    let world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    for method in ["POST", "PUT"] {
        let request = format!("{method} / HTTP/1.1\r\nhost: api.test\r\ncontent-length: 0\r\n\r\n");
        world.ask("api.test", host.port, request).await;
        assert_eq!(host.last().field("content-length"), Some("0"), "{method}");
    }
    let get = crate::wire::get("api.test", "/", "");
    world.ask("api.test", host.port, get).await;
    assert_eq!(host.last().field("content-length"), None);
    for body in ["query", &world.token.to_string()] {
        let request = format!(
            "GET / HTTP/1.1\r\nhost: api.test\r\ntransfer-encoding: chunked\r\n\r\n\
             {:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        world.ask("api.test", host.port, request).await;
        let sent = body.replace(&world.token.to_string(), crate::world::VALUE);
        assert_eq!(host.last().text(), sent);
    }
    world.finish();
}
