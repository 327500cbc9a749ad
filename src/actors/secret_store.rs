//! A secret store: a named set of secrets and an egress allowlist.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::aggregate::{Aggregate, Decision, NameChange, Reject};
use super::project::{check_name, given, replace};
use super::secrets::{SecretCommand, Secrets, check_hosts};
use crate::events::StreamId;
use crate::events::families::{StoreCreated, StoreDeleted, StoreEvent, StoreUpdated};
use crate::ids::{OrgId, StoreId};

const TAKEN: &str = "secret store name already exists";

/// What can be asked of a store.
pub enum StoreCommand {
    /// Make it.
    Create {
        /// Its id.
        id: StoreId,
        /// Its tenant.
        org: OrgId,
        /// Its name.
        name: Option<String>,
        /// Allowed hosts.
        egress_allowlist: Option<Vec<String>>,
        /// Now.
        at: OffsetDateTime,
    },
    /// Change it; absent or empty name keeps, an empty list clears.
    Update {
        /// Who asks.
        org: OrgId,
        /// New name.
        name: Option<String>,
        /// New allowlist.
        egress_allowlist: Option<Vec<String>>,
        /// Now.
        at: OffsetDateTime,
    },
    /// Set or delete an entry.
    Secret(OrgId, SecretCommand),
    /// Delete it with all entries.
    Delete(OrgId, OffsetDateTime),
}

/// A store's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretStore {
    /// Set once it exists.
    pub details: Option<StoreCreated>,
    /// When it was last changed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub updated_at: Option<OffsetDateTime>,
    /// Its entries.
    pub secrets: Secrets,
    deleted: bool,
}

impl SecretStore {
    /// The stream of a store.
    pub fn stream(id: &StoreId) -> StreamId {
        StreamId::of("store", id)
    }

    /// Whether it was there and is gone.
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }

    /// The store as `org` may see it.
    pub fn visible_to(&self, org: &OrgId) -> Result<&StoreCreated, Reject> {
        match &self.details {
            Some(details) if !self.deleted && details.org_id == *org => Ok(details),
            _ => Err(Reject::not_found("secret store")),
        }
    }
}

impl Aggregate for SecretStore {
    type Command = StoreCommand;
    type Event = StoreEvent;
    const STATE_VERSION: u32 = 3;

    fn decide(&self, command: &StoreCommand) -> Result<Decision<StoreEvent>, Reject> {
        match command {
            StoreCommand::Create {
                id,
                org,
                name,
                egress_allowlist,
                at,
            } => {
                let name = given(name).ok_or(Reject::invalid("name is required"))?;
                check_name(&name)?;
                let egress_allowlist = egress_allowlist.clone().unwrap_or_default();
                check_hosts("egressAllowlist", &egress_allowlist)?;
                let claim = NameChange::Claim {
                    name: name_stream(org, &name),
                    taken: TAKEN,
                };
                let created = StoreCreated {
                    store_id: *id,
                    org_id: *org,
                    name,
                    egress_allowlist,
                    at: *at,
                };
                Ok(Decision {
                    events: vec![StoreEvent::Created(created)],
                    names: vec![claim],
                })
            }
            StoreCommand::Update {
                org,
                name,
                egress_allowlist,
                at,
            } => {
                let now = self.visible_to(org)?;
                let name = given(name).filter(|new| *new != now.name);
                check_name(name.as_deref().unwrap_or_default())?;
                check_hosts(
                    "egressAllowlist",
                    egress_allowlist.as_deref().unwrap_or_default(),
                )?;
                if name.is_none() && egress_allowlist.is_none() {
                    return Ok(Decision::nothing());
                }
                let names = match &name {
                    Some(new) => vec![
                        NameChange::Claim {
                            name: name_stream(org, new),
                            taken: TAKEN,
                        },
                        NameChange::Release {
                            name: name_stream(org, &now.name),
                        },
                    ],
                    None => Vec::new(),
                };
                let updated = StoreUpdated {
                    name,
                    egress_allowlist: egress_allowlist.clone(),
                    at: *at,
                };
                Ok(Decision {
                    events: vec![StoreEvent::Updated(updated)],
                    names,
                })
            }
            StoreCommand::Secret(org, command) => {
                self.visible_to(org)?;
                Ok(match command {
                    SecretCommand::Set(set) => {
                        StoreEvent::SecretSet(self.secrets.decide_set(set)?).into()
                    }
                    SecretCommand::Delete { name, at } => {
                        StoreEvent::SecretDeleted(self.secrets.decide_delete(name, *at)?).into()
                    }
                    SecretCommand::Revoke { name, at } => {
                        StoreEvent::SecretRevoked(self.secrets.decide_revoke(name, *at)?).into()
                    }
                })
            }
            StoreCommand::Delete(org, at) => {
                let name = name_stream(org, &self.visible_to(org)?.name);
                Ok(Decision {
                    events: vec![StoreEvent::Deleted(StoreDeleted { at: *at })],
                    names: vec![NameChange::Release { name }],
                })
            }
        }
    }

    fn apply(&mut self, event: &StoreEvent, revision: u64) {
        match event {
            StoreEvent::Created(created) => {
                self.updated_at = Some(created.at);
                self.details = Some(created.clone());
            }
            StoreEvent::Updated(changed) => {
                self.updated_at = Some(changed.at);
                if let Some(details) = &mut self.details {
                    replace(&mut details.name, &changed.name);
                    replace(&mut details.egress_allowlist, &changed.egress_allowlist);
                }
            }
            StoreEvent::SecretSet(set) => self.secrets.apply_set(set, revision),
            StoreEvent::SecretDeleted(deleted) => self.secrets.apply_delete(deleted),
            StoreEvent::SecretRevoked(revoked) => self.secrets.apply_revoke(revoked, revision),
            StoreEvent::Deleted(_) => {
                self.deleted = true;
                self.secrets.clear();
            }
        }
    }
}

fn name_stream(org: &OrgId, name: &str) -> StreamId {
    super::names::stream("store", org, name)
}
