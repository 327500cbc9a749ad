//! HTTP/2 on each side, and what is said differently in it.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use tokio::io::AsyncWriteExt;

use crate::two::{
    Fate, GOAWAY, RST_STREAM, SETTINGS, ask2, client2, echo2, fate, frame, get2, host2, next_frame,
    preface, request_frame, whole, with_trailers,
};
use crate::wire::{Io, ask, get, post, read_message};
use crate::world::{Setup, VALUE, World, echo, ok, soon};

/// Every version on each side, agreed on by ALPN for itself: the host sees the value, the program
/// its token, in fields and body; and the record says what each side spoke.
#[tokio::test]
async fn every_pair_of_versions_works() {
    let mut world = World::new(&Setup::default());
    let token = world.token.to_string();
    let body = format!("<{token}>");
    for offered in [&["h2"][..], &["h2", "http/1.1"], &["http/1.1"], &[]] {
        let tls = world.authority.acceptor_offering(&["api.test"], offered);
        let two = offered.contains(&"h2");
        let (port, two_host, one_host) = if two && offered.len() == 1 {
            let host = host2(tls, echo2).await;
            (host.port, Some(host), None)
        } else if two {
            let host = crate::world::either(tls).await;
            (host, None, None)
        } else {
            let host = crate::world::upstream(Some(tls), echo()).await;
            (host.port, None, Some(host))
        };
        // A program with HTTP/1.1.
        let request = format!(
            "POST /p?k={token} HTTP/1.1\r\nhost: api.test\r\nx-key: {token}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        let reply = world.ask("api.test", port, request).await;
        assert_eq!(reply.status(), 200, "{offered:?}: {}", reply.text());
        assert!(reply.field("x-echo").unwrap().contains(&token));
        assert!(!reply.head.contains("CANARY") && reply.text().contains(&token));
        // One with HTTP/2.
        let mut client = client2(&world, "api.test", port).await;
        let request = Request::post(format!("https://api.test:{port}/p?k={token}"))
            .header("x-key", &token)
            .header("cookie", "a=1")
            .header("cookie", format!("b={token}"))
            .body(whole(body.clone()))
            .unwrap();
        let reply = ask2(&mut client, request).await.unwrap();
        assert_eq!(reply.status, 200, "{offered:?}: {}", reply.text());
        let echoed = format!("{:?}{}", reply.headers, reply.text());
        assert!(
            echoed.contains(&token) && !echoed.contains("CANARY"),
            "{echoed}"
        );
        for (program, agreed) in [
            ("1.1", if offered == ["h2"] { "2" } else { "1.1" }),
            ("2", if two { "2" } else { "1.1" }),
        ] {
            let decision = world.decision().await;
            let client = (decision.client_tls, decision.client_http);
            assert_eq!(client, (Some("1.3"), Some(program)), "{offered:?}");
            let host = (decision.host_tls, decision.host_http);
            assert_eq!(host, (Some("1.3"), Some(agreed)), "{offered:?}");
        }
        if let Some(host) = two_host {
            let seen = host.last();
            assert_eq!(
                seen.uri.to_string(),
                format!("https://api.test:{port}/p?k=CANARY-v4lue%2Fwith%2Bodd%3Dchars%260001")
            );
            assert_eq!(seen.headers["x-key"], VALUE);
            assert_eq!(seen.headers["cookie"], format!("a=1; b={VALUE}"));
            assert_eq!(seen.headers.get("host"), None);
            assert_eq!(seen.body, format!("<{VALUE}>"));
            assert_eq!(host.connections(), 2, "one refused by ALPN, one for all");
        }
        if let Some(host) = one_host {
            let seen = host.last();
            assert_eq!(seen.field("host"), Some(&*format!("api.test:{port}")));
            assert_eq!(seen.field("x-key"), Some(VALUE));
            assert_eq!(seen.field("cookie"), Some(&*format!("a=1; b={VALUE}")));
            assert_eq!(
                seen.field("content-length"),
                Some(&*format!("{}", VALUE.len() + 2))
            );
            assert_eq!(seen.text(), format!("<{VALUE}>"));
        }
    }
    world.finish();
}

/// Fields behind the body, which gRPC needs, are substituted and sealed like those before it.
#[tokio::test]
async fn trailers_pass_both_ways_under_the_seal() {
    let world = World::new(&Setup::default());
    let token = world.token.to_string();
    let tls = world.authority.acceptor_offering(&["api.test"], &["h2"]);
    let host = host2(tls, |_| {
        let fields = [
            ("grpc-status", "0".to_owned()),
            ("grpc-message", VALUE.to_owned()),
        ];
        let fields = [&fields[..], &[(VALUE_NAME, "1".to_owned())]].concat();
        Response::builder()
            .header("trailer", "grpc-status, grpc-message")
            .body(with_trailers("done", &fields))
            .unwrap()
    })
    .await;
    let mut client = client2(&world, "api.test", host.port).await;
    let request = Request::post("https://api.test/x")
        .header("te", "trailers")
        .body(with_trailers("up", &[("x-sum", token.clone())]))
        .unwrap();
    let reply = ask2(&mut client, request).await.unwrap();
    let seen = host.last();
    assert_eq!(seen.headers["te"], "trailers");
    assert_eq!(seen.trailers.unwrap()["x-sum"], VALUE);
    let trailers = reply.trailers.unwrap();
    assert_eq!(
        (reply.body.as_ref(), &trailers["grpc-status"]),
        (&b"done"[..], &"0".parse().unwrap())
    );
    assert_eq!(trailers["grpc-message"], token);
    // To a program with HTTP/1.1 that says it takes them.
    let mut stream = world.secure("api.test", host.port).await;
    let request = get("api.test", "/", "te: trailers\r\nconnection: te\r\n");
    crate::wire::send(&mut stream, request).await;
    let mut raw = Vec::new();
    while !raw.ends_with(b"\r\n\r\n") || !raw.windows(3).any(|w| w == b"0\r\n") {
        use tokio::io::AsyncReadExt;
        assert!(soon(stream.read_buf(&mut raw)).await.unwrap() > 0);
    }
    let raw = String::from_utf8(raw).unwrap();
    assert!(raw.contains(&format!("grpc-message: {token}\r\n")), "{raw}");
    assert!(!raw.contains("CANARY"));
    world.finish();
}

/// A spelling of no value, only a name that is not one either.
const VALUE_NAME: &str = "x-other";

/// Every way to name another host in HTTP/2, on a connection to an allowed one: refused stream by
/// stream, never sent, and the connection goes on.
#[tokio::test]
async fn a_stream_must_name_the_host_connected_to() {
    let mut world = World::new(&Setup::default());
    let tls = world
        .authority
        .acceptor_offering(&["api.test", "other.test"], &["h2"]);
    let host = host2(tls, echo2).await;
    let mut io = raw2(&world, host.port).await;
    let token = world.token.to_string();
    let key = ("x-key", token.as_bytes());
    type Fields<'a> = &'a [(&'a str, &'a [u8])];
    let corpus: [(&str, Fields); 12] = [
        ("host_mismatch", &[(":authority", b"other.test"), key]),
        ("host_mismatch", &[(":authority", b"evil.example"), key]),
        ("host_mismatch", &[("host", b"other.test"), key]),
        (
            "host_mismatch",
            &[(":authority", b"other.test"), ("host", b"api.test")],
        ),
        ("host_mismatch", &[(":authority", b"u@api.test"), key]),
        ("host_mismatch", &[(":authority", b"api.test:1"), key]),
        ("host_mismatch", &[(":scheme", b"http"), key]),
        (
            "host_mismatch",
            &[(":authority", b""), ("host", b"other.test")],
        ),
        ("host_count", &[(":authority", b""), key]),
        (
            "host_count",
            &[("host", b"api.test"), ("host", b"api.test")],
        ),
        ("framing", &[(":path", b"*"), key]),
        (
            "connect_inside",
            &[(":method", b"CONNECT"), (":scheme", b""), (":path", b"")],
        ),
    ];
    for (index, (rule, fields)) in corpus.iter().enumerate() {
        let stream = u32::try_from(index).unwrap() * 2 + 1;
        io.write_all(&request_frame(stream, true, fields))
            .await
            .unwrap();
        io.flush().await.unwrap();
        let fate = fate(&mut io, stream).await;
        assert!(fate.is_refused_by(rule), "{rule} {fields:?}: {fate:?}");
        assert_eq!(world.decision().await.reason, *rule);
    }
    assert_eq!(host.connections(), 0);
    // An absolute path and an extended CONNECT are refused here or reset by the parser.
    for (index, fields) in [
        &[(":path", &b"https://evil.example/"[..]), key][..],
        &[(":path", b"evil.example:443"), key],
        &[(":method", b"CONNECT"), (":protocol", b"websocket")],
    ]
    .into_iter()
    .enumerate()
    {
        let stream = u32::try_from(index).unwrap() * 2 + 101;
        io.write_all(&request_frame(stream, true, fields))
            .await
            .unwrap();
        io.flush().await.unwrap();
        let fate = fate(&mut io, stream).await;
        let refused = fate.is_refused_by("framing") || fate.is_refused_by("connect_inside");
        assert!(refused || fate == Fate::Reset, "{fields:?}: {fate:?}");
    }
    assert_eq!(host.connections(), 0);
    // The same connection still serves what is in order.
    io.write_all(&request_frame(201, true, &[("host", b"api.test"), key]))
        .await
        .unwrap();
    io.flush().await.unwrap();
    assert!(matches!(fate(&mut io, 201).await, Fate::Answered(_)));
    assert_eq!(host.last().headers["x-key"], VALUE);
    world.finish();
}

/// What would be framing or another request once written down in HTTP/1.1: the host sees at most
/// the one request that was meant, and no field of the hidden one.
#[tokio::test]
async fn nothing_is_smuggled_by_a_downgrade() {
    let world = World::new(&Setup::default());
    let token = world.token;
    let hidden = format!("GET /smuggled HTTP/1.1\r\nhost: api.test\r\nx-key: {token}\r\n\r\n");
    let split = format!("x\r\n\r\n{hidden}");
    let chunked = format!("0\r\n\r\n{hidden}");
    let heads: [&[(&str, &[u8])]; 12] = [
        &[("x-a", split.as_bytes())],
        &[("x-a", b"b\nx-b: c")],
        &[("x-a", b"b\rx-b: c")],
        &[("x-a", b"b\0c")],
        &[("x-a: b\r\nx-c", b"d")],
        &[(":path", b"/ HTTP/1.1\r\nx-a: b")],
        &[(":method", b"POST / HTTP/1.1\r\nx: ")],
        &[(":authority", b"api.test\r\nx-a: b")],
        &[("transfer-encoding", b"chunked")],
        &[("connection", b"keep-alive")],
        &[("content-length", b"0"), ("content-length", b"9")],
        &[("content-length", b"+5")],
    ];
    for fields in heads {
        let host = world.host(echo()).await;
        let mut io = raw2(&world, host.port).await;
        io.write_all(&request_frame(1, false, fields))
            .await
            .unwrap();
        io.write_all(&frame(crate::two::DATA, 1, 1, chunked.as_bytes()))
            .await
            .unwrap();
        io.flush().await.unwrap();
        let fate = fate(&mut io, 1).await;
        let refused = matches!(fate, Fate::Reset | Fate::Ended) || fate.is_refused_by("framing");
        assert!(refused, "{fields:?}: {fate:?}");
        assert_eq!(host.count(), 0, "{fields:?}");
    }
    // Lengths that lie: the stream is reset, and the host never has a complete request.
    for length in [&b"3"[..], b"99999"] {
        let host = world.host(echo()).await;
        let mut io = raw2(&world, host.port).await;
        io.write_all(&request_frame(1, false, &[("content-length", length)]))
            .await
            .unwrap();
        io.write_all(&frame(crate::two::DATA, 1, 1, chunked.as_bytes()))
            .await
            .unwrap();
        io.flush().await.unwrap();
        let fate = fate(&mut io, 1).await;
        let refused =
            matches!(fate, Fate::Reset | Fate::Ended) || fate.is_refused_by("request_body");
        assert!(refused, "{length:?}: {fate:?}");
        assert_eq!(host.count(), 0);
    }
    // A body that looks like a request is a body.
    let host = world.host(echo()).await;
    let mut client = client2(&world, "api.test", host.port).await;
    let request = Request::post("https://api.test/front")
        .body(whole(hidden))
        .unwrap();
    ask2(&mut client, request).await.unwrap();
    assert_eq!(host.heads().len(), 1);
    assert!(host.last().text().starts_with("GET /smuggled"));
    world.finish();
}

/// A token cut over DATA frames at every place is one token.
#[tokio::test]
async fn a_token_cut_over_frames_is_one_token() {
    let world = World::new(&Setup::default());
    let host = world.host(Arc::new(|_| ok(b"done"))).await;
    let token = world.token.to_string();
    let mut io = raw2(&world, host.port).await;
    for (index, cut) in (0..token.len()).step_by(3).enumerate() {
        let stream = u32::try_from(index).unwrap() * 2 + 1;
        let (one, two) = token.split_at(cut);
        let frames = [
            request_frame(stream, false, &[]),
            frame(crate::two::DATA, 0, stream, one.as_bytes()),
            frame(crate::two::DATA, 1, stream, two.as_bytes()),
        ];
        for bytes in frames {
            io.write_all(&bytes).await.unwrap();
            io.flush().await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(fate(&mut io, stream).await, Fate::Answered("done".into()));
        assert_eq!(host.last().text(), VALUE, "{cut}");
    }
    world.finish();
}

/// Requests that are opened and reset at once end their connection before they become work, and
/// leave the sandbox's other connections alone; the number of streams is announced.
#[tokio::test]
async fn rapid_reset_ends_the_connection() {
    let world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    let mut io = raw2(&world, host.port).await;
    let settings = loop {
        let frame = soon(next_frame(&mut io)).await.unwrap();
        if frame.kind == SETTINGS && frame.flags == 0 {
            break frame.payload;
        }
    };
    let streams_max = settings.chunks(6).find(|pair| pair[..2] == [0, 3]).unwrap();
    assert_eq!(streams_max[2..], 128_u32.to_be_bytes());
    let mut flood = Vec::new();
    for index in 0..2000 {
        let stream = index * 2 + 1;
        flood.extend(request_frame(stream, true, &[]));
        flood.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    }
    let _ = io.write_all(&flood).await;
    let _ = io.flush().await;
    let ended = async {
        while let Some(frame) = next_frame(&mut io).await {
            if frame.kind == GOAWAY {
                return;
            }
        }
    };
    soon(ended).await;
    assert!(
        host.count() < 200,
        "{} requests reached the host",
        host.count()
    );
    assert_eq!(
        world
            .ask("api.test", host.port, get("api.test", "/", ""))
            .await
            .status(),
        200
    );
    world.finish();
}

/// A head that is never finished, and one that is too long.
#[tokio::test]
async fn heads_over_http2_are_bounded() {
    let world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    let many: Vec<(String, Vec<u8>)> = (0..200).map(|i| (format!("x-{i}"), vec![b'1'])).collect();
    let many: Vec<(&str, &[u8])> = many
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_slice()))
        .collect();
    let mut io = raw2(&world, host.port).await;
    io.write_all(&request_frame(1, true, &many)).await.unwrap();
    io.flush().await.unwrap();
    assert!(fate(&mut io, 1).await.is_refused_by("framing"));
    // Continuations without end.
    let mut io = raw2(&world, host.port).await;
    let piece = crate::two::block(&[("x-long", &[b'a'; 8000])]);
    let opening = crate::two::block(&[(":method", b"GET")]);
    let _ = io
        .write_all(&frame(crate::two::HEADERS, 0, 1, &opening))
        .await;
    for _ in 0..2000 {
        if io.write_all(&frame(9, 0, 1, &piece)).await.is_err() || io.flush().await.is_err() {
            break;
        }
    }
    assert!(matches!(fate(&mut io, 1).await, Fate::Ended | Fate::Reset));
    assert_eq!(host.count(), 0);
    world.finish();
}

