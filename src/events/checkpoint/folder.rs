//! The operator's folder of checkpoints: one file a note, never changed, and the newest once more
//! as `latest.note`.
//!
//! Each file is written aside, synced and renamed, so that a reader (an rsync, a cron job) never
//! sees half of one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::note::{Checkpoint, NOTE_BYTES_MAX, NoteError, PublicKey};
use crate::events::error::ReadError;
use crate::events::keys::KeyError;

/// Name of the newest note.
const LATEST: &str = "latest.note";

/// Why checkpoints can't be kept, or disagree with the log.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The folder can't be used.
    #[error(
        "the folder of checkpoints {path} can't be {action}: {source}; see `checkpoints.dir` in the configuration"
    )]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// `read`, `written`, …
        action: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// The newest note there proves nothing for this log.
    #[error(
        "{path} does not fit this server: {source}. When the key or the log was replaced on \
         purpose, move the old checkpoints away"
    )]
    Note {
        /// The note.
        path: PathBuf,
        /// Why.
        source: NoteError,
    },
    /// The log has another history than the one that was signed.
    #[error(
        "the event log is not the one that {path} was signed for: it says commit {commit} with \
         chain {signed}, the log has {found}. History was cut off or rewritten: restore a backup. \
         After `oc restore`, `oc log repair` or `oc audit accept-head`, move the old checkpoints away"
    )]
    OtherHistory {
        /// The note.
        path: PathBuf,
        /// The commit it is of.
        commit: u64,
        /// Its chain hash.
        signed: String,
        /// What the log has there.
        found: String,
    },
    /// The key can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The log can't be read.
    #[error(transparent)]
    Log(#[from] ReadError),
}

/// The folder.
#[derive(Debug, Clone)]
pub struct CheckpointFolder {
    dir: PathBuf,
}

impl CheckpointFolder {
    /// Makes the folder when it is missing.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        std::fs::create_dir_all(dir).map_err(failed(dir, "created"))?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Where the newest note is.
    pub fn latest_path(&self) -> PathBuf {
        self.dir.join(LATEST)
    }

    /// The newest note, its signature checked; `None` when there is none.
    pub fn latest(&self, key: &PublicKey) -> Result<Option<Checkpoint>, CheckpointError> {
        let path = self.latest_path();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&path, "read")(error)),
        };
        let mut note = String::new();
        let limit = u64::try_from(NOTE_BYTES_MAX).unwrap_or(u64::MAX);
        file.take(limit)
            .read_to_string(&mut note)
            .map_err(failed(&path, "read"))?;
        match Checkpoint::open(&note, key) {
            Ok(checkpoint) => Ok(Some(checkpoint)),
            Err(source) => Err(CheckpointError::Note { path, source }),
        }
    }

    /// Keeps a note under its commit's number and as the latest; both are on disk afterwards.
    pub fn write(&self, checkpoint: &Checkpoint, note: &str) -> Result<PathBuf, CheckpointError> {
        let numbered = self
            .dir
            .join(format!("{:020}.note", checkpoint.head.commit));
        for path in [&numbered, &self.latest_path()] {
            replace(path, note.as_bytes()).map_err(failed(path, "written"))?;
        }
        Ok(numbered)
    }
}

/// Whole or not at all, and synced with the folder.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |source| CheckpointError::Io {
        path,
        action,
        source,
    }
}
