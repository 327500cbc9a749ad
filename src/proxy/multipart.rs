//! multipart request bodies (RFC 2046, RFC 7578): each value as its part needs it.
//!
//! | Where the token stands | How the value is written |
//! |---|---|
//! | a part of a JSON or form type | escaped as JSON, as a URL component |
//! | any other part, before the first and after the last | as it is |
//! | the fields of a part (`filename="…"`) | as it is; refused with a quote, a backslash or a line break |
//! | a part in a transfer encoding (quoted-printable, base64) | refused |
//!
//! Invariants:
//! - No value ends a part: one that makes a boundary line in the place where it stands is refused,
//!   also in a body that is no proper multipart, which is otherwise taken for plain bytes.
//! - Memory is constant: a boundary line, and up to [`HEAD_BYTES_MAX`] of the fields of one part.
//!
//! Lines may end in a bare LF, as lenient parsers have it: a boundary that any parser may see is
//! one here.

use std::sync::Arc;

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use memchr::memmem;

use super::body::{StreamError, Transform};
use super::content::{essence_of, place_of};
use super::escape::Place;
use super::grpc::Probe;
use super::policy::HostRules;
use super::refusal::Refusal;
use super::substitute::Substituter;
use super::tally::Tally;
use super::token::PREFIX;

/// Most bytes of the fields of one part.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of the rest of a boundary line: padding, or the two dashes of the last.
const LINE_BYTES_MAX: usize = 1024;
/// Longest boundary; the RFC allows 70.
const BOUNDARY_BYTES_MAX: usize = 256;

/// The bodies of one multipart type.
pub(crate) struct Multipart {
    rules: Arc<HostRules>,
    tally: Arc<Tally>,
    /// A line feed, two dashes and the boundary.
    mark: Vec<u8>,
    stage: Stage,
    /// Bytes of the stage that are not settled.
    held: Vec<u8>,
    part: Box<dyn Transform>,
    place: PartPlace,
    /// The last bytes given out of this text, for a boundary that a value makes.
    tail: Vec<u8>,
    /// Nothing of the text was read yet: a boundary needs no line feed before it.
    fresh: bool,
    /// It is no proper multipart, or the last part is over.
    plain: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Text,
    /// Behind the boundary of a boundary line.
    Line,
    /// In the fields of a part.
    Head,
}

/// How values are written in a part; `None` when they can't be.
type PartPlace = Option<Place>;

impl Multipart {
    /// The transform for a request body with this head; `None` when it is not multipart.
    pub fn of(headers: &HeaderMap, rules: &Arc<HostRules>, tally: &Arc<Tally>) -> Option<Self> {
        let value = headers.get(CONTENT_TYPE)?.as_bytes();
        if !essence_of(value).starts_with(b"multipart/") {
            return None;
        }
        let boundary = boundary(value)?;
        let fits = (1..=BOUNDARY_BYTES_MAX).contains(&boundary.len());
        // A token there would be replaced in the head, and the boundary be another one.
        if !fits || memmem::find(&boundary, PREFIX).is_some() {
            return None;
        }
        let place = Some(Place::Raw);
        Some(Self {
            rules: rules.clone(),
            tally: tally.clone(),
            mark: [b"\n--", boundary.as_slice()].concat(),
            stage: Stage::Text,
            held: Vec::new(),
            part: transform(rules, tally, place),
            place,
            tail: b"\n".to_vec(),
            fresh: true,
            plain: false,
        })
    }

    fn begin_text(&mut self, place: PartPlace, fresh: bool) {
        self.stage = Stage::Text;
        self.place = place;
        self.part = transform(&self.rules, &self.tally, place);
        self.fresh = fresh;
        if fresh {
            self.tail = b"\n".to_vec();
        }
    }

