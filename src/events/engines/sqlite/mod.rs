//! The embedded engine: one SQLite database, `log.db`, in write-ahead mode, with a lock and a
//! witness beside it.
//!
//! What makes a commit durable: `synchronous=FULL` in WAL mode syncs the WAL at every transaction,
//! and a group of commits is one transaction. SQLite's automatic checkpoint is off, because it
//! swallows the errors of its own syncs; [`Engine::tidy`] has the checkpoints made, most of each beside
//! the writer (`checkpoint_task.rs`), and reports their errors.
//! What SQLite can't tell is that a damaged WAL tail was dropped at recovery: that is the witness's
//! part (`witness.rs`). Commits lie in the order of the log and nothing else is kept here, so a group
//! dirties the few pages at the end of one tree.

mod checkpoint_task;
mod draft;
mod fence;
mod folder;
mod open;
mod read;
mod witness;
mod witness_task;

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use super::{Commit, Engine, Reader};
use crate::events::error::EngineError;
use crate::events::event::Head;
use checkpoint_task::CheckpointTask;
use draft::Draft;
use read::View;
use witness_task::WitnessTask;

pub use fence::Fence;
pub use folder::{Copying, Held, Purpose, attach};
pub use open::{accept_head, doubt};

/// Name of the database in the log's folder.
pub const FILE: &str = "log.db";
/// WAL bytes (estimated) after which a checkpoint begins (4 MiB, SQLite's own default).
const WAL_BYTES_DUE: usize = 4 * 1024 * 1024;
/// WAL bytes (estimated) at which the writer waits for the checkpoint that is under way (64 MiB).
const WAL_BYTES_MAX: usize = 64 * 1024 * 1024;
/// WAL pages after which a checkpoint waits for readers instead of passing them by (64 MiB).
const WAL_PAGES_MAX: i64 = if cfg!(test) { 256 } else { 16 * 1024 };
/// How long it then waits, in milliseconds: the writer stands still meanwhile.
const RESTART_MS_MAX: u64 = 50;
/// The writer's connection. The fence is the last field: it falls after the files are closed.
pub struct Sqlite {
    view: View,
    /// The group that is gathering.
    draft: Draft,
    draft_failed: bool,
    /// Where the log ends, and where its last row begins (0: there is none).
    head: Head,
    last_block: i64,
    path: PathBuf,
    /// Made when the first checkpoint is due.
    checkpoints: Option<CheckpointTask>,
    wal_bytes: usize,
    witness: WitnessTask,
    /// Until the log was proved, its witness says what it said when the log was opened.
    witness_is_behind: bool,
    #[expect(dead_code, reason = "held for its drop")]
    fence: Fence,
}

impl Engine for Sqlite {
    fn view(&self) -> &dyn Reader {
        &self.view
    }

    fn announce(&mut self, at: &Head, commit: &Commit) {
        // Nothing is lost by an error: the append does it anew and meets it, if it still is one.
        // Until then nothing more is tried, since whoever is in the way is waited for.
        if !self.draft_failed && self.follow(at, commit).is_err() {
            self.draft_failed = true;
            let _ = self.draft.give_up(&self.view.conn);
        }
    }

    fn append(&mut self, at: &Head, commits: &[Commit]) -> Result<(), EngineError> {
        let written = self.write(at, commits);
        let undone = match written {
            Ok(()) => return Ok(()),
            Err(_) => self.draft.give_up(&self.view.conn),
        };
        undone?;
        match written {
            // "Full" promises that nothing changed; look rather than believe.
            Err(EngineError::Full) if self.view.head()? != *at => Err(EngineError::HeadMoved),
            written => written,
        }
    }

    fn reader(&self) -> Result<Box<dyn Reader>, EngineError> {
        Ok(Box::new(open::reader(&self.path, self.view.log())?))
    }

