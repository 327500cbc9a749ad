//! An organization: a tenant with API keys, of which only hashes are known.
//!
//! Invariant: a key that was revoked stays known, so that nothing makes it valid again.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::aggregate::{Aggregate, Decision, Reject};
use crate::events::StreamId;
use crate::events::families::{KeyCreated, KeyRevoked, OrgCreated, OrgEvent};
use crate::ids::{KeyId, OrgId};

/// Most keys of one organization that are not revoked.
pub const KEYS_MAX: usize = 1000;

/// Why a key makes no other.
const ENDED: &str = "the API key this was asked with is no longer valid";

/// What can be asked of an organization.
pub enum OrgCommand {
    /// Make it.
    Create(OrgCreated),
    /// Give it a key; `by` is the one it was asked with, which must still be valid.
    CreateKey {
        /// The new key.
        made: KeyCreated,
        /// The caller's.
        by: Option<KeyId>,
    },
    /// Take a key away.
    RevokeKey(KeyRevoked),
}

/// A key as it was made, and whether it was revoked since.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrgKey {
    /// As it was made.
    pub made: KeyCreated,
    /// When it was revoked.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::rfc3339::option"
    )]
    pub revoked_at: Option<OffsetDateTime>,
}

/// An organization's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Org {
    /// Set once it exists.
    pub details: Option<OrgCreated>,
    /// Every key there ever was, oldest first.
    pub keys: Vec<OrgKey>,
}

impl Org {
    /// The stream of an organization.
    pub fn stream(id: &OrgId) -> StreamId {
        StreamId::of("org", id)
    }

    /// One of its keys.
    pub fn key(&self, id: &KeyId) -> Option<&OrgKey> {
        self.keys.iter().find(|key| key.made.key_id == *id)
    }
}

impl Aggregate for Org {
    type Command = OrgCommand;
    type Event = OrgEvent;
    const STATE_VERSION: u32 = 2;

    fn decide(&self, command: &OrgCommand) -> Result<Decision<OrgEvent>, Reject> {
        let exists = || match self.details {
            Some(_) => Ok(()),
            None => Err(Reject::not_found("organization")),
        };
        Ok(match command {
            OrgCommand::Create(created) if self.details.is_none() => {
                OrgEvent::Created(created.clone()).into()
            }
            OrgCommand::Create(_) => Decision::nothing(),
            OrgCommand::CreateKey { made: created, by } => {
                exists()?;
                let may = |id| {
                    self.key(id).is_some_and(|key| {
                        let over = key.made.expires_at.is_some_and(|at| at <= created.at);
                        key.revoked_at.is_none() && !over
                    })
                };
                if by.as_ref().is_some_and(|id| !may(id)) {
                    return Err(Reject::Conflict(ENDED.to_owned()));
                }
                let same = |key: &OrgKey| key.made.sha256 == created.sha256;
                let valid = self.keys.iter().filter(|key| key.revoked_at.is_none());
                if self.keys.iter().any(same) {
                    Decision::nothing()
                } else if valid.count() >= KEYS_MAX {
                    return Err(Reject::Invalid(format!("at most {KEYS_MAX} keys")));
                } else {
                    OrgEvent::KeyCreated(created.clone()).into()
                }
            }
            OrgCommand::RevokeKey(revoked) => {
                exists()?;
                match self.key(&revoked.key_id) {
                    None => return Err(Reject::not_found("key")),
                    Some(key) if key.revoked_at.is_some() => Decision::nothing(),
                    Some(_) => OrgEvent::KeyRevoked(revoked.clone()).into(),
                }
            }
        })
    }

    fn apply(&mut self, event: &OrgEvent, _revision: u64) {
        match event {
            OrgEvent::Created(created) => self.details = Some(created.clone()),
            OrgEvent::KeyCreated(created) => self.keys.push(OrgKey {
                made: created.clone(),
                revoked_at: None,
            }),
            OrgEvent::KeyRevoked(revoked) => {
                let id = revoked.key_id;
                if let Some(key) = self.keys.iter_mut().find(|key| key.made.key_id == id) {
                    key.revoked_at.get_or_insert(revoked.at);
                }
            }
        }
    }
}
