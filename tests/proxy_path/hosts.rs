//! Who may be spoken to, and how it is known who that is.

use std::sync::Arc;

use opencomputer::proxy::{Outcome, Protocol, SandboxCa};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::wire::{Io, ask, get};
use crate::world::{Setup, World, echo, ok, soon, tls_trusting, upstream};

/// Name asked for, SNI and Host must be one name.
#[tokio::test]
async fn sni_and_host_must_be_the_name_asked_for() {
    let mut world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    let port = host.port;
    for (asked, sni, rule) in [
        ("api.test", "other.test", "sni_mismatch"),
        ("plain.test", "api.test", "sni_mismatch"),
        ("api.test", "127.0.0.1", "sni_missing"),
    ] {
        let stream = world.connect(asked, port).await;
        assert!(world.tls(stream, sni).await.is_err(), "{asked} {sni}");
        let decision = world.decision().await;
        assert_eq!(
            (decision.outcome, decision.reason.as_str()),
            (Outcome::Refused, rule)
        );
    }
    let key = format!("x-key: {}\r\n", world.token);
    for (request, rule) in [
        (get("other.test", "/", &key), "host_mismatch"),
        (
            get("api.test", "https://other.test/", &key),
            "host_mismatch",
        ),
        (
            get("api.test", "/", &format!("host: api.test\r\n{key}")),
            "host_count",
        ),
        (
            get("api.test", "/", &format!("host: other.test\r\n{key}")),
            "host_count",
        ),
        (format!("GET / HTTP/1.0\r\n{key}\r\n"), "host_count"),
    ] {
        let reply = world.ask("api.test", port, &request).await;
        assert_eq!(reply.rule(), rule, "{request}");
        assert_eq!(world.decision().await.reason, rule);
    }
    assert_eq!(host.count(), 0);
    let absolute = get("api.test", "https://api.test/x", "");
    assert_eq!(world.ask("api.test", port, absolute).await.status(), 200);
    assert!(host.last().head.starts_with("GET /x HTTP/1.1\r\n"));
    world.finish();
}

/// Not a byte of a request leaves before the host has proved its name.
#[tokio::test]
async fn nothing_is_sent_to_a_host_without_a_valid_certificate() {
    let mut world = World::new(&Setup::default());
    let stranger = crate::world::Authority::new();
    for tls in [
        world.authority.acceptor(&["elsewhere.test"]),
        stranger.acceptor(&["api.test"]),
    ] {
        let host = upstream(Some(tls), echo()).await;
        let key = format!("x-key: {}\r\n", world.token);
        let reply = world
            .ask("api.test", host.port, get("api.test", "/", &key))
            .await;
        assert_eq!(
            (reply.status(), reply.rule().as_str()),
            (502, "upstream_certificate")
        );
        assert_eq!(host.count(), 0);
        let decision = world.decision().await;
        assert!(decision.secrets.is_empty() && decision.outcome == Outcome::Refused);
    }
    // A host that speaks no TLS at all must see a ClientHello and nothing else.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = vec![0; 4096];
        let size = stream.read(&mut seen).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            .await
            .unwrap();
        seen.truncate(size);
        stream.read_to_end(&mut seen).await.ok();
        seen
    });
    let request = get("api.test", "/", &format!("x-key: {}\r\n", world.token));
    assert_eq!(
        world.ask("api.test", port, request).await.rule(),
        "upstream_certificate"
    );
    let seen = soon(seen).await.unwrap();
    assert_eq!(seen[0], 0x16);
    assert!(!String::from_utf8_lossy(&seen).contains("CANARY"));
    world.finish();
}

