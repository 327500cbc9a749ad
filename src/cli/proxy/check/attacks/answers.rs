//! Rows 3, 12 and 23: ranges, interim answers, redirects.

use super::attack;
use crate::cli::proxy::check::client::{Trouble, get, send};
use crate::cli::proxy::check::kit::OTHER;
use crate::cli::proxy::check::message::{Message, Reader, has};
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass, skipped};
use crate::cli::proxy::check::upstream::Reply;
use crate::cli::proxy::check::world::{World, key};

type Found = Result<Outcome, Trouble>;

/// What stands before the value on the page that is asked for in parts.
const PAGE_HEAD: &[u8] = b"page:";

pub fn attacks() -> Vec<Check> {
    vec![
        attack!("3", "an echo asked for byte by byte with Range", range),
        attack!("3", "a part of an echo nobody asked for", part),
        attack!(
            "3",
            "an echo in parts with boundaries (multipart/byteranges)",
            parts
        ),
        attack!(
            "12",
            "interim answers before each of five pipelined ones",
            interim
        ),
        attack!("23", "a redirect to another host", redirect),
    ]
}

fn page(message: &Message) -> Vec<u8> {
    [PAGE_HEAD, &key(message)].concat()
}

/// A page, or the part of it that `Range` asks for.
fn ranged(message: &Message) -> Reply {
    let page = page(message);
    let first = message.field("range").and_then(|range| {
        let (first, _) = range.strip_prefix("bytes=")?.split_once('-')?;
        first.parse::<usize>().ok()
    });
    match first.and_then(|first| page.get(first..=first).map(|part| (first, part))) {
        Some((first, part)) => {
            let head = format!(
                "HTTP/1.1 206 Part\r\ncontent-range: bytes {first}-{first}/{}\r\ncontent-length: 1\r\n\r\n",
                page.len()
            );
            Reply::raw([head.as_bytes(), part].concat())
        }
        None => Reply::ok("accept-ranges: bytes\r\n", &page),
    }
}

async fn range(world: &World) -> Found {
    let host = world.host(ranged).await?;
    let size = PAGE_HEAD.len() + world.kit.primary.real().len();
    let mut joined = Vec::new();
    for at in 0..size {
        let request = world.request("/", &format!("range: bytes={at}-{at}\r\n"));
        let answer = match world.ask(&world.kit.api, host.port, request).await {
            Ok(answer) => answer,
            Err(trouble) if trouble.is_refusal() => return pass(format!("refused: {trouble}")),
            Err(trouble) => return Err(trouble),
        };
        if world.value_in(&answer.raw).is_some() {
            return fail("the whole value came back");
        }
        match answer.status() {
            206 => joined.extend_from_slice(&answer.body),
            // Whoever answers the first so answers all so.
            status => return pass(format!("status {status} instead of a part")),
        }
    }
    match has(&joined, world.kit.primary.real()) {
        true => fail("the joined answers are the value"),
        false => pass("the joined answers are not the value"),
    }
}

async fn part(world: &World) -> Found {
    let value = world.kit.primary.real();
    let (left, right) = value.split_at(value.len() / 2);
    let host = world
        .host(|message: &Message| {
            let page = key(message);
            let (left, right) = page.split_at(page.len() / 2);
            let (range, part) = match message.target() {
                "/left" => ("0-1", left),
                _ => ("2-3", right),
            };
            let length = part.len();
            let head = format!(
                "HTTP/1.1 206 Part\r\ncontent-range: bytes {range}/99\r\ncontent-length: {length}\r\n\r\n"
            );
            Reply::raw([head.as_bytes(), part].concat())
        })
        .await?;
    let mut got = [false; 2];
    for (index, (path, half)) in [("/left", left), ("/right", right)].into_iter().enumerate() {
        let request = world.request(path, "");
        if let Ok(answer) = world.ask(&world.kit.api, host.port, request).await {
            got[index] = has(&answer.body, half);
        }
    }
    match (host.got(value), got) {
        (false, _) => skipped("the value did not reach the host"),
        (true, [true, true]) => fail("both halves of the value came back"),
        (true, _) => pass("the halves did not come back"),
    }
}

