//! What happens to a checkpoint: a named point in a sandbox's stream with the disk as it was then.
//! Plain variables are here as ciphertext under the checkpoint's own data key, so that it outlives the
//! sandbox; secrets are not in it at all: whoever forks it looks them up anew.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{SandboxCreated, family};
use crate::events::Sealed;
use crate::ids::{CheckpointId, OrgId, PatchId};

/// What a checkpoint was asked to hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointKind {
    /// The disk and all that the driver can keep besides. The namespace driver keeps the disk, the
    /// settings and the variables, and no memory.
    #[default]
    Full,
    /// The disk, the settings and the variables.
    DiskOnly,
}

/// Intent: the disk shall be copied.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointRequested {
    /// The checkpoint.
    pub checkpoint_id: CheckpointId,
    /// Its tenant.
    pub org_id: OrgId,
    /// Its name, unique among those of its sandbox.
    pub name: String,
    /// What it was asked to hold.
    pub kind: CheckpointKind,
    /// The sandbox's settings at this point.
    pub config: SandboxCreated,
    /// Revision of the sandbox's stream that it stands for.
    pub revision: u64,
    /// The sandbox's plain variables as a JSON object, sealed all the same.
    pub envs: Sealed,
    /// What the image that the sandbox was made from says of its processes, sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Sealed>,
    /// Certificate of the sandbox's authority, PEM: the disk trusts it, so forks have the same.
    pub ca_certificate: String,
    /// Key of that authority, sealed.
    pub ca_key: Sealed,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Outcome: it can be restored and forked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointReady {
    /// What it takes of the host's disk, as far as blocks can be told apart.
    pub size_bytes: u64,
    /// For how long the sandbox's processes stood still.
    pub paused_us: u64,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Outcome: the disk could not be copied, and nothing of it is left.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointFailed {
    /// Why, for its user.
    pub reason: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Its owner wants it gone; what it takes on the disk goes after this.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointDeleted {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Whether other organizations may fork it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckpointPublished {
    /// They may.
    pub public: bool,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// A script that runs in every fork of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PatchAdded {
    /// The patch.
    pub patch_id: PatchId,
    /// Its place in the order.
    pub sequence: u32,
    /// What `bash -c` runs as root.
    pub script: String,
    /// Free text.
    pub description: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// A patch runs no more; what it did stays done.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PatchDeleted {
    /// The patch.
    pub patch_id: PatchId,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

family! {
    /// Events of a checkpoint.
    CheckpointEvent {
        /// Intent to copy.
        Requested(CheckpointRequested) = "checkpoint.requested.v1",
        /// Copied.
        Ready(CheckpointReady) = "checkpoint.ready.v1",
        /// Could not be copied.
        Failed(CheckpointFailed) = "checkpoint.failed.v1",
        /// Gone.
        Deleted(CheckpointDeleted) = "checkpoint.deleted.v1",
        /// Public, or private again.
        Published(CheckpointPublished) = "checkpoint.published.v1",
        /// Another patch.
        PatchAdded(PatchAdded) = "checkpoint.patch_added.v1",
        /// A patch less.
        PatchDeleted(PatchDeleted) = "checkpoint.patch_deleted.v1",
    }
}
