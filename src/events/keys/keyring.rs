//! The keyring: data keys by stream, made on first use, destroyed on demand.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use zeroize::Zeroizing;

use super::cipher::{self, Key, SealContext, Sealed};
use super::store::{KeyRow, Store, Wrapped, is_empty};
use super::{KeyError, MasterKey};
use crate::events::stream::StreamId;
use crate::secret::SecretValue;

/// Version of a stream's first data key; a second one would come with re-keying a stream.
const FIRST_VERSION: u32 = 1;
/// What the check record holds, wrapped: opening it proves the master key.
const CHECK: &[u8] = b"oc.keyring.v1";

/// Data keys by stream, wrapped by the master key. Share it by reference or `Arc`; calls lock it
/// and block for a few database pages (a first use and a shredding also for a sync).
pub struct Keyring {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    store: Store,
    wrapping: Key,
    /// A destroyed key may still be in the WAL.
    unwiped: bool,
}

/// Opens the keyring with the master key file, and finishes a rotation that a crash cut off between
/// re-wrapping and [`MasterKey::promote_next`]. Returns whether the key was made now; it is never
/// made for a keyring that exists already.
pub fn open_keyring(
    master_path: &Path,
    keys_path: &Path,
    log_has_events: bool,
) -> Result<(Keyring, bool), KeyError> {
    let (master, created) = if is_empty(keys_path) && !log_has_events {
        MasterKey::load_or_create(master_path)?
    } else {
        let lost = || KeyError::MasterLost {
            path: master_path.to_owned(),
        };
        (MasterKey::load(master_path)?.ok_or_else(lost)?, false)
    };
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
        let wrapping = cipher::wrapping_key(master.expose())?;
        let store = Store::open(path, log_has_events, || wrap_check(&wrapping))?;
        let (nonce, value) = store.check_record()?;
        match cipher::decrypt(&wrapping, &[CHECK], &nonce, &value)? {
            Some(plain) if plain.as_slice() == CHECK => {}
            _ => {
                return Err(KeyError::WrongMaster {
                    path: path.to_owned(),
                });
            }
        }
        // A crash right after a shredding may have left the destroyed key in the WAL.
        store.truncate_wal()?;
        Ok(Keyring {
            path: path.to_owned(),
            inner: Mutex::new(Inner {
                store,
                wrapping,
                unwiped: false,
            }),
        })
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
        let mut inner = self.lock();
        let destroyed = inner.store.blank(stream)?;
        // A key that was destroyed before and is not in the WAL any more costs no sync.
        if destroyed || inner.unwiped {
            inner.unwiped = true;
            inner.store.truncate_wal()?;
            inner.unwiped = false;
        }
        Ok(destroyed)
    }

    /// Wraps all data keys anew under `new`, in one transaction; the log is not touched. Returns
    /// how many. The caller stages the key file first ([`MasterKey::stage_next`]) and promotes it
    /// afterwards.
    pub fn rotate_master(&self, new: MasterKey) -> Result<usize, KeyError> {
        let wrapping = cipher::wrapping_key(new.expose())?;
        let check = wrap_check(&wrapping)?;
        let mut inner = self.lock();
        let Inner {
            store,
            wrapping: old,
            ..
        } = &mut *inner;
        let count = store.rewrap(&check, |row| {
            let key = self.unwrap_key(old, row)?;
            wrap(&wrapping, &row.stream, row.version, &key)
        })?;
        inner.wrapping = wrapping;
        inner.store.truncate_wal()?;
        Ok(count)
    }

    /// The stream's data key, made on first use.
    fn data_key(&self, stream: &StreamId) -> Result<(Key, u32), KeyError> {
        let inner = self.lock();
        if let Some(found) = self.find(&inner, stream)? {
            return Ok(found);
        }
        let key = cipher::random_key()?;
        let wrapped = wrap(&inner.wrapping, stream.as_str(), FIRST_VERSION, &key)?;
        inner.store.insert(stream, FIRST_VERSION, &wrapped)?;
        Ok((key, FIRST_VERSION))
    }

    /// The stream's data key; `None` when it never had one.
    fn find(&self, inner: &Inner, stream: &StreamId) -> Result<Option<(Key, u32)>, KeyError> {
        match inner.store.find(stream)? {
            None => Ok(None),
            Some(row) if row.shredded => Err(KeyError::Shredded {
                stream: stream.clone(),
            }),
            Some(row) => Ok(Some((self.unwrap_key(&inner.wrapping, &row)?, row.version))),
        }
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

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock leaves at most a transaction, which SQLite rolls back.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wrap_place<'a>(stream: &'a str, version: &'a [u8; 4]) -> [&'a [u8]; 3] {
    [b"oc.keys.data.v1", stream.as_bytes(), version]
}

fn wrap(wrapping: &Key, stream: &str, version: u32, key: &Key) -> Result<Wrapped, KeyError> {
    cipher::encrypt(
        wrapping,
        &wrap_place(stream, &version.to_be_bytes()),
        key.as_slice(),
    )
}

fn wrap_check(wrapping: &Key) -> Result<Wrapped, KeyError> {
    cipher::encrypt(wrapping, &[CHECK], CHECK)
}
