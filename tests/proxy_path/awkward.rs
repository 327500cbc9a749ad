//! Messages at the edges of the protocols: cut short, answered early, streamed both ways at once.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use crate::two::{
    DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, SETTINGS, TestBody, ask2, block, client2,
    frame, get2, next_frame, whole,
};
use crate::wire::{Io, get, read_message, send};
use crate::world::{Setup, VALUE, World, ok, soon};

/// A host on loopback whose connections are all served by `serve`.
async fn host<F>(tls: TlsAcceptor, serve: impl Fn(Io) -> F + Send + 'static) -> u16
where
    F: Future<Output = Option<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = tls.accept(stream).await {
                tokio::spawn(serve(Box::new(stream)));
            }
        }
    });
    port
}

/// A host that answers every request with `bytes` and ends in an orderly way.
async fn host_that_says(world: &World, bytes: Vec<u8>) -> u16 {
    let tls = world.authority.acceptor(&["api.test", "plain.test"]);
    let bytes = Arc::new(bytes);
    host(tls, move |mut io| {
        let bytes = bytes.clone();
        async move {
            read_message(&mut io, &mut Vec::new(), false).await?;
            io.write_all(&bytes).await.ok()?;
            io.shutdown().await.ok()
        }
    })
    .await
}

/// A host over HTTP/2 that answers every request with what `frames` makes for its stream.
async fn host2_that_says(world: &World, frames: fn(u32) -> Vec<u8>) -> u16 {
    let names = ["api.test", "plain.test"];
    let tls = world.authority.acceptor_offering(&names, &["h2"]);
    host(tls, move |mut io| async move {
        io.read_exact(&mut [0; 24]).await.ok()?;
        io.write_all(&frame(SETTINGS, 0, 0, &[])).await.ok()?;
        io.flush().await.ok()?;
        while let Some(seen) = next_frame(&mut io).await {
            if seen.kind == SETTINGS && seen.flags == 0 {
                io.write_all(&frame(SETTINGS, 1, 0, &[])).await.ok()?;
            }
            if seen.kind == HEADERS {
                io.write_all(&frames(seen.stream)).await.ok()?;
            }
            io.flush().await.ok()?;
        }
        Some(())
    })
    .await
}

/// Whether a raw answer in HTTP/1.1 is whole.
fn is_whole(raw: &[u8]) -> bool {
    let Some(head) = raw.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let (head, body) = raw.split_at(head + 4);
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    match length {
        Some(length) => length.parse() == Ok(body.len()),
        None => head.contains("chunked") && body.ends_with(b"0\r\n\r\n"),
    }
}

/// Goal: an answer that its host did not finish never looks complete, whatever each side speaks, however
/// long it is, and whether it is looked into or passed on.
#[tokio::test]
async fn an_answer_cut_short_never_looks_complete() {
    let world = World::new(&Setup {
        inspect_all: true,
        ..Setup::default()
    });
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n").into_bytes();
    let long = vec![b'x'; 70_000];
    let cases = [
        [head("content-length: 10"), b"abcd".to_vec()].concat(),
        [head("content-length: 100000"), long.clone()].concat(),
        [
            head("transfer-encoding: chunked"),
            b"5\r\nhello\r\n".to_vec(),
        ]
        .concat(),
        [head("transfer-encoding: chunked"), b"5\r\nhel".to_vec()].concat(),
        [
            head("transfer-encoding: chunked"),
            b"11170\r\n".to_vec(),
            long,
            b"\r\n0\r\n".to_vec(),
        ]
        .concat(),
        [
            head("transfer-encoding: chunked"),
            b"5\r\nhello\r\nzz\r\n".to_vec(),
        ]
        .concat(),
    ];
    let mut ports = Vec::new();
    for case in cases {
        let shown = String::from_utf8_lossy(&case[..case.len().min(90)]).into_owned();
        ports.push((host_that_says(&world, case).await, shown));
    }
    let cut = |stream| {
        let head = block(&[(":status", b"200"), ("content-length", b"10")]);
        let head = frame(HEADERS, END_HEADERS, stream, &head);
        [head, frame(DATA, END_STREAM, stream, b"abcd")].concat()
    };
    ports.push((host2_that_says(&world, cut).await, "a short stream".into()));
    let reset = |stream| {
        let head = frame(HEADERS, END_HEADERS, stream, &block(&[(":status", b"200")]));
        let reset = frame(RST_STREAM, 0, stream, &2_u32.to_be_bytes());
        [head, frame(DATA, 0, stream, b"abcd"), reset].concat()
    };
    ports.push((
        host2_that_says(&world, reset).await,
        "a reset stream".into(),
    ));
    for (port, case) in ports {
        for name in ["api.test", "plain.test"] {
            let mut stream = world.secure(name, port).await;
            send(&mut stream, get(name, "/", "connection: close\r\n")).await;
            let mut raw = Vec::new();
            let _ = soon(stream.read_to_end(&mut raw)).await;
            let refused = raw.starts_with(b"HTTP/1.1 502 ");
            assert!(
                refused || !is_whole(&raw),
                "{name} {case}: {}",
                String::from_utf8_lossy(&raw)
            );
            let mut client = client2(&world, name, port).await;
            let reply = ask2(&mut client, get2(&format!("https://{name}/"))).await;
            let refused = reply.as_ref().is_ok_and(|reply| reply.status == 502);
            assert!(refused || reply.is_err(), "{name} {case}");
        }
    }
    world.finish();
}

