//! Where in the log a stream's events, a command and an event id are: the log's own index, the same
//! for every engine.
//!
//! It is derived: the log alone is the truth, and the index is made anew from it whenever it can't be
//! believed ([`store`]). The newest commits are in memory only; a thread of its own moves them into
//! the database in batches, so that what is written all over a tree is written seldom, and never
//! while somebody waits for a commit.
//!
//! Invariants: a commit is in the index before it is shown to anyone; look-ups see it in memory or
//! in the database at any moment (memory is asked first, and let go of only when the database has
//! it); memory holds at most [`Sizes::pending_events_max`] events and a group; whoever reads through the
//! index checks that the event is the one that was looked for.

mod batch;
mod store;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ulid::Ulid;

use super::engines::Commit;
use super::error::EngineError;
use super::event::Head;
use super::stream::StreamId;
use super::watched::Watched;
use batch::Batch;
use store::Store;

/// How much the thread of the index stands back (0: not at all, 19: most).
const INDEX_NICE: i32 = 10;

/// How much stays in memory. Tests take less, so that little logs cross into the database.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Events in memory from which on a batch is moved into the database.
    pub batch_events: usize,
    /// Events in memory at which the writer waits for the database.
    pub pending_events_max: usize,
    /// Pause before a full disk is tried again.
    pub retry: Duration,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            batch_events: 8_192,
            pending_events_max: 65_536,
            retry: Duration::from_secs(1),
        }
    }
}

#[derive(Default)]
struct State {
    /// What comes in.
    fresh: Batch,
    /// What is being moved into the database.
    leaving: Option<Arc<Batch>>,
    /// Up to where the database goes; `None`: there is none yet.
    stored: Option<Head>,
    /// Newest id that the database may hold.
    newest: Ulid,
    failed: Option<EngineError>,
    ended: bool,
}

struct Shared {
    /// Where the database is; `None`: all of it stays in memory.
    dir: Option<PathBuf>,
    sizes: Sizes,
    state: Watched<State>,
}

/// The index as the writer has it.
pub struct Index {
    shared: Arc<Shared>,
    log: Ulid,
    thread: Option<JoinHandle<()>>,
}

impl Index {
    /// An index that stays in memory.
    #[cfg(test)]
    pub fn in_memory(log: Ulid) -> Self {
        Self::new(None, log, Sizes::default(), State::default())
    }

    /// The index in `dir` with what an orderly end left there, else an empty one. The caller adds
    /// every commit behind [`Index::head`].
    pub fn open(dir: &Path, log: Ulid) -> Result<Self, EngineError> {
        Self::open_sized(dir, log, Sizes::default())
    }

    /// The same, with less or more of it in memory.
    pub fn open_sized(dir: &Path, log: Ulid, sizes: Sizes) -> Result<Self, EngineError> {
        let found = store::unseal(dir, log)?;
        let state = found.map_or_else(State::default, |sealed| State {
            stored: Some(sealed.head),
            newest: sealed.newest,
            ..State::default()
        });
        Ok(Self::new(Some(dir.to_owned()), log, sizes, state))
    }

    fn new(dir: Option<PathBuf>, log: Ulid, sizes: Sizes, state: State) -> Self {
        let shared = Shared {
            dir,
            sizes,
            state: Watched::new(state),
        };
        Self {
            shared: Arc::new(shared),
            log,
            thread: None,
        }
    }

    /// Throws away what the index has: it is of another history.
    pub fn clear(&mut self) -> Result<(), EngineError> {
        *self.shared.state.lock() = State::default();
        match &self.shared.dir {
            Some(dir) => store::unseal(dir, self.log).map(drop),
            None => Ok(()),
        }
    }

    /// The last commit in the index.
    pub fn head(&self) -> Option<Head> {
        let state = self.shared.state.lock();
        let leaving = state.leaving.as_ref().and_then(|batch| batch.head);
        state.fresh.head.or(leaving).or(state.stored)
    }

    /// Takes the next commits in.
    pub fn add(&self, commits: &[Commit]) {
        let mut state = self.shared.state.lock();
        for commit in commits {
            state.fresh.add(commit);
        }
        let due = self.thread.is_some() && state.fresh.len() >= self.shared.sizes.batch_events;
        drop(state);
        if due {
            self.shared.state.tell();
        }
    }

