//! WebSocket frames (RFC 6455) and compressed messages (RFC 7692) by hand, cut as no library would
//! cut them.
//!
//! Invariant: what is read of a message is bounded; a compressed one stands alone, since both sides
//! of this suite agree to keep no context.

use std::io::{Read, Write};
use std::sync::Mutex;
use std::time::Duration;

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::message::{Duplex, Io};
use super::upstream::{Tap, note};

/// Silence after which no more is expected.
const SILENCE: Duration = Duration::from_secs(3);
/// Longest frame and longest message read, in bytes.
const BYTES_MAX: usize = 1 << 20;
/// What the end of a compressed message leaves out.
const FLUSH: [u8; 4] = [0, 0, 0xff, 0xff];
const FIN: u8 = 0x80;
const PACKED: u8 = 0x40;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
/// The extension this suite offers and takes.
pub const DEFLATE: &str =
    "permessage-deflate; client_no_context_takeover; server_no_context_takeover";

/// How a message is sent.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// As bytes, not as text.
    pub binary: bool,
    /// Compressed, when that was agreed.
    pub packed: bool,
    /// Bytes of each frame.
    pub cut: usize,
    /// A ping between frames.
    pub pings: bool,
}

/// One text message in one frame.
pub const PLAIN_TEXT: Shape = Shape {
    binary: false,
    packed: false,
    cut: usize::MAX,
    pings: false,
};

impl Shape {
    /// The frames of a message; masked as a client's when `mask` is given.
    pub fn frames(self, text: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let payload = match self.packed {
            true => pack(text),
            false => text.to_vec(),
        };
        let mut out = Vec::new();
        let parts: Vec<&[u8]> = payload.chunks(self.cut).collect();
        for (index, part) in parts.iter().enumerate() {
            let kind = match index {
                0 if self.binary => BINARY,
                0 => TEXT,
                _ => 0,
            };
            let packed = if self.packed && index == 0 { PACKED } else { 0 };
            let last = if index + 1 == parts.len() { FIN } else { 0 };
            frame(&mut out, kind | packed | last, part, mask);
            if self.pings && last == 0 {
                frame(&mut out, PING | FIN, b"are you there", mask);
            }
        }
        out
    }
}

fn frame(out: &mut Vec<u8>, first: u8, payload: &[u8], mask: Option<[u8; 4]>) {
    out.push(first);
    let masked = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        size @ ..126 => out.push(masked | size as u8),
        size => {
            // Messages of this suite are far shorter than 64 KiB.
            out.push(masked | 126);
            out.extend((size as u16).to_be_bytes());
        }
    }
    let key = mask.unwrap_or_default();
    if mask.is_some() {
        out.extend(key);
    }
    let bytes = payload.iter().zip(key.iter().cycle());
    out.extend(bytes.map(|(byte, key)| byte ^ key));
}

/// A message as it was read.
#[derive(Default, Debug)]
pub struct Heard {
    /// Its text, decompressed.
    pub text: Vec<u8>,
    /// Everything that came, control frames too, without masks.
    pub all: Vec<u8>,
}

impl Heard {
    /// Reads one message; what came before the end of the connection, or a silence, when none is
    /// whole. `ahead` is what was read too far.
    pub async fn read(io: &mut (impl Duplex + ?Sized), ahead: &mut Vec<u8>) -> (Self, bool) {
        let mut heard = Self::default();
        let mut packed = false;
        let mut payloads = Vec::new();
        while heard.all.len() < BYTES_MAX {
            let Ok(Some((first, payload))) = timeout(SILENCE, read_frame(io, ahead)).await else {
                break;
            };
            heard.all.extend_from_slice(&payload);
            match first & 0x0f {
                CLOSE => break,
                kind if kind > CLOSE => continue,
                _ => {}
            }
            packed |= first & PACKED != 0;
            payloads.extend_from_slice(&payload);
            if first & FIN != 0 {
                heard.text = if packed { unpack(&payloads) } else { payloads };
                return (heard, true);
            }
        }
        heard.text = payloads;
        (heard, false)
    }
}

