//! The part of the index that does not fit into memory: `index.db`.
//!
//! It is made from the log alone and worth nothing without it, so nothing here is synced. What
//! makes it trustworthy is the seal: an orderly end writes `index.seal` with the digest of the whole
//! file, and every opening breaks the seal first. Without a seal that fits, the file is thrown away
//! and made anew from the log. So no damage to it, and no crash, can pass for the truth.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior, params};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ulid::Ulid;

use super::batch::{Batch, Run};
use crate::events::error::EngineError;
use crate::events::event::Head;
use crate::events::stream::StreamId;

/// Name of the database in the log's folder.
pub const FILE: &str = "index.db";
/// Name of the seal.
pub const SEAL: &str = "index.seal";
/// Most positions in one row.
const RUN_MAX: usize = 64;
/// What the rows mean, as the seal says it: another program's index is made anew.
const FORMAT: u32 = 2;
/// How long a connection waits for another one's lock, in milliseconds.
const BUSY_MS_MAX: u64 = 5_000;
const SCHEMA: &str = "
    CREATE TABLE runs (
        stream    TEXT NOT NULL,
        first     INTEGER NOT NULL,
        positions BLOB NOT NULL,
        PRIMARY KEY (stream, first)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE commands (key INTEGER PRIMARY KEY, id BLOB NOT NULL, position INTEGER NOT NULL) STRICT;
    CREATE TABLE events   (key INTEGER PRIMARY KEY, id BLOB NOT NULL, position INTEGER NOT NULL) STRICT;";
const RUNS: &str = "SELECT first, positions FROM runs WHERE stream = ?1";

/// What the seal says.
#[derive(Debug, Serialize, Deserialize)]
struct Seal {
    format: u32,
    log: Ulid,
    position: u64,
    commit: u64,
    #[serde(with = "hex::serde")]
    chain: [u8; 32],
    /// Newest id among commands and events.
    newest: Ulid,
    /// SHA-256 of the database and of this seal with zeros here.
    #[serde(with = "hex::serde")]
    digest: [u8; 32],
}

impl Seal {
    /// The digest that this seal on the database at `path` must have.
    fn digest(&self, path: &Path) -> io::Result<[u8; 32]> {
        let own = Seal {
            digest: [0; 32],
            ..*self
        };
        let (mut file, mut hash) = (File::open(path)?, Sha256::new());
        let mut buffer = vec![0; 1024 * 1024];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                read => hash.update(buffer.get(..read).unwrap_or_default()),
            }
        }
        hash.update(serde_json::to_vec(&own)?);
        Ok(hash.finalize().into())
    }
}

/// A connection to the database. One writes, any number read.
pub struct Store {
    conn: Connection,
}

/// What a sealed database holds.
pub struct Sealed {
    pub head: Head,
    pub newest: Ulid,
}

/// Looks for a database of `log` with an unbroken seal, and breaks it. `None`: there is none that
/// can be believed; whatever is there is removed.
pub fn unseal(dir: &Path, log: Ulid) -> Result<Option<Sealed>, EngineError> {
    let (path, seal_path) = (dir.join(FILE), dir.join(SEAL));
    let seal = match fs::read(&seal_path) {
        Ok(bytes) => serde_json::from_slice::<Seal>(&bytes).ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(io_error("read", &seal_path, &error)),
    };
    let fits = |seal: &Seal| {
        seal.format == FORMAT && seal.log == log && seal.digest(&path).ok() == Some(seal.digest)
    };
    let believed = seal.filter(fits);
    if believed.is_none() {
        remove(&path)?;
    }
    // The seal is on the database alone. SQLite would take what lies beside it (left by a power
    // cut or by a folder put back in part) for its newest rows.
    for suffix in ["-wal", "-shm"] {
        remove(&dir.join(format!("{FILE}{suffix}")))?;
    }
    remove(&seal_path)?;
    Ok(believed.map(|seal| Sealed {
        head: Head {
            position: seal.position,
            commit: seal.commit,
            chain: seal.chain,
        },
        newest: seal.newest,
    }))
}

fn remove(path: &Path) -> Result<(), EngineError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("removed", path, &error))
        }
        _ => Ok(()),
    }
}

fn io_error(action: &str, path: &Path, error: &io::Error) -> EngineError {
    match error.kind() {
        io::ErrorKind::StorageFull => EngineError::Full,
        _ => EngineError::Io(format!("{} can't be {action}: {error}", path.display())),
    }
}

