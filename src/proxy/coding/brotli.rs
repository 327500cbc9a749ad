//! br (RFC 7932).

use std::io;

use brotli::enc::StandardAlloc;
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState, CompressorWriter};

use super::{Decode, Encode, damaged};

/// Speed over size.
const QUALITY: u32 = 1;
/// 256 KiB: more would be memory for nothing at this quality.
const WINDOW_LOG: u32 = 18;
const BUFFER_BYTES: usize = 16 * 1024;

type State = BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>;

pub(super) struct Decoder {
    state: Box<State>,
    complete: bool,
}

impl Decoder {
    pub fn new() -> Self {
        let alloc = StandardAlloc::default;
        // Strict: no windows beyond the RFC's sixteen mebibytes.
        let state = Box::new(State::new_strict(alloc(), alloc(), alloc()));
        Self {
            state,
            complete: false,
        }
    }
}

impl Decode for Decoder {
    fn decode(&mut self, input: &[u8], room: &mut [u8]) -> io::Result<(usize, usize)> {
        if self.complete {
            return match input.is_empty() {
                true => Ok((0, 0)),
                false => Err(damaged("bytes after the end")),
            };
        }
        let (mut left, mut read) = (input.len(), 0);
        let (mut free, mut written, mut total) = (room.len(), 0, 0);
        let result = BrotliDecompressStream(
            &mut left,
            &mut read,
            input,
            &mut free,
            &mut written,
            room,
            &mut total,
            &mut self.state,
        );
        match result {
            BrotliResult::ResultSuccess => self.complete = true,
            BrotliResult::ResultFailure => return Err(damaged("not br")),
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
        }
        Ok((read, written))
    }

    fn is_complete(&self) -> bool {
        self.complete
    }

    fn encoder(&self) -> io::Result<Box<dyn Encode>> {
        let writer = CompressorWriter::new(Vec::new(), BUFFER_BYTES, QUALITY, WINDOW_LOG);
        Ok(Box::new(Encoder(Some(writer))))
    }
}

struct Encoder(Option<CompressorWriter<Vec<u8>>>);

impl Encoder {
    fn writer(&mut self) -> io::Result<&mut CompressorWriter<Vec<u8>>> {
        self.0.as_mut().ok_or_else(|| damaged("already ended"))
    }
}

impl Encode for Encoder {
    fn write(&mut self, text: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let writer = self.writer()?;
        io::Write::write_all(writer, text)?;
        out.append(writer.get_mut());
        Ok(())
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let writer = self.writer()?;
        io::Write::flush(writer)?;
        out.append(writer.get_mut());
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if let Some(writer) = self.0.take() {
            out.append(&mut writer.into_inner());
        }
        Ok(())
    }
}
