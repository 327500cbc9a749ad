//! Lengths that must stay lengths: hosts that want one, and bodies that keep theirs.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use opencomputer::proxy::{Placement, PlacementText};
use tokio::io::AsyncWriteExt;

use crate::two::{ask2, client2, echo2, host2, whole};
use crate::wire::{Message, receive, send};
use crate::world::{Answer, Setup, VALUE, World, ok, soon};

/// A host that takes no body without a length.
fn strict_host() -> Answer {
    Arc::new(|message: &Message| match message.field("content-length") {
        Some(_) => ok(b"stored"),
        None => b"HTTP/1.1 411 Length Required\r\ncontent-length: 0\r\n\r\n".to_vec(),
    })
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(text).unwrap();
    packer.finish().unwrap()
}

/// Text of `size` bytes that does not compress much, a token after every 5000.
fn text(token: &str, size: usize) -> String {
    let (mut text, mut state) = (String::new(), 0x9e37_79b9_7f4a_7c15_u64);
    while text.len() < size {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        text += &format!("{state:016x}");
        if text.len() % 5008 == 0 {
            text += token;
        }
    }
    text
}

/// Contents of unnamed temporary files of this process that hold `mark`.
fn unnamed_files_with(mark: &str) -> Vec<Vec<u8>> {
    let folder = std::env::temp_dir();
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let found = fds.filter_map(|fd| {
        let fd = fd.ok()?.path();
        let name = std::fs::read_link(&fd).ok()?;
        if !name.starts_with(&folder) || !name.to_string_lossy().ends_with(" (deleted)") {
            return None;
        }
        let mut bytes = Vec::new();
        std::fs::File::open(&fd)
            .ok()?
            .read_to_end(&mut bytes)
            .ok()?;
        let holds = bytes.windows(mark.len()).any(|w| w == mark.as_bytes());
        holds.then_some(bytes)
    });
    found.collect()
}

