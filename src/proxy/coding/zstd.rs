//! zstd (RFC 8878, with the window RFC 9659 allows in HTTP).

use std::io;

use zstd::stream::raw::{self, CParameter, DParameter, Operation, OutBuffer};

use super::{Decode, Encode};

/// Eight mebibytes.
const WINDOW_LOG_MAX: u32 = 23;
/// Speed over size.
const LEVEL: i32 = 1;
/// 256 KiB, for a small encoder.
const WINDOW_LOG: u32 = 18;
const BUFFER_BYTES: usize = 16 * 1024;

pub(super) struct Decoder {
    frames: raw::Decoder<'static>,
    complete: bool,
}

impl Decoder {
    pub fn new() -> io::Result<Self> {
        let mut frames = raw::Decoder::new()?;
        frames.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        Ok(Self {
            frames,
            complete: false,
        })
    }
}

impl Decode for Decoder {
    fn decode(&mut self, input: &[u8], room: &mut [u8]) -> io::Result<(usize, usize)> {
        if self.complete && input.is_empty() {
            return Ok((0, 0));
        }
        let status = self.frames.run_on_buffers(input, room)?;
        // Nothing remains when a frame is at its end and all of it was written.
        self.complete = status.remaining == 0;
        Ok((status.bytes_read, status.bytes_written))
    }

    fn is_complete(&self) -> bool {
        self.complete
    }

    fn encoder(&self) -> io::Result<Box<dyn Encode>> {
        let mut frame = raw::Encoder::new(LEVEL)?;
        frame.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
        Ok(Box::new(Encoder {
            frame,
            room: vec![0; BUFFER_BYTES],
        }))
    }
}

struct Encoder {
    frame: raw::Encoder<'static>,
    room: Vec<u8>,
}

impl Encoder {
    /// Repeats `step` until it says that nothing remains.
    fn drain(
        &mut self,
        out: &mut Vec<u8>,
        step: impl Fn(&mut raw::Encoder<'static>, &mut OutBuffer<'_, [u8]>) -> io::Result<usize>,
    ) -> io::Result<()> {
        loop {
            let mut room = OutBuffer::around(self.room.as_mut_slice());
            let remaining = step(&mut self.frame, &mut room)?;
            out.extend_from_slice(room.as_slice());
            if remaining == 0 {
                return Ok(());
            }
        }
    }
}

impl Encode for Encoder {
    fn write(&mut self, text: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let mut rest = text;
        while !rest.is_empty() {
            let status = self.frame.run_on_buffers(rest, &mut self.room)?;
            out.extend_from_slice(self.room.get(..status.bytes_written).unwrap_or_default());
            rest = rest.get(status.bytes_read..).unwrap_or_default();
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        self.drain(out, |frame, room| frame.flush(room))
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        self.drain(out, |frame, room| frame.finish(room, true))
    }
}
