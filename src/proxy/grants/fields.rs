//! Where an answer hands out credentials (RFC 6749, section 5.1), and their tokens in their place.
//!
//! Found are the members `access_token`, `refresh_token`, `id_token` and `token`, in any case and with
//! or without their marks, at any depth of a JSON text or in a form. Every quotation mark may begin the
//! name of a member, so nothing before it can hide one. A `token` that is too easy to guess to be
//! searched for is none: APIs call words so.
//!
//! An answer is held to its end, so that what it hands out can be taken out of all of it: some do it
//! twice, under other names. A longer one passes on, and is broken off where it hands something out.
//!
//! Invariant: the output does not depend on how the input was cut, and nothing of such a member's
//! value is given out; one that does not end breaks off the answer, and so does one of JSON that is
//! written in a string.

use std::sync::Arc;

use percent_encoding::percent_decode;
use zeroize::Zeroizing;

use super::{Grants, Parent};
use crate::proxy::body::{StreamError, Transform};
use crate::proxy::entropy::reseal_possible;
use crate::proxy::refusal::Refusal;
use crate::proxy::tally::Tally;
use crate::proxy::token::SealedToken;
use crate::secret::SecretValue;

/// Longest credential as it is written.
const WRITTEN_BYTES_MAX: usize = 64 * 1024;
/// Longest name of a member that is looked at, as it is written: each letter may be an escape.
pub(super) const NAME_BYTES_MAX: usize = 96;
/// Longest answer that is held to its end.
const HELD_BYTES_MAX: usize = 128 * 1024;
/// Names without marks, in lower case.
const NAMES: [&str; 3] = ["accesstoken", "refreshtoken", "idtoken"];
/// One that means a credential only where it is like one.
const COMMON_NAME: &[u8] = b"token";

/// How the members of an answer are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syntax {
    /// As in JSON.
    Json,
    /// `application/x-www-form-urlencoded`.
    Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Anything.
    Text,
    /// Behind what may begin a name.
    Name,
    /// Behind the name of a credential.
    Colon,
    /// Behind its colon.
    Quote,
    /// In the credential.
    Value,
}

/// Seals what an answer hands out.
pub(crate) struct FieldSealer {
    grants: Arc<Grants>,
    parents: Arc<[Parent]>,
    tally: Arc<Tally>,
    syntax: Syntax,
    /// What came of the answer; `None` when it is longer than what is held.
    held: Option<Zeroizing<Vec<u8>>>,
    /// It was longer than what is held: nothing can be sealed any more.
    long: bool,
    stage: Stage,
    /// The name that was read last, and whether its text is in a string.
    name: Vec<u8>,
    nested: bool,
    value: Zeroizing<Vec<u8>>,
    /// The last byte of the value takes the next one's meaning away.
    escaped: bool,
}

impl FieldSealer {
    /// Seals for `parents`, one at least.
    pub fn new(
        grants: Arc<Grants>,
        parents: Arc<[Parent]>,
        tally: Arc<Tally>,
        syntax: Syntax,
    ) -> Self {
        let stage = match syntax {
            Syntax::Json => Stage::Text,
            Syntax::Form => Stage::Name,
        };
        Self {
            grants,
            parents,
            tally,
            syntax,
            held: Some(Zeroizing::default()),
            long: false,
            stage,
            name: Vec::new(),
            nested: false,
            value: Zeroizing::default(),
            escaped: false,
        }
    }

    fn json(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.stage = match (self.stage, byte) {
            (Stage::Value, b'"') if !self.escaped => {
                self.seal(out)?;
                Stage::Text
            }
            (Stage::Value, _) => {
                self.escaped = byte == b'\\' && !self.escaped;
                return self.hold(byte);
            }
            (Stage::Name, b'"') if is_credential(&self.name) => {
                self.nested = false;
                Stage::Colon
            }
            (Stage::Name, b'"') if is_named(unquoted(&self.name)) => {
                self.nested = true;
                Stage::Colon
            }
            (Stage::Text | Stage::Name | Stage::Colon, b'"') => {
                self.name.clear();
                Stage::Name
            }
            (Stage::Name, _) if self.name.len() < NAME_BYTES_MAX => {
                self.name.push(byte);
                Stage::Name
            }
            (Stage::Colon | Stage::Quote, b' ' | b'\t' | b'\r' | b'\n') => self.stage,
            (Stage::Colon, b':') if self.nested => return Err(self.refuse()),
            (Stage::Colon, b':') => Stage::Quote,
            (Stage::Quote, b'"') => Stage::Value,
            _ => Stage::Text,
        };
        out.push(byte);
        Ok(())
    }

