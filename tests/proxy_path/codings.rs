//! Compressed bodies, both ways, in every coding and at many sizes of chunk; and bombs.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::wire::{Io, Message, ask, get, read_message, receive, send};
use crate::world::{Answer, Setup, VALUE, World, ok, soon};

const CODINGS: [&str; 7] = [
    "gzip",
    "deflate",
    "br",
    "zstd",
    "gzip, br",
    "zstd, deflate",
    "identity",
];

fn pack(codings: &str, text: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::default();
    codings
        .split(", ")
        .fold(text.to_vec(), |text, coding| match coding {
            "gzip" => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(&text).unwrap();
                encoder.finish().unwrap()
            }
            "deflate" => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(&text).unwrap();
                encoder.finish().unwrap()
            }
            "br" => {
                let mut writer = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
                writer.write_all(&text).unwrap();
                writer.into_inner()
            }
            "zstd" => zstd::encode_all(&text[..], 3).unwrap(),
            _ => text,
        })
}

fn unpack(codings: &str, packed: &[u8]) -> String {
    let text = codings
        .rsplit(", ")
        .fold(packed.to_vec(), |packed, coding| {
            let mut text = Vec::new();
            let packed = &packed[..];
            let read = match coding {
                "gzip" => flate2::read::MultiGzDecoder::new(packed).read_to_end(&mut text),
                "deflate" => flate2::read::ZlibDecoder::new(packed).read_to_end(&mut text),
                "br" => brotli::Decompressor::new(packed, 4096).read_to_end(&mut text),
                "zstd" => zstd::Decoder::new(packed).unwrap().read_to_end(&mut text),
                _ => {
                    text.extend_from_slice(packed);
                    Ok(0)
                }
            };
            read.unwrap();
            text
        });
    String::from_utf8(text).unwrap()
}

/// `body` in chunks of a size.
fn chunked(head: &str, body: &[u8], size: usize) -> Vec<u8> {
    let mut message = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
    for chunk in body.chunks(size) {
        message.extend(format!("{:x}\r\n", chunk.len()).bytes());
        message.extend(chunk);
        message.extend(b"\r\n");
    }
    message.extend(b"0\r\n\r\n");
    message
}

/// Answers with what it was sent and a value, packed and cut as it was sent.
fn echo_packed() -> Answer {
    Arc::new(|message: &Message| {
        let coding = message.field("content-encoding").unwrap_or("identity");
        let size = message.field("x-size").unwrap().parse().unwrap();
        let said = unpack(coding, &message.body);
        let body = pack(
            coding,
            format!("{said}, and {VALUE} again: {VALUE}").as_bytes(),
        );
        let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\n");
        chunked(&head, &body, size)
    })
}

/// Every coding, cut into chunks of many sizes: the host reads values, the sandbox tokens.
#[tokio::test]
async fn every_coding_is_opened_both_ways() {
    let world = World::new(&Setup::default());
    let host = world.host(echo_packed()).await;
    let token = world.token;
    let text = format!("<{token}> {} <{token}>", "lorem ipsum ".repeat(50));
    let mut stream = world.secure("api.test", host.port).await;
    for coding in CODINGS {
        for size in [1, 2, 7, 43, 1000, 100_000] {
            let head = format!(
                "POST / HTTP/1.1\r\nhost: api.test\r\naccept-encoding: {coding}\r\n\
                 content-encoding: {coding}\r\nx-size: {size}\r\n"
            );
            let request = chunked(&head, &pack(coding, text.as_bytes()), size);
            let reply = ask(&mut stream, request).await;
            let sent = unpack(coding, &host.last().body);
            assert_eq!(sent, text.replace(&token.to_string(), VALUE), "{coding}");
            assert_eq!(reply.status(), 200);
            assert_eq!(reply.field("content-encoding"), Some(coding));
            let seen = unpack(coding, &reply.body);
            assert_eq!(
                seen,
                format!("{text}, and {token} again: {token}"),
                "{coding}"
            );
        }
    }
    world.finish();
}

/// Only codings that we open and the program offered are asked for.
#[tokio::test]
async fn codings_are_asked_for_as_offered() {
    let world = World::new(&Setup::default());
    let host = world.host(Arc::new(|_| ok(b"done"))).await;
    let mut stream = world.secure("api.test", host.port).await;
    for (offered, asked) in [
        ("", "identity"),
        (
            "accept-encoding: gzip, deflate, br, zstd, dcb\r\n",
            "gzip, deflate, br, zstd",
        ),
        (
            "accept-encoding: compress\r\naccept-encoding: br;q=0.7, zstd;q=0\r\n",
            "br;q=0.7",
        ),
    ] {
        ask(&mut stream, get("api.test", "/", offered)).await;
        assert_eq!(
            host.last().field("accept-encoding"),
            Some(asked),
            "{offered}"
        );
    }
    world.finish();
}

