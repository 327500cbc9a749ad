//! The embedded engine: one SQLite database, `log.db`, in write-ahead mode.
//!
//! What makes a commit durable: `synchronous=FULL` in WAL mode syncs the WAL at every transaction,
//! and a group of commits is one transaction. SQLite's automatic checkpoint is off, because it
//! swallows the errors of its own syncs; [`Engine::tidy`] makes the checkpoints and reports them.
//! What SQLite can't tell is that a damaged WAL tail was dropped at recovery: that is the witness's
//! part ([`crate::events::witness`]).

mod open;
mod read;

use std::path::PathBuf;

use rusqlite::{Connection, ErrorCode, TransactionBehavior, params};

use super::{Commit, Engine, Reader};
use crate::events::error::EngineError;
use crate::events::event::Head;
use read::View;

/// Name of the database in the log's folder.
pub const FILE: &str = "log.db";
/// WAL bytes (estimated) after which a checkpoint is made (4 MiB, SQLite's own default).
const WAL_BYTES_DUE: usize = 4 * 1024 * 1024;
/// WAL pages after which a checkpoint waits for readers instead of passing them by (64 MiB).
const WAL_PAGES_MAX: i64 = 16 * 1024;
/// What a transaction adds to the WAL beside its data, in bytes: the tips of the trees once, and
/// for each event about one page of the index by stream, which is written all over.
const WAL_BYTES_PER_GROUP: usize = 24 * 1024;
const WAL_BYTES_PER_EVENT: usize = 5 * 1024;

/// The writer's connection.
pub struct Sqlite {
    view: View,
    path: PathBuf,
    wal_bytes: usize,
}

impl Engine for Sqlite {
    fn view(&self) -> &dyn Reader {
        &self.view
    }

    fn append(&mut self, at: &Head, commits: &[Commit]) -> Result<(), EngineError> {
        let written = write(&mut self.view, at, commits);
        match written {
            Ok(bytes) => {
                self.wal_bytes = self.wal_bytes.saturating_add(bytes);
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
        if self.wal_bytes < WAL_BYTES_DUE {
            return Ok(());
        }
        self.wal_bytes = 0;
        let (log_pages, done_pages) = checkpoint(&self.view.conn, "PASSIVE")?;
        if log_pages > WAL_PAGES_MAX && done_pages < log_pages {
            checkpoint(&self.view.conn, "RESTART")?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), EngineError> {
        checkpoint(&self.view.conn, "TRUNCATE").map(|_| ())
    }
}

/// Inserts the commits in one transaction; returns about how much it added to the WAL.
fn write(view: &mut View, at: &Head, commits: &[Commit]) -> Result<usize, EngineError> {
    if view.head()? != *at {
        return Err(EngineError::HeadMoved);
    }
    let mut bytes = WAL_BYTES_PER_GROUP;
    let tx = view
        .conn
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failed)?;
    {
        let mut insert_commit = tx.prepare_cached(INSERT_COMMIT).map_err(failed)?;
        let mut insert_event = tx.prepare_cached(INSERT_EVENT).map_err(failed)?;
        for commit in commits {
            let (Some(first), Some(last)) = (commit.events.first(), commit.events.last()) else {
                return Err(EngineError::Io(
                    "a commit without events reached the engine".into(),
                ));
            };
            let hashes: Vec<u8> = commit.events.iter().flat_map(|e| e.content_hash).collect();
            insert_commit
                .execute(params![
                    int(commit.number)?,
                    int(first.position)?,
                    int(last.position)?,
                    first.recorded_at_ms(),
                    first.command.to_bytes(),
                    commit.request_hash,
                    first.actor.kind,
                    first.actor.org.map(|id| id.to_string()),
                    first.actor.key.map(|id| id.to_string()),
                    first.correlation.map(|id| id.to_bytes()),
                    first.causation.map(|id| id.to_bytes()),
                    hashes,
                    commit.chain,
                ])
                .map_err(failed)?;
            for event in &commit.events {
                insert_event
                    .execute(params![
                        int(event.position)?,
                        int(event.commit)?,
                        event.id.to_bytes(),
                        event.stream.as_str(),
                        int(event.revision)?,
                        event.kind,
                        event.content_hash,
                        event.data.get(),
                    ])
                    .map_err(failed)?;
                bytes += WAL_BYTES_PER_EVENT + event.data.get().len();
            }
        }
    }
    tx.commit().map_err(failed)?;
    Ok(bytes)
}

const INSERT_COMMIT: &str = "INSERT INTO commits (number, first_position, last_position, \
     recorded_at_ms, command, request_hash, actor_kind, actor_org, actor_key, correlation, \
     causation, event_hashes, chain) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)";
const INSERT_EVENT: &str = "INSERT INTO events (position, commit_number, id, stream, revision, \
     kind, content_hash, data) VALUES (?1,?2,?3,?4,?5,?6,?7,?8)";

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
