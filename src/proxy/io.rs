//! Streams that can be looked at before they are used, and that know when they were last used.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Writes go to `inner` as they are. Several TLS records go out in one call only if every layer
/// below lets them.
macro_rules! writes_to_inner {
    ($stream:ty $(, $inner:ident)?) => {
        impl$(<$inner: tokio::io::AsyncWrite + Unpin>)? tokio::io::AsyncWrite for $stream {
            fn poll_write(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.inner).poll_write(cx, buf)
            }
            fn poll_write_vectored(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
            }
            fn is_write_vectored(&self) -> bool {
                self.inner.is_write_vectored()
            }
            fn poll_flush(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<io::Result<()>> {
                Pin::new(&mut self.inner).poll_flush(cx)
            }
            fn poll_shutdown(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<io::Result<()>> {
                Pin::new(&mut self.inner).poll_shutdown(cx)
            }
        }
    };
}
pub(crate) use writes_to_inner;

/// A connection of a sandbox, directly or inside a CONNECT tunnel.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Any such connection.
pub(crate) type Stream = Box<dyn Duplex>;

/// A stream whose first bytes were read ahead; they are read again first.
pub(crate) struct Rewind {
    ahead: BytesMut,
    inner: Stream,
}

impl Rewind {
    pub fn new(inner: Stream) -> Self {
        Self {
            ahead: BytesMut::new(),
            inner,
        }
    }

    /// The same stream with `before` read ahead of everything else.
    pub fn preceded_by(mut self, before: &[u8]) -> Self {
        if !before.is_empty() {
            self.ahead = [before, &self.ahead].concat().as_slice().into();
        }
        self
    }

    /// What was read ahead so far.
    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// Reads further ahead; 0 at the end of the stream. Cancel-safe.
    pub async fn look(&mut self) -> io::Result<usize> {
        self.inner.read_buf(&mut self.ahead).await
    }
}

impl AsyncRead for Rewind {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let size = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..size]);
        self.ahead.advance(size);
        Poll::Ready(Ok(()))
    }
}

writes_to_inner!(Rewind);

/// What TLS holds of what is written: all that HTTP hands over at once, framed, lest the last bytes of
/// it go in a call of their own.
pub(crate) const TLS_BUFFER_BYTES_MAX: usize = 96 * 1024;
/// What is read at a time, without setting memory aside for it.
const SIP_BYTES: usize = 16 * 1024;
/// What is read at a time of a stream that brings much.
const GULP_BYTES: usize = 64 * 1024;

/// A stream read in larger pieces than TLS asks for, which is four kibibytes at a time: a call of
/// the kernel costs as much as what it brings. Holds memory only while more comes than is taken.
pub(crate) struct Gulp<S> {
    inner: S,
    ahead: BytesMut,
    /// The last piece was as large as it could be.
    much: bool,
}

