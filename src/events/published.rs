//! What the writer shows to readers and subscribers.
//!
//! Invariants: the head is on disk before it is shown; it only grows; once a
//! reason to stop is shown the head stays.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use super::event::Head;
use super::recent::Recent;

/// Where the log is, as everyone may know it.
#[derive(Debug, Clone)]
pub struct State {
    pub head: Head,
    /// Set once, for good, with the reason.
    pub stopped: Option<Arc<str>>,
}

/// What the writer shows to the rest.
pub struct Published {
    pub state: watch::Sender<State>,
    pub recent: Mutex<Recent>,
    pub commits: AtomicU64,
    pub groups: AtomicU64,
}

impl Published {
    /// A log that ends at `head` and goes on.
    pub fn new(head: Head) -> Self {
        Self {
            state: watch::Sender::new(State {
                head,
                stopped: None,
            }),
            recent: Mutex::default(),
            commits: AtomicU64::new(0),
            groups: AtomicU64::new(0),
        }
    }

    /// Says that the log has stopped; the first reason stays.
    pub fn stop(&self, reason: &str) {
        self.state.send_if_modified(|state| {
            let first = state.stopped.is_none();
            state.stopped.get_or_insert_with(|| reason.into());
            first
        });
    }
}