/// The program reads why; the reason is the same for TLS, HTTP and the explicit proxy.
#[tokio::test]
async fn hosts_off_the_list_are_refused_in_words() {
    let mut world = World::new(&Setup {
        allowlist: vec!["*.api.test"],
        ..Setup::default()
    });
    let host = world.host(echo()).await;
    let reply = world
        .ask("api.test", host.port, get("api.test", "/", ""))
        .await;
    assert_eq!(
        (reply.status(), reply.rule().as_str()),
        (403, "egress_allowlist")
    );
    assert_eq!(reply.field("content-type"), Some("application/json"));
    assert!(reply.text().contains("\"host\":\"api.test\""));
    let mut plain: Io = Box::new(world.connect("plain.test", 80).await);
    let reply = ask(&mut plain, get("plain.test", "/", "")).await;
    assert_eq!(reply.rule(), "egress_allowlist");
    for _ in 0..2 {
        let decision = world.decision().await;
        assert_eq!(
            (decision.outcome, decision.status),
            (Outcome::Refused, Some(403))
        );
    }
    assert_eq!(host.count(), 0);
    world.finish();
}

/// Without a policy nothing leaves, and closing cuts what is open.
#[tokio::test]
async fn a_closed_proxy_lets_nothing_through() {
    let mut world = World::new(&Setup {
        policy: false,
        ..Setup::default()
    });
    let host = world.host(echo()).await;
    let reply = world
        .ask("api.test", host.port, get("api.test", "/", ""))
        .await;
    assert_eq!(
        (reply.status(), reply.rule().as_str()),
        (503, "policy_missing")
    );
    world.decision().await;
    world.set_policy(&Setup::default());
    let mut open = world.secure("api.test", host.port).await;
    assert_eq!(ask(&mut open, get("api.test", "/", "")).await.status(), 200);
    let mut tunnel = world.secure("plain.test", host.port).await;
    assert_eq!(
        ask(&mut tunnel, get("plain.test", "/", "")).await.status(),
        200
    );
    world.proxy.close();
    for stream in [&mut open, &mut tunnel] {
        let mut rest = Vec::new();
        let _ = soon(stream.read_to_end(&mut rest)).await;
        assert!(rest.is_empty());
    }
    let reply = world
        .ask("plain.test", host.port, get("plain.test", "/", ""))
        .await;
    assert_eq!(reply.rule(), "policy_missing");
    assert_eq!(host.count(), 2);
    world.finish();
}

/// Hosts without secrets see the client's own TLS; a policy that binds a secret to the host
/// later ends the tunnel.
#[tokio::test]
async fn hosts_without_secrets_are_tunnelled_unread() {
    let mut world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    let token = world.token;
    let stream = world.connect("plain.test", host.port).await;
    // Trusts the host's own authority only: a certificate of ours would fail.
    let roots = [world.authority.root.clone()];
    let mut stream: Io = Box::new(tls_trusting(&roots, stream, "plain.test").await.unwrap());
    let reply = ask(
        &mut stream,
        get("plain.test", "/", &format!("x-key: {token}\r\n")),
    )
    .await;
    assert!(reply.text().contains(&token.to_string()));
    world.set_policy(&Setup {
        hosts: vec!["*.test"],
        ..Setup::default()
    });
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    let decision = world.decision().await;
    assert_eq!(
        (decision.protocol, decision.outcome),
        (Protocol::Tunnel, Outcome::Tunnelled)
    );
    assert_eq!(decision.reason, "cut_by_new_policy");
    assert!(decision.bytes_up > 100 && decision.bytes_down > 100);
    // With full inspection the same host gets our certificate, and still no value.
    let inspected = World::new(&Setup {
        inspect_all: true,
        ..Setup::default()
    });
    let host = inspected.host(echo()).await;
    let key = format!("x-key: {}\r\n", inspected.token);
    inspected
        .ask("plain.test", host.port, get("plain.test", "/", &key))
        .await;
    assert_eq!(
        host.last().field("x-key"),
        Some(&*inspected.token.to_string())
    );
    inspected.finish();
    world.finish();
}

