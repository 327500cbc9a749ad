//! Backups: made beside a running server, consistent, and verified before they count.
//!
//! ```text
//! log/log.db      a copy of the log up to one head, commit by commit, each verified
//! keys.db         the keyring as it was at that head
//! oc.toml         the configuration, when there is one
//! master.key, checkpoint.key      only when asked for
//! backup.json     what this is, written last: without it there is no backup
//! ```
//!
//! Consistent means that every value sealed in the log opens unless its key was destroyed by a
//! delete that the log holds too. A data key is on disk before anything is sealed with it, and
//! destroyed only after its delete is committed. So: with the keyring's write lock held, the log's
//! head and a snapshot of the keyring are taken, microseconds apart, and the log is copied up to
//! that head. The server's own key writes wait for that moment and nothing else does.
//!
//! A backup holds the wrapped keys of what is deleted later: shredding reaches only backups that
//! have expired.

mod files;
mod restore;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup as SqliteBackup, StepResult};
use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use ulid::Ulid;

use self::files::{copy_file, failed, make_empty, sha256, sync_file, write_private};
use super::checkpoint::CheckpointKey;
use super::copy::Prefix;
use super::engines::Reader;
use super::engines::sqlite::{self, Copying, Purpose};
use super::error::{EngineError, OpenError, VerifyError};
use super::event::Head;
use super::keys::{KeyError, Keyring};
use super::maintenance::DataFolder;
use super::verify;
use crate::config::MasterSource;

const MANIFEST: &str = "backup.json";
const FORMAT: &str = "oc.backup.v1";
const LOG: &str = "log";
const KEYS: &str = "keys.db";
const CONFIG: &str = "oc.toml";
const MASTER: &str = "master.key";
/// How long to wait for the keyring's lock, in milliseconds.
const LOCK_MS_MAX: u64 = 10_000;

/// Why a backup was not made or not restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The target holds something.
    #[error("{path} is not empty: name a folder that is new or empty")]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// No whole backup.
    #[error("{path} is no whole backup: {reason}")]
    NotABackup {
        /// The folder.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// The log does not verify.
    #[error(
        "the log can't be copied beyond position {position}: {fault}; `oc log repair` keeps what \
         verifies"
    )]
    Damaged {
        /// Up to where it verifies.
        position: u64,
        /// What is wrong there.
        fault: String,
    },
    /// The copy is not what it should be.
    #[error("the copy does not verify: {0}")]
    Copy(#[from] VerifyError),
    /// A log can't be opened or written.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A log can't be read or written.
    #[error("the log can't be copied: {0}")]
    Engine(#[from] EngineError),
    /// The keys don't open, or can't be read.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The master key is needed and not there.
    #[error(
        "the backup has no master key: name the one that the server had with --master-key-file, or \
         give it in OC_MASTER_KEY"
    )]
    NoMaster,
    /// A file can't be used.
    #[error("{path} can't be {action}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// `read`, `written`, …
        action: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// The keyring can't be copied.
    #[error("the keyring {path} can't be copied: {source}")]
    Keyring {
        /// The keyring.
        path: PathBuf,
        /// SQLite's words.
        source: rusqlite::Error,
    },
}

/// What a backup is, as its `backup.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    format: String,
    /// The log's identity.
    pub log: Ulid,
    /// Commits in it.
    pub commits: u64,
    /// Events in it.
    pub positions: u64,
    /// Chain hash of the last commit.
    #[serde(with = "hex::serde")]
    pub chain: [u8; 32],
    /// SHA-256 of `keys.db`: a keyring of another moment would lack keys, or have destroyed ones.
    #[serde(with = "hex::serde")]
    pub keys_sha256: [u8; 32],
    /// When it was finished, by the clock of whoever made it.
    #[serde(with = "time::serde::rfc3339")]
    pub made_at: OffsetDateTime,
    /// Whether the private keys are in it.
    pub with_master_key: bool,
    /// Whether the keyring was opened with the master key when it was made.
    pub keys_checked: bool,
}

