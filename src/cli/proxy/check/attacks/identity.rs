//! Rows 5, 6 and 18: who is spoken to.

use std::sync::Arc;

use super::attack;
use crate::cli::proxy::check::authority::Flaw;
use crate::cli::proxy::check::client::{Trouble, ask, get};
use crate::cli::proxy::check::kit::{INSIDE_ADDRESS, OTHER, OUTSIDE, PLAIN};
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass, skipped};
use crate::cli::proxy::check::upstream::{Reply, Upstream};
use crate::cli::proxy::check::world::World;

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!("5", "CONNECT, SNI and Host that differ", fronting),
        attack!("5", "a host outside the list", outside),
        attack!(
            "5",
            "an absolute target for another host inside TLS",
            absolute
        ),
        attack!("5", "two Host fields, none, and odd ones", hosts),
        attack!("5", "the token in plain HTTP", plain_http),
        attack!(
            "6",
            "the name of an allowed host at an address of one's own",
            own_address
        ),
        attack!("18", "TLS without a name", no_name),
    ]
}

/// What is wrong if anything that reached `host` came for a name it should not have.
fn stolen(world: &World, host: &Upstream, asked: &str) -> Option<String> {
    host.look(|tap| {
        tap.requests.iter().find_map(|request| {
            let named = request.field("host").unwrap_or_default();
            let named = named
                .split(':')
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase();
            match world.value_in(&request.raw) {
                Some(role) if named != asked => Some(format!("{role} went to Host {named}")),
                _ if named == OUTSIDE => Some(format!("a request for {OUTSIDE} went out")),
                _ => None,
            }
        })
    })
}

async fn fronting(world: &World) -> Found {
    let api = world.kit.api.as_str();
    let names = [api, PLAIN, OTHER, OUTSIDE];
    let mut tried = 0;
    for connect in names {
        for sni in names {
            for named in names {
                if connect == sni && sni == named {
                    continue;
                }
                let host = world.echo().await?;
                let port = host.port;
                let token = &world.kit.primary.token;
                let request = get(named, "/", &format!("x-key: {token}\r\n"));
                let authority = format!("{connect}:{port}");
                if let Ok(mut stream) = world.tls(&authority, Some(sni), &[]).await {
                    let _ = ask(&mut stream, request.as_bytes()).await;
                }
                tried += 1;
                if let Some(how) = stolen(world, &host, connect) {
                    return fail(format!("CONNECT {connect}, SNI {sni}: {how}"));
                }
            }
        }
    }
    pass(format!("{tried} combinations, none with a value"))
}

async fn outside(world: &World) -> Found {
    let host = world.echo().await?;
    let answer = world.ask(OUTSIDE, host.port, get(OUTSIDE, "/", "")).await;
    match (host.look(|tap| tap.connections), answer) {
        (0, Ok(answer)) => pass(format!("status {}", answer.status())),
        (0, Err(trouble)) if trouble.is_refusal() => pass(trouble.to_string()),
        (0, Err(trouble)) => Err(trouble),
        (_, _) => fail(format!("{OUTSIDE} was reached")),
    }
}

async fn absolute(world: &World) -> Found {
    let token = &world.kit.primary.token;
    let api = world.kit.api.as_str();
    for (target, named) in [
        (OTHER, api),
        (OUTSIDE, api),
        (api, OTHER),
        (OUTSIDE, OUTSIDE),
    ] {
        let host = world.echo().await?;
        let port = host.port;
        let request = format!(
            "GET https://{target}:{port}/ HTTP/1.1\r\nhost: {named}:{port}\r\nx-key: {token}\r\n\r\n"
        );
        let _ = world.ask(api, port, request).await;
        let steered = host.look(|tap| {
            tap.requests.iter().any(|one| {
                let other = one.target().contains("://") && !one.target().contains(api);
                other && world.value_in(&one.raw).is_some()
            })
        });
        if steered {
            return fail(format!("a value went out for the target {target}"));
        }
        if let Some(how) = stolen(world, &host, api) {
            return fail(how);
        }
    }
    pass("no value for another name")
}