/// Goal: fields behind a body in HTTP/1.1 are substituted on their way up and sealed on their way
/// down, like those before it.
#[tokio::test]
async fn trailers_in_http1_are_under_the_seal() {
    let world = World::new(&Setup::default());
    let (raw, mut requests) = mpsc::channel(4);
    let tls = world.authority.acceptor(&["api.test"]);
    let port = host(tls, move |mut io| {
        let raw = raw.clone();
        async move {
            let mut seen = Vec::new();
            while !seen.windows(9).any(|window| window == b"x-sum: CA")
                || !seen.ends_with(b"\r\n\r\n")
            {
                if io.read_buf(&mut seen).await.ok()? == 0 {
                    break;
                }
            }
            raw.send(String::from_utf8(seen).unwrap()).await.ok()?;
            let answer = format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                 4\r\ndone\r\n0\r\nx-sum: {VALUE}\r\n\r\n"
            );
            io.write_all(answer.as_bytes()).await.ok()?;
            io.flush().await.ok()
        }
    })
    .await;
    let token = world.token.to_string();
    let mut stream = world.secure("api.test", port).await;
    let request = format!(
        "POST / HTTP/1.1\r\nhost: api.test\r\nte: trailers\r\nconnection: te\r\ntrailer: x-sum\r\n\
         transfer-encoding: chunked\r\n\r\n2\r\nup\r\n0\r\nx-sum: {token}\r\n\r\n"
    );
    send(&mut stream, request).await;
    let request = soon(requests.recv()).await.unwrap();
    assert!(
        request.ends_with(&format!("0\r\nx-sum: {VALUE}\r\n\r\n")),
        "{request}"
    );
    let mut reply = Vec::new();
    while !reply.windows(5).any(|window| window == b"0\r\nx-") || !reply.ends_with(b"\r\n\r\n") {
        assert!(
            soon(stream.read_buf(&mut reply)).await.unwrap() > 0,
            "{reply:?}"
        );
    }
    let reply = String::from_utf8(reply).unwrap();
    assert!(
        reply.contains(&format!("\r\nx-sum: {token}\r\n")),
        "{reply}"
    );
    world.finish();
}

/// A gRPC message with one text (field 1) of less than 128 bytes.
fn message(text: &str) -> Bytes {
    let length = u8::try_from(text.len()).unwrap();
    let head = [0, 0, 0, 0, length + 2, 0x0a, length];
    Bytes::from([&head, text.as_bytes()].concat())
}

/// Goal: a stream of messages both ways is a conversation: each is passed on before the next is sent.
#[tokio::test]
async fn a_stream_of_messages_is_a_conversation() {
    let world = World::new(&Setup::default());
    let tls = world.authority.acceptor_offering(&["api.test"], &["h2"]);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let all = heard.clone();
    let port = host(tls, move |io| {
        let heard = all.clone();
        async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let heard = heard.clone();
                async move {
                    // Each message that comes goes back as it came.
                    let body = request.into_body().map_frame(move |frame| {
                        if let Some(data) = frame.data_ref() {
                            heard.lock().unwrap().extend_from_slice(data);
                        }
                        frame
                    });
                    let answer = Response::builder().header("content-type", "application/grpc");
                    Ok::<_, Infallible>(answer.body(body).unwrap())
                }
            });
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(io), service)
                .await
                .ok()
        }
    })
    .await;
    let mut client = client2(&world, "api.test", port).await;
    let (say, said) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let body: TestBody = BodyExt::boxed(StreamBody::new(ReceiverStream::new(said)));
    let request = Request::post("https://api.test/pkg.Chat/Talk")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap();
    let answered = soon(client.send_request(request)).await.unwrap();
    assert_eq!(answered.status(), 200);
    let mut answers = answered.into_body();
    for round in 0..5 {
        let text = format!("round-{round} {}", world.token);
        say.send(Ok(Frame::data(message(&text)))).await.unwrap();
        let mut answer = Vec::new();
        while answer.len() < message(&text).len() {
            let frame = soon(answers.frame()).await.unwrap().unwrap();
            answer.extend_from_slice(frame.data_ref().unwrap());
        }
        assert_eq!(answer, message(&text));
        let heard = heard.lock().unwrap().clone();
        assert!(heard.ends_with(&message(&format!("round-{round} {VALUE}"))));
    }
    drop(say);
    assert!(
        soon(answers.frame())
            .await
            .is_none_or(|frame| frame.is_ok())
    );
    world.finish();
}

