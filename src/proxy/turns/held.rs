//! The memory that the bodies of one sandbox hold beyond their buffers, counted.
//!
//! Invariant: what is set aside comes back when it is dropped, and no earlier.

use std::sync::atomic::Ordering;

use super::Share;

/// Bytes that the bodies of one sandbox may hold at once beyond their buffers: windows of
/// decoders, messages being gathered.
const HELD_BYTES_MAX: usize = 512 * 1024 * 1024;

impl Share {
    /// Sets `bytes` of memory aside until the answer is dropped; `None` when the sandbox holds too
    /// much already.
    pub fn hold(&self, bytes: usize) -> Option<Held> {
        let room = |held: usize| Some(held + bytes).filter(|&held| held <= HELD_BYTES_MAX);
        let held = &self.0.held_bytes;
        held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
            .ok()?;
        Some(Held {
            share: self.clone(),
            bytes,
        })
    }

    /// Whether a quarter of the memory is taken: time to ask for less.
    pub fn is_short_of_memory(&self) -> bool {
        self.0.held_bytes.load(Ordering::Relaxed) > HELD_BYTES_MAX / 4
    }
}

/// Memory set aside.
pub(crate) struct Held {
    share: Share,
    bytes: usize,
}

impl Held {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sets more aside; `false` when there is none.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let more = self.share.hold(bytes);
        if let Some(mut more) = more {
            self.bytes += std::mem::take(&mut more.bytes);
            return true;
        }
        false
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let held = &self.share.0.held_bytes;
        held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
