//! The text form: a C2SP signed note whose body is laid out as a C2SP checkpoint.
//!
//! ```text
//! opencomputer/<log id>             origin, also the name of the key
//! <commit>                          number of the last commit
//! <chain>                           its chain hash, 32 bytes in base64
//! position <position>               of the last event
//! signed <RFC 3339>                 the signer's clock, UTC
//!                                   an empty line
//! — opencomputer/<log id> <base64 of: key hash, 4 bytes; Ed25519 signature, 64 bytes>
//! ```
//!
//! Signed is all of the text up to and with the newline before the empty line. The key hash is the
//! first 4 bytes of `SHA-256(name, 0x0a, 0x01, public key)`. A public key is written as
//! `<name>+<key hash in hex>+<base64 of: 0x01, public key>`.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use ulid::Ulid;

use crate::events::event::Head;

/// Longest note that is looked at, in bytes.
pub const NOTE_BYTES_MAX: usize = 16 * 1024;
/// What every origin begins with.
const ORIGIN_PREFIX: &str = "opencomputer/";
/// The algorithm's number in C2SP: Ed25519.
const ED25519: u8 = 1;
const KEY_HASH_BYTES: usize = 4;
/// What a signature line begins with.
const DASH: &str = "\u{2014} ";

/// What a note says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log.
    pub log: Ulid,
    /// How far it had come.
    pub head: Head,
    /// When it was signed, by the signer's clock, in whole seconds.
    pub signed_at: OffsetDateTime,
}

/// Why a note proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// It is not a checkpoint of this program's.
    #[error("not a checkpoint: {0}")]
    Malformed(&'static str),
    /// Nobody of that key signed it.
    #[error("the checkpoint is signed by another key ({found}), not by {wanted}")]
    OtherKey {
        /// The key asked for.
        wanted: String,
        /// Name and hash of the key that signed.
        found: String,
    },
    /// The signature is not of this text.
    #[error("the checkpoint's signature is not of its text: the text was altered")]
    BadSignature,
    /// Not a public key.
    #[error("not a public key of checkpoints: {0}; `oc audit key` prints one")]
    BadKey(&'static str),
}

/// The key that checkpoints of one log are verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    key: VerifyingKey,
}

impl Checkpoint {
    /// The signed note.
    pub(super) fn sign(&self, key: &SigningKey) -> String {
        let text = self.text();
        let public = PublicKey::new(self.log, key.verifying_key());
        let mut signature = public.hash().to_vec();
        signature.extend_from_slice(&key.sign(text.as_bytes()).to_bytes());
        format!(
            "{text}\n{DASH}{} {}\n",
            public.name,
            BASE64.encode(signature)
        )
    }

    /// Checks a note's signature with `key` and takes its content.
    pub fn open(note: &str, key: &PublicKey) -> Result<Checkpoint, NoteError> {
        let (text, signatures) = split(note)?;
        let checkpoint = parse(text)?;
        let mut found = None;
        for line in signatures.lines() {
            let (name, signature) = signature_line(line)?;
            let Some((hash, signature)) = signature.split_first_chunk::<KEY_HASH_BYTES>() else {
                return Err(NoteError::Malformed("a signature is too short"));
            };
            if name != key.name || *hash != key.hash() {
                // Others may sign the same note, witnesses say.
                found.get_or_insert_with(|| format!("{name}+{}", hex::encode(hash)));
                continue;
            }
            let signature =
                Signature::from_slice(signature).map_err(|_| NoteError::BadSignature)?;
            return match key.key.verify_strict(text.as_bytes(), &signature) {
                Ok(()) => Ok(checkpoint),
                Err(_) => Err(NoteError::BadSignature),
            };
        }
        Err(NoteError::OtherKey {
            wanted: key.to_string(),
            found: found.unwrap_or_else(|| "none".to_owned()),
        })
    }

    fn text(&self) -> String {
        let Head {
            position,
            commit,
            chain,
        } = self.head;
        let signed = self.signed_at.replace_nanosecond(0).ok();
        let signed = signed.and_then(|at| at.format(&Rfc3339).ok());
        format!(
            "{ORIGIN_PREFIX}{}\n{commit}\n{}\nposition {position}\nsigned {}\n",
            self.log,
            BASE64.encode(chain),
            // Only years beyond 9999 have no such text.
            signed.unwrap_or_default()
        )
    }
}

impl PublicKey {
    pub(super) fn new(log: Ulid, key: VerifyingKey) -> Self {
        Self {
            name: format!("{ORIGIN_PREFIX}{log}"),
            key,
        }
    }

