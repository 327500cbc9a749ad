//! Protobuf without a schema: lengths around a change are repaired.
//!
//! A field that holds bytes may be a text or another message, and nothing on the wire tells which.
//! One that holds what is looked for is taken for a message if it reads as one to its last byte
//! and one of *its* fields of bytes holds it; else it is text. So `"\n+osb_sealed_…"` as a text of
//! exactly this length is misread (its `+` would be changed with the length); prose and JSON do
//! not read as messages.

use std::ops::Range;

use super::leaf::{Leaf, SWAPPED_BYTES_MAX, Spans};
use crate::proxy::body::StreamError;
use crate::proxy::refusal::Refusal;

/// Messages in messages, as protobuf's own parsers limit them.
const DEPTH_MAX: usize = 100;
/// Work for one message beyond one search before and one after: what is swapped, and what is
/// searched at every level where something lies across fields.
const WORK_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What each thing swapped costs of that, however short it is.
const SWAP_COST_BYTES: usize = 64;

/// `message` with everything swapped that `leaf` swaps, or `None` when there was nothing.
pub(super) fn swap(message: &[u8], leaf: &Leaf) -> Result<Option<Vec<u8>>, StreamError> {
    let spans = leaf.spans(message);
    if spans.is_empty() {
        return Ok(None);
    }
    let mut walk = Walk {
        leaf,
        message,
        spans,
        left: WORK_BYTES_MAX,
        across: false,
    };
    let changed = walk.swap(0..message.len(), 0)?;
    if leaf.must_be_gone() && leaf.is_in(changed.as_deref().unwrap_or(message)) {
        // It began in one field and ended in another: found by searching each level.
        walk.across = true;
        return walk.swap(0..message.len(), 0);
    }
    Ok(changed)
}

/// Whether `bytes` read as a message to the last.
pub(super) fn reads(bytes: &[u8]) -> bool {
    Fields::of(bytes).all(|field| field.is_some())
}

struct Walk<'a> {
    leaf: &'a Leaf,
    message: &'a [u8],
    /// What is looked for, found once in all of it.
    spans: Spans,
    /// What is left of the work that one message may make.
    left: usize,
    /// Something lies across fields.
    across: bool,
}

impl Walk<'_> {
    fn charge(&mut self, bytes: usize) -> Result<(), Refusal> {
        let left = self.left.checked_sub(bytes.saturating_add(SWAP_COST_BYTES));
        self.left = left.ok_or(Refusal::MessageLength)?;
        Ok(())
    }

    /// Swaps in a part of the message in which there is something to swap.
    fn swap(&mut self, part: Range<usize>, depth: usize) -> Result<Option<Vec<u8>>, StreamError> {
        let bytes = self.message.get(part.clone()).unwrap_or_default();
        if depth < DEPTH_MAX && reads(bytes) {
            let mut out = Vec::with_capacity(bytes.len());
            let (mut copied, mut inside) = (0, false);
            for field in Fields::of(bytes).flatten().flatten() {
                let payload = part.start + field.start..part.start + field.end;
                if !self.spans.any_within(payload.start, payload.end) {
                    continue;
                }
                inside = true;
                if let Some(changed) = self.swap(payload, depth + 1)? {
                    out.extend_from_slice(bytes.get(copied..field.length_at).unwrap_or_default());
                    put_varint(&mut out, changed.len() as u64);
                    out.extend_from_slice(&changed);
                    copied = field.end;
                    if out.len() > SWAPPED_BYTES_MAX {
                        return Err(Refusal::MessageLength.into());
                    }
                }
            }
            out.extend_from_slice(bytes.get(copied..).unwrap_or_default());
            if inside && !self.is_left_in(&out)? {
                return Ok((copied > 0).then_some(out));
            }
        }
        self.charge(bytes.len())?;
        self.leaf.swap(bytes)
    }

    fn is_left_in(&mut self, out: &[u8]) -> Result<bool, Refusal> {
        if !self.across {
            return Ok(false);
        }
        self.charge(out.len())?;
        Ok(self.leaf.is_in(out))
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
