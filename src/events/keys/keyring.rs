//! The keyring's storage: `keys.db`, one wrapped data key a stream.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{
    Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params,
};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::cipher::{self, Key, NONCE_BYTES, SealContext, Sealed};
use super::{KeyError, MasterKey};
use crate::events::event::unix_ms;
use crate::events::pragmas::{self, Unset};
use crate::events::stream::StreamId;
use crate::secret::SecretValue;

/// Version of a stream's first data key; a second one would come with re-keying a stream.
const FIRST_VERSION: u32 = 1;
/// Keys re-wrapped between two looks at the table.
const ROTATE_PAGE: i64 = 256;
/// What the check record holds, wrapped: opening it proves the master key.
const CHECK: &[u8] = b"oc.keyring.v1";
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
        id              INTEGER PRIMARY KEY,
        stream          TEXT NOT NULL UNIQUE,
        version         INTEGER NOT NULL,
        nonce           BLOB NOT NULL,
        wrapped         BLOB NOT NULL,
        created_at_ms   INTEGER NOT NULL,
        shredded_at_ms  INTEGER
    ) STRICT;";

/// Data keys by stream, wrapped by the master key. Share it by reference or `Arc`; calls lock it
/// and block for a few database pages (a first use and a shredding also for a sync).
pub struct Keyring {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    conn: Connection,
    wrapping: Key,
}

/// Opens the keyring with the master key file beside it, and finishes a rotation that a crash cut
/// off between re-wrapping and [`MasterKey::promote_next`]. Returns whether the key was made now.
pub fn open_keyring(
    master_path: &Path,
    keys_path: &Path,
    log_has_events: bool,
) -> Result<(Keyring, bool), KeyError> {
    let (master, created) = MasterKey::load_or_create(master_path)?;
    match Keyring::open(keys_path, master, log_has_events) {
        Ok(keyring) => Ok((keyring, created)),
        Err(wrong @ KeyError::WrongMaster { .. }) => {
            let Some(next) = MasterKey::load(&MasterKey::next_path(master_path))? else {
                return Err(wrong);
            };
            let keyring = Keyring::open(keys_path, next, log_has_events)?;
            MasterKey::promote_next(master_path)?;
            Ok((keyring, created))
        }
        Err(other) => Err(other),
    }
}

