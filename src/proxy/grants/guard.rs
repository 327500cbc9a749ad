//! A look at answers in which nothing can be sealed.

use std::sync::Arc;

use super::fields::{NAME_BYTES_MAX, is_named};
use crate::proxy::body::{StreamError, Transform};
use crate::proxy::refusal::Refusal;
use crate::proxy::tally::Tally;

/// Passes an answer on, and breaks it off where a credential's name ends: what follows could be one.
///
/// Names are `access_token`, `refresh_token` and `id_token`, in any case and with or without their
/// marks, where they are words of their own.
pub(crate) struct NameGuard {
    tally: Arc<Tally>,
    /// The word so far; cut off where it is longer than any name.
    word: Vec<u8>,
    /// Digits to come of a byte in percent notation.
    digits: u8,
}

impl NameGuard {
    pub fn new(tally: Arc<Tally>) -> Self {
        Self {
            tally,
            word: Vec::new(),
            digits: 0,
        }
    }

    fn end_word(&mut self) -> Result<(), StreamError> {
        let named = is_named(&self.word);
        self.word.clear();
        if named {
            self.tally.refuse(Refusal::ResponseGrant);
            return Err(Refusal::ResponseGrant.into());
        }
        Ok(())
    }
}

impl Transform for NameGuard {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        for &byte in input {
            if self.digits > 0 && byte.is_ascii_hexdigit() {
                self.digits -= 1;
                continue;
            }
            self.digits = 0;
            match byte {
                b'_' | b'-' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => {
                    if self.word.len() <= NAME_BYTES_MAX {
                        self.word.push(byte);
                    }
                }
                _ => {
                    self.end_word()?;
                    self.digits = if byte == b'%' { 2 } else { 0 };
                }
            }
        }
        out.extend_from_slice(input);
        Ok(())
    }

    fn finish(&mut self, _out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.end_word()
    }
}
