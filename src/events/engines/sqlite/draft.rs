//! A group of commits on its way into the database: written down one by one while the group still
//! gathers, made durable in one go.
//!
//! Invariants: the commits of a draft are in one transaction, which nobody sees and nothing survives
//! until [`Draft::finish`]; a draft that is given up leaves no trace.

use rusqlite::{Connection, params};

use super::{failed, int};
use crate::events::engines::{Commit, record};
use crate::events::error::EngineError;
use crate::events::event::Head;

/// Commits of one group go into a row together up to this size, in bytes: a row fills a page of
/// SQLite's and costs about the same whatever is in it. A larger commit has a row of its own.
const BLOCK_BYTES_MAX: usize = 3_900;
/// What a transaction adds to the WAL beside its data, in bytes: the ends of the tree, once.
const WAL_BYTES_PER_GROUP: usize = 12 * 1024;

const INSERT: &str = "INSERT INTO blocks (first_position, records) VALUES (?1, ?2)";

/// What was written down so far.
#[derive(Default)]
pub struct Draft {
    /// Where the log ends with it; `None`: nothing is in it.
    head: Option<Head>,
    commits: usize,
    /// The commits of the row that is being filled, and the position it begins at.
    block: Vec<u8>,
    first_position: i64,
    bytes: usize,
}

/// What a draft came to.
pub struct Written {
    /// About how much it added to the WAL.
    pub wal_bytes: usize,
    /// Where the last row begins.
    pub last_block: i64,
}

impl Draft {
    /// Where the log ends with what is in the draft.
    pub fn head(&self) -> Option<Head> {
        self.head
    }

    /// Whether it has exactly these commits: the last one's chain hash stands for all before it.
    pub fn holds(&self, commits: &[Commit]) -> bool {
        self.head == commits.last().map(Commit::head) && self.commits == commits.len()
    }

    /// Takes the next commit in. The first one is put behind the row that begins at `behind`, which
    /// must be the last one. After an error the draft is to be given up.
    pub fn add(
        &mut self,
        conn: &Connection,
        behind: i64,
        commit: &Commit,
    ) -> Result<(), EngineError> {
        if self.head.is_none() {
            run(conn, "BEGIN IMMEDIATE")?;
            // The tree's end says whether somebody else wrote; reading the last commit anew would
            // cost more than writing the next one.
            if last_block(conn)? != behind {
                return Err(EngineError::HeadMoved);
            }
        }
        let (end, first_position) = (self.block.len(), int(commit.first_position())?);
        record::encode(commit, &mut self.block)?;
        self.bytes += self.block.len() - end;
        if end > 0 && self.block.len() > BLOCK_BYTES_MAX {
            self.insert(conn, end)?;
            self.block.drain(..end);
            self.first_position = first_position;
        } else if end == 0 {
            self.first_position = first_position;
        }
        self.head = Some(commit.head());
        self.commits += 1;
        Ok(())
    }

    /// Makes it durable. Empty afterwards; after an error it is to be given up.
    pub fn finish(&mut self, conn: &Connection) -> Result<Written, EngineError> {
        self.insert(conn, self.block.len())?;
        run(conn, "COMMIT")?;
        let written = Written {
            wal_bytes: WAL_BYTES_PER_GROUP + self.bytes,
            last_block: self.first_position,
        };
        self.clear();
        Ok(written)
    }

    /// Undoes what was written down.
    pub fn give_up(&mut self, conn: &Connection) -> Result<(), EngineError> {
        self.clear();
        match conn.is_autocommit() {
            true => Ok(()),
            false => run(conn, "ROLLBACK"),
        }
    }

    fn insert(&self, conn: &Connection, end: usize) -> Result<(), EngineError> {
        let records = self.block.get(..end).unwrap_or_default();
        conn.prepare_cached(INSERT)
            .and_then(|mut insert| insert.execute(params![self.first_position, records]))
            .map(drop)
            .map_err(failed)
    }

    fn clear(&mut self) {
        let mut block = std::mem::take(&mut self.block);
        block.clear();
        // A large commit must not hold on to its memory.
        block.shrink_to(4 * BLOCK_BYTES_MAX);
        *self = Draft {
            block,
            ..Draft::default()
        };
    }
}

/// Where the last row begins; 0: there is none.
pub fn last_block(conn: &Connection) -> Result<i64, EngineError> {
    let sql = "SELECT coalesce(max(first_position), 0) FROM blocks";
    conn.prepare_cached(sql)
        .and_then(|mut last| last.query_row([], |row| row.get(0)))
        .map_err(failed)
}

/// Runs a statement that is kept: making one of `BEGIN` takes longer than running it.
fn run(conn: &Connection, sql: &str) -> Result<(), EngineError> {
    conn.prepare_cached(sql)
        .and_then(|mut statement| statement.execute([]))
        .map(drop)
        .map_err(failed)
}
