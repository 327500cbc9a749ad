//! What is there already of an answer's body when its head is sent: both go in one write then, and
//! a body that is there to its end goes with its length.
//!
//! Invariants: an answer waits for nothing; where its body pauses, what was read goes on and the
//! rest follows as it comes. At most [`AHEAD_BYTES_MAX`] and one frame more are read ahead.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};

use super::body::StreamError;

/// Enough for most answers of an API, and for one record of TLS.
const AHEAD_BYTES_MAX: usize = 16 * 1024;

/// A body of which the beginning was read.
pub(crate) struct Ahead<B> {
    inner: B,
    read: Bytes,
    /// What came last, when the body was read to its end: trailers, or why it broke off.
    end: Option<End>,
}

type End = Option<Result<Frame<Bytes>, StreamError>>;

impl<B: Body<Data = Bytes, Error = StreamError> + Unpin> Ahead<B> {
    /// Reads what is there of `inner`.
    pub async fn of(mut inner: B) -> Self {
        let (mut first, mut more) = (Bytes::new(), BytesMut::new());
        let mut end = inner.is_end_stream().then_some(None);
        while end.is_none() && first.len() + more.len() < AHEAD_BYTES_MAX {
            match next(&mut inner).await {
                None => break,
                Some(None) => end = Some(None),
                Some(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if first.is_empty() => first = data,
                    Ok(data) => more.extend_from_slice(&data),
                    Err(last) => end = Some(Some(Ok(last))),
                },
                Some(Some(Err(error))) => end = Some(Some(Err(error))),
            }
            if end.is_none() && inner.is_end_stream() {
                end = Some(None);
            }
        }
        let read = match more.is_empty() {
            true => first,
            false => [first, more.freeze()].concat().into(),
        };
        Self { inner, read, end }
    }

    /// Whether the body is there to its end, which is neither trailers nor an error.
    pub fn is_whole(&self) -> bool {
        matches!(self.end, Some(None))
    }
}

/// The next frame, or `None` where there is none yet: the task that reads from the host gets one
/// chance to bring it.
async fn next<B: Body + Unpin>(body: &mut B) -> Option<Option<Result<Frame<B::Data>, B::Error>>> {
    let mut waited = false;
    poll_fn(move |cx| match Pin::new(&mut *body).poll_frame(cx) {
        Poll::Ready(frame) => Poll::Ready(Some(frame)),
        Poll::Pending if std::mem::replace(&mut waited, true) => Poll::Ready(None),
        Poll::Pending => {
            // Behind the tasks that are ready, unlike `yield_now`, which looks for events first.
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

impl<B: Body<Data = Bytes, Error = StreamError> + Unpin> Body for Ahead<B> {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = self.get_mut();
        if !this.read.is_empty() {
            let read = std::mem::take(&mut this.read);
            return Poll::Ready(Some(Ok(Frame::data(read))));
        }
        match &mut this.end {
            Some(end) => Poll::Ready(end.take()),
            None => Pin::new(&mut this.inner).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty()
            && match &self.end {
                Some(end) => end.is_none(),
                None => self.inner.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.len() as u64;
        match &self.end {
            Some(None) => SizeHint::with_exact(read),
            // Trailers need a body without a length; what breaks off has none.
            Some(Some(_)) => SizeHint::new(),
            None => match self.inner.size_hint().exact() {
                Some(rest) => SizeHint::with_exact(read + rest),
                None => SizeHint::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use http::HeaderMap;
    use http_body_util::BodyExt;

    /// Frames that are there, `None` for a pause of one look.
    struct Frames(VecDeque<Option<Frame<Bytes>>>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = StreamError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
            match self.0.pop_front() {
                Some(None) => Poll::Pending,
                Some(Some(frame)) => Poll::Ready(Some(Ok(frame))),
                None => Poll::Ready(None),
            }
        }
    }

    fn data(bytes: usize) -> Option<Frame<Bytes>> {
        Some(Frame::data(vec![7; bytes].into()))
    }

    async fn ahead(frames: impl IntoIterator<Item = Option<Frame<Bytes>>>) -> Ahead<Frames> {
        Ahead::of(Frames(frames.into_iter().collect())).await
    }

    /// Goal: what is there to its end has a length; a pause or a long body is not waited for, and
    /// nothing is lost or told twice.
    #[tokio::test]
    async fn what_is_there_is_read_and_no_more() {
        let whole = ahead([data(3), None, data(4)]).await;
        assert!(whole.is_whole());
        assert_eq!(whole.size_hint().exact(), Some(7));
        assert_eq!(whole.collect().await.unwrap().to_bytes().len(), 7);
        let none = ahead([]).await;
        assert!(none.is_whole() && none.is_end_stream());
        let mut paused = ahead([data(3), None, None, data(4)]).await;
        assert_eq!(
            (paused.is_whole(), paused.size_hint().exact()),
            (false, None)
        );
        for size in [3, 4] {
            let frame = paused.frame().await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap().len(), size);
        }
        assert!(paused.frame().await.is_none());
        let long = ahead((0..9).map(|_| data(AHEAD_BYTES_MAX / 4))).await;
        assert!(!long.is_whole());
        assert_eq!(long.inner.0.len(), 5);
    }

    /// Goal: fields behind a body arrive, which a length would forbid.
    #[tokio::test]
    async fn trailers_follow_what_was_read() {
        let body = ahead([data(3), Some(Frame::trailers(HeaderMap::new()))]).await;
        assert_eq!((body.is_whole(), body.size_hint().exact()), (false, None));
        let collected = body.collect().await.unwrap();
        assert!(collected.trailers().is_some());
        assert_eq!(collected.to_bytes().len(), 3);
    }
}
