//! gzip (RFC 1952) and what goes by the name of deflate: zlib (RFC 1950) or raw (RFC 1951).

use std::io;

use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use flate2::{Compression, Crc, Decompress, FlushDecompress, Status};

use super::{Decode, Encode, damaged};

/// One member after another.
pub(super) struct Gzip {
    stage: Stage,
    inflate: Box<Decompress>,
    /// Over the header, then over the text.
    sum: Crc,
}

/// Where in a member the next byte stands.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// Before the first byte of a member; `true` when one is complete.
    Between(bool),
    /// Among the ten bytes every header has.
    Fixed {
        at: usize,
        flags: u8,
    },
    /// In what the flags announce.
    Optional {
        flags: u8,
        field: Field,
    },
    Text,
    /// Among the two sums at the end.
    Sums {
        at: usize,
        read: [u8; 8],
    },
}

#[derive(Debug, Clone, Copy)]
enum Field {
    ExtraLength { at: usize, length: u16 },
    Extra(u16),
    Name,
    Comment,
    HeaderSum { at: usize, read: [u8; 2] },
}

const HAS_SUM: u8 = 2;
const HAS_EXTRA: u8 = 4;
const HAS_NAME: u8 = 8;
const HAS_COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

impl Gzip {
    pub fn new() -> Self {
        Self {
            stage: Stage::Between(false),
            inflate: Box::new(Decompress::new(false)),
            sum: Crc::new(),
        }
    }

    /// Takes one byte that is not text.
    fn frame(&mut self, byte: u8) -> io::Result<()> {
        let is_sum = matches!(
            self.stage,
            Stage::Optional {
                field: Field::HeaderSum { .. },
                ..
            } | Stage::Sums { .. }
        );
        if matches!(self.stage, Stage::Between(_)) {
            self.sum.reset();
        }
        if !is_sum {
            self.sum.update(&[byte]);
        }
        self.stage = match self.stage {
            Stage::Between(_) if byte == 0x1f => Stage::Fixed { at: 1, flags: 0 },
            Stage::Between(_) => return Err(damaged("not gzip")),
            Stage::Fixed { at, flags } => match (at, byte) {
                (1, 0x8b) | (2, 8) => Stage::Fixed { at: at + 1, flags },
                (1 | 2, _) => return Err(damaged("not gzip")),
                (3, flags) if flags & RESERVED != 0 => return Err(damaged("reserved flags")),
                (3, flags) => Stage::Fixed { at: 4, flags },
                (9, _) => self.optional(flags, HAS_EXTRA),
                _ => Stage::Fixed { at: at + 1, flags },
            },
            Stage::Optional { flags, field } => self.field(flags, field, byte)?,
            Stage::Text => Stage::Text,
            Stage::Sums { at, mut read } => {
                if let Some(place) = read.get_mut(at) {
                    *place = byte;
                }
                match at {
                    7 => self.end(read)?,
                    _ => Stage::Sums { at: at + 1, read },
                }
            }
        };
        Ok(())
    }

    /// The next part of the header that is there, from `first` on.
    fn optional(&mut self, flags: u8, first: u8) -> Stage {
        let (at, length) = (0, 0);
        let fields = [
            (HAS_EXTRA, Field::ExtraLength { at, length }),
            (HAS_NAME, Field::Name),
            (HAS_COMMENT, Field::Comment),
            (HAS_SUM, Field::HeaderSum { at, read: [0; 2] }),
        ];
        let from = fields.iter().position(|(flag, _)| *flag == first);
        let mut rest = fields.iter().skip(from.unwrap_or(fields.len()));
        match rest.find(|(flag, _)| flags & flag != 0) {
            Some((_, field)) => Stage::Optional {
                flags,
                field: *field,
            },
            None => self.text(),
        }
    }

    fn text(&mut self) -> Stage {
        self.sum.reset();
        self.inflate.reset(false);
        Stage::Text
    }

    fn field(&mut self, flags: u8, field: Field, byte: u8) -> io::Result<Stage> {
        let stay = |field| Ok(Stage::Optional { flags, field });
        match field {
            Field::ExtraLength { at: 0, .. } => stay(Field::ExtraLength {
                at: 1,
                length: byte.into(),
            }),
            Field::ExtraLength { length, .. } => match length | u16::from(byte) << 8 {
                0 => Ok(self.optional(flags, HAS_NAME)),
                length => stay(Field::Extra(length)),
            },
            Field::Extra(1) => Ok(self.optional(flags, HAS_NAME)),
            Field::Extra(left) => stay(Field::Extra(left.saturating_sub(1))),
            Field::Name if byte == 0 => Ok(self.optional(flags, HAS_COMMENT)),
            Field::Comment if byte == 0 => Ok(self.optional(flags, HAS_SUM)),
            Field::Name | Field::Comment => stay(field),
            Field::HeaderSum { at: 0, .. } => stay(Field::HeaderSum {
                at: 1,
                read: [byte, 0],
            }),
            Field::HeaderSum { read: [low, _], .. } => {
                let said = u16::from_le_bytes([low, byte]);
                match u32::from(said) == self.sum.sum() & 0xffff {
                    true => Ok(self.text()),
                    false => Err(damaged("the header's sum is wrong")),
                }
            }
        }
    }