impl DataFolder {
    /// Makes a backup in `to`, with or without a server running here. With `master` the keyring's
    /// copy is opened as a check, and with `with_keys` the private keys go into the backup.
    pub fn backup(
        &self,
        to: &Path,
        master: Option<&MasterSource>,
        with_keys: bool,
    ) -> Result<Manifest, BackupError> {
        make_empty(to)?;
        let source = sqlite::attach(&self.log())?;
        let source = source.as_ref();
        let mut copy = Copying::create(&to.join(LOG), source.log())?;
        let mut prefix = Prefix::new(source);
        // Most of it first, without any lock.
        extend(&mut prefix, source, source.head()?, &mut copy)?;
        let (head, keys) = freeze(&self.keys(), source)?;
        copy_keys(&keys, &self.keys(), &to.join(KEYS))?;
        drop(keys);
        extend(&mut prefix, source, head, &mut copy)?;
        let copied = copy.finish(Purpose::Archive)?;
        verify_log(&to.join(LOG), source.log(), head)?;
        if copied != head {
            let reason = "the copy ends elsewhere than the log".to_owned();
            return Err(not_a_backup(to, reason));
        }
        let keys_checked = check_keys(&to.join(KEYS), master)?;
        let keys_sha256 = sha256(&to.join(KEYS))?;
        self.copy_small(to, master.filter(|_| with_keys))?;
        let manifest = Manifest {
            format: FORMAT.to_owned(),
            log: source.log(),
            commits: head.commit,
            positions: head.position,
            chain: head.chain,
            keys_sha256,
            made_at: OffsetDateTime::now_utc(),
            with_master_key: with_keys,
            keys_checked,
        };
        let text = serde_json::to_vec_pretty(&manifest).map_err(io::Error::from);
        let text = text.map_err(failed(&to.join(MANIFEST), "written"))?;
        write_private(&to.join(MANIFEST), &text)?;
        Ok(manifest)
    }

    /// The files that are copied as they are.
    fn copy_small(&self, to: &Path, keys: Option<&MasterSource>) -> Result<(), BackupError> {
        let config = self.root().join(CONFIG);
        if config.exists() {
            copy_file(&config, &to.join(CONFIG))?;
        }
        let Some(master) = keys else { return Ok(()) };
        master.load()?.store(&to.join(MASTER))?;
        let checkpoint = self.root().join(CheckpointKey::FILE);
        match checkpoint.exists() {
            true => copy_file(&checkpoint, &to.join(CheckpointKey::FILE)),
            false => Ok(()),
        }
    }
}

/// Copies the log up to and with `head`.
fn extend(
    prefix: &mut Prefix,
    source: &dyn Reader,
    head: Head,
    copy: &mut Copying,
) -> Result<(), BackupError> {
    let fault = prefix.extend(source, Some(head.position), |commits| copy.append(commits))?;
    let fault = match fault {
        Some(fault) => fault.to_string(),
        None if prefix.head == head => return Ok(()),
        None => "the log ends early".to_owned(),
    };
    Err(BackupError::Damaged {
        position: prefix.head.position,
        fault,
    })
}

/// The log's head, and a connection that sees the keyring as it was at that moment.
fn freeze(keys: &Path, source: &dyn Reader) -> Result<(Head, Connection), BackupError> {
    let failed = |source| BackupError::Keyring {
        path: keys.to_owned(),
        source,
    };
    let connect = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(keys, flags)?;
        conn.busy_timeout(Duration::from_millis(LOCK_MS_MAX))?;
        Ok(conn)
    };
    let (lock, snapshot) = (connect().map_err(failed)?, connect().map_err(failed)?);
    lock.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
    let head = source.head()?;
    // The first read of a transaction is what fixes what it sees.
    snapshot
        .execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema;")
        .map_err(failed)?;
    lock.execute_batch("ROLLBACK").map_err(failed)?;
    Ok((head, snapshot))
}

fn copy_keys(snapshot: &Connection, from: &Path, to: &Path) -> Result<(), BackupError> {
    let failed = |source| BackupError::Keyring {
        path: from.to_owned(),
        source,
    };
    // Private from birth.
    write_private(to, b"")?;
    let mut copy = Connection::open(to).map_err(failed)?;
    {
        let backup = SqliteBackup::new(snapshot, &mut copy).map_err(failed)?;
        // In one step: the source is a snapshot and small.
        if backup.step(-1).map_err(failed)? != StepResult::Done {
            let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
            return Err(failed(rusqlite::Error::SqliteFailure(busy, None)));
        }
    }
    // Without a write-ahead log the file is the whole of it.
    copy.pragma_update(None, "journal_mode", "DELETE")
        .map_err(failed)?;
    drop(copy);
    sync_file(to)
}

/// Opens the keyring with the master key where that is given.
fn check_keys(keys: &Path, master: Option<&MasterSource>) -> Result<bool, BackupError> {
    let Some(master) = master else {
        return Ok(false);
    };
    drop(Keyring::open(keys, master.load()?, true)?);
    Ok(true)
}

/// Reads all of a copied log again, from the file.
fn verify_log(dir: &Path, log: Ulid, head: Head) -> Result<(), BackupError> {
    let view = sqlite::attach(dir)?;
    let broken = |what: String| {
        BackupError::Copy(VerifyError::Broken {
            place: format!("commit {}", head.commit),
            what,
        })
    };
    if view.log() != log {
        return Err(broken(format!("it is of log {}", view.log())));
    }
    if view.head()? != head {
        return Err(broken("it does not end there".to_owned()));
    }
    verify::everything(view.as_ref(), head, Some(head))?;
    Ok(())
}

fn not_a_backup(path: &Path, reason: String) -> BackupError {
    BackupError::NotABackup {
        path: path.to_owned(),
        reason,
    }
}