/// Goal: what is damaged, or goes on behind its end, never looks complete.
#[tokio::test]
async fn damaged_codings_break_the_message() {
    let world = World::new(&Setup::default());
    let host = world
        .host(Arc::new(|message: &Message| {
            let coding = message.field("x-coding").unwrap();
            let mut body = pack(coding, format!("key {VALUE}").as_bytes());
            match message.field("x-damage") {
                Some("short") => body.truncate(body.len() - 1),
                _ => body.extend(VALUE.bytes()),
            }
            let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\n");
            chunked(&head, &body, 5)
        }))
        .await;
    for coding in ["gzip", "deflate", "br", "zstd"] {
        for damage in ["short", "long"] {
            let mut stream = world.secure("api.test", host.port).await;
            let fields = format!("x-coding: {coding}\r\nx-damage: {damage}\r\n");
            send(&mut stream, get("api.test", "/", &fields)).await;
            let mut all = Vec::new();
            let _ = soon(stream.read_to_end(&mut all)).await;
            assert!(
                !all.ends_with(b"0\r\n\r\n"),
                "{coding} {damage} is complete"
            );
            assert!(!String::from_utf8_lossy(&all).contains(VALUE));

            let mut body = pack(coding, world.token.to_string().as_bytes());
            match damage {
                "short" => body.truncate(body.len() - 1),
                _ => body.extend(b"more"),
            }
            let head = format!(
                "POST / HTTP/1.1\r\nhost: api.test\r\ncontent-encoding: {coding}\r\n\
                 content-length: {}\r\n\r\n",
                body.len()
            );
            let count = host.count();
            let request = [head.as_bytes(), &body].concat();
            let reply = world.ask("api.test", host.port, request).await;
            assert_eq!(
                (reply.status(), reply.rule().as_str()),
                (400, "request_body")
            );
            assert_eq!(host.count(), count);
        }
    }
    world.finish();
}

/// Bombs are given up after a thousandfold, in both directions, and recorded as what they are.
#[tokio::test]
async fn bombs_are_given_up() {
    let mut world = World::new(&Setup::default());
    let zeros = vec![0; 48 * 1024 * 1024];
    let bombs: Vec<_> = ["zstd", "br"]
        .map(|coding| (coding, pack(coding, &zeros)))
        .into();
    let answers = bombs.clone();
    let host = world
        .host(Arc::new(move |message: &Message| {
            let coding = message.field("x-coding").unwrap_or_default();
            let (_, body) = answers.iter().find(|(name, _)| *name == coding).unwrap();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: {coding}\r\n");
            chunked(&head, body, 5000)
        }))
        .await;
    for (coding, body) in &bombs {
        let head = format!(
            "POST / HTTP/1.1\r\nhost: api.test\r\ncontent-encoding: {coding}\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), body].concat();
        let reply = world.ask("api.test", host.port, request).await;
        assert_eq!(
            (reply.status(), reply.rule().as_str()),
            (413, "compression_ratio")
        );
        assert_eq!(host.count(), 0);
        assert_eq!(world.decision().await.reason, "compression_ratio");
    }
    for (coding, _) in &bombs {
        let mut stream = world.secure("api.test", host.port).await;
        let fields = format!("x-coding: {coding}\r\n");
        send(&mut stream, get("api.test", "/", &fields)).await;
        let mut all = Vec::new();
        let _ = soon(stream.read_to_end(&mut all)).await;
        assert!(all.len() < 1024 * 1024 && !all.ends_with(b"0\r\n\r\n"));
        drop(stream);
        assert_eq!(world.decision().await.reason, "compression_ratio");
    }
    world.finish();
}

/// Events that a host flushes out of its encoder arrive as they are sent, sealed.
#[tokio::test]
async fn compressed_event_streams_are_not_delayed() {
    for coding in ["gzip", "br", "zstd"] {
        let world = World::new(&Setup::default());
        let tls = world.authority.acceptor(&["api.test"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (go, mut next) = tokio::sync::mpsc::channel::<Vec<u8>>(4);
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream: Io = Box::new(tls.accept(stream).await.unwrap());
            read_message(&mut stream, &mut Vec::new(), false)
                .await
                .unwrap();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                 content-encoding: {coding}\r\n\r\n"
            );
            send(&mut stream, head).await;
            while let Some(event) = next.recv().await {
                send(&mut stream, event).await;
            }
        });
        let mut encoder: Box<dyn Flushed> = match coding {
            "gzip" => Box::new(flate2::write::GzEncoder::new(
                Vec::new(),
                flate2::Compression::default(),
            )),
            "br" => Box::new(brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22)),
            _ => Box::new(zstd::Encoder::new(Vec::new(), 3).unwrap()),
        };
        let mut stream = world.secure("api.test", port).await;
        let fields = format!("accept-encoding: {coding}\r\n");
        send(&mut stream, get("api.test", "/", &fields)).await;
        let (mut seen, mut expected) = (Vec::new(), String::new());
        for event in [
            "data: one\n\n",
            &format!("data: {VALUE}\n\n"),
            "data: end\n\n",
        ] {
            encoder.write_all(event.as_bytes()).unwrap();
            encoder.flush().unwrap();
            go.send(encoder.taken()).await.unwrap();
            expected += &event.replace(VALUE, &world.token.to_string());
            let mut block = [0; 4096];
            // As much as was sent is readable before more comes.
            while readable(coding, &seen) != expected {
                let size = soon(stream.read(&mut block)).await.unwrap();
                assert!(size > 0, "{coding}");
                seen.extend_from_slice(&block[..size]);
            }
        }
        world.finish();
    }
}