    fn end(&mut self, read: [u8; 8]) -> io::Result<Stage> {
        let [a, b, c, d, e, f, g, h] = read;
        let (sum, length) = (
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
        );
        match (sum, length) == (self.sum.sum(), self.sum.amount()) {
            true => Ok(Stage::Between(true)),
            false => Err(damaged("the text's sum or length is wrong")),
        }
    }
}

impl Decode for Gzip {
    fn decode(&mut self, input: &[u8], room: &mut [u8]) -> io::Result<(usize, usize)> {
        for (at, &byte) in input.iter().enumerate() {
            if matches!(self.stage, Stage::Text) {
                let rest = input.get(at..).unwrap_or_default();
                let (read, written) = self.inflate(rest, room)?;
                return Ok((at + read, written));
            }
            self.frame(byte)?;
        }
        if input.is_empty() && matches!(self.stage, Stage::Text) {
            return self.inflate(&[], room);
        }
        Ok((input.len(), 0))
    }

    fn is_complete(&self) -> bool {
        matches!(self.stage, Stage::Between(true))
    }

    fn encoder(&self) -> io::Result<Box<dyn Encode>> {
        Ok(Box::new(Deflating(GzEncoder::new(Vec::new(), LEVEL))))
    }
}

impl Gzip {
    fn inflate(&mut self, input: &[u8], room: &mut [u8]) -> io::Result<(usize, usize)> {
        let (read, written, end) = inflate(&mut self.inflate, input, room)?;
        self.sum.update(room.get(..written).unwrap_or_default());
        if end {
            self.stage = Stage::Sums {
                at: 0,
                read: [0; 8],
            };
        }
        Ok((read, written))
    }
}

/// zlib or raw deflate.
pub(super) struct Deflate {
    /// The first two bytes, until the flavour is known.
    head: Vec<u8>,
    inflate: Option<Box<Decompress>>,
    zlib: bool,
    complete: bool,
}

impl Deflate {
    pub fn new() -> Self {
        Self {
            head: Vec::new(),
            inflate: None,
            zlib: true,
            complete: false,
        }
    }
}

/// Whether these two bytes begin a zlib stream: method 8, a window zlib knows, no dictionary, and
/// the check that makes the two a multiple of 31.
fn is_zlib(first: u8, second: u8) -> bool {
    let check = u16::from_be_bytes([first, second]).is_multiple_of(31);
    first & 0x0f == 8 && first >> 4 <= 7 && second & 0x20 == 0 && check
}

impl Decode for Deflate {
    fn decode(&mut self, input: &[u8], room: &mut [u8]) -> io::Result<(usize, usize)> {
        if self.complete {
            return match input.is_empty() {
                true => Ok((0, 0)),
                false => Err(damaged("bytes after the end")),
            };
        }
        if let Some(inflater) = &mut self.inflate {
            let (read, written, end) = inflate(inflater, input, room)?;
            self.complete = end;
            return Ok((read, written));
        }
        let wanted = 2usize.saturating_sub(self.head.len()).min(input.len());
        self.head
            .extend_from_slice(input.get(..wanted).unwrap_or_default());
        let [first, second] = *self.head.as_slice() else {
            return Ok((wanted, 0));
        };
        self.zlib = is_zlib(first, second);
        let mut inflater = Box::new(Decompress::new(self.zlib));
        let (read, written, end) = inflate(&mut inflater, &[first, second], room)?;
        if read < 2 {
            // Not even the shortest stream is one byte long.
            return Err(damaged("not deflate"));
        }
        self.complete = end;
        self.inflate = Some(inflater);
        Ok((wanted, written))
    }

    fn is_complete(&self) -> bool {
        self.complete
    }

    fn encoder(&self) -> io::Result<Box<dyn Encode>> {
        Ok(match self.zlib {
            true => Box::new(Deflating(ZlibEncoder::new(Vec::new(), LEVEL))),
            false => Box::new(Deflating(DeflateEncoder::new(Vec::new(), LEVEL))),
        })
    }
}

/// Bytes read, bytes written, and whether the stream is at its end.
fn inflate(
    inflater: &mut Decompress,
    input: &[u8],
    room: &mut [u8],
) -> io::Result<(usize, usize, bool)> {
    let before = (inflater.total_in(), inflater.total_out());
    let status = inflater
        .decompress(input, room, FlushDecompress::None)
        .map_err(|_| damaged("not deflate"))?;
    // Both are bounded by the lengths of slices.
    let read = (inflater.total_in() - before.0) as usize;
    let written = (inflater.total_out() - before.1) as usize;
    Ok((read, written, status == Status::StreamEnd))
}

const LEVEL: Compression = Compression::fast();

struct Deflating<E>(E);

macro_rules! encode {
    ($($encoder:ty),*) => {$(
        impl Encode for Deflating<$encoder> {
            fn write(&mut self, text: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
                io::Write::write_all(&mut self.0, text)?;
                out.append(self.0.get_mut());
                Ok(())
            }
            fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
                io::Write::flush(&mut self.0)?;
                out.append(self.0.get_mut());
                Ok(())
            }
            fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
                self.0.try_finish()?;
                out.append(self.0.get_mut());
                Ok(())
            }
        }
    )*};
}
encode!(
    GzEncoder<Vec<u8>>,
    ZlibEncoder<Vec<u8>>,
    DeflateEncoder<Vec<u8>>
);
