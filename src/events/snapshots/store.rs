//! Where state snapshots are kept: one SQLite file, a row a state. Only the code of a row is judged
//! here; what to do about trouble is decided in one place ([`Store::attempt`]).

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use hkdf::HkdfExtract;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{Slot, Snapshot};
use crate::events::pragmas::{self, Unset};
use crate::events::stream::StreamId;

/// Largest state kept, in bytes (4 MiB).
const STATE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// States dropped at once when there are too many.
const DROPPED_AT_ONCE: i64 = 64;
/// Streams remembered as forgotten, for writes that were on their way.
const FORGOTTEN_MAX: usize = 1_024;
/// Layout of the file, in SQLite's `user_version`.
const LAYOUT: i64 = 1;
/// Name, value to set, value it must then have.
const PRAGMAS: [(&str, &str, &str); 5] = [
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "OFF", "0"),
    ("secure_delete", "ON", "1"),
    ("cell_size_check", "ON", "1"),
    ("mmap_size", "0", "0"),
];
// A replaced row gets a new id, so that ids tell the age.
const SCHEMA: &str = "
    CREATE TABLE states (
        id       INTEGER PRIMARY KEY,
        stream   TEXT NOT NULL,
        slot     INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        hash     BLOB NOT NULL,
        version  INTEGER NOT NULL,
        state    BLOB NOT NULL,
        code     BLOB NOT NULL,
        UNIQUE (stream, slot)
    ) STRICT;";
const SAVE: &str = "INSERT OR REPLACE INTO states (stream, slot, revision, hash, version, state, \
     code) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE NOT EXISTS \
     (SELECT 1 FROM states WHERE stream = ?1 AND slot = ?2 AND revision > ?3)";
const LOAD: &str =
    "SELECT revision, hash, version, state, code FROM states WHERE stream = ?1 AND slot = ?2";

/// What may be kept in all.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most states.
    pub states_max: i64,
    /// Most bytes of states.
    pub bytes_max: i64,
}

/// 65,536 states and 256 MiB.
pub const BOUNDS: Bounds = Bounds {
    states_max: 65_536,
    bytes_max: 256 * 1024 * 1024,
};

impl Slot {
    /// `None` for a revision beyond the range of any log.
    fn number(self) -> Option<i64> {
        match self {
            Self::Latest => Some(-1),
            Self::Fork(revision) => i64::try_from(revision).ok(),
        }
    }
}

/// The open file.
pub struct Store {
    path: PathBuf,
    /// `None`: done without.
    conn: Option<Connection>,
    /// Sum of the states' sizes.
    bytes: i64,
    key: Zeroizing<[u8; 32]>,
    bounds: Bounds,
    forgotten: VecDeque<StreamId>,
}

impl Store {
    /// Opens or makes the file; one that can't be used is made anew or done without.
    pub fn open(path: PathBuf, key: Zeroizing<[u8; 32]>, bounds: Bounds) -> Self {
        let mut store = Self {
            path,
            conn: None,
            bytes: 0,
            key,
            bounds,
            forgotten: VecDeque::new(),
        };
        if let Err(error) = store.connect() {
            store.trouble(&error);
        }
        store
    }

