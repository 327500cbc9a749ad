//! Content codings: a transform applied to the text under them, in constant memory.
//!
//! | Coding | Most memory to open | What is refused |
//! |---|---|---|
//! | gzip (x-gzip) | 32 KiB window | wrong sums, a part, anything after the last member |
//! | deflate | 32 KiB window | as above; zlib (RFC 1950), or raw deflate as old servers send it, told apart by the first two bytes and answered in kind |
//! | br | 16 MiB window | large windows (beyond RFC 7932), a part, anything after the end |
//! | zstd | 8 MiB window | larger ones (RFC 9659), dictionaries, a part, anything after the last frame |
//!
//! Several gzip members or zstd frames are one text. Up to [`SERIES_MAX`] codings may lie over each
//! other, in the order `Content-Encoding` names them. Whatever the coding, a body may hold
//! [`FREE_TEXT_BYTES`] and then [`RATIO_MAX`] times its own length.
//!
//! Text is encoded again with the fastest level of its coding: it is decoded once, a hop away.

mod accept;
mod brotli;
mod deflate;
mod within;
mod zstd;

use std::io;

use http::HeaderMap;

pub(crate) use self::accept::offered;
use self::within::{Wire, Within};
use super::body::Transform;
use super::refusal::Refusal;
use super::tally::Tally;
use super::turns::{Held, Share};

/// Codings that may lie over each other in one body.
const SERIES_MAX: usize = 2;
/// Text that any body may hold, however short it is itself.
pub(crate) const FREE_TEXT_BYTES: u64 = 1024 * 1024;
/// Bytes of text for each byte of a body beyond that. Deflate can't do much more (1032), and what
/// comes near it is nothing but repetition.
pub(crate) const RATIO_MAX: u64 = 1000;

/// How a body, or one message in it, is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

/// Every coding this proxy opens.
pub(crate) const ALL: [Coding; 4] = [Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd];

impl Coding {
    /// The coding of this name (RFC 9110, section 8.4.1), in any case.
    pub fn named(name: &[u8]) -> Option<Self> {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        let found = ALL.into_iter().find(|coding| is(coding.name()));
        found.or_else(|| is("x-gzip").then_some(Self::Gzip))
    }

    /// Its registered name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    /// Memory that opening and closing a body of this coding may take.
    fn memory_bytes(self) -> usize {
        match self {
            Self::Gzip | Self::Deflate => 512 * 1024,
            Self::Brotli => 17 * 1024 * 1024,
            Self::Zstd => 10 * 1024 * 1024,
        }
    }

    fn decoder(self) -> io::Result<Box<dyn Decode>> {
        Ok(match self {
            Self::Gzip => Box::new(deflate::Gzip::new()),
            Self::Deflate => Box::new(deflate::Deflate::new()),
            Self::Brotli => Box::new(brotli::Decoder::new()),
            Self::Zstd => Box::new(zstd::Decoder::new()?),
        })
    }

    /// `transform` applied to the text under this one coding, on nobody's account.
    #[cfg(test)]
    pub fn within(self, transform: impl Transform + 'static) -> Box<dyn Transform> {
        Series(vec![self])
            .within(Box::new(transform), &Tally::default())
            .expect("nobody's share has room")
    }
}

/// The codings of a body, the one applied first at the front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Series(Vec<Coding>);

impl Series {
    /// What the `Content-Encoding` fields say, or `None` when it is more than we look into.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut series = Vec::new();
        let fields = headers.get_all(http::header::CONTENT_ENCODING);
        let names = fields.iter().flat_map(|value| split(value.as_bytes()));
        for name in names.filter(|name| !name.eq_ignore_ascii_case(b"identity")) {
            series.push(Coding::named(name).filter(|_| series.len() < SERIES_MAX)?);
        }
        Some(Self(series))
    }

    /// Whether the body is not compressed at all.
    pub fn is_identity(&self) -> bool {
        self.0.is_empty()
    }

    /// `transform` applied to the text under the codings.
    pub fn within(
        self,
        transform: Box<dyn Transform>,
        tally: &Tally,
    ) -> Result<Box<dyn Transform>, Refusal> {
        let wire = Wire::default();
        let outermost = self.0.len();
        let mut all = transform;
        for (at, coding) in (1..).zip(self.0) {
            let held = hold(&tally.share(), coding)?;
            let decoder = coding.decoder().map_err(|_| Refusal::Internal)?;
            let within = Within::new(decoder, all, wire.clone(), held);
            all = Box::new(if at == outermost {
                within.outermost()
            } else {
                within
            });
        }
        Ok(all)
    }
}

fn hold(share: &Share, coding: Coding) -> Result<Held, Refusal> {
    share.hold(coding.memory_bytes()).ok_or(Refusal::BodyMemory)
}

/// The elements of a comma-separated field (RFC 9110, section 5.6.1), empty ones left out.
pub(crate) fn split(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value
        .split(|&b| b == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// The text of `packed`, a whole body of `coding` that is at hand, if it is at most `limit` bytes;
/// and a way to pack text alike.
pub(crate) fn unpack(
    coding: Coding,
    packed: &[u8],
    limit: usize,
) -> Result<Option<(Vec<u8>, Packer)>, io::Error> {
    let mut decoder = coding.decoder()?;
    let (mut text, mut room) = (Vec::new(), vec![0; within::ROOM_BYTES]);
    let mut at = 0;
    loop {
        let input = packed.get(at..).unwrap_or_default();
        let (read, written) = decoder.decode(input, &mut room)?;
        at += read;
        text.extend_from_slice(room.get(..written).unwrap_or_default());
        if text.len() > limit {
            return Ok(None);
        }
        if read == 0 && written == 0 {
            break;
        }
    }
    match at == packed.len() && decoder.is_complete() {
        true => Ok(Some((text, Packer(decoder)))),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Packs a text the way another one was packed.
pub(crate) struct Packer(Box<dyn Decode>);

impl Packer {
    /// `text` as a whole body of its own.
    pub fn pack(&self, text: &[u8]) -> io::Result<Vec<u8>> {
        let (mut encoder, mut out) = (self.0.encoder()?, Vec::new());
        encoder.write(text, &mut out)?;
        encoder.finish(&mut out)?;
        Ok(out)
    }

    #[cfg(test)]
    pub fn of(coding: Coding) -> Self {
        Self(coding.decoder().unwrap())
    }
}

/// Opens one coding, however its bytes are cut.
trait Decode: Send {
    /// Reads from `input` and writes text to `room`; returns how many bytes of each. Bounded by
    /// `room`; neither is used only when there is nothing to do without more input.
    fn decode(&mut self, input: &[u8], room: &mut [u8]) -> io::Result<(usize, usize)>;
    /// Whether the text may end here.
    fn is_complete(&self) -> bool;
    /// What packs text the way that was read.
    fn encoder(&self) -> io::Result<Box<dyn Encode>>;
}

/// Closes one coding again.
trait Encode: Send {
    fn write(&mut self, text: &[u8], out: &mut Vec<u8>) -> io::Result<()>;
    /// Brings out everything written so far.
    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()>;
    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()>;
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
pub(crate) mod tests;
