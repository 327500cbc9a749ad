//! What a connection begins with: TLS and for whom, HTTP, something else, or nothing.
//!
//! Bytes are read ahead, never consumed, so that the same bytes can be tunnelled afterwards.

use std::time::Duration;

use rustls::server::Acceptor;
use tokio::time::{Instant, timeout, timeout_at};

use super::io::Rewind;

/// Longest ClientHello read, in bytes, with its record headers.
const HELLO_BYTES_MAX: usize = 64 * 1024;
/// Time for the opening to be complete once its first byte has come.
const OPENING_TIMEOUT: Duration = Duration::from_secs(30);
/// Number of the encrypted_client_hello extension (RFC 9849).
const EXTENSION_ECH: u16 = 0xfe0d;

/// Methods that make the first bytes HTTP; `PRI` begins HTTP/2 in clear.
const METHODS: [&[u8]; 19] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"PATCH ",
    b"DELETE ",
    b"OPTIONS ",
    b"TRACE ",
    b"CONNECT ",
    b"PRI ",
    b"PROPFIND ",
    b"PROPPATCH ",
    b"MKCOL ",
    b"COPY ",
    b"MOVE ",
    b"LOCK ",
    b"UNLOCK ",
    b"REPORT ",
    b"SEARCH ",
];

/// How a connection begins.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    Tls(Hello),
    /// Begins like TLS and is not.
    TlsMalformed,
    Http,
    /// Neither.
    Opaque,
    /// No byte within the time given.
    Silent,
    /// Ended before it could be told.
    Closed,
}

/// The part of a ClientHello that decides.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Server name as sent; `None` when absent or an IP address.
    pub server_name: Option<String>,
    /// Whether another ClientHello may be hidden inside (real or greased).
    pub encrypted_hello: bool,
}

/// Reads ahead until the kind is clear; waits at most `patience` for the first byte.
pub(crate) async fn read(io: &mut Rewind, patience: Duration) -> Opening {
    if io.ahead().is_empty() {
        match timeout(patience, io.look()).await {
            Err(_) => return Opening::Silent,
            Ok(Ok(1..)) => {}
            Ok(_) => return Opening::Closed,
        }
    }
    let deadline = Instant::now() + OPENING_TIMEOUT;
    match timeout_at(deadline, recognise(io)).await {
        Ok(opening) => opening,
        Err(_) => Opening::Closed,
    }
}

async fn recognise(io: &mut Rewind) -> Opening {
    let mut acceptor = Acceptor::default();
    let mut fed = 0;
    loop {
        let ahead = io.ahead();
        if ahead.first() == Some(&0x16) {
            match feed(&mut acceptor, &ahead[fed..]) {
                Ok(Some(server_name)) => {
                    let encrypted_hello = may_hide_another(ahead);
                    return Opening::Tls(Hello {
                        server_name,
                        encrypted_hello,
                    });
                }
                Ok(None) if ahead.len() < HELLO_BYTES_MAX => fed = ahead.len(),
                _ => return Opening::TlsMalformed,
            }
        } else if METHODS.iter().any(|method| ahead.starts_with(method)) {
            return Opening::Http;
        } else if !METHODS.iter().any(|method| method.starts_with(ahead)) {
            return Opening::Opaque;
        }
        match io.look().await {
            Ok(1..) => {}
            _ => return Opening::Closed,
        }
    }
}

/// Gives new bytes to `acceptor`; the server name once the ClientHello is complete.
fn feed(acceptor: &mut Acceptor, mut bytes: &[u8]) -> Result<Option<Option<String>>, ()> {
    loop {
        let read = acceptor.read_tls(&mut bytes).map_err(|_| ())?;
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return Ok(Some(
                    accepted.client_hello().server_name().map(str::to_owned),
                ));
            }
            Ok(None) if read == 0 || bytes.is_empty() => return Ok(None),
            Ok(None) => {}
            Err(_) => return Err(()),
        }
    }
}

/// Whether a ClientHello carries ECH. What can't be read counts as yes: such a connection is
/// never tunnelled unread.
fn may_hide_another(records: &[u8]) -> bool {
    let Some(hello) = handshake_of(records) else {
        return true;
    };
    extension_numbers(&hello).is_none_or(|numbers| numbers.contains(&EXTENSION_ECH))
}