/// Names that lead inside, and addresses given without a name.
#[tokio::test]
async fn inner_addresses_and_bare_addresses_are_refused() {
    let mut world = World::new(&Setup::default());
    let mut refused: Io = Box::new(world.connect_ip("9.9.9.9".parse().unwrap(), 80).await);
    assert_eq!(
        ask(&mut refused, get("9.9.9.9", "/", "")).await.rule(),
        "address_literal"
    );
    let tls = world.connect_ip("9.9.9.9".parse().unwrap(), 443).await;
    let mut tls: Io = Box::new(world.tls(tls, "9.9.9.9").await.unwrap());
    assert_eq!(
        ask(&mut tls, get("9.9.9.9", "/", "")).await.rule(),
        "address_literal"
    );
    let mut metadata: Io = Box::new(
        world
            .connect_ip("169.254.169.254".parse().unwrap(), 80)
            .await,
    );
    assert_eq!(
        ask(&mut metadata, get("169.254.169.254", "/", ""))
            .await
            .status(),
        404
    );
    for name in ["127.1", "localhost\0", "api.test%00", "ａpi.test"] {
        let mut stream = world.connect(name, 80).await;
        stream.write_all(get(name, "/", "").as_bytes()).await.ok();
        let mut rest = Vec::new();
        let _ = soon(stream.read_to_end(&mut rest)).await;
        assert!(rest.is_empty());
    }
    for rule in ["address_literal", "address_literal", "host_name"] {
        assert_eq!(world.decision().await.reason, rule);
    }
    // What the operator lists is reachable.
    let host = upstream(None, Arc::new(|_| ok(b"listed"))).await;
    let mut listed: Io = Box::new(
        world
            .connect_ip("127.0.0.1".parse().unwrap(), host.port)
            .await,
    );
    assert_eq!(
        ask(&mut listed, get("127.0.0.1", "/", "")).await.text(),
        "listed"
    );
    world.finish();
}

/// Two sandboxes don't trust each other's certificates; a stored CA goes on where it stopped.
#[tokio::test]
async fn a_sandbox_trusts_its_own_ca_only() {
    let one = World::new(&Setup::default());
    let two = World::new(&Setup::default());
    let host = one.host(echo()).await;
    let foreign =
        CertificateDer::from_pem_slice(two.proxy.ca_certificate_pem().as_bytes()).unwrap();
    let stream = one.connect("api.test", host.port).await;
    assert!(tls_trusting(&[foreign], stream, "api.test").await.is_err());
    let own = CertificateDer::from_pem_slice(one.proxy.ca_certificate_pem().as_bytes()).unwrap();
    let stream = one.connect("api.test", host.port).await;
    tls_trusting(&[own], stream, "api.test").await.unwrap();

    let ca = SandboxCa::generate("sb-stored").unwrap();
    let root = CertificateDer::from_pem_slice(ca.certificate_pem().as_bytes()).unwrap();
    let loaded = SandboxCa::load(ca.certificate_pem(), &ca.key_to_secret()).unwrap();
    let (trail, _kept) = tokio::sync::mpsc::channel(8);
    let proxy = opencomputer::proxy::SandboxProxy::new(Arc::default(), loaded, None, trail);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    let target = opencomputer::proxy::Target {
        name: Some("api.test".into()),
        ip: [198, 18, 0, 1].into(),
        port: 443,
    };
    tokio::spawn(proxy.serve(far.unwrap().0, target));
    tls_trusting(&[root], near.unwrap(), "api.test")
        .await
        .unwrap();
    one.finish();
    two.finish();
}

