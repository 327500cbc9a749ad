//! Row 35 over HTTP/2: streams and heads without end. Others must still be served meanwhile.

use super::attack;
use super::h2::{NO_H2, host};
use super::limits::still;
use crate::cli::proxy::check::client::Trouble;
use crate::cli::proxy::check::h2_client::{H2, get};
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, skipped};
use crate::cli::proxy::check::world::World;

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!("35", "streams that are reset at once", resets),
        attack!("35", "ten thousand open streams", streams),
        attack!(
            "35",
            "a head of CONTINUATION frames without end",
            continuations
        ),
        attack!("35", "empty CONTINUATION frames without end", empty),
    ]
}

/// Streams begun and given up, or begun and kept.
const STREAMS: u32 = 10_000;
/// Streams begun with one write.
const AT_ONCE: u32 = 100;
/// Streams that may be at a host at once for one client without being a flood: what servers
/// commonly take is 100 to 250.
const SERVED_MAX: usize = 1000;
/// One frame of a head that does not end, in bytes; the largest that every peer takes is 16 KiB.
const FRAME_BYTES: usize = 16_000;
/// Frames of such a head with one write, and writes.
const FRAMES: usize = 64;
const WRITES: usize = 64;

async fn resets(world: &World) -> Found {
    let api = world.kit.api.as_str();
    let host = host(world).await?;
    let Some(mut h2) = H2::open(world, api, host.port).await? else {
        return skipped(NO_H2);
    };
    let mut sent = 0;
    for index in 0..STREAMS {
        let id = index * 2 + 1;
        if h2.request(id, &get(api, &[])).await.is_err() || h2.reset(id).await.is_err() {
            break;
        }
        sent += 1;
    }
    let reached = host.count();
    still(
        world,
        format!("{sent} streams, {reached} requests at the host"),
    )
    .await
}

async fn streams(world: &World) -> Found {
    let api = world.kit.api.as_str();
    let host = host(world).await?;
    let Some(mut h2) = H2::open(world, api, host.port).await? else {
        return skipped(NO_H2);
    };
    let mut fields = get(api, &[]);
    fields[0].1 = b"POST";
    let mut sent = 0;
    while sent < STREAMS {
        if h2.begin(sent * 2 + 1, AT_ONCE, &fields).await.is_err() {
            break;
        }
        sent += AT_ONCE;
    }
    let reached = host.look(|tap| tap.connections.max(tap.requests.len()));
    if reached > SERVED_MAX {
        return fail(format!("{reached} reached the host at once"));
    }
    let found = still(world, format!("{sent} streams begun")).await;
    drop(h2);
    found
}

/// Sends a head that does not end, in frames with `fields`.
async fn head(world: &World, fields: &[(&str, &[u8])]) -> Found {
    let api = world.kit.api.as_str();
    let host = host(world).await?;
    let Some(mut h2) = H2::open(world, api, host.port).await? else {
        return skipped(NO_H2);
    };
    let mut taken = 0;
    if h2.begin_head(1, &get(api, &[])).await.is_ok() {
        while taken < WRITES && h2.more_head(1, FRAMES, fields).await.is_ok() {
            taken += 1;
        }
    }
    if host.count() > 0 {
        return fail("the head was passed on");
    }
    let found = still(world, format!("{} frames until the end", taken * FRAMES)).await;
    drop(h2);
    found
}

async fn continuations(world: &World) -> Found {
    let filling = vec![b'a'; FRAME_BYTES];
    head(world, &[("x-a", &filling)]).await
}

async fn empty(world: &World) -> Found {
    head(world, &[]).await
}
