//! The audit trail: the log's events as their organization may see them, in pages either way or as
//! they come.
//!
//! Invariants: an event that was not done for the scope's organization is never given out, in no
//! page, no search and no feed; nothing beyond the acknowledged head is; no ciphertext is shown.
//! Work for one page is bounded, whatever the filter: the cursor goes on from there.

mod source;
mod uses;

use std::sync::Arc;

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use ulid::Ulid;

use crate::events::{CommitLink, EventLog, ReadError, Recorded, StreamId, Subscription};
use crate::ids::{KeyId, OrgId};

use source::Source;
pub use uses::{Uses, Wanted, uses};

/// Most events looked at for one page.
pub const SCAN_EVENTS_MAX: usize = 50_000;
/// Longest kind of an event or an actor, in bytes.
const KIND_BYTES_MAX: usize = 100;
/// A filter that can't match anything because it is malformed. The text names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadFilter(String);

/// Which events are asked for; absent fields take all.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only what was done for this organization. `None` is for whoever holds the log's folder.
    pub org: Option<OrgId>,
    /// A stream, or the id of an object.
    pub entity: Option<String>,
    /// A type with or without its version, or a prefix that ends in a dot.
    pub kind: Option<String>,
    /// The id of an API key, or a kind of actor.
    pub actor: Option<String>,
    /// Recorded at this time or later.
    pub from: Option<OffsetDateTime>,
    /// Recorded at this time or earlier.
    pub to: Option<OffsetDateTime>,
}

impl Filter {
    /// Everything of one organization, or of all.
    pub fn of(org: Option<OrgId>) -> Self {
        Self {
            org,
            ..Self::default()
        }
    }

    /// Refuses what no event can match by its form.
    pub fn check(&self) -> Result<(), BadFilter> {
        let bad = |text: &str| Err(BadFilter(text.to_owned()));
        let is_kind = |text: &str| {
            let allowed = |b: u8| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-')
            };
            (1..=KIND_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed)
        };
        if self
            .entity
            .as_ref()
            .is_some_and(|text| StreamId::new(text.clone()).is_err())
        {
            return bad("entity must be a stream or the id of an object");
        }
        if self.kind.as_deref().is_some_and(|kind| !is_kind(kind)) {
            return bad("type must be an event type, with or without its version");
        }
        let is_actor = |text: &str| is_kind(text) || text.parse::<KeyId>().is_ok();
        if self.actor.as_deref().is_some_and(|text| !is_actor(text)) {
            return bad("actor must be the id of an API key or a kind of actor");
        }
        match (self.from, self.to) {
            (Some(from), Some(to)) if from > to => bad("from must not be after to"),
            _ => Ok(()),
        }
    }

    /// Whether an event is asked for.
    pub fn takes(&self, event: &Recorded) -> bool {
        let stream = event.stream.as_str();
        let entity = self.entity.as_deref().is_none_or(|entity| {
            stream == entity || event.stream.parts().is_some_and(|(_, id)| id == entity)
        });
        let kind = self.kind.as_deref().is_none_or(|kind| {
            let rest = event.kind.strip_prefix(kind);
            rest.is_some_and(|rest| {
                rest.is_empty() || kind.ends_with('.') || rest.starts_with(".v")
            })
        });
        let actor = self.actor.as_deref().is_none_or(|actor| {
            event.actor.kind == actor || event.actor.key.is_some_and(|key| key.to_string() == actor)
        });
        self.sees(event)
            && entity
            && kind
            && actor
            && self.from.is_none_or(|from| event.recorded_at >= from)
            && self.to.is_none_or(|to| event.recorded_at <= to)
    }

    /// Whether an event is in the scope at all.
    pub fn sees(&self, event: &Recorded) -> bool {
        self.org.is_none_or(|org| event.actor.org == Some(org))
    }
}

/// Which way a page goes, and where it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cursor {
    /// Newest first, from before a position (`None`: from the end).
    Before(Option<u64>),
    /// Oldest first, from after a position (0: from the beginning).
    After(u64),
}

/// Some events, in the cursor's order.
#[derive(Debug)]
pub struct Page {
    /// The events.
    pub events: Vec<Arc<Recorded>>,
    /// Position that the next page's cursor takes; `None` when there was nothing more.
    pub next: Option<u64>,
}

/// Up to `limit` events. A page may be short, even empty, and still have a next one, when
/// [`SCAN_EVENTS_MAX`] events were looked at for it.
pub async fn page(
    log: &EventLog,
    filter: &Filter,
    cursor: Cursor,
    limit: usize,
) -> Result<Page, ReadError> {
    let (cursor, head) = (bounded(log, filter, cursor).await?, log.head().position);
    let mut source = Source::open(log, filter.entity.as_deref(), cursor).await?;
    let (mut events, mut scanned) = (Vec::new(), 0);
    while let Some(event) = source.next().await? {
        let beyond = match cursor {
            Cursor::Before(_) => filter.from.is_some_and(|from| event.recorded_at < from),
            Cursor::After(_) => {
                let late = filter.to.is_some_and(|to| event.recorded_at > to);
                late || event.position > head
            }
        };
        if beyond {
            break;
        }
        scanned += 1;
        let position = event.position;
        if filter.takes(&event) {
            events.push(event);
        }
        if events.len() >= limit || scanned >= SCAN_EVENTS_MAX {
            let next = Some(position);
            return Ok(Page { events, next });
        }
    }
    Ok(Page { events, next: None })
}