/// Without TLS there is no HTTP/2: neither by prior knowledge nor by an upgrade.
#[tokio::test]
async fn http2_in_clear_is_refused() {
    let world = World::new(&Setup::default());
    let host = crate::world::upstream(None, echo()).await;
    let mut io: Io = Box::new(world.connect("plain.test", host.port).await);
    let _ = io.write_all(&preface()).await;
    let mut rest = Vec::new();
    let _ = soon(tokio::io::AsyncReadExt::read_to_end(&mut io, &mut rest)).await;
    assert!(!rest.starts_with(b"HTTP/1.1 2"));
    let fields =
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n";
    let mut io: Io = Box::new(world.connect("plain.test", host.port).await);
    let reply = ask(&mut io, get("plain.test", "/", fields)).await;
    assert_eq!(reply.rule(), "upgrade_unsupported");
    assert_eq!(host.count(), 0);
    world.finish();
}

/// An answer that comes before the upload is complete reaches the program, in both versions, and
/// so does a refusal.
#[tokio::test]
async fn an_early_answer_reaches_the_program() {
    const LENGTH: usize = 6 * 1024 * 1024;
    let world = World::new(&Setup::default());
    let tls = world.authority.acceptor(&["api.test"]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream: Io = Box::new(tls.accept(stream).await.unwrap());
            let mut head = Vec::new();
            while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                let read = tokio::io::AsyncReadExt::read_buf(&mut stream, &mut head).await;
                if !read.is_ok_and(|size| size > 0) {
                    break;
                }
            }
            if head.is_empty() {
                continue;
            }
            let answer =
                "HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 5\r\n\r\nlarge";
            crate::wire::send(&mut stream, answer).await;
            // The rest of the upload is not read.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    for (host, status) in [("api.test", 413), ("other.test", 403)] {
        let mut stream = world.secure("api.test", port).await;
        let head = format!("PUT / HTTP/1.1\r\nhost: {host}\r\ncontent-length: {LENGTH}\r\n\r\n");
        crate::wire::send(&mut stream, head).await;
        let block = vec![b'x'; 64 * 1024];
        let (mut read, mut write) = tokio::io::split(stream);
        let upload = tokio::spawn(async move {
            for _ in 0..LENGTH / block.len() {
                if write.write_all(&block).await.is_err() {
                    break;
                }
            }
            write
        });
        let mut seen = Vec::new();
        let wanted = format!("HTTP/1.1 {status} ");
        while !seen.starts_with(wanted.as_bytes()) || !seen.windows(2).any(|w| w == b"\r\n") {
            let size = soon(tokio::io::AsyncReadExt::read_buf(&mut read, &mut seen))
                .await
                .unwrap();
            assert!(size > 0, "{}", String::from_utf8_lossy(&seen));
        }
        upload.abort();
    }
    let mut client = client2(&world, "api.test", port).await;
    let request = Request::put("https://api.test/")
        .body(whole(vec![b'x'; LENGTH]))
        .unwrap();
    let reply = ask2(&mut client, request).await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (413, "large"));
    world.finish();
}

