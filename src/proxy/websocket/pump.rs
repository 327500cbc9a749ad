//! Frames of one way in, frames of the same messages out, without I/O.
//!
//! A message passes three rooms: `raw` (unmasked payload), `plain` (inflated), and its `ready`
//! bytes (sealed, deflated again), which leave as a frame when the sender's frame ends or when
//! there are [`FRAGMENT_BYTES_AIM`] of them. Each step moves a bounded piece by one room, later
//! rooms first, so that none fills up.

use std::sync::Arc;

use bytes::BytesMut;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::deflate::{Codec, Deflater, Inflater, TAIL};
use super::frame::{self, CONTROL_BYTES_MAX, HEAD_BYTES_MAX, Head, Mask};
use super::seal::Seal;
use super::utf8::Utf8;
use super::{FRAGMENT_BYTES_AIM, Stop, Way};
use crate::proxy::body::{STEP_BYTES_MAX, StreamError, Transform};

/// Payload taken from the input at once.
const RAW_BYTES_MAX: usize = 16 * 1024;
/// Plain bytes moved at once until the transform is known, which may want no more of them.
const BEGINNING_BYTES_MAX: usize = 32;
/// Bytes of a close frame's status code.
const CLOSE_CODE_BYTES: usize = 2;

/// Frames of one way.
pub(super) struct Pump {
    way: Way,
    seal: Arc<Seal>,
    compression: Option<Compression>,
    /// A head that is not complete.
    head: Vec<u8>,
    phase: Phase,
    message: Option<Message>,
    raw: Room,
    plain: Room,
    /// A close frame has passed: nothing may follow.
    closed: bool,
}

struct Compression {
    codec: Codec,
    inflater: Inflater,
    deflater: Deflater,
}

enum Phase {
    Head,
    Control {
        kind: Control,
        mask: Option<Mask>,
        left: usize,
        payload: Vec<u8>,
    },
    Data {
        mask: Option<Mask>,
        left: u64,
        last: bool,
    },
}

/// Bytes on their way from one room to the next.
#[derive(Default)]
struct Room {
    bytes: Vec<u8>,
    at: usize,
}

impl Room {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Makes it empty, to be filled again.
    fn clear(&mut self) -> &mut Vec<u8> {
        self.bytes.clear();
        self.at = 0;
        &mut self.bytes
    }
}

/// A message on its way.
struct Message {
    kind: Data,
    compressed: bool,
    transform: Option<Box<dyn Transform>>,
    /// The transform was looked for.
    begun: bool,
    /// What every compressed message ends with was added to `raw`.
    tail_given: bool,
    /// The check of a text message, as it goes out.
    text: Option<Utf8>,
    ready: Vec<u8>,
    /// Its first frame went out.
    opened: bool,
}

impl Pump {
    pub fn new(way: Way, seal: Arc<Seal>, codec: Option<Codec>) -> Self {
        Self {
            way,
            seal,
            compression: codec.map(|codec| Compression {
                codec,
                inflater: Inflater::default(),
                deflater: Deflater::new(codec.window_bits_out),
            }),
            head: Vec::with_capacity(HEAD_BYTES_MAX),
            phase: Phase::Head,
            message: None,
            raw: Room::default(),
            plain: Room::default(),
            closed: false,
        }
    }

    /// Whether a close frame has passed.
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// Does a bounded piece of work: takes from `input`, appends whole frames to `out`. `false`
    /// when nothing is left to do without more input.
    pub fn step(&mut self, input: &mut &[u8], out: &mut BytesMut) -> Result<bool, Stop> {
        if self.closed {
            // RFC 6455, section 5.5.1: whatever follows is ignored.
            *input = &[];
            return Ok(false);
        }
        match &mut self.phase {
            Phase::Head => self.read_head(input),
            Phase::Control { .. } => self.control(input, out),
            Phase::Data { .. } => self.data(input, out),
        }
    }

    fn read_head(&mut self, input: &mut &[u8]) -> Result<bool, Stop> {
        let Some((&byte, rest)) = input.split_first() else {
            return Ok(false);
        };
        // Byte by byte: at most fourteen, and what follows stays in the input.
        self.head.push(byte);
        *input = rest;
        if let Some((head, _)) = Head::read(&self.head, self.way)? {
            self.head.clear();
            self.begin_frame(head)?;
        }
        Ok(true)
    }

