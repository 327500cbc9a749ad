//! Row 11: requests with two readings.

use std::time::Duration;

use tokio::time::timeout;

use super::attack;
use crate::cli::proxy::check::client::{Trouble, send};
use crate::cli::proxy::check::message::{Reader, has};
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass};
use crate::cli::proxy::check::upstream::Reply;
use crate::cli::proxy::check::world::World;

/// Time for an answer nobody should get.
const SECOND: Duration = Duration::from_millis(500);

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!("11", "the smuggling corpus", corpus),
        attack!("11", "an answer with two lengths", answer),
    ]
}

/// Framings after the first line and Host; `{n}` is the length of what follows the head, and what
/// is hidden is a request.
fn framings(hidden: &str) -> Vec<String> {
    let end = format!("0\r\n\r\n{hidden}");
    let (n, h) = (end.len(), hidden.len());
    let with_end = [
        format!("content-length: {n}\r\ntransfer-encoding: chunked"),
        format!("transfer-encoding: chunked\r\ncontent-length: {n}"),
        "transfer-encoding: xchunked".to_owned(),
        "transfer-encoding: chunked, identity".to_owned(),
        "transfer-encoding: chunked, chunked".to_owned(),
        "transfer-encoding: gzip, chunked".to_owned(),
        "transfer-encoding: chunked\r\ntransfer-encoding: x".to_owned(),
        "transfer-encoding: x\r\ntransfer-encoding: chunked".to_owned(),
        "transfer-encoding:\u{b}chunked".to_owned(),
        "transfer-encoding: \"chunked\"".to_owned(),
        "transfer-encoding : chunked".to_owned(),
        "transfer-encoding\0: chunked".to_owned(),
        "x-a: b\r\n transfer-encoding: chunked".to_owned(),
        "transfer-encoding:\r\n chunked".to_owned(),
        "x-a: b\rtransfer-encoding: chunked".to_owned(),
        "x-a: b\ntransfer-encoding: chunked".to_owned(),
    ];
    let with_hidden = [
        format!("content-length: 0\r\ncontent-length: {h}"),
        format!("content-length: {h}\r\ncontent-length: 0"),
        format!("content-length: 0, {h}"),
        "content-length: +0".to_owned(),
        "content-length: 0x0".to_owned(),
        "content-length: -1".to_owned(),
        "content-length: 99999999999999999999".to_owned(),
        "content-length : 0".to_owned(),
        "x-a: b\0c".to_owned(),
        ": empty".to_owned(),
    ];
    let chunks = [
        format!("-1\r\n{hidden}"),
        format!("0x3\r\nabc\r\n{end}"),
        format!("+3\r\nabc\r\n{end}"),
        format!("3\r\nabcXX{end}"),
        format!("fffffffffffffffff\r\n{hidden}"),
        format!("1 \nX\r\n{end}"),
        format!("0;\n{hidden}\r\n\r\n"),
        format!("0\n\n{hidden}"),
    ];
    let mut all: Vec<String> = with_end
        .iter()
        .map(|f| format!("{f}\r\n\r\n{end}"))
        .collect();
    all.extend(with_hidden.iter().map(|f| format!("{f}\r\n\r\n{hidden}")));
    all.extend(
        chunks
            .iter()
            .map(|c| format!("transfer-encoding: chunked\r\n\r\n{c}")),
    );
    all
}

async fn corpus(world: &World) -> Found {
    let api = world.kit.api.as_str();
    let token = &world.kit.primary.token;
    let hidden = format!("GET /smuggled HTTP/1.1\r\nhost: {api}\r\nx-key: {token}\r\n\r\n");
    let framings = framings(&hidden);
    let mut worked = Vec::new();
    for framing in &framings {
        let host = world
            .host(|message| Reply::ok("", message.target().as_bytes()))
            .await?;
        let mut stream = world.secure(api, host.port).await?;
        let request = format!("POST /front HTTP/1.1\r\nhost: {api}\r\n{framing}");
        let _ = send(&mut stream, request.as_bytes()).await;
        let mut reader = Reader::new();
        let first = reader.message(&mut stream).await;
        let closes = first.as_ref().is_none_or(|one| {
            one.status() >= 400
                || one
                    .field("connection")
                    .is_some_and(|value| value == "close")
        });
        // What is a second request to the proxy shows as a second answer.
        let second = match closes {
            true => None,
            false => timeout(SECOND, reader.message(&mut stream))
                .await
                .ok()
                .flatten(),
        };
        let hidden_reached = host.look(|tap| {
            let second = tap
                .requests
                .iter()
                .any(|one| !one.head.starts_with("POST /front "));
            second || tap.requests.len() > 1
        });
        let injected = host.look(|tap| {
            let line = [b"\nx-key: ", world.kit.primary.real()].concat();
            tap.requests.iter().any(|one| has(&one.raw, &line))
        });
        if hidden_reached || injected || second.is_some_and(|one| one.text().contains("smuggled")) {
            worked.push(framing.lines().take(2).collect::<Vec<_>>().join(" | "));
        }
    }
    match worked.is_empty() {
        true => pass(format!("{} framings, no hidden request", framings.len())),
        false => fail(format!("a hidden request went out by {worked:?}")),
    }
}

/// A host that splits its answers: the second part must not be the next answer.
async fn answer(world: &World) -> Found {
    let api = world.kit.api.as_str();
    let evil = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil";
    for fields in [
        format!(
            "content-length: 2\r\ncontent-length: {}\r\n",
            evil.len() + 2
        ),
        "content-length: 2\r\ntransfer-encoding: chunked\r\n".to_owned(),
        "content-length: +2\r\n".to_owned(),
        "content-length: 2\r\n".to_owned(),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\nok{evil}");
        let host = world.host(move |_| Reply::raw(text.clone())).await?;
        let mut stream = world.secure(api, host.port).await?;
        let mut reader = Reader::new();
        send(&mut stream, world.request("/1", "").as_bytes()).await?;
        let Some(first) = reader.message(&mut stream).await else {
            continue;
        };
        if first.status() >= 400
            || send(&mut stream, world.request("/2", "").as_bytes())
                .await
                .is_err()
        {
            continue;
        }
        if let Some(second) = reader.message(&mut stream).await
            && second.text().starts_with("evil")
        {
            return fail(format!(
                "the host answered a request it did not get: {fields:?}"
            ));
        }
    }
    pass("4 answers, none taken for the next")
}
