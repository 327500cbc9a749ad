//! Finds the actor of an entity, or starts it. Invariants: the registry holds addresses only; an
//! entity that left memory is started again by the next message, from its stream; a bounded number
//! is in memory, those that were asked for last.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;
use ulid::Ulid;

use super::aggregate::Aggregate;
use super::entity::{Await, Beside, Done, Entity, Execute, Failure, Inspect, Leave};
use super::loading::{Resident, Source};
use crate::events::{Actor as Who, EventLog, Snapshots, StreamId};

/// Commands waiting for one entity before callers wait too.
const MAILBOX_MAX: usize = 256;
/// Attempts at an entity that leaves memory the moment it is asked.
const ATTEMPTS_MAX: usize = 3;
/// Entities asked in one wait, each because the one before left memory.
const WAITS_MAX: usize = 64;
/// Most entities of one kind in memory, besides those that are just leaving.
const RESIDENT_MAX: usize = 4_096;
/// Entities told to leave when there are that many.
const LEAVING_AT_ONCE: usize = RESIDENT_MAX / 8;

/// The threads that entity and proxy actors run on.
#[derive(Clone)]
pub struct Arbiters(Arc<(Vec<ArbiterHandle>, AtomicUsize)>);

impl Arbiters {
    /// Starts `count` threads.
    pub fn start(count: usize) -> Self {
        let handles = (0..count.max(1)).map(|_| Arbiter::new().handle()).collect();
        Self(Arc::new((handles, AtomicUsize::new(0))))
    }

    /// The next thread in turn.
    pub fn next(&self) -> ArbiterHandle {
        let (handles, turn) = &*self.0;
        handles[turn.fetch_add(1, Ordering::Relaxed) % handles.len()].clone()
    }
}

/// An entity's address and when it was last asked for.
struct Entry<A: Aggregate + Unpin> {
    address: Addr<Entity<A>>,
    /// Number of the request, of all requests to the registry.
    used: u64,
}

struct Entries<A: Aggregate + Unpin> {
    by_stream: HashMap<StreamId, Entry<A>>,
    requests: u64,
}

/// All entities of one kind.
pub struct Registry<A: Aggregate + Unpin> {
    source: Source,
    arbiters: Arbiters,
    entries: Mutex<Entries<A>>,
    resident: Arc<AtomicUsize>,
}

impl<A: Aggregate + Unpin> Registry<A> {
    /// An empty registry of entities that are loaded from the log alone.
    #[cfg(test)]
    pub fn new(log: EventLog, arbiters: Arbiters) -> Self {
        Self::with_snapshots(log, Snapshots::none(), arbiters)
    }

    /// An empty registry of entities that also use and keep state snapshots.
    pub fn with_snapshots(log: EventLog, snapshots: Snapshots, arbiters: Arbiters) -> Self {
        Self {
            source: Source { log, snapshots },
            arbiters,
            entries: Mutex::new(Entries {
                by_stream: HashMap::new(),
                requests: 0,
            }),
            resident: Arc::default(),
        }
    }

    /// How many entities are in memory.
    pub fn resident(&self) -> usize {
        self.resident.load(Ordering::Relaxed)
    }

    /// Has the entity of `stream` decide `command`.
    pub async fn execute(
        &self,
        stream: &StreamId,
        command: A::Command,
        who: &Who,
    ) -> Result<Done<A>, Failure> {
        self.execute_beside(stream, command, who, Vec::new()).await
    }

    /// Has the entity of `stream` decide `command`, and records `beside` in the same commit.
    pub async fn execute_beside(
        &self,
        stream: &StreamId,
        command: A::Command,
        who: &Who,
        beside: Vec<Beside>,
    ) -> Result<Done<A>, Failure> {
        let (command, id) = (Arc::new(command), Ulid::generate());
        for _ in 0..ATTEMPTS_MAX {
            let message = Execute {
                command: command.clone(),
                id,
                who: who.clone(),
                beside: beside.clone(),
            };
            // An entity that was just leaving memory drops what is in its mailbox. Should it have
            // recorded the command all the same, the id keeps the log from taking it twice.
            if let Ok(done) = self.address(stream).send(message).await {
                return done;
            }
        }
        Err(Failure::Unavailable)
    }

    /// The present state of the entity of `stream`; the default state when it has no events.
    pub async fn inspect(&self, stream: &StreamId) -> Result<Arc<A>, Failure> {
        for _ in 0..ATTEMPTS_MAX {
            if let Ok(state) = self.address(stream).send(Inspect(PhantomData)).await {
                return state;
            }
        }
        Err(Failure::Unavailable)
    }

    /// The state of the entity of `stream` once `until` holds of it, or the present one when `time` is
    /// over.
    pub async fn wait_for(
        &self,
        stream: &StreamId,
        until: fn(&A) -> bool,
        time: Duration,
    ) -> Result<Arc<A>, Failure> {
        let deadline = Instant::now() + time;
        for _ in 0..WAITS_MAX {
            let Ok(heard) = self.address(stream).send(Await { until }).await else {
                continue;
            };
            match tokio::time::timeout_at(deadline, heard?).await {
                Ok(Ok(state)) => return Ok(state),
                // It left memory; the next one is asked.
                Ok(Err(_)) => {}
                Err(_) => return self.inspect(stream).await,
            }
        }
        Err(Failure::Unavailable)
    }

    /// Tells an entity to leave memory, as when there are too many.
    #[cfg(test)]
    pub fn send_away(&self, stream: &StreamId) {
        let mut entries = self.entries.lock().expect("not poisoned");
        if let Some(entry) = entries.by_stream.remove(stream) {
            entry.address.do_send(Leave);
        }
    }

    fn address(&self, stream: &StreamId) -> Addr<Entity<A>> {
        let entries = &mut *self
            .entries
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        entries.requests += 1;
        let used = entries.requests;
        let known = entries.by_stream.get_mut(stream);
        if let Some(entry) = known.filter(|entry| entry.address.connected()) {
            entry.used = used;
            return entry.address.clone();
        }
        if entries.by_stream.len() >= RESIDENT_MAX {
            entries.make_room();
        }
        let (source, own) = (self.source.clone(), stream.clone());
        let resident = Resident::new(&self.resident);
        let address = Entity::start_in_arbiter(&self.arbiters.next(), move |ctx| {
            ctx.set_mailbox_capacity(MAILBOX_MAX);
            Entity::new(source, own, resident)
        });
        let entry = Entry {
            address: address.clone(),
            used,
        };
        entries.by_stream.insert(stream.clone(), entry);
        address
    }
}

impl<A: Aggregate + Unpin> Entries<A> {
    /// Drops the entities that left memory; when these are few, tells those that were not asked for
    /// the longest to leave. They finish what they have been asked; who asks later finds new ones.
    fn make_room(&mut self) {
        self.by_stream.retain(|_, entry| entry.address.connected());
        let many = (RESIDENT_MAX - LEAVING_AT_ONCE).min(self.by_stream.len());
        let leaving = self.by_stream.len() - many;
        if leaving == 0 {
            return;
        }
        let mut ages: Vec<u64> = self.by_stream.values().map(|entry| entry.used).collect();
        let (_, youngest, _) = ages.select_nth_unstable(leaving - 1);
        let youngest = *youngest;
        self.by_stream.retain(|_, entry| {
            let stays = entry.used > youngest;
            if !stays {
                // Past the mailbox's bound: one message more, once in an entity's life.
                entry.address.do_send(Leave);
            }
            stays
        });
    }
}
