//! One at a time: whatever changes how a sandbox is in the world waits for its turn.
//!
//! Invariants: whoever holds a sandbox's turn is the only one that starts, stops, freezes or sizes it;
//! the reconciler leaves a sandbox alone while somebody works on it. A deletion commits its intent
//! before it waits, so those before it in the queue find the sandbox ended and do nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as Queue, OwnedMutexGuard};

use super::platform::Platform;
use crate::ids::SandboxId;

/// Who works on which sandbox.
#[derive(Default)]
pub(super) struct Turns {
    in_work: Mutex<HashMap<SandboxId, usize>>,
    queues: Mutex<HashMap<SandboxId, Weak<Queue<()>>>>,
}

impl Turns {
    fn queue(&self, id: &SandboxId) -> Arc<Queue<()>> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queues.get(id).and_then(Weak::upgrade) {
            return queue;
        }
        queues.retain(|_, queue| queue.strong_count() > 0);
        let queue = Arc::default();
        queues.insert(id.clone(), Arc::downgrade(&queue));
        queue
    }
}

/// Keeps the reconciler away from a sandbox while somebody works on it.
pub(super) struct InWork {
    id: SandboxId,
    turns: Arc<Turns>,
}

impl Drop for InWork {
    fn drop(&mut self) {
        let mut table = self
            .turns
            .in_work
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.id);
            }
        }
    }
}

/// The right to change how a sandbox is in the world; given back when dropped.
pub(super) struct Turn {
    _turn: OwnedMutexGuard<()>,
    _in_work: InWork,
}

impl Platform {
    pub(super) fn begin_work(&self, id: &SandboxId) -> InWork {
        let mut table = self
            .turns
            .in_work
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *table.entry(id.clone()).or_insert(0) += 1;
        InWork {
            id: id.clone(),
            turns: self.turns.clone(),
        }
    }

    pub(super) fn is_in_work(&self, id: &SandboxId) -> bool {
        self.turns
            .in_work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(id)
    }

    /// Waits for the turn at a sandbox, in the order of asking.
    pub(super) async fn take_turn(&self, id: &SandboxId) -> Turn {
        let in_work = self.begin_work(id);
        Turn {
            _turn: self.turns.queue(id).lock_owned().await,
            _in_work: in_work,
        }
    }

    /// The turn at a sandbox that nobody works on.
    pub(super) fn try_turn(&self, id: &SandboxId) -> Option<Turn> {
        let turn = self.turns.queue(id).try_lock_owned().ok()?;
        Some(Turn {
            _turn: turn,
            _in_work: self.begin_work(id),
        })
    }
}
