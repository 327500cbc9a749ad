//! The envelope: what goes into the log and what comes back.
//!
//! Times have millisecond precision and never go backwards along the log. Limits are checked before
//! anything is queued, so that one oversized command can't hold up its neighbours.

use std::borrow::Cow;
use std::sync::Arc;

use time::OffsetDateTime;
use ulid::Ulid;

use super::stream::{Expected, StreamId};
use crate::ids::{KeyId, OrgId};

/// Largest data of one event, in bytes of JSON text (1 MiB).
pub const EVENT_DATA_BYTES_MAX: usize = 1024 * 1024;
/// Most events in one commit; also the most streams one command may state an expectation of.
pub const COMMIT_EVENTS_MAX: usize = 256;
/// Largest sum of event data in one commit, in bytes (4 MiB).
pub const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most events one read returns, whatever limit was asked for.
pub const READ_EVENTS_MAX: usize = 1_000;
/// Longest event kind and actor kind, in bytes.
pub const KIND_BYTES_MAX: usize = 100;

const _: () = assert!(EVENT_DATA_BYTES_MAX <= COMMIT_BYTES_MAX);

/// Who did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The tenant it was done for; `None` for the system's own acts.
    pub org: Option<OrgId>,
    /// The API key it was done with.
    pub key: Option<KeyId>,
    /// The door it came through: `api`, `system`, … (1 to 100 of `[a-z0-9._-]`).
    pub kind: Cow<'static, str>,
}

impl Actor {
    /// A caller of the API.
    pub fn api(org: OrgId, key: Option<KeyId>) -> Self {
        Self {
            org: Some(org),
            key,
            kind: Cow::Borrowed("api"),
        }
    }

    /// The system itself: reconciler, timers, start-up.
    pub fn system() -> Self {
        Self {
            org: None,
            key: None,
            kind: Cow::Borrowed("system"),
        }
    }

    /// A kind as it was read: the common ones take no memory of their own.
    pub(super) fn kind_of(text: &str) -> Cow<'static, str> {
        match text {
            "api" => Cow::Borrowed("api"),
            "system" => Cow::Borrowed("system"),
            other => Cow::Owned(other.to_owned()),
        }
    }
}

/// An event to be recorded.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// Unique in the whole log.
    pub id: Ulid,
    /// The stream it is appended to.
    pub stream: StreamId,
    /// Type with version, `sandbox.created.v1` (1 to 100 of `[a-z0-9._-]`).
    pub kind: Cow<'static, str>,
    /// The payload. Secret values only as sealed text, never in clear.
    pub data: serde_json::Value,
}

/// One command's commit: all of its events or none, over any number of streams.
#[derive(Debug, Clone)]
pub struct Append {
    /// Unique per command; the same id with the same content answers what was recorded before.
    pub command: Ulid,
    /// What must hold when the commit is made. A stream that is not named here is not checked;
    /// a stream may be named without an event for it.
    pub expected: Vec<(StreamId, Expected)>,
    /// In the order in which they happened; at least one.
    pub events: Vec<NewEvent>,
    /// Who did it.
    pub actor: Actor,
    /// The conversation it belongs to (say, the request).
    pub correlation: Option<Ulid>,
    /// The event or command that brought it about.
    pub causation: Option<Ulid>,
}

/// An event's payload as JSON text, exactly as it is hashed and stored.
///
/// It was made from a JSON value once, and its hash proves it to be that text ever since: reading
/// the log does not parse it, whoever wants what it says does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventData(Box<str>);

impl EventData {
    /// Writes `value` down.
    pub fn of(value: &serde_json::Value) -> Result<Self, serde_json::Error> {
        serde_json::to_string(value).map(|text| Self(text.into()))
    }

