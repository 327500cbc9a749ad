//! A hostile host that speaks HTTP/2: it says back the field `x-key` in a header, the body and a
//! trailer, and records requests in the form of HTTP/1.1.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::message::{Duplex, MESSAGE_BYTES_MAX, Message};
use super::upstream::{Tap, note};

/// Serves one connection.
pub async fn serve(stream: impl Duplex + 'static, tap: Arc<Mutex<Tap>>) {
    let service = service_fn(move |request| answer(request, tap.clone()));
    // A proxy that breaks off is seen by its client.
    let _ = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

type Body = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>;

async fn answer(
    request: Request<Incoming>,
    tap: Arc<Mutex<Tap>>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let mut raw = format!("{} {} HTTP/2\r\n", parts.method, parts.uri).into_bytes();
    for (name, value) in &parts.headers {
        raw.extend_from_slice(name.as_str().as_bytes());
        raw.extend_from_slice(b": ");
        raw.extend_from_slice(value.as_bytes());
        raw.extend_from_slice(b"\r\n");
    }
    raw.extend_from_slice(b"\r\n");
    let head = String::from_utf8_lossy(&raw).into_owned();
    let body = Limited::new(body, MESSAGE_BYTES_MAX).collect().await;
    let whole = body.is_ok();
    let body = body
        .map(|body| body.to_bytes().to_vec())
        .unwrap_or_default();
    raw.extend_from_slice(&body);
    let key = parts.headers.get("x-key").cloned();
    let key = key.unwrap_or(HeaderValue::from_static("none"));
    note(&tap, |tap| {
        tap.requests.push(Message {
            raw,
            head,
            body,
            whole,
        });
    });
    let said = [b"said: ", key.as_bytes(), b"\n"].concat();
    let middle = said.len() / 2;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-echo-trailer", key.clone());
    let halves = [said.get(..middle), said.get(middle..)];
    let mut frames: Vec<_> = halves
        .into_iter()
        .flatten()
        .map(|half| Ok(Frame::data(Bytes::copy_from_slice(half))))
        .collect();
    frames.push(Ok(Frame::trailers(trailers)));
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    response.headers_mut().insert("x-echo", key);
    Ok(response)
}
