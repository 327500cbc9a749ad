//! When a sandbox was last used, and who uses it now: what its idle timeout counts from.
//!
//! Invariants: a sandbox that somebody uses is never idle; a use ends by dropping it, however its
//! task ends; the clock starts anew at each use's end.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::live::LiveSandbox;

/// The activity of one living sandbox.
pub struct Activity {
    began: Instant,
    /// Last sign of use, in milliseconds since `began`.
    last_ms: AtomicU64,
    users: AtomicUsize,
    timeout_sec: AtomicU32,
    left: watch::Sender<bool>,
}

impl Activity {
    /// Of a sandbox that just came up, with its idle timeout in seconds (0: never).
    pub(super) fn new(timeout_sec: u32) -> Self {
        Self {
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
            users: AtomicUsize::new(0),
            timeout_sec: AtomicU32::new(timeout_sec),
            left: watch::Sender::new(false),
        }
    }

    /// A sign of use.
    pub fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.fetch_max(now, Ordering::Relaxed);
    }

    /// Another idle timeout, from now on.
    pub(super) fn set_timeout(&self, seconds: u32) {
        self.timeout_sec.store(seconds, Ordering::Relaxed);
        self.touch();
    }

    /// Whether nobody uses it and nobody has for as long as its timeout says.
    pub(super) fn is_overdue(&self) -> bool {
        let timeout = self.timeout_sec.load(Ordering::Relaxed);
        if timeout == 0 || self.users.load(Ordering::Acquire) > 0 {
            return false;
        }
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last) >= Duration::from_secs(timeout.into())
    }

    /// The server lets go of the sandbox: it sleeps, starts anew or is gone.
    pub(super) fn leave(&self) {
        self.left.send_replace(true);
    }

    /// Resolves when the server lets go of the sandbox. What is attached ends then.
    pub async fn left(&self) {
        let mut left = self.left.subscribe();
        // The sender lives as long as this does.
        let _ = left.wait_for(|left| *left).await;
    }
}

/// A living sandbox in use: as long as this is there, it does not fall asleep by itself.
pub struct InUse(Arc<LiveSandbox>);

impl InUse {
    pub(super) fn new(live: &Arc<LiveSandbox>) -> Self {
        live.activity.users.fetch_add(1, Ordering::AcqRel);
        live.activity.touch();
        Self(live.clone())
    }

    /// The sandbox without the use, for what goes on when nobody cares.
    pub fn unattended(&self) -> Arc<LiveSandbox> {
        self.0.clone()
    }
}

impl Clone for InUse {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Deref for InUse {
    type Target = LiveSandbox;
    fn deref(&self) -> &LiveSandbox {
        &self.0
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.activity.touch();
        self.0.activity.users.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the clock counts from the last use, never while there is one, and 0 means never.
    #[test]
    fn only_an_unused_sandbox_becomes_overdue() {
        let long_ago = Instant::now()
            .checked_sub(Duration::from_secs(100))
            .unwrap();
        let check = |timeout, users, last_sec: u64| {
            let activity = Activity {
                began: long_ago,
                last_ms: AtomicU64::new(last_sec * 1000),
                users: AtomicUsize::new(users),
                ..Activity::new(timeout)
            };
            activity.is_overdue()
        };
        assert!(check(10, 0, 85));
        assert!(!check(10, 0, 95));
        assert!(!check(10, 1, 0));
        assert!(!check(0, 0, 0));
        let activity = Activity {
            began: long_ago,
            ..Activity::new(10)
        };
        assert!(activity.is_overdue());
        activity.touch();
        assert!(!activity.is_overdue());
        activity.set_timeout(0);
        assert!(!activity.is_overdue());
    }
}
