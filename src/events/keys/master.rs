//! The master key: it wraps all data keys, and lives in a file that only the server reads, or
//! where the operator says ([`super::MasterSource`]).

use std::path::{Path, PathBuf};

use super::KeyError;
use super::file::{self, KEY_BYTES, KeyBytes};

/// What the key is called in messages.
const WHAT: &str = "master key";

/// The key that wraps all data keys. Wiped on drop; has no `Debug`.
pub struct MasterKey(KeyBytes);

impl MasterKey {
    /// Reads the key file, or makes it (mode 0600, synced with its folder, never over another
    /// file). Returns whether it was made now. A file that others can read, that belongs to
    /// somebody else or that holds anything but a key is refused.
    pub fn load_or_create(path: &Path) -> Result<(MasterKey, bool), KeyError> {
        match Self::load(path)? {
            Some(key) => Ok((key, false)),
            None => {
                let key = Self::generate()?;
                key.store(path)?;
                Ok((key, true))
            }
        }
    }

    /// A key from 64 hexadecimal digits (white space around them is ignored).
    pub fn from_hex(text: &str) -> Result<MasterKey, KeyError> {
        Self::from_text(text.as_bytes(), "the given text")
    }

    /// As [`MasterKey::from_hex`]; `source_name` says in a refusal where the text came from.
    pub(super) fn from_text(text: &[u8], source_name: &str) -> Result<MasterKey, KeyError> {
        file::parse(text, WHAT, source_name).map(Self)
    }

    /// A new random key.
    pub fn generate() -> Result<MasterKey, KeyError> {
        file::generate().map(Self)
    }

    /// Where the next key waits while the keyring is re-wrapped: `<path>.next`.
    pub fn next_path(path: &Path) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(".next");
        name.into()
    }

    /// Makes a new key and stores it beside the present one, *before* [`super::Keyring::rotate_master`],
    /// so that a crash at any moment leaves a file that opens the keyring.
    pub fn stage_next(path: &Path) -> Result<MasterKey, KeyError> {
        let (key, _) = Self::load_or_create(&Self::next_path(path))?;
        Ok(key)
    }

    /// Puts the staged key in the place of the old one, *after* [`super::Keyring::rotate_master`].
    pub fn promote_next(path: &Path) -> Result<(), KeyError> {
        std::fs::rename(Self::next_path(path), path)
            .and_then(|()| file::sync_folder(path))
            .map_err(|error| file::io_error(path, "replaced", &error))
    }

    /// Reads the key file; `None` when there is none.
    pub fn load(path: &Path) -> Result<Option<MasterKey>, KeyError> {
        Ok(file::load(path, WHAT)?.map(Self))
    }

    /// Writes the key to `path` (mode 0600), which must not exist.
    pub fn store(&self, path: &Path) -> Result<(), KeyError> {
        file::create(path, &self.0)
    }

    pub(super) fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}
