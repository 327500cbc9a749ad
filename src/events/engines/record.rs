//! A commit as bytes, for engines that keep commits as they are: postcard's wire format
//! (<https://postcard.jamesmunns.com/wire-format>), with the version of the record first.
//!
//! What is derived is not stored: an event's position and commit follow from its commit, the
//! content hash is stored *and* made again at every read. Field order is part of the format; a
//! change makes version 2 beside it.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;
use ulid::Ulid;

use super::Commit;
use crate::events::chain;
use crate::events::error::EngineError;
use crate::events::event::{Actor, EventData, Recorded, from_unix_ms};
use crate::events::stream::StreamId;
use crate::ids::{KeyId, OrgId};

const VERSION: u8 = 1;

type Id = ByteArray<16>;

#[derive(Serialize, Deserialize)]
struct Record<'a> {
    version: u8,
    number: u64,
    recorded_at_ms: i64,
    command: Id,
    chain: ByteArray<32>,
    actor: &'a str,
    org: Option<Id>,
    key: Option<Id>,
    correlation: Option<Id>,
    causation: Option<Id>,
    #[serde(borrow)]
    events: Vec<EventRecord<'a>>,
}

#[derive(Serialize, Deserialize)]
struct EventRecord<'a> {
    id: Id,
    stream: &'a str,
    revision: u64,
    kind: &'a str,
    content_hash: ByteArray<32>,
    data: &'a str,
}

/// Writes the bytes of a commit behind what is in `bytes`.
pub fn encode(commit: &Commit, bytes: &mut Vec<u8>) -> Result<(), EngineError> {
    let wrong = |what: &str| EngineError::Io(format!("commit {}: {what}", commit.number));
    let first = commit.events.first().ok_or_else(|| wrong("has no event"))?;
    let id = |id: Ulid| Id::new(id.to_bytes());
    let record = Record {
        version: VERSION,
        number: commit.number,
        recorded_at_ms: first.recorded_at_ms(),
        command: id(first.command),
        chain: ByteArray::new(commit.chain),
        actor: &first.actor.kind,
        org: first.actor.org.map(|org| Id::new(org.to_bytes())),
        key: first.actor.key.map(|key| Id::new(key.to_bytes())),
        correlation: first.correlation.map(id),
        causation: first.causation.map(id),
        events: commit.events.iter().map(|event| of(event)).collect(),
    };
    *bytes = postcard::to_extend(&record, std::mem::take(bytes))
        .map_err(|error| wrong(&error.to_string()))?;
    Ok(())
}

fn of(event: &Recorded) -> EventRecord<'_> {
    EventRecord {
        id: Id::new(event.id.to_bytes()),
        stream: event.stream.as_str(),
        revision: event.revision,
        kind: &event.kind,
        content_hash: ByteArray::new(event.content_hash),
        data: event.data.get(),
    }
}

/// The commits in `bytes`, written there one behind the other, of which the first begins at
/// `first_position`; only those that `wanted` takes by their first and
/// last position, until they have `limit` events. Of these every
/// content hash is made again.
pub fn decode(
    first_position: u64,
    mut bytes: &[u8],
    limit: usize,
    wanted: impl Fn(u64, u64) -> bool,
) -> Result<Vec<Commit>, EngineError> {
    let (mut commits, mut position) = (Vec::new(), first_position);
    let mut events = 0;
    // Behind the last commit that is wanted nothing is judged: damage there is no reason to
    // withhold what is whole.
    while !bytes.is_empty() && events < limit && wanted(position, u64::MAX) {
        let (record, rest) = postcard::take_from_bytes::<Record<'_>>(bytes)
            .map_err(|_| damaged(position, "its record can't be read"))?;
        let count = u64::try_from(record.events.len()).unwrap_or(u64::MAX);
        if record.version != VERSION {
            return Err(damaged(position, "its record has an unknown version"));
        }
        if count == 0 {
            return Err(damaged(position, "its commit has no event"));
        }
        let next = position.saturating_add(count);
        if wanted(position, next - 1) {
            events += record.events.len();
            commits.push(commit(position, record)?);
        }
        (bytes, position) = (rest, next);
    }
    Ok(commits)
}

fn damaged(position: u64, what: &str) -> EngineError {
    EngineError::Damaged(format!("event {position}: {what}"))
}

fn commit(first_position: u64, record: Record<'_>) -> Result<Commit, EngineError> {
    let recorded_at = from_unix_ms(record.recorded_at_ms)
        .ok_or_else(|| damaged(first_position, "its time is not one"))?;
    let ulid = |id: Id| Ulid::from_bytes(id.into_array());
    let actor = Actor {
        org: record.org.map(|id| OrgId::from_bytes(id.into_array())),
        key: record.key.map(|id| KeyId::from_bytes(id.into_array())),
        kind: Actor::kind_of(record.actor),
    };
    let mut events = Vec::with_capacity(record.events.len());
    for (event, position) in record.events.into_iter().zip(first_position..) {
        let recorded = Recorded {
            id: ulid(event.id),
            stream: StreamId::new(event.stream)
                .map_err(|_| damaged(position, "its stream's name is not one"))?,
            revision: event.revision,
            position,
            commit: record.number,
            kind: Cow::Owned(event.kind.to_owned()),
            recorded_at,
            actor: actor.clone(),
            command: ulid(record.command),
            correlation: record.correlation.map(ulid),
            causation: record.causation.map(ulid),
            data: EventData::stored(event.data),
            content_hash: event.content_hash.into_array(),
        };
        if chain::content_hash(&recorded) != recorded.content_hash {
            return Err(damaged(position, "its content does not match its hash"));
        }
        events.push(Arc::new(recorded));
    }
    Ok(Commit {
        number: record.number,
        chain: record.chain.into_array(),
        events,
    })
}
