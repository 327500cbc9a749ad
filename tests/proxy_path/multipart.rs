//! Uploads in parts: each value as its part needs it, and none that ends its part.

use std::sync::Arc;

use crate::wire::{ask, post};
use crate::world::{Setup, World, ok};

const TYPE: &str = "multipart/form-data; boundary=----form42";

fn body(token: &str, fields: &str) -> String {
    format!(
        "------form42\r\nContent-Disposition: form-data; name=\"json\"\r\n\
         Content-Type: application/json\r\n\r\n{{\"key\": \"{token}\"}}\r\n\
         ------form42\r\nContent-Disposition: form-data; name=\"{fields}\"\r\n\r\n{token}\r\n\
         ------form42\r\nContent-Disposition: form-data; name=\"form\"\r\n\
         Content-Type: application/x-www-form-urlencoded\r\n\r\nkey={token}&x=1\r\n\
         ------form42--\r\n"
    )
}

/// A value with every awkward character, in parts of three types, at many sizes of chunk.
#[tokio::test]
async fn each_part_gets_the_value_as_it_needs_it() {
    let value = "CANARY \"q\" & \\ v\u{e9}\r\n--0001";
    let world = World::new(&Setup {
        value,
        ..Setup::default()
    });
    let host = world.host(Arc::new(|_| ok(b"stored"))).await;
    let token = world.token.to_string();
    let sealed = body(&token, "plain");
    let real = body(value, "plain")
        .replacen(value, r#"CANARY \"q\" & \\ vé\r\n--0001"#, 1)
        .replace(
            &format!("key={value}"),
            "key=CANARY%20%22q%22%20%26%20%5C%20v%C3%A9%0D%0A--0001",
        );
    let mut stream = world.secure("api.test", host.port).await;
    let reply = ask(&mut stream, post("api.test", TYPE, &sealed)).await;
    assert_eq!(reply.text(), "stored");
    assert_eq!(host.last().text(), real);
    let length = real.len().to_string();
    assert_eq!(host.last().field("content-length"), Some(length.as_str()));
    for size in [1, 2, 9, 44, 300] {
        let head = format!("POST / HTTP/1.1\r\nhost: api.test\r\ncontent-type: {TYPE}\r\n");
        let mut request = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
        for chunk in sealed.as_bytes().chunks(size) {
            request.extend(format!("{:x}\r\n", chunk.len()).bytes());
            request.extend(chunk);
            request.extend(b"\r\n");
        }
        request.extend(b"0\r\n\r\n");
        ask(&mut stream, request).await;
        assert_eq!(host.last().text(), real, "{size}");
    }
    world.finish();
}

/// A value that would end its part, or the name it is put into, never reaches the host.
#[tokio::test]
async fn a_value_that_would_change_the_parts_is_refused() {
    for (value, fields) in [
        ("CANARY\r\n------form42\r\n\r\ninjected", "plain"),
        ("CANARY\"; filename=\"injected", "$"),
    ] {
        let mut world = World::new(&Setup {
            value,
            ..Setup::default()
        });
        let host = world.host(Arc::new(|_| ok(b"stored"))).await;
        let token = world.token.to_string();
        let sealed = body(&token, &fields.replace('$', &token));
        let reply = world
            .ask("api.test", host.port, post("api.test", TYPE, &sealed))
            .await;
        assert_eq!(
            (reply.status(), reply.rule().as_str()),
            (403, "multipart_value")
        );
        assert_eq!(host.count(), 0);
        assert_eq!(world.decision().await.reason, "multipart_value");
        world.finish();
    }
}
