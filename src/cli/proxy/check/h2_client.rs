//! HTTP/2 by hand, so that what no library would send can be sent.
//!
//! Header fields go as literals without indexing (RFC 7541, section 6.2.2), which needs no tables.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::client::{STEP, Trouble};
use super::world::World;

/// Silence after which no more is expected.
const SILENCE: Duration = Duration::from_secs(4);
/// Longest frame read, in bytes.
const FRAME_BYTES_MAX: usize = 1 << 20;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// How a stream ended.
#[derive(Default, Debug)]
pub struct Ended {
    /// Payload of all header frames, still compressed.
    pub headers: Vec<u8>,
    /// The body.
    pub body: Vec<u8>,
    /// It was reset, or the connection ended.
    pub broken: bool,
}

/// A connection.
pub struct H2 {
    stream: TlsStream<TcpStream>,
}

impl H2 {
    /// HTTP/2 to `host`; `None` when the target does not speak it.
    pub async fn open(world: &World, host: &str, port: u16) -> Result<Option<Self>, Trouble> {
        let authority = format!("{host}:{port}");
        let stream = world.tls(&authority, Some(host), &["h2"]).await;
        let mut stream = match stream {
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => stream,
            // A target that refuses the offer ends the handshake.
            Ok(_) | Err(Trouble::Tls) => return Ok(None),
            Err(trouble) => return Err(trouble),
        };
        let settings = frame(SETTINGS, 0, 0, &[]);
        write(&mut stream, &[PREFACE, &settings].concat()).await?;
        Ok(Some(Self { stream }))
    }

    /// Sends a request without a body on `id` (odd, growing).
    pub async fn request(&mut self, id: u32, fields: &[(&str, &[u8])]) -> Result<(), Trouble> {
        let block = block(fields);
        let frame = frame(HEADERS, END_STREAM | END_HEADERS, id, &block);
        write(&mut self.stream, &frame).await
    }

    /// Sends a request with a body, whose frames end at the given cuts.
    pub async fn post(
        &mut self,
        id: u32,
        fields: &[(&str, &[u8])],
        body: &[&[u8]],
    ) -> Result<(), Trouble> {
        write(
            &mut self.stream,
            &frame(HEADERS, END_HEADERS, id, &block(fields)),
        )
        .await?;
        for (index, part) in body.iter().enumerate() {
            let flags = if index + 1 == body.len() {
                END_STREAM
            } else {
                0
            };
            write(&mut self.stream, &frame(DATA, flags, id, part)).await?;
        }
        Ok(())
    }

    /// Sends a request with a body and trailers.
    pub async fn post_with_trailers(
        &mut self,
        id: u32,
        fields: &[(&str, &[u8])],
        body: &[u8],
        trailers: &[(&str, &[u8])],
    ) -> Result<(), Trouble> {
        let frames = [
            frame(HEADERS, END_HEADERS, id, &block(fields)),
            frame(DATA, 0, id, body),
            frame(HEADERS, END_STREAM | END_HEADERS, id, &block(trailers)),
        ];
        write(&mut self.stream, &frames.concat()).await
    }

    /// Begins `count` requests on `first` and the streams after it, and ends none of them.
    pub async fn begin(
        &mut self,
        first: u32,
        count: u32,
        fields: &[(&str, &[u8])],
    ) -> Result<(), Trouble> {
        let block = block(fields);
        let ids = (0..count).map(|index| first + index * 2);
        let frames = ids.flat_map(|id| frame(HEADERS, END_HEADERS, id, &block));
        write(&mut self.stream, &frames.collect::<Vec<_>>()).await
    }

    /// Begins a head on `id` that further frames may go on with.
    pub async fn begin_head(&mut self, id: u32, fields: &[(&str, &[u8])]) -> Result<(), Trouble> {
        write(
            &mut self.stream,
            &frame(HEADERS, END_STREAM, id, &block(fields)),
        )
        .await
    }

    /// Goes on with a head, `count` times, and does not end it.
    pub async fn more_head(
        &mut self,
        id: u32,
        count: usize,
        fields: &[(&str, &[u8])],
    ) -> Result<(), Trouble> {
        let one = frame(CONTINUATION, 0, id, &block(fields));
        write(&mut self.stream, &one.repeat(count)).await
    }

    /// Resets a stream.
    pub async fn reset(&mut self, id: u32) -> Result<(), Trouble> {
        write(
            &mut self.stream,
            &frame(RST_STREAM, 0, id, &8u32.to_be_bytes()),
        )
        .await
    }

    /// Reads until stream `id` ends.
    pub async fn ended(&mut self, id: u32) -> Ended {
        let mut ended = Ended::default();
        loop {
            let Ok(Some((kind, flags, stream, payload))) = timeout(SILENCE, self.frame()).await
            else {
                ended.broken = true;
                return ended;
            };
            match kind {
                SETTINGS if flags & ACK == 0 => {
                    let _ = write(&mut self.stream, &frame(SETTINGS, ACK, 0, &[])).await;
                }
                PING if flags & ACK == 0 => {
                    let _ = write(&mut self.stream, &frame(PING, ACK, 0, &payload)).await;
                }
                GOAWAY => {
                    ended.broken = true;
                    return ended;
                }
                RST_STREAM if stream == id => {
                    ended.broken = true;
                    return ended;
                }
                HEADERS if stream == id => ended.headers.extend_from_slice(&payload),
                DATA if stream == id => ended.body.extend_from_slice(&payload),
                _ => {}
            }
            if stream == id && matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                return ended;
            }
        }
    }

    async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, w, x, y, z] = head;
        let size = u32::from_be_bytes([0, a, b, c]) as usize;
        if size > FRAME_BYTES_MAX {
            return None;
        }
        let mut payload = vec![0; size];
        self.stream.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([w, x, y, z]) & 0x7fff_ffff;
        Some((kind, flags, stream, payload))
    }
}

/// The fields of a GET, with more.
pub fn get<'a>(authority: &'a str, more: &[(&'a str, &'a [u8])]) -> Vec<(&'a str, &'a [u8])> {
    let mut fields: Vec<(&str, &[u8])> = vec![
        (":method", b"GET"),
        (":scheme", b"https"),
        (":authority", authority.as_bytes()),
        (":path", b"/"),
    ];
    fields.extend_from_slice(more);
    fields
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    // Requests of this suite are far below the frame size every peer takes (16 KiB).
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

fn block(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        length(&mut block, name.len());
        block.extend_from_slice(name.as_bytes());
        length(&mut block, value.len());
        block.extend_from_slice(value);
    }
    block
}

/// A length with a prefix of seven bits (RFC 7541, section 5.1).
fn length(block: &mut Vec<u8>, size: usize) {
    const PREFIX: usize = 127;
    if size < PREFIX {
        block.push(size as u8);
        return;
    }
    block.push(PREFIX as u8);
    let mut rest = size - PREFIX;
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}

async fn write(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> Result<(), Trouble> {
    let work = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    match timeout(STEP, work).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Trouble::Closed),
        Err(_) => Err(Trouble::Late),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 7541, appendix C.1, in the seven bits of a string's length.
    #[test]
    fn lengths_are_written_as_the_standard_says() {
        let written = |size| {
            let mut block = Vec::new();
            length(&mut block, size);
            block
        };
        assert_eq!(written(10), [10]);
        assert_eq!(written(127), [127, 0]);
        assert_eq!(written(1337), [127, 0b1011_1010, 0b0000_1001]);
    }
}
