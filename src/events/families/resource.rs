//! What the machine did to a sandbox for what it used, in a stream beside the sandbox's own: these
//! records never contend with commands.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::family;
use crate::ids::{OrgId, SandboxId};

/// Processes of a sandbox were killed because its memory limit was reached.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OomKilled {
    /// Whose.
    pub sandbox_id: SandboxId,
    /// Its tenant.
    pub org_id: OrgId,
    /// How many since the last such event.
    pub kills: u64,
    /// How many since the sandbox was started.
    pub total: u64,
    /// The limit, in bytes, where it is known.
    pub limit_bytes: Option<u64>,
    /// When it was noticed.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

family! {
    /// Events of what a sandbox uses.
    ResourceEvent {
        /// Out of memory.
        OomKilled(OomKilled) = "resource.oom_killed.v1",
    }
}
