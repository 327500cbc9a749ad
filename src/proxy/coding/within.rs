//! One coding around a transform: decode, change, encode again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Decode, Encode, FREE_TEXT_BYTES, RATIO_MAX};
use crate::proxy::body::{StreamError, Transform};
use crate::proxy::refusal::Refusal;
use crate::proxy::turns::Held;

/// Text decoded in one step.
pub(super) const ROOM_BYTES: usize = 32 * 1024;
/// Compressed bytes taken at once; they wait here while they are decoded.
const INPUT_BYTES_MAX: usize = 16 * 1024;

/// Compressed bytes that came from the peer, which all layers of a body measure themselves by.
#[derive(Clone, Default)]
pub(super) struct Wire(Arc<AtomicU64>);

/// A transform applied to the text of one coding.
pub(super) struct Within {
    decoder: Box<dyn Decode>,
    /// Made when there is something to encode: only then is the flavour known.
    encoder: Option<Box<dyn Encode>>,
    inner: Box<dyn Transform>,
    waiting: Vec<u8>,
    at: usize,
    room: Vec<u8>,
    /// The last step filled all its room: the decoder may hold more.
    full: bool,
    begun: bool,
    unflushed: bool,
    wire: Wire,
    outermost: bool,
    text_bytes: u64,
    _held: Held,
}

impl Within {
    pub fn new(
        decoder: Box<dyn Decode>,
        inner: Box<dyn Transform>,
        wire: Wire,
        held: Held,
    ) -> Self {
        Self {
            decoder,
            encoder: None,
            inner,
            waiting: Vec::new(),
            at: 0,
            room: Vec::new(),
            full: false,
            begun: false,
            unflushed: false,
            wire,
            outermost: false,
            text_bytes: 0,
            _held: held,
        }
    }

    /// The layer that the peer's bytes come to.
    pub fn outermost(mut self) -> Self {
        self.outermost = true;
        self
    }

    fn step(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        if self.inner.has_more() {
            return self.change(0, out);
        }
        let room = self.inner.step_bytes_max().clamp(1, ROOM_BYTES);
        self.room.resize(room, 0);
        let input = self.waiting.get(self.at..).unwrap_or_default();
        let (read, written) = self.decoder.decode(input, &mut self.room)?;
        if read == 0 && written == 0 && !input.is_empty() {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        }
        self.at += read;
        if self.at == self.waiting.len() {
            self.waiting.clear();
            self.at = 0;
        }
        self.full = written == self.room.len();
        self.text_bytes += written as u64;
        let wire = self.wire.0.load(Ordering::Relaxed);
        if self.text_bytes > FREE_TEXT_BYTES.saturating_add(RATIO_MAX.saturating_mul(wire)) {
            return Err(Refusal::Expansion.into());
        }
        self.change(written, out)
    }

    /// Hands the first `size` bytes of the room to the inner transform.
    fn change(&mut self, size: usize, out: &mut Vec<u8>) -> Result<(), StreamError> {
        if size == 0 && !self.inner.has_more() {
            return Ok(());
        }
        let text = self.room.get(..size).unwrap_or_default();
        if size > 0 && self.inner.passes(text) == size {
            let encoder = encoder(&mut self.encoder, &*self.decoder)?;
            encoder.write(text, out)?;
            self.unflushed = true;
            return Ok(());
        }
        let mut changed = Vec::new();
        self.inner.push(text, &mut changed)?;
        self.encode(&changed, out)
    }

    fn encode(&mut self, text: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        if !text.is_empty() {
            encoder(&mut self.encoder, &*self.decoder)?.write(text, out)?;
            self.unflushed = true;
        }
        Ok(())
    }
}

fn encoder<'a>(
    slot: &'a mut Option<Box<dyn Encode>>,
    decoder: &dyn Decode,
) -> io::Result<&'a mut Box<dyn Encode>> {
    match slot {
        Some(encoder) => Ok(encoder),
        none => Ok(none.insert(decoder.encoder()?)),
    }
}

impl Transform for Within {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        if !input.is_empty() {
            self.begun = true;
            self.waiting.extend_from_slice(input);
            if self.outermost {
                let bytes = input.len() as u64;
                self.wire.0.fetch_add(bytes, Ordering::Relaxed);
            }
        }
        self.step(out)
    }

    fn has_more(&self) -> bool {
        self.full || !self.waiting.is_empty() || self.inner.has_more()
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let mut settled = Vec::new();
        self.inner.flush(&mut settled)?;
        self.encode(&settled, out)?;
        if std::mem::take(&mut self.unflushed) {
            encoder(&mut self.encoder, &*self.decoder)?.flush(out)?;
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        // An empty body is not a compressed stream, and servers send it with the field all the
        // same.
        if !self.begun {
            return Ok(());
        }
        while self.has_more() {
            self.step(out)?;
        }
        if !self.decoder.is_complete() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let mut rest = Vec::new();
        self.inner.finish(&mut rest)?;
        self.encode(&rest, out)?;
        encoder(&mut self.encoder, &*self.decoder)?.finish(out)?;
        Ok(())
    }

    fn step_bytes_max(&self) -> usize {
        INPUT_BYTES_MAX
    }
}
