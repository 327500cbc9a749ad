//! Work on the data folder of a server that does not run: the fence is taken first.

use std::path::{Path, PathBuf};

use super::engines::sqlite::Fence;
use super::error::OpenError;
use super::keys::{self, KeyError, Rotated};
use crate::config::MasterSource;

/// Names of what a server keeps, in its data folder.
#[derive(Debug, Clone)]
pub struct DataFolder {
    root: PathBuf,
}

/// Why the folder could not be worked on.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// There is no log, or a server runs on it.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The keys can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl DataFolder {
    /// The folder that `oc serve --data-dir` was given.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The event log's folder.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// The keyring.
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys.db")
    }

    /// Exchanges the master key and wraps every data key anew; see [`MasterSource`] and
    /// `keys/rotate.rs`. `keep_old` gets a copy of the key file as it was.
    pub fn rotate_master(
        &self,
        source: &MasterSource,
        new_key_file: Option<&Path>,
        keep_old: Option<&Path>,
    ) -> Result<Rotated, MaintenanceError> {
        let _fence = Fence::raise(&self.log())?;
        if let (Some(aside), Some(file)) = (keep_old, source.file()) {
            // Finishes what was cut off, so that the key kept is one that was in use.
            source.open_keyring(&self.keys(), true)?;
            keys::keep_old(file, aside)?;
        }
        Ok(keys::rotate(
            source,
            new_key_file,
            &self.keys(),
            |_| Ok(()),
        )?)
    }
}