/// The cursor, moved past what the filter's times and the acknowledged head leave out.
async fn bounded(log: &EventLog, filter: &Filter, cursor: Cursor) -> Result<Cursor, ReadError> {
    Ok(match (cursor, filter.from, filter.to) {
        (Cursor::Before(before), _, to) => {
            let end = match to {
                Some(to) => log.position_at(to).await?,
                None => log.head().position,
            };
            Cursor::Before(Some(before.unwrap_or(u64::MAX).min(end + 1)))
        }
        (Cursor::After(after), Some(from), _) => {
            let earlier = log.position_at(from - Duration::NANOSECOND).await?;
            Cursor::After(after.max(earlier).min(log.head().position))
        }
        (Cursor::After(after), None, _) => Cursor::After(after.min(log.head().position)),
    })
}

/// The event at a position, if it is in the scope.
pub async fn at(
    log: &EventLog,
    filter: &Filter,
    position: u64,
) -> Result<Option<Arc<Recorded>>, ReadError> {
    if !(1..=log.head().position).contains(&position) {
        return Ok(None);
    }
    let found = log.read_all(position, 1).await?.into_iter().next();
    Ok(found.filter(|event| event.position == position && filter.sees(event)))
}

/// The event with an id, if it is in the scope.
pub async fn find(
    log: &EventLog,
    filter: &Filter,
    id: Ulid,
) -> Result<Option<Arc<Recorded>>, ReadError> {
    match log.position_of(id).await? {
        Some(position) => at(log, filter, position).await,
        None => Ok(None),
    }
}

/// Events as they come, oldest first, from after a position: what is there, then what is recorded,
/// without a gap and without a double.
pub struct Follow {
    subscription: Subscription,
    filter: Filter,
    looked: u64,
}

impl Follow {
    /// Follows from after `after`; a position that is not there yet means the end.
    pub fn new(log: &EventLog, filter: Filter, after: Option<u64>) -> Self {
        let head = log.head().position;
        let looked = after.unwrap_or(head).min(head);
        Self {
            subscription: log.subscribe(looked + 1),
            filter,
            looked,
        }
    }

    /// Position of the last event that was looked at, taken or not: whoever has had what came so far
    /// misses nothing by following from after it.
    pub fn looked_at(&self) -> u64 {
        self.looked
    }

    /// The next event that the filter takes. Waits for one; safe to cancel. Fails when the log ends.
    pub async fn next(&mut self) -> Result<Arc<Recorded>, ReadError> {
        loop {
            let event = self.subscription.next().await?;
            self.looked = event.position;
            if self.filter.takes(&event) {
                return Ok(event);
            }
        }
    }
}

/// An event for people and programs, without ciphertexts.
pub fn render(event: &Recorded) -> Value {
    let mut data = serde_json::from_str(event.data.get())
        .map(without_ciphertexts)
        .ok();
    // Whoever reads the trail has no use for the hash of a key.
    if let Some(Value::Object(fields)) = &mut data
        && event.kind.starts_with("org.key_created.")
    {
        fields.remove("sha256");
    }
    json!({
        "position": event.position,
        "commit": event.commit,
        "id": event.id,
        "stream": event.stream,
        "revision": event.revision,
        "type": event.kind,
        "recordedAt": event.recorded_at.format(&Rfc3339).ok(),
        "actor": { "kind": event.actor.kind, "org": event.actor.org, "key": event.actor.key },
        "data": data,
    })
}

/// An event with everything the log has about it: what it belongs to, and its place in the chain.
/// The content hash is over the stored text, ciphertexts included, which an export has; it was
/// checked when the event was read.
pub fn render_whole(event: &Recorded, link: &CommitLink) -> Value {
    let hashes: Vec<_> = link.events.iter().map(hex::encode).collect();
    let mut whole = render(event);
    whole["command"] = json!(event.command);
    whole["correlation"] = json!(event.correlation);
    whole["causation"] = json!(event.causation);
    whole["contentHash"] = json!(hex::encode(event.content_hash));
    whole["chain"] = json!({
        "previous": hex::encode(link.previous),
        "events": hashes,
        "hash": hex::encode(link.chain),
    });
    whole
}

/// The trail tells that a value was sealed, not its ciphertext: nobody can use that here, and it
/// would hide what matters. Exports for verification have every byte.
fn without_ciphertexts(data: Value) -> Value {
    match data {
        Value::Object(fields) if fields.contains_key("ciphertext") => json!("(sealed)"),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| (name, without_ciphertexts(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_ciphertexts).collect(),
        other => other,
    }
}
