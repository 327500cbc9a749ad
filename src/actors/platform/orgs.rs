//! Organizations and their API keys.

use time::OffsetDateTime;

use super::Platform;
use crate::actors::entity::Failure;
use crate::actors::org::{Org, OrgCommand};
use crate::events::Actor as Who;
use crate::events::families::{KeyCreated, OrgCreated};
use crate::ids::{KeyId, OrgId};

impl Platform {
    /// Makes an organization with one key, of which the caller keeps the text.
    pub async fn create_org(&self, name: &str, key_text: &str) -> Result<(OrgId, KeyId), Failure> {
        let (org_id, at) = (OrgId::generate(), OffsetDateTime::now_utc());
        let who = Who {
            org: Some(org_id),
            ..Who::system()
        };
        let created = OrgCreated {
            org_id,
            name: name.to_owned(),
            at,
        };
        self.execute(
            &self.orgs,
            &Org::stream(&org_id),
            OrgCommand::Create(created),
            &who,
        )
        .await?;
        let key_id = self.add_key(&org_id, "first", key_text).await?;
        Ok((org_id, key_id))
    }

    /// Gives an organization a key; only its hash is kept.
    pub async fn add_key(&self, org: &OrgId, name: &str, key: &str) -> Result<KeyId, Failure> {
        let key_id = KeyId::generate();
        let created = KeyCreated {
            key_id,
            name: name.to_owned(),
            prefix: key.chars().take(12).collect(),
            sha256: key_hash(key),
            at: OffsetDateTime::now_utc(),
        };
        let who = Who {
            org: Some(*org),
            ..Who::system()
        };
        self.execute(
            &self.orgs,
            &Org::stream(org),
            OrgCommand::CreateKey(created),
            &who,
        )
        .await?;
        Ok(key_id)
    }
}

/// SHA-256 of an API key in lower-case hex: the only form in which keys are kept. Keys are 256-bit
/// random, so a fast hash is enough, and looking one up by its hash takes no secret-dependent time.
pub fn key_hash(key: &str) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(key.as_bytes()))
}
