//! Sealed tokens: what a sandbox holds instead of a secret.
//!
//! A token is `osb_sealed_` and 32 lower-case hex digits (128 random bits). It stands for one
//! secret in one sandbox, means nothing anywhere else, and is therefore not secret from the
//! sandbox. All its characters are unreserved in URLs, JSON, forms and base64url, so encoders
//! leave it as it is.

use std::fmt;
use std::str::FromStr;

/// How every token begins.
pub(crate) const PREFIX: &[u8] = b"osb_sealed_";
/// Hex digits after the prefix.
const DIGITS: usize = 32;
/// Length of a token in bytes.
pub(crate) const TOKEN_BYTES: usize = PREFIX.len() + DIGITS;

/// Text that is not a sealed token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a sealed token: `osb_sealed_` and 32 lower-case hex digits")]
pub struct BadToken;

/// A sealed token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SealedToken([u8; DIGITS / 2]);

impl SealedToken {
    /// A new random token.
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// Reads the token at the beginning of `bytes`.
    pub(crate) fn at(bytes: &[u8]) -> Option<Self> {
        let digits = bytes.strip_prefix(PREFIX)?.get(..DIGITS)?;
        let mut token = [0; DIGITS / 2];
        for (byte, pair) in token.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = *pair else { return None };
            *byte = digit(high)? << 4 | digit(low)?;
        }
        Some(Self(token))
    }

    /// Whether more bytes could make `bytes` (shorter than a token) a token.
    pub(crate) fn may_begin_with(bytes: &[u8]) -> bool {
        let head = bytes.len().min(PREFIX.len());
        bytes.len() < TOKEN_BYTES
            && bytes[..head] == PREFIX[..head]
            && bytes[head..].iter().copied().all(is_digit)
    }
}

fn is_digit(byte: u8) -> bool {
    digit(byte).is_some()
}

/// What a digit stands for; there is one way to write it.
fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for SealedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "osb_sealed_{}", hex::encode(self.0))
    }
}

impl FromStr for SealedToken {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<Self, BadToken> {
        match Self::at(text.as_bytes()) {
            Some(token) if text.len() == TOKEN_BYTES => Ok(token),
            _ => Err(BadToken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back_what_they_print_and_nothing_else() {
        let token = SealedToken::generate();
        let text = token.to_string();
        assert_eq!(text.len(), TOKEN_BYTES);
        assert_eq!(text.parse(), Ok(token));
        assert_ne!(token, SealedToken::generate());
        for bad in [
            &text[..42],
            &format!("{text}0"),
            &text.to_uppercase(),
            "",
            "osb_sealed_",
        ] {
            assert_eq!(bad.parse::<SealedToken>(), Err(BadToken), "{bad}");
        }
        for end in 0..TOKEN_BYTES {
            assert!(SealedToken::may_begin_with(&text.as_bytes()[..end]));
        }
        assert!(!SealedToken::may_begin_with(b"osb_sealed_X"));
        assert!(!SealedToken::may_begin_with(b"osb_x"));
    }
}