    fn tidy(&mut self) -> Result<(), EngineError> {
        // Of a group that came to nothing.
        self.draft_failed = false;
        self.draft.give_up(&self.view.conn)?;
        if std::mem::take(&mut self.witness_is_behind) {
            self.witness.saw(self.view.head()?);
        }
        let checkpoints = match &mut self.checkpoints {
            Some(checkpoints) => checkpoints,
            None if self.wal_bytes < WAL_BYTES_DUE => return Ok(()),
            None => {
                let started = CheckpointTask::start(self.path.clone());
                let started = started.map_err(|error| EngineError::Io(error.to_string()))?;
                self.checkpoints.insert(started)
            }
        };
        if !checkpoints.is_under_way() {
            if self.wal_bytes >= WAL_BYTES_DUE {
                checkpoints.begin();
            }
            return Ok(());
        }
        let Some(ended) = checkpoints.ended(self.wal_bytes >= WAL_BYTES_MAX) else {
            return Ok(());
        };
        ended?;
        self.wal_bytes = 0;
        let (log_pages, done_pages) = checkpoint(&self.view.conn, "PASSIVE")?;
        if log_pages > WAL_PAGES_MAX && done_pages < log_pages {
            // A reader that takes longer is passed by until the next checkpoint is due.
            busy_timeout(&self.view.conn, RESTART_MS_MAX)?;
            let restarted = checkpoint(&self.view.conn, "RESTART");
            busy_timeout(&self.view.conn, open::BUSY_MS_MAX)?;
            restarted?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), EngineError> {
        self.draft.give_up(&self.view.conn)?;
        self.witness.finish()?;
        if let Some(mut checkpoints) = self.checkpoints.take()
            && checkpoints.is_under_way()
            && let Some(ended) = checkpoints.ended(true)
        {
            ended?;
        }
        checkpoint(&self.view.conn, "TRUNCATE").map(|_| ())
    }
}

impl Sqlite {
    /// Writes `commit` down behind `at`, to where the log or the draft reaches.
    fn follow(&mut self, at: &Head, commit: &Commit) -> Result<(), EngineError> {
        if self.draft.head().unwrap_or(self.head) != *at {
            self.draft.give_up(&self.view.conn)?;
            if self.head != *at {
                return Err(EngineError::HeadMoved);
            }
        }
        self.draft.add(&self.view.conn, self.last_block, commit)
    }

    fn write(&mut self, at: &Head, commits: &[Commit]) -> Result<(), EngineError> {
        self.witness.check()?;
        if self.head != *at {
            return Err(EngineError::HeadMoved);
        }
        let conn = &self.view.conn;
        if !self.draft.holds(commits) {
            self.draft.give_up(conn)?;
            for commit in commits {
                self.draft.add(conn, self.last_block, commit)?;
            }
        }
        let written = self.draft.finish(conn)?;
        self.wal_bytes = self.wal_bytes.saturating_add(written.wal_bytes);
        self.last_block = written.last_block;
        if let Some(last) = commits.last() {
            self.head = last.head();
            self.witness.saw(self.head);
        }
        Ok(())
    }
}

fn busy_timeout(conn: &Connection, ms: u64) -> Result<(), EngineError> {
    conn.busy_timeout(Duration::from_millis(ms)).map_err(failed)
}

/// Copies WAL pages into the database and syncs it. Returns pages in the WAL and pages copied.
///
/// A full disk is not an error here: everything stays in the WAL, which is as durable, and the
/// next append finds out. Any other failure is one of sync or storage.
fn checkpoint(conn: &Connection, mode: &str) -> Result<(i64, i64), EngineError> {
    let run = conn.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| {
        Ok((row.get(1)?, row.get(2)?))
    });
    match run.map_err(failed) {
        Err(EngineError::Full) => Ok((0, 0)),
        other => other,
    }
}

/// SQLite's integers are signed; a log of 2^63 events is not a case, a corrupted number is.
fn int(number: u64) -> Result<i64, EngineError> {
    i64::try_from(number)
        .map_err(|_| EngineError::Damaged(format!("{number} is beyond the log's range")))
}