/// The first handshake message, put together from its records.
fn handshake_of(mut records: &[u8]) -> Option<Vec<u8>> {
    let mut message = Vec::new();
    while let Some((&[0x16, _, _, high, low], rest)) = records.split_first_chunk::<5>() {
        let (fragment, rest) =
            rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
        message.extend_from_slice(fragment);
        records = rest;
    }
    let (&[1, a, b, c], body) = message.split_first_chunk::<4>()? else {
        return None;
    };
    let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
    body.get(..length).map(<[u8]>::to_vec)
}

/// Numbers of the extensions of a ClientHello (RFC 8446, section 4.1.2).
fn extension_numbers(hello: &[u8]) -> Option<Vec<u16>> {
    let mut rest = hello.get(2 + 32..)?;
    for prefix in [1, 2, 1] {
        rest = split_vector(rest, prefix)?.1;
    }
    if rest.is_empty() {
        return Some(Vec::new());
    }
    let mut extensions = split_vector(rest, 2)?.0;
    let mut numbers = Vec::new();
    while !extensions.is_empty() {
        let (&number, rest) = extensions.split_first_chunk::<2>()?;
        numbers.push(u16::from_be_bytes(number));
        extensions = split_vector(rest, 2)?.1;
    }
    Some(numbers)
}

/// Splits a vector with a length of `prefix` bytes off the front.
fn split_vector(bytes: &[u8], prefix: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(prefix)?;
    let length = length
        .iter()
        .fold(0, |sum, &byte| (sum << 8) | usize::from(byte));
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
    use std::sync::Arc;
    use tokio::io::AsyncWriteExt;

    /// The first bytes a real client sends to `name`.
    pub(crate) fn client_hello(name: &str) -> Vec<u8> {
        let config = rustls::ClientConfig::builder_with_provider(crate::proxy::settings::crypto())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    async fn opening_of(pieces: &[&[u8]]) -> Opening {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let mut io = Rewind::new(Box::new(near));
        let write = async {
            for piece in pieces {
                far.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            far.shutdown().await.unwrap();
        };
        tokio::join!(read(&mut io, Duration::from_secs(5)), write).0
    }

    #[tokio::test]
    async fn openings_are_told_apart_by_their_first_bytes() {
        assert_eq!(opening_of(&[b"GET / HTTP/1.1\r\n"]).await, Opening::Http);
        assert_eq!(
            opening_of(&[b"PO", b"ST / HTTP/1.1\r\n"]).await,
            Opening::Http
        );
        assert_eq!(opening_of(&[b"SSH-2.0-x\r\n"]).await, Opening::Opaque);
        assert_eq!(opening_of(&[b"GETX"]).await, Opening::Opaque);
        assert_eq!(opening_of(&[b"\0"]).await, Opening::Opaque);
        assert_eq!(
            opening_of(&[b"\x16\x03\x01\x00\x05hello, this is not"]).await,
            Opening::TlsMalformed
        );
        assert_eq!(opening_of(&[]).await, Opening::Closed);
        assert_eq!(opening_of(&[b"GE"]).await, Opening::Closed);
        let (near, _far) = tokio::io::duplex(16);
        let mut io = Rewind::new(Box::new(near));
        assert_eq!(
            read(&mut io, Duration::from_millis(5)).await,
            Opening::Silent
        );
    }

    /// Found whatever the cuts, with ECH told from its absence, in one record or several.
    #[tokio::test]
    async fn a_client_hello_is_read_whole() {
        let bytes = client_hello("api.example");
        let plain = Opening::Tls(Hello {
            server_name: Some("api.example".to_owned()),
            encrypted_hello: false,
        });
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(opening_of(&pieces).await, plain);
        let (one, two) = bytes[5..].split_at(40);
        let mut split = Vec::new();
        for part in [one, two] {
            split.extend([0x16, 3, 1]);
            split.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
            split.extend(part);
        }
        assert_eq!(opening_of(&[&split]).await, plain);
        // Renumber the first extension to ECH's: the rest stays well-formed.
        let hello = handshake_of(&bytes).unwrap();
        let number = extension_numbers(&hello).unwrap()[0].to_be_bytes();
        let at = hello
            .windows(2)
            .skip(70)
            .position(|pair| pair == number)
            .unwrap()
            + 70;
        let mut hidden = bytes.clone();
        hidden[9 + at..11 + at].copy_from_slice(&EXTENSION_ECH.to_be_bytes());
        assert!(may_hide_another(&hidden) && !may_hide_another(&bytes));
        assert!(may_hide_another(&bytes[..60]));
        let no_name = Opening::Tls(Hello {
            server_name: None,
            encrypted_hello: false,
        });
        assert_eq!(opening_of(&[&client_hello("127.0.0.1")]).await, no_name);
    }
}
