//! A host's answer on its way to the sandbox.
//!
//! Invariant: the head is built anew, so that nothing hyper carries beside it (a reason phrase,
//! for one) passes unread. The connection to the host is given back only when the body was read
//! to its end; otherwise it is cut, so that no rest of this answer can be taken for the next one.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Response, StatusCode, Version, header, request};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::ahead::Ahead;
use super::body::{StreamError, TransformedBody};
use super::content;
use super::decision::Record;
use super::grants::sweep_fields;
use super::head::{check_response_framing, drop_fields, rewrite_response, takes_trailers};
use super::placement::drop_cookies;
use super::policy::HostRules;
use super::refusal::Refusal;
use super::trailers::{self, Trailing};
use super::upstream::Lease;

/// What of a request its answer depends on.
pub(crate) struct Asked {
    method: Method,
    /// Whether the program can read fields behind the body.
    trailers: bool,
    /// Whether the program reads the body as gRPC messages.
    messages: bool,
}

impl Asked {
    pub fn of(parts: &request::Parts) -> Self {
        Self {
            method: parts.method.clone(),
            trailers: parts.version == Version::HTTP_2 || takes_trailers(&parts.headers),
            messages: content::asks_for_messages(parts),
        }
    }

    fn has_body(&self, status: StatusCode, body: &Incoming) -> bool {
        let never = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.method != Method::HEAD && !never && !body.is_end_stream()
    }
}

/// The body the sandbox gets.
pub(crate) type Answer = Ahead<Content>;

/// The answer the sandbox gets, under `record`, which ends with it.
pub(crate) async fn incoming(
    response: Response<Incoming>,
    asked: &Asked,
    rules: &Arc<HostRules>,
    lease: Lease,
    record: &Record,
) -> Result<Response<Answer>, Refusal> {
    let (parts, body) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refusal::UpstreamSwitched);
    }
    let mut headers = parts.headers;
    check_response_framing(&headers)?;
    let patterns = rules.patterns();
    let looked_into = rules.looks_into_answers();
    if looked_into && parts.status == StatusCode::PARTIAL_CONTENT {
        return Err(Refusal::ResponsePart);
    }
    let has_body = asked.has_body(parts.status, &body);
    // Before a field can be lost for being named in `Connection`.
    let change = match looked_into && has_body {
        true => {
            let (messages, tally) = (asked.messages, &record.tally);
            Some(content::of_response(&headers, messages, rules, tally)?)
        }
        false => None,
    };
    rewrite_response(&mut headers, patterns, &record.tally)?;
    if let Some(grants) = rules.grants_sealed_here() {
        sweep_fields(&mut headers, grants, &record.tally)?;
    }
    if rules.keeps_cookies() {
        drop_cookies(&mut headers);
    }
    let content = if has_body {
        headers.remove(header::CONTENT_LENGTH);
        let body = Arrival {
            inner: Some(body),
            lease: Some(lease),
        };
        let trailers = trailers::of_response(rules, &record.tally);
        match change {
            Some(change) => {
                drop_digests(&mut headers);
                let body = TransformedBody::new(body, change.transform, change.keeps_length);
                Content::Changed(body.with_trailers(trailers))
            }
            None => Content::Passed(Trailing::new(body, trailers)),
        }
    } else {
        lease.give_back();
        Content::None
    };
    let content = Ahead::of(content).await;
    if !asked.trailers || content.size_hint().exact().is_some() {
        headers.remove(header::TRAILER);
    }
    let mut response = Response::new(content);
    *response.status_mut() = parts.status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// Sums over a body that may change would only tell that it did. Ranges were not asked for.
fn drop_digests(headers: &mut HeaderMap) {
    static DIGESTS: [HeaderName; 5] = [
        header::ACCEPT_RANGES,
        HeaderName::from_static("content-md5"),
        HeaderName::from_static("digest"),
        HeaderName::from_static("content-digest"),
        HeaderName::from_static("repr-digest"),
    ];
    drop_fields(headers, &DIGESTS);
}

/// A body as it comes from the host, with the connection it comes on.
pub(crate) struct Arrival {
    /// Absent when it has ended.
    inner: Option<Incoming>,
    lease: Option<Lease>,
}

impl Body for Arrival {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = &mut *self;
        let Some(body) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let frame = ready!(match &mut this.lease {
            Some(lease) => lease.poll_body(cx, body),
            None => Pin::new(&mut *body).poll_frame(cx),
        });
        match &frame {
            Some(Err(_)) => this.lease = None,
            // Nothing follows trailers, and nobody asks again after them.
            Some(Ok(frame)) if !frame.is_trailers() && !body.is_end_stream() => {}
            _ => {
                // First: to let go of it is news for the connection, of which it has no use later.
                this.inner = None;
                if let Some(lease) = this.lease.take() {
                    lease.give_back();
                }
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(StreamError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let known = self.inner.as_ref().map(Body::size_hint);
        known.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

/// What an answer brings.
#[expect(
    clippy::large_enum_variant,
    reason = "it is boxed as a whole; a box inside would be one more allocation for each answer"
)]
pub(crate) enum Content {
    None,
    Passed(Trailing<Arrival>),
    Changed(TransformedBody<Arrival>),
}

impl Body for Content {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        match self.get_mut() {
            Self::None => Poll::Ready(None),
            Self::Passed(body) => Pin::new(body).poll_frame(cx),
            Self::Changed(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::None => true,
            Self::Passed(body) => body.is_end_stream(),
            Self::Changed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::None => SizeHint::with_exact(0),
            Self::Passed(body) => body.size_hint(),
            Self::Changed(body) => body.size_hint(),
        }
    }
}