/// SQLite's error in the log's words.
fn failed(error: rusqlite::Error) -> EngineError {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
    match &error {
        rusqlite::Error::SqliteFailure(code, _) => match code.code {
            ErrorCode::DiskFull => EngineError::Full,
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
                EngineError::Damaged(error.to_string())
            }
            _ => EngineError::Io(error.to_string()),
        },
        FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) => {
            EngineError::Damaged(error.to_string())
        }
        _ => EngineError::Io(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a reader that takes long (a verify of a large log) holds up the writer for a moment
    /// only, and the writer's patience with locks is as before. Method: a reader that does not end,
    /// and a write-ahead log beyond its bound.
    #[test]
    fn a_long_read_does_not_hold_up_the_writer() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut engine = Sqlite::open(dir.path()).expect("opened");
        let reader = Connection::open(dir.path().join(FILE)).expect("opened");
        reader
            .execute_batch("BEGIN; SELECT count(*) FROM blocks;")
            .expect("begun");
        let fill = "CREATE TABLE filler (bytes); INSERT INTO filler VALUES (zeroblob(4000000));";
        engine.view.conn.execute_batch(fill).expect("filled");
        engine.wal_bytes = WAL_BYTES_DUE;
        let begun = std::time::Instant::now();
        engine.tidy().expect("begun");
        while engine
            .checkpoints
            .as_ref()
            .is_some_and(CheckpointTask::is_under_way)
        {
            engine.tidy().expect("a reader is no error");
        }
        let took = begun.elapsed();
        let (pages, done) = checkpoint(&engine.view.conn, "PASSIVE").expect("looked");
        assert!(
            pages > WAL_PAGES_MAX && done < pages,
            "nobody was waited for"
        );
        assert!(
            took < Duration::from_millis(open::BUSY_MS_MAX / 2),
            "{took:?}"
        );
        let patience: i64 = engine
            .view
            .conn
            .pragma_query_value(None, "busy_timeout", |row| row.get(0))
            .expect("read");
        assert_eq!(patience, open::BUSY_MS_MAX.cast_signed());
    }

    /// Goal: the write-ahead log stays small under a writer that never rests, though others copy it.
    /// Method: many times what it may hold, with upkeep after each group.
    #[test]
    fn the_write_ahead_log_begins_anew_while_the_writer_goes_on() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut engine = Sqlite::open(dir.path()).expect("opened");
        let wal = dir.path().join(format!("{FILE}-wal"));
        let conn = Connection::open(dir.path().join(FILE)).expect("opened");
        conn.execute_batch("PRAGMA wal_autocheckpoint = 0; CREATE TABLE filler (bytes)")
            .expect("made");
        for _ in 0..200 {
            conn.execute("INSERT INTO filler VALUES (zeroblob(500000))", [])
                .expect("filled");
            engine.wal_bytes += 500_000;
            engine.tidy().expect("upkeep");
        }
        let bytes = std::fs::metadata(&wal).expect("a WAL").len();
        assert!(bytes < 2 * WAL_BYTES_MAX as u64, "{bytes}");
        let pages: i64 = conn
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .expect("read");
        assert!(pages * 4_096 > 90_000_000, "only {pages} pages");
    }

    /// Goal: a full disk is told apart from damage and from everything else.
    #[test]
    fn sqlite_errors_are_sorted_by_what_the_writer_must_do() {
        let sorted = |code: i32| {
            failed(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(code),
                None,
            ))
        };
        assert!(matches!(
            sorted(rusqlite::ffi::SQLITE_FULL),
            EngineError::Full
        ));
        assert!(matches!(
            sorted(rusqlite::ffi::SQLITE_CORRUPT),
            EngineError::Damaged(_)
        ));
        assert!(matches!(
            sorted(rusqlite::ffi::SQLITE_NOTADB),
            EngineError::Damaged(_)
        ));
        assert!(matches!(
            sorted(rusqlite::ffi::SQLITE_IOERR_FSYNC),
            EngineError::Io(_)
        ));
        assert!(matches!(
            sorted(rusqlite::ffi::SQLITE_CONSTRAINT),
            EngineError::Io(_)
        ));
    }
}
