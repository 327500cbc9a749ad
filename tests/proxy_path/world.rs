//! A proxied sandbox in small: hosts with certificates of a test authority, a proxy with one
//! secret for `api.test`, and clients that trust the sandbox's CA.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use opencomputer::proxy::{
    Binding, Decision, EgressSettings, Placement, Policy, SandboxCa, SandboxProxy, SealedToken,
    Target,
};
use opencomputer::secret::SecretValue;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::wire::{Io, Message, read_message};

/// The value bound to `api.test`; long and odd enough to be found wherever it leaks.
pub const VALUE: &str = "CANARY-v4lue/with+odd=chars&0001";
/// The value bound to `other.test`.
pub const OTHER_VALUE: &str = "CANARY-0ther-value-0002";
/// No single step of a test takes longer.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Everything the process logs, searched by every test.
static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;
impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn capture_logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let level = tracing_subscriber::filter::LevelFilter::TRACE;
        let _ = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(|| Log)
            .try_init();
    });
}

/// Waits for `step`, but not forever.
pub async fn soon<T>(step: impl Future<Output = T>) -> T {
    timeout(PATIENCE, step)
        .await
        .expect("the step did not finish in time")
}

/// What a host answers: raw bytes for a request.
pub type Answer = Arc<dyn Fn(&Message) -> Vec<u8> + Send + Sync>;

/// A host on loopback that records what reaches it.
pub struct Upstream {
    pub port: u16,
    pub requests: Arc<Mutex<Vec<Message>>>,
}

impl Upstream {
    pub fn heads(&self) -> Vec<String> {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .map(|message| message.head.clone())
            .collect()
    }
    pub fn last(&self) -> Message {
        self.requests
            .lock()
            .unwrap()
            .last()
            .expect("a request reached the host")
            .clone()
    }
    pub fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

/// An authority that signs test hosts.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub root: CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            issuer: Issuer::new(params, key),
            root,
        }
    }

    /// TLS for a host with these names.
    pub fn acceptor(&self, names: &[&str]) -> TlsAcceptor {
        self.acceptor_offering(names, &[])
    }

    /// TLS for a host with these names that agrees to these protocols.
    pub fn acceptor_offering(&self, names: &[&str], protocols: &[&str]) -> TlsAcceptor {
        let mut config = self.server_config(
            names,
            ServerConfig::builder_with_provider(crypto())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth(),
        );
        config.alpn_protocols = alpn(protocols);
        TlsAcceptor::from(Arc::new(config))
    }

    /// TLS for a host with these names that asks for a certificate signed by `clients`.
    pub fn acceptor_asking(
        &self,
        names: &[&str],
        clients: &CertificateDer<'static>,
    ) -> TlsAcceptor {
        let mut roots = RootCertStore::empty();
        roots.add(clients.clone()).unwrap();
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), crypto());
        let config = self.server_config(
            names,
            ServerConfig::builder_with_provider(crypto())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_client_cert_verifier(verifier.build().unwrap()),
        );
        TlsAcceptor::from(Arc::new(config))
    }

    fn server_config(
        &self,
        names: &[&str],
        builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
    ) -> ServerConfig {
        let (chain, key) = self.pair(names);
        let leaf = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        builder.with_single_cert(vec![leaf], key).unwrap()
    }

    /// A certificate and its key, PEM.
    pub fn pair(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let leaf = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        (leaf.pem(), key.serialize_pem())
    }
}

fn alpn(protocols: &[&str]) -> Vec<Vec<u8>> {
    protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect()
}

fn crypto() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Serves requests on loopback, with TLS when given, keeping connections alive.
pub async fn upstream(tls: Option<TlsAcceptor>, answer: Answer) -> Upstream {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = requests.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, answer, seen) = (tls.clone(), answer.clone(), seen.clone());
            tokio::spawn(async move {
                let stream: Io = match tls {
                    Some(tls) => match tls.accept(stream).await {
                        Ok(stream) => Box::new(stream),
                        Err(_) => return,
                    },
                    None => Box::new(stream),
                };
                serve_host(stream, &answer, &seen).await;
            });
        }
    });
    Upstream { port, requests }
}

