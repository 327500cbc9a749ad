//! The hostile client: CONNECT, TLS and requests, each as it should not be.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::authority::crypto;
use super::message::{Duplex, Message, Reader};
use super::world::World;

/// No single step takes longer.
pub const STEP: Duration = Duration::from_secs(8);

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The proxy said no to CONNECT.
    #[error("CONNECT was answered with status {0}")]
    Refused(u16),
    /// The proxy, or what it let through, ended the TLS handshake.
    #[error("TLS was refused")]
    Tls,
    /// The connection ended without an answer.
    #[error("the connection was closed")]
    Closed,
    /// Nothing happened.
    #[error("no answer within {} seconds", STEP.as_secs())]
    Late,
    /// Nobody listens at the target, or this machine fails.
    #[error("{0}")]
    Local(String),
}

impl Trouble {
    /// Whether the proxy said no, as opposed to nothing, or nobody.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Tls | Self::Closed)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Local(error.to_string())
    }
}

impl World {
    /// A connection to the proxy.
    pub async fn dial(&self) -> Result<TcpStream, Trouble> {
        let stream = timeout(STEP, TcpStream::connect(self.target.as_str())).await;
        let stream = stream.map_err(|_| Trouble::Late)?;
        let stream = stream.map_err(|error| Trouble::Local(format!("{}: {error}", self.target)))?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// A tunnel to `authority`, which is sent as it is.
    pub async fn tunnel(&self, authority: &[u8]) -> Result<TcpStream, Trouble> {
        let mut stream = self.dial().await?;
        let request = [
            b"CONNECT ",
            authority,
            b" HTTP/1.1\r\nhost: ",
            authority,
            b"\r\n\r\n",
        ];
        send(&mut stream, &request.concat()).await?;
        let mut head = Vec::new();
        // Byte by byte: what follows the head belongs to the tunnel.
        let read = async {
            use tokio::io::AsyncReadExt;
            while !head.ends_with(b"\r\n\r\n") && head.len() < 64 * 1024 {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return Err(Trouble::Closed),
                }
            }
            Ok(())
        };
        timeout(STEP, read).await.map_err(|_| Trouble::Late)??;
        let message = Message {
            head: String::from_utf8_lossy(&head).into_owned(),
            ..Message::default()
        };
        match message.status() {
            200..=299 => Ok(stream),
            status => Err(Trouble::Refused(status)),
        }
    }

    /// TLS in a tunnel to `authority`, asking for `sni` (none when `None`) and offering `alpn`.
    pub async fn tls(
        &self,
        authority: &str,
        sni: Option<&str>,
        alpn: &[&str],
    ) -> Result<TlsStream<TcpStream>, Trouble> {
        let stream = self.tunnel(authority.as_bytes()).await?;
        let mut config = match sni {
            Some(_) => self.trusting()?,
            None => blind()?,
        };
        config.enable_sni = sni.is_some();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(sni.unwrap_or(&self.kit.api).to_owned());
        let name = name.map_err(|_| Trouble::Local("not a name for TLS".to_owned()))?;
        let handshake = TlsConnector::from(Arc::new(config)).connect(name, stream);
        match timeout(STEP, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(_)) => Err(Trouble::Tls),
            Err(_) => Err(Trouble::Late),
        }
    }

    /// TLS to `host` as an honest client would.
    pub async fn secure(&self, host: &str, port: u16) -> Result<TlsStream<TcpStream>, Trouble> {
        self.tls(&format!("{host}:{port}"), Some(host), &[]).await
    }

    /// One request to `host` on a connection of its own.
    pub async fn ask(
        &self,
        host: &str,
        port: u16,
        request: impl AsRef<[u8]>,
    ) -> Result<Message, Trouble> {
        let mut stream = self.secure(host, port).await?;
        ask(&mut stream, request.as_ref()).await
    }

    fn trusting(&self) -> Result<ClientConfig, Trouble> {
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(self.roots.iter().cloned());
        if added == 0 {
            return Err(Trouble::Local("no certificate of the proxy".to_owned()));
        }
        Ok(builder()?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Trouble> {
    ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()
        .map_err(|error| Trouble::Local(error.to_string()))
}

/// For a client that asks for no name, and so can't know which certificate to expect.
fn blind() -> Result<ClientConfig, Trouble> {
    let config = builder()?.dangerous();
    Ok(config
        .with_custom_certificate_verifier(Arc::new(Blind))
        .with_no_client_auth())
}

#[derive(Debug)]
struct Blind;

impl ServerCertVerifier for Blind {
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

/// Sends bytes, but does not wait for ever.
pub async fn send(io: &mut (impl Duplex + ?Sized), bytes: &[u8]) -> Result<(), Trouble> {
    let work = async {
        io.write_all(bytes).await?;
        io.flush().await
    };
    match timeout(STEP, work).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Trouble::Closed),
        Err(_) => Err(Trouble::Late),
    }
}

/// One request and its answer.
pub async fn ask(io: &mut (impl Duplex + ?Sized), request: &[u8]) -> Result<Message, Trouble> {
    // A proxy may answer and close before it has read all.
    let sent = send(io, request).await;
    match Reader::new().message(io).await {
        Some(answer) => Ok(answer),
        None => Err(sent.err().unwrap_or(Trouble::Closed)),
    }
}

/// A GET with more fields, each ending in CR LF.
pub fn get(host: &str, path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n")
}

/// A POST with a body of known length.
pub fn post(host: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST / HTTP/1.1\r\nhost: {host}\r\n{fields}content-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}
