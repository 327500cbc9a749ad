//! What moves on an HTTP/2 connection beside its PINGs.
//!
//! Each side asks the other now and then whether it lives, so bytes alone do not tell whether a
//! connection is still of use. Looks at frame heads only, and changes nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::io::Meter;

/// Bytes of a frame's head (RFC 9113, section 4.1).
const HEAD_BYTES: usize = 9;
/// Bytes a client sends before its first frame.
const PREFACE_BYTES: u64 = 24;
/// The type of a PING frame.
const PING: u8 = 6;

/// A connection with a meter on its frames.
pub(crate) struct Framed<S> {
    inner: S,
    meter: Arc<Meter>,
    read: Frames,
    written: Frames,
}

impl<S> Framed<S> {
    /// The server's side of a connection.
    pub fn new(inner: S, meter: Arc<Meter>) -> Self {
        Self {
            inner,
            meter,
            read: Frames {
                left: PREFACE_BYTES,
                ..Frames::default()
            },
            written: Frames::default(),
        }
    }
}

/// Follows the frames of one way.
#[derive(Default)]
struct Frames {
    head: [u8; HEAD_BYTES],
    have: usize,
    /// Bytes left of a frame's payload.
    left: u64,
}

impl Frames {
    /// Takes the next bytes; whether a frame began in them that is no PING.
    fn pass(&mut self, mut bytes: &[u8]) -> bool {
        let mut moved = false;
        while !bytes.is_empty() {
            if self.left > 0 {
                let size =
                    usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.left -= size as u64;
                bytes = &bytes[size..];
                continue;
            }
            let size = bytes.len().min(HEAD_BYTES - self.have);
            self.head[self.have..self.have + size].copy_from_slice(&bytes[..size]);
            self.have += size;
            bytes = &bytes[size..];
            if self.have == HEAD_BYTES {
                self.have = 0;
                let [a, b, c, kind, ..] = self.head;
                self.left = u32::from_be_bytes([0, a, b, c]).into();
                moved |= kind != PING;
            }
        }
        moved
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Framed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let new = buf.filled().get(before..).unwrap_or_default();
        if self.read.pass(new) {
            self.meter.moved_now();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Framed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let size = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        if self.written.pass(buf.get(..size).unwrap_or_default()) {
            self.meter.moved_now();
        }
        Poll::Ready(Ok(size))
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let size = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs))?;
        let (mut left, mut moved) = (size, false);
        for buf in bufs {
            let part = buf.len().min(left);
            moved |= self.written.pass(&buf[..part]);
            left -= part;
        }
        if moved {
            self.meter.moved_now();
        }
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

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[a, b, c, kind, 0, 0, 0, 0, 1], payload].concat()
    }

    /// Goal: however the bytes are cut, PINGs are no movement and every other frame is one, also
    /// where its payload looks like the head of another.
    #[test]
    fn only_pings_are_no_movement() {
        for cut in 1..40 {
            let mut frames = Frames::default();
            let mut moved = |bytes: &[u8]| {
                let parts = bytes.chunks(cut).map(|part| frames.pass(part));
                parts.filter(|moved| *moved).count()
            };
            assert_eq!(
                moved(&[frame(PING, &[0; 8]), frame(PING, &[0; 8])].concat()),
                0
            );
            assert_eq!(moved(&frame(0, &frame(PING, b"x"))), 1);
            assert_eq!(moved(&frame(PING, &[9; 8])), 0);
            assert_eq!(moved(&frame(4, b"")), 1);
        }
    }
}
