//! The one generic entity actor: it loads its stream, decides, appends, applies, and leaves memory
//! when it has been idle.
//!
//! Invariants: one command at a time for each entity (the mailbox waits while one is in work);
//! state changes only by events that are on disk; nothing is replied before that. Two actors of the
//! same entity can exist for a moment (one leaving, one arriving): the expected revision in each
//! append makes the loser reload and decide again, so this is slow at worst, never wrong.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;
use ulid::Ulid;

use super::aggregate::{Aggregate, NameChange, Reject};
use super::loading::{Loaded, Resident, Source};
use crate::events::families::{DecodeError, Family, NameClaimed, NameEvent, NameReleased};
use crate::events::{
    Actor as Who, Append, AppendError, EventLog, Expected, NewEvent, ReadError, StreamId,
};

/// Idle time after which an entity leaves memory.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// How often an entity looks whether it is idle.
const IDLE_CHECK: Duration = Duration::from_secs(60);
/// Most who wait for a state of one entity.
const WAITING_MAX: usize = 1024;
/// Attempts at a command that loses races; each loss means that another command won.
const ATTEMPTS_MAX: usize = 16;

/// Why a command did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The rules refuse it.
    #[error(transparent)]
    Reject(#[from] Reject),
    /// The log could not take it; it did not happen.
    #[error("the event log could not take the change: {0}")]
    Append(#[from] AppendError),
    /// The log could not be read.
    #[error("the event log could not be read: {0}")]
    Read(#[from] ReadError),
    /// A stored event is not understood.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// An event could not be written down.
    #[error("an event could not be encoded: {0}")]
    Encode(#[from] serde_json::Error),
    /// Too many others changed the same thing at once.
    #[error("too many concurrent changes to the same object, try again")]
    Contended,
    /// The actor is gone or its mailbox is full.
    #[error("the server is overloaded or stopping, try again")]
    Unavailable,
    /// The organization has as many live sandboxes as it may.
    #[error("concurrent sandbox limit reached: {active} of {limit} are running")]
    Quota {
        /// How many are live.
        active: usize,
        /// How many may be.
        limit: usize,
    },
    /// The sandbox sleeps and is being woken.
    #[error("sandbox is waking")]
    Waking,
    /// The sandbox sleeps and could not be woken; it can be tried again.
    #[error("the sandbox could not be woken; the server's log has the reason")]
    WakeFailed,
    /// The sandbox is on its way up or down for longer than a call may wait.
    #[error("the sandbox is busy, try again")]
    Busy,
    /// The sandbox uses more memory than it would have.
    #[error("the sandbox uses {used_mb} MB, more than the {asked_mb} MB asked for")]
    OomFloor {
        /// What it uses, MiB.
        used_mb: u64,
        /// What was asked for, MiB.
        asked_mb: u64,
    },
    /// The sandbox is stopped or failed for good.
    #[error("sandbox is {0}")]
    Gone(&'static str),
    /// An image could not be built; the text is for its user.
    #[error("build failed: {0}")]
    BuildFailed(String),
    /// Something outside the log failed.
    #[error("{0}")]
    Internal(String),
}

/// What a command did.
pub struct Done<A> {
    /// The state after it.
    pub state: Arc<A>,
    /// Position of its last event; `None` when nothing changed.
    pub position: Option<u64>,
}

/// Decide and append one command.
pub struct Execute<A: Aggregate> {
    /// The command; shared, so that it can be sent again to an entity that was leaving.
    pub command: Arc<A::Command>,
    /// Its id: the same id is recorded once.
    pub id: Ulid,
    /// Who asked for it.
    pub who: Who,
    /// Recorded in the same commit, or nothing is.
    pub beside: Vec<Beside>,
}

/// An event of a stream that is no entity's, or the one that makes the entity's own stream a branch, for the commit of a command. When its stream is not as
/// expected, the command fails with [`AppendError::Conflict`] for that stream.
#[derive(Debug, Clone)]
pub struct Beside {
    /// Where its stream must be.
    pub expected: Expected,
    /// The event.
    pub event: NewEvent,
}

impl<A: Aggregate> Execute<A> {
    fn is_beside(&self, stream: &StreamId) -> bool {
        let mut beside = self.beside.iter();
        beside.any(|beside| beside.event.stream == *stream)
    }
}

impl<A: Aggregate> Message for Execute<A> {
    type Result = Result<Done<A>, Failure>;
}

/// Read the present state.
pub struct Inspect<A>(pub std::marker::PhantomData<fn() -> A>);

impl<A: Aggregate> Message for Inspect<A> {
    type Result = Result<Arc<A>, Failure>;
}

/// Wait for a state of which `until` holds. The reply is where it will be told, at once when it is so
/// already; an entity that leaves memory before drops it.
pub struct Await<A> {
    /// Whether it is the one; looked at after each command.
    pub until: fn(&A) -> bool,
}

impl<A: Aggregate> Message for Await<A> {
    type Result = Result<oneshot::Receiver<Arc<A>>, Failure>;
}

/// One who waits for a state.
struct Waiting<A> {
    until: fn(&A) -> bool,
    told: oneshot::Sender<Arc<A>>,
}

/// The actor of one entity.
pub struct Entity<A: Aggregate> {
    source: Source,
    stream: StreamId,
    loaded: Option<Loaded<A>>,
    used: std::time::Instant,
    /// Who waits for which state.
    waiting: Vec<Waiting<A>>,
    _resident: Resident,
}

impl<A: Aggregate + Unpin> Entity<A> {
    /// An entity that reads its stream when it is first asked.
    pub fn new(source: Source, stream: StreamId, resident: Resident) -> Self {
        Self {
            source,
            stream,
            loaded: None,
            used: std::time::Instant::now(),
            waiting: Vec::new(),
            _resident: resident,
        }
    }

    /// Keeps what a command left behind; after a failure the stream is read anew.
    fn keep(&mut self, mut loaded: Option<Loaded<A>>) {
        self.used = std::time::Instant::now();
        if let Some(loaded) = &mut loaded {
            self.source.keep(&self.stream, loaded);
        }
        self.loaded = loaded;
        self.tell();
    }

    /// Tells the state to those who wait for it, and forgets those who gave up.
    fn tell(&mut self) {
        let Some(loaded) = &self.loaded else { return };
        let state = &loaded.state;
        let done = |waiting: &mut Waiting<A>| waiting.told.is_closed() || (waiting.until)(state);
        for waiting in self.waiting.extract_if(.., done) {
            // Whoever gave up meanwhile wants to know nothing.
            let _ = waiting.told.send(state.clone());
        }
    }
}

impl<A: Aggregate + Unpin> Actor for Entity<A> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(IDLE_CHECK, |actor, ctx| {
            if actor.used.elapsed() > IDLE_MAX && actor.waiting.is_empty() {
                ctx.stop();
            }
        });
    }
}

/// Leave memory, after whatever came before this. The next message finds a new actor.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Leave;

impl<A: Aggregate + Unpin> Handler<Leave> for Entity<A> {
    type Result = ();

    fn handle(&mut self, _message: Leave, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl<A: Aggregate + Unpin> Handler<Execute<A>> for Entity<A> {
    type Result = AtomicResponse<Self, Result<Done<A>, Failure>>;

    fn handle(&mut self, message: Execute<A>, _ctx: &mut Self::Context) -> Self::Result {
        let work = execute(
            self.source.clone(),
            self.stream.clone(),
            self.loaded.take(),
            message,
        );
        AtomicResponse::new(Box::pin(work.into_actor(self).map(
            |result, actor, _ctx| match result {
                Ok((loaded, position)) => {
                    let state = loaded.state.clone();
                    actor.keep(Some(loaded));
                    Ok(Done { state, position })
                }
                Err((loaded, failure)) => {
                    actor.keep(loaded);
                    Err(failure)
                }
            },
        )))
    }
}

impl<A: Aggregate + Unpin> Handler<Inspect<A>> for Entity<A> {
    type Result = AtomicResponse<Self, Result<Arc<A>, Failure>>;

    fn handle(&mut self, _message: Inspect<A>, _ctx: &mut Self::Context) -> Self::Result {
        let (source, stream) = (self.source.clone(), self.stream.clone());
        let loaded = self.loaded.take();
        let work = async move {
            match loaded {
                Some(loaded) => Ok(loaded),
                None => source.load(&stream).await,
            }
        };
        AtomicResponse::new(Box::pin(work.into_actor(self).map(
            |result, actor, _ctx| {
                let loaded = result?;
                let state = loaded.state.clone();
                actor.keep(Some(loaded));
                Ok(state)
            },
        )))
    }
}

impl<A: Aggregate + Unpin> Handler<Await<A>> for Entity<A> {
    type Result = AtomicResponse<Self, Result<oneshot::Receiver<Arc<A>>, Failure>>;

    fn handle(&mut self, message: Await<A>, _ctx: &mut Self::Context) -> Self::Result {
        let (source, stream) = (self.source.clone(), self.stream.clone());
        let loaded = self.loaded.take();
        let work = async move {
            match loaded {
                Some(loaded) => Ok(loaded),
                None => source.load(&stream).await,
            }
        };
        AtomicResponse::new(Box::pin(work.into_actor(self).map(
            move |result, actor, _ctx| {
                let loaded = result?;
                actor.waiting.retain(|waiting| !waiting.told.is_closed());
                let (told, heard) = oneshot::channel();
                let full = actor.waiting.len() >= WAITING_MAX;
                if !full {
                    let until = message.until;
                    actor.waiting.push(Waiting { until, told });
                }
                actor.keep(Some(loaded));
                match full {
                    true => Err(Failure::Unavailable),
                    false => Ok(heard),
                }
            },
        )))
    }
}

type Executed<A> = Result<(Loaded<A>, Option<u64>), (Option<Loaded<A>>, Failure)>;

/// Decides and appends until the command is on disk, refused, or the log fails.
async fn execute<A: Aggregate>(
    source: Source,
    stream: StreamId,
    mut loaded: Option<Loaded<A>>,
    message: Execute<A>,
) -> Executed<A> {
    for _ in 0..ATTEMPTS_MAX {
        let mut current = match loaded.take() {
            Some(current) => current,
            None => source
                .load(&stream)
                .await
                .map_err(|failure| (None, failure))?,
        };
        let decision = match current.state.decide(&message.command) {
            Ok(decision) => decision,
            Err(reject) => return Err((Some(current), reject.into())),
        };
        if decision.events.is_empty() {
            return Ok((current, None));
        }
        let append = match prepare(
            &source.log,
            &stream,
            &current,
            &decision.events,
            &decision.names,
            &message,
        )
        .await
        {
            Ok(append) => append,
            Err(failure) => return Err((Some(current), failure)),
        };
        match source.log.append(append).await {
            Ok(appended) => {
                let own: Vec<_> = appended
                    .events
                    .iter()
                    .filter(|event| event.stream == stream)
                    .cloned()
                    .collect();
                current.apply(own).map_err(|failure| (None, failure))?;
                return Ok((current, Some(appended.last_position)));
            }
            // Somebody else was faster: on this stream (reload) or on a name (read it anew).
            Err(AppendError::Conflict { stream, .. }) if !message.is_beside(&stream) => continue,
            Err(failure) => return Err((None, failure.into())),
        }
    }
    Err((None, Failure::Contended))
}

/// Turns a decision into an append that holds only if nothing it relied on has changed.
async fn prepare<A: Aggregate>(
    log: &EventLog,
    stream: &StreamId,
    current: &Loaded<A>,
    events: &[A::Event],
    names: &[NameChange],
    message: &Execute<A>,
) -> Result<Append, Failure> {
    let at = current
        .revision
        .map_or(Expected::NoStream, Expected::Revision);
    let mut expected = vec![(stream.clone(), at)];
    let mut new = Vec::with_capacity(events.len() + names.len());
    for event in events {
        new.push(record(stream, event)?);
    }
    for change in names {
        let (name, at, event) = change_name(log, stream, change).await?;
        expected.push((name.clone(), at));
        new.push(record(&name, &event)?);
    }
    for beside in &message.beside {
        // A branch event belongs to the stream itself, and comes first in it.
        if beside.event.stream == *stream {
            new.insert(0, beside.event.clone());
            continue;
        }
        expected.push((beside.event.stream.clone(), beside.expected));
        new.push(beside.event.clone());
    }
    Ok(Append {
        command: message.id,
        expected,
        events: new,
        actor: message.who.clone(),
        correlation: None,
        causation: None,
    })
}

/// An event of `stream` as the log takes it.
pub(super) fn record(stream: &StreamId, event: &impl Family) -> Result<NewEvent, Failure> {
    Ok(NewEvent {
        id: Ulid::generate(),
        stream: stream.clone(),
        kind: event.kind().into(),
        data: event.data()?,
    })
}

/// Looks where a name stands and gives the event that changes it from there.
async fn change_name(
    log: &EventLog,
    owner: &StreamId,
    change: &NameChange,
) -> Result<(StreamId, Expected, NameEvent), Failure> {
    let name = match change {
        NameChange::Claim { name, .. } | NameChange::Release { name } => name.clone(),
    };
    let head = log.stream_head(&name).await?;
    let at = head.as_ref().map_or(Expected::NoStream, |(revision, _)| {
        Expected::Revision(*revision)
    });
    let holder = match &head {
        None => None,
        Some((_, last)) => match NameEvent::decode(&last.kind, &last.data)? {
            NameEvent::Claimed(claimed) => Some(claimed.owner),
            NameEvent::Released(_) => None,
        },
    };
    let owner = owner.to_string();
    let event = match change {
        NameChange::Claim { taken, .. } => match holder {
            Some(_) => return Err(Reject::Conflict((*taken).to_owned()).into()),
            None => NameEvent::Claimed(NameClaimed { owner }),
        },
        NameChange::Release { .. } => NameEvent::Released(NameReleased { owner }),
    };
    Ok((name, at, event))
}
