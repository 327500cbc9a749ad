//! HTTP/1.1 messages as bytes: small, bounded, and lenient enough to read a broken proxy.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::time::timeout;

/// Any connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
/// One of them.
pub type Io = Box<dyn Duplex>;

/// Longest message read, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 80 * 1024 * 1024;
/// Longest silence inside a message.
pub const SILENCE: Duration = Duration::from_secs(8);

/// A request or response.
#[derive(Clone, Default)]
pub struct Message {
    /// Everything as it came, framing and trailers included.
    pub raw: Vec<u8>,
    /// Start line and fields, with the empty line; what is not UTF-8 is replaced.
    pub head: String,
    /// The body without framing.
    pub body: Vec<u8>,
    /// Whether it came to its end.
    pub whole: bool,
}

impl Message {
    /// The first field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found
                .trim()
                .eq_ignore_ascii_case(name)
                .then(|| value.trim())
        })
    }

    /// The status of a response; 0 when there is none.
    pub fn status(&self) -> u16 {
        let word = self.head.split(' ').nth(1).unwrap_or_default();
        word.get(..3)
            .and_then(|code| code.parse().ok())
            .unwrap_or(0)
    }

    /// The target of a request.
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Reads messages off one connection.
pub struct Reader {
    ahead: Vec<u8>,
}

impl Reader {
    /// A reader that has read nothing.
    pub fn new() -> Self {
        Self { ahead: Vec::new() }
    }

    /// What was read and is part of no message yet.
    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    /// The next message; `None` when the connection ends, or falls silent, before one begins. A
    /// broken one is given as far as it came. Interim responses are part of `raw` only.
    pub async fn message(&mut self, io: &mut (impl Duplex + ?Sized)) -> Option<Message> {
        let mut message = Message::default();
        loop {
            let Some(end) = self.until(io, b"\r\n\r\n").await else {
                if self.ahead.is_empty() && message.raw.is_empty() {
                    return None;
                }
                message.raw.append(&mut self.ahead);
                message.head = String::from_utf8_lossy(&message.raw).into_owned();
                return Some(message);
            };
            let head = self.take(end + 4);
            message.raw.extend_from_slice(&head);
            message.head = String::from_utf8_lossy(&head).into_owned();
            let status = message.status();
            if !message.head.starts_with("HTTP/") || !(100..200).contains(&status) || status == 101
            {
                break;
            }
        }
        message.whole = self.body(io, &mut message).await;
        Some(message)
    }

    async fn body(&mut self, io: &mut (impl Duplex + ?Sized), message: &mut Message) -> bool {
        let response = message.head.starts_with("HTTP/");
        if response && matches!(message.status(), 101 | 204 | 304) {
            return true;
        }
        let chunked = message
            .field("transfer-encoding")
            .is_some_and(|value| value.to_ascii_lowercase().contains("chunked"));
        if chunked {
            return self.chunks(io, message).await;
        }
        let length = message.field("content-length").map(str::parse::<usize>);
        match length {
            Some(Ok(length)) => {
                while self.ahead.len() < length && self.more(io).await {}
                let whole = self.ahead.len() >= length;
                let body = self.take(length);
                message.raw.extend_from_slice(&body);
                message.body = body;
                whole
            }
            Some(Err(_)) => false,
            None if response => {
                while self.more(io).await {}
                message.body = std::mem::take(&mut self.ahead);
                message.raw.extend_from_slice(&message.body);
                true
            }
            None => true,
        }
    }

    async fn chunks(&mut self, io: &mut (impl Duplex + ?Sized), message: &mut Message) -> bool {
        loop {
            let Some(end) = self.until(io, b"\r\n").await else {
                message.raw.append(&mut self.ahead);
                return false;
            };
            let line = self.take(end + 2);
            message.raw.extend_from_slice(&line);
            let text = String::from_utf8_lossy(&line).into_owned();
            let digits = text.split(';').next().unwrap_or_default().trim();
            let Ok(size) = usize::from_str_radix(digits, 16) else {
                return false;
            };
            if size == 0 {
                return self.trailers(io, message).await;
            }
            if size > MESSAGE_BYTES_MAX {
                return false;
            }
            while self.ahead.len() < size + 2 && self.more(io).await {}
            let whole = self.ahead.len() >= size + 2;
            let chunk = self.take(size + 2);
            message.raw.extend_from_slice(&chunk);
            message.body.extend(chunk.iter().take(size));
            if !whole {
                return false;
            }
        }
    }

    async fn trailers(&mut self, io: &mut (impl Duplex + ?Sized), message: &mut Message) -> bool {
        loop {
            let Some(end) = self.until(io, b"\r\n").await else {
                message.raw.append(&mut self.ahead);
                return false;
            };
            let line = self.take(end + 2);
            message.raw.extend_from_slice(&line);
            if line.len() == 2 {
                return true;
            }
        }
    }

    async fn until(&mut self, io: &mut (impl Duplex + ?Sized), mark: &[u8]) -> Option<usize> {
        let mut from = 0;
        loop {
            let found = memchr::memmem::find(self.ahead.get(from..)?, mark);
            if let Some(at) = found {
                return Some(from + at);
            }
            from = self.ahead.len().saturating_sub(mark.len());
            if !self.more(io).await {
                return None;
            }
        }
    }

    /// Reads more; whether there was more.
    async fn more(&mut self, io: &mut (impl Duplex + ?Sized)) -> bool {
        if self.ahead.len() > MESSAGE_BYTES_MAX {
            return false;
        }
        matches!(
            timeout(SILENCE, io.read_buf(&mut self.ahead)).await,
            Ok(Ok(1..))
        )
    }

    fn take(&mut self, size: usize) -> Vec<u8> {
        let size = size.min(self.ahead.len());
        self.ahead.drain(..size).collect()
    }
}

/// Whether `bytes` contain `needle`, as it is or percent-encoded (as it is in a request's target).
pub fn has(bytes: &[u8], needle: &[u8]) -> bool {
    let find = |text: &[u8]| memchr::memmem::find(text, needle).is_some();
    !needle.is_empty() && (find(bytes) || bytes.contains(&b'%') && find(&unescaped(bytes)))
}

/// The text with percent-encoding taken back, where there is any.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).filter(|_| *first == b'%');
        let byte = digits.and_then(|digits| hex::decode(digits).ok()?.first().copied());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_in_a_target_too() {
        assert!(has(b"GET /?k=a%2Fb%2b%zz", b"a/b+"));
        assert!(has(b"a%2F", b"a%2F") && !has(b"a%2", b"a/") && !has(b"a", b""));
    }
}
