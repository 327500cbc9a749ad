//! What happens to a sandbox: intents (`…_requested`) and their outcomes. Whatever is secret
//! (values, the key of its certificate authority, its plain environment) is here as ciphertext
//! under the sandbox's own data key.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use ulid::Ulid;

use super::{
    AutoscaleSet, HibernateFailed, HibernateRequested, Hibernated, MemoryReleased, Origin, Patched,
    Scaled, ScalingLocked, SecretPlacement, StartCause, TagsSet, family,
};
use crate::events::Sealed;
use crate::ids::{CheckpointId, ImageId, OrgId, SandboxId};

/// What kind of object a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerKind {
    /// A project.
    Project,
    /// A secret store.
    Store,
}

/// A project or store attached to a sandbox; the last layer wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// Project or store.
    pub kind: LayerKind,
    /// Its id.
    pub id: String,
    /// Its name when the sandbox was made.
    pub name: String,
}

/// A sandbox was accepted: every setting is filled in, nothing runs yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxCreated {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// Its tenant.
    pub org_id: OrgId,
    /// What it starts from.
    pub template: String,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Disk in MiB.
    #[serde(rename = "diskMB")]
    pub disk_mb: u32,
    /// Idle timeout in seconds; 0: never.
    pub timeout_sec: u32,
    /// Default container port.
    pub port: u16,
    /// False: no outbound network at all.
    pub network_enabled: bool,
    /// Free label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Free map of the caller.
    pub metadata: BTreeMap<String, String>,
    /// Projects and stores, lowest first.
    pub layers: Vec<Layer>,
    /// Union of the layers' and the request's lists, first seen first; empty: no restriction.
    pub egress_allowlist: Vec<String>,
    /// The request's own part of the allowlist; absent in records from before forks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_allowlist: Option<Vec<String>>,
    /// What it was made from; absent: a template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The image that it only exists to build; absent: it is its owner's to use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builds: Option<ImageId>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// One secret as a sandbox was given it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SealedEntry {
    /// The variable's name.
    pub name: String,
    /// What stands in the sandbox instead of the value.
    pub token: String,
    /// Hosts that may receive the value; empty: any host.
    pub allowed_hosts: Vec<String>,
    /// Where in requests to them it may stand; absent: anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<SecretPlacement>,
    /// The layer the value came from.
    pub layer_id: String,
    /// Revision of the event that set the value, in its layer's stream: tells whether this one is current.
    pub version: u64,
    /// The value under the sandbox's data key.
    pub sealed: Sealed,
}

/// The sealed set of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxSealed {
    /// Its secrets, ordered by name.
    pub secrets: Vec<SealedEntry>,
    /// Certificate of its authority, PEM.
    pub ca_certificate: String,
    /// Key of its authority, sealed.
    pub ca_key: Sealed,
    /// Its plain environment as a JSON object, sealed all the same.
    pub envs: Sealed,
    /// What the image it was made from says of its processes, sealed; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Sealed>,
}

/// A running sandbox was given a secret's new value; the token stays.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SecretRotated {
    /// The entry as it is now.
    pub entry: SealedEntry,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// A secret was taken from a sandbox for good: its token is dead there from now on.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretTaken {
    /// The variable's name.
    pub name: String,
    /// The layer it came from, where it was revoked.
    pub layer_id: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Intent: it shall run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartRequested {
    /// Names this attempt.
    pub intent: Ulid,
    /// Why.
    #[serde(default, skip_serializing_if = "StartCause::is_created")]
    pub cause: StartCause,
    /// The checkpoint whose disk it is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointId>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Outcome: it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Started {
    /// The attempt.
    pub intent: Ulid,
    /// Which limits are enforced on it, as the driver reports them.
    pub limits: serde_json::Value,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Outcome: it could not be started, and nothing of it is left.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartFailed {
    /// The attempt.
    pub intent: Ulid,
    /// Why, for its user.
    pub reason: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// It stopped by itself; its disk is kept until it is deleted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxFailed {
    /// Why, for its user.
    pub reason: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// The idle timeout changed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TimeoutSet {
    /// Seconds; 0: never.
    pub timeout_sec: u32,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Why a sandbox is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// Deleted by its user.
    UserRequested,
}

/// Intent: it shall be gone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StopRequested {
    /// Names this attempt.
    pub intent: Ulid,
    /// Why.
    pub reason: StopReason,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Outcome: processes, disk and data key are gone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stopped {
    /// The attempt.
    pub intent: Ulid,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

family! {
    /// Events of a sandbox.
    SandboxEvent {
        /// Accepted.
        Created(SandboxCreated) = "sandbox.created.v1",
        /// Its secrets, sealed.
        Sealed(SandboxSealed) = "sandbox.sealed.v1",
        /// Intent to run.
        StartRequested(StartRequested) = "sandbox.start_requested.v1",
        /// Runs.
        Started(Started) = "sandbox.started.v1",
        /// Could not be started.
        StartFailed(StartFailed) = "sandbox.start_failed.v1",
        /// Stopped by itself.
        Failed(SandboxFailed) = "sandbox.failed.v1",
        /// A secret has a new value.
        SecretRotated(SecretRotated) = "sandbox.secret_rotated.v1",
        /// A secret was revoked.
        SecretRevoked(SecretTaken) = "sandbox.secret_revoked.v1",
        /// Another idle timeout.
        TimeoutSet(TimeoutSet) = "sandbox.timeout_set.v1",
        /// Intent to sleep.
        HibernateRequested(HibernateRequested) = "sandbox.hibernate_requested.v1",
        /// Sleeps.
        Hibernated(Hibernated) = "sandbox.hibernated.v1",
        /// Could not be put to sleep.
        HibernateFailed(HibernateFailed) = "sandbox.hibernate_failed.v1",
        /// Sleeps without its processes from now on.
        MemoryReleased(MemoryReleased) = "sandbox.memory_released.v1",
        /// Another size.
        Scaled(Scaled) = "sandbox.scaled.v1",
        /// Other bounds of automatic scaling.
        AutoscaleSet(AutoscaleSet) = "sandbox.autoscale_set.v1",
        /// The size may not change, or may again.
        ScalingLocked(ScalingLocked) = "sandbox.scaling_locked.v1",
        /// Other tags.
        TagsSet(TagsSet) = "sandbox.tags_set.v1",
        /// A patch of its checkpoint ran in it.
        Patched(Patched) = "sandbox.patched.v1",
        /// Intent to be gone.
        StopRequested(StopRequested) = "sandbox.stop_requested.v1",
        /// Gone.
        Stopped(Stopped) = "sandbox.stopped.v1",
    }
}
