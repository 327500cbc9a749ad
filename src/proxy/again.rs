//! Requests that can be sent a second time.
//!
//! A host may say that it did nothing about a request (`REFUSED_STREAM`, a `GOAWAY` that leaves it
//! out), or close a kept connection before it answers. Such a request is sent again on another
//! connection; for that a copy of its head is kept, and what was read of its body, until the head of
//! an answer is there.
//!
//! Invariants:
//! - At most [`KEPT_BYTES_MAX`] bytes of a body are kept. One of which more was read is not sent
//!   again.
//! - Only the newest of the bodies of one request gives anything out: what is left of an earlier
//!   attempt breaks off, and so does the newest when its request is given up before its answer.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Request, request};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;

use super::body::{OutBody, StreamError};
use super::refusal::{Refusal, full};

/// Most bytes that are kept of the body of one request.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// What is kept of a request.
pub(crate) struct Spare {
    parts: request::Parts,
    body: Option<Kept>,
}

impl Spare {
    /// Keeps a copy of `request`, and gives back one that can be sent.
    pub fn of(request: Request<OutBody>) -> (Request<OutBody>, Self) {
        let (parts, body) = request.into_parts();
        let mut spare = Self {
            parts: parts.clone(),
            body: None,
        };
        let body = match body.is_end_stream() {
            true => body,
            false => {
                let kept = Kept(Arc::new(Mutex::new(Source::new(body))));
                let body = kept.lock().hand_out(&kept);
                spare.body = Some(kept);
                body.boxed_unsync()
            }
        };
        (Request::from_parts(parts, body), spare)
    }

    /// The request once more, when all of it is still at hand.
    pub fn again(mut self) -> Option<Request<OutBody>> {
        let body = match &self.body {
            None => full(Bytes::new()),
            Some(kept) => {
                let mut source = kept.lock();
                if !std::mem::replace(&mut source.keeps, false) {
                    return None;
                }
                source.hand_out(kept).boxed_unsync()
            }
        };
        self.body = None;
        Some(Request::from_parts(self.parts.clone(), body))
    }

    /// The request was answered: what is left of its body may still go out.
    pub fn answered(mut self) {
        if let Some(kept) = self.body.take() {
            kept.lock().keeps = false;
        }
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if let Some(kept) = &self.body {
            let mut source = kept.lock();
            source.attempt += 1;
            source.inner = None;
        }
    }
}

#[derive(Clone)]
struct Kept(Arc<Mutex<Source>>);

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Source> {
        // A panic inside the body ends the connection it is sent on, and the request with it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece of a body that was given out.
#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl From<Piece> for Frame<Bytes> {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Data(data) => Self::data(data),
            Piece::Trailers(trailers) => Self::trailers(trailers),
        }
    }
}

/// One body, for all attempts to send it.
struct Source {
    /// Absent when it has ended, or nobody wants the rest.
    inner: Option<OutBody>,
    /// What it said of its length before anything was read.
    length: Option<u64>,
    given: Vec<Piece>,
    given_bytes: usize,
    /// Whether everything that was read is in `given`.
    keeps: bool,
    /// The attempt that counts.
    attempt: u32,
}

impl Source {
    fn new(inner: OutBody) -> Self {
        Self {
            length: inner.size_hint().exact(),
            inner: Some(inner),
            given: Vec::new(),
            given_bytes: 0,
            keeps: true,
            attempt: 0,
        }
    }

    /// The body from its beginning; those handed out before give out nothing more.
    fn hand_out(&mut self, kept: &Kept) -> Attempt {
        self.attempt += 1;
        Attempt {
            source: kept.clone(),
            attempt: self.attempt,
            at: 0,
            left: self.length,
        }
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        let piece = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Piece::Data(data.clone()),
            (_, Some(trailers)) => Piece::Trailers(trailers.clone()),
            _ => return,
        };
        if let Piece::Data(data) = &piece {
            self.given_bytes += data.len();
        }
        if self.given_bytes > KEPT_BYTES_MAX {
            // Whoever reads is beyond all of them.
            self.keeps = false;
        } else {
            self.given.push(piece);
        }
    }
}

