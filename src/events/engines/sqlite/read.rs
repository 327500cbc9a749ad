//! Reading: rows turned into commits whose content hashes were made again.

use rusqlite::{Connection, OptionalExtension, Row};
use ulid::Ulid;

use super::witness::{Found, Witness};
use super::{failed, int};
use crate::events::chain;
use crate::events::engines::{Commit, READ_BYTES_MAX, Reader, record};
use crate::events::error::EngineError;
use crate::events::event::Head;

const FROM: &str = "SELECT first_position, record FROM commits WHERE first_position >= \
     coalesce((SELECT max(first_position) FROM commits WHERE first_position <= ?1), 0) \
     ORDER BY first_position";
const BEFORE: &str = "SELECT first_position, record FROM commits WHERE first_position < ?1 \
     ORDER BY first_position DESC";
const LAST: &str =
    "SELECT first_position, record FROM commits ORDER BY first_position DESC LIMIT 1";

/// One connection's view of the log.
pub struct View {
    pub(super) conn: Connection,
    dir: std::path::PathBuf,
    log: Ulid,
}

impl View {
    pub(super) fn new(conn: Connection, dir: std::path::PathBuf, log: Ulid) -> Self {
        Self { conn, dir, log }
    }

    /// Commits of the rows of `sql`, until `limit` or [`READ_BYTES_MAX`] is reached.
    fn page(&self, sql: &str, at: u64, limit: usize) -> Result<Vec<Commit>, EngineError> {
        // A bound beyond SQLite's range is as good as its end.
        let at = int(at).unwrap_or(i64::MAX);
        let mut statement = self.conn.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query([at]).map_err(failed)?;
        let (mut page, mut bytes) = (Vec::new(), 0);
        while page.len() < limit && bytes < READ_BYTES_MAX {
            let Some(row) = rows.next().map_err(failed)? else {
                break;
            };
            let commit = commit(row)?;
            bytes += commit.bytes();
            page.push(commit);
        }
        Ok(page)
    }
}

impl Reader for View {
    fn log(&self) -> Ulid {
        self.log
    }

    fn head(&self) -> Result<Head, EngineError> {
        let mut statement = self.conn.prepare_cached(LAST).map_err(failed)?;
        let last = statement
            .query_row([], |row| Ok(commit(row)))
            .optional()
            .map_err(failed)?;
        match last {
            None => Ok(Head {
                position: 0,
                commit: 0,
                chain: chain::genesis(self.log),
            }),
            Some(commit) => Ok(commit?.head()),
        }
    }

    fn commits(&self, from: u64, limit: usize) -> Result<Vec<Commit>, EngineError> {
        let mut page = self.page(FROM, from, limit)?;
        // The row found by its first position may end before `from`: only when `from` is beyond
        // the end of the log.
        if page.first().is_some_and(|c| c.head().position < from) {
            page.remove(0);
        }
        Ok(page)
    }

    fn commits_before(&self, before: u64, limit: usize) -> Result<Vec<Commit>, EngineError> {
        self.page(BEFORE, before, limit)
    }

    fn witnessed(&self) -> Result<Option<Head>, EngineError> {
        let lost = |what: &str| Err(EngineError::Damaged(format!("the witness is {what}")));
        match Witness::look(&self.dir) {
            Ok(Found::Seen(seen)) if seen.log == self.log => Ok(Some(seen.head)),
            Ok(Found::Seen(_)) => lost("of another log"),
            Ok(_) => lost("missing or unreadable"),
            Err(error) => Err(EngineError::Io(error.to_string())),
        }
    }

    fn check_files(&self) -> Result<(), EngineError> {
        let said: String = self
            .conn
            .pragma_query_value(None, "integrity_check", |row| row.get(0))
            .map_err(failed)?;
        if said == "ok" {
            Ok(())
        } else {
            Err(EngineError::Damaged(said))
        }
    }
}

fn commit(row: &Row<'_>) -> Result<Commit, EngineError> {
    let first: i64 = row.get(0).map_err(failed)?;
    let first = u64::try_from(first)
        .map_err(|_| EngineError::Damaged(format!("{first} where a position belongs")))?;
    let bytes = row.get_ref(1).map_err(failed)?;
    let bytes = bytes
        .as_blob()
        .map_err(|_| EngineError::Damaged(format!("event {first}: its record is not one")))?;
    record::decode(first, bytes)
}
