//! HTTP/2 for tests: hosts and programs made of hyper, and frames written by hand where hyper
//! would not send what a hostile one does.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::wire::Io;
use crate::world::{World, soon};

pub type TestBody = BoxBody<Bytes, Infallible>;

/// A request as an HTTP/2 host saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

/// A host that speaks HTTP/2.
pub struct Host2 {
    pub port: u16,
    pub connections: Arc<AtomicUsize>,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

impl Host2 {
    pub fn last(&self) -> Seen {
        let seen = self.seen.lock().unwrap();
        seen.last().expect("a request reached the host").clone()
    }
    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

pub fn whole(bytes: impl Into<Bytes>) -> TestBody {
    Full::new(bytes.into()).boxed()
}

/// A body with fields behind it.
pub fn with_trailers(bytes: impl Into<Bytes>, trailers: &[(&'static str, String)]) -> TestBody {
    let mut fields = HeaderMap::new();
    for (name, value) in trailers {
        fields.insert(*name, value.parse().unwrap());
    }
    whole(bytes)
        .with_trailers(std::future::ready(Some(Ok(fields))))
        .boxed()
}

/// A host that answers each whole request with what `answer` makes of it.
pub async fn host2(
    tls: TlsAcceptor,
    answer: impl Fn(&Seen) -> Response<TestBody> + Send + Sync + 'static,
) -> Host2 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (connections, seen) = (Arc::new(AtomicUsize::new(0)), Arc::default());
    let host = Host2 {
        port,
        connections: connections.clone(),
        seen: Arc::clone(&seen),
    };
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            let (tls, seen, answer) = (tls.clone(), Arc::clone(&seen), answer.clone());
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else {
                    return;
                };
                let service = service_fn(move |request: Request<Incoming>| {
                    let (seen, answer) = (Arc::clone(&seen), answer.clone());
                    async move {
                        let (parts, body) = request.into_parts();
                        let Ok(body) = body.collect().await else {
                            return Ok::<_, Infallible>(Response::new(whole("cut")));
                        };
                        let trailers = body.trailers().cloned();
                        let one = Seen {
                            uri: parts.uri,
                            headers: parts.headers,
                            body: body.to_bytes(),
                            trailers,
                        };
                        seen.lock().unwrap().push(one.clone());
                        Ok(answer(&one))
                    }
                });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    host
}

/// Answers with everything that came: fields in a field, the body in the body.
pub fn echo2(seen: &Seen) -> Response<TestBody> {
    let fields: Vec<String> = seen
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap_or("?")))
        .collect();
    let echo = fields.join("|");
    Response::builder()
        .header("x-echo", echo)
        .header("x-uri", seen.uri.to_string())
        .body(whole(seen.body.clone()))
        .unwrap()
}

/// A program's HTTP/2 connection through the proxy.
pub async fn client2(world: &World, name: &str, port: u16) -> SendRequest<TestBody> {
    let stream = world.connect(name, port).await;
    let stream = world.tls_offering(stream, name, &["h2"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

/// A response read whole.
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    pub fn rule(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        body["rule"].as_str().unwrap().to_owned()
    }
}

/// Sends a request; fails when the stream does.
pub async fn ask2(
    sender: &mut SendRequest<TestBody>,
    request: Request<TestBody>,
) -> hyper::Result<Reply> {
    let response = soon(sender.send_request(request)).await?;
    let (parts, body) = response.into_parts();
    assert_eq!(parts.version, Version::HTTP_2);
    let body = soon(body.collect()).await?;
    Ok(Reply {
        status: parts.status.as_u16(),
        headers: parts.headers,
        trailers: body.trailers().cloned(),
        body: body.to_bytes(),
    })
}

/// A GET of a URI.
pub fn get2(uri: &str) -> Request<TestBody> {
    Request::get(uri).body(whole("")).unwrap()
}

/// One HTTP/2 frame.
#[derive(Clone, Debug)]
pub struct RawFrame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const GOAWAY: u8 = 7;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// The connection preface and empty settings.
pub fn preface() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header block of literals, whatever is in them (RFC 7541, section 6.2.2).
pub fn block(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name.as_bytes(), value] {
            let mut rest = text.len();
            if rest < 127 {
                bytes.push(u8::try_from(rest).unwrap());
            } else {
                bytes.push(127);
                rest -= 127;
                while rest >= 128 {
                    bytes.push(u8::try_from(rest % 128 + 128).unwrap());
                    rest /= 128;
                }
                bytes.push(u8::try_from(rest).unwrap());
            }
            bytes.extend(text.iter());
        }
    }
    bytes
}

/// A request's HEADERS frame with the usual pseudo-fields for `api.test`, then `more`.
pub fn request_frame(stream: u32, end: bool, more: &[(&str, &[u8])]) -> Vec<u8> {
    let mut fields: Vec<(&str, &[u8])> = vec![
        (":method", b"POST"),
        (":scheme", b"https"),
        (":path", b"/front"),
        (":authority", b"api.test"),
    ];
    for (name, value) in more {
        match fields
            .iter_mut()
            .find(|(known, _)| known == name && known.starts_with(':'))
        {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
    }
    fields.retain(|(name, value)| !(name.starts_with(':') && value.is_empty()));
    let flags = END_HEADERS | if end { END_STREAM } else { 0 };
    frame(HEADERS, flags, stream, &block(&fields))
}

/// The next frame; `None` at the end.
pub async fn next_frame(io: &mut (impl AsyncRead + Unpin)) -> Option<RawFrame> {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    io.read_exact(&mut payload).await.ok()?;
    Some(RawFrame {
        kind: head[3],
        flags: head[4],
        stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
        payload,
    })
}

/// How a stream went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Answered; the body.
    Answered(String),
    /// Reset.
    Reset,
    /// The connection ended.
    Ended,
}

impl Fate {
    pub fn is_refused_by(&self, rule: &str) -> bool {
        matches!(self, Self::Answered(text) if text.contains(&format!("\"rule\":\"{rule}\"")))
    }
}

/// Reads until `stream` is over.
pub async fn fate(io: &mut Io, stream: u32) -> Fate {
    let mut body = Vec::new();
    while let Some(frame) = soon(next_frame(io)).await {
        match frame.kind {
            GOAWAY => return Fate::Ended,
            RST_STREAM if frame.stream == stream => return Fate::Reset,
            DATA if frame.stream == stream => body.extend(frame.payload),
            _ => {}
        }
        let over = matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0;
        if over && frame.stream == stream {
            return Fate::Answered(String::from_utf8_lossy(&body).into_owned());
        }
    }
    Fate::Ended
}