    /// Text that was read from where events are kept.
    pub(crate) fn stored(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn get(&self) -> &str {
        &self.0
    }
}

/// An event as it stands in the log.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Unique in the whole log.
    pub id: Ulid,
    /// The entity's stream.
    pub stream: StreamId,
    /// Index in the stream, from 0, without gaps.
    pub revision: u64,
    /// Index in the whole log, from 1, without gaps.
    pub position: u64,
    /// Number of the commit it came with, from 1, without gaps.
    pub commit: u64,
    /// Type with version.
    pub kind: Cow<'static, str>,
    /// When the log took it, in UTC, whole milliseconds; never earlier than the event before it.
    pub recorded_at: OffsetDateTime,
    /// Who did it.
    pub actor: Actor,
    /// The command it came with.
    pub command: Ulid,
    /// See [`Append::correlation`].
    pub correlation: Option<Ulid>,
    /// See [`Append::causation`].
    pub causation: Option<Ulid>,
    /// The exact JSON text that was hashed and stored.
    pub data: EventData,
    /// SHA-256 over the canonical form ([`super::chain`]); checked at every read.
    pub content_hash: [u8; 32],
}

impl Recorded {
    /// [`Recorded::recorded_at`] in milliseconds since 1970.
    pub fn recorded_at_ms(&self) -> i64 {
        unix_ms(self.recorded_at)
    }
}

/// What an append did, now or when the same command first came.
#[derive(Debug, Clone)]
pub struct Appended {
    /// Position of the commit's first event.
    pub first_position: u64,
    /// Position of the commit's last event.
    pub last_position: u64,
    /// The commit's number.
    pub commit: u64,
    /// The commit's events as recorded.
    pub events: Vec<Arc<Recorded>>,
    /// Whether this command had been recorded before and nothing was written now.
    pub replayed: bool,
}

/// Where the log ends. An empty log is at position 0, commit 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Position of the last event.
    pub position: u64,
    /// Number of the last commit.
    pub commit: u64,
    /// Chain hash of the last commit: it stands for the whole history.
    pub chain: [u8; 32],
}

impl Head {
    /// Where `log` begins: no event, and a chain that is bound to this one log.
    pub(super) fn beginning(log: Ulid) -> Self {
        Self {
            position: 0,
            commit: 0,
            chain: super::chain::genesis(log),
        }
    }
}

/// Whole milliseconds since 1970.
pub(super) fn unix_ms(at: OffsetDateTime) -> i64 {
    // Years have four digits: no such number of milliseconds is out of range.
    at.unix_timestamp() * 1_000 + i64::from(at.millisecond())
}

/// The time `ms` milliseconds after 1970; `None` beyond the year 9999.
pub(super) fn from_unix_ms(ms: i64) -> Option<OffsetDateTime> {
    let at = OffsetDateTime::from_unix_timestamp(ms.div_euclid(1_000)).ok()?;
    let millisecond = u16::try_from(ms.rem_euclid(1_000)).ok()?;
    at.replace_millisecond(millisecond).ok()
}

/// Whether `kind` is a well-formed event or actor kind.
pub(super) fn kind_is_valid(kind: &str) -> bool {
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
    };
    (1..=KIND_BYTES_MAX).contains(&kind.len()) && kind.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Goal: whole milliseconds come back as they were, before 1970 too, and what is finer is cut
        /// off downwards: nobody's time is later than it was.
        #[test]
        fn milliseconds_come_back_and_what_is_finer_is_cut_off(
            ms in -62_135_596_800_000_i64..=253_402_300_799_999, nanos in 0..1_000_000_i64,
        ) {
            let at = from_unix_ms(ms).expect("a time");
            prop_assert_eq!(at.unix_timestamp_nanos(), i128::from(ms) * 1_000_000);
            prop_assert_eq!(unix_ms(at), ms);
            prop_assert_eq!(unix_ms(at + time::Duration::nanoseconds(nanos)), ms);
        }
    }

    #[test]
    fn a_time_beyond_the_calendar_is_none() {
        for ms in [i64::MIN, i64::MAX, 253_402_300_800_000] {
            assert!(from_unix_ms(ms).is_none(), "{ms}");
        }
    }
}
