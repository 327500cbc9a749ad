//! HTTP/2 as an honest client speaks it, to read what a compressed head says.

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::client::{STEP, Trouble};
use super::world::World;

/// Longest body read, in bytes.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What came back.
#[derive(Default)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// Names and values of the head's fields.
    pub fields: Vec<u8>,
    /// The body; empty when it was broken off.
    pub body: Vec<u8>,
    /// Names and values of the trailers.
    pub trailers: Vec<u8>,
}

impl Answer {
    /// Everything that a client reads.
    pub fn all(&self) -> Vec<u8> {
        [&self.fields[..], b"\n", &self.body, b"\n", &self.trailers].concat()
    }
}

impl World {
    /// One request over HTTP/2; `None` when the target does not speak it with clients.
    pub async fn ask_h2<B>(
        &self,
        host: &str,
        port: u16,
        request: Request<B>,
    ) -> Result<Option<Answer>, Trouble>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let authority = format!("{host}:{port}");
        let stream = match self.tls(&authority, Some(host), &["h2"]).await {
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => stream,
            Ok(_) | Err(Trouble::Tls) => return Ok(None),
            Err(trouble) => return Err(trouble),
        };
        let work = async {
            let made = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (mut sender, connection) = made.map_err(|_| Trouble::Closed)?;
            let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
            let response = sender.send_request(request).await;
            let (parts, body) = response.map_err(|_| Trouble::Closed)?.into_parts();
            let body = Limited::new(body, BODY_BYTES_MAX).collect().await.ok();
            let body = body.map(|body| (body.trailers().cloned(), body.to_bytes()));
            let (trailers, body) = body.unwrap_or_default();
            Ok(Some(Answer {
                status: parts.status,
                fields: text(&parts.headers),
                body: body.to_vec(),
                trailers: text(&trailers.unwrap_or_default()),
            }))
        };
        timeout(STEP, work).await.map_err(|_| Trouble::Late)?
    }
}

fn text(fields: &HeaderMap) -> Vec<u8> {
    let lines = fields.iter();
    let lines =
        lines.map(|(name, value)| [name.as_str().as_bytes(), b": ", value.as_bytes()].concat());
    lines.collect::<Vec<_>>().join(&b"\n"[..])
}
