//! Secret stores and their entries.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{Caller, NewSecret, Platform};
use crate::actors::entity::Failure;
use crate::actors::idempotency::{Begun, Created, Keyed};
use crate::actors::secret_store::{SecretStore, StoreCommand};
use crate::actors::secrets::SecretCommand;
use crate::ids::StoreId;

impl Platform {
    /// Makes a store; once for each key.
    pub async fn create_store(
        &self,
        caller: &Caller,
        name: Option<String>,
        egress_allowlist: Option<Vec<String>>,
        keyed: Option<&Keyed>,
    ) -> Result<Created<SecretStore>, Failure> {
        let first = match self.begin(caller, keyed).await? {
            Begun::First(first) => first,
            Begun::Repeat(state) => return Ok(Created::again(state)),
        };
        let (id, at) = (StoreId::generate(), OffsetDateTime::now_utc());
        let stream = SecretStore::stream(&id);
        let command = StoreCommand::Create {
            id,
            org: caller.org,
            name,
            egress_allowlist,
            at,
        };
        let beside = first.beside(&stream)?;
        let done = self
            .execute_beside(&self.stores, &stream, command, &caller.who(), beside)
            .await;
        self.conclude(first, done.map(|done| done.state)).await
    }

    /// Changes a store.
    pub async fn update_store(
        &self,
        caller: &Caller,
        id: &StoreId,
        name: Option<String>,
        egress_allowlist: Option<Vec<String>>,
    ) -> Result<Arc<SecretStore>, Failure> {
        let at = OffsetDateTime::now_utc();
        let command = StoreCommand::Update {
            org: caller.org,
            name,
            egress_allowlist,
            at,
        };
        self.store(id, command, caller).await
    }

    /// Deletes a store and destroys its data key.
    pub async fn delete_store(&self, caller: &Caller, id: &StoreId) -> Result<(), Failure> {
        let command = StoreCommand::Delete(caller.org, OffsetDateTime::now_utc());
        self.store(id, command, caller).await?;
        self.shred_or_keep(&SecretStore::stream(id)).await;
        Ok(())
    }

    /// A store as the caller may see it.
    pub async fn get_store(
        &self,
        caller: &Caller,
        id: &StoreId,
    ) -> Result<Arc<SecretStore>, Failure> {
        let state = self.stores.inspect(&SecretStore::stream(id)).await?;
        state.visible_to(&caller.org)?;
        Ok(state)
    }

    async fn store(
        &self,
        id: &StoreId,
        command: StoreCommand,
        caller: &Caller,
    ) -> Result<Arc<SecretStore>, Failure> {
        let stream = SecretStore::stream(id);
        Ok(self
            .execute(&self.stores, &stream, command, &caller.who())
            .await?
            .state)
    }

    /// Sets a store's entry and refreshes the sandboxes that use it.
    pub async fn set_store_secret(
        self: &Arc<Self>,
        caller: &Caller,
        id: &StoreId,
        new: NewSecret,
    ) -> Result<(), Failure> {
        self.get_store(caller, id).await?;
        let stream = SecretStore::stream(id);
        let sealed = self.seal_secret(&stream, "store.secret_set.v1", new);
        let set = match sealed.await {
            Ok(set) => set,
            Err(failure) => {
                // A delete in between destroyed the key: that is the reason, not the cipher.
                self.get_store(caller, id).await?;
                return Err(failure);
            }
        };
        let name = set.name.clone();
        let command = StoreCommand::Secret(caller.org, SecretCommand::Set(set));
        let state = self.store(id, command, caller).await?;
        self.bring_to_all(&id.to_string(), &name, &state.secrets, &stream)
            .await;
        Ok(())
    }

    /// Revokes a secret: it is gone, and its tokens are dead in every sandbox, for good. Whether
    /// all sandboxes that run were reached; the others are within the reconciler's next round, and
    /// none comes up again with it.
    pub async fn revoke_store_secret(
        self: &Arc<Self>,
        caller: &Caller,
        id: &StoreId,
        name: String,
    ) -> Result<bool, Failure> {
        let revoke = SecretCommand::Revoke {
            name: name.clone(),
            at: OffsetDateTime::now_utc(),
        };
        let command = StoreCommand::Secret(caller.org, revoke);
        let state = self.store(id, command, caller).await?;
        let stream = SecretStore::stream(id);
        let id = id.to_string();
        Ok(self.bring_to_all(&id, &name, &state.secrets, &stream).await)
    }

    /// Deletes a store's entry.
    pub async fn delete_store_secret(
        &self,
        caller: &Caller,
        id: &StoreId,
        name: String,
    ) -> Result<(), Failure> {
        let delete = SecretCommand::Delete {
            name,
            at: OffsetDateTime::now_utc(),
        };
        self.store(id, StoreCommand::Secret(caller.org, delete), caller)
            .await
            .map(drop)
    }
}
