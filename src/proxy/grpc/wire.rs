//! Protobuf without a schema: lengths around a change are repaired.
//!
//! A field that holds bytes may be a text or another message, and nothing on the wire tells which.
//! One that holds what is looked for is taken for a message if it reads as one to its last byte
//! and one of *its* fields of bytes holds it; else it is text. So `"\n+osb_sealed_…"` as a text of
//! exactly this length is misread (its `+` would be changed with the length); prose and JSON do
//! not read as messages.

use super::leaf::Leaf;
use crate::proxy::body::StreamError;
use crate::proxy::refusal::Refusal;

/// Messages in messages, as protobuf's own parsers limit them.
const DEPTH_MAX: usize = 100;
/// Bytes looked at for one message, each once for every message around it.
const LOOKED_AT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// `message` with everything swapped that `leaf` swaps, or `None` when there was nothing.
pub(super) fn swap(message: &[u8], leaf: &Leaf) -> Result<Option<Vec<u8>>, StreamError> {
    if !leaf.is_in(message) {
        return Ok(None);
    }
    let mut walk = Walk {
        leaf,
        left: LOOKED_AT_BYTES_MAX,
    };
    walk.swap(message, 0)
}

struct Walk<'a> {
    leaf: &'a Leaf,
    left: usize,
}

impl Walk<'_> {
    fn is_in(&mut self, bytes: &[u8]) -> Result<bool, Refusal> {
        let left = self.left.checked_sub(bytes.len());
        self.left = left.ok_or(Refusal::MessageLength)?;
        Ok(self.leaf.is_in(bytes))
    }

    /// Swaps in `bytes`, in which there is something to swap.
    fn swap(&mut self, bytes: &[u8], depth: usize) -> Result<Option<Vec<u8>>, StreamError> {
        if depth < DEPTH_MAX && Fields::of(bytes).all(|field| field.is_some()) {
            let mut out = Vec::new();
            let (mut copied, mut inside) = (0, false);
            for field in Fields::of(bytes).flatten().flatten() {
                let payload = bytes.get(field.start..field.end).unwrap_or_default();
                if !self.is_in(payload)? {
                    continue;
                }
                inside = true;
                if let Some(changed) = self.swap(payload, depth + 1)? {
                    out.extend_from_slice(bytes.get(copied..field.length_at).unwrap_or_default());
                    put_varint(&mut out, changed.len() as u64);
                    out.extend_from_slice(&changed);
                    copied = field.end;
                }
            }
            out.extend_from_slice(bytes.get(copied..).unwrap_or_default());
            // What began in one field and ended in another was not seen.
            let left = self.leaf.must_be_gone() && self.is_in(&out)?;
            if inside && !left {
                return Ok((copied > 0).then_some(out));
            }
        }
        self.leaf.swap(bytes)
    }
}

/// A field of bytes: where its length begins, where its bytes begin and end.
#[derive(Debug, Clone, Copy)]
struct Span {
    length_at: usize,
    start: usize,
    end: usize,
}

/// The fields of a message: `Some(Some(_))` for each of bytes, `Some(None)` for every other, and
/// `None`, as the last, where it can't be read as a message.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Numbers of the groups that are open.
    groups: Vec<u64>,
    over: bool,
}

impl<'a> Fields<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            groups: Vec::new(),
            over: false,
        }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            // The tenth byte holds the last bit.
            if shift == 63 && byte > 1 {
                return None;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn skip(&mut self, bytes: u64) -> Option<()> {
        let end = usize::try_from(bytes).ok()?.checked_add(self.at)?;
        self.at = (end <= self.bytes.len()).then_some(end)?;
        Some(())
    }

    fn field(&mut self) -> Option<Option<Span>> {
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || number >= 1 << 29 {
            return None;
        }
        match tag & 7 {
            0 => drop(self.varint()?),
            1 => self.skip(8)?,
            5 => self.skip(4)?,
            2 => {
                let length_at = self.at;
                let length = self.varint()?;
                let start = self.at;
                self.skip(length)?;
                return Some(Some(Span {
                    length_at,
                    start,
                    end: self.at,
                }));
            }
            3 if self.groups.len() < DEPTH_MAX => self.groups.push(number),
            4 if self.groups.pop() == Some(number) => {}
            _ => return None,
        }
        Some(None)
    }
}

impl Iterator for Fields<'_> {
    type Item = Option<Option<Span>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        if self.at == self.bytes.len() {
            self.over = true;
            return (!self.groups.is_empty()).then_some(None);
        }
        let field = self.field();
        self.over = field.is_none();
        Some(field)
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
