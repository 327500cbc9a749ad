//! Organizations and their API keys.

use time::OffsetDateTime;

use super::Platform;
use crate::actors::entity::Failure;
use crate::actors::org::{Org, OrgCommand};
use crate::events::Actor as Who;
use crate::events::families::{KeyCreated, KeyRevoked, KeyTarget, OrgCreated, Scope};
use crate::ids::{KeyId, OrgId};

/// Characters of a key that are kept for display.
const PREFIX_CHARS: usize = 12;

/// A key that is to be made.
pub struct NewKey {
    /// Given by who makes it.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// The only thing it is good for.
    pub target: Option<KeyTarget>,
    /// When it stops being valid.
    pub expires_at: Option<OffsetDateTime>,
    /// Requests a second it is good for.
    pub rate: Option<u32>,
}

impl NewKey {
    /// The key of an organization's first user.
    pub fn first() -> Self {
        Self {
            name: "first".to_owned(),
            scope: Scope::Admin,
            target: None,
            expires_at: None,
            rate: None,
        }
    }
}

impl Platform {
    /// Makes an organization, in which nobody has a key yet.
    pub async fn create_org(&self, name: &str) -> Result<OrgCreated, Failure> {
        let created = OrgCreated {
            org_id: OrgId::generate(),
            name: name.to_owned(),
            at: OffsetDateTime::now_utc(),
        };
        let command = OrgCommand::Create(created.clone());
        self.of_org(&created.org_id, command, None).await?;
        Ok(created)
    }

    /// Gives an organization a key; only its hash is kept. `by`: the key it was asked with.
    pub async fn add_key(
        &self,
        org: &OrgId,
        new: NewKey,
        text: &str,
        by: Option<KeyId>,
    ) -> Result<KeyCreated, Failure> {
        let created = KeyCreated {
            key_id: KeyId::generate(),
            name: new.name,
            prefix: text.chars().take(PREFIX_CHARS).collect(),
            sha256: key_hash(text),
            scope: new.scope,
            target: new.target,
            expires_at: new.expires_at,
            rate: new.rate,
            at: OffsetDateTime::now_utc(),
        };
        let made = created.clone();
        let command = OrgCommand::CreateKey { made, by };
        self.of_org(org, command, by).await?;
        Ok(created)
    }

    /// Takes a key away: it is good for nothing when this returns, nor are the tokens given to it.
    pub async fn revoke_key(
        &self,
        org: &OrgId,
        key_id: KeyId,
        by: Option<KeyId>,
    ) -> Result<(), Failure> {
        let at = OffsetDateTime::now_utc();
        self.of_org(org, OrgCommand::RevokeKey(KeyRevoked { key_id, at }), by)
            .await?;
        match self.catalog.key_by_id(&key_id) {
            None => Ok(()),
            // It is recorded; what requests are judged by has not heard of it in time.
            Some(_) => Err(Failure::Unavailable),
        }
    }

    async fn of_org(
        &self,
        org: &OrgId,
        command: OrgCommand,
        by: Option<KeyId>,
    ) -> Result<(), Failure> {
        let who = match by {
            Some(key) => Who::api(*org, Some(key)),
            None => Who {
                org: Some(*org),
                ..Who::system()
            },
        };
        self.execute(&self.orgs, &Org::stream(org), command, &who)
            .await?;
        Ok(())
    }
}

/// SHA-256 of an API key in lower-case hex: the only form in which keys are kept. Keys are 256-bit
/// random, so a fast hash is enough, and looking one up by its hash takes no secret-dependent time.
pub fn key_hash(key: &str) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(key.as_bytes()))
}
