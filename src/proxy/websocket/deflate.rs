//! The two ends of a compressed message: inflating what comes, deflating what goes (RFC 7692).
//!
//! A message is a raw deflate stream, flushed at its end, without the four bytes every flush ends
//! with. Inflating always has the largest window, which reads every other. The backend at hand
//! deflates with the largest window only; where the sandbox asked for a smaller one the history
//! is forgotten each time the window is full, so that no distance can exceed it.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::Stop;

/// What every flush ends with and no message carries.
pub(super) const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// Most bytes one step of inflating brings out.
pub(super) const INFLATED_STEP_BYTES_MAX: usize = 32 * 1024;
/// Room for the output of one step of deflating; more than the backend keeps to itself.
const DEFLATED_STEP_BYTES: usize = 16 * 1024;
/// Smallest window deflated for: below it the memory would be cleared more often than it is worth.
pub(super) const WINDOW_BITS_MIN: u8 = 10;
/// Largest window of deflate.
pub(super) const WINDOW_BITS_MAX: u8 = 15;
/// Times its size that a compressed message may become, once it is longer than
/// [`INFLATED_FREE_BYTES`].
const EXPANSION_MAX: u64 = 256;
/// Bytes of a message that may come of any number of compressed ones: text may well begin with a
/// megabyte of spaces.
const INFLATED_FREE_BYTES: u64 = 16 * 1024 * 1024;

const _: () = assert!(INFLATED_FREE_BYTES > INFLATED_STEP_BYTES_MAX as u64);

/// How the messages of one way are compressed on each side of this proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Codec {
    /// Each message that comes stands for itself.
    pub fresh_in: bool,
    /// Each message that goes must.
    pub fresh_out: bool,
    /// Base-2 logarithm of the window of what goes.
    pub window_bits_out: u8,
}

/// Compressed messages to text.
#[derive(Default)]
pub(super) struct Inflater {
    stream: Option<Decompress>,
    /// Output may wait inside.
    unread: bool,
    taken: u64,
    given: u64,
}

impl Inflater {
    /// Whether [`step`](Self::step) has more to give without more input.
    pub fn unread(&self) -> bool {
        self.unread
    }

    /// Inflates some of `input` into `out`, which is empty; returns how much it took.
    pub fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Stop> {
        let damaged = || Stop::Protocol("a compressed message is damaged");
        let stream = self.stream.get_or_insert_with(|| Decompress::new(false));
        out.reserve_exact(INFLATED_STEP_BYTES_MAX);
        let (before_in, room) = (stream.total_in(), out.capacity() - out.len());
        let status = stream.decompress_vec(input, out, FlushDecompress::Sync);
        let status = status.map_err(|_| damaged())?;
        let taken = (stream.total_in() - before_in) as usize;
        self.unread = out.len() == room;
        if status == Status::StreamEnd {
            // A block that calls itself the last ends the history, not the message.
            stream.reset(false);
            self.unread = false;
        } else if taken == 0 && out.is_empty() && !input.is_empty() {
            return Err(damaged());
        }
        self.taken += taken as u64;
        self.given += out.len() as u64;
        if self.given > INFLATED_FREE_BYTES && self.given / EXPANSION_MAX > self.taken {
            return Err(Stop::Expansion);
        }
        Ok(taken)
    }

    /// The message is complete.
    pub fn end_message(&mut self, forget: bool) {
        if forget {
            self.stream = None;
        }
        self.unread = false;
        self.taken = 0;
        self.given = 0;
    }
}

/// Text to compressed messages.
pub(super) struct Deflater {
    stream: Option<Compress>,
    window_bytes: usize,
    /// Bytes since the history was last forgotten.
    history: usize,
    unflushed: bool,
}

impl Deflater {
    pub fn new(window_bits: u8) -> Self {
        Self {
            stream: None,
            window_bytes: 1 << window_bits.clamp(WINDOW_BITS_MIN, WINDOW_BITS_MAX),
            history: 0,
            unflushed: false,
        }
    }

    pub fn push(&mut self, mut text: &[u8], out: &mut Vec<u8>) -> Result<(), Stop> {
        let limited = self.window_bytes < 1 << WINDOW_BITS_MAX;
        while !text.is_empty() {
            let size = if limited {
                text.len().min(self.window_bytes - self.history)
            } else {
                text.len()
            };
            let (piece, rest) = text.split_at(size);
            self.drive(piece, FlushCompress::None, out)?;
            self.unflushed = true;
            text = rest;
            self.history += size;
            if limited && self.history == self.window_bytes {
                self.flush(out)?;
                self.forget();
            }
        }
        Ok(())
    }

