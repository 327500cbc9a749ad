//! The upstream host.
//!
//! | Request | Answer |
//! |---|---|
//! | `GET /bytes/N` | N bytes of JSON lines |
//! | `POST /sink` | how many bytes came |
//! | `GET /echo` | the `Authorization` field, as a host that gives a secret away |
//! | `GET /bomb` | a gzip body of a few kilobytes that opens to 64 MiB |
//!
//! Without the real value in `Authorization` the answer is 403.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::body::Repeat;
use crate::{Result, tls};

/// What the bomb opens to.
const BOMB_BYTES: usize = 64 * 1024 * 1024;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

#[derive(clap::Args)]
pub struct Args {
    /// Where to serve HTTP/1.1
    #[arg(long)]
    h1: SocketAddr,
    /// Where to serve HTTP/2
    #[arg(long)]
    h2: SocketAddr,
    /// Folder with the certificates
    #[arg(long)]
    certificates: PathBuf,
    /// The value that must come in `Authorization: Bearer`
    #[arg(long)]
    value: String,
}

pub async fn serve(args: Args) -> Result<()> {
    let expected: Arc<str> = format!("Bearer {}", args.value).into();
    let h1 = TcpListener::bind(args.h1).await?;
    let h2 = TcpListener::bind(args.h2).await?;
    let tls_h1 = TlsAcceptor::from(tls::server(&args.certificates, b"http/1.1")?);
    let tls_h2 = TlsAcceptor::from(tls::server(&args.certificates, b"h2")?);
    println!("ready");
    loop {
        let (stream, tls, two) = tokio::select! {
            accepted = h1.accept() => (accepted?.0, tls_h1.clone(), false),
            accepted = h2.accept() => (accepted?.0, tls_h2.clone(), true),
        };
        let expected = expected.clone();
        tokio::task::spawn_local(async move {
            let _ = stream.set_nodelay(true);
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let io = TokioIo::new(stream);
            let service = service_fn(move |request| answer(request, expected.clone()));
            // A client that goes away is how every case ends.
            let _ = match two {
                true => {
                    let server = http2::Builder::new(TokioExecutor::new());
                    server.serve_connection(io, service).await
                }
                false => http1::Builder::new().serve_connection(io, service).await,
            };
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    expected: Arc<str>,
) -> std::result::Result<Answer, Infallible> {
    let authorization = request.headers().get(http::header::AUTHORIZATION);
    if authorization.is_none_or(|found| found.as_bytes() != expected.as_bytes()) {
        return Ok(text(StatusCode::FORBIDDEN, "not the value"));
    }
    let path = request.uri().path();
    if let Some(length) = path.strip_prefix("/bytes/") {
        let body = Repeat::new(length.parse().unwrap_or(0));
        return Ok(json(StatusCode::OK, body.boxed_unsync()));
    }
    Ok(match path {
        "/sink" => {
            let mut body = request.into_body();
            let mut bytes = 0;
            while let Some(Ok(frame)) = body.frame().await {
                bytes += frame.data_ref().map_or(0, Bytes::len);
            }
            text(StatusCode::OK, bytes.to_string())
        }
        "/echo" => text(StatusCode::OK, expected.to_string()),
        "/bomb" => {
            let mut answer = json(StatusCode::OK, Full::new(bomb()).boxed_unsync());
            let gzip = http::HeaderValue::from_static("gzip");
            answer
                .headers_mut()
                .insert(http::header::CONTENT_ENCODING, gzip);
            answer
        }
        _ => text(StatusCode::NOT_FOUND, "no such path"),
    })
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    json(status, Full::new(text.into()).boxed_unsync())
}

/// A head of the usual size.
fn json(status: StatusCode, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    for (name, value) in [
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("x-request-id", "req_011CQz5fYQWcXgTgVbUkJp5v"),
        ("strict-transport-security", "max-age=31536000"),
    ] {
        let value = http::HeaderValue::from_static(value);
        answer.headers_mut().insert(name, value);
    }
    answer
}

fn bomb() -> Bytes {
    static BOMB: OnceLock<Bytes> = OnceLock::new();
    BOMB.get_or_init(|| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let zeros = vec![b'0'; 1024 * 1024];
        for _ in 0..BOMB_BYTES / zeros.len() {
            encoder.write_all(&zeros).expect("memory takes everything");
        }
        encoder.finish().expect("memory takes everything").into()
    })
    .clone()
}
