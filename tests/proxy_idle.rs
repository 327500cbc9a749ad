//! What the proxy of a sandbox that does nothing holds in memory. `benches/proxy/run` measures ten
//! thousand of them in a release build; this holds the promise with fewer.

use std::net::Ipv4Addr;
use std::sync::Arc;

use opencomputer::proxy::{
    Binding, Decision, EgressSettings, Placement, Policy, SandboxCa, SandboxProxy, SealedToken,
    Target,
};
use opencomputer::secret::SecretValue;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Proxies that are counted, and those made before, which bear what is needed once.
const COUNT: usize = 300;
const FIRST: usize = 30;
/// What one may hold, KiB.
const KIB_MAX: usize = 64;

/// One sandbox's.
struct Idler {
    proxy: Arc<SandboxProxy>,
    _decisions: mpsc::Receiver<Decision>,
    token: SealedToken,
}

fn idler(settings: &Arc<EgressSettings>) -> Idler {
    let token = SealedToken::generate();
    let secret = Binding {
        name: "API_KEY".into(),
        token,
        value: SecretValue::from("sk-4fJ7xQ2mV9rT1bN6wY8zK3pL5hD0sG".to_owned()),
        hosts: vec!["api.test".parse().unwrap()],
        placement: Placement::default(),
    };
    let policy = Policy::new(Vec::new(), vec![secret], true, true);
    let ca = SandboxCa::generate("sb-test").unwrap();
    let (trail, decisions) = mpsc::channel(64);
    Idler {
        proxy: SandboxProxy::new(settings.clone(), ca, Some(policy), trail),
        _decisions: decisions,
        token,
    }
}

/// A host that answers one request for each connection.
async fn host() -> (u16, CertificateDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["api.test".to_owned()]).unwrap();
    let leaf = params.self_signed(&key).unwrap().der().clone();
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.clone()], key)
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let mut stream = tls.accept(stream).await.ok()?;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.ok()? == 0 {
                        return None;
                    }
                }
                let body = "<\"sk-4fJ7xQ2mV9rT1bN6wY8zK3pL5hD0sG\">".repeat(20);
                let length = body.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
                );
                stream.write_all(answer.as_bytes()).await.ok()?;
                stream.shutdown().await.ok()
            });
        }
    });
    (port, leaf)
}

/// One request through the proxy, whose answer has the value in it.
async fn work(idler: &Idler, port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    let target = Target {
        name: Some("api.test".to_owned()),
        ip: Ipv4Addr::new(198, 18, 0, 7).into(),
        port,
    };
    let carried = tokio::spawn(idler.proxy.clone().serve(far.unwrap().0, target));
    let ca = idler.proxy.ca_certificate_pem().as_bytes();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("api.test").unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, near.unwrap()).await.unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nhost: api.test:{port}\r\nx-key: {}\r\nconnection: close\r\n\r\n",
        idler.token
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains(&idler.token.to_string()) && !answer.contains("sk-4f"));
    drop(stream);
    carried.await.unwrap();
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse().unwrap()
}

/// Goal: an idle proxy takes less than 64 KiB, as made and after a request whose answer held a value.
/// Method: the growth of the process over three hundred of them, all of which live.
#[tokio::test]
async fn an_idle_proxy_takes_little_memory() {
    let (port, root) = host().await;
    let settings = Arc::new(EgressSettings {
        allow_private: vec!["127.0.0.0/8".parse().unwrap()],
        pinned: [("api.test".to_owned(), Ipv4Addr::LOCALHOST.into())].into(),
        extra_roots: vec![root],
        ..EgressSettings::default()
    });
    let mut all = Vec::new();
    for _ in 0..FIRST {
        let one = idler(&settings);
        work(&one, port).await;
        all.push(one);
    }
    let before = resident_kib();
    for _ in 0..COUNT {
        all.push(idler(&settings));
    }
    let made = resident_kib().saturating_sub(before);
    for one in &all[FIRST..] {
        work(one, port).await;
    }
    let used = resident_kib().saturating_sub(before);
    println!(
        "{} KiB as made, {} KiB after a request",
        made / COUNT,
        used / COUNT
    );
    assert!(made < COUNT * KIB_MAX, "{made} KiB for {COUNT}");
    assert!(used < COUNT * KIB_MAX, "{used} KiB for {COUNT}");
}
