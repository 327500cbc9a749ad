//! From a caller's [`Append`] to what the writer takes: checked, within limits, data as JSON text.
//!
//! This runs in the caller's task, so that one caller's large JSON does not hold up the writer.

use std::borrow::Cow;
use std::sync::Arc;

use foldhash::HashSet;
use ulid::Ulid;

use super::error::AppendError;
use super::event::{
    Actor, Append, COMMIT_BYTES_MAX, COMMIT_EVENTS_MAX, EVENT_DATA_BYTES_MAX, EventData, Recorded,
    kind_is_valid,
};
use super::stream::{Expected, StreamId};

/// A command ready to be planned.
#[derive(Debug)]
pub struct Prepared {
    pub command: Ulid,
    pub expected: Vec<(StreamId, Expected)>,
    pub events: Vec<PreparedEvent>,
    pub actor: Actor,
    pub correlation: Option<Ulid>,
    pub causation: Option<Ulid>,
    /// Sum of the events' data.
    pub bytes: usize,
}

/// An event ready to be planned.
#[derive(Debug)]
pub struct PreparedEvent {
    pub id: Ulid,
    pub stream: StreamId,
    pub kind: Cow<'static, str>,
    pub data: EventData,
}

impl Prepared {
    /// Whether `events` are what this command asks for: the same streams, kinds and data in order.
    /// Event ids and expectations are left out, since a caller that retries makes them anew.
    pub fn asks_for(&self, events: &[Arc<Recorded>]) -> bool {
        let same = |(asked, recorded): (&PreparedEvent, &Arc<Recorded>)| {
            asked.stream == recorded.stream
                && asked.kind == recorded.kind
                && asked.data.get() == recorded.data.get()
        };
        self.events.len() == events.len() && self.events.iter().zip(events).all(same)
    }
}

/// Checks `append` against the limits and the rules that need no look at the log.
pub fn prepare(append: Append) -> Result<Prepared, AppendError> {
    let invalid = |reason: &str| AppendError::Invalid {
        reason: reason.to_owned(),
    };
    let too_large = |what, limit| AppendError::TooLarge { what, limit };
    if append.events.is_empty() {
        return Err(invalid("it has no event"));
    }
    if append.events.len() > COMMIT_EVENTS_MAX {
        return Err(too_large("the number of events", COMMIT_EVENTS_MAX));
    }
    if append.expected.len() > COMMIT_EVENTS_MAX {
        return Err(too_large("the number of expectations", COMMIT_EVENTS_MAX));
    }
    if !kind_is_valid(&append.actor.kind) {
        return Err(invalid("the actor's kind is not 1 to 100 of a-z 0-9 . _ -"));
    }
    let mut ids = HashSet::default();
    let alone = append.events.len() == 1;
    let mut bytes = 0;
    let mut events = Vec::with_capacity(append.events.len());
    for event in append.events {
        if !kind_is_valid(&event.kind) {
            return Err(invalid("an event's kind is not 1 to 100 of a-z 0-9 . _ -"));
        }
        if !alone && !ids.insert(event.id) {
            return Err(AppendError::DuplicateEvent { id: event.id });
        }
        let data = EventData::of(&event.data)
            .map_err(|_| invalid("an event's data can't be written as JSON"))?;
        if data.get().len() > EVENT_DATA_BYTES_MAX {
            return Err(too_large(
                "the data of one event in bytes",
                EVENT_DATA_BYTES_MAX,
            ));
        }
        bytes += data.get().len();
        events.push(PreparedEvent {
            id: event.id,
            stream: event.stream,
            kind: event.kind,
            data,
        });
    }
    if bytes > COMMIT_BYTES_MAX {
        return Err(too_large(
            "the data of all its events in bytes",
            COMMIT_BYTES_MAX,
        ));
    }
    Ok(Prepared {
        command: append.command,
        expected: append.expected,
        events,
        actor: append.actor,
        correlation: append.correlation,
        causation: append.causation,
        bytes,
    })
}
