//! The body of a request on its way to the host.
//!
//! | Length given | Content may change | goes out |
//! |---|---|---|
//! | any | no | as it came, its length kept |
//! | up to a mebibyte | yes | gathered, with its new length |
//! | any, to a host that wants one | yes | set down in a file, with its new length |
//! | more, or none | yes | as a stream, without a length |
//!
//! A host wants a length when it answered `411` to a body that lost its own.
//!
//! Invariant: nothing is read from the program before a connection to the host stands, so that a
//! refusal is told before a `100 Continue` asks for the body.

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{self, Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Version, header, request};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::body::{CountedBody, OutBody, StreamError, TransformedBody};
use super::content;
use super::head::rewrite_request;
use super::policy::HostRules;
use super::refusal::{Refusal, full};
use super::spool::{self, Exact, Spooled, Spools};
use super::tally::Tally;
use super::trailers::{self, Trailing};

/// Bodies up to this length are gathered, so that the host sees a repaired `Content-Length`;
/// longer ones stream and turn to chunked, since the length is known only at their end.
const GATHERED_BODY_BYTES_MAX: u64 = 1024 * 1024;
/// Room a gathered body has after values took the place of tokens.
const GATHERED_GROWTH_FACTOR_MAX: usize = 4;
/// Bytes of a gathered body given to the connection at once.
const PIECE_BYTES_MAX: usize = 64 * 1024;
/// What is read of an upload nobody wants, so that its sender gets to read the answer instead of
/// a reset connection.
const DRAINED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long it is read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// A request body as it comes from the sandbox: counted, and drained when it is not wanted.
pub(crate) struct Upload {
    inner: Option<Incoming>,
    bytes: Arc<AtomicU64>,
    drains: bool,
}

impl Upload {
    pub fn new(body: Incoming, parts: &request::Parts, bytes: Arc<AtomicU64>) -> Self {
        // HTTP/2 resets the stream alone. A program that waits for `100 Continue` sends nothing,
        // and to read from it would ask for the body.
        let one = parts.version != Version::HTTP_2;
        Self {
            inner: Some(body),
            bytes,
            drains: one && !parts.headers.contains_key(header::EXPECT),
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let Some(body) = &mut self.inner else {
            return Poll::Ready(None);
        };
        match task::ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
                // Whoever waited for `100 Continue` has had it.
                self.drains = true;
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.inner = None;
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                self.inner = None;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let known = self.inner.as_ref().map(Body::size_hint);
        known.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let unwanted = self
            .inner
            .take_if(|body| self.drains && !body.is_end_stream());
        if let Some(body) = unwanted
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // Ends with the connection it comes from; one of them per connection.
            runtime.spawn(tokio::time::timeout(DRAIN_TIMEOUT, drain(body)));
        }
    }
}

async fn drain(mut body: Incoming) {
    let mut read = 0;
    while read < DRAINED_BYTES_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
}

/// What goes upstream.
pub(crate) struct Outgoing {
    /// Its length is left to hyper, which knows it exactly when the body is passed as it came, was
    /// gathered or set down in a file, and chunks it otherwise.
    pub body: OutBody,
    /// It is substituted while it is sent: which secrets it holds is not known before.
    pub more_to_come: bool,
    /// It came with a length and goes without.
    pub lost_length: bool,
}

impl Outgoing {
    fn settled(body: OutBody) -> Self {
        Self {
            body,
            more_to_come: false,
            lost_length: false,
        }
    }
}

