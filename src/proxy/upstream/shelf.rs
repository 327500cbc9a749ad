//! What is kept of each host: unused connections, shared ones, and what was learned about it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OnceCell, Semaphore};

use super::EXCHANGES_MAX;
use super::link::{Many, One, Share};
use crate::proxy::origin::Origin;
use crate::proxy::refusal::Refusal;

/// Hosts remembered; one that has not been asked for the longest is forgotten first.
const ORIGINS_MAX: usize = 256;

/// A dial that several requests wait for.
pub(super) type Flight = Arc<OnceCell<Result<(), Refusal>>>;

/// Which versions a host speaks, as far as it showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    Unknown,
    OnlyOne,
    OnlyTwo,
}

/// One host's.
pub(super) struct Shelf {
    pub speaks: Speaks,
    /// It answered `411` to a body without a length.
    pub wants_length: bool,
    /// Places for HTTP/1.1 exchanges.
    pub exchanges: Arc<Semaphore>,
    idle: Vec<(One, Instant)>,
    shared: Vec<(Arc<Many>, Instant)>,
    flight: Option<Flight>,
    asked: Instant,
}

impl Shelf {
    fn new() -> Self {
        Self {
            speaks: Speaks::Unknown,
            wants_length: false,
            exchanges: Arc::new(Semaphore::new(EXCHANGES_MAX)),
            idle: Vec::new(),
            shared: Vec::new(),
            flight: None,
            asked: Instant::now(),
        }
    }

    /// A share of a connection that has room.
    pub fn share(&mut self) -> Option<Share> {
        self.shared.retain(|(many, _)| !many.is_closed());
        let asked = self.asked;
        self.shared.iter_mut().find_map(|(many, used)| {
            let share = many.share()?;
            *used = asked;
            Some(share)
        })
    }

    /// A new connection to share.
    pub fn add(&mut self, many: Arc<Many>) {
        self.shared.push((many, Instant::now()));
    }

    /// The dial under way, or one to begin.
    pub fn flight(&mut self) -> Flight {
        self.flight.get_or_insert_default().clone()
    }

    /// A dial is over: the next request that finds nothing begins another.
    pub fn landed(&mut self, flight: &Flight) {
        self.flight.take_if(|present| Arc::ptr_eq(present, flight));
    }

    fn is_empty(&self) -> bool {
        self.idle.is_empty() && self.shared.is_empty()
    }
}

/// All hosts' of one sandbox.
#[derive(Default)]
pub(super) struct Shelves {
    /// Grows when everything is forgotten.
    pub generation: u64,
    /// Whether a task looks after them.
    pub swept: bool,
    by_origin: HashMap<Arc<Origin>, Shelf, foldhash::fast::RandomState>,
    idle: usize,
}

impl Shelves {
    /// A host's shelf.
    pub fn of(&mut self, origin: &Arc<Origin>) -> &mut Shelf {
        if !self.by_origin.contains_key(origin) && self.by_origin.len() >= ORIGINS_MAX {
            self.forget_one();
        }
        let shelf = self
            .by_origin
            .entry(origin.clone())
            .or_insert_with(Shelf::new);
        shelf.asked = Instant::now();
        shelf
    }

    /// Whether a host is known to want the length of every body.
    pub fn wants_length(&self, origin: &Origin) -> bool {
        self.by_origin
            .get(origin)
            .is_some_and(|shelf| shelf.wants_length)
    }

    fn forget_one(&mut self) {
        let oldest = self.by_origin.iter().min_by_key(|(_, shelf)| shelf.asked);
        if let Some(origin) = oldest.map(|(origin, _)| origin.clone())
            && let Some(shelf) = self.by_origin.remove(&origin)
        {
            self.idle -= shelf.idle.len();
        }
    }

    pub fn clear(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.by_origin.clear();
        self.idle = 0;
    }

    pub fn keep(&mut self, permitted: impl Fn(&Origin) -> bool) {
        let (mut gone, before) = (0, self.by_origin.len());
        self.by_origin.retain(|origin, shelf| {
            let keep = permitted(origin);
            if !keep {
                gone += shelf.idle.len();
            }
            keep
        });
        if self.by_origin.len() < before {
            // Connections in use don't come back: they may be to a host that was let go.
            self.generation = self.generation.wrapping_add(1);
        }
        self.idle -= gone;
    }

    /// The connection that was used last, which the host is the least likely to have closed.
    pub fn take_idle(&mut self, origin: &Origin) -> Option<One> {
        let (one, _) = self.by_origin.get_mut(origin)?.idle.pop()?;
        self.idle -= 1;
        Some(one)
    }

    /// Keeps `one`; in place of the one unused the longest when there are `max`.
    pub fn put(&mut self, origin: &Arc<Origin>, one: One, max: usize) {
        if self.idle >= max {
            let oldest = |shelf: &Shelf| shelf.idle.first().map(|(_, since)| *since);
            let shelves = self.by_origin.values_mut();
            let with_idle = shelves.filter(|shelf| !shelf.idle.is_empty());
            if let Some(shelf) = with_idle.min_by_key(|shelf| oldest(shelf)) {
                shelf.idle.remove(0);
                self.idle -= 1;
            }
        }
        self.of(origin).idle.push((one, Instant::now()));
        self.idle += 1;
    }

    /// Closes what was not used for `limit`; whether anything is left.
    pub fn sweep(&mut self, now: Instant, limit: Duration) -> bool {
        let fresh = |since: &Instant| now.saturating_duration_since(*since) < limit;
        for shelf in self.by_origin.values_mut() {
            shelf
                .idle
                .retain_mut(|(one, since)| !one.is_closed() && fresh(since));
            shelf.shared.retain_mut(|(many, used)| {
                if !many.is_idle() {
                    *used = now;
                }
                !many.is_closed() && fresh(used)
            });
        }
        self.idle = self.by_origin.values().map(|shelf| shelf.idle.len()).sum();
        self.by_origin.values().any(|shelf| !shelf.is_empty())
    }
}
