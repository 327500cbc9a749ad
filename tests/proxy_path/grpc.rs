//! gRPC bodies end to end: strings swapped inside messages, every length repaired. The framing is
//! the same over each version of HTTP.

use std::sync::Arc;

use crate::wire::{Message, ask, get, send};
use crate::world::{Setup, VALUE, World};

fn field(number: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = payload.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend(payload);
    out
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    out.extend((message.len() as u32).to_be_bytes());
    out.extend(message);
    out
}

/// `{1: 7, 2: {3: {1: "Bearer <secret>"}, 4: padding}}`, twice.
fn body(secret: &str) -> Vec<u8> {
    let inner = field(3, &field(1, format!("Bearer {secret}").as_bytes()));
    let padding = field(4, "p".repeat(70).as_bytes());
    let message = [vec![1 << 3, 7], field(2, &[inner, padding].concat())].concat();
    [framed(&message), framed(b""), framed(&message)].concat()
}

fn request(body: &[u8], size: usize) -> Vec<u8> {
    let mut request = b"POST /pkg.Service/Call HTTP/1.1\r\nhost: api.test\r\n\
        content-type: application/grpc+proto\r\ngrpc-accept-encoding: gzip,snappy\r\n\
        transfer-encoding: chunked\r\n\r\n"
        .to_vec();
    for chunk in body.chunks(size) {
        request.extend(format!("{:x}\r\n", chunk.len()).bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    request
}

/// The host reads whole messages with values, the sandbox whole messages with tokens, however
/// they are cut.
#[tokio::test]
async fn messages_are_swapped_with_their_lengths() {
    let world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|message: &Message| {
            let length = message.body.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\n\
                 content-length: {length}\r\n\r\n"
            );
            [head.as_bytes(), &message.body].concat()
        }))
        .await;
    let sealed = body(&world.token.to_string());
    let mut stream = world.secure("api.test", host.port).await;
    for size in [1, 3, 5, 43, 1000] {
        let reply = ask(&mut stream, request(&sealed, size)).await;
        let sent = host.last();
        assert_eq!(sent.body, body(VALUE), "{size}");
        assert_eq!(sent.field("grpc-accept-encoding"), Some("identity,gzip"));
        assert_eq!(reply.body, sealed, "{size}");
    }
    world.finish();
}

/// What is compressed by something we can't open is refused in both directions.
#[tokio::test]
async fn messages_that_cant_be_opened_are_refused() {
    let world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|_| {
            b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\n\
              grpc-encoding: snappy\r\ncontent-length: 1\r\n\r\nx"
                .to_vec()
        }))
        .await;
    let body = body(&world.token.to_string());
    let mut packed = request(&body, 1000);
    let accept = packed.windows(5).position(|window| window == b"grpc-");
    let accept = accept.unwrap();
    let name = "grpc-accept-encoding: gzip,snappy".len();
    packed.splice(accept..accept + name, *b"grpc-encoding: snappy");
    let reply = world.ask("api.test", host.port, packed).await;
    assert_eq!(
        (reply.status(), reply.rule().as_str()),
        (415, "request_encoding")
    );
    assert_eq!(host.count(), 0);
    let reply = world.ask("api.test", host.port, request(&body, 1000)).await;
    assert_eq!(
        (reply.status(), reply.rule().as_str()),
        (502, "response_encoding")
    );
    assert_eq!(host.count(), 1);
    // Broken off in the middle of a message: the host must not take it for complete.
    let mut stream = world.secure("api.test", host.port).await;
    send(&mut stream, request(&body[..body.len() - 1], 1000)).await;
    let reply = crate::wire::receive(&mut stream).await;
    assert_eq!(reply.status(), 502);
    assert_eq!(host.count(), 1);
    world.finish();
}

/// Goal: a stored text that a host serves as gRPC can't tell the first bytes of a value by ending a
/// message in it: it is a text unless messages were asked for. An answer of two types is refused.
#[tokio::test]
async fn messages_are_read_only_where_they_were_asked_for() {
    let world = World::new(&Setup::default());
    let head = [&[0, 0, 0, 0, 9][..], b"keep"].concat();
    let text = [&head[..], VALUE.as_bytes()].concat();
    let host = world
        .host(Arc::new(move |message: &Message| {
            let types = match message.head.contains("/two") {
                true => "application/grpc\r\ncontent-type: text/plain",
                false => "application/grpc",
            };
            let length = text.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: {types}\r\ncontent-length: {length}\r\n\r\n"
            );
            [head.as_bytes(), &text].concat()
        }))
        .await;
    let as_grpc = "content-type: application/grpc\r\n";
    for fields in ["", as_grpc] {
        let request = get("api.test", "/text", fields);
        let reply = world.ask("api.test", host.port, request).await;
        let sealed = [&head[..], world.token.to_string().as_bytes()].concat();
        assert_eq!(reply.body, sealed, "{fields}");
    }
    let request = get("api.test", "/two", "");
    let reply = world.ask("api.test", host.port, request).await;
    assert_eq!(
        (reply.status(), reply.rule().as_str()),
        (502, "response_type")
    );
    world.finish();
}