impl Store {
    /// Opens the database in `dir` to write, and makes it when it is missing.
    pub fn writer(dir: &Path) -> Result<Store, EngineError> {
        let path = dir.join(FILE);
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| io_error("opened", &path, &error))?;
        let mut store = Self::connect(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        store.make().map_err(failed)?;
        Ok(store)
    }

    /// Opens the database in `dir`, which a writer has made, to read.
    pub fn reader(dir: &Path) -> Result<Store, EngineError> {
        Self::connect(&dir.join(FILE), OpenFlags::SQLITE_OPEN_READ_ONLY)
    }

    fn connect(path: &PathBuf, access: OpenFlags) -> Result<Store, EngineError> {
        let flags = access | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags).map_err(failed)?;
        conn.busy_timeout(Duration::from_millis(BUSY_MS_MAX))
            .map_err(failed)?;
        Ok(Store { conn })
    }

    fn make(&mut self) -> rusqlite::Result<()> {
        for (name, value) in [("journal_mode", "WAL"), ("synchronous", "OFF")] {
            self.conn.pragma(None, name, value, |_| Ok(()))?;
        }
        let tx = self.conn.transaction()?;
        let sql = "SELECT count(*) FROM sqlite_schema";
        if tx.query_row(sql, [], |row| row.get::<_, i64>(0))? == 0 {
            tx.execute_batch(SCHEMA)?;
        }
        tx.commit()
    }

    /// Writes a batch, all or nothing.
    pub fn write(&mut self, batch: &Batch) -> Result<(), EngineError> {
        let tx = self
            .conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        {
            insert_ids(&tx, "commands", &batch.commands).map_err(failed)?;
            insert_ids(&tx, "events", &batch.events).map_err(failed)?;
            let sql = "INSERT INTO runs (stream, first, positions) VALUES (?1, ?2, ?3)";
            let mut insert = tx.prepare_cached(sql).map_err(failed)?;
            let mut streams: Vec<_> = batch.streams.iter().collect();
            streams.sort_unstable_by_key(|(stream, _)| *stream);
            for (stream, run) in streams {
                for (chunk, first) in run
                    .positions
                    .chunks(RUN_MAX)
                    .zip((run.first..).step_by(RUN_MAX))
                {
                    let bytes: Vec<u8> = chunk.iter().flat_map(|p| p.to_be_bytes()).collect();
                    insert
                        .execute(params![stream.as_str(), int(first)?, bytes])
                        .map_err(failed)?;
                }
            }
        }
        tx.commit().map_err(failed)
    }

    /// Closes the database and seals it.
    pub fn seal(self, dir: &Path, log: Ulid, head: Head, newest: Ulid) -> io::Result<()> {
        let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
        let busy: i64 = self
            .conn
            .query_row(sql, [], |row| row.get(0))
            .map_err(io::Error::other)?;
        if busy != 0 {
            return Err(io::Error::other("somebody still reads it"));
        }
        drop(self);
        let Head {
            position,
            commit,
            chain,
        } = head;
        let mut seal = Seal {
            format: FORMAT,
            log,
            position,
            commit,
            chain,
            newest,
            digest: [0; 32],
        };
        seal.digest = seal.digest(&dir.join(FILE))?;
        fs::write(dir.join(SEAL), serde_json::to_vec(&seal)?)
    }

    /// The last revision of a stream.
    pub fn last_revision(&self, stream: &StreamId) -> Result<Option<u64>, EngineError> {
        let sql = format!("{RUNS} ORDER BY first DESC LIMIT 1");
        let mut statement = self.conn.prepare_cached(&sql).map_err(failed)?;
        let found = statement
            .query_row([stream.as_str()], read_run)
            .optional()
            .map_err(failed)?;
        Ok(found.map(|run| run.last()))
    }

    /// Positions of up to `limit` revisions of a stream from `from` on, without a gap.
    pub fn positions(
        &self,
        stream: &StreamId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<u64>, EngineError> {
        let sql = format!("{RUNS} AND first > ?2 ORDER BY first");
        let mut statement = self.conn.prepare_cached(&sql).map_err(failed)?;
        // A run that begins at or before `from` and holds it begins less than a run's length before.
        let start = int(from.min(i64::MAX as u64))? - RUN_MAX as i64;
        let mut rows = statement
            .query(params![stream.as_str(), start])
            .map_err(failed)?;
        let mut positions = Vec::new();
        while positions.len() < limit {
            let Some(row) = rows.next().map_err(failed)? else {
                break;
            };
            let run = read_run(row).map_err(failed)?;
            let revisions = (run.first..).zip(run.positions);
            positions.extend(revisions.filter(|(r, _)| *r >= from).map(|(_, p)| p));
        }
        positions.truncate(limit);
        Ok(positions)
    }

    /// Position of a command's first event.
    pub fn command(&self, id: Ulid) -> Result<Option<u64>, EngineError> {
        self.position("commands", id)
    }

    /// Position of an event.
    pub fn event(&self, id: Ulid) -> Result<Option<u64>, EngineError> {
        self.position("events", id)
    }

    fn position(&self, table: &'static str, id: Ulid) -> Result<Option<u64>, EngineError> {
        let sql = format!("SELECT key, id, position FROM {table} WHERE key >= ?1 ORDER BY key");
        let mut statement = self.conn.prepare_cached(&sql).map_err(failed)?;
        let mut rows = statement.query([key(id)]).map_err(failed)?;
        let mut expected = key(id);
        while let Some(row) = rows.next().map_err(failed)? {
            let (at, found): (i64, [u8; 16]) =
                (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
            if at != expected {
                break;
            }
            if found == id.to_bytes() {
                let position: i64 = row.get(2).map_err(failed)?;
                return Ok(Some(position.cast_unsigned()));
            }
            expected += 1;
        }
        Ok(None)
    }
}

/// Where a row for `id` is looked for: here, or behind rows that follow without a gap. The first 62
/// bits of an id are its time and some of its randomness, so rows come in order at the tree's end and
/// two seldom want the same place; an integer key costs a third of a key in bytes. Not 63: behind the
/// last place there must be others.
fn key(id: Ulid) -> i64 {
    i64::try_from(id.0 >> 66).unwrap_or(0)
}

fn insert_ids(
    conn: &Connection,
    table: &'static str,
    ids: &foldhash::HashMap<Ulid, u64>,
) -> rusqlite::Result<()> {
    // In order, so that the tree grows at its end.
    let mut ids: Vec<_> = ids.iter().collect();
    ids.sort_unstable();
    let sql = format!("INSERT OR IGNORE INTO {table} (key, id, position) VALUES (?1, ?2, ?3)");
    let mut insert = conn.prepare_cached(&sql)?;
    for (id, position) in ids {
        let mut key = key(*id);
        while insert.execute(params![key, id.to_bytes(), position.cast_signed()])? == 0 {
            key += 1;
        }
    }
    Ok(())
}

fn read_run(row: &rusqlite::Row<'_>) -> rusqlite::Result<Run> {
    let bytes: Vec<u8> = row.get(1)?;
    let (positions, _) = bytes.as_chunks::<8>();
    Ok(Run {
        first: row.get::<_, i64>(0)?.cast_unsigned(),
        positions: positions.iter().map(|p| u64::from_be_bytes(*p)).collect(),
    })
}

fn int(number: u64) -> Result<i64, EngineError> {
    i64::try_from(number).map_err(|_| EngineError::Damaged(format!("{number} is out of range")))
}

fn failed(error: rusqlite::Error) -> EngineError {
    use rusqlite::ErrorCode::DiskFull;
    use rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
    match &error {
        rusqlite::Error::SqliteFailure(code, _)
            if code.code == DiskFull || code.extended_code == SQLITE_IOERR_SHMSIZE =>
        {
            EngineError::Full
        }
        _ => EngineError::Io(format!("the index: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: no bit of the seal can change what is believed: either all it says is as it was, or
    /// nothing is believed.
    #[test]
    fn no_flipped_bit_of_the_seal_changes_what_it_says() {
        let dir = tempfile::tempdir().expect("a folder");
        let (log, newest) = (Ulid::generate(), Ulid::generate());
        let head = Head {
            position: 9,
            commit: 7,
            chain: [5; 32],
        };
        let store = Store::writer(dir.path()).expect("opened");
        store.seal(dir.path(), log, head, newest).expect("sealed");
        let [database, seal] = [FILE, SEAL].map(|name| dir.path().join(name));
        let (pages, whole) = (
            fs::read(&database).expect("read"),
            fs::read(&seal).expect("read"),
        );
        let mut refused = 0;
        for bit in 0..whole.len() * 8 {
            let mut spoilt = whole.clone();
            spoilt[bit / 8] ^= 1 << (bit % 8);
            fs::write(&seal, spoilt).expect("written");
            match unseal(dir.path(), log).expect("no error") {
                Some(sealed) => assert_eq!((sealed.head, sealed.newest), (head, newest), "{bit}"),
                None => {
                    refused += 1;
                    fs::write(&database, &pages).expect("written");
                }
            }
        }
        assert!(refused > whole.len(), "only {refused} were refused");
        fs::write(&seal, &whole).expect("written");
        assert!(unseal(dir.path(), log).expect("no error").is_some());
    }
}
