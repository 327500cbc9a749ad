//! Rows 1 and 2: a host that says back what it was sent, in every place and spelling.

use std::io::Write;

use super::attack;
use crate::cli::proxy::check::client::Trouble;
use crate::cli::proxy::check::message::{Message, has};
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass, skipped};
use crate::cli::proxy::check::spellings::{self, Spelling};
use crate::cli::proxy::check::upstream::Reply;
use crate::cli::proxy::check::world::{World, key};

type Found = Result<Outcome, Trouble>;
type Family = fn(&[u8]) -> Vec<Spelling>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!("1", "echo in a header", header),
        attack!("1", "echo in a body of known length", body),
        attack!("1", "echo in a chunked body, at every split", |w| splits(
            w,
            "text/plain"
        )),
        attack!("1", "echo in server-sent events, at every split", |w| {
            splits(w, "text/event-stream")
        }),
        attack!("1", "echo in a trailer", trailer),
        attack!("1", "echo in an error answer", error),
        attack!("2", "echo in base64, three alignments", |w| family(
            w,
            spellings::base64
        )),
        attack!("2", "echo in hex", |w| family(w, spellings::hex)),
        attack!("2", "echo in percent-encoding", |w| family(
            w,
            spellings::percent
        )),
        attack!("2", "echo in JSON", |w| family(w, spellings::json)),
        attack!("2", "echo in JSON, every mark as \\u", |w| family(
            w,
            spellings::json_marks
        )),
        attack!("2", "echo in JSON, every character as \\u", |w| family(
            w,
            spellings::json_every
        )),
        attack!("2", "echo in gzip", |w| coding(w, "gzip")),
        attack!("2", "echo in deflate", |w| coding(w, "deflate")),
        attack!("2", "echo in br", |w| coding(w, "br")),
        attack!("2", "echo in zstd", |w| coding(w, "zstd")),
        attack!("2", "echo in gzip inside gzip", |w| coding(w, "gzip, gzip")),
        attack!("2", "echo in an unknown content encoding", unknown_coding),
    ]
}

/// Sends the token and judges what comes back by `leaked`.
async fn judge(
    world: &World,
    script: impl Fn(&Message) -> Reply + Send + Sync + 'static,
    leaked: impl FnOnce(&Message) -> Option<String>,
) -> Found {
    let host = world.host(script).await?;
    let answer = world
        .ask(&world.kit.api, host.port, world.request("/", ""))
        .await;
    if !host.got(world.kit.primary.real()) {
        return skipped("the value did not reach the host, which had nothing to say back");
    }
    match answer {
        Ok(answer) => match leaked(&answer) {
            Some(how) => fail(how),
            None if answer.whole => pass(format!("status {}, without the value", answer.status())),
            None => pass(format!("status {}, broken off", answer.status())),
        },
        Err(trouble) if trouble.is_refusal() => pass(format!("no answer: {trouble}")),
        Err(trouble) => Err(trouble),
    }
}

fn raw(world: &World) -> impl FnOnce(&Message) -> Option<String> + '_ {
    |answer| {
        let found = world.value_in(&answer.raw).or(world.value_in(&answer.body));
        found.map(|_| "the client got the value".to_owned())
    }
}

async fn header(world: &World) -> Found {
    let script = |message: &Message| {
        let key = String::from_utf8_lossy(&key(message)).into_owned();
        let fields =
            format!("x-echo: {key}\r\nset-cookie: s={key}; path=/\r\nlink: </?k={key}>\r\n");
        Reply::raw(format!(
            "HTTP/1.1 200 {key}\r\n{fields}content-length: 0\r\n\r\n"
        ))
    };
    judge(world, script, raw(world)).await
}

async fn body(world: &World) -> Found {
    let script = |message: &Message| {
        let said = [b"{\"you said\":\"", &key(message)[..], b"\"}"].concat();
        Reply::ok("content-type: application/json\r\n", &said)
    };
    judge(world, script, raw(world)).await
}

async fn error(world: &World) -> Found {
    let script = |message: &Message| {
        let key = key(message);
        let head = format!("HTTP/1.1 401 No\r\ncontent-length: {}\r\n\r\n", key.len());
        Reply::raw([head.as_bytes(), &key].concat())
    };
    judge(world, script, raw(world)).await
}

async fn trailer(world: &World) -> Found {
    let script = |message: &Message| {
        let key = String::from_utf8_lossy(&key(message)).into_owned();
        let trailers = format!("x-echo: {key}\r\n");
        Reply::chunked("trailer: x-echo\r\n", &[b"body".to_vec()], &trailers)
    };
    judge(world, script, raw(world)).await
}

