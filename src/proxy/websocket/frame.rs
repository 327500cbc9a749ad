//! Heads of frames, and masking (RFC 6455, section 5).
//!
//! Invariant: a head that is read has one meaning: shortest length, no reserved bit but that of
//! compression, masked if and only if it comes from the sandbox, control frames whole and short.

use std::io::Cursor;

use bytes::{BufMut, BytesMut};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::OpCode;

use super::{Stop, Way};

/// Longest head: two bytes, eight of length, four of mask.
pub(super) const HEAD_BYTES_MAX: usize = 14;
/// Longest payload of a control frame.
pub(super) const CONTROL_BYTES_MAX: usize = 125;

/// A frame's head.
pub(super) struct Head {
    pub opcode: OpCode,
    /// The last frame of its message.
    pub last: bool,
    /// The first frame of a compressed message.
    pub compressed: bool,
    pub mask: Option<Mask>,
    /// Bytes of payload, below 2^63.
    pub length: u64,
}

impl Head {
    /// Reads the head at the beginning of `bytes` and tells how long it is; `None` when more
    /// bytes are needed.
    pub fn read(bytes: &[u8], way: Way) -> Result<Option<(Self, usize)>, Stop> {
        let mut cursor = Cursor::new(bytes);
        let read = FrameHeader::parse(&mut cursor);
        let Some((head, length)) = read.map_err(|_| Stop::Protocol("a reserved opcode"))? else {
            return Ok(None);
        };
        let size = head.len(length);
        if usize::try_from(cursor.position()) != Ok(size) {
            return Err(Stop::Protocol("a length that is not the shortest"));
        }
        if length > i64::MAX as u64 {
            return Err(Stop::Protocol("a length beyond 63 bits"));
        }
        if head.rsv2 || head.rsv3 {
            return Err(Stop::Protocol("a reserved bit is set"));
        }
        match (way, head.mask) {
            (Way::Up, None) => return Err(Stop::Protocol("a frame of a client without a mask")),
            (Way::Down, Some(_)) => return Err(Stop::Protocol("a masked frame of a server")),
            _ => {}
        }
        if matches!(head.opcode, OpCode::Control(_)) {
            if !head.is_final || head.rsv1 {
                return Err(Stop::Protocol("a control frame in fragments or compressed"));
            }
            if length > CONTROL_BYTES_MAX as u64 {
                return Err(Stop::Protocol("a control frame above 125 bytes"));
            }
        }
        let read = Self {
            opcode: head.opcode,
            last: head.is_final,
            compressed: head.rsv1,
            mask: head.mask.map(Mask::new),
            length,
        };
        Ok(Some((read, size)))
    }
}

/// Appends a whole frame to `out`, masked with a fresh key on the way up.
pub(super) fn write(
    out: &mut BytesMut,
    way: Way,
    opcode: OpCode,
    last: bool,
    compressed: bool,
    payload: &[u8],
) -> Result<(), Stop> {
    let key = match way {
        // Not to be guessed by who chose the payload (RFC 6455, section 10.3).
        Way::Up => Some(rand::random::<[u8; 4]>()),
        Way::Down => None,
    };
    let head = FrameHeader {
        is_final: last,
        rsv1: compressed,
        rsv2: false,
        rsv3: false,
        opcode,
        mask: key,
    };
    out.reserve(HEAD_BYTES_MAX + payload.len());
    head.format(payload.len() as u64, &mut (&mut *out).writer())
        .map_err(|_| Stop::Protocol("a frame could not be written"))?;
    let begin = out.len();
    out.extend_from_slice(payload);
    if let Some(key) = key {
        Mask::new(key).apply(&mut out[begin..]);
    }
    Ok(())
}

/// A mask on its way over a payload.
#[derive(Clone, Copy)]
pub(super) struct Mask {
    /// Turned so that its first byte is for the next byte of payload.
    key: [u8; 4],
}

impl Mask {
    pub fn new(key: [u8; 4]) -> Self {
        Self { key }
    }

    /// Masks or unmasks the next bytes of the payload.
    pub fn apply(&mut self, bytes: &mut [u8]) {
        let [a, b, c, d] = self.key;
        let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
        let (blocks, rest) = bytes.as_chunks_mut::<8>();
        for block in blocks {
            *block = (u64::from_ne_bytes(*block) ^ wide).to_ne_bytes();
        }
        for (byte, key) in rest.iter_mut().zip(self.key.iter().cycle()) {
            *byte ^= key;
        }
        self.key.rotate_left(rest.len() % 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data};

    const TEXT: OpCode = OpCode::Data(Data::Text);

    fn read(bytes: &[u8], way: Way) -> Result<Option<u64>, Stop> {
        Head::read(bytes, way).map(|head| head.map(|(head, _)| head.length))
    }

    /// Every head this proxy writes reads back, from its last byte on.
    #[test]
    fn heads_read_back() {
        for way in [Way::Up, Way::Down] {
            for length in [0, 1, 125, 126, 127, 65535, 65536, 70000] {
                let mut out = BytesMut::new();
                write(&mut out, way, TEXT, false, true, &vec![7; length]).unwrap();
                let size = out.len() - length;
                for end in 0..size {
                    assert_eq!(read(&out[..end], way).unwrap(), None);
                }
                let (head, found) = Head::read(&out, way).unwrap().unwrap();
                assert_eq!((found, head.length), (size, length as u64));
                assert!(head.compressed && !head.last && head.opcode == TEXT);
                if let Some(mut mask) = head.mask {
                    let payload = &mut out[size..];
                    let cut = length / 3;
                    mask.apply(&mut payload[..cut]);
                    mask.apply(&mut payload[cut..]);
                }
                assert!(out[size..].iter().all(|&byte| byte == 7));
            }
        }
    }

    #[test]
    fn heads_with_two_readings_are_errors() {
        let long = |length: u64| [&[0x82, 127][..], &length.to_be_bytes()].concat();
        for (way, bytes) in [
            (Way::Down, vec![0x82, 126, 0, 125]),
            (Way::Down, long(65535)),
            (Way::Down, long(1 << 63)),
            (Way::Down, vec![0xa2, 0]),
            (Way::Down, vec![0x92, 0]),
            (Way::Down, vec![0x83, 0]),
            (Way::Down, vec![0x8b, 0]),
            (Way::Down, vec![0x82, 0x80, 1, 2, 3, 4]),
            (Way::Up, vec![0x82, 0]),
            (Way::Down, vec![0x09, 0]),
            (Way::Down, vec![0xc9, 0]),
            (Way::Down, vec![0x89, 126, 0, 126]),
        ] {
            let read = read(&bytes, way);
            assert!(
                matches!(read, Err(Stop::Protocol(_))),
                "{bytes:x?} {read:?}"
            );
        }
        assert_eq!(
            read(&long((1 << 63) - 1), Way::Down),
            Ok(Some((1 << 63) - 1))
        );
        assert_eq!(read(&[0x89, 125], Way::Down), Ok(Some(125)));
        assert_eq!(u8::from(OpCode::Control(Control::Ping)), 9);
    }
}
