//! Following the log: first what is there, then what comes, without a gap and without a double.
//!
//! A subscription holds one number, the next position it will fetch, and at most one page of
//! events. A slow reader therefore costs nothing but its own delay: no queue grows for it, since
//! everything it has missed is in the log.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use tokio::sync::watch;

use super::error::{EngineError, ReadError};
use super::event::Recorded;
use super::published::{Published, State};
use super::readers::Readers;

/// Events fetched at once.
const PAGE_EVENTS: usize = 256;

/// One follower of the log. Made by [`super::EventLog::subscribe`].
pub struct Subscription {
    readers: Readers,
    published: Arc<Published>,
    state: watch::Receiver<State>,
    /// Position of the first event that is not in `page` yet.
    next: u64,
    page: VecDeque<Arc<Recorded>>,
}

impl Subscription {
    pub(super) fn new(readers: Readers, published: Arc<Published>, from: u64) -> Self {
        let state = published.state.subscribe();
        Self {
            readers,
            published,
            state,
            next: from.max(1),
            page: VecDeque::new(),
        }
    }

    /// The next event in order of position. Waits for one when there is none; safe to cancel.
    ///
    /// Fails with [`ReadError::Stopped`] when the log has ended and everything was delivered.
    pub async fn next(&mut self) -> Result<Arc<Recorded>, ReadError> {
        loop {
            if let Some(event) = self.page.pop_front() {
                return Ok(event);
            }
            let state = self.state.borrow_and_update().clone();
            if self.next <= state.head.position {
                let page = self.fetch(state.head.position).await?;
                self.next = page.back().map_or(self.next, |event| event.position + 1);
                self.page = page;
            } else if let Some(reason) = state.stopped {
                return Err(ReadError::Stopped {
                    reason: reason.to_string(),
                });
            } else if self.state.changed().await.is_err() {
                return Err(ReadError::Stopped {
                    reason: "its writer ended".into(),
                });
            }
        }
    }

    /// A page from `self.next` on, never empty, in order and without gaps.
    async fn fetch(&self, head: u64) -> Result<VecDeque<Arc<Recorded>>, ReadError> {
        let from = self.next;
        let remembered = {
            let recent = self
                .published
                .recent
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            recent.from(from, PAGE_EVENTS)
        };
        let page: VecDeque<Arc<Recorded>> = match remembered {
            Some(page) if !page.is_empty() => page.into(),
            _ => {
                let read = self
                    .readers
                    .run(move |view| view.events(from, PAGE_EVENTS))
                    .await;
                let read = read.map_err(ReadError::Engine)?;
                // What is on disk but not published yet is not acknowledged yet.
                read.into_iter()
                    .filter(|event| event.position <= head)
                    .collect()
            }
        };
        let in_order = !page.is_empty()
            && page
                .iter()
                .zip(from..)
                .all(|(event, position)| event.position == position);
        if in_order {
            return Ok(page);
        }
        Err(EngineError::Damaged(format!("an event from position {from} on is missing")).into())
    }
}
