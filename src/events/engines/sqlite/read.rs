//! Reading: rows turned into commits whose content hashes were made again.

use rusqlite::{Connection, Row};
use ulid::Ulid;

use super::witness::{Found, Witness};
use super::{failed, int};
use crate::events::engines::{Commit, READ_BYTES_MAX, Reader, record};
use crate::events::error::EngineError;
use crate::events::event::Head;

const FROM: &str = "SELECT first_position, records FROM blocks WHERE first_position >= \
     coalesce((SELECT max(first_position) FROM blocks WHERE first_position <= ?1), 0) \
     ORDER BY first_position";
const BEFORE: &str = "SELECT first_position, records FROM blocks WHERE first_position < ?1 \
     ORDER BY first_position DESC";
const HOLDING: &str = "SELECT first_position, records FROM blocks WHERE first_position <= ?1 \
     ORDER BY first_position DESC LIMIT 1";

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

    /// Commits that `wanted` takes of the rows of `sql`, until they have `limit` events or
    /// [`READ_BYTES_MAX`] is reached.
    fn page(
        &self,
        sql: &str,
        at: u64,
        limit: usize,
        rows_ascend: bool,
        wanted: impl Fn(u64, u64) -> bool,
    ) -> Result<Vec<Commit>, EngineError> {
        // A bound beyond SQLite's range is as good as its end.
        let at = int(at).unwrap_or(i64::MAX);
        let mut statement = self.conn.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query([at]).map_err(failed)?;
        let (mut page, mut events, mut bytes) = (Vec::new(), 0, 0);
        while events < limit && bytes < READ_BYTES_MAX {
            let Some(row) = rows.next().map_err(failed)? else {
                break;
            };
            // Backwards the last ones of a block are wanted, which come out last.
            let room = if rows_ascend {
                limit - events
            } else {
                usize::MAX
            };
            let mut found = block(row, room, &wanted)?;
            if !rows_ascend {
                found.reverse();
            }
            for commit in found {
                if events < limit {
                    events += commit.events.len();
                    bytes += commit.bytes();
                    page.push(commit);
                }
            }
        }
        Ok(page)
    }

    fn holding_each(&self, positions: &[u64]) -> Result<Vec<Commit>, EngineError> {
        let mut statement = self.conn.prepare_cached(HOLDING).map_err(failed)?;
        let (mut found, mut bytes): (Vec<Commit>, _) = (Vec::new(), 0);
        for &position in positions {
            if bytes >= READ_BYTES_MAX {
                break;
            }
            if found.last().is_some_and(|c| c.head().position >= position) {
                continue;
            }
            let holds = |first, last| (first..=last).contains(&position);
            let mut rows = statement
                .query([int(position).unwrap_or(i64::MAX)])
                .map_err(failed)?;
            let Some(row) = rows.next().map_err(failed)? else {
                break;
            };
            let Some(commit) = block(row, 1, holds)?.pop() else {
                break;
            };
            bytes += commit.bytes();
            found.push(commit);
        }
        Ok(found)
    }
}

impl Reader for View {
    fn log(&self) -> Ulid {
        self.log
    }

    fn head(&self) -> Result<Head, EngineError> {
        let empty = Head::beginning(self.log);
        let last = self.commits_before(u64::MAX, 1)?;
        Ok(last.first().map_or(empty, Commit::head))
    }

    fn commits(&self, from: u64, limit: usize) -> Result<Vec<Commit>, EngineError> {
        self.page(FROM, from, limit, true, |_, last| last >= from)
    }

    fn holding(&self, positions: &[u64]) -> Result<Vec<Commit>, EngineError> {
        // One transaction for all: each one by itself takes and gives back the WAL's locks.
        let run = |sql: &str| self.conn.prepare_cached(sql)?.execute([]);
        run("BEGIN").map_err(failed)?;
        let found = self.holding_each(positions);
        let ended = run("COMMIT").map_err(failed);
        let found = found?;
        ended.map(|_| found)
    }

    fn commits_before(&self, before: u64, limit: usize) -> Result<Vec<Commit>, EngineError> {
        self.page(BEFORE, before, limit, false, |first, _| first < before)
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

fn block(
    row: &Row<'_>,
    limit: usize,
    wanted: impl Fn(u64, u64) -> bool,
) -> Result<Vec<Commit>, EngineError> {
    let first: i64 = row.get(0).map_err(failed)?;
    let first = u64::try_from(first)
        .map_err(|_| EngineError::Damaged(format!("{first} where a position belongs")))?;
    let bytes = row.get_ref(1).map_err(failed)?;
    let bytes = bytes
        .as_blob()
        .map_err(|_| EngineError::Damaged(format!("event {first}: its record is not one")))?;
    record::decode(first, bytes, limit, wanted)
}
