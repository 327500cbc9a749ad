//! Rows 8 and 9: addresses inside, in every spelling, and the proxy itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use tokio::net::TcpListener;

use super::attack;
use crate::cli::proxy::check::client::{Trouble, ask, get};
use crate::cli::proxy::check::kit::{INSIDE, INSIDE_ADDRESS};
use crate::cli::proxy::check::message::Reader;
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass, skipped};
use crate::cli::proxy::check::upstream::{Reply, Upstream};
use crate::cli::proxy::check::world::World;

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!(
            "8",
            "an inner service by spellings of its address",
            spellings
        ),
        attack!("8", "a name that leads to an inner address", name),
        attack!("9", "the metadata service", metadata),
        attack!("9", "the proxy itself", itself),
    ]
}

/// 127.0.0.2, which the target may not reach, and other ways to this machine, which it may
/// reach by the names of the kit only.
const SPELLINGS: [&str; 22] = [
    "127.0.0.2",
    "127.0.0.2.",
    "127.2",
    "127.0.2",
    "2130706434",
    "0x7f000002",
    "0x7f.0.0.2",
    "0177.0.0.2",
    "017700000002",
    "127.0.0.02",
    "[::ffff:127.0.0.2]",
    "[::ffff:7f00:2]",
    "[0:0:0:0:0:ffff:127.0.0.2]",
    "[::127.0.0.2]",
    "[64:ff9b::127.0.0.2]",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::1%25lo]",
    "[::]",
    "0.0.0.0",
    "0",
    "localhost",
];

/// Hosts without TLS on each inner address, on one port.
async fn inner() -> Result<Vec<Upstream>, Trouble> {
    let script = Arc::new(|_: &_| Reply::ok("", b"inner"));
    let inside = INSIDE_ADDRESS.parse().unwrap_or(Ipv4Addr::LOCALHOST);
    let first = Upstream::start(inside.into(), None, script.clone()).await?;
    let mut hosts = Vec::new();
    let others: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for ip in others {
        // A machine without IPv6 has one way less.
        if let Ok(listener) = TcpListener::bind((ip, first.port)).await {
            hosts.push(Upstream::serve(listener, None, script.clone())?);
        }
    }
    hosts.insert(0, first);
    Ok(hosts)
}

fn reached(hosts: &[Upstream]) -> bool {
    hosts
        .iter()
        .any(|host| host.look(|tap| tap.connections) > 0)
}

/// Both ways to a host: a tunnel with a request in it, and an absolute target.
async fn knock(world: &World, host: &str, port: u16) -> Result<(), Trouble> {
    if let Ok(mut stream) = world.tunnel(format!("{host}:{port}").as_bytes()).await {
        let _ = ask(
            &mut stream,
            get(&format!("{host}:{port}"), "/", "").as_bytes(),
        )
        .await;
    }
    let request = format!("GET http://{host}:{port}/ HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n");
    let mut stream = world.dial().await?;
    let _ = ask(&mut stream, request.as_bytes()).await;
    Ok(())
}

async fn spellings(world: &World) -> Found {
    let hosts = match inner().await {
        Ok(hosts) => hosts,
        Err(trouble) => return skipped(format!("can't listen on {INSIDE_ADDRESS}: {trouble}")),
    };
    let Some(port) = hosts.first().map(|host| host.port) else {
        return skipped("no inner service");
    };
    for spelling in SPELLINGS {
        knock(world, spelling, port).await?;
        if reached(&hosts) {
            return fail(format!("{spelling} was reached"));
        }
    }
    pass(format!("{} spellings, none dialled", SPELLINGS.len()))
}

async fn name(world: &World) -> Found {
    let hosts = match inner().await {
        Ok(hosts) => hosts,
        Err(trouble) => return skipped(format!("can't listen on {INSIDE_ADDRESS}: {trouble}")),
    };
    let Some(port) = hosts.first().map(|host| host.port) else {
        return skipped("no inner service");
    };
    knock(world, INSIDE, port).await?;
    match reached(&hosts) {
        true => fail(format!("{INSIDE} was reached at {INSIDE_ADDRESS}")),
        false => pass("not dialled"),
    }
}

async fn metadata(world: &World) -> Found {
    let mut seen = Vec::new();
    for host in [
        "169.254.169.254",
        "[fd00:ec2::254]",
        "[::ffff:169.254.169.254]",
        "0xa9fea9fe",
    ] {
        let mut stream = world.dial().await?;
        let request =
            format!("GET http://{host}/latest/meta-data/ HTTP/1.1\r\nhost: {host}\r\n\r\n");
        match ask(&mut stream, request.as_bytes()).await {
            Ok(answer) if (400..500).contains(&answer.status()) => seen.push(answer.status()),
            Ok(answer) if answer.status() >= 500 => {
                return skipped(format!(
                    "status {} for {host}: refused, or tried and not reached",
                    answer.status()
                ));
            }
            Ok(answer) => return fail(format!("status {} from {host}", answer.status())),
            Err(Trouble::Closed) => seen.push(0),
            Err(trouble) => return Err(trouble),
        }
    }
    pass(format!("refused: {seen:?}"))
}

/// A proxy that speaks to itself can be made to do so for ever.
async fn itself(world: &World) -> Found {
    let Some((_, port)) = world.target.rsplit_once(':') else {
        return skipped("the target has no port");
    };
    let inner = "GET http://oc-check.invalid/ HTTP/1.1\r\nhost: oc-check.invalid\r\n\r\n";
    for host in ["127.0.0.1", world.kit.api.as_str()] {
        let Ok(mut stream) = world.tunnel(format!("{host}:{port}").as_bytes()).await else {
            continue;
        };
        crate::cli::proxy::check::client::send(&mut stream, inner.as_bytes()).await?;
        // An answer of an inner proxy and a refusal of the outer look alike; one more CONNECT
        // inside tells them apart.
        let mut reader = Reader::new();
        let _ = reader.message(&mut stream).await;
        let connect = format!(
            "CONNECT {0}:1 HTTP/1.1\r\nhost: {0}:1\r\n\r\n",
            world.kit.api
        );
        if crate::cli::proxy::check::client::send(&mut stream, connect.as_bytes())
            .await
            .is_ok()
            && let Some(answer) = reader.message(&mut stream).await
            && answer.status() == 200
        {
            return fail(format!("a proxy inside the proxy, through {host}:{port}"));
        }
    }
    pass("no way to itself")
}
