//! The ways to the upstream host: straight, through a CONNECT proxy, or by a reverse proxy.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::body::Repeat;
use crate::{HOST, Result, tls};

/// Bytes of an answer to CONNECT.
const HEAD_BYTES_MAX: usize = 4096;

#[derive(clap::Args, Clone)]
pub struct RouteArgs {
    /// The CONNECT proxy; none for a straight connection
    #[arg(long)]
    proxy: Option<SocketAddr>,
    /// Port of the upstream host, or of the reverse proxy, on loopback
    #[arg(long)]
    port: u16,
    /// Speak HTTP/2
    #[arg(long)]
    h2: bool,
    /// Certificates to trust
    #[arg(long)]
    root: Vec<PathBuf>,
    /// What to send after `Authorization: Bearer`: the token, or the value where nobody substitutes
    #[arg(long)]
    bearer: String,
}

/// How connections are made and requests look in this run.
pub struct Route {
    args: RouteArgs,
    tls: Arc<ClientConfig>,
    authorization: http::HeaderValue,
}

impl Route {
    pub fn new(args: RouteArgs) -> Result<Self> {
        let alpn: &[u8] = if args.h2 { b"h2" } else { b"http/1.1" };
        Ok(Self {
            tls: tls::client(&args.root, alpn)?,
            authorization: format!("Bearer {}", args.bearer).parse()?,
            args,
        })
    }

    /// A TCP connection on which the upstream host listens next.
    pub async fn tcp(&self) -> Result<TcpStream> {
        let port = self.args.port;
        let direct = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect(self.args.proxy.unwrap_or(direct)).await?;
        stream.set_nodelay(true)?;
        if self.args.proxy.is_some() {
            let head = format!("CONNECT {HOST}:{port} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                if answer.len() > HEAD_BYTES_MAX || stream.read_buf(&mut answer).await? == 0 {
                    return Err("no answer to CONNECT".into());
                }
            }
            if !answer.starts_with(b"HTTP/1.1 200") && !answer.starts_with(b"HTTP/1.0 200") {
                return Err(format!("CONNECT: {}", String::from_utf8_lossy(&answer)).into());
            }
        }
        Ok(stream)
    }

    /// A TLS connection that agreed on the protocol asked for.
    pub async fn secure(&self) -> Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(HOST)?;
        let connector = TlsConnector::from(self.tls.clone());
        let stream = connector.connect(name, self.tcp().await?).await?;
        if self.args.h2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err("no HTTP/2".into());
        }
        Ok(stream)
    }

    pub async fn open(&self) -> Result<Sender> {
        let io = TokioIo::new(self.secure().await?);
        if self.args.h2 {
            let (sender, driver) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::task::spawn_local(driver);
            Ok(Sender::Two(sender))
        } else {
            let (sender, driver) = http1::handshake(io).await?;
            tokio::task::spawn_local(driver);
            Ok(Sender::One(sender))
        }
    }

    /// A request with a head of the usual size.
    pub fn request(&self, path: &str, body: u64) -> Result<Request<Repeat>> {
        let authority = format!("{HOST}:{}", self.args.port);
        let mut request = Request::builder().method(if body > 0 { "POST" } else { "GET" });
        if self.args.h2 {
            request = request.uri(format!("https://{authority}{path}"));
        } else {
            request = request.uri(path).header(header::HOST, authority);
        }
        if body > 0 {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        Ok(request
            .header(header::USER_AGENT, "bench/1.0")
            .header(header::ACCEPT, "application/json")
            .header("x-api-version", "2026-01-01")
            .header(header::AUTHORIZATION, self.authorization.clone())
            .body(Repeat::new(body))?)
    }
}

/// One open connection.
pub enum Sender {
    One(http1::SendRequest<Repeat>),
    Two(http2::SendRequest<Repeat>),
}

impl Sender {
    async fn send(&mut self, request: Request<Repeat>) -> Result<Response<Incoming>> {
        Ok(match self {
            Self::One(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Two(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        })
    }

    /// One whole exchange; the length of the answer's body. Anything but 200 is an error.
    pub async fn exchange(&mut self, request: Request<Repeat>) -> Result<u64> {
        let response = self.send(request).await?;
        let status = response.status();
        let mut body = response.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame?.data_ref().map_or(0, Bytes::len) as u64;
        }
        match status.as_u16() {
            200 => Ok(length),
            other => Err(format!("status {other}").into()),
        }
    }

    /// As `exchange`, but the whole body.
    pub async fn read(&mut self, request: Request<Repeat>) -> Result<Bytes> {
        let response = self.send(request).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }
}
