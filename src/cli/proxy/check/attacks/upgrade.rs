//! Rows 12 and 28: ways out of HTTP after the check.

use super::attack;
use crate::cli::proxy::check::client::{Trouble, ask, send};
use crate::cli::proxy::check::kit::{OTHER, OUTSIDE};
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass};
use crate::cli::proxy::check::upstream::Reply;
use crate::cli::proxy::check::world::World;

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!("12", "an answer that switches protocols unasked", unasked),
        attack!("28", "an upgrade to an unknown protocol", |w| upgrade(
            w, "x-raw"
        )),
        attack!("28", "an upgrade to h2c", |w| upgrade(w, "h2c")),
        attack!("28", "an upgrade to TLS inside", |w| upgrade(w, "TLS/1.0")),
        attack!("28", "CONNECT inside TLS", connect),
    ]
}

const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x-raw\r\n\r\n";
/// What is said freely, once there is a tunnel.
const FREE: &[u8] = b"free speech after the upgrade\r\n\r\n";

async fn unasked(world: &World) -> Found {
    let host = world.host(|_| Reply::raw(SWITCH)).await?;
    let mut stream = world.secure(&world.kit.api, host.port).await?;
    let answer = ask(&mut stream, world.request("/", "").as_bytes()).await;
    let _ = send(&mut stream, FREE).await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    match answer {
        _ if host.got(FREE) => fail("the client spoke freely with the host"),
        Ok(answer) if answer.status() == 101 => fail("the switch was passed on"),
        Ok(answer) => pass(format!("status {}", answer.status())),
        Err(trouble) if trouble.is_refusal() => pass(trouble.to_string()),
        Err(trouble) => Err(trouble),
    }
}

async fn upgrade(world: &World, protocol: &'static str) -> Found {
    let host = world
        .host(move |_| Reply::raw(SWITCH.replace("x-raw", protocol)))
        .await?;
    let mut stream = world.secure(&world.kit.api, host.port).await?;
    let fields = format!(
        "connection: upgrade, http2-settings\r\nupgrade: {protocol}\r\nhttp2-settings: AAMAAABk\r\n"
    );
    let answer = ask(&mut stream, world.request("/", &fields).as_bytes()).await;
    let token = &world.kit.primary.token;
    let _ = send(&mut stream, &[FREE, token.as_bytes()].concat()).await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    match answer {
        _ if host.got(FREE) => fail("the client spoke freely with the host"),
        Ok(answer) if answer.status() == 101 => fail("the switch was passed on"),
        Ok(answer) => pass(format!("status {}", answer.status())),
        Err(trouble) if trouble.is_refusal() => pass(trouble.to_string()),
        Err(trouble) => Err(trouble),
    }
}

async fn connect(world: &World) -> Found {
    let ok = "HTTP/1.1 200 Connected\r\n\r\n";
    for target in [OTHER, OUTSIDE, world.kit.api.as_str()] {
        let host = world.host(move |_| Reply::raw(ok)).await?;
        let mut stream = world.secure(&world.kit.api, host.port).await?;
        let token = &world.kit.primary.token;
        let request = format!(
            "CONNECT {target}:443 HTTP/1.1\r\nhost: {target}:443\r\nx-key: {token}\r\n\r\n"
        );
        let answer = ask(&mut stream, request.as_bytes()).await;
        let _ = send(&mut stream, FREE).await;
        if host.got(FREE) || host.got(b"CONNECT ") {
            return fail(format!("CONNECT {target} went to the host"));
        }
        if answer.is_ok_and(|answer| answer.status() < 300) {
            return fail(format!("CONNECT {target} was granted inside TLS"));
        }
    }
    pass("refused for three targets")
}
