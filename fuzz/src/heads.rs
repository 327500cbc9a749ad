//! Heads of requests, as HTTP/1.1 has them and as HTTP/2 does.

use std::cell::RefCell;
use std::convert::Infallible;
use std::sync::Arc;

use http::{HeaderMap, Method, Request, Response, Uri, Version, header, request};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::{HOST, TOKEN, expand, holds, rules};
use crate::proxy::head::{check_request, rewrite_request};
use crate::proxy::origin::Origin;
use crate::proxy::refusal::full;
use crate::proxy::serve::http_server;
use crate::proxy::tally::Tally;
use crate::proxy::websocket;

/// Requests that pass go out with one host, ours, no field of the connection, nothing that could
/// be read as another field, and no token of the host's own in the head.
pub fn framing(data: &[u8]) {
    thread_local! {
        static RUNTIME: RefCell<tokio::runtime::Runtime> = RefCell::new(
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime"),
        );
    }
    let mut bytes = expand(data);
    if !bytes.contains(&b'\n') {
        // A head is long to write: one that is not there is begun.
        bytes = [
            b"GET / HTTP/1.1\r\nhost: api.example\r\n",
            bytes.as_slice(),
            b"\r\n\r\n",
        ]
        .concat();
    }
    let io = tokio::io::join(bytes.as_slice(), tokio::io::sink());
    let service = service_fn(|request: Request<Incoming>| async {
        let (parts, body) = request.into_parts();
        let asked = websocket::Handshake::of(&parts);
        if let (Some(mut headers), Ok(Some(mut handshake))) = (sent(parts), asked) {
            handshake.write_request(&mut headers);
        }
        let _ = Limited::new(body, 1 << 20).collect().await;
        Ok::<_, Infallible>(Response::new(full("")))
    });
    RUNTIME.with_borrow_mut(|runtime| {
        let served = async {
            let connection = http_server().serve_connection(TokioIo::new(io), service);
            let _ = connection.await;
        };
        runtime.block_on(served);
    });
}

/// The same for heads of HTTP/2: lines with the authority, the path, and a field each, of which
/// those that HTTP/2 can't carry are left out.
pub fn heads(data: &[u8]) {
    let text = expand(data);
    let mut lines = text.split(|&byte| byte == b'\n');
    let mut part = |usual: &'static [u8]| match lines.next() {
        Some([]) | None => usual,
        Some(given) => given,
    };
    let (authority, path) = (part(HOST.as_bytes()), part(b"/"));
    let target = [&b"https://"[..], authority, path].concat();
    let Ok(target) = Uri::try_from(target.as_slice()) else {
        return;
    };
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::POST;
    parts.version = Version::HTTP_2;
    parts.uri = target;
    for line in lines.take(64) {
        let mut halves = line.splitn(2, |&byte| byte == b':');
        let (name, value) = (halves.next(), halves.next().unwrap_or_default());
        let name = header::HeaderName::from_lowercase(name.unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, header::HeaderValue::from_bytes(value)) {
            parts.headers.append(name, value);
        }
    }
    sent(parts);
}

/// The fields of the request as it goes out in either version, each checked; `None` when it is
/// refused.
fn sent(mut parts: request::Parts) -> Option<HeaderMap> {
    let host = HOST.parse().expect("a host");
    let origin = Origin::new(host, 443, true).expect("an origin");
    check_request(&parts, &origin).ok()?;
    rewrite_request(&mut parts, &rules(), &Arc::<Tally>::default()).ok()?;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        origin.address(&mut parts.uri, &mut parts.headers, version);
        check_outgoing(&parts, version);
    }
    Some(parts.headers)
}

fn check_outgoing(parts: &request::Parts, version: Version) {
    let headers = &parts.headers;
    let hosts: Vec<_> = headers.get_all(header::HOST).iter().collect();
    if version == Version::HTTP_2 {
        assert!(hosts.is_empty() && !headers.contains_key(header::CONNECTION));
        assert_eq!(parts.uri.authority().map(|name| name.as_str()), Some(HOST));
    } else {
        assert_eq!(hosts, [HOST]);
        assert!(parts.uri.authority().is_none() && parts.uri.scheme().is_none());
        assert!(
            headers
                .get(header::CONNECTION)
                .is_none_or(|value| value == "te")
        );
    }
    for name in [
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
        header::UPGRADE,
    ] {
        assert!(!headers.contains_key(name));
    }
    for value in headers.values() {
        let odd = |&byte: &u8| matches!(byte, b'\r' | b'\n' | 0);
        assert!(!value.as_bytes().iter().any(odd));
        assert!(!holds(value.as_bytes(), TOKEN));
    }
    assert!(!holds(parts.uri.to_string().as_bytes(), TOKEN));
}