impl Keyring {
    /// Opens `path`, or creates it while the log has no event yet.
    pub fn open(path: &Path, master: MasterKey, log_has_events: bool) -> Result<Keyring, KeyError> {
        let empty = std::fs::metadata(path).map_or(true, |meta| meta.len() == 0);
        if empty && log_has_events {
            return Err(KeyError::Lost {
                path: path.to_owned(),
            });
        }
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
        let wrapping = cipher::wrapping_key(master.expose())?;
        let store = |error: rusqlite::Error| store_error(path, &error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut conn = Connection::open_with_flags(path, flags).map_err(store)?;
        set_up(&conn, path)?;
        let tx = conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(store)?;
        let has_tables: bool = tx
            .query_row("SELECT count(*) > 0 FROM sqlite_schema", [], |row| {
                row.get(0)
            })
            .map_err(store)?;
        if has_tables {
            check_master(&tx, &wrapping, path)?;
        } else if log_has_events {
            return Err(KeyError::Lost {
                path: path.to_owned(),
            });
        } else {
            tx.execute_batch(SCHEMA).map_err(store)?;
            write_check(&tx, &wrapping, path)?;
        }
        tx.commit().map_err(store)?;
        let keyring = Keyring {
            path: path.to_owned(),
            inner: Mutex::new(Inner { conn, wrapping }),
        };
        // A crash right after a shredding may have left the destroyed key in the WAL.
        keyring.truncate_wal(&keyring.lock())?;
        Ok(keyring)
    }

    /// Seals `value` for exactly this place. Makes the stream's data key on first use; the key is
    /// on disk when this returns.
    pub fn seal(
        &self,
        stream: &StreamId,
        ctx: &SealContext<'_>,
        value: &SecretValue,
    ) -> Result<Sealed, KeyError> {
        let (key, version) = self.data_key(stream)?;
        cipher::seal(&key, version, stream, ctx, value)
    }

    /// Opens a value that was sealed for exactly this place.
    pub fn unseal(
        &self,
        stream: &StreamId,
        ctx: &SealContext<'_>,
        sealed: &Sealed,
    ) -> Result<SecretValue, KeyError> {
        let unopenable = || KeyError::Unopenable {
            stream: stream.clone(),
            name: ctx.name.to_owned(),
        };
        let inner = self.lock();
        let (key, version) = self.find(&inner, stream)?.ok_or_else(unopenable)?;
        drop(inner);
        if version != sealed.key_version {
            return Err(unopenable());
        }
        cipher::unseal(&key, stream, ctx, sealed)?.ok_or_else(unopenable)
    }

    /// A key of the stream's own for the purpose that `label` names: the same for the same stream
    /// and label until the stream is shredded.
    pub fn derive(&self, stream: &StreamId, label: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
        let (key, _) = self.data_key(stream)?;
        cipher::labelled_key(&key, label)
    }

    /// Destroys the stream's data key for good: every value sealed in the stream is lost. Returns
    /// whether there was a key. Safe to repeat; after an error it must be repeated.
    pub fn shred(&self, stream: &StreamId) -> Result<bool, KeyError> {
        let inner = self.lock();
        // Overwritten in the same place and size, not deleted: no copy is moved about the page,
        // and the row goes on saying that this stream must never get a key again.
        let destroyed = inner
            .conn
            .execute(
                "UPDATE data_keys SET nonce = zeroblob(length(nonce)), \
                 wrapped = zeroblob(length(wrapped)), shredded_at_ms = ?2 WHERE stream = ?1 AND shredded_at_ms IS NULL",
                params![stream.as_str(), now_ms()],
            )
            .map_err(|error| self.failed(&error))?;
        self.truncate_wal(&inner)?;
        Ok(destroyed > 0)
    }

    /// Wraps all data keys anew under `new`, in one transaction; the log is not touched. Returns
    /// how many. The caller stages the key file first ([`MasterKey::stage_next`]) and promotes it
    /// afterwards.
    pub fn rotate_master(&self, new: MasterKey) -> Result<usize, KeyError> {
        let wrapping = cipher::wrapping_key(new.expose())?;
        let mut inner = self.lock();
        let Inner {
            conn,
            wrapping: old,
        } = &mut *inner;
        let tx = conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| self.failed(&error))?;
        let (mut last, mut count) = (i64::MIN, 0);
        loop {
            let page = self.rows_after(&tx, last)?;
            let Some(row) = page.last() else { break };
            last = row.id;
            for row in &page {
                let key = self.unwrap_key(old, row)?;
                let (nonce, wrapped) = wrap(&wrapping, &row.stream, row.version, &key)?;
                tx.execute(
                    "UPDATE data_keys SET nonce = ?2, wrapped = ?3 WHERE id = ?1",
                    params![row.id, nonce, wrapped],
                )
                .map_err(|error| self.failed(&error))?;
                count += 1;
            }
        }
        write_check(&tx, &wrapping, &self.path)?;
        tx.commit().map_err(|error| self.failed(&error))?;
        inner.wrapping = wrapping;
        self.truncate_wal(&inner)?;
        Ok(count)
    }

    /// The stream's data key, made on first use.
    fn data_key(&self, stream: &StreamId) -> Result<(Key, u32), KeyError> {
        let inner = self.lock();
        if let Some(found) = self.find(&inner, stream)? {
            return Ok(found);
        }
        let key = cipher::random_key()?;
        let (nonce, wrapped) = wrap(&inner.wrapping, stream.as_str(), FIRST_VERSION, &key)?;
        inner
            .conn
            .execute(
                "INSERT INTO data_keys (stream, version, nonce, wrapped, created_at_ms) \
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![stream.as_str(), FIRST_VERSION, nonce, wrapped, now_ms()],
            )
            .map_err(|error| self.failed(&error))?;
        Ok((key, FIRST_VERSION))
    }

    /// The stream's data key; `None` when it never had one.
    fn find(&self, inner: &Inner, stream: &StreamId) -> Result<Option<(Key, u32)>, KeyError> {
        let sql = "SELECT id, stream, version, nonce, wrapped, shredded_at_ms FROM data_keys \
             WHERE stream = ?1";
        let found = inner
            .conn
            .prepare_cached(sql)
            .and_then(|mut statement| {
                statement
                    .query_row([stream.as_str()], KeyRow::read)
                    .optional()
            })
            .map_err(|error| self.failed(&error))?;
        match found {
            None => Ok(None),
            Some(row) if row.shredded => Err(KeyError::Shredded {
                stream: stream.clone(),
            }),
            Some(row) => Ok(Some((self.unwrap_key(&inner.wrapping, &row)?, row.version))),
        }
    }