    /// The bare 32 bytes.
    pub fn bytes(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// As PEM (SubjectPublicKeyInfo, RFC 8410), which `openssl` reads.
    pub fn pem(&self) -> String {
        // SEQUENCE { SEQUENCE { OID 1.3.101.112 } BIT STRING } around the bare key.
        let mut der = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00".to_vec();
        der.extend_from_slice(&self.bytes());
        let body = BASE64.encode(der);
        format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n")
    }

    fn hash(&self) -> [u8; KEY_HASH_BYTES] {
        let mut hash = Sha256::new();
        hash.update(self.name.as_bytes());
        hash.update([b'\n', ED25519]);
        hash.update(self.bytes());
        let hash: [u8; 32] = hash.finalize().into();
        hash.first_chunk().copied().unwrap_or_default()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut key = vec![ED25519];
        key.extend_from_slice(&self.bytes());
        let (hash, key) = (hex::encode(self.hash()), BASE64.encode(key));
        write!(f, "{}+{hash}+{key}", self.name)
    }
}

impl FromStr for PublicKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(hash), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::BadKey("it is not NAME+HASH+KEY"));
        };
        let key = BASE64
            .decode(key)
            .map_err(|_| NoteError::BadKey("its last part is not base64"))?;
        let key = match key.split_first() {
            Some((&ED25519, key)) => <[u8; 32]>::try_from(key).ok(),
            _ => return Err(NoteError::BadKey("it is not an Ed25519 key")),
        };
        let key = key.and_then(|key| VerifyingKey::from_bytes(&key).ok());
        let key = Self {
            name: name.to_owned(),
            key: key.ok_or(NoteError::BadKey("its last part is no key"))?,
        };
        if hex::encode(key.hash()) != hash {
            return Err(NoteError::BadKey("its hash does not belong to it"));
        }
        Ok(key)
    }
}

/// The signed text and the signature lines.
fn split(note: &str) -> Result<(&str, &str), NoteError> {
    if note.len() > NOTE_BYTES_MAX {
        return Err(NoteError::Malformed("it is too long"));
    }
    let end = note
        .rfind("\n\n")
        .ok_or(NoteError::Malformed("there is no signature"))?;
    match (note.get(..=end), note.get(end + 2..)) {
        (Some(text), Some(signatures)) if signatures.ends_with('\n') => Ok((text, signatures)),
        _ => Err(NoteError::Malformed("it is cut off")),
    }
}

fn signature_line(line: &str) -> Result<(&str, Vec<u8>), NoteError> {
    let rest = line.strip_prefix(DASH);
    let (name, signature) = rest
        .and_then(|rest| rest.split_once(' '))
        .ok_or(NoteError::Malformed("a signature line is not one"))?;
    let signature = BASE64
        .decode(signature)
        .map_err(|_| NoteError::Malformed("a signature is not base64"))?;
    Ok((name, signature))
}

fn parse(text: &str) -> Result<Checkpoint, NoteError> {
    let bad = NoteError::Malformed;
    let mut lines = text.lines();
    let mut next = || lines.next().unwrap_or_default();
    let log = next().strip_prefix(ORIGIN_PREFIX);
    let commit = number(next()).ok_or(bad("its second line is no commit number"))?;
    let chain = BASE64.decode(next()).ok();
    let chain = chain.and_then(|chain| <[u8; 32]>::try_from(chain).ok());
    let position = next().strip_prefix("position ").and_then(number);
    let signed = next().strip_prefix("signed ");
    let signed = signed.and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    if !next().is_empty() {
        return Err(bad("it has more lines than a checkpoint"));
    }
    Ok(Checkpoint {
        log: log
            .and_then(|log| Ulid::from_string(log).ok())
            .ok_or(bad("its first line names no log"))?,
        head: Head {
            position: position.ok_or(bad("its fourth line is no position"))?,
            commit,
            chain: chain.ok_or(bad("its third line is no chain hash"))?,
        },
        signed_at: signed.ok_or(bad("its fifth line is no time"))?,
    })
}

/// A decimal number in its one spelling: no sign, no leading zero.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            log: Ulid::from_bytes([7; 16]),
            head: Head {
                position: 57,
                commit: 42,
                chain: [9; 32],
            },
            signed_at: OffsetDateTime::from_unix_timestamp(1_700_000_000).expect("a time"),
        }
    }

    fn key(seed: u8) -> (SigningKey, PublicKey) {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let public = PublicKey::new(checkpoint().log, key.verifying_key());
        (key, public)
    }

    /// Goal: what was signed reads back, and its public key survives its text form.
    #[test]
    fn a_note_reads_back_with_its_key() {
        let (private, public) = key(1);
        let note = checkpoint().sign(&private);
        let read: PublicKey = public.to_string().parse().expect("a key");
        assert_eq!(read, public);
        assert_eq!(Checkpoint::open(&note, &read), Ok(checkpoint()));
        // A witness's signature beside ours does no harm.
        let witnessed = format!(
            "{note}{DASH}witness.example/w1 {}\n",
            BASE64.encode([1; 68])
        );
        assert_eq!(Checkpoint::open(&witnessed, &read), Ok(checkpoint()));
    }

    /// Goal: no byte of a note can be changed, and no other key passes.
    #[test]
    fn an_altered_note_and_another_key_are_refused() {
        let (private, public) = key(1);
        let note = checkpoint().sign(&private);
        for index in 0..note.len() {
            let mut bytes = note.clone().into_bytes();
            bytes[index] ^= 1;
            if let Ok(altered) = String::from_utf8(bytes) {
                assert!(Checkpoint::open(&altered, &public).is_err(), "byte {index}");
            }
            if note.is_char_boundary(index) {
                assert!(Checkpoint::open(&note[..index], &public).is_err());
            }
        }
        let forged = note.replace("\n42\n", "\n43\n");
        assert_eq!(
            Checkpoint::open(&forged, &public),
            Err(NoteError::BadSignature)
        );
        let other = checkpoint().sign(&key(2).0);
        let refused = Checkpoint::open(&other, &public).expect_err("another key");
        assert!(refused.to_string().contains("signed by another key"));
    }
}
