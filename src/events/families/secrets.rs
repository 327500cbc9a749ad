//! Secret entries, the same in projects and stores. The value is only here as ciphertext.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::events::Sealed;
use crate::ids::SecretId;

/// A secret was set, for the first time or anew.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretSet {
    /// The entry; it keeps its id when the value is replaced.
    pub secret_id: SecretId,
    /// The variable's name in sandboxes.
    pub name: String,
    /// Hosts that may receive the value; empty: any host.
    pub allowed_hosts: Vec<String>,
    /// The value under the aggregate's data key.
    pub sealed: Sealed,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// A secret was deleted; sandboxes already running keep its value.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretDeleted {
    /// Its name.
    pub name: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}
