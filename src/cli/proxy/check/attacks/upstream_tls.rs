//! Row 34: hosts that can't prove who they are get no byte of a value.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::attack;
use crate::cli::proxy::check::authority::Flaw;
use crate::cli::proxy::check::client::Trouble;
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass};
use crate::cli::proxy::check::upstream::{Reply, Upstream};
use crate::cli::proxy::check::world::World;

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!("34", "a host with a certificate of another name", |w| {
            flawed(w, Flaw::WrongName)
        }),
        attack!("34", "a host with an expired certificate", |w| flawed(
            w,
            Flaw::Expired
        )),
        attack!("34", "a host with a self-signed certificate", |w| flawed(
            w,
            Flaw::SelfSigned
        )),
        attack!("34", "a host that answers TLS with plain text", plain),
    ]
}

async fn flawed(world: &World, flaw: Flaw) -> Found {
    let script = Arc::new(|_: &_| Reply::ok("", b"stolen"));
    let host = world
        .host_with(flaw, Ipv4Addr::LOCALHOST.into(), &[], script)
        .await?;
    judge(world, &host).await
}

async fn plain(world: &World) -> Found {
    let host = Upstream::plain(Arc::new(|_| Reply::ok("", b"stolen"))).await?;
    judge(world, &host).await
}

async fn judge(world: &World, host: &Upstream) -> Found {
    let answer = world
        .ask(&world.kit.api, host.port, world.request("/", ""))
        .await;
    if host.got(world.kit.primary.real()) {
        return fail("the value went to a host that proved nothing");
    }
    match answer {
        Ok(_) if host.count() > 0 => fail("a request went to a host that proved nothing"),
        Ok(answer) => pass(format!("status {}", answer.status())),
        Err(trouble) if trouble.is_refusal() => pass(trouble.to_string()),
        Err(trouble) => Err(trouble),
    }
}
