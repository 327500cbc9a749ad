//! Keeps the witness close behind the head, from a thread of its own: the sync of the witness is
//! not in the way of the next group.
//!
//! Invariants: the witness is never ahead of what is synced in the log, since it is told only then;
//! it is at most [`PAUSE_MS`] and two syncs behind. Should a witness fail to be written, the next
//! append is refused and the log stops.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::witness::{Seen, Witness};
use crate::events::error::EngineError;
use crate::events::event::Head;
use crate::events::watched::Watched;

/// Rest after each sync, in milliseconds: a busy log shares its disk with few witnesses.
const PAUSE_MS: u64 = 10;

#[derive(Default)]
struct State {
    /// The newest head that is on disk and not in the witness.
    waiting: Option<Head>,
    writing: bool,
    /// The thread waits for a head and for nothing else.
    idle: bool,
    failed: Option<String>,
    /// Somebody waits for the witness: no rest before the next sync.
    hurry: bool,
    ended: bool,
}

/// The witness and its thread. Dropped in any way, it writes what it was told before it ends.
pub struct WitnessTask {
    shared: Arc<Watched<State>>,
    thread: Option<JoinHandle<()>>,
}

impl WitnessTask {
    /// Starts the thread for a log that `seen` names.
    pub fn start(witness: Witness, seen: Seen) -> std::io::Result<Self> {
        let shared = Arc::<Watched<State>>::default();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("oc-log-witness".into())
            .spawn(move || run(witness, seen, &theirs))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Says that the log is on disk up to `head`.
    pub fn saw(&self, head: Head) {
        let mut state = self.shared.lock();
        state.waiting = Some(head);
        let idle = state.idle;
        drop(state);
        // In its rest it would wake for nothing, at every group.
        if idle {
            self.shared.tell();
        }
    }

    /// Fails when a witness could not be written.
    pub fn check(&self) -> Result<(), EngineError> {
        match &self.shared.lock().failed {
            Some(what) => Err(EngineError::Io(what.clone())),
            None => Ok(()),
        }
    }

    /// Waits until the witness has seen all it was told.
    pub fn finish(&self) -> Result<(), EngineError> {
        let mut state = self.shared.lock();
        state.hurry = true;
        self.shared.tell();
        while (state.waiting.is_some() || state.writing) && state.failed.is_none() {
            state = self.shared.wait(state);
        }
        state.hurry = false;
        drop(state);
        self.check()
    }
}

impl Drop for WitnessTask {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.tell();
        if let Some(thread) = self.thread.take() {
            // The thread has no way to panic; if it did, there is nothing left to wait for.
            let _ = thread.join();
        }
    }
}

fn run(mut witness: Witness, seen: Seen, shared: &Watched<State>) {
    let mut state = shared.lock();
    loop {
        let Some(head) = state.waiting.take() else {
            if state.ended {
                return;
            }
            state.idle = true;
            state = shared.wait(state);
            state.idle = false;
            continue;
        };
        state.writing = true;
        drop(state);
        let written = witness.record(&Seen { head, ..seen });
        state = shared.lock();
        state.writing = false;
        shared.tell();
        if let Err(error) = written {
            let path = witness.file_path().display();
            state.failed = Some(format!("{path} can't be written: {error}"));
            return;
        }
        let pause = Duration::from_millis(PAUSE_MS);
        state = shared.wait_while(state, pause, |state| !state.ended && !state.hurry);
    }
}
