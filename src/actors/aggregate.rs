//! What an aggregate is: pure `decide` and `apply`, with no clock, no randomness and no I/O.
//! Time, ids and ciphertexts come in with the command.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::events::families::{DecodeError, Family};
use crate::events::{Branched, Recorded, StreamId};

/// Why a command was refused. The text is shown to the user as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// The object doesn't exist (or belongs to somebody else, which must look the same).
    #[error("{0}")]
    NotFound(String),
    /// A field is wrong, or the operation is not allowed in this state.
    #[error("{0}")]
    Invalid(String),
    /// The name is taken.
    #[error("{0}")]
    Conflict(String),
    /// The sandbox's size may not change.
    #[error("scaling is locked for this sandbox; unlock it first")]
    ScalingLocked,
}

impl Reject {
    /// An object that doesn't exist: `"<what> not found"`.
    pub fn not_found(what: &str) -> Self {
        Self::NotFound(format!("{what} not found"))
    }

    /// A refused field or state.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }
}

/// A change of a unique name, made in the same commit as the events beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameChange {
    /// Take the name; refused with `taken` when somebody else has it.
    Claim {
        /// The name's stream.
        name: StreamId,
        /// Error text when it is taken.
        taken: &'static str,
    },
    /// Give the name back.
    Release {
        /// The name's stream.
        name: StreamId,
    },
}

/// What a command leads to. No events: the command changes nothing and succeeds.
#[derive(Debug, Clone)]
pub struct Decision<E> {
    /// Events for the aggregate's own stream.
    pub events: Vec<E>,
    /// Names taken and given back with them.
    pub names: Vec<NameChange>,
}

impl<E> Decision<E> {
    /// Nothing changes.
    pub fn nothing() -> Self {
        Self {
            events: Vec::new(),
            names: Vec::new(),
        }
    }
}

impl<E> From<E> for Decision<E> {
    fn from(event: E) -> Self {
        Self {
            events: vec![event],
            names: Vec::new(),
        }
    }
}

/// An aggregate: state that only events change, and the rules for new ones.
///
/// The state can be written down (state snapshots, `oc audit replay`). It holds ciphertexts, never
/// a value.
pub trait Aggregate:
    Default + Clone + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// What can be asked of it.
    type Command: Send + Sync + 'static;
    /// What can happen to it.
    type Event: Family;
    /// Version of the state's layout *and* of what `apply` makes of the events. Any change of
    /// either takes the next number: snapshots with another one are thrown away.
    const STATE_VERSION: u32;

    /// The rules. The command can be decided again after a race, hence by reference.
    fn decide(&self, command: &Self::Command) -> Result<Decision<Self::Event>, Reject>;

    /// The state after `event`, which is recorded at `revision` of the stream. Never fails: what was recorded,
    /// happened.
    fn apply(&mut self, event: &Self::Event, revision: u64);

    /// What a branch keeps of the state it branched off; called between the parent's events and
    /// its own. A branch never inherits open intents, leases, sessions or live secrets (their data
    /// key is the parent's), so an aggregate that says nothing here hands on nothing at all.
    fn branched(&mut self, _at: &Branched) {
        *self = Self::default();
    }

    /// The state after an event as it stands in the log. Events of a lineage come root first.
    fn fold(&mut self, recorded: &Recorded) -> Result<(), DecodeError> {
        match Branched::read(&recorded.kind, &recorded.data) {
            Some(branched) => {
                let at = branched.map_err(|source| DecodeError::Data {
                    kind: recorded.kind.to_string(),
                    source,
                })?;
                self.branched(&at);
            }
            None => {
                let event = Self::Event::decode(&recorded.kind, &recorded.data)?;
                self.apply(&event, recorded.revision);
            }
        }
        Ok(())
    }
}
