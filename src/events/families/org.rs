//! What happens to an organization and its API keys. A key's text is never here: only its hash.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::family;
use crate::ids::{KeyId, OrgId, ProjectId, SandboxId};

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

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Look, and change nothing.
    Read,
    /// Everything but what [`Scope::Admin`] is for.
    Write,
    /// Also make and revoke the organization's keys. Keys recorded without a scope have this one.
    #[default]
    Admin,
}

impl Scope {
    /// The scope's name in requests and replies.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// What a key of the data plane is good for, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyTarget {
    /// One sandbox.
    Sandbox(SandboxId),
    /// The sandboxes of one project.
    Project(ProjectId),
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
    /// What it may do.
    #[serde(default)]
    pub scope: Scope,
    /// The only thing it is good for; `None`: the whole organization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<KeyTarget>,
    /// When it stops being valid; `None`: never.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    pub expires_at: Option<OffsetDateTime>,
    /// Requests a second it is good for; `None`: as the server is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// An API key is valid no more.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRevoked {
    /// The key's record.
    pub key_id: KeyId,
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
        /// A key of it is valid no more.
        KeyRevoked(KeyRevoked) = "org.key_revoked.v1",
    }
}