async fn parts(world: &World) -> Found {
    let value = world.kit.primary.real();
    let (left, right) = value.split_at(value.len() / 2);
    let host = world
        .host(|message: &Message| {
            let page = key(message);
            let (left, right) = page.split_at(page.len() / 2);
            let part = |range, bytes: &[u8]| {
                let head = format!("--cut\r\ncontent-range: bytes {range}/99\r\n\r\n");
                [head.as_bytes(), bytes, b"\r\n"].concat()
            };
            let body = [
                part("0-1", left),
                part("2-3", right),
                b"--cut--\r\n".to_vec(),
            ]
            .concat();
            let head = format!(
                "HTTP/1.1 206 Part\r\ncontent-type: multipart/byteranges; boundary=cut\r\n\
                 content-length: {}\r\n\r\n",
                body.len()
            );
            Reply::raw([head.as_bytes(), &body].concat())
        })
        .await?;
    let request = world.request("/", "range: bytes=0-1,2-3\r\n");
    let answer = world.ask(&world.kit.api, host.port, request).await;
    if !host.got(value) {
        return skipped("the value did not reach the host");
    }
    match answer {
        Ok(answer) if has(&answer.body, left) && has(&answer.body, right) => {
            fail("both halves of the value came back")
        }
        Ok(answer) => pass(format!("status {}, without the halves", answer.status())),
        Err(trouble) if trouble.is_refusal() => pass(format!("no answer: {trouble}")),
        Err(trouble) => Err(trouble),
    }
}

async fn interim(world: &World) -> Found {
    let host = world
        .host(|message: &Message| {
            let path = message.target().to_owned();
            let early = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(2);
            let head = format!("HTTP/1.1 100 Continue\r\n\r\n{early}");
            let mut reply = Reply::ok("", path.as_bytes());
            reply.pieces.insert(0, head.into_bytes());
            reply
        })
        .await?;
    let mut stream = world.secure(&world.kit.api, host.port).await?;
    let all: String = (0..5)
        .map(|i| get(&world.kit.api, &format!("/{i}"), ""))
        .collect();
    send(&mut stream, all.as_bytes()).await?;
    let mut reader = Reader::new();
    for i in 0..5 {
        match reader.message(&mut stream).await {
            Some(answer) if answer.text() == format!("/{i}") => {}
            Some(answer) => {
                return match host.count() > 5 || answer.text().starts_with('/') {
                    true => fail(format!("request {i} got the answer of another")),
                    false => pass(format!(
                        "request {i} was answered with status {}",
                        answer.status()
                    )),
                };
            }
            None => return pass(format!("the connection ended after {i} answers")),
        }
    }
    pass("five answers in order")
}

async fn redirect(world: &World) -> Found {
    let second = world.echo().await?;
    let port = second.port;
    let first = world
        .host(move |_: &Message| {
            let to = format!("https://{OTHER}:{port}/stolen");
            Reply::raw(format!(
                "HTTP/1.1 307 Go\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"
            ))
        })
        .await?;
    let answer = world
        .ask(&world.kit.api, first.port, world.request("/", ""))
        .await?;
    if second.count() > 0 {
        return fail("the proxy followed the redirect itself");
    }
    // The client follows, with its token.
    let token = &world.kit.primary.token;
    let request = get(OTHER, "/stolen", &format!("x-key: {token}\r\n"));
    let _ = world.ask(OTHER, port, request).await;
    match second.got(world.kit.primary.real()) {
        true => fail("the other host got the value when the client followed"),
        false => pass(format!(
            "status {}; the follow-up had no value",
            answer.status()
        )),
    }
}
