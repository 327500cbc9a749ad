//! One reading of every line: watches HTTP/1 requests on their way to the parser.
//!
//! hyper's parser takes a bare line feed for the end of a line, and drops `Content-Length` beside
//! `Transfer-Encoding` (both as RFC 9112 permits). Whoever stands before or behind this proxy may
//! read such bytes as one request more or less, so they are refused here, before they are parsed.
//! Looking at the parsed request is too late, since the line ends are gone by then; and to know
//! which bytes are heads, one has to follow the bodies between them. So this is a second, smaller
//! reader of the framing, stricter than the first. It changes no byte of what is well-formed.
//!
//! | Where | must be | otherwise |
//! |---|---|---|
//! | lines of a head | ended by CR LF, no other CR, no NUL | a NUL in place of the bad byte, by which the parser answers `400` and ends |
//! | framing of a head | one `Content-Length` of digits, or one `Transfer-Encoding: chunked` | [`Watch::next`] refuses the request |
//! | lines of chunks and trailers | the same as in a head | the body is broken off |
//!
//! Invariants:
//! - Where the two readers could part ways, the connection carries no other request: a head whose
//!   framing is unclear and `CONNECT` are the last of their connection, and what comes after them
//!   passes unwatched, as a body or in a tunnel. So does what comes after a switch of protocols.
//! - Heads and calls of the service correspond: the n-th call is for the n-th head.
//! - Constant memory: of a line that came in pieces, [`LINE_BYTES_KEPT`] at most are kept.
//!
//! Answers need no such watch: each is read once, by us, and written anew; a host that speaks in
//! bare line feeds is only understood.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use http::{HeaderValue, Response, StatusCode, header};
use tokio::io::{AsyncRead, ReadBuf};

use super::io::writes_to_inner;
use super::refusal::Refusal;

/// What is kept of a line that comes in pieces: enough for every field that frames.
const LINE_BYTES_KEPT: usize = 128;

/// A connection whose requests are watched.
pub(crate) struct Watched<S> {
    inner: S,
    reader: Reader,
    broken: bool,
}

/// What the service asks about the requests it is called for.
#[derive(Default)]
pub(crate) struct Watch {
    called: AtomicU64,
    /// Number of the last head, counted from 1; 0 while there may be others.
    last: AtomicU64,
    unclear: AtomicBool,
    /// Another protocol is spoken from here on.
    switched: AtomicBool,
}

/// One request's place in its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seat {
    /// Others may follow.
    Any,
    /// None may.
    Last,
    /// None may, and it is to be refused: its end is in doubt.
    Unclear,
}

impl<S> Watched<S> {
    /// Watches `inner`; the service is to call [`Watch::next`] once for each request, in order.
    pub fn new(inner: S) -> (Self, Arc<Watch>) {
        let watch = Arc::new(Watch::default());
        let watched = Self {
            inner,
            reader: Reader::new(watch.clone()),
            broken: false,
        };
        (watched, watch)
    }

    /// The connection when it carries no requests any more.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl Watch {
    /// Where the next request sits. To be called before anything else is awaited for it.
    pub fn next(&self) -> Seat {
        let number = self.called.fetch_add(1, Ordering::Relaxed) + 1;
        match self.last.load(Ordering::Relaxed) {
            0 => Seat::Any,
            last if number < last => Seat::Any,
            _ if self.unclear.load(Ordering::Relaxed) => Seat::Unclear,
            _ => Seat::Last,
        }
    }

    /// Sees the answer to a request before it is sent: with the last one the connection ends,
    /// unless it turns into a `tunnel`; after a switch of protocols nothing is watched any more.
    pub fn settle<B>(&self, seat: Seat, response: &mut Response<B>, tunnel: bool) {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.switched.store(true, Ordering::Relaxed);
        } else if seat != Seat::Any && !tunnel {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
    }
}

impl Seat {
    /// Refuses a request whose framing is unclear.
    pub fn check(self) -> Result<(), Refusal> {
        match self {
            Self::Unclear => Err(Refusal::Framing(
                "exactly one Content-Length, or Transfer-Encoding: chunked alone, is needed",
            )),
            Self::Any | Self::Last => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.broken {
            let error = "the framing of the request is broken";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if self.reader.watch.switched.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        let new = buf.filled_mut().get_mut(before..).unwrap_or_default();
        if let Err(at) = self.reader.read(new) {
            self.broken = true;
            // No parser takes a NUL for anything, wherever it stands in a head. In a body it would
            // be content: there the next read is the error.
            let in_head = matches!(self.reader.part, Part::Head);
            if let Some(byte) = new.get_mut(at).filter(|_| in_head) {
                *byte = 0;
            }
            let size = before + at + usize::from(in_head);
            buf.set_filled(size);
            if size == before {
                return self.poll_read(cx, buf);
            }
        }
        Poll::Ready(Ok(()))
    }
}

writes_to_inner!(Watched<S>, S);

/// Which part of a message the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Head,
    /// Bytes left of a body whose length was given.
    Body(u64),
    ChunkSize,
    /// Bytes left of a chunk.
    Chunk(u64),
    /// The line end after a chunk.
    ChunkEnd,
    Trailers,
    /// Nothing that is watched.
    Rest,
}

/// What the lines of a head say of its end.
#[derive(Default)]
struct Framing {
    begun: bool,
    length: Option<u64>,
    chunked: bool,
    connect: bool,
    unclear: bool,
}

/// Follows the messages of a connection.
struct Reader {
    part: Part,
    framing: Framing,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// Bytes of it that were not kept.
    beyond: bool,
    /// It ends in CR so far.
    cr: bool,
    heads: u64,
    watch: Arc<Watch>,
}

impl Reader {
    fn new(watch: Arc<Watch>) -> Self {
        Self {
            part: Part::Head,
            framing: Framing::default(),
            line: Vec::new(),
            beyond: false,
            cr: false,
            heads: 0,
            watch,
        }
    }