    /// Makes sure that there is room for one more group: waits when the database is far behind, and
    /// fails when it can't be written, so that memory stays bounded.
    pub fn room(&mut self) -> Result<(), EngineError> {
        let mut state = self.shared.state.lock();
        if self.shared.dir.is_none() || state.fresh.len() < self.shared.sizes.batch_events {
            return Ok(());
        }
        if self.thread.is_none() {
            drop(state);
            self.start()?;
            state = self.shared.state.lock();
        }
        while state.fresh.len() >= self.shared.sizes.pending_events_max {
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            state = self.shared.state.wait(state);
        }
        Ok(())
    }

    /// Starts the thread that writes the database.
    fn start(&mut self) -> Result<(), EngineError> {
        if self.thread.is_some() {
            return Ok(());
        }
        let Some(dir) = self.shared.dir.clone() else {
            return Ok(());
        };
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name("oc-log-index".into())
            .spawn(move || run(&dir, &shared))
            .map_err(|error| EngineError::Io(format!("the index: {error}")))?;
        self.thread = Some(thread);
        Ok(())
    }

    /// The orderly end: everything into the database, and a seal on it. A log that never grew
    /// beyond memory leaves no database. Every failure only costs the next opening time.
    pub fn close(&mut self) {
        self.stop();
        let Some(dir) = self.shared.dir.clone() else {
            return;
        };
        let mut state = self.shared.state.lock();
        let State {
            fresh,
            leaving,
            stored,
            newest,
            failed,
            ..
        } = &mut *state;
        if stored.is_none() || leaving.is_some() || failed.is_some() {
            return;
        }
        let log = self.log;
        let sealed = Store::writer(&dir).and_then(|mut store| {
            store.write(fresh)?;
            let newest = fresh.newest.max(*newest);
            let head = fresh.head.or(*stored).ok_or(EngineError::HeadMoved)?;
            store
                .seal(&dir, log, head, newest)
                .map_err(|error| EngineError::Io(error.to_string()))
        });
        if let Err(error) = sealed {
            tracing::info!(%error, "the index is made anew at the next start");
        }
    }

    fn stop(&mut self) {
        self.shared.state.lock().ended = true;
        self.shared.state.tell();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has left its batch in memory: no seal is made then.
            let _ = thread.join();
        }
    }

    /// One more way to look things up.
    pub fn lookup(&self) -> Lookup {
        Lookup {
            shared: Arc::clone(&self.shared),
            store: OnceCell::new(),
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Moves batches into the database until the index ends.
fn run(dir: &Path, shared: &Shared) {
    let _watch = Watch(shared);
    // Whoever waits for a commit goes first: the index catches up when there is time, and the writer
    // waits for it only when memory is full. Without the permission it just competes.
    let _ = rustix::process::nice(INDEX_NICE);
    let Some(mut store) = persist(shared, || Store::writer(dir)) else {
        return;
    };
    loop {
        // Grown here and not under the writer's hands.
        let next = Batch::with_room(shared.sizes.batch_events * 2);
        let mut state = shared.state.lock();
        while state.fresh.len() < shared.sizes.batch_events && !state.ended {
            state = shared.state.wait(state);
        }
        if state.ended {
            return;
        }
        let batch = Arc::new(std::mem::replace(&mut state.fresh, next));
        // Before the database has them: look-ups must not believe that it can't.
        state.newest = state.newest.max(batch.newest);
        state.leaving = Some(Arc::clone(&batch));
        drop(state);
        if persist(shared, || store.write(&batch)).is_none() {
            return;
        }
        let mut state = shared.state.lock();
        state.stored = batch.head;
        state.leaving = None;
        drop(state);
        shared.state.tell();
    }
}

/// Tries until it works, since a full disk may get room again. `None`: it can't work, which
/// everybody has been told, or the index has ended meanwhile.
fn persist<T>(shared: &Shared, mut work: impl FnMut() -> Result<T, EngineError>) -> Option<T> {
    loop {
        let error = match work() {
            Ok(done) => {
                shared.state.lock().failed = None;
                return Some(done);
            }
            Err(error) => error,
        };
        let full = matches!(error, EngineError::Full);
        fail(shared, error);
        if !full || rest(shared) {
            return None;
        }
    }
}

/// Sees to it that nobody waits for a thread that panicked.
struct Watch<'a>(&'a Shared);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            fail(self.0, EngineError::Io("the index's thread ended".into()));
        }
    }
}