    fn form(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.stage = match (self.stage, byte) {
            (stage, b'&') => {
                if stage == Stage::Value {
                    self.seal(out)?;
                }
                self.name.clear();
                Stage::Name
            }
            (Stage::Value, _) => return self.hold(byte),
            (Stage::Name, b'=') if is_credential(&self.name) => Stage::Value,
            (Stage::Name, _) if byte != b'=' && self.name.len() < NAME_BYTES_MAX => {
                self.name.push(byte);
                Stage::Name
            }
            _ => Stage::Text,
        };
        out.push(byte);
        Ok(())
    }

    fn hold(&mut self, byte: u8) -> Result<(), StreamError> {
        if self.value.len() >= WRITTEN_BYTES_MAX {
            return Err(self.refuse());
        }
        // Without a copy left behind by one that grows.
        if self.value.capacity() == 0 {
            self.value.reserve_exact(WRITTEN_BYTES_MAX);
        }
        self.value.push(byte);
        Ok(())
    }

    fn refuse(&self) -> StreamError {
        self.tally.refuse(Refusal::ResponseGrant);
        Refusal::ResponseGrant.into()
    }

    fn read(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        for &byte in input {
            match self.syntax {
                Syntax::Json => self.json(byte, out)?,
                Syntax::Form => self.form(byte, out)?,
            }
        }
        Ok(())
    }

    /// Gives out the token for the value, which is complete.
    fn seal(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let written = std::mem::take(&mut self.value);
        let value = match self.syntax {
            Syntax::Json => json_text(&written),
            Syntax::Form => form_text(&written),
        };
        let word = plain_name(&self.name) == COMMON_NAME && !reseal_possible(&value);
        if value.is_empty() || word || value == written && is_token(&value) {
            out.extend_from_slice(&written);
            return Ok(());
        }
        if self.long {
            return Err(self.refuse());
        }
        let token = self
            .grants
            .seal(SecretValue::new(value.to_vec()), &self.parents)
            .inspect_err(|refusal| self.tally.refuse(refusal.clone()))?;
        out.extend_from_slice(token.to_string().as_bytes());
        let names = self.parents.iter().map(|parent| parent.name.clone());
        self.tally.names().resealed.extend(names);
        Ok(())
    }
}

impl Transform for FieldSealer {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        if let Some(held) = &mut self.held {
            if held.len() + input.len() <= HELD_BYTES_MAX {
                // Without a copy left behind by one that grows.
                if held.capacity() == 0 {
                    held.reserve_exact(HELD_BYTES_MAX);
                }
                held.extend_from_slice(input);
                return Ok(());
            }
            self.long = true;
        }
        if let Some(held) = self.held.take() {
            self.read(&held, out)?;
        }
        self.read(input, out)
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        if let Some(held) = self.held.take() {
            self.read(&held, out)?;
        }
        match (self.stage, self.syntax) {
            (Stage::Value, Syntax::Form) => self.seal(out),
            (Stage::Value, Syntax::Json) => Err(self.refuse()),
            _ => Ok(()),
        }
    }
}

fn is_token(bytes: &[u8]) -> bool {
    SealedToken::at(bytes).is_some_and(|token| token.to_string().as_bytes() == bytes)
}

/// Whether a member of this name, as it is written, holds a credential.
fn is_credential(name: &[u8]) -> bool {
    is_named(name) || plain_name(name) == COMMON_NAME
}

/// The same of those that never mean anything else.
pub(super) fn is_named(name: &[u8]) -> bool {
    let plain = plain_name(name);
    NAMES.iter().any(|known| known.as_bytes() == plain)
}

/// A member's name, as it is written, without marks and in lower case.
fn plain_name(name: &[u8]) -> Vec<u8> {
    let name = match name.contains(&b'%') {
        true => Zeroizing::new(percent_decode(name).collect()),
        false => json_text(name),
    };
    name.iter()
        .filter(|byte| !matches!(byte, b'_' | b'-'))
        .map(u8::to_ascii_lowercase)
        .collect()
}

/// What was read up to a quotation mark that is one of a string's text.
fn unquoted(mut name: &[u8]) -> &[u8] {
    while let [rest @ .., b'\\'] = name {
        name = rest;
    }
    name
}

/// The text that a JSON string stands for; as it is written where it stands for none.
fn json_text(written: &[u8]) -> Zeroizing<Vec<u8>> {
    if !written.contains(&b'\\') {
        return Zeroizing::new(written.to_vec());
    }
    let quoted = Zeroizing::new([b"\"", written, b"\""].concat());
    let text = serde_json::from_slice::<String>(&quoted).map(String::into_bytes);
    Zeroizing::new(text.unwrap_or_else(|_| written.to_vec()))
}

fn form_text(written: &[u8]) -> Zeroizing<Vec<u8>> {
    let spaced = |&byte: &u8| if byte == b'+' { b' ' } else { byte };
    let spaced: Zeroizing<Vec<u8>> = Zeroizing::new(written.iter().map(spaced).collect());
    Zeroizing::new(percent_decode(&spaced).collect())
}