    fn rows_after(&self, tx: &Transaction<'_>, last: i64) -> Result<Vec<KeyRow>, KeyError> {
        let sql = "SELECT id, stream, version, nonce, wrapped, shredded_at_ms FROM data_keys \
             WHERE id > ?1 AND shredded_at_ms IS NULL ORDER BY id LIMIT ?2";
        let rows = tx.prepare_cached(sql).and_then(|mut statement| {
            statement
                .query_map([last, ROTATE_PAGE], KeyRow::read)?
                .collect()
        });
        rows.map_err(|error| self.failed(&error))
    }

    fn unwrap_key(&self, wrapping: &Key, row: &KeyRow) -> Result<Key, KeyError> {
        let version = row.version.to_be_bytes();
        let place = wrap_place(&row.stream, &version);
        let plain = cipher::decrypt(wrapping, &place, &row.nonce, &row.wrapped)?;
        plain
            .and_then(|plain| {
                <[u8; 32]>::try_from(plain.as_slice())
                    .ok()
                    .map(Zeroizing::new)
            })
            .ok_or_else(|| KeyError::Store {
                path: self.path.clone(),
                detail: format!("the data key of {} does not unwrap", row.stream),
            })
    }

    fn truncate_wal(&self, inner: &Inner) -> Result<(), KeyError> {
        let busy: i64 = inner
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

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock leaves at most a transaction, which SQLite rolls back.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, error: &rusqlite::Error) -> KeyError {
        store_error(&self.path, error)
    }
}

/// A stored data key.
struct KeyRow {
    id: i64,
    stream: String,
    version: u32,
    nonce: Vec<u8>,
    wrapped: Vec<u8>,
    shredded: bool,
}

impl KeyRow {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
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

fn wrap_place<'a>(stream: &'a str, version: &'a [u8; 4]) -> [&'a [u8]; 3] {
    [b"oc.keys.data.v1", stream.as_bytes(), version]
}

fn wrap(
    wrapping: &Key,
    stream: &str,
    version: u32,
    key: &Key,
) -> Result<([u8; NONCE_BYTES], Vec<u8>), KeyError> {
    cipher::encrypt(
        wrapping,
        &wrap_place(stream, &version.to_be_bytes()),
        key.as_slice(),
    )
}

fn write_check(tx: &Transaction<'_>, wrapping: &Key, path: &Path) -> Result<(), KeyError> {
    let (nonce, value) = cipher::encrypt(wrapping, &[CHECK], CHECK)?;
    let sql = "INSERT OR REPLACE INTO keyring (id, check_nonce, check_value) VALUES (1, ?1, ?2)";
    tx.execute(sql, params![nonce, value])
        .map_err(|error| store_error(path, &error))?;
    Ok(())
}

fn check_master(tx: &Transaction<'_>, wrapping: &Key, path: &Path) -> Result<(), KeyError> {
    let (nonce, value): (Vec<u8>, Vec<u8>) = tx
        .query_row(
            "SELECT check_nonce, check_value FROM keyring WHERE id = 1",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .map_err(|error| store_error(path, &error))?;
    match cipher::decrypt(wrapping, &[CHECK], &nonce, &value)? {
        Some(plain) if plain.as_slice() == CHECK => Ok(()),
        _ => Err(KeyError::WrongMaster {
            path: path.to_owned(),
        }),
    }
}

fn set_up(conn: &Connection, path: &Path) -> Result<(), KeyError> {
    let store = |error: rusqlite::Error| store_error(path, &error);
    conn.busy_timeout(std::time::Duration::from_secs(5))
        .map_err(store)?;
    pragmas::hold(conn, &PRAGMAS).map_err(|unset| match unset {
        Unset::Sqlite(error) => store(error),
        refused @ Unset::Refused { .. } => KeyError::Store {
            path: path.to_owned(),
            detail: refused.to_string(),
        },
    })
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
