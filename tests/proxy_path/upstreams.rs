//! Connections to hosts: whose they are, how many, and how long they last.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use opencomputer::proxy::{
    ClientIdentity, EgressSettings, HostTls, Policy, SandboxCa, SandboxProxy, Target,
};
use rustls::HandshakeKind;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::two::{ask2, client2, echo2, get2, host2};
use crate::wire::{Io, ask, get, read_message};
use crate::world::{Authority, Setup, World, client_config, ok, soon};

/// A host with HTTP/1.1 that counts its connections, and those of them that are open.
struct Counted {
    port: u16,
    made: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

async fn counted(tls: TlsAcceptor) -> Counted {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (made, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (made.clone(), open.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, (made, open)) = (tls.clone(), counts.clone());
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else {
                    return;
                };
                made.fetch_add(1, Ordering::SeqCst);
                open.fetch_add(1, Ordering::SeqCst);
                let mut stream: Io = Box::new(stream);
                let mut ahead = Vec::new();
                while read_message(&mut stream, &mut ahead, false).await.is_some() {
                    crate::wire::send(&mut stream, ok(b"done")).await;
                }
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    Counted { port, made, open }
}

async fn until(what: impl Fn() -> bool) {
    soon(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Connections of one sandbox follow each other on one connection to the host, and streams share
/// one; another sandbox never comes on it.
#[tokio::test]
async fn connections_are_shared_within_a_sandbox_only() {
    let one = World::new(&Setup::default());
    let two = World::new(&Setup::default());
    let host = counted(one.authority.acceptor(&["api.test"])).await;
    for _ in 0..5 {
        let reply = one
            .ask("api.test", host.port, get("api.test", "/", ""))
            .await;
        assert_eq!(reply.text(), "done");
    }
    assert_eq!(host.made.load(Ordering::SeqCst), 1);
    let foreign = counted(two.authority.acceptor(&["api.test"])).await;
    for _ in 0..2 {
        two.ask("api.test", foreign.port, get("api.test", "/", ""))
            .await;
    }
    assert_eq!(foreign.made.load(Ordering::SeqCst), 1);
    assert_eq!(host.made.load(Ordering::SeqCst), 1);

    let shared = host2(
        one.authority.acceptor_offering(&["api.test"], &["h2"]),
        echo2,
    )
    .await;
    let mut asks = Vec::new();
    for connection in 0..3 {
        let client = client2(&one, "api.test", shared.port).await;
        for request in 0..10 {
            let mut client = client.clone();
            asks.push(tokio::spawn(async move {
                let reply = ask2(
                    &mut client,
                    get2(&format!("https://api.test/{connection}/{request}")),
                );
                assert_eq!(reply.await.unwrap().status, 200);
            }));
        }
    }
    for ask in asks {
        ask.await.unwrap();
    }
    assert_eq!((shared.connections(), shared.count()), (1, 30));
    one.finish();
    two.finish();
}

/// A policy that no longer permits the host, or none at all, closes what was kept for it.
#[tokio::test]
async fn kept_connections_end_with_the_policy() {
    let world = World::new(&Setup::default());
    let host = counted(world.authority.acceptor(&["api.test"])).await;
    let open = || host.open.load(Ordering::SeqCst);
    world
        .ask("api.test", host.port, get("api.test", "/", ""))
        .await;
    assert_eq!(open(), 1);
    // Another policy that permits it still: the connection stays.
    world.set_policy(&Setup::default());
    world
        .ask("api.test", host.port, get("api.test", "/", ""))
        .await;
    assert_eq!((open(), host.made.load(Ordering::SeqCst)), (1, 1));
    world.set_policy(&Setup {
        allowlist: vec!["other.test"],
        ..Setup::default()
    });
    until(|| open() == 0).await;
    let reply = world
        .ask("api.test", host.port, get("api.test", "/", ""))
        .await;
    assert_eq!(reply.rule(), "egress_allowlist");
    world.set_policy(&Setup::default());
    world
        .ask("api.test", host.port, get("api.test", "/", ""))
        .await;
    assert_eq!(open(), 1);
    world.proxy.close();
    until(|| open() == 0).await;
    assert_eq!(host.made.load(Ordering::SeqCst), 2);
    world.finish();
}

/// A host that trusts one client certificate only, and is itself trusted for its own name only.
#[tokio::test]
async fn certificates_are_set_by_host() {
    let world = World::new(&Setup::default());
    let (servers, clients) = (Authority::new(), Authority::new());
    let (chain, key) = clients.pair(&["oc.test"]);
    let tls = servers.acceptor_asking(&["api.test", "other.test"], &clients.root);
    let host = counted(tls).await;
    let identity = ClientIdentity::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
    assert!(ClientIdentity::from_pem(b"", key.as_bytes()).is_err());
    assert!(ClientIdentity::from_pem(chain.as_bytes(), b"").is_err());
    let settings = EgressSettings {
        allow_private: vec!["127.0.0.0/8".parse().unwrap()],
        pinned: ["api.test", "other.test"]
            .map(|name| (name.to_owned(), Ipv4Addr::LOCALHOST.into()))
            .into(),
        host_tls: vec![HostTls {
            pattern: "api.test".parse().unwrap(),
            extra_roots: vec![servers.root.clone()],
            identity: Some(identity),
        }],
        inspect_all: true,
        ..EgressSettings::default()
    };
    let ca = SandboxCa::generate("sb-test").unwrap();
    let (trail, _decisions) = tokio::sync::mpsc::channel(16);
    let policy = Policy::new(Vec::new(), Vec::new(), true, true);
    let proxy = SandboxProxy::new(Arc::new(settings), ca, Some(policy), trail);
    for (name, status) in [("api.test", 200), ("other.test", 502)] {
        let stream = connection(&proxy, name, host.port).await;
        let root = CertificateDer::from_pem_slice(proxy.ca_certificate_pem().as_bytes()).unwrap();
        let stream = crate::world::tls_trusting(&[root], stream, name)
            .await
            .unwrap();
        let mut stream: Io = Box::new(stream);
        let reply = ask(&mut stream, get(name, "/", "")).await;
        assert_eq!(reply.status(), status, "{name}: {}", reply.text());
    }
    assert_eq!(host.made.load(Ordering::SeqCst), 1);
    world.finish();
}

async fn connection(proxy: &Arc<SandboxProxy>, name: &str, port: u16) -> TcpStream {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    let target = Target {
        name: Some(name.to_owned()),
        ip: Ipv4Addr::new(198, 18, 0, 7).into(),
        port,
    };
    tokio::spawn(proxy.clone().serve(far.unwrap().0, target));
    near.unwrap()
}

/// A ticket saves the second handshake with the same sandbox's proxy; to another sandbox's it is
/// worth nothing.
#[tokio::test]
async fn sessions_are_resumed_in_their_own_sandbox_only() {
    let one = World::new(&Setup::default());
    let two = World::new(&Setup::default());
    let host = counted(one.authority.acceptor(&["api.test"])).await;
    let roots = [&one, &two].map(|world| {
        CertificateDer::from_pem_slice(world.proxy.ca_certificate_pem().as_bytes()).unwrap()
    });
    let connector = TlsConnector::from(Arc::new(client_config(&roots)));
    let mut kinds = Vec::new();
    for world in [&one, &one, &two] {
        let name = ServerName::try_from("api.test").unwrap();
        let stream = world.connect("api.test", host.port).await;
        let mut stream = soon(connector.connect(name, stream)).await.unwrap();
        kinds.push(stream.get_ref().1.handshake_kind().unwrap());
        // The ticket comes with the first bytes.
        let request = get("api.test", "/", "connection: close\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
            .await
            .unwrap();
        let _ = soon(stream.read_to_end(&mut Vec::new())).await;
    }
    assert_eq!(kinds[..2], [HandshakeKind::Full, HandshakeKind::Resumed]);
    assert_ne!(kinds[2], HandshakeKind::Resumed);
    one.finish();
    two.finish();
}

/// Goal: a policy that takes another host away while a connection is being made ends nothing.
/// Method: a host that is slow to shake hands.
#[tokio::test]
async fn a_policy_change_during_a_dial_is_no_failure() {
    let allowing = |hosts: &[&'static str]| Setup {
        allowlist: hosts.to_vec(),
        ..Setup::default()
    };
    let world = World::new(&allowing(&["api.test", "other.test"]));
    let names = ["api.test", "other.test"];
    let other = host2(world.authority.acceptor_offering(&names, &["h2"]), echo2).await;
    let mut client = client2(&world, "other.test", other.port).await;
    let request = get2(&format!("https://other.test:{}/", other.port));
    assert_eq!(ask2(&mut client, request).await.unwrap().status, 200);

    let tls = world.authority.acceptor_offering(&names, &["h2"]);
    let slow = host2(tls, echo2).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(700)).await;
                let far = TcpStream::connect(("127.0.0.1", slow.port)).await;
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far.unwrap()).await;
            });
        }
    });
    let mut client = client2(&world, "api.test", port).await;
    let request = get2(&format!("https://api.test:{port}/"));
    let asked = tokio::spawn(async move { ask2(&mut client, request).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.set_policy(&allowing(&["api.test"]));
    let reply = soon(asked).await.unwrap().unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    world.finish();
}