async fn hosts(world: &World) -> Found {
    let api = world.kit.api.as_str();
    let odd = [
        format!("host: {api}\r\nhost: {OTHER}\r\n"),
        format!("host: {OTHER}\r\nhost: {api}\r\n"),
        format!("host: {api}\r\nhost: {api}\r\n"),
        String::new(),
        "host: \r\n".to_owned(),
        format!("host: {api}, {OTHER}\r\n"),
        format!("host: {api}@{OTHER}\r\n"),
        format!("host: {OTHER}#{api}\r\n"),
        format!("host: {api}\t{OTHER}\r\n"),
        format!("host: {api}/{OTHER}\r\n"),
        format!("host : {OTHER}\r\nhost: {api}\r\n"),
    ];
    for fields in odd {
        let host = world.echo().await?;
        let token = &world.kit.primary.token;
        let request = format!("GET / HTTP/1.1\r\n{fields}x-key: {token}\r\n\r\n");
        let _ = world.ask(api, host.port, request).await;
        let doubtful = host.look(|tap| {
            tap.requests.iter().any(|one| {
                let lines = one.head.lines().filter(|line| line.to_ascii_lowercase().starts_with("host"));
                let lines: Vec<_> = lines.collect();
                let clear = matches!(lines[..], [line] if line.trim_end_matches(|c: char| c == ':' || c.is_ascii_digit()).eq_ignore_ascii_case(&format!("host: {api}")));
                !clear && world.value_in(&one.raw).is_some()
            })
        });
        if doubtful {
            return fail(format!("a value went out with {:?}", fields.trim_end()));
        }
    }
    pass("no value under a Host in doubt")
}

async fn plain_http(world: &World) -> Found {
    let host = Upstream::plain(Arc::new(|_| Reply::ok("", b"fine"))).await?;
    let (api, port, token) = (&world.kit.api, host.port, &world.kit.primary.token);
    let request = format!(
        "GET http://{api}:{port}/ HTTP/1.1\r\nhost: {api}:{port}\r\nx-key: {token}\r\n\r\n"
    );
    let absolute = match world.dial().await {
        Ok(mut stream) => ask(&mut stream, request.as_bytes()).await,
        Err(trouble) => return Err(trouble),
    };
    if let Ok(mut stream) = world.tunnel(format!("{api}:{port}").as_bytes()).await {
        let request = get(
            &format!("{api}:{port}"),
            "/",
            &format!("x-key: {token}\r\n"),
        );
        let _ = ask(&mut stream, request.as_bytes()).await;
    }
    match (host.got(world.kit.primary.real()), absolute) {
        (true, _) => fail("the value travelled without TLS"),
        (false, Ok(answer)) => pass(format!("status {}, the value stayed", answer.status())),
        (false, Err(_)) => pass("not carried at all"),
    }
}

async fn own_address(world: &World) -> Found {
    let ip = INSIDE_ADDRESS
        .parse()
        .map_err(|_| Trouble::Local("no address".into()))?;
    let script = Arc::new(|_: &_| Reply::ok("", b"stolen"));
    let host = match world.host_with(Flaw::None, ip, &[], script).await {
        Ok(host) => host,
        Err(trouble) => return skipped(format!("can't listen on {INSIDE_ADDRESS}: {trouble}")),
    };
    let authority = format!("{INSIDE_ADDRESS}:{}", host.port);
    if let Ok(mut stream) = world.tls(&authority, Some(&world.kit.api), &[]).await {
        let _ = ask(&mut stream, world.request("/", "").as_bytes()).await;
    }
    match (
        host.got(world.kit.primary.real()),
        host.look(|tap| tap.connections),
    ) {
        (true, _) => fail("the value went to an address the client chose"),
        (false, 0) => pass("the address was not dialled"),
        (false, _) => fail("the address was dialled"),
    }
}

async fn no_name(world: &World) -> Found {
    let made = world
        .kit
        .authority
        .server(&world.kit.names(), Flaw::None, &[]);
    let (config, leaf) = made.map_err(Trouble::Local)?;
    let script = Arc::new(|_: &_| Reply::ok("", b"fine"));
    let ip = std::net::Ipv4Addr::LOCALHOST.into();
    let host = Upstream::start(ip, Some(config), script).await?;
    let authority = format!("{}:{}", world.kit.api, host.port);
    match world.tls(&authority, None, &[]).await {
        Ok(stream) => {
            let seen = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(|all| all.first().cloned());
            match seen == Some(leaf) {
                true => fail("passed through unread, to a host with a secret"),
                false => pass("decrypted by the name of CONNECT"),
            }
        }
        Err(trouble) if trouble.is_refusal() => pass(format!("refused: {trouble}")),
        Err(trouble) => Err(trouble),
    }
}
