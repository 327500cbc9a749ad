//! Opening and creating the database; every setting durability rests on is set, then read back, and
//! the log's end is held against its witness. A refused opening changes nothing but the lock file.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use ulid::Ulid;

use super::draft::{Draft, last_block};
use super::fence::Fence;
use super::read::View;
use super::witness::{Found, Seen, Witness};
use super::witness_task::WitnessTask;
use super::{FILE, Sqlite, failed};
use crate::events::engines::Reader;
use crate::events::error::{EngineError, OpenError};
use crate::events::event::Head;
use crate::events::pragmas::{self, Unset};

/// The format this program writes, in SQLite's `user_version`.
const FORMAT: i64 = 2;
/// Marks the file as ours, in SQLite's `application_id` ("OClg").
const APPLICATION: i64 = 0x4f43_6c67;
/// How long a connection waits for another one's lock, in milliseconds.
pub(super) const BUSY_MS_MAX: u64 = 5_000;
/// Settings of the writer: name, value to set, value it must then have.
const PRAGMAS: [(&str, &str, &str); 6] = [
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", "2"),
    ("wal_autocheckpoint", "0", "0"),
    ("foreign_keys", "ON", "1"),
    ("cell_size_check", "ON", "1"),
    ("mmap_size", "0", "0"),
];

impl Sqlite {
    /// Opens the log in `dir`, or creates it there, and holds its end against the witness. Its
    /// content is for the caller to verify; the witness catches up at the first [`super::Engine::tidy`].
    pub fn open(dir: &Path) -> Result<Sqlite, OpenError> {
        make_folder(dir).map_err(|error| io_error(dir, "created", &error))?;
        let fence = Fence::raise(dir)?;
        let found =
            Witness::look(dir).map_err(|error| io_error(&Witness::path(dir), "read", &error))?;
        let Some(view) = database(dir, found == Found::Missing)? else {
            return Err(match found {
                Found::Seen(seen) => behind(dir, 0, 0, &seen.head),
                _ => nothing_left(dir),
            });
        };
        let (witness, seen) = witness(dir, &view, found)?;
        let witness = WitnessTask::start(witness, seen)
            .map_err(|error| io_error(dir, "given a thread for its witness", &error))?;
        // What an earlier run left in the WAL counts towards the next checkpoint.
        let wal = std::fs::metadata(dir.join(format!("{FILE}-wal"))).map_or(0, |meta| meta.len());
        let told = |error| doubt(dir, error);
        Ok(Sqlite {
            draft: Draft::default(),
            draft_failed: false,
            head: view.head().map_err(told)?,
            last_block: last_block(&view.conn).map_err(told)?,
            view,
            path: dir.join(FILE),
            checkpoints: None,
            wal_bytes: usize::try_from(wal).unwrap_or(usize::MAX),
            witness,
            witness_is_behind: true,
            fence,
        })
    }
}

/// Makes a new witness for the log in `dir`, which `prove` has found whole: gives up whatever the old
/// witness proved to be missing.
pub fn accept_head(
    dir: &Path,
    prove: impl FnOnce(&dyn Reader) -> Result<Head, OpenError>,
) -> Result<Head, OpenError> {
    let _fence = Fence::raise(dir)?;
    let view = database(dir, false)?.ok_or_else(|| nothing_left(dir))?;
    let head = prove(&view)?;
    let log = view.log();
    Witness::create(dir, &Seen { log, head })
        .map_err(|error| io_error(&Witness::path(dir), "written", &error))?;
    Ok(head)
}