    fn begin_frame(&mut self, head: Head) -> Result<(), Stop> {
        let kind = match head.opcode {
            OpCode::Control(kind) => {
                // Not above 125: the head was checked.
                let left = usize::try_from(head.length).unwrap_or(usize::MAX);
                self.phase = Phase::Control {
                    kind,
                    mask: head.mask,
                    left: left.min(CONTROL_BYTES_MAX),
                    payload: Vec::with_capacity(left.min(CONTROL_BYTES_MAX)),
                };
                return Ok(());
            }
            OpCode::Data(kind) => kind,
        };
        match (&self.message, kind) {
            (None, Data::Continue) => return Err(Stop::Protocol("a continuation of nothing")),
            (Some(_), Data::Continue) if head.compressed => {
                return Err(Stop::Protocol("a reserved bit is set"));
            }
            (Some(_), Data::Continue) => {}
            (Some(_), _) => return Err(Stop::Protocol("a message inside another")),
            (None, _) if head.compressed && self.compression.is_none() => {
                return Err(Stop::Protocol("a reserved bit is set"));
            }
            (None, kind) => self.message = Some(Message::new(kind, head.compressed)),
        }
        self.phase = Phase::Data {
            mask: head.mask,
            left: head.length,
            last: head.last,
        };
        Ok(())
    }

    fn control(&mut self, input: &mut &[u8], out: &mut BytesMut) -> Result<bool, Stop> {
        let Phase::Control {
            kind,
            mask,
            left,
            payload,
        } = &mut self.phase
        else {
            return Ok(true);
        };
        let (piece, rest) = input.split_at(input.len().min(*left));
        payload.extend_from_slice(piece);
        *input = rest;
        *left -= piece.len();
        if *left > 0 {
            return Ok(false);
        }
        if let Some(mask) = mask {
            mask.apply(payload);
        }
        let (kind, payload) = (*kind, std::mem::take(payload));
        self.phase = Phase::Head;
        let changed = match kind {
            Control::Close => {
                self.closed = true;
                self.seal_close(&payload)?
            }
            _ => match self.seal.whole(self.way, &payload)? {
                Some(changed) if changed.len() > CONTROL_BYTES_MAX => Vec::new(),
                Some(changed) => changed.to_vec(),
                None => payload,
            },
        };
        frame::write(out, self.way, OpCode::Control(kind), true, false, &changed)?;
        Ok(true)
    }

    /// The payload of a close frame: a legal code, and the reason where it has room.
    fn seal_close(&self, payload: &[u8]) -> Result<Vec<u8>, Stop> {
        if payload.is_empty() {
            return Ok(Vec::new());
        }
        let Some((code, reason)) = payload.split_first_chunk::<CLOSE_CODE_BYTES>() else {
            return Err(Stop::Protocol("half a status code"));
        };
        if !matches!(u16::from_be_bytes(*code), 1000..=1003 | 1007..=1014 | 3000..=4999) {
            return Err(Stop::Protocol("a status code that is not for the wire"));
        }
        if std::str::from_utf8(reason).is_err() {
            return Err(Stop::NotUtf8);
        }
        let changed = self.seal.whole(self.way, reason)?;
        let changed = changed.as_deref().map_or(reason, Vec::as_slice);
        let fits = changed.len() <= CONTROL_BYTES_MAX - CLOSE_CODE_BYTES;
        let reason = if fits && std::str::from_utf8(changed).is_ok() {
            changed
        } else {
            &[]
        };
        Ok([code, reason].concat())
    }

    fn data(&mut self, input: &mut &[u8], out: &mut BytesMut) -> Result<bool, Stop> {
        let (Phase::Data { mask, left, last }, Some(message)) =
            (&mut self.phase, &mut self.message)
        else {
            self.phase = Phase::Head;
            return Ok(true);
        };
        if !self.plain.is_empty() {
            let size = message.piece_bytes_max().min(self.plain.rest().len());
            let piece = &self.plain.rest()[..size];
            let deflater = self.compression.as_mut().map(|both| &mut both.deflater);
            message.pass(piece, self.way, &self.seal, deflater)?;
            self.plain.at += size;
            if message.ready.len() >= FRAGMENT_BYTES_AIM {
                message.send(self.way, false, out)?;
            }
            return Ok(true);
        }
        if let (true, Some(both)) = (message.compressed, &mut self.compression) {
            if !self.raw.is_empty() || both.inflater.unread() {
                let taken = both.inflater.step(self.raw.rest(), self.plain.clear())?;
                self.raw.at += taken;
                return Ok(true);
            }
        }
        if *left > 0 {
            let whole = usize::try_from(*left).unwrap_or(usize::MAX);
            let size = input.len().min(whole).min(RAW_BYTES_MAX);
            if size == 0 {
                return Ok(false);
            }
            let (piece, rest) = input.split_at(size);
            let room = match message.compressed {
                true => &mut self.raw,
                false => &mut self.plain,
            };
            let bytes = room.clear();
            bytes.extend_from_slice(piece);
            if let Some(mask) = mask {
                mask.apply(bytes);
            }
            *input = rest;
            *left -= size as u64;
            return Ok(true);
        }
        if *last && message.compressed && !message.tail_given {
            message.tail_given = true;
            self.raw.clear().extend_from_slice(&TAIL);
            return Ok(true);
        }
        let last = *last;
        self.phase = Phase::Head;
        self.end_frame(last, out)?;
        Ok(true)
    }

