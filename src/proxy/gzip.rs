//! A transform applied inside gzip: decode, change, encode again, in constant memory.

use std::io::Write;

use flate2::Compression;
use flate2::write::{GzEncoder, MultiGzDecoder};

use super::body::{StreamError, Transform};

/// Compressed bytes decoded at once. Deflate expands at most 1032 times, so one step never holds
/// much more than 64 KiB however hostile the stream, and is short. A transform that makes more of
/// its input gets less of it.
const STEP_BYTES_MAX: usize = 64;

/// `T`, applied to the text inside a gzip stream.
pub(crate) struct WithinGzip<T> {
    decoder: MultiGzDecoder<Vec<u8>>,
    inner: T,
    encoder: GzEncoder<Vec<u8>>,
    begun: bool,
    unflushed: bool,
}

impl<T: Transform> WithinGzip<T> {
    pub fn new(inner: T) -> Self {
        Self {
            decoder: MultiGzDecoder::new(Vec::new()),
            inner,
            encoder: GzEncoder::new(Vec::new(), Compression::fast()),
            begun: false,
            unflushed: false,
        }
    }

    fn pass_on(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let plain = std::mem::take(self.decoder.get_mut());
        for piece in plain.chunks(self.inner.step_bytes_max()) {
            let mut changed = Vec::with_capacity(piece.len());
            self.inner.push(piece, &mut changed)?;
            self.encoder.write_all(&changed)?;
            self.unflushed |= !changed.is_empty();
        }
        out.append(self.encoder.get_mut());
        Ok(())
    }
}

impl<T: Transform> Transform for WithinGzip<T> {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.begun |= !input.is_empty();
        self.decoder.write_all(input)?;
        self.pass_on(out)
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        // The decoder keeps decoded bytes until it is asked for them.
        self.decoder.flush()?;
        self.pass_on(out)?;
        if std::mem::take(&mut self.unflushed) {
            self.encoder.flush()?;
            out.append(self.encoder.get_mut());
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        // An empty body is not a gzip stream, and servers send it with the header all the same.
        if !self.begun {
            return Ok(());
        }
        self.decoder.try_finish()?;
        self.pass_on(out)?;
        let mut rest = Vec::new();
        self.inner.finish(&mut rest)?;
        self.encoder.write_all(&rest)?;
        self.encoder.try_finish()?;
        out.append(self.encoder.get_mut());
        Ok(())
    }

    fn step_bytes_max(&self) -> usize {
        let share = STEP_BYTES_MAX * self.inner.step_bytes_max() / super::body::STEP_BYTES_MAX;
        share.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// Upper-cases, holding nothing: enough to see that text went through.
    struct Shout;
    impl Transform for Shout {
        fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
            out.extend(input.to_ascii_uppercase());
            Ok(())
        }
        fn finish(&mut self, _out: &mut Vec<u8>) -> Result<(), StreamError> {
            Ok(())
        }
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn run(input: &[u8], size: usize) -> Result<Vec<u8>, StreamError> {
        let mut transform = WithinGzip::new(Shout);
        let mut out = Vec::new();
        for piece in input.chunks(size) {
            transform.push(piece, &mut out)?;
            transform.flush(&mut out)?;
        }
        transform.finish(&mut out)?;
        Ok(out)
    }

    #[test]
    fn the_text_inside_is_changed_however_the_stream_is_cut() {
        let members = [gzip(b"hello "), gzip(b"world")].concat();
        for size in 1..members.len() {
            let out = run(&members, size).unwrap();
            let mut text = String::new();
            flate2::read::MultiGzDecoder::new(&out[..])
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text, "HELLO WORLD");
        }
        assert!(run(b"", 1).unwrap().is_empty());
    }

    /// What was cut short or is not gzip must break the stream, not pass as complete.
    #[test]
    fn damaged_streams_are_errors() {
        let whole = gzip(b"hello hello hello");
        for end in 1..whole.len() {
            assert!(run(&whole[..end], 7).is_err(), "{end}");
        }
        assert!(run(b"plain text, whatever the header says", 7).is_err());
    }

    /// Text that has arrived is readable before the stream ends.
    #[test]
    fn a_pause_of_the_peer_delivers_what_it_sent() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(b"event one").unwrap();
        encoder.flush().unwrap();
        let first = std::mem::take(encoder.get_mut());
        let mut transform = WithinGzip::new(Shout);
        let mut out = Vec::new();
        transform.push(&first, &mut out).unwrap();
        transform.flush(&mut out).unwrap();
        let mut text = [0; 9];
        flate2::read::MultiGzDecoder::new(&out[..])
            .read_exact(&mut text)
            .unwrap();
        assert_eq!(&text, b"EVENT ONE");
    }
}
