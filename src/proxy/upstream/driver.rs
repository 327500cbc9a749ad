//! What moves the bytes of one HTTP/1.1 connection to a host: the task of the request that holds
//! it, or a task of its own.
//!
//! A small exchange through a task of its own costs a trip through the scheduler for each step of
//! it: to send, to tell of the head, to ask for the body, to bring it. On the request's own task
//! all of them happen in one poll.
//!
//! Invariant: whoever waits for something of the connection drives it while it waits, so nothing
//! waits for a connection that nobody moves.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use tokio_util::task::AbortOnDropHandle;

/// How often a connection is driven before other tasks get a turn.
const ROUNDS_MAX: usize = 8;

type Connection = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Dropped, it cuts the connection.
pub(super) enum Driver {
    /// Polled by whoever waits for the connection.
    Here(Here),
    /// Runs by itself.
    Apart { _task: AbortOnDropHandle<()> },
}

pub(super) struct Here {
    /// Absent when it has ended.
    connection: Option<Connection>,
    nudge: Arc<Nudge>,
    waker: Waker,
}

/// Wakes whoever waits for the connection, unless it is being driven: then it is driven once more.
struct Nudge {
    driver: AtomicWaker,
    driven: AtomicBool,
    /// The connection has something to do.
    again: AtomicBool,
}

impl Wake for Nudge {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.again.store(true, Ordering::SeqCst);
        if !self.driven.load(Ordering::SeqCst) {
            self.driver.wake();
        }
    }
}

impl Driver {
    /// Drives `connection` from the task of whoever holds it.
    pub fn here(connection: impl Future<Output = ()> + Send + 'static) -> Self {
        let nudge = Arc::new(Nudge {
            driver: AtomicWaker::new(),
            driven: AtomicBool::new(false),
            again: AtomicBool::new(true),
        });
        Self::Here(Here {
            connection: Some(Box::pin(connection)),
            waker: Waker::from(nudge.clone()),
            nudge,
        })
    }

    /// Drives `connection` from a task of its own.
    pub fn apart(connection: impl Future<Output = ()> + Send + 'static) -> Self {
        Self::Apart {
            _task: AbortOnDropHandle::new(tokio::spawn(connection)),
        }
    }

    /// Gives the connection a task of its own: what waits for it may pause while it goes on.
    pub fn part(&mut self) {
        if let Self::Here(here) = self
            && let Some(connection) = here.connection.take()
        {
            *self = Self::apart(connection);
        }
    }

    /// Polls what comes of the connection, `wanted`, and drives it as long as that leads further.
    pub fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut wanted: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        match self {
            Self::Apart { .. } => wanted(cx),
            Self::Here(here) => {
                here.nudge.driver.register(cx.waker());
                here.poll_with(wanted)
            }
        }
    }

    /// Forgets who waited, and what was told since: the connection waits for the next request.
    pub fn rest(&mut self) {
        if let Self::Here(here) = self {
            drop(here.nudge.driver.take());
            here.nudge.again.store(false, Ordering::SeqCst);
        }
    }

    /// Moves on what can be moved while nobody waits.
    pub fn settle(&mut self) {
        if let Self::Here(here) = self {
            let _ = here.poll_with(|_| Poll::<()>::Pending);
        }
    }
}

impl Here {
    fn poll_with<T>(&mut self, mut wanted: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let nudge = &*self.nudge;
        nudge.driven.store(true, Ordering::SeqCst);
        let mut found = wanted(&mut Context::from_waker(Waker::noop()));
        for _ in 0..ROUNDS_MAX {
            if found.is_ready() || !nudge.again.swap(false, Ordering::SeqCst) {
                break;
            }
            if let Some(connection) = &mut self.connection {
                let mut cx = Context::from_waker(&self.waker);
                if connection.as_mut().poll(&mut cx).is_ready() {
                    self.connection = None;
                }
            }
            // Only the connection brings what is wanted: nobody need be woken for it.
            found = wanted(&mut Context::from_waker(Waker::noop()));
        }
        // Whoever wakes says so before looking whether it is driven, and this looks the other way
        // round: one of the two sees the other.
        nudge.driven.store(false, Ordering::SeqCst);
        if found.is_pending() && nudge.again.load(Ordering::SeqCst) {
            nudge.driver.wake();
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::thread;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// Goal: news that come from another thread at any moment, also while the connection is being
    /// driven, are never lost.
    #[tokio::test]
    async fn news_from_other_threads_arrive() {
        for _ in 0..500 {
            let there = Arc::new(AtomicBool::new(false));
            let (mut begun, moved) = (false, Arc::new(AtomicBool::new(false)));
            let (told, seen) = (there.clone(), moved.clone());
            let mut driver = Driver::here(poll_fn(move |cx| {
                if !std::mem::replace(&mut begun, true) {
                    let (waker, told) = (cx.waker().clone(), told.clone());
                    thread::spawn(move || {
                        told.store(true, Ordering::SeqCst);
                        waker.wake();
                    });
                }
                seen.store(told.load(Ordering::SeqCst), Ordering::SeqCst);
                Poll::<()>::Pending
            }));
            let wanted = |_: &mut Context<'_>| match moved.load(Ordering::SeqCst) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            };
            let waited = poll_fn(|cx| driver.poll_with(cx, wanted));
            let waited = timeout(Duration::from_secs(10), waited).await;
            assert!(waited.is_ok(), "the connection is driven for its news");
        }
    }

    /// Goal: a connection that always has something to do leaves its thread to others.
    #[tokio::test]
    async fn a_busy_connection_lets_others_run() {
        let mut driver = Driver::here(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        let never = poll_fn(|cx| driver.poll_with(cx, |_| Poll::<()>::Pending));
        assert!(timeout(Duration::from_millis(20), never).await.is_err());
    }
}
