//! Where the keyring keeps its keys: `keys.db`, one wrapped data key a stream. No cipher here.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, TransactionBehavior, params};
use time::OffsetDateTime;

use super::KeyError;
use super::cipher::NONCE_BYTES;
use crate::events::event::unix_ms;
use crate::events::pragmas::{self, Unset};
use crate::events::stream::StreamId;

/// Keys handled between two looks at the table.
const PAGE: i64 = 256;
/// How long to wait for another program that reads the file, in milliseconds.
const BUSY_MS_MAX: u64 = 5_000;
/// Name, value to set, value it must then have.
const PRAGMAS: [(&str, &str, &str); 5] = [
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", "2"),
    ("secure_delete", "ON", "1"),
    ("cell_size_check", "ON", "1"),
    ("mmap_size", "0", "0"),
];
const SCHEMA: &str = "
    CREATE TABLE keyring (
        id          INTEGER PRIMARY KEY CHECK (id = 1),
        check_nonce BLOB NOT NULL,
        check_value BLOB NOT NULL
    ) STRICT;
    CREATE TABLE data_keys (
        id             INTEGER PRIMARY KEY,
        stream         TEXT NOT NULL UNIQUE,
        version        INTEGER NOT NULL,
        nonce          BLOB NOT NULL,
        wrapped        BLOB NOT NULL,
        created_at_ms  INTEGER NOT NULL,
        shredded_at_ms INTEGER
    ) STRICT;";
const KEYS: &str = "SELECT id, stream, version, nonce, wrapped, shredded_at_ms FROM data_keys";
const CHECK: &str =
    "INSERT OR REPLACE INTO keyring (id, check_nonce, check_value) VALUES (1, ?1, ?2)";

/// Something encrypted: nonce and ciphertext.
pub type Wrapped = ([u8; NONCE_BYTES], Vec<u8>);

/// A stored data key.
pub struct KeyRow {
    id: i64,
    pub stream: String,
    pub version: u32,
    pub nonce: Vec<u8>,
    pub wrapped: Vec<u8>,
    pub shredded: bool,
}

/// The open database.
pub struct Store {
    conn: Connection,
    path: PathBuf,
}