    fn end_frame(&mut self, last: bool, out: &mut BytesMut) -> Result<(), Stop> {
        let Some(message) = &mut self.message else {
            return Ok(());
        };
        let deflater = self.compression.as_mut().map(|both| &mut both.deflater);
        if !last {
            message.flush(deflater)?;
            if !message.ready.is_empty() {
                message.send(self.way, false, out)?;
            }
            return Ok(());
        }
        message.finish(deflater)?;
        if let (true, Some(both)) = (message.compressed, &mut self.compression) {
            let ready = &mut message.ready;
            both.deflater.end_message(both.codec.fresh_out, ready)?;
            both.inflater.end_message(both.codec.fresh_in);
        }
        message.send(self.way, true, out)?;
        self.message = None;
        self.seal.message_ended(self.way);
        Ok(())
    }
}

impl Message {
    fn new(kind: Data, compressed: bool) -> Self {
        Self {
            kind,
            compressed,
            transform: None,
            begun: false,
            tail_given: false,
            text: (kind == Data::Text).then(Utf8::default),
            ready: Vec::new(),
            opened: false,
        }
    }

    /// Most plain bytes [`pass`](Self::pass) should get at once.
    fn piece_bytes_max(&self) -> usize {
        match self.transform.as_deref() {
            Some(transform) => transform.step_bytes_max().clamp(1, STEP_BYTES_MAX),
            None if self.begun => RAW_BYTES_MAX,
            None => BEGINNING_BYTES_MAX,
        }
    }

    /// Seals a piece and makes it ready.
    fn pass(
        &mut self,
        piece: &[u8],
        way: Way,
        seal: &Seal,
        deflater: Option<&mut Deflater>,
    ) -> Result<(), Stop> {
        if !self.begun {
            // No token begins with white space, so it may pass before the place is known; a value
            // in an answer may.
            let space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
            let first = piece.iter().find(|byte| way == Way::Down || !space(byte));
            if let Some(&first) = first {
                self.transform = seal.message(way, first);
                self.begun = true;
            }
        }
        self.change(deflater, |transform, out| match transform {
            Some(transform) => transform.push(piece, out),
            None => {
                out.extend_from_slice(piece);
                Ok(())
            }
        })
    }

    /// Makes ready what is settled: the sender's frame ends here.
    fn flush(&mut self, mut deflater: Option<&mut Deflater>) -> Result<(), Stop> {
        self.change(deflater.as_deref_mut(), |transform, out| match transform {
            Some(transform) => transform.flush(out),
            None => Ok(()),
        })?;
        match deflater {
            Some(deflater) if self.compressed => deflater.flush(&mut self.ready),
            _ => Ok(()),
        }
    }

    /// Makes ready what was held back: the message ends here.
    fn finish(&mut self, deflater: Option<&mut Deflater>) -> Result<(), Stop> {
        self.change(deflater, |transform, out| match transform {
            Some(transform) => transform.finish(out),
            None => Ok(()),
        })?;
        match self.text.as_ref().is_none_or(Utf8::complete) {
            true => Ok(()),
            false => Err(Stop::NotUtf8),
        }
    }

    /// Adds what `work` brings out to the bytes that are ready, checked and compressed.
    fn change(
        &mut self,
        deflater: Option<&mut Deflater>,
        work: impl FnOnce(Option<&mut Box<dyn Transform>>, &mut Vec<u8>) -> Result<(), StreamError>,
    ) -> Result<(), Stop> {
        let check = |text: &mut Option<Utf8>, bytes: &[u8]| {
            let fine = text.as_mut().is_none_or(|text| text.push(bytes));
            fine.then_some(()).ok_or(Stop::NotUtf8)
        };
        let mut changed = Vec::new();
        let out = match self.compressed {
            true => &mut changed,
            false => &mut self.ready,
        };
        let before = out.len();
        work(self.transform.as_mut(), out).map_err(stop)?;
        check(&mut self.text, &out[before..])?;
        match deflater {
            Some(deflater) if self.compressed => deflater.push(&changed, &mut self.ready),
            _ => Ok(()),
        }
    }

    /// Sends what is ready as a frame.
    fn send(&mut self, way: Way, last: bool, out: &mut BytesMut) -> Result<(), Stop> {
        let first = !std::mem::replace(&mut self.opened, true);
        let kind = if first { self.kind } else { Data::Continue };
        let compressed = first && self.compressed;
        frame::write(out, way, OpCode::Data(kind), last, compressed, &self.ready)?;
        self.ready.clear();
        Ok(())
    }
}

fn stop(error: StreamError) -> Stop {
    match error {
        StreamError::Refused(refusal) => Stop::Refused(refusal),
        _ => Stop::Protocol("a message is damaged"),
    }
}

#[cfg(test)]
#[path = "pump_tests.rs"]
mod tests;