    /// Gives out everything: the sender ended a frame here.
    pub fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), Stop> {
        if std::mem::take(&mut self.unflushed) {
            self.drive(&[], FlushCompress::Sync, out)?;
        }
        Ok(())
    }

    /// Ends the message; `forget` as negotiated.
    pub fn end_message(&mut self, forget: bool, out: &mut Vec<u8>) -> Result<(), Stop> {
        if self.unflushed {
            self.flush(out)?;
            // The flush wrote them last, and they were not given out yet.
            out.truncate(out.len().saturating_sub(TAIL.len()));
        } else {
            // An empty block of which the reader adds the rest.
            out.push(0);
        }
        if forget {
            self.stream = None;
            self.history = 0;
        }
        Ok(())
    }

    fn forget(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.reset();
        }
        self.history = 0;
    }

    fn drive(
        &mut self,
        mut text: &[u8],
        flush: FlushCompress,
        out: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        let fast = || Compress::new(Compression::fast(), false);
        let stream = self.stream.get_or_insert_with(fast);
        loop {
            out.reserve(DEFLATED_STEP_BYTES);
            let before = stream.total_in();
            stream
                .compress_vec(text, out, flush)
                .map_err(|_| Stop::Protocol("a message could not be compressed"))?;
            text = &text[(stream.total_in() - before) as usize..];
            if text.is_empty() && out.len() < out.capacity() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn inflate(inflater: &mut Inflater, message: &[u8]) -> Result<Vec<u8>, Stop> {
        let mut text = Vec::new();
        let bytes = [message, &TAIL].concat();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() || inflater.unread() {
            let mut out = Vec::new();
            let taken = inflater.step(rest, &mut out)?;
            rest = &rest[taken..];
            text.append(&mut out);
        }
        inflater.end_message(false);
        Ok(text)
    }

    proptest! {
        /// Messages read back, with and without memory, with flushes anywhere, in any window.
        #[test]
        fn messages_read_back(
            messages in prop::collection::vec("[ab]{0,3000}|.{0,40}", 1..5),
            bits in WINDOW_BITS_MIN..=WINDOW_BITS_MAX,
            piece in 1usize..700,
            forget: bool,
            flushes: bool,
        ) {
            let mut deflater = Deflater::new(bits);
            let mut inflater = Inflater::default();
            for text in &messages {
                let mut out = Vec::new();
                for part in text.as_bytes().chunks(piece) {
                    deflater.push(part, &mut out).unwrap();
                    if flushes {
                        deflater.flush(&mut out).unwrap();
                    }
                }
                deflater.end_message(forget, &mut out).unwrap();
                prop_assert_eq!(inflate(&mut inflater, &out).unwrap(), text.as_bytes());
            }
        }
    }

    /// The examples of RFC 7692, section 7.2.3: a message, one with memory, a stored block, a last
    /// block, two blocks, an empty message.
    #[test]
    fn the_examples_of_the_standard_are_read() {
        let first: &[u8] = &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let mut inflater = Inflater::default();
        assert_eq!(inflate(&mut inflater, first).unwrap(), b"Hello");
        let again = [0xf2, 0x00, 0x11, 0x00, 0x00];
        assert_eq!(inflate(&mut inflater, &again).unwrap(), b"Hello");
        for message in [
            &[
                0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00,
            ][..],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[
                0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00,
            ],
        ] {
            assert_eq!(
                inflate(&mut Inflater::default(), message).unwrap(),
                b"Hello"
            );
        }
        assert!(inflate(&mut Inflater::default(), &[0]).unwrap().is_empty());
        assert!(inflate(&mut Inflater::default(), &[0xff, 0xff]).is_err());
    }

    /// A bomb ends the relay after a bounded amount of work, and never holds more than a step.
    #[test]
    fn a_bomb_is_noticed() {
        // A mebibyte of zeros, and again with the first as its history.
        let mut packer = Compress::new(Compression::best(), false);
        let mut bomb = Vec::with_capacity(64 * 1024);
        let zeros = vec![0; 1024 * 1024];
        packer
            .compress_vec(&zeros, &mut bomb, FlushCompress::Sync)
            .unwrap();
        let bomb = bomb.repeat(64);
        let mut inflater = Inflater::default();
        let (mut rest, mut given) = (bomb.as_slice(), 0);
        let stop = loop {
            let mut out = Vec::new();
            match inflater.step(rest, &mut out) {
                Ok(taken) => rest = &rest[taken..],
                Err(stop) => break stop,
            }
            assert!(!rest.is_empty());
            assert!(out.capacity() <= INFLATED_STEP_BYTES_MAX);
            given += out.len() as u64;
        };
        assert_eq!(stop, Stop::Expansion);
        assert!(given <= INFLATED_FREE_BYTES);
    }
}
