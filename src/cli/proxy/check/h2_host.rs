//! A hostile host that speaks HTTP/2: it says back the field `x-key` in a header, the body and a
//! trailer, and gRPC messages as they came, and records requests in the form of HTTP/1.1.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::message::{Duplex, MESSAGE_BYTES_MAX, Message};
use super::upstream::{Tap, note};

/// How the type of gRPC messages begins.
const GRPC: &[u8] = b"application/grpc";

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
    write_fields(&mut raw, &parts.headers);
    raw.extend_from_slice(b"\r\n");
    let head = String::from_utf8_lossy(&raw).into_owned();
    let body = Limited::new(body, MESSAGE_BYTES_MAX).collect().await;
    let whole = body.is_ok();
    let body = body
        .ok()
        .map(|body| (body.trailers().cloned(), body.to_bytes()));
    let (trailers, body) = body.unwrap_or_default();
    raw.extend_from_slice(&body);
    write_fields(&mut raw, &trailers.unwrap_or_default());
    note(&tap, |tap| {
        tap.requests.push(Message {
            raw,
            head,
            body: body.to_vec(),
            whole,
        });
    });
    Ok(echo(&parts.headers, &body))
}

/// The field `x-key` in a header, the body and a trailer; to gRPC the message itself, as it came.
fn echo(headers: &HeaderMap, body: &Bytes) -> Response<Body> {
    let key = headers.get("x-key").cloned();
    let key = key.unwrap_or(HeaderValue::from_static("none"));
    let grpc = headers
        .get(CONTENT_TYPE)
        .filter(|kind| kind.as_bytes().starts_with(GRPC));
    let said = match grpc {
        Some(_) => body.clone(),
        None => Bytes::from([b"said: ", key.as_bytes(), b"\n"].concat()),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("x-echo-trailer", key.clone());
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let middle = said.len() / 2;
    let halves = [said.slice(..middle), said.slice(middle..)];
    let frames = halves.map(Frame::data).into_iter();
    let frames: Vec<_> = frames.chain([Frame::trailers(trailers)]).map(Ok).collect();
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    response.headers_mut().insert("x-echo", key);
    if let Some(kind) = grpc {
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    response
}

fn write_fields(raw: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        raw.extend_from_slice(
            &[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat(),
        );
    }
}
