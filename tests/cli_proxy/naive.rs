//! A proxy as one would write it in an afternoon: it replaces tokens in what clients send, and
//! that is all it does. It reaches loopback only, so that no test leaves this machine.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Names of the kit, by which clients verify the proxy.
const NAMES: [&str; 11] = [
    "api.oc-check.localhost",
    "other.oc-check.localhost",
    "wild.oc-check.localhost",
    "a.wild.oc-check.localhost",
    "plain.oc-check.localhost",
    "inside.oc-check.localhost",
    "api.oc-outside.localhost",
    "xapi.oc-check.localhost",
    "sub.api.oc-check.localhost",
    "api.oc-check.localhost.oc-check.localhost",
    "xwild.oc-check.localhost",
];

pub struct Naive {
    pub address: String,
    _runtime: tokio::runtime::Runtime,
}

struct Inner {
    swaps: Vec<(Vec<u8>, Vec<u8>)>,
    near: TlsAcceptor,
    far: TlsConnector,
}

impl Naive {
    /// Starts with the tokens of the kit, and puts its authority there.
    pub fn start(kit: &Path) -> Self {
        let facts: Vec<serde_json::Value> =
            serde_json::from_slice(&fs::read(kit.join("kit.json")).unwrap()).unwrap();
        let swap = |fact: &serde_json::Value| {
            let value = fs::read(kit.join(fact["value_file"].as_str().unwrap())).unwrap();
            (fact["token"].as_str().unwrap().as_bytes().to_vec(), value)
        };
        let inner = Arc::new(Inner {
            swaps: facts.iter().map(swap).collect(),
            near: near(kit),
            far: far(),
        });
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime
            .block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
            .unwrap();
        let address = listener.local_addr().unwrap().to_string();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let inner = inner.clone();
                tokio::spawn(async move { inner.serve(stream).await });
            }
        });
        Self {
            address,
            _runtime: runtime,
        }
    }
}

fn near(kit: &Path) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    fs::write(
        kit.join("proxy-ca.pem"),
        params.self_signed(&key).unwrap().pem(),
    )
    .unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(NAMES.map(str::to_owned)).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

fn far() -> TlsConnector {
    let config = ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

fn crypto() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Inner {
    async fn serve(&self, mut near: TcpStream) -> Option<()> {
        let (head, body) = request(&mut near).await?;
        let target = head.split(' ').nth(1)?.to_owned();
        if !head.starts_with("CONNECT ") {
            let authority = target
                .strip_prefix("http://")?
                .split('/')
                .next()?
                .to_owned();
            let authority = match authority.rsplit_once(':') {
                Some(_) => authority,
                None => format!("{authority}:80"),
            };
            let mut far = match dial(&authority).await {
                Ok(far) => far,
                Err(_) => return refuse(&mut near).await,
            };
            far.write_all(&self.replaced(&head, body)).await.ok()?;
            tokio::io::copy_bidirectional(&mut near, &mut far)
                .await
                .ok()?;
            return Some(());
        }
        let far = match dial(&target).await {
            Ok(far) => far,
            Err(_) => return refuse(&mut near).await,
        };
        near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
        let mut first = [0];
        near.peek(&mut first).await.ok()?;
        if first != [0x16] {
            return self.pass(near, far).await;
        }
        let near = self.near.accept(near).await.ok()?;
        let name = ServerName::try_from("api.oc-check.localhost").unwrap();
        let far = self.far.connect(name, far).await.ok()?;
        self.pass(near, far).await
    }

    /// Requests one way, with tokens replaced; answers the other, as they come.
    async fn pass<N, F>(&self, near: N, far: F) -> Option<()>
    where
        N: AsyncRead + AsyncWrite,
        F: AsyncRead + AsyncWrite,
    {
        let (mut near_read, mut near_write) = tokio::io::split(near);
        let (mut far_read, mut far_write) = tokio::io::split(far);
        let requests = async {
            while let Some((head, body)) = request(&mut near_read).await {
                far_write
                    .write_all(&self.replaced(&head, body))
                    .await
                    .ok()?;
                far_write.flush().await.ok()?;
            }
            Some(())
        };
        let answers = async {
            tokio::io::copy(&mut far_read, &mut near_write).await.ok()?;
            near_write.shutdown().await.ok()
        };
        tokio::select! {
            _ = requests => {}
            _ = answers => {}
        }
        Some(())
    }

    fn replaced(&self, head: &str, body: Vec<u8>) -> Vec<u8> {
        let before = format!("content-length: {}\r\n", body.len());
        let body = self.swapped(body);
        let after = format!("content-length: {}\r\n", body.len());
        let head = self.swapped(head.replace(&before, &after).into_bytes());
        [head, body].concat()
    }

    fn swapped(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        for (token, value) in &self.swaps {
            while let Some(at) = memchr::memmem::find(&bytes, token) {
                bytes.splice(at..at + token.len(), value.iter().copied());
            }
        }
        bytes
    }
}

async fn refuse(near: &mut TcpStream) -> Option<()> {
    let answer = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    near.write_all(answer).await.ok()?;
    near.shutdown().await.ok()
}

/// A head, and a body of known length.
async fn request(io: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(Some(0), |length| length.trim().parse().ok())?];
    io.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

/// Names of the kit lead to loopback; numbers are read by the system, in all its spellings.
async fn dial(authority: &str) -> io::Result<TcpStream> {
    let refused = || io::Error::other("not on this machine");
    let (host, port) = authority.rsplit_once(':').ok_or_else(refused)?;
    let port: u16 = port.parse().map_err(|_| refused())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let ip: IpAddr = if host == "inside.oc-check.localhost" {
        Ipv4Addr::new(127, 0, 0, 2).into()
    } else if host.ends_with("localhost") {
        Ipv4Addr::LOCALHOST.into()
    } else if host
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit() || b"x.:".contains(&byte))
    {
        let mut found: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
        found.pop().ok_or_else(refused)?.ip().to_canonical()
    } else {
        return Err(refused());
    };
    if !ip.is_loopback() && !ip.is_unspecified() {
        return Err(refused());
    }
    TcpStream::connect((ip, port)).await
}

/// Believes every certificate.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
