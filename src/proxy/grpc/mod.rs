//! gRPC bodies: messages, each with its length before it, whose inside is changed with every
//! length around the change repaired.
//!
//! ```text
//! flags (1 byte)   1: compressed as `grpc-encoding` says; 0x80: trailers of gRPC-Web, as text
//! length (4 bytes, big-endian)
//! message
//! ```
//!
//! Invariants:
//! - A message in which nothing is swapped passes byte for byte.
//! - A message up to [`MESSAGE_BYTES_MAX`] is gathered, and its memory is set aside from the
//!   sandbox's share; a longer one streams through and is broken off at the first thing that would
//!   have to be swapped in it.
//! - What leaves towards the sandbox was searched as a whole after the change; compressed, also as
//!   the bytes that pass, since compressed forms have room for names and comments.
//! - One step does the work of one long message or of some short ones, however many were pushed.
//! - Framing that can't be read ends the stream.

mod leaf;
mod wire;

use std::io;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

use self::leaf::Leaf;
pub(crate) use self::leaf::Probe;
use super::body::{STEP_BYTES_MAX, StreamError, Transform};
use super::coding::{Coding, FREE_TEXT_BYTES, RATIO_MAX, split, unpack};
use super::policy::HostRules;
use super::refusal::Refusal;
use super::reseal::Patterns;
use super::tally::Tally;
use super::turns::{Held, Share};

/// Longest message that is changed: what gRPC servers and clients take unless told otherwise.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Memory set aside at once for a message, as it arrives.
const HOLD_BYTES: usize = 64 * 1024;

const COMPRESSED: u8 = 1;
const WEB_TRAILERS: u8 = 0x80;

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// Whether a body of this type is made of messages. gRPC-Web's base64 form is not: it passes like
/// any other text.
pub(crate) fn is_grpc(essence: &[u8]) -> bool {
    let rest = essence.strip_prefix(b"application/grpc");
    let rest = rest.map(|rest| rest.strip_prefix(b"-web").unwrap_or(rest));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+"))
}

/// How compressed messages are compressed; the outer `None` when we can't open them.
pub(crate) fn coding(headers: &HeaderMap) -> Option<Option<Coding>> {
    let mut names = headers.get_all(&ENCODING).iter().map(HeaderValue::as_bytes);
    match (names.next(), names.next()) {
        (None, _) => Some(None),
        (Some(name), None) if name.eq_ignore_ascii_case(b"identity") => Some(None),
        (Some(name), None) => Coding::named(name).map(Some),
        _ => None,
    }
}

/// Lets only codings come back that this proxy can open.
pub(crate) fn limit_codings(headers: &mut HeaderMap) {
    if !headers.contains_key(&ACCEPT_ENCODING) {
        return;
    }
    let fields = headers.get_all(&ACCEPT_ENCODING).iter();
    let named = fields.flat_map(|value| split(value.as_bytes()));
    let kept: Vec<&str> = named
        .filter_map(|name| Coding::named(name).map(Coding::name))
        .collect();
    let only = ["identity"].into_iter().chain(kept);
    let only = only.collect::<Vec<_>>().join(",");
    let only = HeaderValue::try_from(only).unwrap_or(HeaderValue::from_static("identity"));
    headers.insert(ACCEPT_ENCODING, only);
}

/// Tokens to values in a request of this type.
pub(crate) fn request(
    essence: &[u8],
    coding: Option<Coding>,
    rules: &Arc<HostRules>,
    tally: &Arc<Tally>,
) -> Messages {
    let json = essence.ends_with(b"+json");
    Messages::new(leaf::tokens(rules, tally, json), json, coding, tally)
}

/// Values to tokens in a response of this type.
pub(crate) fn response(
    essence: &[u8],
    coding: Option<Coding>,
    patterns: &Arc<Patterns>,
    tally: &Arc<Tally>,
) -> Messages {
    let json = essence.ends_with(b"+json");
    Messages::new(leaf::values(patterns, tally), json, coding, tally)
}

/// A stream of messages.
pub(crate) struct Messages {
    leaf: Leaf,
    /// The messages are text, without lengths inside.
    text: bool,
    coding: Option<Coding>,
    share: Share,
    stage: Stage,
    /// What was pushed and is left for the next steps: less than one push.
    waiting: Vec<u8>,
    /// Bytes of all compressed messages so far, as they came and opened.
    packed_bytes: u64,
    text_bytes: u64,
}

enum Stage {
    /// In the five bytes before a message.
    Head(Vec<u8>),
    /// In a message that is gathered.
    Message {
        flags: u8,
        length: usize,
        gathered: Vec<u8>,
        held: Option<Held>,
    },
    /// In a message that is too long for that.
    Long { left: usize, probe: Box<Probe> },
}

impl Messages {
    fn new(leaf: Leaf, text: bool, coding: Option<Coding>, tally: &Tally) -> Self {
        Self {
            leaf,
            text,
            coding,
            share: tally.share(),
            stage: Stage::Head(Vec::new()),
            waiting: Vec::new(),
            packed_bytes: 0,
            text_bytes: 0,
        }
    }

    /// The stage after the five bytes `head`.
    fn begin(&self, head: [u8; 5], out: &mut Vec<u8>) -> Result<Stage, StreamError> {
        let [flags, a, b, c, d] = head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if flags & !(COMPRESSED | WEB_TRAILERS) != 0 {
            return Err(damaged("not a gRPC message"));
        }
        if length <= MESSAGE_BYTES_MAX {
            return Ok(Stage::Message {
                flags,
                length,
                gathered: Vec::new(),
                held: None,
            });
        }
        if flags & COMPRESSED != 0 {
            return Err(Refusal::MessageLength.into());
        }
        out.extend(head);
        Ok(Stage::Long {
            left: length,
            probe: Box::new(self.leaf.probe(Refusal::MessageLength)),
        })
    }

