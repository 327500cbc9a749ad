//! Bodies that change on their way, in constant memory.
//!
//! A [`Transform`] is pushed bytes and pushes bytes on; [`TransformedBody`] drives one from a
//! hyper body. Trailers are dropped in both directions: nothing there was asked for, and a field
//! after the body is a place no rule looks at.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;

use super::refusal::Refusal;

/// Most bytes given to a transform at once.
pub(crate) const STEP_BYTES_MAX: usize = 64 * 1024;
/// How long a body works before other tasks get their turn: a bomb of a few kilobytes holds
/// seconds of work, and other sandboxes' connections are served by the same thread.
const TURN_TIME_MAX: Duration = Duration::from_millis(2);

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// A rule forbids the rest.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The compressed data is damaged.
    #[error("the compressed body can't be decoded")]
    Coding(#[from] std::io::Error),
    /// The peer broke off.
    #[error("the body ended early")]
    Peer(#[from] hyper::Error),
}

/// The body type of everything this proxy sends, in both directions.
pub(crate) type OutBody = UnsyncBoxBody<Bytes, StreamError>;

/// A change to a stream of bytes. Output must not depend on how the input was cut.
pub(crate) trait Transform: Send {
    /// Takes `input`; appends what is settled to `out`.
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError>;
    /// Appends everything that is settled but lies in a buffer: the peer paused here.
    fn flush(&mut self, _out: &mut Vec<u8>) -> Result<(), StreamError> {
        Ok(())
    }
    /// The stream is complete; appends what was held back.
    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError>;
    /// Most bytes one call of `push` should get, so that its output stays bounded.
    fn step_bytes_max(&self) -> usize {
        STEP_BYTES_MAX
    }
}

/// A body on its way through a transform.
pub(crate) struct TransformedBody<B> {
    inner: B,
    transform: Box<dyn Transform>,
    pending: Bytes,
    ended: bool,
    /// When the present turn of work began.
    turn: Option<Instant>,
    /// Set when the transform keeps the length, so that the framing may stay as it is.
    keeps_length: bool,
}

impl<B> TransformedBody<B> {
    /// `keeps_length` promises that the output is as long as the input.
    pub fn new(inner: B, transform: Box<dyn Transform>, keeps_length: bool) -> Self {
        Self {
            inner,
            transform,
            pending: Bytes::new(),
            ended: false,
            turn: None,
            keeps_length,
        }
    }

    fn step(&mut self) -> Result<Vec<u8>, StreamError> {
        let mut out = Vec::new();
        let size = self.pending.len().min(self.transform.step_bytes_max());
        let input = self.pending.split_to(size);
        self.transform.push(&input, &mut out)?;
        if self.pending.is_empty() {
            self.transform.flush(&mut out)?;
        }
        Ok(out)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for TransformedBody<B>
where
    StreamError: From<B::Error>,
{
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = self.get_mut();
        while !this.ended {
            if this.turn.get_or_insert_with(Instant::now).elapsed() > TURN_TIME_MAX {
                this.turn = None;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let out = if this.pending.is_empty() {
                let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
                    this.turn = None;
                    return Poll::Pending;
                };
                match frame {
                    Some(Ok(frame)) => {
                        this.pending = frame.into_data().unwrap_or_default();
                        continue;
                    }
                    Some(Err(error)) => Err(error.into()),
                    None => {
                        this.ended = true;
                        let mut out = Vec::new();
                        this.transform.finish(&mut out).map(|()| out)
                    }
                }
            } else {
                this.step()
            };
            match out {
                Ok(out) if out.is_empty() => {}
                Ok(out) => return Poll::Ready(Some(Ok(Frame::data(out.into())))),
                Err(error) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        match self.keeps_length && !self.ended {
            true => self.inner.size_hint(),
            false => SizeHint::new(),
        }
    }
}

/// A body that passes as it is, counted; trailers dropped.
pub(crate) struct CountedBody<B, G> {
    inner: B,
    bytes: Arc<AtomicU64>,
    /// Dropped with the body: whatever must end when the body ends.
    _guard: G,
}

impl<B, G> CountedBody<B, G> {
    pub fn new(inner: B, bytes: Arc<AtomicU64>, guard: G) -> Self {
        Self {
            inner,
            bytes,
            _guard: guard,
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin, G: Unpin> Body for CountedBody<B, G>
where
    StreamError: From<B::Error>,
{
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = self.get_mut();
        loop {
            let frame = match std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            };
            if let Ok(data) = frame.into_data() {
                this.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Identity,
    Gzip,
}

impl Coding {
    /// The coding named by the `Content-Encoding` fields, or `None` when it is one (or a series)
    /// we can't look into.
    pub fn of(headers: &http::HeaderMap) -> Option<Self> {
        let mut codings = headers
            .get_all(http::header::CONTENT_ENCODING)
            .iter()
            .flat_map(|value| value.as_bytes().split(|&b| b == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"));
        match (codings.next(), codings.next()) {
            (None, _) => Some(Self::Identity),
            (Some(one), None) if one.eq_ignore_ascii_case(b"gzip") => Some(Self::Gzip),
            (Some(one), None) if one.eq_ignore_ascii_case(b"x-gzip") => Some(Self::Gzip),
            _ => None,
        }
    }

    /// `transform` applied to the text under the coding.
    pub fn within(self, transform: impl Transform + 'static) -> Box<dyn Transform> {
        match self {
            Self::Identity => Box::new(transform),
            Self::Gzip => Box::new(super::gzip::WithinGzip::new(transform)),
        }
    }
}
