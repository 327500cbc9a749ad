//! Where an answer hands out credentials (RFC 6749, section 5.1), and their tokens in their place.
//!
//! Found are the members `access_token`, `refresh_token` and `id_token`, in any case and with or
//! without their marks, at any depth of a JSON text or in a form. Every quotation mark may begin the
//! name of a member, so nothing before it can hide one.
//!
//! Invariant: the output does not depend on how the input was cut, and nothing of such a member's
//! value is given out; one that does not end breaks off the answer.

use std::sync::Arc;

use percent_encoding::percent_decode;
use zeroize::Zeroizing;

use super::{Grants, Parent};
use crate::proxy::body::{StreamError, Transform};
use crate::proxy::refusal::Refusal;
use crate::proxy::tally::Tally;
use crate::proxy::token::SealedToken;
use crate::secret::SecretValue;

/// Longest credential as it is written.
const WRITTEN_BYTES_MAX: usize = 64 * 1024;
/// Longest name of a member that is looked at, as it is written: each letter may be an escape.
const NAME_BYTES_MAX: usize = 96;
/// Names without marks, in lower case.
const NAMES: [&str; 3] = ["accesstoken", "refreshtoken", "idtoken"];

/// How the members of an answer are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syntax {
    /// As in JSON. Also what is called something else.
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
    parent: Parent,
    tally: Arc<Tally>,
    syntax: Syntax,
    stage: Stage,
    name: Vec<u8>,
    value: Zeroizing<Vec<u8>>,
    /// The last byte of the value takes the next one's meaning away.
    escaped: bool,
}

impl FieldSealer {
    pub fn new(grants: Arc<Grants>, parent: Parent, tally: Arc<Tally>, syntax: Syntax) -> Self {
        let stage = match syntax {
            Syntax::Json => Stage::Text,
            Syntax::Form => Stage::Name,
        };
        Self {
            grants,
            parent,
            tally,
            syntax,
            stage,
            name: Vec::new(),
            value: Zeroizing::default(),
            escaped: false,
        }
    }

    fn json(&mut self, byte: u8, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.stage = match (self.stage, byte) {
            (Stage::Value, b'"') if !self.escaped => {
                self.seal(out);
                Stage::Text
            }
            (Stage::Value, _) => {
                self.escaped = byte == b'\\' && !self.escaped;
                return self.hold(byte);
            }
            (Stage::Name, b'"') if is_credential(&self.name) => Stage::Colon,
            (Stage::Text | Stage::Name | Stage::Colon, b'"') => {
                self.name.clear();
                Stage::Name
            }
            (Stage::Name, _) if self.name.len() < NAME_BYTES_MAX => {
                self.name.push(byte);
                Stage::Name
            }
            (Stage::Colon | Stage::Quote, b' ' | b'\t' | b'\r' | b'\n') => self.stage,
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
                    self.seal(out);
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

    /// Gives out the token for the value, which is complete.
    fn seal(&mut self, out: &mut Vec<u8>) {
        let written = std::mem::take(&mut self.value);
        let value = match self.syntax {
            Syntax::Json => json_text(&written),
            Syntax::Form => form_text(&written),
        };
        if value.is_empty() || value == written && is_token(&value) {
            out.extend_from_slice(&written);
            return;
        }
        let token = self
            .grants
            .seal(SecretValue::new(value.to_vec()), &self.parent);
        out.extend_from_slice(token.to_string().as_bytes());
        self.tally.names().resealed.insert(self.parent.name.clone());
    }
}

impl Transform for FieldSealer {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        for &byte in input {
            match self.syntax {
                Syntax::Json => self.json(byte, out)?,
                Syntax::Form => self.form(byte, out)?,
            }
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        match (self.stage, self.syntax) {
            (Stage::Value, Syntax::Form) => {
                self.seal(out);
                Ok(())
            }
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
    let name = match name.contains(&b'%') {
        true => Zeroizing::new(percent_decode(name).collect()),
        false => json_text(name),
    };
    let plain: Vec<u8> = name
        .iter()
        .filter(|byte| !matches!(byte, b'_' | b'-'))
        .map(u8::to_ascii_lowercase)
        .collect();
    NAMES.iter().any(|known| known.as_bytes() == plain)
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