    fn connect(&mut self) -> Result<(), Trouble> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(&self.path, flags)?;
        let empty = pragmas::read(&conn, "user_version")? == "0";
        pragmas::hold(&conn, &PRAGMAS)?;
        if empty {
            conn.execute_batch(SCHEMA)?;
            conn.pragma_update(None, "user_version", LAYOUT)?;
        } else if pragmas::read(&conn, "user_version")? != LAYOUT.to_string() {
            return Err(Trouble::Layout);
        }
        let sum = "SELECT coalesce(sum(length(state)), 0) FROM states";
        self.bytes = conn.query_row(sum, [], |row| row.get(0))?;
        self.conn = Some(conn);
        Ok(())
    }

    /// Runs `work`; trouble is logged, and a file that is beyond use is made anew.
    pub fn attempt<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Trouble>) -> Option<T> {
        match work(self) {
            Ok(done) => Some(done),
            Err(error) => {
                self.trouble(&error);
                None
            }
        }
    }

    fn trouble(&mut self, error: &Trouble) {
        let file = self.path.display().to_string();
        if !error.is_damage() {
            tracing::warn!(%error, file, "a state snapshot was left out, nothing is lost");
            return;
        }
        tracing::warn!(%error, file, "the state snapshots are of no use and begin anew, nothing is lost");
        self.conn = None;
        for suffix in ["", "-wal", "-shm"] {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            drop(std::fs::remove_file(path));
        }
        if let Err(error) = self.connect() {
            tracing::warn!(%error, file, "state snapshots are off, nothing is lost");
        }
    }

    pub fn load(&mut self, stream: &StreamId, slot: Slot, version: u32) -> Option<Snapshot> {
        self.attempt(|store| store.find(stream, slot, version))?
    }

    fn find(
        &mut self,
        stream: &StreamId,
        slot: Slot,
        version: u32,
    ) -> Result<Option<Snapshot>, Trouble> {
        let (Some(conn), Some(number)) = (&self.conn, slot.number()) else {
            return Ok(None);
        };
        let found = conn
            .prepare_cached(LOAD)?
            .query_row(params![stream.as_str(), number], |row| {
                let snapshot = Snapshot {
                    revision: row.get::<_, i64>(0)?.cast_unsigned(),
                    hash: row.get(1)?,
                    state: row.get(3)?,
                };
                Ok((snapshot, row.get::<_, u32>(2)?, row.get::<_, Vec<u8>>(4)?))
            })
            .optional()?;
        let Some((snapshot, kept_version, kept_code)) = found else {
            return Ok(None);
        };
        let whole = code(&self.key, stream, number, kept_version, &snapshot)[..] == kept_code[..];
        if whole && kept_version == version {
            return Ok(Some(snapshot));
        }
        self.discard(stream, slot)?;
        Ok(None)
    }

    pub fn save(
        &mut self,
        stream: &StreamId,
        slot: Slot,
        version: u32,
        snapshot: &Snapshot,
    ) -> Result<(), Trouble> {
        let (Some(conn), Some(number)) = (&self.conn, slot.number()) else {
            return Ok(());
        };
        let forgotten = slot == Slot::Latest && self.forgotten.contains(stream);
        if forgotten || snapshot.state.len() > STATE_BYTES_MAX {
            return Ok(());
        }
        let code = code(&self.key, stream, number, version, snapshot);
        let before = size(conn, stream, number)?;
        let (revision, hash) = (snapshot.revision.cast_signed(), snapshot.hash);
        let row = params![
            stream.as_str(),
            number,
            revision,
            hash,
            version,
            snapshot.state,
            code
        ];
        if conn.prepare_cached(SAVE)?.execute(row)? > 0 {
            let size = i64::try_from(snapshot.state.len()).unwrap_or(i64::MAX);
            self.bytes = self.bytes.saturating_add(size - before);
        }
        self.make_room()
    }

    /// Drops the oldest states beyond the bounds.
    fn make_room(&mut self) -> Result<(), Trouble> {
        while let Some(conn) = &self.conn {
            let count: i64 = conn
                .prepare_cached("SELECT count(*) FROM states")?
                .query_row([], |row| row.get(0))?;
            let Bounds {
                states_max,
                bytes_max,
            } = self.bounds;
            if count == 0 || (count <= states_max && self.bytes <= bytes_max) {
                break;
            }
            let oldest = "DELETE FROM states WHERE id IN (SELECT id FROM states ORDER BY id \
                          LIMIT ?1) RETURNING length(state)";
            let mut drop_oldest = conn.prepare_cached(oldest)?;
            let sizes = drop_oldest.query_map([DROPPED_AT_ONCE], |row| row.get::<_, i64>(0))?;
            for size in sizes {
                self.bytes -= size?;
            }
        }
        Ok(())
    }

    /// Overwrites the state in a slot; false when there was none.
    pub fn discard(&mut self, stream: &StreamId, slot: Slot) -> Result<bool, Trouble> {
        if let (Some(conn), Some(number)) = (&self.conn, slot.number()) {
            self.bytes -= size(conn, stream, number)?;
            let sql = "DELETE FROM states WHERE stream = ?1 AND slot = ?2";
            return Ok(conn.execute(sql, params![stream.as_str(), number])? > 0);
        }
        Ok(false)
    }

    /// Overwrites the latest state of a stream and takes no more of it.
    pub fn forget(&mut self, stream: &StreamId) -> Result<(), Trouble> {
        if self.forgotten.len() >= FORGOTTEN_MAX {
            self.forgotten.pop_front();
        }
        self.forgotten.push_back(stream.clone());
        let deleted = self.discard(stream, Slot::Latest)?;
        if let (Some(conn), true) = (&self.conn, deleted) {
            // What was deleted is still in the WAL until then.
            conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        Ok(())
    }
}

/// Bytes of the state in a slot, 0 when there is none.
fn size(conn: &Connection, stream: &StreamId, slot: i64) -> rusqlite::Result<i64> {
    let sql = "SELECT length(state) FROM states WHERE stream = ?1 AND slot = ?2";
    let size = conn
        .prepare_cached(sql)?
        .query_row(params![stream.as_str(), slot], |row| row.get(0))
        .optional()?;
    Ok(size.unwrap_or(0))
}

