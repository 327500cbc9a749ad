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
mod fence;
mod folder;
mod open;
mod read;
mod witness;
mod witness_task;

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, params};

use super::{Commit, Engine, Reader, record};
use crate::events::error::EngineError;
use crate::events::event::Head;
use checkpoint_task::CheckpointTask;
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
/// What a transaction adds to the WAL beside its data, in bytes: the ends of the tree, once.
const WAL_BYTES_PER_GROUP: usize = 12 * 1024;

/// Commits of one group go into a row together up to this size, in bytes: a row fills a page of
/// SQLite's and costs about the same whatever is in it. A larger commit has a row of its own.
const BLOCK_BYTES_MAX: usize = 3_900;

/// The writer's connection. The fence is the last field: it falls after the files are closed.
pub struct Sqlite {
    view: View,
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

    fn append(&mut self, at: &Head, commits: &[Commit]) -> Result<(), EngineError> {
        self.witness.check()?;
        if self.head != *at {
            return Err(EngineError::HeadMoved);
        }
        match write(&self.view, commits, self.last_block) {
            Ok(written) => {
                self.wal_bytes = self.wal_bytes.saturating_add(written.wal_bytes);
                self.last_block = written.last_block;
                if let Some(last) = commits.last() {
                    self.head = last.head();
                    self.witness.saw(self.head);
                }
                Ok(())
            }
            // "Full" promises that nothing changed; look rather than believe.
            Err(EngineError::Full) if self.view.head()? != *at => Err(EngineError::HeadMoved),
            Err(error) => Err(error),
        }
    }

    fn reader(&self) -> Result<Box<dyn Reader>, EngineError> {
        Ok(Box::new(open::reader(&self.path, self.view.log())?))
    }

    fn tidy(&mut self) -> Result<(), EngineError> {
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

fn busy_timeout(conn: &Connection, ms: u64) -> Result<(), EngineError> {
    conn.busy_timeout(Duration::from_millis(ms)).map_err(failed)
}

/// Where the last row begins; 0: there is none.
fn last_block(conn: &Connection) -> Result<i64, EngineError> {
    let sql = "SELECT coalesce(max(first_position), 0) FROM blocks";
    conn.prepare_cached(sql)
        .and_then(|mut last| last.query_row([], |row| row.get(0)))
        .map_err(failed)
}

/// Inserts the commits in one transaction, behind the row that begins at `behind` and must be the
/// last one.
fn write(view: &View, commits: &[Commit], behind: i64) -> Result<Written, EngineError> {
    let (mut bytes, mut blocks) = (Vec::new(), Vec::new());
    let (mut start, mut first_position) = (0, 0);
    for commit in commits {
        let end = bytes.len();
        record::encode(commit, &mut bytes)?;
        if end > start && bytes.len() - start > BLOCK_BYTES_MAX {
            blocks.push((first_position, start..end));
            start = end;
        }
        if start == end {
            first_position = int(commit.first_position())?;
        }
    }
    blocks.push((first_position, start..bytes.len()));
    let conn = &view.conn;
    // Statements that are kept: making one of `BEGIN` takes longer than running it.
    let run = |sql: &str| conn.prepare_cached(sql)?.execute([]);
    let transaction = || {
        run("BEGIN IMMEDIATE").map_err(failed)?;
        // The tree's end says whether somebody else wrote; reading the last commit anew would cost
        // more than writing the next one.
        if last_block(conn)? != behind {
            return Err(EngineError::HeadMoved);
        }
        insert(conn, &bytes, blocks).map_err(failed)?;
        run("COMMIT").map(drop).map_err(failed)
    };
    if let Err(error) = transaction() {
        if !conn.is_autocommit() {
            run("ROLLBACK").map_err(failed)?;
        }
        return Err(error);
    }
    Ok(Written {
        wal_bytes: WAL_BYTES_PER_GROUP + bytes.len(),
        last_block: first_position,
    })
}

/// Inserts rows, each with the position it begins at and its place in `bytes`.
fn insert(
    conn: &Connection,
    bytes: &[u8],
    blocks: Vec<(i64, Range<usize>)>,
) -> rusqlite::Result<()> {
    let mut insert = conn.prepare_cached(INSERT)?;
    for (first_position, range) in blocks {
        let records = bytes.get(range).unwrap_or_default();
        insert.execute(params![first_position, records])?;
    }
    Ok(())
}

/// What an append came to.
struct Written {
    /// About how much it added to the WAL.
    wal_bytes: usize,
    last_block: i64,
}

const INSERT: &str = "INSERT INTO blocks (first_position, records) VALUES (?1, ?2)";

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
