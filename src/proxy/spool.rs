//! Bodies set down in a file, so that their length is known before they are sent.
//!
//! Some hosts want a length and answer `411` to a body without. The length of one that changes on
//! its way is only known at its end; one too long for memory is set down and read twice: once to
//! count, once to send.
//!
//! Invariants:
//! - The file holds the body as the program sent it, with tokens: values are put in place after it
//!   is read again, and are in memory only.
//! - It has no name, and nobody else can open it: the system frees it with the last handle,
//!   whatever becomes of this process.
//! - What is sent is as long as was counted, or the exchange breaks off.
//! - At most [`SPOOLED_MIB_MAX`] lie in files for one sandbox at a time, one body included.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};

use super::body::StreamError;
use super::refusal::Refusal;

/// What the bodies of one sandbox in files come to, in MiB.
const SPOOLED_MIB_MAX: u32 = 2048;
/// Bytes in a MiB.
const MIB: u64 = 1024 * 1024;
/// Written and read at once. Every reading is cut alike, so that a transform whose output depends
/// on the cuts (a compressor does) brings out the same twice.
const BLOCK_BYTES: usize = 64 * 1024;

/// The room of one sandbox for bodies in files.
pub(crate) struct Spools(Arc<Semaphore>);

/// A body in a file, to be read as often as needed.
#[derive(Clone)]
pub(crate) struct Spooled {
    file: Arc<File>,
    length: u64,
    trailers: Option<HeaderMap>,
    _room: Arc<OwnedSemaphorePermit>,
}

impl Spools {
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(SPOOLED_MIB_MAX as usize)))
    }

    /// Room for a body of `length` bytes; `None` when there is not that much.
    pub fn room(&self, length: u64) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(length.div_ceil(MIB)).ok()?;
        self.0.clone().try_acquire_many_owned(permits).ok()
    }
}

impl Spooled {
    /// Sets down all of `body`, which may be `length` bytes long at most, in `room`.
    pub async fn new<B>(
        mut body: B,
        length: u64,
        room: OwnedSemaphorePermit,
    ) -> Result<Self, StreamError>
    where
        B: Body<Data = Bytes, Error = StreamError> + Unpin,
    {
        let mut file = blocking(tempfile::tempfile).await?;
        let (mut written, mut trailers) = (0, None);
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) => block.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
            if written + block.len() as u64 > length {
                return Err(Refusal::RequestBody.into());
            }
            if block.len() >= BLOCK_BYTES {
                (file, block) = write(file, block, &mut written).await?;
            }
        }
        (file, _) = write(file, block, &mut written).await?;
        Ok(Self {
            file: Arc::new(file),
            length: written,
            trailers,
            _room: Arc::new(room),
        })
    }

    /// Reads it from the beginning; `moved` counts the bytes.
    pub fn read(&self, moved: Arc<AtomicU64>) -> Reading {
        Reading {
            spooled: self.clone(),
            at: 0,
            block: None,
            moved,
        }
    }
}

async fn write(
    file: File,
    mut block: Vec<u8>,
    written: &mut u64,
) -> Result<(File, Vec<u8>), StreamError> {
    let at = *written;
    *written += block.len() as u64;
    blocking(move || {
        file.write_all_at(&block, at)?;
        block.clear();
        Ok((file, block))
    })
    .await
}

/// File work aside from the tasks that carry bytes. What fails is our own fault.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, StreamError> {
    finished(spawn_blocking(work).await)
}

fn finished<T>(done: Result<io::Result<T>, tokio::task::JoinError>) -> Result<T, StreamError> {
    let done = done.unwrap_or_else(|error| Err(io::Error::other(error)));
    done.map_err(|error| {
        tracing::warn!(%error, "a body can't be set down in a file for temporary data");
        Refusal::Internal.into()
    })
}

/// One reading of a body in a file.
pub(crate) struct Reading {
    spooled: Spooled,
    at: u64,
    block: Option<JoinHandle<io::Result<Vec<u8>>>>,
    moved: Arc<AtomicU64>,
}

impl Body for Reading {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = &mut *self;
        let left = this.spooled.length - this.at;
        if left == 0 {
            let trailers = this.spooled.trailers.take();
            return Poll::Ready(trailers.map(|fields| Ok(Frame::trailers(fields))));
        }
        let (file, at) = (&this.spooled.file, this.at);
        let block = this.block.get_or_insert_with(|| {
            let size = usize::try_from(left).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES));
            let file = file.clone();
            spawn_blocking(move || {
                let mut block = vec![0; size];
                file.read_exact_at(&mut block, at).map(|()| block)
            })
        });
        let done = ready!(Pin::new(block).poll(cx));
        this.block = None;
        let block = finished(done)?;
        this.at += block.len() as u64;
        this.moved.fetch_add(block.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(block.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.spooled.length && self.spooled.trailers.is_none()
    }
}