/// Programs that use the proxy variables: the inside of a tunnel goes the same way as without.
#[tokio::test]
async fn the_explicit_proxy_grants_nothing_more() {
    let world = World::new(&Setup {
        allowlist: vec!["*.test"],
        ..Setup::default()
    });
    let host = world.host(echo()).await;
    let endpoint = "169.254.169.254".parse().unwrap();
    let connect = |target: &str| format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n\r\n");

    let mut stream: Io = Box::new(world.connect_ip(endpoint, 3128).await);
    crate::wire::send(&mut stream, connect(&format!("api.test:{}", host.port))).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200"));
    let mut inside: Io = Box::new(world.tls(stream, "api.test").await.unwrap());
    let key = format!("x-key: {}\r\n", world.token);
    let reply = ask(&mut inside, get("api.test", "/", &key)).await;
    assert_eq!(host.last().field("x-key"), Some(crate::world::VALUE));
    assert!(reply.text().contains(&world.token.to_string()));
    let nested = ask(&mut inside, connect("other.test:443")).await;
    assert_eq!(nested.rule(), "connect_inside");

    let plain = upstream(None, echo()).await;
    let mut stream: Io = Box::new(world.connect_ip(endpoint, 3128).await);
    let authority = format!("api.test:{}", plain.port);
    let reply = ask(
        &mut stream,
        get(&authority, &format!("http://{authority}/x"), &key),
    )
    .await;
    assert_eq!(reply.status(), 200);
    assert!(plain.last().head.starts_with("GET /x HTTP/1.1\r\n"));
    assert_eq!(plain.last().field("x-key"), Some(&*world.token.to_string()));

    for (request, status, rule) in [
        (connect("off.example:443"), 403, "egress_allowlist"),
        (connect("10.0.0.1:443"), 403, "egress_allowlist"),
        (connect("127.1:443"), 403, "host_name"),
        (
            get("off.example", "http://off.example/", ""),
            403,
            "egress_allowlist",
        ),
        (
            get("off.example", "http://api.test/", ""),
            403,
            "host_mismatch",
        ),
        (
            get("api.test", "https://api.test/", ""),
            405,
            "proxy_method",
        ),
        (get("api.test", "/", ""), 405, "proxy_method"),
    ] {
        let mut stream: Io = Box::new(world.connect_ip(endpoint, 3128).await);
        let reply = ask(&mut stream, &request).await;
        assert_eq!(
            (reply.status(), reply.rule().as_str()),
            (status, rule),
            "{request}"
        );
    }
    world.finish();
}

/// Protocols we can't read go to hosts without secrets that the policy names or does not
/// restrict, also when the host speaks first; silence gains nothing.
#[tokio::test]
async fn opaque_protocols_are_tunnelled_only_where_no_secret_goes() {
    let mut world = World::new(&Setup::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"220 ready\r\n").await.ok();
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
            });
        }
    });
    let mut stream = world.connect("plain.test", port).await;
    let mut banner = [0; 11];
    soon(stream.read_exact(&mut banner)).await.unwrap();
    assert_eq!(&banner, b"220 ready\r\n");
    stream.write_all(b"EHLO").await.unwrap();
    let mut back = [0; 4];
    soon(stream.read_exact(&mut back)).await.unwrap();
    drop(stream);
    assert_eq!(world.decision().await.outcome, Outcome::Tunnelled);

    let mut stream = world.connect("api.test", port).await;
    stream.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
    assert_eq!(world.decision().await.reason, "opaque_protocol");

    // Silent first, then TLS under another name.
    let host = world.host(echo()).await;
    let stream = world.connect("plain.test", host.port).await;
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    assert!(world.tls(stream, "other.test").await.is_err());
    assert_eq!(world.decision().await.reason, "sni_mismatch");
    assert_eq!(host.count(), 0);
    world.finish();
}

/// Goal: TLS to a bare address that the operator listed is looked into where all is: our certificate
/// names the address, and so must the host's.
#[tokio::test]
async fn a_listed_address_is_verified_as_one() {
    let world = World::new(&Setup {
        inspect_all: true,
        ..Setup::default()
    });
    let address = std::net::Ipv4Addr::LOCALHOST.into();
    for (name, status) in [("127.0.0.1", 200), ("127.0.0.2", 502), ("api.test", 502)] {
        let tls = world.authority.acceptor(&[name]);
        let host = crate::world::upstream(Some(tls), echo()).await;
        let stream = world.connect_ip(address, host.port).await;
        let ca = world.proxy.ca_certificate_pem().as_bytes();
        let roots = [CertificateDer::from_pem_slice(ca).unwrap()];
        let stream = crate::world::tls_trusting(&roots, stream, "127.0.0.1").await;
        let mut stream: Io = Box::new(stream.unwrap());
        let request = get(&format!("127.0.0.1:{}", host.port), "/", "");
        let reply = ask(&mut stream, request).await;
        assert_eq!(reply.status(), status, "{name}: {}", reply.text());
        if status != 200 {
            assert_eq!(reply.rule(), "upstream_certificate");
        }
    }
    world.finish();
}
