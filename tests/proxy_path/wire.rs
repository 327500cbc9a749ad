//! HTTP/1.1 messages as bytes: strict and small, so that the tests see what was really sent.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Any connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
pub type Io = Box<dyn Duplex>;

/// A message as it was on the wire, its body without framing.
#[derive(Clone, Debug)]
pub struct Message {
    pub head: String,
    pub body: Vec<u8>,
}

impl Message {
    /// The value of a field; names are lower case on this wire.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    /// The rule named by a refusal.
    pub fn rule(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert!(body["error"].as_str().is_some_and(|text| !text.is_empty()));
        body["rule"].as_str().unwrap().to_owned()
    }
}

/// Reads one message; bytes after it stay in `ahead`. `None` at the end or on broken framing.
/// 1xx responses are skipped.
pub async fn read_message(io: &mut Io, ahead: &mut Vec<u8>, no_body: bool) -> Option<Message> {
    loop {
        let end = fill_until(io, ahead, b"\r\n\r\n").await? + 4;
        let head: Vec<u8> = ahead.drain(..end).collect();
        let head = String::from_utf8(head).ok()?;
        let mut message = Message {
            head,
            body: Vec::new(),
        };
        if message.head.starts_with("HTTP/1.1 1") {
            continue;
        }
        let bodyless = no_body || message.head.contains(" 204 ") || message.head.contains(" 304 ");
        if bodyless {
            return Some(message);
        }
        let length = message
            .field("content-length")
            .map(|text| text.parse().unwrap());
        message.body = match (message.field("transfer-encoding"), length) {
            (Some("chunked"), None) => read_chunks(io, ahead).await?,
            (None, Some(length)) => take(io, ahead, length).await?,
            (None, None) if message.head.starts_with("HTTP/") => {
                while io.read_buf(ahead).await.ok()? > 0 {}
                std::mem::take(ahead)
            }
            (None, None) => Vec::new(),
            odd => panic!("framing {odd:?}"),
        };
        return Some(message);
    }
}

async fn fill_until(io: &mut Io, ahead: &mut Vec<u8>, mark: &[u8]) -> Option<usize> {
    loop {
        if let Some(at) = ahead.windows(mark.len()).position(|window| window == mark) {
            return Some(at);
        }
        if io.read_buf(ahead).await.ok()? == 0 {
            return None;
        }
    }
}

async fn take(io: &mut Io, ahead: &mut Vec<u8>, length: usize) -> Option<Vec<u8>> {
    while ahead.len() < length {
        if io.read_buf(ahead).await.ok()? == 0 {
            return None;
        }
    }
    Some(ahead.drain(..length).collect())
}

async fn read_chunks(io: &mut Io, ahead: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = fill_until(io, ahead, b"\r\n").await?;
        let line = String::from_utf8(ahead.drain(..end + 2).collect()).ok()?;
        let size = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut chunk = take(io, ahead, size + 2).await?;
        if size == 0 {
            return Some(body);
        }
        chunk.truncate(size);
        body.append(&mut chunk);
    }
}

/// Sends bytes.
pub async fn send(io: &mut Io, bytes: impl AsRef<[u8]>) {
    io.write_all(bytes.as_ref()).await.unwrap();
    io.flush().await.unwrap();
}

/// Reads one response.
pub async fn receive(io: &mut Io) -> Message {
    let mut ahead = Vec::new();
    crate::world::soon(read_message(io, &mut ahead, false))
        .await
        .expect("a whole response")
}

/// One request, one response.
pub async fn ask(io: &mut Io, request: impl AsRef<[u8]>) -> Message {
    send(io, request).await;
    receive(io).await
}

/// A GET for `path` of `host` with more fields (each ending in CR LF).
pub fn get(host: &str, path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n")
}

/// A POST with a body of a type.
pub fn post(host: &str, content_type: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-type: {content_type}\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}