async fn serve_host(mut stream: Io, answer: &Answer, seen: &Mutex<Vec<Message>>) {
    use tokio::io::AsyncWriteExt;
    let mut ahead = Vec::new();
    while let Some(message) = read_message(&mut stream, &mut ahead, false).await {
        let reply = answer(&message);
        seen.lock().unwrap().push(message);
        if stream.write_all(&reply).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

/// A plain 200 with `body`.
pub fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Answers with what came: the head in a field, head and body in the body.
pub fn echo() -> Answer {
    Arc::new(|message| {
        let all = [message.head.as_bytes(), &message.body].concat();
        let field: String = message.head.lines().collect::<Vec<_>>().join("|");
        let head = format!(
            "HTTP/1.1 200 OK\r\nx-echo: {field}\r\ncontent-length: {}\r\n\r\n",
            all.len()
        );
        [head.as_bytes(), &all].concat()
    })
}

/// Knobs of a world; the default is what most tests want.
pub struct Setup {
    pub allowlist: Vec<&'static str>,
    pub network: bool,
    pub policy: bool,
    pub strict: bool,
    pub inspect_all: bool,
    pub value: &'static str,
    /// Hosts the first secret is for.
    pub hosts: Vec<&'static str>,
    /// Where the first secret may stand.
    pub placement: Placement,
    /// The first secret is revoked.
    pub revoked: bool,
    /// Requests that carry a secret wait for their record.
    pub strict_audit: bool,
    /// Room in the audit trail.
    pub trail: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            allowlist: vec![],
            network: true,
            policy: true,
            strict: false,
            inspect_all: false,
            value: VALUE,
            hosts: vec!["api.test"],
            placement: Placement::default(),
            revoked: false,
            strict_audit: false,
            trail: 256,
        }
    }
}

impl Setup {
    fn policy(&self, tokens: &[SealedToken; 2]) -> Policy {
        let binding = |name: &str, token, value: &str, hosts: &[&str]| Binding {
            name: name.to_owned(),
            token,
            value: SecretValue::from(value.to_owned()),
            hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            placement: Placement::default(),
        };
        let mut bindings = vec![binding(
            "OTHER_KEY",
            tokens[1],
            OTHER_VALUE,
            &["other.test"],
        )];
        if !self.revoked {
            let first = binding("API_KEY", tokens[0], self.value, &self.hosts);
            let placement = self.placement.clone();
            bindings.push(Binding { placement, ..first });
        }
        let revoked = self.revoked.then(|| (tokens[0], "API_KEY".to_owned()));
        let allowlist = self
            .allowlist
            .iter()
            .map(|pattern| pattern.parse().unwrap())
            .collect();
        Policy::new(allowlist, bindings, self.network, true)
            .with_revoked(revoked.into_iter().collect())
    }
}

/// One sandbox's proxy and the hosts around it.
pub struct World {
    pub proxy: Arc<SandboxProxy>,
    pub authority: Authority,
    pub token: SealedToken,
    pub other_token: SealedToken,
    pub decisions: mpsc::Receiver<Decision>,
    seen: Vec<Decision>,
}

impl World {
    pub fn new(setup: &Setup) -> Self {
        capture_logs();
        let authority = Authority::new();
        let pinned = [
            "api.test",
            "other.test",
            "plain.test",
            "wrong.test",
            "sub.api.test",
        ];
        let settings = EgressSettings {
            allow_private: vec!["127.0.0.0/8".parse().unwrap()],
            pinned: pinned
                .map(|name| (name.to_owned(), Ipv4Addr::LOCALHOST.into()))
                .into(),
            extra_roots: vec![authority.root.clone()],
            inspect_all: setup.inspect_all,
            strict_tokens: setup.strict,
            strict_audit: setup.strict_audit,
            ..EgressSettings::default()
        };
        let tokens = [SealedToken::generate(), SealedToken::generate()];
        let policy = setup.policy.then(|| setup.policy(&tokens));
        let (trail, decisions) = mpsc::channel(setup.trail);
        let ca = SandboxCa::generate("sb-test").unwrap();
        let proxy = SandboxProxy::new(Arc::new(settings), ca, policy, trail);
        let [token, other_token] = tokens;
        Self {
            proxy,
            authority,
            token,
            other_token,
            decisions,
            seen: Vec::new(),
        }
    }

    /// Another policy, with the same tokens.
    pub fn set_policy(&self, setup: &Setup) {
        self.proxy
            .set_policy(setup.policy(&[self.token, self.other_token]));
    }

