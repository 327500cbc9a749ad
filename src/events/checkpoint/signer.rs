//! The private key of checkpoints, in a file of its own.

use std::path::Path;

use ed25519_dalek::SigningKey;
use time::OffsetDateTime;
use ulid::Ulid;

use super::note::{Checkpoint, PublicKey};
use crate::events::keys::{KeyError, create_key, generate_key, load_key};
use crate::events::log::EventLog;

const WHAT: &str = "checkpoint key";

/// Signs checkpoints. Wiped on drop; has no `Debug`.
pub struct CheckpointKey(SigningKey);

impl CheckpointKey {
    /// Name of the key's file in the data folder.
    pub const FILE: &str = "checkpoint.key";

    /// Reads the key file, or makes it (mode 0600) on first use. Returns whether it was made now.
    pub fn load_or_create(path: &Path) -> Result<(CheckpointKey, bool), KeyError> {
        if let Some(key) = Self::load(path)? {
            return Ok((key, false));
        }
        let seed = generate_key()?;
        create_key(path, &seed)?;
        Ok((Self(SigningKey::from_bytes(&seed)), true))
    }

    /// Reads the key file; `None` when there is none.
    pub fn load(path: &Path) -> Result<Option<CheckpointKey>, KeyError> {
        let seed = load_key(path, WHAT)?;
        Ok(seed.map(|seed| Self(SigningKey::from_bytes(&seed))))
    }

    /// What checkpoints of `log` are verified with.
    pub fn public(&self, log: Ulid) -> PublicKey {
        PublicKey::new(log, self.0.verifying_key())
    }

    /// A signed note of where `log` ends now.
    pub fn sign_head(&self, log: &EventLog) -> (Checkpoint, String) {
        let checkpoint = Checkpoint {
            log: log.id(),
            head: log.head(),
            signed_at: OffsetDateTime::now_utc(),
        };
        (checkpoint, checkpoint.sign(&self.0))
    }
}
