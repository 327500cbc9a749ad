//! The last events in memory, so that a live subscriber does not read each one from disk.
//!
//! Invariant: the events are consecutive by position and end at the published head. Bounded by
//! number and by bytes, beyond which it has one group at most; whoever is further behind reads the
//! log itself.

use std::collections::VecDeque;
use std::sync::Arc;

use super::event::Recorded;

/// Most events kept.
const EVENTS_MAX: usize = 4_096;
/// Most event data kept, in bytes (8 MiB).
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// A window over the end of the log.
#[derive(Default)]
pub struct Recent {
    events: VecDeque<Arc<Recorded>>,
    bytes: usize,
}

impl Recent {
    /// Adds the next event.
    pub fn push(&mut self, event: Arc<Recorded>) {
        self.bytes += event.data.get().len();
        self.events.push_back(event);
    }

    /// Forgets the oldest events beyond the bounds. Not part of adding one: to free an event takes
    /// as long as to add several, and callers wait for that.
    pub fn trim(&mut self) {
        while self.events.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.events.pop_front() else {
                break;
            };
            self.bytes -= oldest.data.get().len();
        }
    }

    /// Up to `limit` events from `position` on; `None` when the window does not reach back so far.
    pub fn from(&self, position: u64, limit: usize) -> Option<Vec<Arc<Recorded>>> {
        let first = self.events.front()?.position;
        let skip = usize::try_from(position.checked_sub(first)?).ok()?;
        Some(self.events.iter().skip(skip).take(limit).cloned().collect())
    }
}
