//! What a sandbox's proxy decided, in batches, in a stream beside the sandbox's own: these records
//! never contend with commands. They hold names of secrets, never values, and no query strings.

use serde::{Deserialize, Serialize};

use super::family;
use crate::ids::{OrgId, SandboxId};

/// A batch of decisions, oldest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressDecided {
    /// Whose traffic.
    pub sandbox_id: SandboxId,
    /// Its tenant.
    pub org_id: OrgId,
    /// The decisions as the proxy reports them.
    pub decisions: Vec<serde_json::Value>,
}

/// Requests that were about to carry secrets, recorded before they did (strict audit). What became
/// of each follows as a decision.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressAnnounced {
    /// Whose traffic.
    pub sandbox_id: SandboxId,
    /// Its tenant.
    pub org_id: OrgId,
    /// The requests as the proxy announces them.
    pub sending: Vec<serde_json::Value>,
}

family! {
    /// Events of a sandbox's egress.
    EgressEvent {
        /// Decisions were made.
        Decided(EgressDecided) = "egress.decided.v1",
        /// Secrets are about to be sent.
        Announced(EgressAnnounced) = "egress.announced.v1",
    }
}