/// Makes the folder when it is missing, and syncs its entry in the parent: a new folder must not
/// vanish in a power cut with everything that was synced inside it.
pub(super) fn make_folder(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    match dir.canonicalize()?.parent() {
        Some(parent) => std::fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// The witness of a log that reaches it, or a first one for a log without an event.
fn witness(dir: &Path, view: &View, found: Found) -> Result<(Witness, Seen), OpenError> {
    let path = Witness::path(dir);
    let (log, head) = (view.log(), view.head().map_err(|error| doubt(dir, error))?);
    let lost = |state| OpenError::WitnessLost {
        path: path.clone(),
        state,
    };
    let (seen, opened) = match found {
        Found::Seen(seen) if seen.log == log => (seen, Witness::open(dir)),
        Found::Seen(_) => return Err(lost("of another log")),
        Found::Unreadable => return Err(lost("unreadable")),
        Found::Missing if head.commit > 0 => return Err(lost("missing")),
        Found::Missing => {
            let seen = Seen { log, head };
            (seen, Witness::create(dir, &seen))
        }
    };
    if head.commit < seen.head.commit || head.position < seen.head.position {
        return Err(behind(dir, head.position, head.commit, &seen.head));
    }
    let witness = opened.map_err(|error| io_error(&path, "written", &error))?;
    Ok((witness, seen))
}

/// Opens the database in `dir`. Where there is none it is created if `may_create`, else the answer
/// is `None` and the folder is as it was. The caller holds the fence.
pub(super) fn database(dir: &Path, may_create: bool) -> Result<Option<View>, OpenError> {
    let path = dir.join(FILE);
    // Asked before SQLite sees the file: it throws away the WAL of an empty database.
    let empty = std::fs::metadata(&path).map_or(true, |meta| meta.len() == 0);
    if empty && !may_create {
        return Ok(None);
    }
    // Made by us first, so that it (and the WAL, which takes its mode) is private from birth.
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| OpenError::Io {
            path: path.clone(),
            action: "opened",
            detail: error.to_string(),
        })?;
    let told = |error: EngineError| match error {
        EngineError::Damaged(detail) => OpenError::Damaged {
            dir: dir.to_owned(),
            detail,
        },
        other => OpenError::Io {
            path: path.clone(),
            action: "opened",
            detail: other.to_string(),
        },
    };
    let mut conn = connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(told)?;
    let pragma = |conn: &Connection, name: &str| {
        pragmas::read(conn, name).map_err(|error| told(failed(error)))
    };
    let found = pragma(&conn, "user_version")?;
    match found.parse::<i64>() {
        Ok(FORMAT) => {}
        Ok(0) if may_create => {}
        // All of it was in a WAL that is gone.
        Ok(0) => return Ok(None),
        Ok(found) => {
            return Err(OpenError::Format {
                dir: dir.to_owned(),
                found,
                known: FORMAT,
            });
        }
        Err(_) => return Err(told(EngineError::Damaged(format!("format {found:?}")))),
    }
    settle(&conn).map_err(told)?;
    if found == "0" {
        create(&mut conn).map_err(told)?;
    }
    if pragma(&conn, "application_id")? != APPLICATION.to_string() {
        return Err(told(EngineError::Damaged(format!(
            "{FILE} is not an event log"
        ))));
    }
    let log = log_id(&conn).map_err(told)?;
    Ok(Some(View::new(conn, dir.to_owned(), log)))
}

/// Gives a connection that writes its settings.
pub(super) fn settle(conn: &Connection) -> Result<(), EngineError> {
    pragmas::hold(conn, &PRAGMAS).map_err(|unset| match unset {
        Unset::Sqlite(error) => failed(error),
        refused @ Unset::Refused { .. } => EngineError::Io(refused.to_string()),
    })
}

fn nothing_left(dir: &Path) -> OpenError {
    OpenError::Damaged {
        dir: dir.to_owned(),
        detail: format!("{FILE} is missing or empty"),
    }
}

fn behind(dir: &Path, log_position: u64, log_commit: u64, seen: &Head) -> OpenError {
    OpenError::BehindWitness {
        dir: dir.to_owned(),
        log_position,
        log_commit,
        witness_position: seen.position,
        witness_commit: seen.commit,
    }
}

/// An engine's error while opening. What is not a matter of access is taken as damage.
pub fn doubt(dir: &Path, error: EngineError) -> OpenError {
    match error {
        EngineError::Damaged(detail) => OpenError::Damaged {
            dir: dir.to_owned(),
            detail,
        },
        other => OpenError::Io {
            path: dir.join(FILE),
            action: "read",
            detail: other.to_string(),
        },
    }
}

pub(super) fn io_error(path: &Path, action: &'static str, error: &io::Error) -> OpenError {
    OpenError::Io {
        path: path.to_owned(),
        action,
        detail: error.to_string(),
    }
}

/// A connection that can only read.
pub fn reader(path: &Path, log: Ulid) -> Result<View, EngineError> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    conn.pragma_update(None, "query_only", "ON")
        .map_err(failed)?;
    let dir = path.parent().unwrap_or(path).to_owned();
    Ok(View::new(conn, dir, log))
}

pub(super) fn connect(path: &Path, access: OpenFlags) -> Result<Connection, EngineError> {
    // No mutex: a connection is never shared between threads, only handed over.
    let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(failed)?;
    conn.busy_timeout(Duration::from_millis(BUSY_MS_MAX))
        .map_err(failed)?;
    for (config, on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        // Closing must not touch a log that was refused; `Engine::close` checkpoints on purpose.
        (DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true),
    ] {
        conn.set_db_config(config, on).map_err(failed)?;
    }
    conn.set_prepared_statement_cache_capacity(32);
    Ok(conn)
}

/// Schema, format and identity in one transaction: after a crash there is all of it or nothing.
fn create(conn: &mut Connection) -> Result<(), EngineError> {
    let tx = conn
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failed)?;
    tx.execute_batch(include_str!("schema.sql"))
        .map_err(failed)?;
    tx.execute(
        "INSERT INTO log (id) VALUES (?1)",
        [Ulid::generate().to_bytes()],
    )
    .map_err(failed)?;
    tx.pragma_update(None, "application_id", APPLICATION)
        .map_err(failed)?;
    tx.pragma_update(None, "user_version", FORMAT)
        .map_err(failed)?;
    tx.commit().map_err(failed)
}

pub(super) fn log_id(conn: &Connection) -> Result<Ulid, EngineError> {
    let bytes: [u8; 16] = conn
        .query_row("SELECT id FROM log", [], |row| row.get(0))
        .map_err(|error| match error {
            rusqlite::Error::QueryReturnedNoRows => {
                EngineError::Damaged("the log has no identity".into())
            }
            other => failed(other),
        })?;
    Ok(Ulid::from_bytes(bytes))
}
