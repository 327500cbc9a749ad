//! hudsucker with the same task: the token becomes the value in the fields and bodies of requests
//! to one host. Responses pass as they come: it is spared the re-seal.
//!
//! It is given what ours has, so that the comparison is of the proxies: TCP_NODELAY on both sides,
//! the same allocator, X25519 and P-256, a pool of connections to the host, one thread.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Full};
use hudsucker::certificate_authority::RcgenAuthority;
use hudsucker::hyper::http::HeaderValue;
use hudsucker::hyper::{Method, Request, Response, StatusCode};
use hudsucker::rcgen::{Issuer, KeyPair};
use hudsucker::rustls::crypto::{CryptoProvider, aws_lc_rs};
use hudsucker::rustls::pki_types::CertificateDer;
use hudsucker::rustls::pki_types::pem::PemObject;
use hudsucker::rustls::{ClientConfig, RootCertStore};
use hudsucker::{Body, HttpContext, HttpHandler, Proxy, RequestOrResponse};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use memchr::memmem::Finder;
use tokio::net::TcpSocket;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
struct Args {
    #[arg(long)]
    listen: SocketAddr,
    /// The host that holds the secret; it is on loopback
    #[arg(long)]
    host: String,
    #[arg(long)]
    token: String,
    #[arg(long)]
    value: String,
    /// Root certificate of the host
    #[arg(long)]
    root: PathBuf,
    /// Folder with the authority to sign with: `ca.pem`, `ca.key`
    #[arg(long)]
    certificates: PathBuf,
    /// Threads; one, unless told
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = match args.threads {
        0 => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?,
        threads => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()?,
    };
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> Result<()> {
    let provider = CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let key = KeyPair::from_pem(&std::fs::read_to_string(args.certificates.join("ca.key"))?)?;
    let pem = std::fs::read_to_string(args.certificates.join("ca.pem"))?;
    let issuer = Issuer::from_ca_cert_pem(&pem, key)?;
    let ca = RcgenAuthority::new(issuer, 1_000, provider.clone());

    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&args.root)?)?;
    let tls = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new_with_resolver(Loopback);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_http1()
        .enable_http2()
        .wrap_connector(tcp);

    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    // Linux hands it on to every accepted connection.
    socket.set_nodelay(true)?;
    socket.bind(args.listen)?;
    let listener = socket.listen(1024)?;
    println!("ready");
    let proxy = Proxy::builder()
        .with_listener(listener)
        .with_ca(ca)
        .with_http_connector(https)
        .with_http_handler(Substitute(Arc::new(Rule {
            host: args.host,
            finder: Finder::new(&args.token).into_owned(),
            value: args.value,
        })))
        .build()?;
    Ok(proxy.start().await?)
}

/// Every name is loopback.
#[derive(Clone)]
struct Loopback;

impl tower_service::Service<Name> for Loopback {
    type Response = std::iter::Once<SocketAddr>;
    type Error = Infallible;
    type Future = Ready<std::result::Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        ready(Ok(std::iter::once((Ipv4Addr::LOCALHOST, 0).into())))
    }
}

struct Rule {
    host: String,
    finder: Finder<'static>,
    value: String,
}

impl Rule {
    /// `None` when there is nothing to do.
    fn apply(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut from = 0;
        for at in self.finder.find_iter(bytes) {
            out.extend_from_slice(&bytes[from..at]);
            out.extend_from_slice(self.value.as_bytes());
            from = at + self.finder.needle().len();
        }
        if from == 0 {
            return None;
        }
        out.extend_from_slice(&bytes[from..]);
        Some(out)
    }
}

#[derive(Clone)]
struct Substitute(Arc<Rule>);

impl HttpHandler for Substitute {
    async fn handle_request(
        &mut self,
        _: &HttpContext,
        request: Request<Body>,
    ) -> RequestOrResponse {
        let rule = &self.0;
        let bound = request.uri().host() == Some(&rule.host);
        if request.method() == Method::CONNECT || !bound {
            return request.into();
        }
        let (mut parts, body) = request.into_parts();
        for value in parts.headers.values_mut() {
            if let Some(changed) = rule.apply(value.as_bytes()) {
                match HeaderValue::from_bytes(&changed) {
                    Ok(changed) => *value = changed,
                    Err(_) => return refused(StatusCode::BAD_REQUEST),
                }
            }
        }
        // A token may be split anywhere, so the body must be whole.
        let Ok(whole) = body.collect().await else {
            return refused(StatusCode::BAD_REQUEST);
        };
        let whole = whole.to_bytes();
        let body = match rule.apply(&whole) {
            Some(changed) => {
                parts.headers.remove("content-length");
                Bytes::from(changed)
            }
            None => whole,
        };
        Request::from_parts(parts, Body::from(Full::new(body))).into()
    }
}

fn refused(status: StatusCode) -> RequestOrResponse {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.into()
}
