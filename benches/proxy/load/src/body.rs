//! Bodies of any length from one block of text in memory, so that making them costs nothing.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Length of the block that long bodies repeat.
const BLOCK_BYTES: usize = 1024 * 1024;
/// Bytes of a body handed on at once.
const FRAME_BYTES_MAX: usize = 64 * 1024;

/// Lines of JSON with words, numbers and random-looking strings: what an API sends, and what
/// gives a scanner for secrets as many false starts as it meets in practice.
fn block() -> &'static Bytes {
    static BLOCK: OnceLock<Bytes> = OnceLock::new();
    BLOCK.get_or_init(|| {
        let words = [
            "message",
            "content",
            "the quick",
            "assistant",
            "tokens",
            "delta",
            "a model",
            "\\n",
        ];
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let mut text = String::with_capacity(BLOCK_BYTES + 256);
        while text.len() < BLOCK_BYTES {
            let word = |n: u64| words[(n % words.len() as u64) as usize];
            let (id, a, b) = (random(), random(), random());
            text.push_str(&format!(
                "{{\"id\":\"msg_{id:016x}\",\"role\":\"{}\",\"n\":{},\"text\":\"{} {} {}\"}}\n",
                word(a),
                b % 100_000,
                word(a >> 8),
                word(b >> 8),
                word(b >> 16)
            ));
        }
        text.truncate(BLOCK_BYTES);
        Bytes::from(text)
    })
}

/// A body of a given length.
pub struct Repeat {
    left: u64,
    at: usize,
}

impl Repeat {
    pub fn new(length: u64) -> Self {
        Self {
            left: length,
            at: 0,
        }
    }
}

impl Body for Repeat {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let size = FRAME_BYTES_MAX
            .min(BLOCK_BYTES - self.at)
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let data = block().slice(self.at..self.at + size);
        self.left -= size as u64;
        self.at = (self.at + size) % BLOCK_BYTES;
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