/// Every cut of `text` in two, each part sent on its own.
fn cut(text: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    for at in 0..=text.len() {
        let (left, right) = text.split_at(at);
        parts.push([b"\ndata: ", left].concat());
        parts.push([right, b"\n"].concat());
    }
    // And byte by byte.
    parts.extend(text.iter().map(|byte| vec![*byte]));
    parts
}

async fn splits(world: &World, kind: &'static str) -> Found {
    let fields = format!("content-type: {kind}\r\n");
    judge(
        world,
        move |message| Reply::chunked(&fields, &cut(&key(message)), ""),
        raw(world),
    )
    .await
}

async fn family(world: &World, family: Family) -> Found {
    let script = move |message: &Message| {
        let parts = family(&key(message))
            .iter()
            .flat_map(|one| cut(&one.sent))
            .collect::<Vec<_>>();
        Reply::chunked("content-type: text/plain\r\n", &parts, "")
    };
    let leaked = |answer: &Message| {
        let spellings = family(world.kit.primary.real());
        let found = spellings.iter().find(|one| has(&answer.body, &one.core));
        found.map(|one| format!("the client got the value as {}", one.name))
    };
    judge(world, script, leaked).await
}

async fn coding(world: &World, coding: &'static str) -> Found {
    let script = move |message: &Message| {
        let text = [
            &b"before ".repeat(40)[..],
            &key(message),
            &b" after".repeat(40),
        ]
        .concat();
        let bytes = coding
            .split(", ")
            .fold(text, |text, one| encode(one, &text));
        let mut parts: Vec<Vec<u8>> = Vec::new();
        parts.extend(bytes.chunks(3).map(<[u8]>::to_vec));
        let fields = format!("content-type: text/plain\r\ncontent-encoding: {coding}\r\n");
        Reply::chunked(&fields, &parts, "")
    };
    let leaked = |answer: &Message| {
        let named = answer
            .field("content-encoding")
            .unwrap_or("identity")
            .to_owned();
        let body = named
            .rsplit(',')
            .fold(answer.body.clone(), |body, one| decode(one.trim(), &body));
        let found = world.value_in(&body).or(world.value_in(&answer.body));
        found.map(|_| format!("the client got the value in {coding}"))
    };
    judge(world, script, leaked).await
}

async fn unknown_coding(world: &World) -> Found {
    const MASK: u8 = 0x20;
    let script = |message: &Message| {
        let body: Vec<u8> = key(message).iter().map(|byte| byte ^ MASK).collect();
        Reply::ok("content-encoding: x-mask\r\n", &body)
    };
    let leaked = |answer: &Message| {
        let body: Vec<u8> = answer.body.iter().map(|byte| byte ^ MASK).collect();
        let found = world.value_in(&body);
        found.map(|_| "the client got the value in an encoding the proxy can't read".to_owned())
    };
    judge(world, script, leaked).await
}

fn encode(coding: &str, text: &[u8]) -> Vec<u8> {
    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};
    // Writing into memory does not fail; an empty body would show in the answer.
    match coding {
        "gzip" => {
            let mut out = GzEncoder::new(Vec::new(), Compression::default());
            let _ = out.write_all(text);
            out.finish().unwrap_or_default()
        }
        "deflate" => {
            let mut out = ZlibEncoder::new(Vec::new(), Compression::default());
            let _ = out.write_all(text);
            out.finish().unwrap_or_default()
        }
        "br" => {
            let mut out = Vec::new();
            let _ = brotli::CompressorWriter::new(&mut out, 4096, 5, 22).write_all(text);
            out
        }
        "zstd" => zstd::bulk::compress(text, 3).unwrap_or_default(),
        _ => text.to_vec(),
    }
}

/// What a client would read; what can't be decoded stays as it is.
fn decode(coding: &str, body: &[u8]) -> Vec<u8> {
    use std::io::Read;
    const BYTES_MAX: u64 = 1024 * 1024;
    let mut text = Vec::new();
    let mut read = |reader: &mut dyn Read| drop(reader.take(BYTES_MAX).read_to_end(&mut text));
    match coding {
        "gzip" => read(&mut flate2::read::GzDecoder::new(body)),
        "deflate" => read(&mut flate2::read::ZlibDecoder::new(body)),
        "br" => read(&mut brotli::Decompressor::new(body, 4096)),
        "zstd" => {
            if let Ok(mut reader) = zstd::Decoder::new(body) {
                read(&mut reader);
            }
        }
        _ => text.extend_from_slice(body),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the suite can read what it writes, so that a leak in an encoding is seen.
    #[test]
    fn encodings_are_read_back() {
        let text = b"a text of some length, a text of some length".repeat(20);
        for coding in ["gzip", "deflate", "br", "zstd"] {
            let coded = encode(coding, &text);
            assert!(coded.len() < text.len() / 4, "{coding} changes nothing");
            assert!(decode(coding, &coded) == text, "{coding}");
        }
    }
}
