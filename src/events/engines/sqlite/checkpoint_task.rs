//! Moves the write-ahead log into the database while the writer goes on appending, from a thread and
//! a connection of its own: copying and syncing megabytes is not in the way of a commit.
//!
//! What is appended meanwhile stays in the write-ahead log. So the thread goes over it again until
//! little is left, and leaves the last few pages to the writer, between two groups: only when all of
//! it is copied does the write-ahead log begin anew.
//!
//! Invariants: SQLite lets go of no page of the write-ahead log before its copy is synced, whoever
//! copies it; a failure is reported to the writer, which then stops.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rusqlite::{Connection, OpenFlags};

use super::checkpoint;
use super::open::{connect, settle};
use crate::events::error::EngineError;
use crate::events::watched::Watched;

/// Pages copied in one go at which it is the writer's turn.
const LITTLE_PAGES: i64 = 64;
/// Most goes in a row: a writer that is faster than the disk gets to wait for it.
const GOES_MAX: u32 = 8;

#[derive(Default)]
struct State {
    wanted: bool,
    done: Option<Result<(), EngineError>>,
    ended: bool,
}

/// The thread, which ends with this.
pub struct CheckpointTask {
    shared: Arc<Watched<State>>,
    thread: Option<JoinHandle<()>>,
    under_way: bool,
}

impl CheckpointTask {
    /// Starts the thread for the database at `path`.
    pub fn start(path: PathBuf) -> std::io::Result<Self> {
        let shared = Arc::<Watched<State>>::default();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("oc-log-copy".into())
            .spawn(move || run(&path, &theirs))?;
        Ok(Self {
            shared,
            thread: Some(thread),
            under_way: false,
        })
    }

    /// Whether it was begun and its end not seen yet.
    pub fn is_under_way(&self) -> bool {
        self.under_way
    }

    /// Begins.
    pub fn begin(&mut self) {
        self.under_way = true;
        self.shared.lock().wanted = true;
        self.shared.tell();
    }

    /// How it ended; `None`: it goes on, and nobody is to `wait` for it.
    pub fn ended(&mut self, wait: bool) -> Option<Result<(), EngineError>> {
        let mut state = self.shared.lock();
        while wait && state.done.is_none() {
            state = self.shared.wait(state);
        }
        let done = state.done.take()?;
        self.under_way = false;
        Some(done)
    }
}

impl Drop for CheckpointTask {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.tell();
        if let Some(thread) = self.thread.take() {
            // If it panicked, there is nothing left to wait for.
            let _ = thread.join();
        }
    }
}

/// Sees to it that nobody waits for a thread that panicked.
struct Watch<'a>(&'a Watched<State>);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let ended = EngineError::Io("the checkpoints' thread ended".into());
            self.0.lock().done = Some(Err(ended));
            self.0.tell();
        }
    }
}

fn run(path: &Path, shared: &Watched<State>) {
    let _watch = Watch(shared);
    let mut conn = None;
    let mut state = shared.lock();
    while !state.ended {
        if !std::mem::take(&mut state.wanted) {
            state = shared.wait(state);
            continue;
        }
        drop(state);
        let done = copy(path, &mut conn);
        state = shared.lock();
        state.done = Some(done);
        shared.tell();
    }
}

/// Goes over the write-ahead log until little was left to copy.
fn copy(path: &Path, conn: &mut Option<Connection>) -> Result<(), EngineError> {
    let conn = match conn {
        Some(conn) => conn,
        None => {
            let fresh = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            settle(&fresh)?;
            conn.insert(fresh)
        }
    };
    let mut copied = 0;
    for _ in 0..GOES_MAX {
        let (log_pages, done_pages) = checkpoint(conn, "PASSIVE")?;
        let new = done_pages - copied;
        // A reader that still needs the rest is not waited for here.
        if done_pages < log_pages || new <= LITTLE_PAGES {
            break;
        }
        copied = done_pages;
    }
    Ok(())
}
