//! What happens to a sandbox that exists: it sleeps and wakes, changes its size, is labelled.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use ulid::Ulid;

use crate::ids::{CheckpointId, SandboxId};

/// Why a sandbox is to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartCause {
    /// It was just accepted.
    #[default]
    Created,
    /// It should run and the world has lost it.
    Lost,
    /// It sleeps.
    Wake,
    /// Its user wants its processes gone and the sandbox started anew on its disk.
    Reboot,
    /// The same, without asking the processes.
    PowerCycle,
    /// Its user wants its disk as it was at a checkpoint.
    Restore,
}

impl StartCause {
    /// Whether it is the one that is left out when written.
    pub(super) fn is_created(&self) -> bool {
        *self == Self::Created
    }

    /// Whether what runs of the sandbox must end before it starts.
    pub fn is_fresh(self) -> bool {
        matches!(self, Self::Reboot | Self::PowerCycle | Self::Restore)
    }
}

/// What a sandbox was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// The checkpoint.
    pub checkpoint_id: CheckpointId,
    /// The sandbox it is of.
    pub sandbox_id: SandboxId,
}

/// A patch of its checkpoint ran in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Patched {
    /// The patch's place in the order.
    pub sequence: u32,
    /// Why it failed, with the end of its output; `None`: it didn't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Why a sandbox is put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SleepReason {
    /// Its user wants it.
    UserRequested,
    /// It was idle for as long as its timeout says.
    Idle,
}

/// What is kept of a sandbox that sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// Its disk, and its processes, stopped, in memory: for as long as the host is up and has room.
    Memory,
    /// Its disk.
    Disk,
}

/// Intent: it shall sleep.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HibernateRequested {
    /// Names this attempt.
    pub intent: Ulid,
    /// Why.
    pub reason: SleepReason,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Outcome: it sleeps.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hibernated {
    /// The attempt.
    pub intent: Ulid,
    /// What is kept.
    pub kept: Kept,
    /// Memory it holds meanwhile.
    pub size_bytes: u64,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Outcome: it could not be put to sleep, and runs on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HibernateFailed {
    /// The attempt.
    pub intent: Ulid,
    /// Why, for its user.
    pub reason: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// The processes of a sandbox that sleeps are gone; it wakes from its disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemoryReleased {
    /// Why, for its user.
    pub reason: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// It has another size from now on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scaled {
    /// Memory in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Processor time in percent of one processor.
    pub cpu_percent: u32,
    /// The server did it, within the bounds of [`AutoscaleSet`].
    #[serde(default)]
    pub automatic: bool,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Within which sizes the server may scale it by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bounds {
    /// Least memory in MiB.
    #[serde(rename = "minMemoryMB")]
    pub min_memory_mb: u32,
    /// Most memory in MiB.
    #[serde(rename = "maxMemoryMB")]
    pub max_memory_mb: u32,
}

/// Whether the server scales it by itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AutoscaleSet {
    /// Within which sizes; `None`: not at all.
    pub bounds: Option<Bounds>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Whether its size may change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ScalingLocked {
    /// It may not.
    pub locked: bool,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// It has these tags from now on, and no others.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TagsSet {
    /// All of them.
    pub tags: BTreeMap<String, String>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}
