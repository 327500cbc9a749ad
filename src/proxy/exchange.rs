//! One HTTP/1.1 request to a host and its answer, with the seal applied both ways.
//!
//! Order matters: the host is judged, connected and verified before a value is put into
//! anything. Every failure becomes a readable answer and a record; none lets the request through.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header, request};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::body::{CountedBody, OutBody, StreamError, TransformedBody};
use super::connection::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX};
use super::content;
use super::decision::{Outcome, Protocol, Record};
use super::gate::SandboxProxy;
use super::head::{
    Origin, check_request, check_response_framing, rewrite_request, rewrite_response,
};
use super::name::Host;
use super::placement::drop_cookies;
use super::policy::HostRules;
use super::refusal::{Refusal, full};
use super::revoked::CutBody;

/// Bodies up to this length are gathered, so that the host sees a repaired `Content-Length`;
/// longer ones stream and turn to chunked, since the length is known only at their end.
const GATHERED_BODY_BYTES_MAX: u64 = 1024 * 1024;
/// Room a gathered body has after values took the place of tokens.
const GATHERED_GROWTH_FACTOR_MAX: usize = 4;
/// How long a kept connection to a host may take to become ready again.
const REUSE_TIMEOUT: Duration = Duration::from_millis(200);

/// Requests of one connection of a sandbox, one at a time, with the connection to the host kept
/// between them.
pub(crate) struct Exchange {
    proxy: Arc<SandboxProxy>,
    upstream: Mutex<Option<Upstream>>,
}

struct Upstream {
    origin: Origin,
    sender: SendRequest<OutBody>,
    _driver: AbortOnDropHandle<()>,
}

impl Exchange {
    pub fn new(proxy: Arc<SandboxProxy>) -> Self {
        Self {
            proxy,
            upstream: Mutex::new(None),
        }
    }

    /// Answers one request to `origin`.
    pub async fn answer(&self, request: Request<Incoming>, origin: &Origin) -> Response<OutBody> {
        let protocol = if origin.tls {
            Protocol::Https
        } else {
            Protocol::Http
        };
        let mut record = self.proxy.record(&origin.host, origin.port, protocol);
        record.method(request.method());
        let (revoked, tally) = (self.proxy.revoked().clone(), record.tally.clone());
        let forwarded = tokio::select! {
            biased;
            refusal = revoked.cut(&tally) => Err(refusal),
            forwarded = self.forward(request, origin, &mut record) => forwarded,
        };
        match forwarded {
            Ok(response) => {
                record.status(response.status());
                let bytes = record.down.clone();
                response.map(|body| {
                    let body = CutBody::new(body, revoked, tally);
                    CountedBody::new(body, bytes, record).boxed_unsync()
                })
            }
            Err(refusal) => {
                tracing::debug!(host = %origin.host, rule = refusal.rule(), "request refused");
                record.refused(&refusal);
                refusal.response(&origin.host)
            }
        }
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
        origin: &Origin,
        record: &mut Record,
    ) -> Result<Response<OutBody>, Refusal> {
        record.room().await?;
        let (policy, rule) = self.proxy.judge(&origin.host)?;
        let (mut parts, body) = request.into_parts();
        check_request(&parts, origin)?;
        let strict = self.proxy.settings().strict_tokens;
        let rules = policy.rules_for(&origin.host, origin.tls, strict);
        let rules = rules.for_request(&parts)?;
        rules.prepare().await;

        let mut slot = self.upstream.lock().await;
        let upstream = match slot.take() {
            Some(kept) if kept.origin == *origin => reusable(kept).await,
            _ => None,
        };
        let upstream = match upstream {
            Some(upstream) => upstream,
            None => self.connect(origin).await?,
        };
        let method = parts.method.clone();
        let body = outgoing_body(&parts, body, &rules, record, self.proxy.gathering()).await?;
        // A body of unknown length is substituted while it is sent.
        let more_to_come = body.size_hint().exact().is_none();
        rewrite_request(&mut parts, origin, &rules, &record.tally)?;
        self.proxy.announce(&rules, record, more_to_come).await?;
        record.passed(Outcome::Allowed, rule);
        let request = Request::from_parts(parts, body);
        let (response, upstream) = self.send(request, upstream, record).await?;
        let response = incoming(response, &method, &rules, record)?;
        *slot = Some(upstream);
        Ok(response)
    }

    async fn connect(&self, origin: &Origin) -> Result<Upstream, Refusal> {
        let dialer = self.proxy.dialer();
        let (sender, driver) = match (&origin.host, origin.tls) {
            (Host::Name(name), true) => {
                let stream = dialer.connect_tls(name, origin.port).await?;
                client(stream).await?
            }
            // No name, no certificate to verify.
            (Host::Address(_), true) => return Err(Refusal::AddressLiteral),
            (host, false) => client(dialer.connect(host, origin.port).await?).await?,
        };
        Ok(Upstream {
            origin: origin.clone(),
            sender,
            _driver: driver,
        })
    }

