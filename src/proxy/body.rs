//! Bodies that change on their way, in constant memory.
//!
//! A [`Transform`] is pushed bytes and pushes bytes on; [`TransformedBody`] drives one from a
//! hyper body, and passes on what the transform has nothing to do with as it came, without a copy.
//! Trailers of a body that is transformed pass only through the change given for them: a field
//! after the body is a place like a head.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;

use super::refusal::Refusal;
use super::tally::Tally;
use super::turns::Turn;

/// Most bytes given to a transform at once.
pub(crate) const STEP_BYTES_MAX: usize = 64 * 1024;
/// Fewer bytes than this are not worth a frame of their own when others follow.
const PASS_BYTES_MIN: usize = 4 * 1024;

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

impl StreamError {
    /// What a program is told when its body ended so before anything was sent.
    pub fn into_refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Coding(_) | Self::Peer(_) => Refusal::RequestBody,
        }
    }
}

/// The body type of everything this proxy sends, in both directions.
pub(crate) type OutBody = UnsyncBoxBody<Bytes, StreamError>;

/// What happens to the trailers of a body, values and names.
pub(crate) type TrailerChange = Box<dyn FnMut(&mut HeaderMap) -> Result<(), StreamError> + Send>;

/// A change to a stream of bytes. Output must not depend on how the input was cut.
pub(crate) trait Transform: Send {
    /// Takes `input`; appends what is settled to `out`.
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError>;
    /// Whether there is more to bring out without input: then nothing is pushed until it is
    /// brought out by pushing nothing, so that one step stays short however much it leads to.
    fn has_more(&self) -> bool {
        false
    }
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
    /// How many leading bytes of `input` pass as they are, with nothing held back before or after
    /// them. The caller passes on that many itself, or pushes as if it had not asked.
    fn passes(&mut self, _input: &[u8]) -> usize {
        0
    }
}

impl<T: Transform + ?Sized> Transform for Box<T> {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        (**self).push(input, out)
    }
    fn has_more(&self) -> bool {
        (**self).has_more()
    }
    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        (**self).flush(out)
    }
    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        (**self).finish(out)
    }
    fn step_bytes_max(&self) -> usize {
        (**self).step_bytes_max()
    }
    fn passes(&mut self, input: &[u8]) -> usize {
        (**self).passes(input)
    }
}

/// A transform, and on whose account it works.
pub(crate) struct Work {
    pub transform: Box<dyn Transform>,
    pub tally: Arc<Tally>,
}

/// A body on its way through a transform.
pub(crate) struct TransformedBody<B> {
    inner: B,
    work: Work,
    turn: Turn,
    pending: Bytes,
    trailers: Option<HeaderMap>,
    change: Option<TrailerChange>,
    stage: Stage,
    /// Set when the transform keeps the length, so that the framing may stay as it is.
    keeps_length: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Bytes may come.
    Open,
    /// No more will.
    Complete,
    /// Everything was given out, or it was broken off.
    Ended,
}

impl<B> TransformedBody<B> {
    /// `keeps_length` promises that the output is as long as the input.
    pub fn new(inner: B, work: Work, keeps_length: bool) -> Self {
        let turn = Turn::new(work.tally.share());
        Self {
            inner,
            work,
            turn,
            pending: Bytes::new(),
            trailers: None,
            change: None,
            stage: Stage::Open,
            keeps_length,
        }
    }

    /// Lets the trailers pass, with this change; without one they are dropped.
    pub fn with_trailers(mut self, change: TrailerChange) -> Self {
        self.change = Some(change);
        self
    }

    fn has_work(&self) -> bool {
        self.stage != Stage::Ended
            && (!self.pending.is_empty()
                || self.work.transform.has_more()
                || self.stage == Stage::Complete)
    }

    /// One step of work; empty when it brought nothing out.
    fn step(&mut self) -> Result<Bytes, StreamError> {
        let transform = &mut self.work.transform;
        let mut out = Vec::new();
        if transform.has_more() {
            transform.push(&[], &mut out)?;
        } else if self.pending.is_empty() {
            transform.finish(&mut out)?;
            self.stage = Stage::Ended;
            return Ok(out.into());
        } else {
            let window = self.pending.len().min(STEP_BYTES_MAX);
            let passes = transform.passes(&self.pending[..window]);
            let worth = PASS_BYTES_MIN.min(transform.step_bytes_max());
            if passes == self.pending.len() || passes >= worth {
                return Ok(self.pending.split_to(passes));
            }
            let size = self.pending.len().min(transform.step_bytes_max());
            let input = self.pending.split_to(size);
            transform.push(&input, &mut out)?;
        }
        if self.pending.is_empty() && !transform.has_more() && self.stage == Stage::Open {
            transform.flush(&mut out)?;
        }
        Ok(out.into())
    }

    fn break_off(&mut self, error: StreamError) -> Result<Frame<Bytes>, StreamError> {
        self.stage = Stage::Ended;
        self.trailers = None;
        if let StreamError::Refused(refusal) = &error {
            self.work.tally.refuse(refusal.clone());
        }
        Err(error)
    }

    fn last_frame(&mut self) -> Option<Result<Frame<Bytes>, StreamError>> {
        let mut trailers = self.trailers.take()?;
        let change = self.change.as_mut()?;
        Some(match change(&mut trailers) {
            Ok(()) => Ok(Frame::trailers(trailers)),
            Err(error) => self.break_off(error),
        })
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
        loop {
            if this.has_work() {
                ready!(this.turn.poll_begin(cx));
                let out = this.step();
                this.turn.end();
                match out {
                    Ok(out) if out.is_empty() => continue,
                    Ok(out) => return Poll::Ready(Some(Ok(Frame::data(out)))),
                    Err(error) => return Poll::Ready(Some(this.break_off(error))),
                }
            }
            if this.stage == Stage::Ended {
                return Poll::Ready(this.last_frame());
            }
            let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
                this.turn.pause();
                return Poll::Pending;
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.pending = data,
                    Err(frame) => {
                        this.trailers = frame.into_trailers().ok();
                        this.stage = Stage::Complete;
                    }
                },
                Some(Err(error)) => return Poll::Ready(Some(this.break_off(error.into()))),
                None => this.stage = Stage::Complete,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stage == Stage::Ended && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.keeps_length && self.stage == Stage::Open && self.pending.is_empty() {
            true => self.inner.size_hint(),
            false => SizeHint::new(),
        }
    }
}

/// A body that passes as it is, counted.
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
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Ok(Some(data))) = frame
            .as_ref()
            .map(|frame| frame.as_ref().map(Frame::data_ref))
        {
            this.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(StreamError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests;
