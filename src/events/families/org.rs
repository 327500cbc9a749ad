//! What happens to an organization and its API keys. A key's text is never here: only its hash.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::family;
use crate::ids::{KeyId, OrgId};

/// An organization exists.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrgCreated {
    /// The organization.
    pub org_id: OrgId,
    /// Shown to its users.
    pub name: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// An API key was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyCreated {
    /// The key's record.
    pub key_id: KeyId,
    /// Given by who made it.
    pub name: String,
    /// First characters, for display.
    pub prefix: String,
    /// SHA-256 of the whole key, lower-case hex.
    pub sha256: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

family! {
    /// Events of an organization.
    OrgEvent {
        /// It exists.
        Created(OrgCreated) = "org.created.v1",
        /// It has a key.
        KeyCreated(KeyCreated) = "org.key_created.v1",
    }
}