    /// Sends a request; once more, on a new connection, when the kept one turned out to be closed
    /// before a byte of the request was written.
    async fn send(
        &self,
        request: Request<OutBody>,
        mut upstream: Upstream,
        record: &Record,
    ) -> Result<(Response<Incoming>, Upstream), Refusal> {
        let mut failure = match upstream.sender.try_send_request(request).await {
            Ok(response) => return Ok((response, upstream)),
            Err(failure) => failure,
        };
        if let Some(request) = failure.take_message() {
            let mut fresh = self.connect(&upstream.origin).await?;
            failure = match fresh.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, fresh)),
                Err(failure) => failure,
            };
        }
        tracing::debug!(error = %failure.error(), "exchange with the host failed");
        Err(record.tally.refusal().cloned().unwrap_or(Refusal::Upstream))
    }
}

async fn reusable(mut kept: Upstream) -> Option<Upstream> {
    match timeout(REUSE_TIMEOUT, kept.sender.ready()).await {
        Ok(Ok(())) => Some(kept),
        _ => None,
    }
}

/// Speaks HTTP/1.1 on `stream`; the second part drives it and ends with it.
async fn client(
    stream: impl super::io::Duplex + 'static,
) -> Result<(SendRequest<OutBody>, AbortOnDropHandle<()>), Refusal> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEAD_FIELDS_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Refusal::Upstream)?;
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection to the host ended");
        }
    });
    Ok((sender, AbortOnDropHandle::new(driver)))
}

/// The body that goes upstream. Its length is left to hyper, which knows it exactly when the
/// body is passed as it came or was gathered, and chunks it otherwise.
async fn outgoing_body(
    parts: &request::Parts,
    body: Incoming,
    rules: &Arc<HostRules>,
    record: &Record,
    gathering: &Arc<Semaphore>,
) -> Result<OutBody, Refusal> {
    let length = body.size_hint().exact();
    let empty = body.is_end_stream();
    let counted = CountedBody::new(body, record.up.clone(), ());
    if empty {
        return Ok(counted.boxed_unsync());
    }
    let Some(change) = content::of_request(&parts.headers, rules, &record.tally)? else {
        return Ok(counted.boxed_unsync());
    };
    let changes = !change.keeps_length;
    let body = TransformedBody::new(counted, change.transform, change.keeps_length);
    match length {
        Some(length) if changes && length <= GATHERED_BODY_BYTES_MAX => {
            match gathering.clone().try_acquire_owned() {
                Ok(place) => gather(body, place).await,
                // So many at once: this one goes in chunks, and its length stays unknown.
                Err(_) => Ok(body.boxed_unsync()),
            }
        }
        _ => Ok(body.boxed_unsync()),
    }
}

/// Reads a short body whole, substituted; it keeps its place until it is sent.
async fn gather(
    body: TransformedBody<CountedBody<Incoming, ()>>,
    place: OwnedSemaphorePermit,
) -> Result<OutBody, Refusal> {
    // A gibibyte of values can't come of a mebibyte of tokens; the factor covers secrets some
    // hundred and fifty bytes long in nothing but tokens.
    let limit = GATHERED_BODY_BYTES_MAX as usize * GATHERED_GROWTH_FACTOR_MAX;
    match Limited::new(body, limit).collect().await {
        Ok(whole) => {
            let body = full(whole.to_bytes());
            Ok(CountedBody::new(body, Arc::default(), place).boxed_unsync())
        }
        Err(error) => match error.downcast::<StreamError>() {
            Ok(reason) => match *reason {
                StreamError::Refused(refusal) => Err(refusal),
                StreamError::Coding(_) | StreamError::Peer(_) => Err(Refusal::RequestBody),
            },
            Err(_) => Err(Refusal::RequestBody),
        },
    }
}

/// The response the sandbox gets: built anew, so that nothing hyper carries beside the head (a
/// reason phrase, for one) passes unread.
fn incoming(
    response: Response<Incoming>,
    method: &Method,
    rules: &Arc<HostRules>,
    record: &Record,
) -> Result<Response<OutBody>, Refusal> {
    let (parts, body) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::UpstreamSwitched);
    }
    let mut headers = parts.headers;
    check_response_framing(&headers)?;
    let patterns = rules.patterns();
    if patterns.is_some() && parts.status == StatusCode::PARTIAL_CONTENT {
        return Err(Refusal::ResponsePart);
    }
    // Before a field can be lost for being named in `Connection`.
    let change = match patterns {
        Some(patterns) if has_body(method, parts.status, &body) => {
            Some(content::of_response(&headers, patterns, &record.tally)?)
        }
        _ => None,
    };
    rewrite_response(&mut headers, patterns, &record.tally)?;
    if rules.keeps_cookies() {
        drop_cookies(&mut headers);
    }
    let body = if has_body(method, parts.status, &body) {
        headers.remove(header::CONTENT_LENGTH);
        match change {
            Some(change) => {
                drop_digests(&mut headers);
                TransformedBody::new(body, change.transform, change.keeps_length).boxed_unsync()
            }
            None => body.map_err(StreamError::from).boxed_unsync(),
        }
    } else {
        full(Bytes::new())
    };
    let mut response = Response::new(body);
    *response.status_mut() = parts.status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn has_body(method: &Method, status: StatusCode, body: &Incoming) -> bool {
    let never = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    *method != Method::HEAD && !never && !body.is_end_stream()
}

/// Sums over a body that may change would only tell that it did. Ranges were not asked for.
fn drop_digests(headers: &mut HeaderMap) {
    for name in [
        "content-md5",
        "digest",
        "content-digest",
        "repr-digest",
        "accept-ranges",
    ] {
        headers.remove(name);
    }
}