/// How many bytes `body` has; its trailers are changed too, so that a rule they break shows.
pub(crate) async fn count<B>(mut body: B) -> Result<u64, StreamError>
where
    B: Body<Data = Bytes, Error = StreamError> + Unpin,
{
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame?.data_ref().map_or(0, |data| data.len() as u64);
    }
    Ok(length)
}

/// A body of which the length is promised, and kept.
pub(crate) struct Exact<B> {
    inner: B,
    left: u64,
    /// The last bytes wait until it is certain that they are: no one asks for what comes after.
    last: Option<Bytes>,
    trailers: Option<Frame<Bytes>>,
}

impl<B> Exact<B> {
    pub fn new(inner: B, length: u64) -> Self {
        Self {
            inner,
            left: length,
            last: None,
            trailers: None,
        }
    }
}

impl<B> Body for Exact<B>
where
    B: Body<Data = Bytes, Error = StreamError> + Unpin,
{
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = &mut *self;
        if let Some(trailers) = this.trailers.take() {
            return Poll::Ready(Some(Ok(trailers)));
        }
        loop {
            let frame = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(frame) => frame?.into_data(),
                None if this.left > 0 => return Poll::Ready(Some(Err(wrong_length()))),
                None => return Poll::Ready(this.last.take().map(|last| Ok(Frame::data(last)))),
            };
            match (frame, this.left) {
                (Ok(data), _) if data.is_empty() => {}
                (Ok(data), left) => match left.checked_sub(data.len() as u64) {
                    Some(0) => (this.left, this.last) = (0, Some(data)),
                    Some(left) => {
                        this.left = left;
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    None => return Poll::Ready(Some(Err(wrong_length()))),
                },
                (Err(_), 1..) => return Poll::Ready(Some(Err(wrong_length()))),
                (Err(trailers), 0) => match this.last.take() {
                    // The fields wait in its place.
                    Some(last) => {
                        this.trailers = Some(trailers);
                        return Poll::Ready(Some(Ok(Frame::data(last))));
                    }
                    None => return Poll::Ready(Some(Ok(trailers))),
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream() && self.last.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let last = self.last.as_ref().map_or(0, Bytes::len);
        SizeHint::with_exact(self.left + last as u64)
    }
}

fn wrong_length() -> StreamError {
    tracing::error!("a body came out with another length than was counted");
    Refusal::Internal.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::refusal::full;

    /// Goal: what was set down comes back, in the same cuts each time; longer than was said is
    /// refused, and the room comes back with the last reading.
    #[tokio::test]
    async fn a_body_is_read_as_often_as_needed() {
        let spools = Spools::new();
        assert!(spools.room(2049 * MIB).is_none());
        let bytes: Vec<u8> = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
        let room = spools.room(2048 * MIB).unwrap();
        assert!(spools.room(1).is_none());
        let spooled = Spooled::new(full(bytes.clone()), 200_000, room)
            .await
            .unwrap();
        for _ in 0..2 {
            let moved = Arc::new(AtomicU64::new(0));
            let mut reading = spooled.read(moved.clone());
            let mut cuts = Vec::new();
            let mut whole = Vec::new();
            while let Some(frame) = reading.frame().await {
                let data = frame.unwrap().into_data().unwrap();
                cuts.push(data.len());
                whole.extend_from_slice(&data);
            }
            assert_eq!(cuts, [65536, 65536, 65536, 3392]);
            assert!(whole == bytes && reading.is_end_stream());
            assert_eq!(moved.load(Ordering::Relaxed), 200_000);
        }
        drop(spooled);
        let room = spools.room(1).unwrap();
        assert!(Spooled::new(full(bytes), 199_999, room).await.is_err());
        assert!(spools.room(2048 * MIB).is_some());
    }

    /// Goal: a length that does not hold is an error, not another body.
    #[tokio::test]
    async fn a_promised_length_is_kept() {
        for (length, fits) in [(2, false), (3, true), (4, false)] {
            let body = Exact::new(full("abc"), length);
            assert_eq!(body.size_hint().exact(), Some(length));
            assert_eq!(body.collect().await.is_ok(), fits, "{length}");
        }
    }
}