    /// Brings out a message; returns about how many bytes that took looking at.
    fn whole(
        &mut self,
        flags: u8,
        message: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<usize, StreamError> {
        let descend = !self.text && flags & WEB_TRAILERS == 0;
        let before = out.len();
        let (text_bytes, changed) = if flags & COMPRESSED == 0 {
            (message.len(), self.swapped(message, descend)?)
        } else {
            self.repacked(message, descend)?
        };
        let message = changed.as_deref().unwrap_or(message);
        let length = u32::try_from(message.len()).map_err(|_| Refusal::MessageLength)?;
        out.push(flags);
        out.extend(length.to_be_bytes());
        out.extend_from_slice(message);
        Ok(text_bytes.max(out.len() - before))
    }

    /// The length of a compressed message's text, and the message packed anew if that changed.
    fn repacked(
        &mut self,
        message: &[u8],
        descend: bool,
    ) -> Result<(usize, Option<Vec<u8>>), StreamError> {
        let coding = self
            .coding
            .ok_or_else(|| damaged("compressed by nothing"))?;
        let text = unpack(coding, message, MESSAGE_BYTES_MAX)?;
        let (text, packer) = text.ok_or(Refusal::MessageLength)?;
        self.packed_bytes += message.len() as u64;
        self.text_bytes += text.len() as u64;
        let allowed = FREE_TEXT_BYTES.saturating_add(RATIO_MAX.saturating_mul(self.packed_bytes));
        if self.text_bytes > allowed {
            return Err(Refusal::Expansion.into());
        }
        let changed = match self.swapped(&text, descend)? {
            Some(changed) => Some(packer.pack(&changed)?),
            None if self.leaf.must_be_gone() && self.leaf.is_in(message) => {
                return Err(Refusal::ResponseCoding.into());
            }
            None => None,
        };
        Ok((text.len(), changed))
    }

    fn swapped(&self, text: &[u8], descend: bool) -> Result<Option<Vec<u8>>, StreamError> {
        match descend {
            true => wire::swap(text, &self.leaf),
            false => self.leaf.swap(text),
        }
    }
}

fn damaged(what: &'static str) -> StreamError {
    io::Error::new(io::ErrorKind::InvalidData, what).into()
}

/// Moves the first bytes of `input` to `to` until that is `length` long; whether it is.
fn fill(to: &mut Vec<u8>, length: usize, input: &mut &[u8]) -> bool {
    let wanted = length.saturating_sub(to.len()).min(input.len());
    let (taken, rest) = input.split_at(wanted);
    to.extend_from_slice(taken);
    *input = rest;
    to.len() == length
}

impl Messages {
    /// Reads `input` until it ends or a step's work is done; returns how much of it is left.
    fn step(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<usize, StreamError> {
        let mut worked = 0;
        while worked < STEP_BYTES_MAX {
            let next = match &mut self.stage {
                Stage::Head(head) => {
                    if !fill(head, 5, &mut input) {
                        return Ok(0);
                    }
                    let whole = <[u8; 5]>::try_from(head.as_slice());
                    let whole = whole.map_err(|_| damaged("not a gRPC message"))?;
                    self.begin(whole, out)?
                }
                Stage::Message {
                    flags,
                    length,
                    gathered,
                    held,
                } => {
                    let more = (*length - gathered.len()).min(input.len());
                    set_aside(&self.share, held, gathered.len() + more)?;
                    if !fill(gathered, *length, &mut input) {
                        return Ok(0);
                    }
                    let (flags, message) = (*flags, std::mem::take(gathered));
                    worked += self.whole(flags, &message, out)?;
                    Stage::Head(Vec::new())
                }
                Stage::Long { left, probe } => {
                    let (now, rest) = input.split_at((*left).min(input.len()));
                    probe.push(now, out)?;
                    *left -= now.len();
                    input = rest;
                    if *left > 0 {
                        return Ok(0);
                    }
                    probe.finish(out)?;
                    Stage::Head(Vec::new())
                }
            };
            self.stage = next;
        }
        Ok(input.len())
    }
}

impl Transform for Messages {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        if self.waiting.is_empty() {
            let left = self.step(input, out)?;
            let rest = input.get(input.len() - left..).unwrap_or_default();
            self.waiting.extend_from_slice(rest);
        } else {
            let mut waiting = std::mem::take(&mut self.waiting);
            waiting.extend_from_slice(input);
            let left = self.step(&waiting, out)?;
            waiting.drain(..waiting.len() - left);
            self.waiting = waiting;
        }
        Ok(())
    }

    fn has_more(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn finish(&mut self, _out: &mut Vec<u8>) -> Result<(), StreamError> {
        match &self.stage {
            Stage::Head(head) if head.is_empty() && self.waiting.is_empty() => Ok(()),
            _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }

    fn step_bytes_max(&self) -> usize {
        self.leaf.step_bytes_max().min(STEP_BYTES_MAX)
    }
}

/// Sets memory aside for a message of which `bytes` are there; short ones are not counted.
fn set_aside(share: &Share, held: &mut Option<Held>, bytes: usize) -> Result<(), Refusal> {
    let wanted = bytes.saturating_sub(HOLD_BYTES);
    let have = held.as_ref().map_or(0, Held::bytes);
    if wanted <= have {
        return Ok(());
    }
    let more = (wanted - have).next_multiple_of(HOLD_BYTES);
    let enough = match held {
        Some(held) => held.grow(more),
        none => {
            *none = share.hold(more);
            none.is_some()
        }
    };
    enough.then_some(()).ok_or(Refusal::BodyMemory)
}

#[cfg(test)]
mod tests;
