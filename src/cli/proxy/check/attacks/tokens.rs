//! Rows 21 and 29: tokens that are disguised, cut, or far back.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::attack;
use crate::cli::proxy::check::client::{Trouble, get, post, send};
use crate::cli::proxy::check::kit::PLAIN;
use crate::cli::proxy::check::message::{Reader, has};
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass, skipped};
use crate::cli::proxy::check::upstream::Reply;
use crate::cli::proxy::check::world::World;

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!(
            "21",
            "the token disguised, to hosts with and without the secret",
            disguised
        ),
        attack!("21", "the token cut by chunks and packets", cut),
        attack!("29", "the token around 64 KiB and 1 MiB", far),
        attack!(
            "29",
            "the token in a trailer and a chunk extension",
            trailer
        ),
        attack!("29", "the token in a gzip body", gzip),
    ]
}

/// Bytes of a value that, alone at a host, tell of a half replacement.
const HALF: usize = 12;

/// Whether a part of the value is there without the whole.
fn is_half(world: &World, bytes: &[u8]) -> bool {
    let value = world.kit.primary.real();
    let parts = [
        value.get(..HALF),
        value.get(value.len().saturating_sub(HALF)..),
    ];
    !has(bytes, value) && parts.into_iter().flatten().any(|part| has(bytes, part))
}

fn disguises(token: &str) -> Vec<(&'static str, String)> {
    let (head, tail) = token.split_at(token.len() / 2);
    let percent: String = token.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let unicode: String = token
        .chars()
        .map(|c| format!("\\u{:04x}", u32::from(c)))
        .collect();
    vec![
        ("upper case", token.to_ascii_uppercase()),
        ("percent", percent),
        (
            "one percent",
            format!(
                "%{:02x}{}",
                token.as_bytes().first().unwrap_or(&0),
                token.get(1..).unwrap_or_default()
            ),
        ),
        ("base64", STANDARD.encode(token)),
        ("JSON \\u", unicode),
        ("doubled", format!("{head}{token}{tail}")),
        (
            "short",
            token
                .get(..token.len().saturating_sub(1))
                .unwrap_or_default()
                .to_owned(),
        ),
        ("long", format!("{token}0")),
        ("a blank inside", format!("{head} {tail}")),
        ("zero-width inside", format!("{head}\u{200b}{tail}")),
        ("reversed", token.chars().rev().collect()),
    ]
}

async fn disguised(world: &World) -> Found {
    let mut replaced = Vec::new();
    for (what, text) in disguises(&world.kit.primary.token) {
        for name in [world.kit.api.as_str(), PLAIN] {
            let host = world.echo().await?;
            let path = format!("/?k={}", text.replace([' ', '\u{200b}'], "+"));
            let body = format!("{{\"k\":\"{text}\"}}");
            let json = format!("content-type: application/json\r\nx-key: {text}\r\n");
            let json = json.replace('\u{200b}', "");
            let _ = world.ask(name, host.port, get(name, &path, "")).await;
            let answer = world
                .ask(name, host.port, post(name, &json, body.as_bytes()))
                .await;
            let (got, half) = host.look(|tap| {
                let got = tap
                    .requests
                    .iter()
                    .any(|one| world.value_in(&one.raw).is_some());
                let half = tap.requests.iter().any(|one| is_half(world, &one.raw));
                (got, half)
            });
            if half {
                return fail(format!("{what}: half replaced"));
            }
            if got && name == PLAIN {
                return fail(format!("{what}: the value went to {PLAIN}"));
            }
            if got && !replaced.contains(&what) {
                replaced.push(what);
            }
            if answer.is_ok_and(|answer| world.value_in(&answer.raw).is_some()) {
                return fail(format!("{what}: the client got the value"));
            }
        }
    }
    pass(format!(
        "harmless at both; replaced for its host: {}",
        replaced.join(", ")
    ))
}