    /// Takes `bytes`, all that is at hand; returns how many are settled. Fewer than all may be
    /// settled without more being possible, when the stage changed.
    fn step(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, StreamError> {
        match self.stage {
            Stage::Text => self.text(bytes, out),
            Stage::Line => Ok(self.line(bytes, out)),
            Stage::Head => self.head(bytes, out),
        }
    }

    fn text(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, StreamError> {
        let dashes = self.mark.get(1..).unwrap_or_default();
        let found = match self.fresh && bytes.starts_with(dashes) {
            true => Some((0, dashes.len())),
            false => memmem::find(bytes, &self.mark).map(|at| {
                let cr = at > 0 && bytes.get(at - 1) == Some(&b'\r');
                (at - usize::from(cr), at + self.mark.len())
            }),
        };
        let Some((start, end)) = found else {
            if self.fresh && dashes.starts_with(bytes) {
                return Ok(0);
            }
            let settled = bytes.len() - unsettled(bytes, &self.mark);
            self.give(bytes.get(..settled).unwrap_or_default(), false, out)?;
            return Ok(settled);
        };
        self.give(bytes.get(..start).unwrap_or_default(), true, out)?;
        out.extend_from_slice(bytes.get(start..end).unwrap_or_default());
        self.tail.clear();
        self.stage = Stage::Line;
        Ok(end)
    }

    /// Gives text of the part out, and looks for a boundary in it.
    fn give(&mut self, text: &[u8], last: bool, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.fresh &= text.is_empty();
        let before = out.len();
        self.part.push(text, out)?;
        if last {
            self.part.finish(out)?;
        }
        let mut seen = std::mem::take(&mut self.tail);
        seen.extend_from_slice(out.get(before..).unwrap_or_default());
        if memmem::find(&seen, &self.mark).is_some() {
            out.truncate(before);
            return Err(Refusal::MultipartValue.into());
        }
        let keep = seen.len().min(self.mark.len() - 1);
        self.tail = seen.split_off(seen.len() - keep);
        Ok(())
    }

    fn line(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let line = memchr::memchr(b'\n', bytes).map(|at| at + 1);
        if self.plain {
            self.begin_text(Some(Place::Raw), false);
            return 0;
        }
        if bytes.starts_with(b"--") {
            self.plain = true;
            self.begin_text(Some(Place::Raw), false);
            return 0;
        }
        let end = match line {
            None if bytes.len() <= LINE_BYTES_MAX && blank(bytes) => return 0,
            None if bytes == b"-" => return 0,
            // Another boundary that begins like ours, or text.
            None => None,
            Some(end) => bytes.get(..end).filter(|line| blank(line)).map(<[u8]>::len),
        };
        let Some(end) = end else {
            self.begin_text(self.place, false);
            return 0;
        };
        out.extend_from_slice(bytes.get(..end).unwrap_or_default());
        self.stage = Stage::Head;
        end
    }

    fn head(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, StreamError> {
        let Some(end) = head_end(bytes) else {
            if bytes.len() > HEAD_BYTES_MAX {
                self.plain = true;
                self.begin_text(Some(Place::Raw), true);
            }
            return Ok(0);
        };
        let head = bytes.get(..end).unwrap_or_default();
        self.write_head(head, out)?;
        self.begin_text(part_place(head), true);
        Ok(end)
    }

    fn write_head(&self, head: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        let mut fields = transform(&self.rules, &self.tally, Some(Place::Header));
        let before = out.len();
        for piece in head.chunks(fields.step_bytes_max()) {
            fields.push(piece, out)?;
            if out.len() - before > 2 * HEAD_BYTES_MAX {
                out.truncate(before);
                return Err(Refusal::MultipartValue.into());
            }
        }
        fields.finish(out)?;
        // Two parsers don't agree on how a quote is escaped, nor on what a backslash is.
        let odd = |bytes: &[u8]| memchr::memchr2_iter(b'"', b'\\', bytes).count();
        if odd(out.get(before..).unwrap_or_default()) != odd(head) {
            out.truncate(before);
            return Err(Refusal::MultipartValue.into());
        }
        Ok(())
    }
}

impl Transform for Multipart {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(input);
        let mut at = 0;
        loop {
            let (stage, plain) = (self.stage, self.plain);
            at += self.step(bytes.get(at..).unwrap_or_default(), out)?;
            if (stage, plain) == (self.stage, self.plain) || at == bytes.len() {
                break;
            }
        }
        self.held = bytes.split_off(at);
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        if self.stage != Stage::Text {
            // Fields without a text, or a boundary line without an end.
            self.begin_text(Some(Place::Raw), false);
        }
        let rest = std::mem::take(&mut self.held);
        self.give(&rest, true, out)
    }

    fn step_bytes_max(&self) -> usize {
        // As the part would need it whose values grow most.
        let json = Substituter::new(self.rules.clone(), Place::Json, self.tally.clone());
        json.step_bytes_max()
    }
}

fn transform(rules: &Arc<HostRules>, tally: &Arc<Tally>, place: PartPlace) -> Box<dyn Transform> {
    let new = |place, tally| Box::new(Substituter::new(rules.clone(), place, tally));
    match place {
        Some(place) => new(place, tally.clone()),
        None => Box::new(Probe::new(
            |tally| new(Place::Raw, tally),
            tally,
            Refusal::MultipartValue,
        )),
    }
}

/// How many bytes at the end may begin a boundary line, its line break included.
fn unsettled(bytes: &[u8], mark: &[u8]) -> usize {
    let most = bytes.len().min(mark.len());
    let begins = |length: &usize| {
        let tail = bytes.get(bytes.len() - length..).unwrap_or_default();
        let tail = tail.strip_prefix(b"\r").unwrap_or(tail);
        mark.starts_with(tail)
    };
    (1..=most).rev().find(begins).unwrap_or(0)
}

fn blank(line: &[u8]) -> bool {
    line.iter().all(|b| b" \t\r\n".contains(b))
}

/// Where the fields of a part end, the empty line included.
fn head_end(bytes: &[u8]) -> Option<usize> {
    for empty in [&b"\n"[..], b"\r\n"] {
        if bytes.starts_with(empty) {
            return Some(empty.len());
        }
    }
    let ends = [&b"\n\n"[..], b"\n\r\n"];
    let found = ends.map(|end| memmem::find(bytes, end).map(|at| at + end.len()));
    found.into_iter().flatten().min()
}

fn part_place(head: &[u8]) -> PartPlace {
    let field = |name: &str| {
        head.split(|&b| b == b'\n').find_map(|line| {
            let colon = memchr::memchr(b':', line)?;
            let (found, value) = line.split_at(colon);
            let same = found.trim_ascii().eq_ignore_ascii_case(name.as_bytes());
            same.then(|| essence_of(value.get(1..).unwrap_or_default()))
        })
    };
    let encoding = field("content-transfer-encoding");
    match encoding.as_deref() {
        None | Some(b"" | b"7bit" | b"8bit" | b"binary") => {
            Some(field("content-type").map_or(Place::Raw, |essence| place_of(&essence)))
        }
        Some(_) => None,
    }
}

/// The `boundary` parameter of a content type, unquoted.
fn boundary(content_type: &[u8]) -> Option<Vec<u8>> {
    let mut rest = content_type;
    loop {
        let at = memchr::memchr(b';', rest)?;
        rest = rest.get(at + 1..)?.trim_ascii_start();
        let equals = memchr::memchr2(b'=', b';', rest)?;
        let (name, value) = rest.split_at(equals);
        let Some(value) = value.strip_prefix(b"=") else {
            continue;
        };
        let (text, after) = match value.strip_prefix(b"\"") {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = memchr::memchr(b';', value).unwrap_or(value.len());
                let (text, after) = value.split_at(end);
                (text.trim_ascii().to_vec(), after)
            }
        };
        if name.trim_ascii().eq_ignore_ascii_case(b"boundary") {
            return Some(text);
        }
        rest = after;
    }
}

/// The text of a quoted string, and what comes after its closing quote.
fn unquote(mut quoted: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut text = Vec::new();
    loop {
        let (&byte, rest) = quoted.split_first()?;
        quoted = rest;
        match byte {
            b'"' => return Some((text, quoted)),
            b'\\' => {
                let (&escaped, rest) = quoted.split_first()?;
                text.push(escaped);
                quoted = rest;
            }
            _ => text.push(byte),
        }
    }
}

#[cfg(test)]
mod tests;
