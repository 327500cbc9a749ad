//! How a value is written in the place where its token stood.
//!
//! Invariant: the bytes around the token keep their meaning. A quote can't end a JSON string, an
//! ampersand can't start a form field, a line break can't start a header; a value that has no
//! spelling in its place is refused rather than altered.

use zeroize::Zeroizing;

/// Where a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A header value (RFC 9110, section 5.5).
    Header,
    /// Inside the base64 of Basic credentials.
    Credentials,
    /// A string in a JSON body (RFC 8259, section 7).
    Json,
    /// A component of a path, a query or a form body (RFC 3986, section 2.3).
    Url,
    /// Any other body: the bytes as they are.
    Raw,
}

impl Place {
    /// The place's name in messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Header => "a header",
            Self::Credentials => "Basic credentials",
            Self::Json => "a JSON body",
            Self::Url => "a URL or form",
            Self::Raw => "a body",
        }
    }

    /// How many bytes one byte of a value may become here.
    pub fn growth_max(self) -> usize {
        match self {
            Self::Header | Self::Credentials | Self::Raw => 1,
            Self::Url => 3,
            Self::Json => 6,
        }
    }
}

/// `value` as it must be written in `place`, or `None` when it can't be.
pub(crate) fn express(value: &[u8], place: Place) -> Option<Zeroizing<Vec<u8>>> {
    match place {
        Place::Header => value
            .iter()
            .all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f))
            .then(|| Zeroizing::new(value.to_vec())),
        Place::Credentials | Place::Raw => Some(Zeroizing::new(value.to_vec())),
        Place::Json => std::str::from_utf8(value)
            .ok()
            .map(|text| json(text, Json::default())),
        // A component of dots alone would move the path, escaped or not.
        Place::Url if matches!(value, b"." | b"..") => None,
        Place::Url => Some(percent(value, Hex::Upper, |b| UNRESERVED.contains(&b))),
    }
}

/// Punctuation no URL encoder needs to touch; letters and digits are never touched.
pub(crate) const UNRESERVED: &[u8] = b"-._~";

/// Case of hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hex {
    Upper,
    Lower,
}

impl Hex {
    fn digit(self, nibble: u8) -> u8 {
        let digits = match self {
            Self::Upper => b"0123456789ABCDEF",
            Self::Lower => b"0123456789abcdef",
        };
        digits[usize::from(nibble & 15)]
    }

    fn push_byte(self, out: &mut Vec<u8>, byte: u8) {
        out.extend([self.digit(byte >> 4), self.digit(byte)]);
    }

    fn push_unicode(self, out: &mut Vec<u8>, unit: u16) {
        out.extend(b"\\u");
        for byte in unit.to_be_bytes() {
            self.push_byte(out, byte);
        }
    }
}

/// Percent-encodes every byte but letters, digits and those `kept`.
pub(crate) fn percent(value: &[u8], hex: Hex, kept: impl Fn(u8) -> bool) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(value.len() * 3));
    for &byte in value {
        if byte.is_ascii_alphanumeric() || kept(byte) {
            out.push(byte);
        } else {
            out.push(b'%');
            hex.push_byte(&mut out, byte);
        }
    }
    out
}

/// Which characters a JSON encoder escapes beyond those it must.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Json {
    /// `/` as `\/` (PHP).
    pub slash: bool,
    /// `<`, `>`, `&` as `\u003c` … (Go).
    pub html: bool,
    /// Further characters as `\uXXXX`, the double quote too if it is one of them.
    pub also: &'static [char],
    /// Everything outside ASCII as `\uXXXX` (Python).
    pub ascii: bool,
    /// Every character as `\uXXXX`.
    pub all: bool,
    /// Upper-case hex digits.
    pub upper: bool,
}

/// The inside of a JSON string.
pub(crate) fn json(text: &str, style: Json) -> Zeroizing<Vec<u8>> {
    let hex = if style.upper { Hex::Upper } else { Hex::Lower };
    // Twelve bytes is the longest escape of one character; the buffer never moves, so no copy
    // of the value stays behind unwiped.
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() * 6));
    for c in text.chars() {
        let short = match c {
            _ if style.also.contains(&c) => None,
            '"' => Some(b'"'),
            '\\' => Some(b'\\'),
            '\n' => Some(b'n'),
            '\r' => Some(b'r'),
            '\t' => Some(b't'),
            '\u{8}' => Some(b'b'),
            '\u{c}' => Some(b'f'),
            '/' if style.slash => Some(b'/'),
            _ => None,
        };
        let unicode = style.all
            || (c < ' ')
            || (style.html && matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}'))
            || (style.ascii && !c.is_ascii())
            || style.also.contains(&c);
        match short {
            Some(letter) if !style.all => out.extend([b'\\', letter]),
            _ if unicode => {
                let mut units = [0; 2];
                for &unit in c.encode_utf16(&mut units).iter() {
                    hex.push_unicode(&mut out, unit);
                }
            }
            _ => out.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte value in every place comes back whole from that place's own parser, or is
    /// refused.
    #[test]
    fn any_byte_is_expressed_faithfully_or_refused() {
        for byte in 0..=255u8 {
            let value = [b'a', byte, b'z'];
            let control = (byte < b' ' && byte != b'\t') || byte == 0x7f;
            assert_eq!(express(&value, Place::Header).is_none(), control, "{byte}");
            match express(&value, Place::Json) {
                Some(inside) => {
                    let text = format!("\"{}\"", String::from_utf8(inside.to_vec()).unwrap());
                    let parsed: String = serde_json::from_str(&text).unwrap();
                    assert_eq!(parsed.as_bytes(), value);
                }
                None => assert!(byte >= 0x80, "{byte}"),
            }
            let url = express(&value, Place::Url).unwrap();
            assert!(
                url.iter()
                    .all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(b))
            );
            if url.len() > 3 {
                assert_eq!(hex::decode(&url[2..4]).unwrap(), [byte]);
            }
            assert_eq!(*express(&value, Place::Raw).unwrap(), value);
        }
        assert!(express(b"..", Place::Url).is_none());
        let astral = express("a😀\u{1}\"".as_bytes(), Place::Json).unwrap();
        assert_eq!(*astral, "a😀\\u0001\\\"".as_bytes());
    }
}