async fn cut(world: &World) -> Found {
    let api = world.kit.api.as_str();
    let token = world.kit.primary.token.as_bytes();
    let host = world.host(|_| Reply::ok("", b"fine")).await?;
    for at in 1..token.len() {
        let (left, right) = token.split_at(at);
        let mut stream = world.secure(api, host.port).await?;
        let head = format!(
            "POST /{at} HTTP/1.1\r\nhost: {api}\r\ncontent-type: text/plain\r\n\
             transfer-encoding: chunked\r\n\r\n"
        );
        send(&mut stream, head.as_bytes()).await?;
        for part in [left, right, b""] {
            let size = format!("{:x}\r\n", part.len());
            let chunk = [size.as_bytes(), part, b"\r\n"].concat();
            if send(&mut stream, &chunk).await.is_err() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let answer = Reader::new().message(&mut stream).await;
        let refused = answer.as_ref().is_none_or(|answer| answer.status() >= 400);
        let body = host.last().map(|one| one.body).unwrap_or_default();
        if is_half(world, &body) {
            return fail(format!("cut at {at}: half replaced"));
        }
        if !refused && !has(&body, world.kit.primary.real()) {
            return fail(format!("cut at {at}: neither replaced nor refused"));
        }
    }
    pass(format!("{} cuts: replaced or refused", token.len() - 1))
}

async fn far(world: &World) -> Found {
    let token = world.kit.primary.token.as_bytes();
    let mut refused = 0;
    for limit in [64 * 1024, 1024 * 1024, 3 * 1024 * 1024] {
        for before in [token.len() + 1, token.len(), 20, 1, 0] {
            let start = limit - before;
            let mut body = vec![b'.'; start];
            body.extend_from_slice(token);
            body.extend_from_slice(b"....end");
            let host = world.host(|_| Reply::ok("", b"fine")).await?;
            let request = post(&world.kit.api, "content-type: text/plain\r\n", &body);
            let answer = world.ask(&world.kit.api, host.port, request).await;
            let got = host.last().map(|one| one.body).unwrap_or_default();
            if host.count() == 0 || answer.is_err() {
                refused += 1;
                continue;
            }
            let value = world.kit.primary.real();
            if got.get(start..start + value.len()) != Some(value) || !got.ends_with(b"....end") {
                return fail(format!(
                    "a token {before} bytes before {limit} was not replaced"
                ));
            }
        }
    }
    pass(format!("15 places, {refused} refused, the others replaced"))
}

async fn trailer(world: &World) -> Found {
    let api = world.kit.api.as_str();
    let token = &world.kit.primary.token;
    let head = format!("POST / HTTP/1.1\r\nhost: {api}\r\ntransfer-encoding: chunked\r\n");
    let mut seen = Vec::new();
    for (what, body) in [
        (
            "trailer",
            format!("trailer: x-key\r\n\r\n1\r\na\r\n0\r\nx-key: {token}\r\n\r\n"),
        ),
        (
            "chunk extension",
            format!("\r\n1;k={token}\r\na\r\n0\r\n\r\n"),
        ),
    ] {
        let host = world.echo().await?;
        let answer = world.ask(api, host.port, format!("{head}{body}")).await;
        let all = host.look(|tap| {
            tap.requests
                .iter()
                .flat_map(|one| one.raw.clone())
                .collect::<Vec<_>>()
        });
        if is_half(world, &all) {
            return fail(format!("{what}: half replaced"));
        }
        if answer.is_ok_and(|answer| world.value_in(&answer.raw).is_some()) {
            return fail(format!("{what}: the client got the value"));
        }
        seen.push(
            match (
                has(&all, world.kit.primary.real()),
                has(&all, token.as_bytes()),
            ) {
                (true, _) => format!("{what}: replaced"),
                (false, true) => format!("{what}: passed as it is"),
                (false, false) if all.is_empty() => format!("{what}: refused"),
                (false, false) => format!("{what}: left out"),
            },
        );
    }
    pass(seen.join("; "))
}

async fn gzip(world: &World) -> Found {
    use std::io::{Read, Write};
    let api = world.kit.api.as_str();
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let _ = out.write_all(format!("{{\"k\":\"{}\"}}", world.kit.primary.token).as_bytes());
    let body = out.finish().unwrap_or_default();
    let host = world.host(|_| Reply::ok("", b"fine")).await?;
    let fields = "content-type: application/json\r\ncontent-encoding: gzip\r\n";
    let answer = world.ask(api, host.port, post(api, fields, &body)).await;
    let Some(got) = host.last() else {
        return match answer {
            Ok(answer) => pass(format!("refused with status {}", answer.status())),
            Err(trouble) if trouble.is_refusal() => pass(trouble.to_string()),
            Err(trouble) => Err(trouble),
        };
    };
    let mut text = Vec::new();
    let read = flate2::read::GzDecoder::new(&got.body[..])
        .take(1 << 20)
        .read_to_end(&mut text);
    match read {
        Ok(_) if has(&text, world.kit.primary.real()) => pass("replaced inside"),
        Ok(_) if has(&text, world.kit.primary.token.as_bytes()) => {
            fail("the token passed unseen, neither replaced nor refused")
        }
        _ => skipped("the host got something that can't be read"),
    }
}