impl Store {
    /// Opens `path`. A missing or empty keyring is made with the check record that `first_check`
    /// gives, unless `must_exist`.
    pub fn open(
        path: &Path,
        must_exist: bool,
        first_check: impl FnOnce() -> Result<Wrapped, KeyError>,
    ) -> Result<Store, KeyError> {
        let lost = || KeyError::Lost {
            path: path.to_owned(),
        };
        let failed = |error: rusqlite::Error| store_error(path, &error);
        if must_exist && is_empty(path) {
            return Err(lost());
        }
        // Made by us first, so that it (and the WAL, which takes its mode) is private from birth.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| KeyError::Io {
                path: path.to_owned(),
                action: "opened",
                detail: error.to_string(),
            })?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut conn = Connection::open_with_flags(path, flags).map_err(failed)?;
        conn.busy_timeout(Duration::from_millis(BUSY_MS_MAX))
            .map_err(failed)?;
        pragmas::hold(&conn, &PRAGMAS).map_err(|unset| match unset {
            Unset::Sqlite(error) => failed(error),
            refused @ Unset::Refused { .. } => KeyError::Store {
                path: path.to_owned(),
                detail: refused.to_string(),
            },
        })?;
        let tx = conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let sql = "SELECT count(*) > 0 FROM sqlite_schema";
        let has_tables: bool = tx.query_row(sql, [], |row| row.get(0)).map_err(failed)?;
        if !has_tables {
            if must_exist {
                return Err(lost());
            }
            let (nonce, value) = first_check()?;
            tx.execute_batch(SCHEMA).map_err(failed)?;
            tx.execute(CHECK, params![nonce, value]).map_err(failed)?;
        }
        tx.commit().map_err(failed)?;
        Ok(Store {
            conn,
            path: path.to_owned(),
        })
    }

    /// Nonce and ciphertext of the check record.
    pub fn check_record(&self) -> Result<(Vec<u8>, Vec<u8>), KeyError> {
        let sql = "SELECT check_nonce, check_value FROM keyring WHERE id = 1";
        self.conn
            .query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
            .map_err(|error| self.failed(&error))
    }

    /// The stream's key, shredded or not.
    pub fn find(&self, stream: &StreamId) -> Result<Option<KeyRow>, KeyError> {
        self.conn
            .prepare_cached(&format!("{KEYS} WHERE stream = ?1"))
            .and_then(|mut sql| sql.query_row([stream.as_str()], KeyRow::read).optional())
            .map_err(|error| self.failed(&error))
    }

    /// Stores a stream's first key; on disk when this returns.
    pub fn insert(&self, stream: &StreamId, version: u32, key: &Wrapped) -> Result<(), KeyError> {
        let sql = "INSERT INTO data_keys (stream, version, nonce, wrapped, created_at_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5)";
        self.conn
            .execute(
                sql,
                params![stream.as_str(), version, key.0, key.1, now_ms()],
            )
            .map_err(|error| self.failed(&error))?;
        Ok(())
    }

    /// Overwrites a stream's key with zeros; returns whether there was one. Not deleted but blanked
    /// in place and size: no copy is moved about the page, and the row goes on saying that this
    /// stream must never get a key again.
    pub fn blank(&self, stream: &StreamId) -> Result<bool, KeyError> {
        let sql = "UPDATE data_keys SET nonce = zeroblob(length(nonce)), \
             wrapped = zeroblob(length(wrapped)), shredded_at_ms = ?2 \
             WHERE stream = ?1 AND shredded_at_ms IS NULL";
        let changed = self.conn.execute(sql, params![stream.as_str(), now_ms()]);
        Ok(changed.map_err(|error| self.failed(&error))? > 0)
    }

    /// Replaces every live key by what `wrap` makes of it, and the check record, in one
    /// transaction. Returns the number of keys.
    pub fn rewrap(
        &mut self,
        check: &Wrapped,
        wrap: impl Fn(&KeyRow) -> Result<Wrapped, KeyError>,
    ) -> Result<usize, KeyError> {
        let Self { conn, path } = self;
        let failed = |error: rusqlite::Error| store_error(path, &error);
        let tx = conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let select =
            format!("{KEYS} WHERE id > ?1 AND shredded_at_ms IS NULL ORDER BY id LIMIT {PAGE}");
        let (mut last, mut count) = (i64::MIN, 0);
        loop {
            let page: Result<Vec<KeyRow>, _> = tx
                .prepare_cached(&select)
                .and_then(|mut sql| sql.query_map([last], KeyRow::read)?.collect());
            let page = page.map_err(failed)?;
            let Some(row) = page.last() else { break };
            last = row.id;
            for row in &page {
                let (nonce, wrapped) = wrap(row)?;
                let sql = "UPDATE data_keys SET nonce = ?2, wrapped = ?3 WHERE id = ?1";
                tx.execute(sql, params![row.id, nonce, wrapped])
                    .map_err(failed)?;
            }
            count += page.len();
        }
        tx.execute(CHECK, params![check.0, check.1])
            .map_err(failed)?;
        tx.commit().map_err(failed)?;
        Ok(count)
    }

    /// Copies the WAL into the database and cuts it to nothing, so that no older page stays.
    pub fn truncate_wal(&self) -> Result<(), KeyError> {
        let busy: i64 = self
            .conn
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
            .map_err(|error| self.failed(&error))?;
        if busy == 0 {
            return Ok(());
        }
        let detail = "another program reads it, so destroyed keys can't be wiped".to_owned();
        Err(KeyError::Store {
            path: self.path.clone(),
            detail,
        })
    }

    fn failed(&self, error: &rusqlite::Error) -> KeyError {
        store_error(&self.path, error)
    }
}

impl KeyRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            stream: row.get(1)?,
            version: row.get(2)?,
            nonce: row.get(3)?,
            wrapped: row.get(4)?,
            shredded: row.get::<_, Option<i64>>(5)?.is_some(),
        })
    }
}

/// Whether there is nothing at `path`, or a file without content.
pub fn is_empty(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |meta| meta.len() == 0)
}

fn store_error(path: &Path, error: &rusqlite::Error) -> KeyError {
    KeyError::Store {
        path: path.to_owned(),
        detail: error.to_string(),
    }
}

fn now_ms() -> i64 {
    unix_ms(OffsetDateTime::now_utc())
}
