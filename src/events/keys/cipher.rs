//! The cipher work, without any storage: wrapping data keys, sealing values, deriving keys.
//!
//! AES-256-GCM-SIV (RFC 8452) with random 96-bit nonces: should a nonce ever repeat, only the
//! equality of two identical values would show. HKDF-SHA256 (RFC 5869) keeps the uses of a key
//! apart. Associated data is a list of fields, each with its length in bytes as `u32` big-endian
//! before it.

use aes_gcm_siv::aead::{Aead, KeyInit, Payload};
use aes_gcm_siv::{Aes256GcmSiv, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::KeyError;
use crate::events::stream::StreamId;
use crate::secret::{SECRET_VALUE_BYTES_MAX, SecretValue};

/// A symmetric key of ours.
pub type Key = Zeroizing<[u8; 32]>;
/// Nonce of AES-256-GCM-SIV, in bytes.
pub const NONCE_BYTES: usize = 12;

/// Where a sealed value belongs besides its stream. Only exactly there it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealContext<'a> {
    /// Kind of the event that carries it.
    pub event_kind: &'a str,
    /// Name of the secret.
    pub name: &'a str,
}

/// A sealed value, as it stands in an event's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Version of the stream's data key.
    pub key_version: u32,
    /// 12 bytes in base64.
    pub nonce: String,
    /// The value and 16 bytes of tag, in base64.
    pub ciphertext: String,
}

/// The key made from the master key that wraps data keys.
pub fn wrapping_key(master: &[u8; 32]) -> Result<Key, KeyError> {
    derive(master, &[b"oc.keys.wrap.v1"])
}

/// A stream's key for one purpose that the caller names.
pub fn labelled_key(data_key: &Key, label: &str) -> Result<Key, KeyError> {
    derive(data_key, &[b"oc.keys.derive.v1", label.as_bytes()])
}

/// Random bytes for a key.
pub fn random_key() -> Result<Key, KeyError> {
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(key.as_mut_slice()).map_err(|_| NO_RANDOMNESS)?;
    Ok(key)
}

/// Encrypts `plain` for the place that `fields` describe.
pub fn encrypt(
    key: &Key,
    fields: &[&[u8]],
    plain: &[u8],
) -> Result<([u8; NONCE_BYTES], Vec<u8>), KeyError> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|_| NO_RANDOMNESS)?;
    let payload = Payload {
        msg: plain,
        aad: &joined(fields),
    };
    let sealed = cipher(key)?.encrypt(&Nonce::from(nonce), payload);
    Ok((
        nonce,
        sealed.map_err(|_| KeyError::Crypto("the cipher refused its input"))?,
    ))
}

/// Opens what [`encrypt`] made for the same place; `None` for anything else.
pub fn decrypt(
    key: &Key,
    fields: &[&[u8]],
    nonce: &[u8],
    sealed: &[u8],
) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
    let Ok(nonce) = <[u8; NONCE_BYTES]>::try_from(nonce) else {
        return Ok(None);
    };
    let payload = Payload {
        msg: sealed,
        aad: &joined(fields),
    };
    Ok(cipher(key)?
        .decrypt(&Nonce::from(nonce), payload)
        .ok()
        .map(Zeroizing::new))
}

/// Seals `value` for its place with version `key_version` of the stream's data key.
pub fn seal(
    data_key: &Key,
    key_version: u32,
    stream: &StreamId,
    ctx: &SealContext<'_>,
    value: &SecretValue,
) -> Result<Sealed, KeyError> {
    if value.expose().len() > SECRET_VALUE_BYTES_MAX {
        return Err(KeyError::TooLarge {
            limit: SECRET_VALUE_BYTES_MAX,
        });
    }
    let version = key_version.to_be_bytes();
    let (nonce, ciphertext) = encrypt(
        &sealing_key(data_key)?,
        &place(stream, ctx, &version),
        value.expose(),
    )?;
    let (nonce, ciphertext) = (BASE64.encode(nonce), BASE64.encode(ciphertext));
    Ok(Sealed {
        key_version,
        nonce,
        ciphertext,
    })
}

/// Opens what [`seal`] made for the same place; `None` for anything else.
pub fn unseal(
    data_key: &Key,
    stream: &StreamId,
    ctx: &SealContext<'_>,
    sealed: &Sealed,
) -> Result<Option<SecretValue>, KeyError> {
    let decoded = (
        BASE64.decode(&sealed.nonce),
        BASE64.decode(&sealed.ciphertext),
    );
    let (Ok(nonce), Ok(ciphertext)) = decoded else {
        return Ok(None);
    };
    let version = sealed.key_version.to_be_bytes();
    let plain = decrypt(
        &sealing_key(data_key)?,
        &place(stream, ctx, &version),
        &nonce,
        &ciphertext,
    )?;
    // The buffer itself becomes the value's, so that there is no second copy to wipe.
    Ok(plain.map(|mut plain| SecretValue::new(std::mem::take(&mut *plain))))
}

fn sealing_key(data_key: &Key) -> Result<Key, KeyError> {
    derive(data_key, &[b"oc.keys.seal.v1"])
}

fn place<'a>(stream: &'a StreamId, ctx: &SealContext<'a>, version: &'a [u8]) -> [&'a [u8]; 4] {
    [
        stream.as_str().as_bytes(),
        ctx.event_kind.as_bytes(),
        ctx.name.as_bytes(),
        version,
    ]
}

fn derive(key: &[u8; 32], info: &[&[u8]]) -> Result<Key, KeyError> {
    let mut derived = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(None, key)
        .expand(&joined(info), derived.as_mut_slice())
        .map_err(|_| KeyError::Crypto("the derivation refused its input"))?;
    Ok(derived)
}

fn cipher(key: &Key) -> Result<Aes256GcmSiv, KeyError> {
    Aes256GcmSiv::new_from_slice(key.as_slice())
        .map_err(|_| KeyError::Crypto("the cipher refused its key"))
}

fn joined(fields: &[&[u8]]) -> Vec<u8> {
    let mut joined = Vec::new();
    for field in fields {
        // Names and kinds are far below 4 GiB; saturating would still not collide with any.
        let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
        joined.extend_from_slice(&length.to_be_bytes());
        joined.extend_from_slice(field);
    }
    joined
}

const NO_RANDOMNESS: KeyError = KeyError::Crypto("the system gave no randomness");
