//! One request for each idempotency key at a time, the others wait. This only makes waiting cheap
//! and answers exact: that a key makes one object is kept by the log's expectations.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Mutex as Lock, OwnedMutexGuard};

use crate::events::StreamId;

type Locks = Arc<Mutex<HashMap<StreamId, Weak<Lock<()>>>>>;

/// The keys that are in somebody's hands.
#[derive(Default)]
pub(super) struct Turns(Locks);

/// One request's turn; the next one's begins when it is dropped.
pub(super) struct Turn {
    guard: Option<OwnedMutexGuard<()>>,
    locks: Locks,
}

impl Turns {
    /// Waits at most `longest` for the turn of one request with this key; `None`: it did not come.
    pub(super) async fn take(&self, key: &StreamId, longest: Duration) -> Option<Turn> {
        let lock = {
            let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let known = locks.get(key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                locks.insert(key.clone(), Arc::downgrade(&lock));
                lock
            })
        };
        let guard = tokio::time::timeout(longest, lock.lock_owned()).await;
        guard.ok().map(|guard| Turn {
            guard: Some(guard),
            locks: self.0.clone(),
        })
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        drop(self.guard.take());
        // Whoever waits holds the lock's other end; the rest is swept, ours among it.
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Goal: turns of one key follow each other, other keys don't wait, and nothing is kept after.
    #[tokio::test]
    async fn turns_of_one_key_follow_each_other() {
        let (turns, inside) = (Arc::new(Turns::default()), Arc::new(AtomicUsize::new(0)));
        let key = |text: &str| StreamId::new(text).unwrap();
        let elsewhere = turns.take(&key("other"), LONG).await.unwrap();
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (turns, inside, key) = (turns.clone(), inside.clone(), key("one"));
                tokio::spawn(async move {
                    let _turn = turns.take(&key, LONG).await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        drop(elsewhere);
        assert_eq!(turns.len(), 0);
    }

    /// Goal: who waits too long is told so, and leaves nothing behind.
    #[tokio::test]
    async fn waiting_has_an_end() {
        let turns = Turns::default();
        let key = StreamId::new("one").unwrap();
        let held = turns.take(&key, LONG).await.unwrap();
        let short = Duration::from_millis(20);
        assert!(turns.take(&key, short).await.is_none());
        drop(held);
        assert!(turns.take(&key, LONG).await.is_some());
        assert_eq!(turns.len(), 0);
    }
}
