//! Rotating the master key of a server that does not run.
//!
//! ```text
//! stage     the new key is on disk beside the old one        old key opens the keyring
//! rewrap    every data key, in one transaction               new key opens it from here on
//! promote   the new key's file takes the old one's place     (only for a key in our own file)
//! ```
//!
//! Invariant: after a crash at any moment a file is there whose key opens the keyring, and the next
//! start or the next rotation finds it. Values in the log are not touched: they are sealed with
//! data keys, which stay the same.

use std::path::Path;

use super::file;
use super::{KeyError, Keyring, MasterKey};
use crate::config::MasterSource;

/// What a rotation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotated {
    /// Data keys that are wrapped by the new master key now.
    pub keys: usize,
    /// An earlier rotation had been cut off and was finished first.
    pub finished_earlier: bool,
}

/// The steps, for tests that stop between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::events) enum Step {
    Staged,
    Rewrapped,
    Promoted,
}

/// Wraps the data keys in `keys_path` anew. The caller holds the fence of the data folder.
///
/// A key in our own file is replaced by a new random one. Of a key from elsewhere only the operator
/// can exchange the source, so the new one is taken from `new_key_file` (made there when missing).
pub(in crate::events) fn rotate(
    source: &MasterSource,
    new_key_file: Option<&Path>,
    keys_path: &Path,
    mut after: impl FnMut(Step) -> Result<(), KeyError>,
) -> Result<Rotated, KeyError> {
    match (source.file(), new_key_file) {
        (Some(path), None) => {
            let staged = MasterKey::next_path(path).exists();
            let (keyring, _) = source.open_keyring(keys_path, true)?;
            // Promoted when the keyring was opened: then the key in the file is the staged one.
            let finished_earlier = staged && !MasterKey::next_path(path).exists();
            let next = MasterKey::stage_next(path)?;
            after(Step::Staged)?;
            let keys = keyring.rotate_master(next)?;
            after(Step::Rewrapped)?;
            MasterKey::promote_next(path)?;
            after(Step::Promoted)?;
            Ok(Rotated {
                keys,
                finished_earlier,
            })
        }
        (None, Some(new)) => {
            let (next, _) = MasterKey::load_or_create(new)?;
            after(Step::Staged)?;
            let keyring = match source.open_keyring(keys_path, true) {
                Ok((keyring, _)) => keyring,
                // Cut off after the re-wrapping, or called once more before the source was changed.
                Err(KeyError::WrongMaster { .. }) => {
                    Keyring::open(keys_path, next, true)?;
                    return Ok(Rotated {
                        keys: 0,
                        finished_earlier: true,
                    });
                }
                Err(other) => return Err(other),
            };
            let keys = keyring.rotate_master(next)?;
            after(Step::Rewrapped)?;
            Ok(Rotated {
                keys,
                finished_earlier: false,
            })
        }
        (Some(path), Some(_)) => Err(KeyError::NotThere {
            path: path.to_owned(),
        }),
        (None, None) => Err(KeyError::NotOurs {
            source_name: source.describe(),
        }),
    }
}

/// Keeps a copy of the present key file at `aside` (mode 0600), which must not exist: backups made
/// before a rotation open only with the key of then.
pub(in crate::events) fn keep_old(path: &Path, aside: &Path) -> Result<(), KeyError> {
    let key = MasterKey::load(path)?.ok_or_else(|| KeyError::MasterLost {
        path: path.to_owned(),
    })?;
    file::create(aside, key.expose())
}