/// HMAC-SHA256 (as HKDF's extract step, RFC 5869) over all that a row says, each field with its
/// length before it.
fn code(
    key: &[u8; 32],
    stream: &StreamId,
    slot: i64,
    version: u32,
    snapshot: &Snapshot,
) -> [u8; 32] {
    let mut mac = HkdfExtract::<Sha256>::new(Some(key));
    let fields: [&[u8]; 6] = [
        stream.as_str().as_bytes(),
        &slot.to_be_bytes(),
        &version.to_be_bytes(),
        &snapshot.revision.to_be_bytes(),
        &snapshot.hash,
        &snapshot.state,
    ];
    for field in fields {
        mac.input_ikm(&u64::try_from(field.len()).unwrap_or(u64::MAX).to_be_bytes());
        mac.input_ikm(field);
    }
    mac.finalize().0.into()
}

/// Why the cache could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Setting(String),
    #[error("it has another layout")]
    Layout,
}

impl Trouble {
    /// Whether a new file would help.
    fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite(rusqlite::Error::SqliteFailure(error, _)) => !matches!(
                error.code,
                ErrorCode::DiskFull
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::CannotOpen
                    | ErrorCode::ReadOnly
                    | ErrorCode::PermissionDenied
            ),
            Self::Sqlite(_) | Self::Layout => true,
            Self::Io(_) | Self::Setting(_) => false,
        }
    }
}

impl From<Unset> for Trouble {
    fn from(unset: Unset) -> Self {
        match unset {
            Unset::Sqlite(error) => Self::Sqlite(error),
            refused @ Unset::Refused { .. } => Self::Setting(refused.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &tempfile::TempDir, states_max: i64, bytes_max: i64) -> Store {
        let bounds = Bounds {
            states_max,
            bytes_max,
        };
        Store::open(dir.path().join("s.db"), Zeroizing::new([7; 32]), bounds)
    }

    fn stream(number: u64) -> StreamId {
        StreamId::of("test", number)
    }

    fn state(revision: u64, bytes: usize) -> Snapshot {
        Snapshot {
            revision,
            hash: [1; 32],
            state: vec![b'x'; bytes],
        }
    }

    fn kept(store: &mut Store, streams: u64) -> Vec<u64> {
        let has = |number: &u64| store.load(&stream(*number), Slot::Latest, 1).is_some();
        (0..streams).filter(has).collect()
    }

    /// Goal: neither the number nor the bytes of states grow beyond their bounds, the oldest leave
    /// first, and the sum that this rests on is the one a new start counts.
    #[test]
    fn the_oldest_states_leave_first() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut few = store(&dir, 100, 1_000_000);
        for number in 0..150 {
            few.save(&stream(number), Slot::Latest, 1, &state(0, 10))
                .expect("saved");
        }
        // The first one again: it is the youngest now.
        few.save(&stream(100), Slot::Latest, 1, &state(1, 20))
            .expect("saved");
        let left = kept(&mut few, 150);
        assert_eq!(left, (64..150).collect::<Vec<_>>());
        let bytes = few.bytes;
        drop(few);
        let mut small = store(&dir, 1_000, 500);
        assert_eq!(small.bytes, bytes);
        small
            .save(&stream(0), Slot::Latest, 1, &state(0, 10))
            .expect("saved");
        let left: Vec<_> = [0, 100].into_iter().chain(129..150).collect();
        assert_eq!(kept(&mut small, 150), left);
    }

    /// Goal: an old state does not take a newer one's place, and one that is too large is not kept.
    #[test]
    fn a_state_is_only_replaced_by_a_later_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let (mut store, name) = (store(&dir, 100, 100_000_000), stream(0));
        for (revision, then) in [(5, 5), (4, 5), (6, 6)] {
            store
                .save(&name, Slot::Latest, 1, &state(revision, 10))
                .expect("saved");
            let found = store.load(&name, Slot::Latest, 1).expect("there");
            assert_eq!(found.revision, then);
        }
        store
            .save(&name, Slot::Latest, 1, &state(7, STATE_BYTES_MAX + 1))
            .expect("left out");
        assert_eq!(
            store
                .load(&name, Slot::Latest, 1)
                .map(|found| found.revision),
            Some(6)
        );
        // Another version's state is of no use to anyone and goes.
        assert!(store.load(&name, Slot::Latest, 2).is_none());
        assert!(store.load(&name, Slot::Latest, 1).is_none());
        assert_eq!(store.bytes, 0);
    }
}