/// Goal: requests sent behind an upload that was answered early are answered in their order, each by
/// its own answer; what is left of the upload is none of them.
#[tokio::test]
async fn requests_behind_an_answered_upload_are_themselves() {
    let world = World::new(&Setup::default());
    let tls = world.authority.acceptor(&["api.test"]);
    let port = host(tls, |mut io| async move {
        let mut ahead = Vec::new();
        loop {
            let message = read_message(&mut io, &mut ahead, true).await?;
            let path = message.head.split(' ').nth(1)?.to_owned();
            io.write_all(&ok(path.as_bytes())).await.ok()?;
            io.flush().await.ok()?;
            if message.head.starts_with("POST") {
                // Of its body it wants nothing.
                return io.shutdown().await.ok();
            }
        }
    })
    .await;
    let mut stream = world.secure("api.test", port).await;
    // The body reads as a request of its own.
    let hidden = get("api.test", "/hidden", "");
    let body = hidden.repeat(20_000 / hidden.len());
    let head = "POST /upload HTTP/1.1\r\nhost: api.test\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = format!("{:x}\r\n{body}\r\n", body.len());
    send(&mut stream, format!("{head}{chunk}")).await;
    let rest = format!("{chunk}0\r\n\r\n");
    let mut ahead = Vec::new();
    let reply = soon(read_message(&mut stream, &mut ahead, false))
        .await
        .unwrap();
    assert!(matches!(reply.status(), 200 | 502), "{reply:?}");
    let next: String = (0..3)
        .map(|i| get("api.test", &format!("/{i}"), ""))
        .collect();
    send(&mut stream, format!("{rest}{next}")).await;
    for i in 0..3 {
        // Either the connection ended with the upload, or it goes on in order.
        let Some(reply) = soon(read_message(&mut stream, &mut ahead, false)).await else {
            assert_eq!(i, 0, "it ended between requests");
            break;
        };
        assert_eq!(reply.text(), format!("/{i}"));
    }
    world.finish();
}

/// Goal: however many interim answers a host sends, the answer is the one that follows them.
#[tokio::test]
async fn a_flood_of_interim_answers_is_followed_by_the_answer() {
    let world = World::new(&Setup::default());
    let hint = format!(
        "HTTP/1.1 103 Early Hints\r\nlink: <{}>\r\n\r\n",
        "x".repeat(1000)
    );
    let flood = [hint.repeat(3000).into_bytes(), ok(b"last")].concat();
    let port = host_that_says(&world, flood).await;
    let reply = world.ask("api.test", port, get("api.test", "/", "")).await;
    assert_eq!((reply.status(), reply.text().as_str()), (200, "last"));
    world.finish();
}

/// Goal: a program over HTTP/2 that promises another length than it sends gets nothing through to a host
/// that speaks HTTP/1.1, and its connection carries the next request.
#[tokio::test]
async fn a_length_that_is_not_kept_reaches_no_host() {
    let world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|message| ok(message.head.as_bytes())))
        .await;
    let mut client = client2(&world, "api.test", host.port).await;
    for (length, body) in [("10", "short"), ("2", "too long"), ("0", "x")] {
        let request = Request::post("https://api.test/promised")
            .header("content-length", length)
            .body(raw_body(body))
            .unwrap();
        let reply = ask2(&mut client, request).await;
        let refused = reply.as_ref().is_ok_and(|reply| reply.status >= 400);
        assert!(refused || reply.is_err(), "{length} {body}");
        client = client2(&world, "api.test", host.port).await;
    }
    let heads = host.heads();
    assert!(
        heads.iter().all(|head| !head.contains("/promised")),
        "{heads:?}"
    );
    let request = Request::post("https://api.test/next")
        .body(whole("fine"))
        .unwrap();
    assert_eq!(ask2(&mut client, request).await.unwrap().status, 200);
    assert_eq!(host.last().text(), "fine");
    world.finish();
}

/// A body that says nothing of its length.
fn raw_body(text: &str) -> TestBody {
    let frame = Ok::<_, Infallible>(Frame::data(Bytes::from(text.to_owned())));
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter([frame])))
}
