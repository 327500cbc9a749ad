//! Secret entries, the same rules in projects and stores. Only ciphertexts pass through here.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::aggregate::Reject;
use crate::events::Sealed;
use crate::events::families::{SecretDeleted, SecretPlacement, SecretRevoked, SecretSet};
use crate::ids::SecretId;
use crate::proxy::{BadPlacement, HostPattern, Placement, PlacementText};

/// Longest name of a secret or variable, bytes.
pub const SECRET_NAME_BYTES_MAX: usize = 256;
/// Most secrets in one project or store.
pub const SECRETS_MAX: usize = 1024;
/// Most entries in one list of hosts.
pub const HOSTS_MAX: usize = 256;

/// What can be asked about an entry.
pub enum SecretCommand {
    /// Set it, for the first time or anew.
    Set(SetSecret),
    /// Delete it; sandboxes that have it keep it.
    Delete {
        /// Its name.
        name: String,
        /// Now.
        at: OffsetDateTime,
    },
    /// Delete it if it is still there, and take it from the sandboxes that have it.
    Revoke {
        /// Its name.
        name: String,
        /// Now.
        at: OffsetDateTime,
    },
}

/// A secret to set, its value sealed already.
pub struct SetSecret {
    /// Id to use when the entry is new.
    pub id: SecretId,
    /// Its name.
    pub name: String,
    /// Hosts that may receive it; empty: any.
    pub allowed_hosts: Vec<String>,
    /// Where in requests to them it may stand; `None`: anywhere.
    pub placement: Option<SecretPlacement>,
    /// The value under the aggregate's data key.
    pub sealed: Sealed,
    /// Now.
    pub at: OffsetDateTime,
}

/// One entry.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// Its id.
    pub id: SecretId,
    /// Hosts that may receive it; empty: any.
    pub allowed_hosts: Vec<String>,
    /// Where in requests to them it may stand; absent: anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<SecretPlacement>,
    /// The value's ciphertext.
    pub sealed: Sealed,
    /// Revision of the event that set this value.
    pub version: u64,
    /// When it was first set.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was last set.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
}

/// The entries of a project or store, by name.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secrets {
    entries: BTreeMap<String, Secret>,
    /// Revision of the last revocation of each name: values older than it are dead everywhere.
    revoked: BTreeMap<String, u64>,
    /// Names that were deleted: sandboxes may hold their values still.
    deleted: BTreeSet<String>,
}

impl Secrets {
    /// The entries in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Secret)> {
        self.entries.iter()
    }

    /// One entry.
    pub fn get(&self, name: &str) -> Option<&Secret> {
        self.entries.get(name)
    }

    /// Revision of the event by which all values of this name until then were revoked.
    pub(super) fn revoked_at(&self, name: &str) -> Option<u64> {
        self.revoked.get(name).copied()
    }

    /// Leaves no entry; what was revoked stays so.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(super) fn decide_set(&self, set: &SetSecret) -> Result<SecretSet, Reject> {
        check_secret_name(&set.name)?;
        check_hosts("allowedHosts", &set.allowed_hosts)?;
        check_placement(set.placement.as_ref())?;
        if !self.entries.contains_key(&set.name) && self.entries.len() >= SECRETS_MAX {
            return Err(Reject::invalid(format!(
                "at most {SECRETS_MAX} secrets can be kept here"
            )));
        }
        Ok(SecretSet {
            secret_id: self.entries.get(&set.name).map_or(set.id, |known| known.id),
            name: set.name.clone(),
            allowed_hosts: set.allowed_hosts.clone(),
            placement: set.placement.clone(),
            sealed: set.sealed.clone(),
            at: set.at,
        })
    }

    pub(super) fn decide_delete(
        &self,
        name: &str,
        at: OffsetDateTime,
    ) -> Result<SecretDeleted, Reject> {
        match self.entries.contains_key(name) {
            true => Ok(SecretDeleted {
                name: name.to_owned(),
                at,
            }),
            false => Err(Reject::not_found("secret")),
        }
    }

    /// Of a name that was here at any time: what was deleted is still in running sandboxes.
    pub(super) fn decide_revoke(
        &self,
        name: &str,
        at: OffsetDateTime,
    ) -> Result<SecretRevoked, Reject> {
        let known = self.entries.contains_key(name)
            || self.deleted.contains(name)
            || self.revoked.contains_key(name);
        match known {
            true => Ok(SecretRevoked {
                name: name.to_owned(),
                at,
            }),
            false => Err(Reject::not_found("secret")),
        }
    }

    pub(super) fn apply_set(&mut self, set: &SecretSet, version: u64) {
        let created_at = self
            .entries
            .get(&set.name)
            .map_or(set.at, |known| known.created_at);
        let secret = Secret {
            id: set.secret_id,
            allowed_hosts: set.allowed_hosts.clone(),
            placement: set.placement.clone(),
            sealed: set.sealed.clone(),
            version,
            created_at,
            updated_at: set.at,
        };
        self.entries.insert(set.name.clone(), secret);
    }

    pub(super) fn apply_delete(&mut self, deleted: &SecretDeleted) {
        self.entries.remove(&deleted.name);
        self.deleted.insert(deleted.name.clone());
    }

    pub(super) fn apply_revoke(&mut self, revoked: &SecretRevoked, revision: u64) {
        self.entries.remove(&revoked.name);
        self.revoked.insert(revoked.name.clone(), revision);
    }
}

