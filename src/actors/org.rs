//! An organization: a tenant with API keys, of which only hashes are known.

use serde::{Deserialize, Serialize};

use super::aggregate::{Aggregate, Decision, Reject};
use crate::events::StreamId;
use crate::events::families::{KeyCreated, OrgCreated, OrgEvent};
use crate::ids::OrgId;

/// What can be asked of an organization.
pub enum OrgCommand {
    /// Make it.
    Create(OrgCreated),
    /// Give it a key.
    CreateKey(KeyCreated),
}

/// An organization's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Org {
    /// Set once it exists.
    pub details: Option<OrgCreated>,
    /// Keys that are valid.
    pub keys: Vec<KeyCreated>,
}

impl Org {
    /// The stream of an organization.
    pub fn stream(id: &OrgId) -> StreamId {
        StreamId::of("org", id)
    }
}

impl Aggregate for Org {
    type Command = OrgCommand;
    type Event = OrgEvent;
    const STATE_VERSION: u32 = 1;

    fn decide(&self, command: &OrgCommand) -> Result<Decision<OrgEvent>, Reject> {
        Ok(match command {
            OrgCommand::Create(created) if self.details.is_none() => {
                OrgEvent::Created(created.clone()).into()
            }
            OrgCommand::Create(_) => Decision::nothing(),
            OrgCommand::CreateKey(created) => {
                if self.details.is_none() {
                    return Err(Reject::not_found("organization"));
                }
                match self.keys.iter().any(|key| key.sha256 == created.sha256) {
                    true => Decision::nothing(),
                    false => OrgEvent::KeyCreated(created.clone()).into(),
                }
            }
        })
    }

    fn apply(&mut self, event: &OrgEvent, _revision: u64) {
        match event {
            OrgEvent::Created(created) => self.details = Some(created.clone()),
            OrgEvent::KeyCreated(created) => self.keys.push(created.clone()),
        }
    }
}