/// Answers without a body have none in HTTP/2 either, and keep their length.
#[tokio::test]
async fn answers_without_body_are_the_same_in_http2() {
    let world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|message| match message.head.split(' ').next() {
            Some("HEAD") => b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n".to_vec(),
            Some("DELETE") => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
            _ => [
                b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n",
                &ok(b"last")[..],
            ]
            .concat(),
        }))
        .await;
    let mut client = client2(&world, "api.test", host.port).await;
    for (method, status, length) in [
        (Method::HEAD, 200, Some("99")),
        (Method::DELETE, 204, None),
        (Method::GET, 200, None),
    ] {
        let request = Request::builder().method(&method).uri("https://api.test/");
        let reply = ask2(&mut client, request.body(whole("")).unwrap())
            .await
            .unwrap();
        assert_eq!(reply.status, status, "{method}");
        assert_eq!(reply.body.is_empty(), method != Method::GET, "{method}");
        if let Some(length) = length {
            assert_eq!(reply.headers["content-length"], length);
        }
    }
    // Events of a stream come one by one.
    assert_eq!(host.count(), 3);
    world.finish();
}

/// What can't be said about a host is said in words, in HTTP/2 as well.
#[tokio::test]
async fn failures_of_a_host_are_told_in_words() {
    let world = World::new(&Setup::default());
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = gone.local_addr().unwrap().port();
    drop(gone);
    let mut client = client2(&world, "api.test", port).await;
    let reply = ask2(&mut client, get2("https://api.test/")).await.unwrap();
    assert_eq!(
        (reply.status, reply.rule().as_str()),
        (502, "host_unreachable")
    );
    for bytes in [
        &b""[..],
        b"HTTP/1.1 abc\r\n\r\n",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx y\r\n",
    ] {
        let host = world.host(Arc::new(move |_| bytes.to_vec())).await;
        let mut stream = world.secure("api.test", host.port).await;
        if bytes.is_empty() {
            // A host that takes the request and goes.
            let tls = world.authority.acceptor(&["api.test"]);
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            tokio::spawn(async move {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream: Io = Box::new(tls.accept(stream).await.unwrap());
                read_message(&mut stream, &mut Vec::new(), false).await;
            });
            stream = world.secure("api.test", port).await;
        }
        let request = match bytes.ends_with(b"y\r\n") {
            // Ends in the middle of its head.
            true => continue,
            false => post("api.test", "text/plain", "x"),
        };
        let reply = ask(&mut stream, request).await;
        assert_eq!(
            (reply.status(), reply.rule().as_str()),
            (502, "upstream_failed"),
            "{bytes:?}"
        );
    }
    world.finish();
}

async fn raw2(world: &World, port: u16) -> Io {
    let stream = world.connect("api.test", port).await;
    let mut io: Io = Box::new(
        world
            .tls_offering(stream, "api.test", &["h2"])
            .await
            .unwrap(),
    );
    crate::wire::send(&mut io, preface()).await;
    io
}
