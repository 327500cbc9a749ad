//! What happens to a secret store.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{SecretDeleted, SecretRevoked, SecretSet, family};
use crate::ids::{OrgId, StoreId};

/// A store exists.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreCreated {
    /// The store.
    pub store_id: StoreId,
    /// Its tenant.
    pub org_id: OrgId,
    /// Unique in the organization.
    pub name: String,
    /// Hosts that sandboxes may reach; empty: no restriction.
    pub egress_allowlist: Vec<String>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// Some settings changed; an absent field stayed as it was.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreUpdated {
    /// New name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// New allowlist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_allowlist: Option<Vec<String>>,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// The store and its entries are gone.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreDeleted {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

family! {
    /// Events of a secret store.
    StoreEvent {
        /// It exists.
        Created(StoreCreated) = "store.created.v1",
        /// Settings changed.
        Updated(StoreUpdated) = "store.updated.v1",
        /// A secret was set.
        SecretSet(SecretSet) = "store.secret_set.v1",
        /// A secret was deleted.
        SecretDeleted(SecretDeleted) = "store.secret_deleted.v1",
        /// A secret was revoked, in sandboxes too.
        SecretRevoked(SecretRevoked) = "store.secret_revoked.v1",
        /// It is gone.
        Deleted(StoreDeleted) = "store.deleted.v1",
    }
}