/// The body of one attempt.
struct Attempt {
    source: Kept,
    attempt: u32,
    /// Pieces given out, as long as they are kept.
    at: usize,
    left: Option<u64>,
}

impl Attempt {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let mut source = self.source.lock();
        if source.attempt != self.attempt {
            return Poll::Ready(Some(Err(Refusal::Upstream.into())));
        }
        if let Some(piece) = source.given.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(piece.clone().into())));
        }
        let Some(inner) = &mut source.inner else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) if source.keeps => {
                source.keep(frame);
                self.at = source.given.len();
            }
            // Nothing that broke off is sent again.
            Some(Err(_)) => source.keeps = false,
            _ => {}
        }
        if !source.keeps {
            source.given = Vec::new();
            self.at = 0;
        }
        let ended = source.inner.as_ref().is_some_and(Body::is_end_stream);
        if ended || !matches!(frame, Some(Ok(_))) {
            // Whoever waits for its end is not to wait for the answer.
            source.inner = None;
        }
        Poll::Ready(frame)
    }
}

impl Body for Attempt {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let frame = ready!(self.poll(cx));
        if let (Some(left), Some(Ok(frame))) = (&mut self.left, &frame) {
            let size = frame.data_ref().map_or(0, Bytes::len);
            *left = left.saturating_sub(size as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let source = self.source.lock();
        let ended = source.inner.as_ref().is_none_or(Body::is_end_stream);
        source.attempt == self.attempt && self.at >= source.given.len() && ended
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut source = self.source.lock();
        if source.attempt == self.attempt && !source.keeps {
            source.inner = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::StreamBody;

    fn request(pieces: &[&'static [u8]]) -> Request<OutBody> {
        let frames: Vec<_> = pieces
            .iter()
            .map(|piece| Ok(Frame::data(Bytes::from_static(piece))))
            .collect();
        let body = StreamBody::new(futures_util::stream::iter(frames));
        Request::post("/")
            .body(BodyExt::boxed_unsync(body))
            .unwrap()
    }

    async fn rest(body: &mut OutBody) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            bytes.extend_from_slice(&frame.ok()?.into_data().ok()?);
        }
        Some(bytes)
    }

    /// Goal: a body is the same however often and however far it was read before, and an earlier
    /// attempt gives nothing out once there is a later one.
    #[tokio::test]
    async fn a_body_is_given_out_from_its_beginning() {
        for read in 0..4 {
            let (mut first, spare) = Spare::of(request(&[b"a", b"bc", b"d"]));
            for _ in 0..read {
                first.body_mut().frame().await.unwrap().unwrap();
            }
            let (mut second, spare) = Spare::of(spare.again().unwrap());
            assert_eq!(rest(first.body_mut()).await, None, "{read}");
            let frame = second.body_mut().frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), "a");
            let mut third = spare.again().unwrap();
            assert_eq!(rest(second.body_mut()).await, None);
            assert_eq!(rest(third.body_mut()).await.unwrap(), b"abcd");
        }
    }

    /// Goal: of what is not kept whole nothing is sent again, and what was given up breaks off.
    #[tokio::test]
    async fn only_what_is_whole_is_given_out_again() {
        static LONG: [u8; KEPT_BYTES_MAX] = [7; KEPT_BYTES_MAX];
        let (mut first, spare) = Spare::of(request(&[&LONG, b"x"]));
        first.body_mut().frame().await.unwrap().unwrap();
        assert!(spare.again().is_some());
        for answered in [false, true] {
            let (mut first, spare) = Spare::of(request(&[&LONG, b"x", b"y"]));
            for _ in 0..2 {
                first.body_mut().frame().await.unwrap().unwrap();
            }
            if answered {
                spare.answered();
                assert_eq!(rest(first.body_mut()).await.unwrap(), b"y");
            } else {
                assert!(spare.again().is_none());
                assert_eq!(rest(first.body_mut()).await, None);
            }
        }
        let (mut first, spare) = Spare::of(request(&[b"a", b"b"]));
        first.body_mut().frame().await.unwrap().unwrap();
        drop(spare);
        assert_eq!(rest(first.body_mut()).await, None);
    }
}