    /// Takes the next bytes; where the first one stands that may not, if one does.
    fn read(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            at += match self.part {
                Part::Rest => return Ok(()),
                Part::Body(left) => {
                    let (size, left) = passed(rest, left);
                    self.part = if left == 0 {
                        Part::Head
                    } else {
                        Part::Body(left)
                    };
                    size
                }
                Part::Chunk(left) => {
                    let (size, left) = passed(rest, left);
                    self.part = if left == 0 {
                        Part::ChunkEnd
                    } else {
                        Part::Chunk(left)
                    };
                    size
                }
                Part::Head | Part::ChunkSize | Part::ChunkEnd | Part::Trailers => {
                    self.read_line(rest).map_err(|offset| at + offset)?
                }
            };
        }
        Ok(())
    }

    /// Takes a line or the piece of it that came; how many bytes that were.
    fn read_line(&mut self, bytes: &[u8]) -> Result<usize, usize> {
        let feed = memchr::memchr(b'\n', bytes);
        let piece = bytes.get(..feed.unwrap_or(bytes.len())).unwrap_or(bytes);
        if self.cr && !(piece.is_empty() && feed.is_some()) {
            return Err(0);
        }
        if let Some(odd) = memchr::memchr2(b'\r', 0, piece)
            && (piece.get(odd) == Some(&0) || odd + 1 != piece.len())
        {
            return Err(odd + usize::from(piece.get(odd) == Some(&b'\r')));
        }
        let cr = self.cr || piece.last() == Some(&b'\r');
        let Some(feed) = feed else {
            self.keep(piece);
            self.cr = cr;
            return Ok(bytes.len());
        };
        if !cr {
            return Err(feed);
        }
        if self.line.is_empty() {
            self.end_line(piece, false).map_err(|()| feed)?;
        } else {
            self.keep(piece);
            let (mut line, beyond) = (std::mem::take(&mut self.line), self.beyond);
            self.end_line(&line, beyond).map_err(|()| feed)?;
            line.clear();
            self.line = line;
        }
        (self.beyond, self.cr) = (false, false);
        Ok(feed + 1)
    }

    fn keep(&mut self, piece: &[u8]) {
        let room = LINE_BYTES_KEPT - self.line.len();
        self.beyond |= piece.len() > room;
        self.line.extend_from_slice(&piece[..piece.len().min(room)]);
    }

    /// A line is complete; `beyond` when this is only its beginning.
    fn end_line(&mut self, line: &[u8], beyond: bool) -> Result<(), ()> {
        let line = match line {
            [line @ .., b'\r'] if !beyond => line,
            line => line,
        };
        self.part = match (self.part, line) {
            // An empty line before a request is none (RFC 9112, section 2.2).
            (Part::Head, []) if !self.framing.begun => Part::Head,
            (Part::Head, []) => self.end_head(),
            (Part::Head, line) => {
                self.framing.read(line, beyond);
                Part::Head
            }
            (Part::ChunkSize, line) => match chunk_size(line, beyond).ok_or(())? {
                0 => Part::Trailers,
                size => Part::Chunk(size),
            },
            (Part::ChunkEnd, []) => Part::ChunkSize,
            (Part::Trailers, []) => Part::Head,
            (Part::Trailers, _) => Part::Trailers,
            _ => return Err(()),
        };
        Ok(())
    }

    fn end_head(&mut self) -> Part {
        self.heads += 1;
        let framing = std::mem::take(&mut self.framing);
        let unclear = framing.unclear || (framing.chunked && framing.length.is_some());
        if unclear || framing.connect {
            self.watch.unclear.store(unclear, Ordering::Relaxed);
            self.watch.last.store(self.heads, Ordering::Relaxed);
            return Part::Rest;
        }
        match framing.length {
            _ if framing.chunked => Part::ChunkSize,
            None | Some(0) => Part::Head,
            Some(length) => Part::Body(length),
        }
    }
}

impl Framing {
    fn read(&mut self, line: &[u8], beyond: bool) {
        if !std::mem::replace(&mut self.begun, true) {
            self.connect = line.starts_with(b"CONNECT ");
            return;
        }
        let colon = line.iter().position(|&byte| byte == b':');
        let Some((name, value)) = colon.and_then(|colon| line.split_at_checked(colon)) else {
            return;
        };
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = value.iter().all(u8::is_ascii_digit) && !beyond;
            let text = std::str::from_utf8(value).ok().filter(|_| digits);
            let length = text.and_then(|text| text.parse().ok());
            self.unclear |= length.is_none() || self.length.is_some();
            self.length = length;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.unclear |= self.chunked || beyond || !value.eq_ignore_ascii_case(b"chunked");
            self.chunked = true;
        }
    }
}

/// How many of `bytes` belong to a body of which `left` bytes are to come, and what is left then.
fn passed(bytes: &[u8], left: u64) -> (usize, u64) {
    let size = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    (size, left - size as u64)
}

/// The size a chunk's first line gives; extensions are not looked at.
fn chunk_size(line: &[u8], beyond: bool) -> Option<u64> {
    let end = line.iter().position(|&byte| byte == b';');
    if end.is_none() && beyond {
        return None;
    }
    let digits = line.get(..end.unwrap_or(line.len()))?.trim_ascii_end();
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |size, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        size.checked_mul(16)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests;
