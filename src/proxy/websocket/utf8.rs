//! Whether a stream of bytes is UTF-8, however it is cut.

use std::str::from_utf8;

/// Longest character, in bytes.
const CHARACTER_BYTES_MAX: usize = 4;

/// A check in progress.
#[derive(Default)]
pub(super) struct Utf8 {
    /// The beginning of a character that is not complete.
    open: [u8; CHARACTER_BYTES_MAX],
    length: usize,
}

impl Utf8 {
    /// Takes the next bytes; `false` when no continuation can make it UTF-8.
    pub fn push(&mut self, mut bytes: &[u8]) -> bool {
        while self.length > 0 {
            let Some((&byte, rest)) = bytes.split_first() else {
                return true;
            };
            bytes = rest;
            // Three bytes at most wait here: a fourth completes the character or breaks it.
            self.open[self.length] = byte;
            self.length += 1;
            match from_utf8(&self.open[..self.length]) {
                Ok(_) => self.length = 0,
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return false,
            }
        }
        match from_utf8(bytes) {
            Ok(_) => true,
            Err(error) if error.error_len().is_none() => {
                let rest = &bytes[error.valid_up_to()..];
                self.open[..rest.len()].copy_from_slice(rest);
                self.length = rest.len();
                true
            }
            Err(_) => false,
        }
    }

    /// Whether the stream may end here.
    pub fn complete(&self) -> bool {
        self.length == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(pieces: &[&[u8]]) -> bool {
        let mut check = Utf8::default();
        pieces.iter().all(|piece| check.push(piece)) && check.complete()
    }

    #[test]
    fn characters_may_be_cut_and_nothing_else_passes() {
        let text = "aé€😀\u{10ffff}".as_bytes();
        let single: Vec<&[u8]> = text.chunks(1).collect();
        assert!(check(&single));
        assert!(!check(&single[..single.len() - 1]));
        for bad in [
            &b"\xff"[..],
            b"\xc0\xaf",
            b"\xed\xa0\x80",
            b"\xf4\x90\x80\x80",
            b"a\x80",
        ] {
            let single: Vec<&[u8]> = bad.chunks(1).collect();
            assert!(!check(&single) && !check(&[bad]), "{bad:?}");
        }
    }

    proptest! {
        /// The verdict is the standard library's, wherever the bytes are cut.
        #[test]
        fn any_cut_gives_the_same_verdict(
            bytes in prop_oneof![any::<Vec<u8>>(), ".*".prop_map(String::into_bytes)],
            size in 1usize..6,
        ) {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            prop_assert_eq!(check(&pieces), from_utf8(&bytes).is_ok());
        }
    }
}
