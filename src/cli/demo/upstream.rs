//! The stand-in HTTPS API of the demo: records the key it was sent and says it back in every
//! place a careless API might.
//!
//! Invariant: what it recorded stays in this process's memory.

use std::convert::Infallible;
use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use crate::cli::private_server::{ServerError, failed};

/// The path that answers plain.
pub const ECHO: &str = "/v1/echo";
/// The path that answers compressed.
pub const ECHO_GZIP: &str = "/v1/echo-gzip";
/// The header with the key.
pub const KEY_HEADER: &str = "x-api-key";
/// The header of the reply that says the key back.
pub const ECHO_HEADER: &str = "x-echo";
/// Calls kept; older ones are forgotten.
const CALLS_MAX: usize = 256;

/// One call as it arrived.
#[derive(Clone)]
pub struct Call {
    /// `/v1/echo`
    pub path: String,
    /// What the key header held.
    pub key: Zeroizing<String>,
}

/// The API, serving until the runtime ends.
pub struct Upstream {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The certificate of the authority that signed its own, in PEM.
    pub ca_pem: String,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Upstream {
    /// Starts serving `host` on a free port of 127.0.0.1.
    pub async fn start(host: &str) -> Result<Self, ServerError> {
        let (tls, ca_pem) = certificates(host).map_err(|error| {
            failed(|| "make the stand-in's certificate".to_owned())(std::io::Error::other(error))
        })?;
        let bind = async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let port = listener.local_addr()?.port();
            Ok((listener, port))
        };
        let (listener, port) = bind
            .await
            .map_err(failed(|| "listen on 127.0.0.1".to_owned()))?;
        let calls = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(accept(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            calls.clone(),
        ));
        Ok(Self {
            port,
            ca_pem,
            calls,
        })
    }

    /// The calls since the last time this was asked.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn certificates(
    host: &str,
) -> Result<(rustls::ServerConfig, String), Box<dyn std::error::Error + Send + Sync>> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec![host.to_owned()])?.signed_by(&key, &authority)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    Ok((config, authority.pem()))
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, calls: Arc<Mutex<Vec<Call>>>) {
    loop {
        // A connection that failed before it was accepted concerns nobody here.
        if let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(connection, tls.clone(), calls.clone()));
        }
    }
}

async fn serve(connection: TcpStream, tls: TlsAcceptor, calls: Arc<Mutex<Vec<Call>>>) {
    let Ok(stream) = tls.accept(connection).await else {
        return;
    };
    let service = service_fn(|request| {
        let reply = echo(&request, &calls);
        async { Ok::<_, Infallible>(reply) }
    });
    // A client that breaks off has its own error to tell.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn echo(request: &Request<Incoming>, calls: &Mutex<Vec<Call>>) -> Response<Full<Bytes>> {
    let key = header(request.headers(), KEY_HEADER);
    let path = request.uri().path().to_owned();
    let mut recorded = calls.lock().unwrap_or_else(PoisonError::into_inner);
    if recorded.len() == CALLS_MAX {
        recorded.remove(0);
    }
    recorded.push(Call {
        path: path.clone(),
        key: key.clone(),
    });
    drop(recorded);
    let body = serde_json::json!({ "path": path, "you_sent": { KEY_HEADER: key.as_str() } });
    let body = Zeroizing::new(body.to_string());
    let mut reply = Response::new(Full::default());
    if path == ECHO_GZIP {
        reply
            .headers_mut()
            .insert("content-encoding", http::HeaderValue::from_static("gzip"));
        *reply.body_mut() = Full::new(gzip(body.as_bytes()));
    } else {
        *reply.body_mut() = Full::new(Bytes::copy_from_slice(body.as_bytes()));
    }
    let json = http::HeaderValue::from_static("application/json");
    reply.headers_mut().insert("content-type", json);
    if let Ok(value) = http::HeaderValue::from_str(&key) {
        reply.headers_mut().insert(ECHO_HEADER, value);
    }
    reply
}

fn header(headers: &HeaderMap, name: &str) -> Zeroizing<String> {
    let text = headers.get(name).and_then(|value| value.to_str().ok());
    Zeroizing::new(text.unwrap_or_default().to_owned())
}

fn gzip(body: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Writing into memory does not fail; an empty body would fail the demo's check anyway.
    let _ = encoder.write_all(body);
    encoder.finish().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::SocketAddr;

    use super::*;

    /// Goal: the demo's checks have something to find: without a proxy between, the value comes
    /// back in the header, the body and the compressed body.
    #[test]
    fn the_key_is_recorded_and_said_back() {
        let test = async {
            let host = "api.example.test";
            let upstream = Upstream::start(host).await.unwrap();
            let ca = reqwest::Certificate::from_pem(upstream.ca_pem.as_bytes()).unwrap();
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, upstream.port));
            let client = reqwest::Client::builder()
                .no_proxy()
                .tls_certs_only([ca])
                .resolve(host, address)
                .build()
                .unwrap();
            for path in [ECHO, ECHO_GZIP] {
                let url = format!("https://{host}:{}{path}", upstream.port);
                let reply = client
                    .get(url)
                    .header(KEY_HEADER, "value")
                    .send()
                    .await
                    .unwrap();
                assert_eq!(reply.headers()[ECHO_HEADER], "value");
                let body = reply.bytes().await.unwrap();
                let mut text = String::new();
                if path == ECHO_GZIP {
                    flate2::read::GzDecoder::new(&body[..])
                        .read_to_string(&mut text)
                        .unwrap();
                } else {
                    text = String::from_utf8(body.to_vec()).unwrap();
                }
                assert!(text.contains(r#""x-api-key":"value""#), "{text}");
            }
            let calls = upstream.take_calls();
            assert_eq!(calls.len(), 2);
            assert!(calls.iter().all(|call| *call.key == "value"));
            assert!(upstream.take_calls().is_empty());
        };
        crate::cli::block_on(test).unwrap();
    }
}