    /// A TLS host with the usual names.
    pub async fn host(&self, answer: Answer) -> Upstream {
        let names = ["api.test", "other.test", "plain.test", "sub.api.test"];
        upstream(Some(self.authority.acceptor(&names)), answer).await
    }

    /// A connection of the sandbox to `name`.
    pub async fn connect(&self, name: &str, port: u16) -> TcpStream {
        let ip = Ipv4Addr::new(198, 18, 0, 7).into();
        self.connect_to(Target {
            name: Some(name.to_owned()),
            ip,
            port,
        })
        .await
    }

    /// A connection of the sandbox to a bare address.
    pub async fn connect_ip(&self, ip: IpAddr, port: u16) -> TcpStream {
        self.connect_to(Target {
            name: None,
            ip,
            port,
        })
        .await
    }

    async fn connect_to(&self, target: Target) -> TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        tokio::spawn(self.proxy.clone().serve(far.unwrap().0, target));
        near.unwrap()
    }

    /// TLS on `stream`, trusting the sandbox's CA and the test authority.
    pub async fn tls<S>(&self, stream: S, name: &str) -> std::io::Result<TlsStream<S>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let ca = self.proxy.ca_certificate_pem().as_bytes();
        let roots = [
            CertificateDer::from_pem_slice(ca).unwrap(),
            self.authority.root.clone(),
        ];
        soon(tls_trusting(&roots, stream, name)).await
    }

    /// The same, with these protocols offered.
    pub async fn tls_offering<S>(
        &self,
        stream: S,
        name: &str,
        protocols: &[&str],
    ) -> std::io::Result<TlsStream<S>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let ca = self.proxy.ca_certificate_pem().as_bytes();
        let mut config = client_config(&[CertificateDer::from_pem_slice(ca).unwrap()]);
        config.alpn_protocols = alpn(protocols);
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        soon(connector.connect(name, stream)).await
    }

    /// A TLS connection of the sandbox to `name`.
    pub async fn secure(&self, name: &str, port: u16) -> Io {
        let stream = self.connect(name, port).await;
        Box::new(self.tls(stream, name).await.unwrap())
    }

    /// One request over a connection of its own.
    pub async fn ask(&self, name: &str, port: u16, request: impl AsRef<[u8]>) -> Message {
        let mut stream = self.secure(name, port).await;
        crate::wire::ask(&mut stream, request).await
    }

    /// The next decision.
    pub async fn decision(&mut self) -> Decision {
        let decision = soon(self.decisions.recv()).await.unwrap();
        self.seen.push(decision.clone());
        decision
    }

    /// No value anywhere in what the proxy told or logged.
    pub fn finish(mut self) {
        while let Ok(decision) = self.decisions.try_recv() {
            self.seen.push(decision);
        }
        let told = serde_json::to_string(&self.seen).unwrap();
        let log = LOG.lock().unwrap().clone();
        assert!(!told.contains("CANARY"), "a value in a decision: {told}");
        assert!(
            !String::from_utf8_lossy(&log).contains("CANARY"),
            "a value in the log"
        );
        assert!(
            !told.contains("osb_sealed_") && !told.contains('?'),
            "too much in {told}"
        );
    }
}

/// TLS on `stream`, trusting `roots` only.
pub async fn tls_trusting<S>(
    roots: &[CertificateDer<'static>],
    stream: S,
    name: &str,
) -> std::io::Result<TlsStream<S>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let config = client_config(roots);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

/// A client's TLS that trusts `roots` only.
pub fn client_config(roots: &[CertificateDer<'static>]) -> ClientConfig {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).unwrap();
    }
    ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth()
}

/// An echo host that speaks whichever version was agreed on.
pub async fn either(tls: TlsAcceptor) -> u16 {
    use crate::two::{Seen, echo2};
    use http_body_util::BodyExt;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else {
                    return;
                };
                let two = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let service = hyper::service::service_fn(
                    |request: http::Request<hyper::body::Incoming>| async move {
                        let (parts, body) = request.into_parts();
                        let seen = Seen {
                            uri: parts.uri,
                            headers: parts.headers,
                            body: body.collect().await.unwrap().to_bytes(),
                            trailers: None,
                        };
                        Ok::<_, std::convert::Infallible>(echo2(&seen))
                    },
                );
                let io = TokioIo::new(stream);
                if two {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(io, service).await;
                } else {
                    let server = hyper::server::conn::http1::Builder::new();
                    let _ = server.serve_connection(io, service).await;
                }
            });
        }
    });
    port
}
