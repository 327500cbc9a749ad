//! The one type a real secret value may live in.
//!
//! Invariants: the bytes are wiped on drop; there is no `Debug`, `Display`, `Serialize` or
//! `PartialEq`, so a value can't be formatted, logged, stored in clear or compared in variable
//! time by accident. Whoever needs the bytes says so by calling [`SecretValue::expose`].

use zeroize::Zeroizing;

/// Largest secret value accepted, in bytes (64 KiB).
pub const SECRET_VALUE_BYTES_MAX: usize = 64 * 1024;

/// A real secret value, wiped from memory when dropped.
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// Takes ownership of `bytes`; the caller must not keep a copy.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The real bytes. Every call is a place to review: they may go into an outbound request
    /// or a cipher and nowhere else.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// A second owner of the same value, wiped on its own drop.
    pub fn duplicate(&self) -> Self {
        Self(Zeroizing::new(self.0.to_vec()))
    }
}

impl From<String> for SecretValue {
    fn from(text: String) -> Self {
        Self::new(text.into_bytes())
    }
}

impl<'de> serde::Deserialize<'de> for SecretValue {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}
