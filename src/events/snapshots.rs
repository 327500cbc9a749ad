//! State snapshots: what a stream's events came to at one revision, so that loading it need not
//! read them all again.
//!
//! Invariants:
//! - a cache and nothing else: with the file missing, damaged, old or of another log, everything
//!   works the same, only slower. Nothing here fails a caller; trouble is logged and done without;
//! - a state counts only when its code is right (HMAC under a key from the keyring: who can write
//!   files but has no master key can't make one up), its version is the reader's, and its hash is
//!   that of the log's event at its revision, which the caller compares;
//! - at most one latest state a stream and one for each revision that was branched from; bounded in
//!   number and bytes, the oldest leave first;
//! - states hold ciphertexts, never values; the latest one of a stream whose key is destroyed is
//!   overwritten (`secure_delete`, WAL truncated) and none is taken again. What a branch begins with
//!   holds nothing sealed, so it stays, for the branch outlives its parent;
//! - it is written without any sync and off the path of commands. The log's fence keeps a second
//!   server away.

mod store;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use self::store::{BOUNDS, Store};
use super::stream::StreamId;

/// Name of the file, beside the log.
pub const SNAPSHOTS_FILE: &str = "snapshots.db";
/// States waiting to be written; beyond that many a state is not written at all.
const WAITING_MAX: usize = 64;
/// Which of a stream's states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The last one taken.
    Latest,
    /// The one a branch from this revision begins with.
    Fork(u64),
}

/// A state as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Revision of the last event in it.
    pub revision: u64,
    /// Content hash of that event.
    pub hash: [u8; 32],
    /// The state as its owner wrote it down.
    pub state: Vec<u8>,
}

/// The cache. Cheap to clone.
#[derive(Clone)]
pub struct Snapshots {
    /// `None`: keeps nothing.
    store: Option<Arc<Mutex<Store>>>,
    waiting: Arc<Semaphore>,
}

impl Snapshots {
    /// The cache in the log's folder, made anew when it can't be used. Blocks: call it at start-up,
    /// after the log was opened.
    pub fn open(dir: &Path, key: Zeroizing<[u8; 32]>) -> Self {
        let store = Store::open(dir.join(SNAPSHOTS_FILE), key, BOUNDS);
        Self::of(Some(Arc::new(Mutex::new(store))))
    }

    /// A cache that keeps nothing.
    pub fn none() -> Self {
        Self::of(None)
    }

    fn of(store: Option<Arc<Mutex<Store>>>) -> Self {
        Self {
            store,
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        }
    }

    /// The state in a slot, if there is one of this version that is whole. The caller compares the
    /// hash with the log and calls [`Snapshots::discard`] when it is another one.
    pub async fn load(&self, stream: &StreamId, slot: Slot, version: u32) -> Option<Snapshot> {
        let stream = stream.clone();
        self.work(move |store| store.load(&stream, slot, version))
            .await?
    }

    /// Keeps a state, soon and on another thread, which also writes it down; when too many wait, or
    /// the slot has a later one, it is left.
    pub fn save(
        &self,
        stream: &StreamId,
        slot: Slot,
        (revision, hash): (u64, [u8; 32]),
        version: u32,
        state: impl FnOnce() -> Option<Vec<u8>> + Send + 'static,
    ) {
        let permit = Arc::clone(&self.waiting).try_acquire_owned();
        let (Some(store), Ok(permit)) = (self.store.clone(), permit) else {
            return;
        };
        let stream = stream.clone();
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            if let Some(state) = state() {
                let snapshot = Snapshot {
                    revision,
                    hash,
                    state,
                };
                lock(&store).attempt(|store| store.save(&stream, slot, version, &snapshot));
            }
        });
    }

    /// Drops the state in a slot: it is of no use.
    pub async fn discard(&self, stream: &StreamId, slot: Slot) {
        let stream = stream.clone();
        self.work(move |store| store.attempt(|store| store.discard(&stream, slot)))
            .await;
    }

    /// Overwrites the latest state of a stream, whose data key is destroyed, and takes none that was
    /// on its way.
    pub async fn forget(&self, stream: &StreamId) {
        let stream = stream.clone();
        self.work(move |store| {
            store.attempt(|store| store.forget(&stream));
        })
        .await;
    }

    /// Waits until what was to be kept is kept.
    pub async fn settled(&self) {
        let all = u32::try_from(WAITING_MAX).unwrap_or(u32::MAX);
        drop(self.waiting.acquire_many(all).await);
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> T + Send + 'static,
    ) -> Option<T> {
        let store = self.store.clone()?;
        let task = tokio::task::spawn_blocking(move || work(&mut lock(&store)));
        task.await.ok()
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}
