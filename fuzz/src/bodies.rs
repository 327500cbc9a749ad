//! Bodies by their type and coding, through what a request or an answer of that head goes through.

use std::io::{Read, Write};
use std::iter::once;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http::{HeaderMap, HeaderValue, header};

use super::{TOKEN, VALUE, controls, expand, holds, pieces, rules, run};
use crate::proxy::body::Transform;
use crate::proxy::content::{of_request, of_response};

/// What is written for bytes that stand for parts of a multipart body.
const PARTS: [&str; 6] = [
    "\r\n--b+X\r\n",
    "\r\n--b+X--",
    "\n--b+X",
    "Content-Type: application/json\r\n\r\n",
    "Content-Disposition: form-data; name=\"a\"; filename=\"",
    "\r\n\r\n",
];

/// What a body with these fields goes through, towards the host or back.
fn transform(fields: &[(header::HeaderName, &'static str)], up: bool) -> Box<dyn Transform> {
    let fields = fields.iter();
    let fields = fields.map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
    let headers: HeaderMap = fields.collect();
    let rules = rules();
    let change = match up {
        true => of_request(&headers, &rules, &Arc::default()).map(Option::unwrap),
        false => of_response(&headers, true, &rules, &Arc::default()),
    };
    change
        .expect("a head that is looked into")
        .transform
        .transform
}

/// How a text is packed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Coding {
    Gzip,
    Zlib,
    Deflate,
    Brotli,
    Zstd,
}

impl Coding {
    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zlib | Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    fn pack(self, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let written = match self {
            Self::Gzip => GzEncoder::new(&mut out, Compression::fast()).write_all(text),
            Self::Zlib => ZlibEncoder::new(&mut out, Compression::fast()).write_all(text),
            Self::Deflate => DeflateEncoder::new(&mut out, Compression::fast()).write_all(text),
            Self::Brotli => brotli::CompressorWriter::new(&mut out, 4096, 1, 16).write_all(text),
            Self::Zstd => {
                out = zstd::bulk::compress(text, 1).expect("into memory");
                Ok(())
            }
        };
        written.expect("into memory");
        out
    }

    /// The text of what `pack` or the proxy made; an empty body stays one.
    fn open(self, packed: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        if packed.is_empty() {
            return text;
        }
        let read = match self {
            Self::Gzip => flate2::read::MultiGzDecoder::new(packed).read_to_end(&mut text),
            Self::Zlib => flate2::read::ZlibDecoder::new(packed).read_to_end(&mut text),
            Self::Deflate => flate2::read::DeflateDecoder::new(packed).read_to_end(&mut text),
            Self::Brotli => brotli::Decompressor::new(packed, 4096).read_to_end(&mut text),
            Self::Zstd => zstd::Decoder::new(packed).and_then(|mut r| r.read_to_end(&mut text)),
        };
        read.expect("what was packed");
        text
    }
}

/// The text inside a compressed body becomes the same however it is cut, and holds no token
/// towards the host and no value back; a damaged one is damaged however it is cut.
pub fn codings(data: &[u8]) {
    let Some((control, sizes, rest)) = controls(data) else {
        return;
    };
    let coding = match control & 7 {
        0 | 5 => Coding::Gzip,
        1 => Coding::Zlib,
        2 | 6 => Coding::Deflate,
        3 | 7 => Coding::Brotli,
        _ => Coding::Zstd,
    };
    let (up, damaged, pauses) = (control & 8 == 0, control & 16 != 0, control & 128 != 0);
    let body = match damaged {
        true => rest.to_vec(),
        false => coding.pack(&expand(rest)),
    };
    let new = || transform(&[(header::CONTENT_ENCODING, coding.name())], up);
    let whole = run(new(), once(body.as_slice()), false);
    let cut = run(new(), pieces(&body, sizes), pauses);
    assert_eq!(whole.is_ok(), cut.is_ok());
    if damaged {
        return;
    }
    let whole = coding.open(&whole.expect("a whole body"));
    assert_eq!(whole, coding.open(&cut.expect("a whole body")));
    assert!(!holds(&whole, if up { TOKEN } else { VALUE }));
}

/// What a multipart body becomes, or why it is refused, does not depend on its cut; no token of
/// the host's own stays, and no boundary comes or goes.
pub fn multipart(data: &[u8]) {
    let Some((control, sizes, rest)) = controls(data) else {
        return;
    };
    let mut body = Vec::new();
    for &byte in rest {
        let part = PARTS.get(usize::from(byte).wrapping_sub(0xe0));
        match part {
            Some(part) => body.extend(part.bytes()),
            None => body.extend(expand(&[byte])),
        }
    }
    let kind = "multipart/form-data; boundary=b+X";
    let new = || transform(&[(header::CONTENT_TYPE, kind)], true);
    let told = |error: crate::proxy::body::StreamError| error.to_string();
    let whole = run(new(), once(body.as_slice()), false).map_err(told);
    let cut = run(new(), pieces(&body, sizes), control & 128 != 0).map_err(told);
    assert_eq!(whole, cut);
    if let Ok(whole) = whole {
        let marks = |bytes: &[u8]| memchr::memmem::find_iter(bytes, "\n--b+X").count();
        assert_eq!(marks(&whole), marks(&body));
        assert!(!holds(&whole, TOKEN));
    }
}

/// What gRPC messages become does not depend on their cut; as many come out, each with the length
/// before it that it has, and none holds a value on its way back.
pub fn grpc(data: &[u8]) {
    let Some((control, sizes, rest)) = controls(data) else {
        return;
    };
    let (up, raw) = (control & 1 == 0, control & 2 != 0);
    let mut body = Vec::new();
    if raw {
        body = expand(rest);
    } else {
        for message in rest.split(|&byte| byte == 0xef) {
            let message = inside(message, control & 4 != 0);
            body.push(0);
            body.extend((message.len() as u32).to_be_bytes());
            body.extend(message);
        }
    }
    let fields = [
        (header::CONTENT_TYPE, "application/grpc"),
        (header::HeaderName::from_static("grpc-encoding"), "gzip"),
    ];
    let new = || transform(&fields, up);
    let told = |error: crate::proxy::body::StreamError| error.to_string();
    let whole = run(new(), once(body.as_slice()), false).map_err(told);
    let cut = run(new(), pieces(&body, sizes), control & 128 != 0).map_err(told);
    assert_eq!(whole, cut);
    if let Ok(whole) = whole {
        let sent = messages(&body).expect("was read");
        let seen = messages(&whole).expect("lengths are right");
        assert_eq!(sent.len(), seen.len());
        let plain = seen.iter().filter(|(flags, _)| flags & 1 == 0);
        for (_, message) in plain {
            assert!(up || !holds(message, VALUE));
        }
    }
}

/// A text as it is, or as the string of a message inside a message.
fn inside(text: &[u8], wrapped: bool) -> Vec<u8> {
    let text = expand(text);
    if !wrapped {
        return text;
    }
    let string = |text: &[u8]| {
        let mut out = vec![0x0a];
        let mut size = text.len();
        while size >= 0x80 {
            out.push(size as u8 | 0x80);
            size >>= 7;
        }
        out.push(size as u8);
        out.extend_from_slice(text);
        out
    };
    string(&string(&text))
}

/// The messages of a body with their flags; `None` when a length is not what is there.
fn messages(mut body: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut all = Vec::new();
    while !body.is_empty() {
        let (head, rest) = body.split_at_checked(5)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (message, rest) = rest.split_at_checked(length)?;
        all.push((head[0], message));
        body = rest;
    }
    Some(all)
}