/// A secret's name becomes a variable's name: `[A-Za-z_][A-Za-z0-9_]*`, at most 256 bytes.
pub fn check_secret_name(name: &str) -> Result<(), Reject> {
    if name.is_empty() {
        return Err(Reject::invalid("secret name is required"));
    }
    let mut bytes = name.bytes();
    let first = bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let rest = bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if !first || !rest || name.len() > SECRET_NAME_BYTES_MAX {
        return Err(Reject::invalid(
            "secret name must match [A-Za-z_][A-Za-z0-9_]* and have at most 256 characters",
        ));
    }
    Ok(())
}

/// Every entry of a list of hosts is a pattern the proxy understands.
pub fn check_hosts(field: &str, hosts: &[String]) -> Result<(), Reject> {
    if hosts.len() > HOSTS_MAX {
        return Err(Reject::invalid(format!(
            "{field} must have at most {HOSTS_MAX} entries"
        )));
    }
    for host in hosts {
        host.parse::<HostPattern>().map_err(|_| {
            let shown: String = host.chars().filter(|c| !c.is_control()).take(80).collect();
            Reject::invalid(format!(
                "{field}: `{shown}` is not a host name, `*.suffix` or `*`"
            ))
        })?;
    }
    Ok(())
}

/// A placement as it is kept: header fields in lower case, nothing when it restricts nothing.
pub(super) fn kept_placement(placement: Option<SecretPlacement>) -> Option<SecretPlacement> {
    let mut placement = placement.filter(|placement| *placement != SecretPlacement::default())?;
    for header in placement.headers.iter_mut().flatten() {
        header.make_ascii_lowercase();
    }
    Some(placement)
}

/// A placement that the proxy can hold.
pub fn check_placement(placement: Option<&SecretPlacement>) -> Result<(), Reject> {
    read_placement(placement)
        .map(drop)
        .map_err(|bad| Reject::invalid(bad.to_string()))
}

/// A placement as the proxy reads it.
pub(super) fn read_placement(
    placement: Option<&SecretPlacement>,
) -> Result<Placement, BadPlacement> {
    let Some(placement) = placement else {
        return Ok(Placement::default());
    };
    Placement::new(&PlacementText {
        headers: placement.headers.as_deref(),
        methods: placement.methods.as_deref(),
        path_prefix: placement.path_prefix.as_deref(),
        max_per_request: placement.max_per_request,
        exclusive: placement.exclusive,
        keep_cookies: placement.keep_cookies,
        seal_tokens: placement.seal_tokens,
        confine: placement.confine,
    })
}