async fn read_frame(io: &mut (impl Duplex + ?Sized), ahead: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    fill(io, ahead, 2).await?;
    let (first, second) = (*ahead.first()?, *ahead.get(1)?);
    let (start, size) = match second & 0x7f {
        126 => {
            fill(io, ahead, 4).await?;
            (
                4,
                usize::from(u16::from_be_bytes(ahead.get(2..4)?.try_into().ok()?)),
            )
        }
        127 => {
            fill(io, ahead, 10).await?;
            let size = u64::from_be_bytes(ahead.get(2..10)?.try_into().ok()?);
            (10, usize::try_from(size).ok()?)
        }
        size => (2, usize::from(size)),
    };
    if size > BYTES_MAX {
        return None;
    }
    let body = if second & 0x80 == 0 { start } else { start + 4 };
    fill(io, ahead, body + size).await?;
    let key = match second & 0x80 {
        0 => [0; 4],
        _ => ahead.get(start..body)?.try_into().ok()?,
    };
    let payload = ahead.get(body..body + size)?.iter().zip(key.iter().cycle());
    let payload = payload.map(|(byte, key)| byte ^ key).collect();
    ahead.drain(..body + size);
    Some((first, payload))
}

async fn fill(io: &mut (impl Duplex + ?Sized), ahead: &mut Vec<u8>, size: usize) -> Option<()> {
    while ahead.len() < size {
        if io.read_buf(ahead).await.ok()? == 0 {
            return None;
        }
    }
    Some(())
}

/// A hostile host after the handshake: records messages, and says each back in `shape`.
pub async fn echo(mut io: Io, mut ahead: Vec<u8>, shape: Shape, tap: &Mutex<Tap>) {
    loop {
        let (heard, whole) = Heard::read(&mut io, &mut ahead).await;
        note(tap, |tap| {
            tap.rest.extend_from_slice(&heard.text);
            tap.rest.push(b'\n');
        });
        let said = [b"said: ", heard.text.as_slice(), b" over"].concat();
        let sent = shape.frames(&said, None);
        if !whole || io.write_all(&sent).await.is_err() || io.flush().await.is_err() {
            return;
        }
    }
}

fn pack(text: &[u8]) -> Vec<u8> {
    let mut out = DeflateEncoder::new(Vec::new(), Compression::default());
    // Writing into memory does not fail; an empty message would show in the answer.
    let _ = out.write_all(text);
    let _ = out.flush();
    let mut packed = out.get_ref().clone();
    if packed.ends_with(&FLUSH) {
        packed.truncate(packed.len() - FLUSH.len());
    }
    packed
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let bytes = [packed, &FLUSH].concat();
    let mut text = Vec::new();
    // The stream has no end, which is an error after all text was read.
    let mut reader = DeflateDecoder::new(bytes.as_slice()).take(BYTES_MAX as u64);
    let _ = reader.read_to_end(&mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the suite can read what it writes, in every shape, so that a leak is seen.
    #[tokio::test]
    async fn messages_are_read_back() {
        let text = b"a text of some length, a text of some length".repeat(10);
        for packed in [false, true] {
            for (cut, pings) in [(1, false), (7, true), (usize::MAX, false)] {
                let shape = Shape {
                    binary: packed,
                    packed,
                    cut,
                    pings,
                };
                for mask in [None, Some([1, 2, 3, 4])] {
                    let (mut near, _far) = tokio::io::duplex(1);
                    let mut ahead = shape.frames(&text, mask);
                    let (heard, whole) = Heard::read(&mut near, &mut ahead).await;
                    assert!(whole && heard.text == text && ahead.is_empty(), "{shape:?}");
                }
            }
        }
    }
}