impl<S> Gulp<S> {
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            ahead: BytesMut::new(),
            much: false,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gulp<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            let inner = Pin::new(&mut this.inner);
            if this.much {
                this.ahead.reserve(GULP_BYTES);
                let came = poll_read_buf(inner, cx, &mut this.ahead);
                this.much = this.ahead.len() >= GULP_BYTES;
                if this.ahead.is_empty() {
                    this.ahead = BytesMut::new();
                }
                ready!(came)?;
            } else {
                let mut room = [MaybeUninit::uninit(); SIP_BYTES];
                let mut room = ReadBuf::uninit(&mut room);
                ready!(inner.poll_read(cx, &mut room))?;
                this.much = room.remaining() == 0;
                let (now, later) = room
                    .filled()
                    .split_at(room.filled().len().min(buf.remaining()));
                buf.put_slice(now);
                this.ahead.extend_from_slice(later);
                return Poll::Ready(Ok(()));
            }
        }
        let size = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead[..size]);
        this.ahead.advance(size);
        if this.ahead.is_empty() && !this.much {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

writes_to_inner!(Gulp<S>, S);

/// A stream that tells whether anything came.
pub(crate) struct Listened<S> {
    inner: S,
    heard: Arc<AtomicBool>,
}

impl<S> Listened<S> {
    /// The stream, and what is set when a byte is read from it.
    pub fn new(inner: S) -> (Self, Arc<AtomicBool>) {
        let heard = Arc::new(AtomicBool::new(false));
        let listened = Self {
            inner,
            heard: heard.clone(),
        };
        (listened, heard)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Listened<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.heard.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

writes_to_inner!(Listened<S>, S);

/// Bytes that all connections of a sandbox have carried, as they are on its side (with TLS).
#[derive(Debug, Default)]
pub struct Traffic {
    /// From the sandbox.
    pub out: AtomicU64,
    /// To the sandbox.
    pub back: AtomicU64,
}

/// Bytes through a stream and the time of the last.
pub(crate) struct Meter {
    /// Bytes read from it.
    pub read: Arc<AtomicU64>,
    /// Bytes written to it.
    pub written: Arc<AtomicU64>,
    all: Arc<Traffic>,
    begun: Instant,
    last_ms: AtomicU64,
}

impl Meter {
    /// One that counts for `all` as well.
    pub fn new(all: Arc<Traffic>) -> Arc<Self> {
        Arc::new(Self {
            read: Arc::default(),
            written: Arc::default(),
            all,
            begun: Instant::now(),
            last_ms: AtomicU64::new(0),
        })
    }

    /// Ends when nothing has moved for `limit`.
    pub async fn idle_for(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            let idle = self.begun.elapsed().saturating_sub(last);
            if idle >= limit {
                return;
            }
            tokio::time::sleep(limit - idle).await;
        }
    }

    fn moved(&self, counter: &AtomicU64, of_all: &AtomicU64, bytes: usize) {
        counter.fetch_add(bytes as u64, Ordering::Relaxed);
        of_all.fetch_add(bytes as u64, Ordering::Relaxed);
        self.moved_now();
    }

    /// Something moved that is not counted in bytes.
    pub fn moved_now(&self) {
        // 64 bits of milliseconds outlast any machine.
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }
}

/// A stream with a meter on it.
pub(crate) struct Metered<S> {
    inner: S,
    meter: Arc<Meter>,
}

impl<S> Metered<S> {
    pub fn new(inner: S, meter: Arc<Meter>) -> Self {
        Self { inner, meter }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let (meter, size) = (&self.meter, buf.filled().len() - before);
        meter.moved(&meter.read, &meter.all.out, size);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let size = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        let meter = &self.meter;
        meter.moved(&meter.written, &meter.all.back, size);
        Poll::Ready(Ok(size))
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let size = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs))?;
        let meter = &self.meter;
        meter.moved(&meter.written, &meter.all.back, size);
        Poll::Ready(Ok(size))
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    /// Goal: whatever the pieces in which bytes come and are taken, they are the same, and nothing is
    /// held once they are taken.
    #[tokio::test]
    async fn a_gulp_changes_no_byte() {
        for (brought, taken) in [(100, 4096), (SIP_BYTES, 4096), (500_000, 4096), (70_000, 1)] {
            let (mut far, near) = tokio::io::duplex(4 * GULP_BYTES);
            let all: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
            let sent = all.clone();
            tokio::spawn(async move {
                for piece in sent.chunks(brought) {
                    far.write_all(piece).await.unwrap();
                }
                // Open, but silent.
                std::future::pending::<()>().await;
            });
            let mut gulp = Gulp::new(near);
            let mut found = Vec::new();
            let mut room = vec![0; taken];
            while found.len() < all.len() {
                let size = gulp.read(&mut room).await.unwrap();
                found.extend_from_slice(&room[..size]);
            }
            assert!(found == all, "{brought} {taken}");
            assert!(futures_util::poll!(std::pin::pin!(gulp.read(&mut room))).is_pending());
            assert_eq!(gulp.ahead.capacity(), 0);
        }
    }
}
