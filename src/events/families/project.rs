//! What happens to a project.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{SecretDeleted, SecretRevoked, SecretSet, family};
use crate::ids::{OrgId, ProjectId};

/// A project exists; every default is filled in.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProjectCreated {
    /// The project.
    pub project_id: ProjectId,
    /// Its tenant.
    pub org_id: OrgId,
    /// Unique in the organization.
    pub name: String,
    /// Default template.
    pub template: String,
    /// Default virtual CPUs.
    pub cpu_count: u32,
    /// Default memory in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Default idle timeout in seconds.
    pub timeout_sec: u32,
    /// Hosts that sandboxes may reach; empty: no restriction.
    pub egress_allowlist: Vec<String>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Some settings changed; an absent field stayed as it was.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProjectUpdated {
    /// New name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// New default template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// New default virtual CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_count: Option<u32>,
    /// New default memory in MiB.
    #[serde(rename = "memoryMB", skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    /// New default idle timeout in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_sec: Option<u32>,
    /// New allowlist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_allowlist: Option<Vec<String>>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// The project and its secrets are gone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProjectDeleted {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

family! {
    /// Events of a project.
    ProjectEvent {
        /// It exists.
        Created(ProjectCreated) = "project.created.v1",
        /// Settings changed.
        Updated(ProjectUpdated) = "project.updated.v1",
        /// A secret was set.
        SecretSet(SecretSet) = "project.secret_set.v1",
        /// A secret was deleted.
        SecretDeleted(SecretDeleted) = "project.secret_deleted.v1",
        /// A secret was revoked, in sandboxes too.
        SecretRevoked(SecretRevoked) = "project.secret_revoked.v1",
        /// It is gone.
        Deleted(ProjectDeleted) = "project.deleted.v1",
    }
}
