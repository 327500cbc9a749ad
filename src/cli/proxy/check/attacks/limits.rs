//! Row 35, in what can be seen from outside within seconds: others are still served.

use std::io::Write;
use std::time::{Duration, Instant};

use super::attack;
use crate::cli::proxy::check::client::{Trouble, get, send};
use crate::cli::proxy::check::message::Reader;
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass, skipped};
use crate::cli::proxy::check::upstream::Reply;
use crate::cli::proxy::check::world::World;

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!("35", "heads that never end, beside a request", slow),
        attack!("35", "a head of four mebibytes", head),
        attack!("35", "ten thousand header fields", fields),
        attack!("35", "an answer that unpacks to 64 MiB", bomb),
        attack!("35", "an answer's head without end", answer_head),
    ]
}

/// Connections that say little.
const SLOW: usize = 64;
/// In which others must be served.
const PROMPT: Duration = Duration::from_secs(5);

/// Whether the target still does its work, and how fast.
async fn alive(world: &World) -> Result<Duration, Trouble> {
    let host = world.host(|_| Reply::ok("", b"fine")).await?;
    let started = Instant::now();
    let answer = world
        .ask(&world.kit.api, host.port, world.request("/", ""))
        .await?;
    match answer.status() {
        200 => Ok(started.elapsed()),
        _ => Err(Trouble::Closed),
    }
}

pub(super) async fn still(world: &World, what: String) -> Found {
    match alive(world).await {
        Ok(took) if took < PROMPT => {
            pass(format!("{what}; others served in {} ms", took.as_millis()))
        }
        Ok(took) => fail(format!("{what}; others waited {} ms", took.as_millis())),
        Err(trouble) => fail(format!("{what}; others are not served: {trouble}")),
    }
}

async fn slow(world: &World) -> Found {
    let mut open = Vec::new();
    for index in 0..SLOW {
        let Ok(mut stream) = world.dial().await else {
            break;
        };
        let bytes: &[u8] = match index % 3 {
            0 => b"CONN",
            1 => b"CONNECT api.oc-check.localhost:1 HTTP/1.1\r\nx-a: ",
            _ => b"",
        };
        let _ = send(&mut stream, bytes).await;
        open.push(stream);
    }
    let held = open.len();
    let found = still(world, format!("{held} connections held open")).await;
    drop(open);
    found
}

async fn head(world: &World) -> Found {
    let host = world.host(|_| Reply::ok("", b"fine")).await?;
    let fields = format!("x-a: {}\r\n", "a".repeat(4 << 20));
    let answer = world
        .ask(&world.kit.api, host.port, get(&world.kit.api, "/", &fields))
        .await;
    let seen = match answer {
        _ if host.count() > 0 => "the head was passed on".to_owned(),
        Ok(answer) => format!("status {}", answer.status()),
        Err(trouble) => trouble.to_string(),
    };
    still(world, seen).await
}

async fn fields(world: &World) -> Found {
    let host = world.host(|_| Reply::ok("", b"fine")).await?;
    let fields: String = (0..10_000).map(|i| format!("x-{i}: a\r\n")).collect();
    let answer = world
        .ask(&world.kit.api, host.port, get(&world.kit.api, "/", &fields))
        .await;
    let seen = match answer {
        _ if host.count() > 0 => "the fields were passed on".to_owned(),
        Ok(answer) => format!("status {}", answer.status()),
        Err(trouble) => trouble.to_string(),
    };
    still(world, seen).await
}

async fn bomb(world: &World) -> Found {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![0; 1 << 20];
    for _ in 0..64 {
        let _ = out.write_all(&zeros);
    }
    let body = out.finish().unwrap_or_default();
    let size = body.len();
    let host = world
        .host(move |_| Reply::ok("content-encoding: gzip\r\n", &body))
        .await?;
    let answer = world
        .ask(&world.kit.api, host.port, world.request("/", ""))
        .await;
    if host.count() == 0 {
        return skipped("the request did not reach the host");
    }
    let seen = match answer {
        Ok(answer) => format!("{size} bytes sent, {} arrived", answer.body.len()),
        Err(trouble) => trouble.to_string(),
    };
    still(world, seen).await
}

async fn answer_head(world: &World) -> Found {
    let host = world
        .host(|_| {
            let mut pieces = vec![b"HTTP/1.1 200 OK\r\n".to_vec()];
            pieces.extend((0..64).map(|_| format!("x-a: {}\r\n", "a".repeat(60_000)).into_bytes()));
            Reply {
                pieces,
                close: true,
                ..Reply::default()
            }
        })
        .await?;
    let mut stream = world.secure(&world.kit.api, host.port).await?;
    send(&mut stream, world.request("/", "").as_bytes()).await?;
    let seen = match Reader::new().message(&mut stream).await {
        Some(answer) if answer.raw.len() > 1 << 20 => "it was passed on".to_owned(),
        Some(answer) => format!("status {}", answer.status()),
        None => "no answer".to_owned(),
    };
    still(world, seen).await
}
