//! The messages of the exec WebSocket.
//!
//! ```text
//! +------+---------+   0x00 stdin  (client; the type byte alone closes it)
//! | type | payload |   0x01 stdout   0x02 stderr   0x04 end of replay
//! +------+---------+   0x03 exit code, signed 32-bit, big endian
//! ```

use bytes::{BufMut, Bytes, BytesMut};

const STDIN: u8 = 0x00;
const STDOUT: u8 = 0x01;
const STDERR: u8 = 0x02;
const EXIT: u8 = 0x03;

/// A message from the server that matters to us.
#[derive(Debug, PartialEq)]
pub enum Frame {
    /// Bytes the process wrote to standard output.
    Stdout(Bytes),
    /// Bytes the process wrote to standard error.
    Stderr(Bytes),
    /// The process ended.
    Exit(i32),
}

/// Reads a message; None for replay marks, keep-alives and types of a later protocol.
pub fn parse(message: &Bytes) -> Option<Frame> {
    let (&kind, payload) = message.split_first()?;
    match kind {
        STDOUT => Some(Frame::Stdout(message.slice(1..))),
        STDERR => Some(Frame::Stderr(message.slice(1..))),
        EXIT => <[u8; 4]>::try_from(payload)
            .ok()
            .map(i32::from_be_bytes)
            .map(Frame::Exit),
        _ => None,
    }
}

/// A message with input for the process; empty input closes its standard input.
pub fn stdin(input: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(1 + input.len());
    message.put_u8(STDIN);
    message.put_slice(input);
    message.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_follow_the_protocol() {
        let check = |message: &'static [u8], expected| {
            assert_eq!(parse(&Bytes::from_static(message)), expected, "{message:?}");
        };
        check(b"\x01out", Some(Frame::Stdout(Bytes::from_static(b"out"))));
        check(b"\x02err", Some(Frame::Stderr(Bytes::from_static(b"err"))));
        check(b"\x03\x00\x00\x00\x07", Some(Frame::Exit(7)));
        check(b"\x03\xff\xff\xff\xff", Some(Frame::Exit(-1)));
        for ignored in [&b""[..], b"\x04", b"\x03\x00", b"\x03", b"\x00x", b"\x7fx"] {
            check(Box::leak(ignored.to_vec().into_boxed_slice()), None);
        }
        assert_eq!(stdin(b"in"), b"\x00in"[..]);
        assert_eq!(stdin(b""), b"\x00"[..]);
    }
}