/// Waits before the next attempt on a full disk; returns whether the index has ended.
fn rest(shared: &Shared) -> bool {
    let state = shared.state.lock();
    shared
        .state
        .wait_while(state, shared.sizes.retry, |state| !state.ended)
        .ended
}

fn fail(shared: &Shared, error: EngineError) {
    let mut state = shared.state.lock();
    if state.failed.is_none() {
        tracing::error!(%error, "the index of the event log can't be written");
    }
    state.failed = Some(error);
    drop(state);
    shared.state.tell();
}

/// A way to look things up. Has a connection of its own once there is a database.
pub struct Lookup {
    shared: Arc<Shared>,
    store: OnceCell<Store>,
}

impl Lookup {
    /// The last revision of a stream; `None`: it has no event.
    pub fn last_revision(&self, stream: &StreamId) -> Result<Option<u64>, EngineError> {
        let state = self.shared.state.lock();
        let leaving = state.leaving.as_ref();
        let run = state.fresh.streams.get(stream);
        let run = run.or_else(|| leaving.and_then(|batch| batch.streams.get(stream)));
        if let Some(run) = run {
            return Ok(Some(run.last()));
        }
        let has_store = state.stored.is_some();
        drop(state);
        match has_store {
            true => self.store()?.last_revision(stream),
            false => Ok(None),
        }
    }

    /// Positions of up to `limit` revisions of a stream from `from` on.
    pub fn positions(
        &self,
        stream: &StreamId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<u64>, EngineError> {
        let state = self.shared.state.lock();
        let mut recent = Vec::new();
        let mut begins = None;
        let leaving = state.leaving.as_deref();
        for batch in leaving.into_iter().chain([&state.fresh]) {
            let Some(run) = batch.streams.get(stream) else {
                continue;
            };
            begins.get_or_insert(run.first);
            let skip = usize::try_from(from.saturating_sub(run.first)).unwrap_or(usize::MAX);
            let room = limit.saturating_sub(recent.len());
            recent.extend(run.positions.iter().skip(skip).take(room));
        }
        let has_store = state.stored.is_some();
        drop(state);
        // Nothing before the runs in memory, or nothing asked for there.
        if !has_store || begins.is_some_and(|begins| begins <= from) {
            return Ok(recent);
        }
        // Bounded by where memory begins: a batch may have reached the database by now.
        let wanted = begins.map_or(limit, |begins| {
            usize::try_from(begins - from).map_or(limit, |gap| gap.min(limit))
        });
        let mut positions = self.store()?.positions(stream, from, wanted)?;
        positions.extend(recent);
        positions.truncate(limit);
        Ok(positions)
    }

    /// Position of a command's first event.
    pub fn command(&self, id: Ulid) -> Result<Option<u64>, EngineError> {
        self.position(id, |batch| batch.commands.get(&id), Store::command)
    }

    /// Position of an event.
    pub fn event(&self, id: Ulid) -> Result<Option<u64>, EngineError> {
        self.position(id, |batch| batch.events.get(&id), Store::event)
    }

    fn position(
        &self,
        id: Ulid,
        recent: impl Fn(&Batch) -> Option<&u64>,
        stored: impl Fn(&Store, Ulid) -> Result<Option<u64>, EngineError>,
    ) -> Result<Option<u64>, EngineError> {
        let state = self.shared.state.lock();
        // Ids begin with a time, so almost every new one is newer than all that there are. What
        // leaves counts as stored in this.
        if id > state.newest.max(state.fresh.newest) {
            return Ok(None);
        }
        let leaving = state.leaving.as_deref();
        let found = recent(&state.fresh).or_else(|| leaving.and_then(&recent));
        if let Some(position) = found {
            return Ok(Some(*position));
        }
        if state.stored.is_none() || id > state.newest {
            return Ok(None);
        }
        drop(state);
        stored(self.store()?, id)
    }

    fn store(&self) -> Result<&Store, EngineError> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let dir = self.shared.dir.as_ref().ok_or(EngineError::HeadMoved)?;
        let opened = Store::reader(dir)?;
        Ok(self.store.get_or_init(|| opened))
    }
}