/// Goal: a host that answers 411 to a long upload gets the next one with its exact length, in
/// every kind of content; what waits in a file meanwhile holds the token and no value.
#[tokio::test]
async fn a_host_that_wants_lengths_gets_them() {
    const SIZE: usize = 1_300_000;
    let mut world = World::new(&Setup::default());
    let host = world.host(strict_host()).await;
    let token = world.token.to_string();
    let plain = text(&token, SIZE);
    let swapped = plain.replace(&token, VALUE);
    let part = |text: &str| {
        format!("--x\r\ncontent-disposition: form-data; name=\"t\"\r\n\r\n{text}\r\n--x--\r\n")
    };
    let kinds = [
        (
            "content-type: text/plain",
            plain.clone().into_bytes(),
            swapped.clone(),
        ),
        (
            "content-type: multipart/form-data; boundary=x",
            part(&plain).into(),
            part(&swapped),
        ),
        (
            "content-encoding: gzip",
            gzip(&text(&token, 3 * SIZE).into_bytes()),
            text(VALUE, 0),
        ),
    ];
    let mut first = true;
    for (field, body, arrives) in kinds {
        assert!(body.len() > 1024 * 1024, "{}", body.len());
        let head = format!(
            "PUT / HTTP/1.1\r\nhost: api.test\r\n{field}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        if std::mem::take(&mut first) {
            let reply = world.ask("api.test", host.port, [head.as_bytes(), &body].concat());
            assert_eq!(reply.await.status(), 411);
            assert_eq!(world.decision().await.bytes_up, body.len() as u64);
        }
        let mut stream = world.secure("api.test", host.port).await;
        send(&mut stream, head).await;
        let (one, two) = body.split_at(body.len() / 2);
        stream.write_all(one).await.unwrap();
        stream.flush().await.unwrap();
        if !field.contains("gzip") {
            let files = soon(async {
                loop {
                    let files = unnamed_files_with(&token);
                    if !files.is_empty() {
                        return files;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            for file in files.await {
                assert!(!file.windows(6).any(|window| window == b"CANARY"));
            }
        }
        stream.write_all(two).await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!(receive(&mut stream).await.text(), "stored", "{field}");
        let sent = host.last();
        assert_eq!(sent.field("transfer-encoding"), None);
        let length = sent.body.len().to_string();
        assert_eq!(sent.field("content-length"), Some(&*length));
        if field.contains("gzip") {
            let mut text = Vec::new();
            let mut unpacked = flate2::read::MultiGzDecoder::new(&*sent.body);
            unpacked.read_to_end(&mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains(VALUE) && !text.contains(&token));
        } else {
            assert!(sent.text() == arrives, "{field}");
        }
        drop(stream);
        let decision = world.decision().await;
        assert_eq!(decision.bytes_up, body.len() as u64);
        assert_eq!(decision.secrets.len(), 1);
    }
    assert!(
        unnamed_files_with(&token).is_empty(),
        "a file outlives its request"
    );
    world.finish();
}

/// Goal: what is replaced is counted once, though the body is gone through twice: a secret that may
/// be replaced twice is, in the head and in the body, and the length fits.
#[tokio::test]
async fn counting_a_length_uses_up_no_replacements() {
    let placement = PlacementText {
        max_per_request: Some(3),
        ..PlacementText::default()
    };
    let world = World::new(&Setup {
        placement: Placement::new(&placement).unwrap(),
        ..Setup::default()
    });
    let host = world.host(strict_host()).await;
    let token = world.token.to_string();
    let body = format!("{token}{}{token}{token}", "x".repeat(1024 * 1024));
    let request = format!(
        "PUT / HTTP/1.1\r\nhost: api.test\r\nx-key: {token}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    for status in [411, 200] {
        let reply = world.ask("api.test", host.port, &request).await;
        assert_eq!(reply.status(), status);
        let sent = host.last();
        assert_eq!(sent.field("x-key"), Some(VALUE));
        assert_eq!(sent.text().matches(VALUE).count(), 2);
        assert!(sent.body.ends_with(token.as_bytes()));
    }
    world.finish();
}

/// Goal: an upload that breaks off while it is set down reaches nobody and leaves no file; the
/// connection to the host serves the next request.
#[tokio::test]
async fn an_upload_that_breaks_off_is_not_sent() {
    let world = World::new(&Setup::default());
    let host = world.host(strict_host()).await;
    let token = world.token.to_string();
    let body = format!("{token}{}", "x".repeat(2 * 1024 * 1024));
    let request = format!(
        "PUT / HTTP/1.1\r\nhost: api.test\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(
        world.ask("api.test", host.port, &request).await.status(),
        411
    );
    let mut stream = world.secure("api.test", host.port).await;
    send(&mut stream, &request.as_bytes()[..request.len() - 9]).await;
    stream.shutdown().await.unwrap();
    drop(stream);
    assert_eq!(
        world.ask("api.test", host.port, &request).await.status(),
        200
    );
    assert_eq!(host.count(), 2);
    soon(async {
        while !unnamed_files_with(&token).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    world.finish();
}

/// Goal: a body that passes unchanged keeps the length it came with, whatever its size, in each
/// version.
#[tokio::test]
async fn unchanged_bodies_keep_their_length() {
    let world = World::new(&Setup {
        inspect_all: true,
        ..Setup::default()
    });
    let body = vec![b'x'; 3 * 1024 * 1024];
    let host = world.host(Arc::new(|_| ok(b"stored"))).await;
    let head = format!(
        "PUT / HTTP/1.1\r\nhost: plain.test\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), &body].concat();
    assert_eq!(
        world.ask("plain.test", host.port, request).await.text(),
        "stored"
    );
    let length = body.len().to_string();
    assert_eq!(host.last().field("content-length"), Some(&*length));
    let two = host2(
        world.authority.acceptor_offering(&["plain.test"], &["h2"]),
        echo2,
    )
    .await;
    for port in [host.port, two.port] {
        let mut sender = client2(&world, "plain.test", port).await;
        let request = Request::put("https://plain.test/")
            .body(whole(body.clone()))
            .unwrap();
        assert_eq!(ask2(&mut sender, request).await.unwrap().status, 200);
    }
    assert_eq!(host.last().field("content-length"), Some(&*length));
    assert_eq!(two.last().headers["content-length"], *length);
    world.finish();
}