trait Flushed: Write + Send {
    fn taken(&mut self) -> Vec<u8>;
}
impl Flushed for flate2::write::GzEncoder<Vec<u8>> {
    fn taken(&mut self) -> Vec<u8> {
        std::mem::take(self.get_mut())
    }
}
impl Flushed for brotli::CompressorWriter<Vec<u8>> {
    fn taken(&mut self) -> Vec<u8> {
        std::mem::take(self.get_mut())
    }
}
impl Flushed for zstd::Encoder<'static, Vec<u8>> {
    fn taken(&mut self) -> Vec<u8> {
        std::mem::take(self.get_mut())
    }
}

/// The text of an unfinished chunked message, as far as it can be read.
fn readable(coding: &str, seen: &[u8]) -> String {
    let Some(at) = seen.windows(4).position(|window| window == b"\r\n\r\n") else {
        return String::new();
    };
    let (mut rest, mut packed) = (&seen[at + 4..], Vec::new());
    while let Some(at) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16).unwrap();
        let Some(chunk) = rest.get(at + 2..at + 2 + size) else {
            break;
        };
        packed.extend_from_slice(chunk);
        rest = rest.get(at + 4 + size..).unwrap_or_default();
    }
    let packed = &packed[..];
    let mut reader: Box<dyn Read> = match coding {
        "gzip" => Box::new(flate2::read::MultiGzDecoder::new(packed)),
        "br" => Box::new(brotli::Decompressor::new(packed, 4096)),
        _ => Box::new(zstd::Decoder::new(packed).unwrap()),
    };
    let (mut text, mut byte) = (Vec::new(), [0]);
    while reader.read(&mut byte).is_ok_and(|size| size == 1) {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// Goal: one sandbox's compressed bodies, seconds of work in kilobytes, do not hold up another's
/// small requests. Method: the requests all end while the bodies are still under way; how long
/// they took, with and without, is printed (`--nocapture`, with `--release` for real figures).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_requests_pass_another_sandboxs_bombs() {
    const BOMBS: usize = 32;
    const REQUESTS: usize = 100;
    let (hostile, world) = (World::new(&Setup::default()), World::new(&Setup::default()));
    let (sink, host) = (
        hostile.host(Arc::new(|_| ok(b"done"))).await,
        world.host(Arc::new(|_| ok(b"done"))).await,
    );
    // Just below the limit: noise every so often in a hundred and twenty-eight mebibytes.
    let text: Vec<u8> = (0..128 * 1024 * 1024u32)
        .map(|at| match at % 65_536 {
            0..32 => (at / 65_536).wrapping_mul(2_654_435_761).to_le_bytes()[(at % 4) as usize],
            _ => 0,
        })
        .collect();
    let bomb = pack("gzip", &text);
    assert!(text.len() / bomb.len() > 500);
    drop(text);
    let measure = async |stream: &mut Io| {
        let mut times = Vec::new();
        for _ in 0..REQUESTS {
            let began = Instant::now();
            let reply = ask(stream, get("api.test", "/", "")).await;
            assert_eq!(reply.text(), "done");
            times.push(began.elapsed());
        }
        times.sort();
        times
    };
    let mut stream = world.secure("api.test", host.port).await;
    let alone = measure(&mut stream).await;
    let mut uploads = Vec::new();
    for _ in 0..BOMBS {
        let mut upload = hostile.secure("api.test", sink.port).await;
        let head = "POST / HTTP/1.1\r\nhost: api.test\r\ncontent-encoding: gzip\r\n";
        let request = chunked(head, &bomb, 8192);
        uploads.push(tokio::spawn(async move {
            send(&mut upload, request).await;
            receive(&mut upload).await
        }));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let beside = measure(&mut stream).await;
    let at = |times: &[Duration], share: usize| times[(times.len() - 1) * share / 100];
    for (name, times) in [("alone", &alone), ("beside bombs", &beside)] {
        println!("{name}: p50 {:?}, p99 {:?}", at(times, 50), at(times, 99));
    }
    assert!(
        sink.count() < BOMBS,
        "the bombs were over before the requests"
    );
    for upload in uploads {
        upload.abort();
    }
    hostile.finish();
    world.finish();
}
