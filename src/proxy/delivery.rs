//! Answers that hold their request's place until they are written.
//!
//! Over HTTP/2 a program may leave answers unread that were read from their hosts to the end; they
//! wait in memory. Their number is bounded by the places of the requests under way: whatever of an
//! answer waits to be written has its place with it, by way of owners that are dropped with the last
//! of its bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::body::StreamError;

/// Bytes of values in a head beyond which it holds the place as well.
const HEAD_BYTES_FREE_MAX: usize = 1024;

/// A request's place among those of its sandbox.
pub(crate) type Place = Arc<OwnedSemaphorePermit>;

/// Bytes that hold a place.
struct Held {
    bytes: Bytes,
    _place: Place,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn hold(bytes: Bytes, place: &Place) -> Bytes {
    Bytes::from_owner(Held {
        bytes,
        _place: place.clone(),
    })
}

/// Lets a long head hold `place` until it is written.
pub(crate) fn hold_head(headers: &mut HeaderMap, place: &Place) {
    let length: usize = headers.values().map(HeaderValue::len).sum();
    if length <= HEAD_BYTES_FREE_MAX {
        return;
    }
    if let Some(longest) = headers.values_mut().max_by_key(|value| value.len()) {
        let bytes = hold(Bytes::copy_from_slice(longest.as_bytes()), place);
        // It was a value before; one that could not be made would only not hold the place.
        if let Ok(mut held) = HeaderValue::from_maybe_shared(bytes) {
            // Else HPACK's table would keep it after it was written.
            held.set_sensitive(true);
            *longest = held;
        }
    }
}

/// A body each piece of which holds a place.
pub(crate) struct HoldingBody<B> {
    inner: B,
    place: Place,
}

impl<B> HoldingBody<B> {
    pub fn new(inner: B, place: Place) -> Self {
        Self { inner, place }
    }
}

impl<B: Body<Data = Bytes, Error = StreamError> + Unpin> Body for HoldingBody<B> {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let place = &self.place;
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|data| hold(data, place)))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