/// Makes the body that goes upstream; with `spools`, to a host that wants to know its length.
pub(crate) async fn outgoing(
    parts: &request::Parts,
    upload: Upload,
    rules: &Arc<HostRules>,
    tally: &Arc<Tally>,
    gathering: &Arc<Semaphore>,
    spools: Option<&Spools>,
) -> Result<Outgoing, Refusal> {
    if upload.is_end_stream() {
        return Ok(Outgoing::settled(full(Bytes::new())));
    }
    let length = upload.size_hint().exact();
    let trailers = trailers::of_request(rules, tally);
    let Some(change) = content::of_request(&parts.headers, rules, tally)? else {
        return Ok(Outgoing {
            more_to_come: length.is_none(),
            ..Outgoing::settled(Trailing::new(upload, trailers).boxed_unsync())
        });
    };
    let changes = !change.keeps_length;
    if changes && let Some(length) = length {
        if length <= GATHERED_BODY_BYTES_MAX
            && let Ok(place) = gathering.clone().try_acquire_owned()
        {
            let body = TransformedBody::new(upload, change.transform, false);
            return gather(body.with_trailers(trailers), place)
                .await
                .map(Outgoing::settled);
        }
        // Without room it goes in chunks, and the host says what it thinks of that.
        if let Some(room) = spools.and_then(|spools| spools.room(length)) {
            return spool(parts, upload, (rules, tally), length, room).await;
        }
    }
    let body = TransformedBody::new(upload, change.transform, change.keeps_length);
    Ok(Outgoing {
        body: body.with_trailers(trailers).boxed_unsync(),
        more_to_come: changes || length.is_none(),
        lost_length: changes && length.is_some(),
    })
}

/// Sets a body down as it came, counts what it becomes, and sends it with that length.
async fn spool(
    parts: &request::Parts,
    mut upload: Upload,
    (rules, tally): (&Arc<HostRules>, &Arc<Tally>),
    length: u64,
    room: OwnedSemaphorePermit,
) -> Result<Outgoing, Refusal> {
    // What counts as sent, for the record and for patience with the host, is what is read again.
    let sent = std::mem::take(&mut upload.bytes);
    let spooled = Spooled::new(upload, length, room).await;
    let spooled = spooled.map_err(StreamError::into_refusal)?;
    // On an account of its own, that begins like the other with what the head uses up.
    let counted = Arc::new(Tally::of(tally.share()));
    rewrite_request(&mut parts.clone(), rules, &counted)?;
    let transformed = |tally: &Arc<Tally>, moved| {
        let change = content::of_request(&parts.headers, rules, tally)?;
        let change = change.ok_or(Refusal::Internal)?;
        let body = TransformedBody::new(spooled.read(moved), change.transform, false);
        Ok::<_, Refusal>(body.with_trailers(trailers::of_request(rules, tally)))
    };
    let length = spool::count(transformed(&counted, Arc::default())?).await;
    let length = length.map_err(StreamError::into_refusal)?;
    Ok(Outgoing {
        body: Exact::new(transformed(tally, sent)?, length).boxed_unsync(),
        more_to_come: true,
        lost_length: false,
    })
}

/// A body that is at hand whole, given out so that what the host does not take can be cut.
struct Pieces(Bytes);

impl Body for Pieces {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let size = self.0.len().min(PIECE_BYTES_MAX);
        let piece = (size > 0).then(|| self.0.split_to(size));
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

/// Reads a short body whole, substituted; it keeps its place until it is sent.
async fn gather(
    body: TransformedBody<Upload>,
    place: OwnedSemaphorePermit,
) -> Result<OutBody, Refusal> {
    // A gibibyte of values can't come of a mebibyte of tokens; the factor covers secrets some
    // hundred and fifty bytes long in nothing but tokens.
    let limit = GATHERED_BODY_BYTES_MAX as usize * GATHERED_GROWTH_FACTOR_MAX;
    match Limited::new(body, limit).collect().await {
        Ok(whole) => {
            let trailers = whole.trailers().cloned();
            let body = CountedBody::new(Pieces(whole.to_bytes()), Arc::default(), place);
            Ok(match trailers {
                Some(fields) => body.with_trailers(ready(Some(Ok(fields)))).boxed_unsync(),
                None => body.boxed_unsync(),
            })
        }
        Err(error) => match error.downcast::<StreamError>() {
            Ok(reason) => Err(reason.into_refusal()),
            Err(_) => Err(Refusal::RequestBody),
        },
    }
}
