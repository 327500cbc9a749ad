//! Finds the actor of an entity, or starts it. Invariant: the registry holds addresses only; an
//! entity that left memory is started again by the next message, from its stream.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use actix::prelude::*;
use ulid::Ulid;

use super::aggregate::Aggregate;
use super::entity::{Beside, Done, Entity, Execute, Failure, Inspect};
use crate::events::{Actor as Who, EventLog, StreamId};

/// Commands waiting for one entity before callers wait too.
const MAILBOX_MAX: usize = 256;
/// Attempts at an entity that leaves memory the moment it is asked.
const ATTEMPTS_MAX: usize = 3;
/// Addresses kept before those of entities that left memory are swept out.
const SWEEP_AT: usize = 4096;

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

/// All entities of one kind.
pub struct Registry<A: Aggregate + Unpin> {
    log: EventLog,
    arbiters: Arbiters,
    entities: Mutex<HashMap<StreamId, Addr<Entity<A>>>>,
}

impl<A: Aggregate + Unpin> Registry<A> {
    /// An empty registry.
    pub fn new(log: EventLog, arbiters: Arbiters) -> Self {
        Self {
            log,
            arbiters,
            entities: Mutex::new(HashMap::new()),
        }
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

    fn address(&self, stream: &StreamId) -> Addr<Entity<A>> {
        let mut entities = self
            .entities
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(address) = entities.get(stream).filter(|address| address.connected()) {
            return address.clone();
        }
        if entities.len() >= SWEEP_AT {
            entities.retain(|_, address| address.connected());
        }
        let (log, own) = (self.log.clone(), stream.clone());
        let address = Entity::start_in_arbiter(&self.arbiters.next(), move |ctx| {
            ctx.set_mailbox_capacity(MAILBOX_MAX);
            Entity::new(log, own)
        });
        entities.insert(stream.clone(), address.clone());
        address
    }
}
