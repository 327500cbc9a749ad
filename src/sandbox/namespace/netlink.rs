//! Netlink messages by hand: a handful of fixed ones, sent by a single-threaded launcher.
//!
//! Layout (native byte order, everything padded to 4 bytes):
//!
//! ```text
//! nlmsghdr   length u32 | type u16 | flags u16 | sequence u32 | port u32
//! payload    a fixed structure, then attributes
//! attribute  length u16 | type u16 | value or nested attributes
//! ```

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

const HEADER_BYTES: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// Create, and fail if it exists.
pub const CREATE: u16 = 0x400 | 0x200;
const NLMSG_ERROR: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;

/// Several messages built one after the other.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// How many of them the kernel will acknowledge.
    acks: usize,
    sequence: u32,
}

impl Batch {
    /// Adds a message of type `kind`; `body` writes its payload.
    pub fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Body<'_>)) {
        self.push(kind, flags | NLM_F_REQUEST | NLM_F_ACK, body);
        self.acks += 1;
    }

    /// Adds a message that is not acknowledged: the brackets of an nfnetlink batch.
    pub fn bracket(&mut self, kind: u16, body: impl FnOnce(&mut Body<'_>)) {
        self.push(kind, NLM_F_REQUEST, body);
    }

    fn push(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.sequence += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        body(&mut Body(&mut self.bytes));
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Sends all messages at once and waits for every acknowledgement; the first error counts.
    pub fn send(self, protocol: Option<Protocol>) -> io::Result<()> {
        let socket: OwnedFd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&socket, &self.bytes, SendFlags::empty(), &kernel)?;
        let mut buffer = [0u8; 8192];
        let mut seen = 0;
        while seen < self.acks {
            let (count, _) = rustix::net::recv(&socket, &mut buffer, RecvFlags::empty())?;
            seen += acknowledged(buffer.get(..count).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// How many acknowledgements `bytes` holds; an error if one of them reports one.
fn acknowledged(mut bytes: &[u8]) -> io::Result<usize> {
    let mut count = 0;
    while let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        if kind == NLMSG_ERROR {
            let code = bytes.get(HEADER_BYTES..HEADER_BYTES + 4).unwrap_or(&[0; 4]);
            let code = i32::from_ne_bytes(code.try_into().unwrap_or_default());
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
            count += 1;
        }
        let next = length.max(HEADER_BYTES).next_multiple_of(4);
        bytes = bytes.get(next..).unwrap_or_default();
    }
    Ok(count)
}

/// The payload of a message under construction.
#[derive(Debug)]
pub struct Body<'a>(&'a mut Vec<u8>);

impl Body<'_> {
    /// Bytes of a fixed structure, whose length is a multiple of 4.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// One attribute.
    pub fn attr(&mut self, kind: u16, value: &[u8]) {
        let length = (value.len() + 4) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// A text attribute, with the terminating zero the kernel expects.
    pub fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes);
    }

    /// A number in network order, as nftables wants all of its numbers.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// An attribute made of attributes.
    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Body<'_>)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0
            .extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        inner(&mut Body(self.0));
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_lengths_are_not() {
        let mut batch = Batch::default();
        batch.message(20, 0, |m| m.nest(1, |m| m.text(2, "ab")));
        let expected: &[u8] = &[
            28, 0, 0, 0, 20, 0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, // header
            12, 0, 1, 128, 7, 0, 2, 0, b'a', b'b', 0, 0,
        ];
        assert_eq!(batch.bytes, expected);
    }

    #[test]
    fn an_error_reply_is_an_error_and_a_cut_one_does_not_panic() {
        let mut reply = vec![20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        reply.extend_from_slice(&0i32.to_ne_bytes());
        assert_eq!(acknowledged(&reply).unwrap(), 1);
        reply[16..].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(
            acknowledged(&reply).unwrap_err().raw_os_error(),
            Some(libc::EPERM)
        );
        for cut in 0..reply.len() {
            let _ = acknowledged(&reply[..cut]);
        }
    }
}
