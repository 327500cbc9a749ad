//! What can be asked of a sandbox.

use std::collections::BTreeMap;

use time::OffsetDateTime;
use ulid::Ulid;

use super::scaling::Size;
use crate::events::families::{
    Bounds, Kept, SandboxCreated, SandboxSealed, SealedEntry, SleepReason, StopReason,
};
use crate::ids::{CheckpointId, OrgId};

/// What can be asked of a sandbox.
#[derive(Debug)]
pub enum SandboxCommand {
    /// Accept it, with its sealed set, and open the intent to run it.
    Create {
        /// Every setting.
        created: Box<SandboxCreated>,
        /// Its secrets, as ciphertexts.
        sealed: Box<SandboxSealed>,
        /// Names the attempt.
        intent: Ulid,
    },
    /// Open the intent to run it again: it should run and the world has lost it.
    Restart {
        /// Names the attempt.
        intent: Ulid,
        /// Now.
        at: OffsetDateTime,
    },
    /// Open the intent to end what runs of it and to start it anew on its disk.
    Reboot {
        /// Who asks.
        org: OrgId,
        /// Names the attempt.
        intent: Ulid,
        /// Its processes are not asked to end.
        hard: bool,
        /// Now.
        at: OffsetDateTime,
    },
    /// Open the intent to put its disk back to a checkpoint and to start it anew.
    Restore {
        /// Who asks.
        org: OrgId,
        /// Names the attempt.
        intent: Ulid,
        /// Whose disk it is to have.
        checkpoint: CheckpointId,
        /// Now.
        at: OffsetDateTime,
    },
    /// A patch of its checkpoint ran in it.
    Patched {
        /// The patch's place in the order.
        sequence: u32,
        /// Why it failed.
        error: Option<String>,
        /// Now.
        at: OffsetDateTime,
    },
    /// Open the intent to put it to sleep; nothing when it sleeps already.
    Hibernate {
        /// Who asks.
        org: OrgId,
        /// Names the attempt.
        intent: Ulid,
        /// Why.
        reason: SleepReason,
        /// Now.
        at: OffsetDateTime,
    },
    /// Outcome: it sleeps.
    Hibernated {
        /// The attempt.
        intent: Ulid,
        /// What is kept.
        kept: Kept,
        /// Memory it holds meanwhile.
        size_bytes: u64,
        /// Now.
        at: OffsetDateTime,
    },
    /// Outcome: it could not be put to sleep.
    HibernateFailed {
        /// The attempt.
        intent: Ulid,
        /// Why.
        reason: String,
        /// Now.
        at: OffsetDateTime,
    },
    /// The processes of it are gone while it slept.
    ReleaseMemory {
        /// Why.
        reason: String,
        /// Now.
        at: OffsetDateTime,
    },
    /// Open the intent to wake it; nothing but the timeout changes when it runs.
    Wake {
        /// Who asks.
        org: OrgId,
        /// Names the attempt.
        intent: Ulid,
        /// The idle timeout from now on, in seconds; 0: never; `None`: as before.
        timeout: Option<i64>,
        /// Now.
        at: OffsetDateTime,
    },
    /// Give it another size.
    Scale {
        /// Who asks.
        org: OrgId,
        /// What it is to be.
        size: Size,
        /// The server does it by itself: refused unless it may.
        automatic: bool,
        /// Now.
        at: OffsetDateTime,
    },
    /// Say within which sizes the server may scale it by itself.
    SetAutoscale {
        /// Who asks.
        org: OrgId,
        /// `None`: not at all.
        bounds: Option<Bounds>,
        /// Now.
        at: OffsetDateTime,
    },
    /// Say whether its size may change.
    LockScaling {
        /// Who asks.
        org: OrgId,
        /// It may not.
        locked: bool,
        /// Now.
        at: OffsetDateTime,
    },
    /// Replace its tags.
    SetTags {
        /// Who asks.
        org: OrgId,
        /// All of them.
        tags: BTreeMap<String, String>,
        /// Now.
        at: OffsetDateTime,
    },
    /// Outcome: it runs.
    Started {
        /// The attempt.
        intent: Ulid,
        /// Limits that are enforced.
        limits: serde_json::Value,
        /// Now.
        at: OffsetDateTime,
    },
    /// Outcome: it can't be started.
    StartFailed {
        /// The attempt.
        intent: Ulid,
        /// Why.
        reason: String,
        /// Now.
        at: OffsetDateTime,
    },
    /// It stopped by itself.
    Fail {
        /// Why.
        reason: String,
        /// Now.
        at: OffsetDateTime,
    },
    /// One of its secrets has a new value.
    Rotate {
        /// The entry with the new ciphertext; the token is taken from the present entry.
        entry: SealedEntry,
        /// Now.
        at: OffsetDateTime,
    },
    /// One of its secrets was revoked.
    Revoke {
        /// The secret's name.
        name: String,
        /// The layer that revoked it.
        layer_id: String,
        /// Revision of that, in the layer's stream: younger values are not meant.
        version: u64,
        /// Now.
        at: OffsetDateTime,
    },
    /// Set the idle timeout.
    SetTimeout {
        /// Who asks.
        org: OrgId,
        /// Seconds; 0: never.
        seconds: i64,
        /// Now.
        at: OffsetDateTime,
    },
    /// Open the intent to be gone.
    RequestStop {
        /// Who asks.
        org: OrgId,
        /// Names the attempt.
        intent: Ulid,
        /// Why.
        reason: StopReason,
        /// Now.
        at: OffsetDateTime,
    },
    /// Outcome: it is gone.
    Stopped {
        /// The attempt.
        intent: Ulid,
        /// Now.
        at: OffsetDateTime,
    },
}
