//! Event enums, a family a file, and the codec between them and stored `(kind, data)` pairs.
//!
//! Invariants: a released kind never changes its meaning or fields' meaning; a change makes a new
//! version (`….v2`) and an upcaster at read time. Stored bytes are never touched. An unknown kind
//! decodes to [`DecodeError::UnknownKind`]: reducers stop on it, read models skip and count it.
//!
//! `fixtures/events/` has a recorded log of every version; `src/actors/tests/fixtures.rs` reads
//! them all with the program of today, and says when a new one has to be recorded.

mod checkpoint;
mod egress;
mod idempotency;
mod image;
mod name;
mod org;
mod project;
mod resource;
mod sandbox;
mod sandbox_life;
mod secrets;
mod store;
mod upcast;

pub use checkpoint::{
    CheckpointDeleted, CheckpointEvent, CheckpointFailed, CheckpointKind, CheckpointPublished,
    CheckpointReady, CheckpointRequested, PatchAdded, PatchDeleted,
};
pub use egress::{EgressAnnounced, EgressDecided, EgressEvent};
pub use idempotency::{IdempotencyEvent, IdempotencyRecorded, IdempotencyReleased};
pub use image::{
    ImageDeleted, ImageEvent, ImageFailed, ImageLayerAdded, ImageReady, ImageRequested, ImageUsed,
};
pub use name::{NameClaimed, NameEvent, NameReleased};
pub use org::{KeyCreated, KeyRevoked, KeyTarget, OrgCreated, OrgEvent, Scope};
pub use project::{ProjectCreated, ProjectDeleted, ProjectEvent, ProjectUpdated};
pub use resource::{OomKilled, ResourceEvent};
pub use sandbox::{
    Layer, LayerKind, SandboxCreated, SandboxEvent, SandboxFailed, SandboxSealed, SealedEntry,
    SecretRotated, SecretTaken, StartFailed, StartRequested, Started, StopReason, StopRequested,
    Stopped, TimeoutSet,
};
pub use sandbox_life::{
    AutoscaleSet, Bounds, HibernateFailed, HibernateRequested, Hibernated, Kept, MemoryReleased,
    Origin, Patched, Scaled, ScalingLocked, SleepReason, StartCause, TagsSet,
};
pub use secrets::{SecretDeleted, SecretPlacement, SecretRevoked, SecretSet};
pub use store::{StoreCreated, StoreDeleted, StoreEvent, StoreUpdated};
pub use upcast::{Upcast, decode_old};

use ulid::Ulid;

use super::event::{Actor, Append, EventData, NewEvent};
use super::stream::{Expected, StreamId};
use crate::ids::OrgId;

/// The present kinds of every family.
pub const KINDS: &[&[&str]] = &[
    CheckpointEvent::KINDS,
    EgressEvent::KINDS,
    IdempotencyEvent::KINDS,
    ImageEvent::KINDS,
    NameEvent::KINDS,
    OrgEvent::KINDS,
    ProjectEvent::KINDS,
    ResourceEvent::KINDS,
    SandboxEvent::KINDS,
    StoreEvent::KINDS,
];

/// Why a stored event can't be read as a family's event.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// A kind this program doesn't know, perhaps written by a newer one.
    #[error("unknown event kind `{0}`; was the log written by a newer version?")]
    UnknownKind(String),
    /// The kind is known and the data doesn't fit it.
    #[error("event of kind `{kind}` has data that doesn't fit: {source}")]
    Data {
        /// The kind as stored.
        kind: String,
        /// What didn't fit.
        source: serde_json::Error,
    },
}

/// One family of events: a closed enum with a stored kind for each variant.
pub trait Family: Sized + Clone + Send + Sync + 'static {
    /// Every kind this program writes.
    const KINDS: &'static [&'static str];
    /// How kinds that older programs wrote become present ones.
    const UPCASTS: &'static [Upcast];
    /// The stored kind, with its version.
    fn kind(&self) -> &'static str;
    /// The stored data.
    fn data(&self) -> Result<serde_json::Value, serde_json::Error>;
    /// Reads a stored event back.
    fn decode(kind: &str, data: &EventData) -> Result<Self, DecodeError>;
}

/// The command that records what the system itself observed for `org`, whatever `stream` holds.
pub fn observed<E: Family>(
    stream: StreamId,
    event: &E,
    org: OrgId,
) -> Result<Append, serde_json::Error> {
    Ok(Append {
        command: Ulid::generate(),
        expected: vec![(stream.clone(), Expected::Any)],
        events: vec![NewEvent {
            id: Ulid::generate(),
            stream,
            kind: event.kind().into(),
            data: event.data()?,
        }],
        actor: Actor {
            org: Some(org),
            ..Actor::system()
        },
        correlation: None,
        causation: None,
    })
}

/// Declares a family: `Enum { Variant(Payload) = "kind.v2", … }`, and behind it, when there are
/// older versions, `upcasts { "kind.v1" => "kind.v2" by function, … }`.
macro_rules! family {
    (
        $(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident($payload:ty) = $kind:literal,)+ }
        $(upcasts { $($from:literal => $to:literal by $change:path,)+ })?
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        #[allow(clippy::large_enum_variant)] // events are moved once, from the log to the state
        pub enum $name { $($(#[$vdoc])* $variant($payload),)+ }

        impl $crate::events::families::Family for $name {
            const KINDS: &'static [&'static str] = &[$($kind,)+];
            const UPCASTS: &'static [$crate::events::families::Upcast] = &[$($(
                $crate::events::families::Upcast { from: $from, to: $to, change: $change },
            )+)?];

            fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $kind,)+ }
            }
            fn data(&self) -> Result<serde_json::Value, serde_json::Error> {
                match self { $(Self::$variant(payload) => serde_json::to_value(payload),)+ }
            }
            fn decode(
                kind: &str,
                data: &$crate::events::EventData,
            ) -> Result<Self, $crate::events::families::DecodeError> {
                use $crate::events::families::{DecodeError, decode_old};
                match kind {
                    $($kind => serde_json::from_str(data.get())
                        .map(Self::$variant)
                        .map_err(|source| DecodeError::Data { kind: kind.to_owned(), source }),)+
                    old => decode_old(old, data),
                }
            }
        }
    };
}
pub(crate) use family;
