//! HTTP/2: the same questions where the frames are others.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::attack;
use crate::cli::proxy::check::authority::Flaw;
use crate::cli::proxy::check::client::Trouble;
use crate::cli::proxy::check::h2_client::{H2, get};
use crate::cli::proxy::check::kit::{OTHER, OUTSIDE};
use crate::cli::proxy::check::message::has;
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass, skipped};
use crate::cli::proxy::check::upstream::{Reply, Upstream};
use crate::cli::proxy::check::world::World;

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!("1", "echo over HTTP/2 by the host", echo),
        attack!("5", "another :authority inside HTTP/2", authority),
        attack!("11", "line breaks and framing fields in HTTP/2", downgrade),
        attack!("21", "the token cut by HTTP/2 frames", frames),
    ]
}

pub(super) const NO_H2: &str = "the target does not speak HTTP/2 with clients";

pub(super) async fn host(world: &World) -> Result<Upstream, Trouble> {
    let script = Arc::new(|message: &crate::cli::proxy::check::message::Message| {
        Reply::ok("", &message.raw)
    });
    let ip = Ipv4Addr::LOCALHOST.into();
    world
        .host_with(Flaw::None, ip, &["h2", "http/1.1"], script)
        .await
}

async fn echo(world: &World) -> Found {
    let ip = Ipv4Addr::LOCALHOST.into();
    let script = Arc::new(|_: &_| Reply::default());
    // A host that speaks nothing else: one that is asked in HTTP/1.1 may prefer that.
    let host = world.host_with(Flaw::None, ip, &["h2"], script).await?;
    let answer = world
        .ask(&world.kit.api, host.port, world.request("/", ""))
        .await;
    if !host.look(|tap| tap.h2) {
        return skipped("the target does not speak HTTP/2 with hosts");
    }
    if !host.got(world.kit.primary.real()) {
        return skipped("the value did not reach the host");
    }
    match answer {
        Ok(answer) => match world.value_in(&answer.raw) {
            Some(_) => fail("the client got the value"),
            None => pass(format!("status {}, without the value", answer.status())),
        },
        Err(trouble) if trouble.is_refusal() => pass(format!("no answer: {trouble}")),
        Err(trouble) => Err(trouble),
    }
}

async fn authority(world: &World) -> Found {
    let api = world.kit.api.as_str();
    let token = world.kit.primary.token.as_bytes();
    for (authority, named) in [
        (OTHER, None),
        (OUTSIDE, None),
        (api, Some(OTHER)),
        (OUTSIDE, Some(api)),
    ] {
        let host = host(world).await?;
        let Some(mut h2) = H2::open(world, api, host.port).await? else {
            return skipped(NO_H2);
        };
        let mut more: Vec<(&str, &[u8])> = vec![("x-key", token)];
        if let Some(named) = named {
            more.push(("host", named.as_bytes()));
        }
        h2.request(1, &get(authority, &more)).await?;
        let ended = h2.ended(1).await;
        if host.got(world.kit.primary.real()) {
            return fail(format!(
                "a value went out for :authority {authority}, host {named:?}"
            ));
        }
        if world.value_in(&ended.body).is_some() {
            return fail("the client got the value");
        }
    }
    pass("no value for another name")
}

async fn downgrade(world: &World) -> Found {
    let api = world.kit.api.as_str();
    let token = &world.kit.primary.token;
    let hidden =
        format!("x\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: {api}\r\nx-key: {token}\r\n\r\n");
    let path = format!("/ HTTP/1.1\r\nhost: {api}\r\nx-smuggled: 1\r\nx-y:");
    let name = "x-a: b\r\nx-smuggled";
    let odd: [Vec<(&str, &[u8])>; 8] = [
        vec![("x-a", hidden.as_bytes())],
        vec![("x-a", b"b\nx-smuggled: 1")],
        vec![("x-a", b"b\0c")],
        vec![(name, b"1")],
        vec![("transfer-encoding", b"chunked")],
        vec![("connection", b"x-key")],
        vec![("content-length", b"5")],
        vec![("X-Smuggled", b"1")],
    ];
    for fields in odd.iter().map(Some).chain([None]) {
        let host = host(world).await?;
        let Some(mut h2) = H2::open(world, api, host.port).await? else {
            return skipped(NO_H2);
        };
        let mut request = get(api, fields.map_or(&[][..], |fields| fields));
        if fields.is_none() {
            request[3].1 = path.as_bytes();
        }
        let _ = h2.request(1, &request).await;
        let _ = h2.ended(1).await;
        let hidden = host.look(|tap| {
            let odd = |one: &crate::cli::proxy::check::message::Message| {
                one.field("x-smuggled").is_some() || one.target() == "/smuggled"
            };
            tap.requests.len() > 1 || tap.requests.iter().any(odd)
        });
        if hidden {
            let name = fields
                .and_then(|fields| fields.first())
                .map_or(":path", |field| field.0);
            return fail(format!("a hidden field or request went out in {name:?}"));
        }
    }
    pass("9 requests, nothing hidden went out")
}

async fn frames(world: &World) -> Found {
    let api = world.kit.api.as_str();
    let token = world.kit.primary.token.as_bytes();
    for at in [1, 5, token.len() / 2, token.len().saturating_sub(1)] {
        let host = host(world).await?;
        let Some(mut h2) = H2::open(world, api, host.port).await? else {
            return skipped(NO_H2);
        };
        let (left, right) = token.split_at(at);
        let mut fields = get(api, &[("content-type", b"text/plain")]);
        fields[0].1 = b"POST";
        h2.post(1, &fields, &[left, right]).await?;
        let _ = h2.ended(1).await;
        let body = host.last().map(|one| one.body).unwrap_or_default();
        if host.count() > 0 && !has(&body, world.kit.primary.real()) {
            return fail(format!("cut at {at}: the token was not replaced"));
        }
    }
    pass("replaced at every cut")
}
