//! The platform: every aggregate's registry, the read models, and what joins the log, the boxes
//! and the seal. The door calls its methods; nothing here knows HTTP.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;
use tokio_util::task::TaskTracker;

use super::aggregate::Aggregate;
use super::catalog::Catalog;
use super::entity::{Done, Failure};
use super::exec::Handles;
use super::live::LiveSandbox;
use super::org::{Org, OrgCommand};
use super::project::{Project, ProjectCommand, ProjectSettings};
use super::quota::Places;
use super::registry::{Arbiters, Registry};
use super::sandbox::Sandbox;
use super::sealing::{ToShred, internal};
use super::secret_store::{SecretStore, StoreCommand};
use super::secrets::SecretCommand;
use crate::config::Limits;
use crate::events::families::{KeyCreated, OrgCreated};
use crate::events::{Actor as Who, EventLog, Keyring, Snapshots, StreamId};
use crate::ids::{KeyId, OrgId, ProjectId, SandboxId, StoreId};
use crate::proxy::EgressSettings;
use crate::sandbox::Driver;
use crate::secret::SecretValue;

/// Who calls: an organization and, unless the server asks for none, the key it used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The organization.
    pub org: OrgId,
    /// The key.
    pub key: Option<KeyId>,
}

impl Caller {
    /// How the log names this caller.
    pub fn who(&self) -> Who {
        Who::api(self.org, self.key)
    }
}

/// What the platform is made of.
pub struct Parts {
    /// The event log.
    pub log: EventLog,
    /// Short cuts to the entities' states.
    pub snapshots: Snapshots,
    /// The data keys.
    pub keyring: Arc<Keyring>,
    /// How sandboxes are isolated.
    pub driver: Arc<dyn Driver>,
    /// What sandboxes may reach.
    pub egress: Arc<EgressSettings>,
    /// Limits of the operator.
    pub limits: Limits,
}

/// The platform.
pub struct Platform {
    pub(super) log: EventLog,
    pub(super) snapshots: Snapshots,
    pub(super) keyring: Arc<Keyring>,
    pub(super) driver: Arc<dyn Driver>,
    pub(super) egress: Arc<EgressSettings>,
    pub(super) limits: Limits,
    pub(super) catalog: Arc<Catalog>,
    pub(super) orgs: Registry<Org>,
    pub(super) projects: Registry<Project>,
    pub(super) stores: Registry<SecretStore>,
    pub(super) sandboxes: Registry<Sandbox>,
    pub(super) live: Mutex<HashMap<SandboxId, Arc<LiveSandbox>>>,
    /// Sandboxes that somebody is starting or stopping right now: the reconciler leaves them alone.
    pub(super) in_work: Arc<Mutex<HashMap<SandboxId, usize>>>,
    pub(super) places: Places,
    /// What is deleted and has its data key still.
    pub(super) to_shred: ToShred,
    pub(super) proxy_arbiters: Arbiters,
    pub(super) handles: Handles,
    pub(super) recorders: TaskTracker,
}

impl Platform {
    /// Builds the platform and starts its read models; must run inside an actix system.
    pub fn start(parts: Parts) -> Arc<Self> {
        let arbiters = Arbiters::start(2);
        let catalog = Arc::new(Catalog::default());
        let (following, log) = (catalog.clone(), parts.log.clone());
        arbiters
            .next()
            .spawn(async move { following.follow(log).await });
        let (log, snapshots) = (parts.log.clone(), parts.snapshots);
        Arc::new(Self {
            orgs: Registry::with_snapshots(log.clone(), snapshots.clone(), arbiters.clone()),
            projects: Registry::with_snapshots(log.clone(), snapshots.clone(), arbiters.clone()),
            stores: Registry::with_snapshots(log.clone(), snapshots.clone(), arbiters.clone()),
            sandboxes: Registry::with_snapshots(log, snapshots.clone(), arbiters),
            snapshots,
            catalog,
            live: Mutex::default(),
            in_work: Arc::default(),
            places: Places::default(),
            to_shred: Mutex::default(),
            // The byte path has threads of its own, so that a busy sandbox can't slow commands.
            proxy_arbiters: Arbiters::start(2),
            handles: Handles::default(),
            recorders: TaskTracker::new(),
            log: parts.log,
            keyring: parts.keyring,
            driver: parts.driver,
            egress: parts.egress,
            limits: parts.limits,
        })
    }

    /// The read models.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The event log.
    pub fn log(&self) -> &EventLog {
        &self.log
    }

    /// Limits of the operator.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A key for signing, of which `label` says what; the same after every restart.
    pub fn signing_key(&self, label: &str) -> Result<zeroize::Zeroizing<[u8; 32]>, Failure> {
        self.keyring
            .derive(&StreamId::of("server", "signing"), label)
            .map_err(internal)
    }

    /// Runs a command and waits until the read models have what it did.
    pub(super) async fn execute<A: Aggregate + Unpin>(
        &self,
        registry: &Registry<A>,
        stream: &StreamId,
        command: A::Command,
        who: &Who,
    ) -> Result<Done<A>, Failure> {
        let done = registry.execute(stream, command, who).await?;
        if let Some(position) = done.position {
            self.catalog.caught_up(position).await;
        }
        Ok(done)
    }

    pub(super) fn find_live(&self, id: &SandboxId) -> Option<Arc<LiveSandbox>> {
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    // ---- organizations and keys ------------------------------------------------------------

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

    // ---- projects --------------------------------------------------------------------------

    /// Makes a project.
    pub async fn create_project(
        &self,
        caller: &Caller,
        settings: ProjectSettings,
    ) -> Result<Arc<Project>, Failure> {
        let id = ProjectId::generate();
        let command = ProjectCommand::Create {
            id,
            org: caller.org,
            settings,
            memory_mb_max: self.limits.memory_mb_max.into(),
            at: OffsetDateTime::now_utc(),
        };
        self.project(&id, command, caller).await
    }

    /// Changes a project.
    pub async fn update_project(
        &self,
        caller: &Caller,
        id: &ProjectId,
        settings: ProjectSettings,
    ) -> Result<Arc<Project>, Failure> {
        let command = ProjectCommand::Update {
            org: caller.org,
            settings,
            memory_mb_max: self.limits.memory_mb_max.into(),
            at: OffsetDateTime::now_utc(),
        };
        self.project(id, command, caller).await
    }

    /// Deletes a project and destroys its data key.
    pub async fn delete_project(&self, caller: &Caller, id: &ProjectId) -> Result<(), Failure> {
        let command = ProjectCommand::Delete(caller.org, OffsetDateTime::now_utc());
        self.project(id, command, caller).await?;
        self.shred_or_keep(&Project::stream(id)).await;
        Ok(())
    }

    /// A project as the caller may see it.
    pub async fn get_project(
        &self,
        caller: &Caller,
        id: &ProjectId,
    ) -> Result<Arc<Project>, Failure> {
        let state = self.projects.inspect(&Project::stream(id)).await?;
        state.visible_to(&caller.org)?;
        Ok(state)
    }

    async fn project(
        &self,
        id: &ProjectId,
        command: ProjectCommand,
        caller: &Caller,
    ) -> Result<Arc<Project>, Failure> {
        let stream = Project::stream(id);
        Ok(self
            .execute(&self.projects, &stream, command, &caller.who())
            .await?
            .state)
    }

    // ---- secret stores ---------------------------------------------------------------------

    /// Makes a store.
    pub async fn create_store(
        &self,
        caller: &Caller,
        name: Option<String>,
        egress_allowlist: Option<Vec<String>>,
    ) -> Result<Arc<SecretStore>, Failure> {
        let (id, at) = (StoreId::generate(), OffsetDateTime::now_utc());
        let command = StoreCommand::Create {
            id,
            org: caller.org,
            name,
            egress_allowlist,
            at,
        };
        self.store(&id, command, caller).await
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

    // ---- secrets ---------------------------------------------------------------------------

    /// Sets a project's secret and refreshes the sandboxes that use it.
    pub async fn set_project_secret(
        self: &Arc<Self>,
        caller: &Caller,
        id: &ProjectId,
        new: NewSecret,
    ) -> Result<(), Failure> {
        self.get_project(caller, id).await?;
        let stream = Project::stream(id);
        let sealed = self.seal_secret(&stream, "project.secret_set.v1", new);
        let set = match sealed.await {
            Ok(set) => set,
            Err(failure) => {
                // A delete in between destroyed the key: that is the reason, not the cipher.
                self.get_project(caller, id).await?;
                return Err(failure);
            }
        };
        let name = set.name.clone();
        let command = ProjectCommand::Secret(caller.org, SecretCommand::Set(set));
        let state = self.project(id, command, caller).await?;
        if let Some(secret) = state.secrets.get(&name) {
            self.rotate(&id.to_string(), &name, secret, &stream).await;
        }
        Ok(())
    }

    /// Deletes a project's secret.
    pub async fn delete_project_secret(
        &self,
        caller: &Caller,
        id: &ProjectId,
        name: String,
    ) -> Result<(), Failure> {
        let delete = SecretCommand::Delete {
            name,
            at: OffsetDateTime::now_utc(),
        };
        self.project(id, ProjectCommand::Secret(caller.org, delete), caller)
            .await
            .map(drop)
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
        if let Some(secret) = state.secrets.get(&name) {
            self.rotate(&id.to_string(), &name, secret, &stream).await;
        }
        Ok(())
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

/// A secret as a caller gives it.
pub struct NewSecret {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: SecretValue,
    /// Hosts that may receive it; empty: any.
    pub allowed_hosts: Vec<String>,
}

/// SHA-256 of an API key in lower-case hex: the only form in which keys are kept. Keys are 256-bit
/// random, so a fast hash is enough, and looking one up by its hash takes no secret-dependent time.
pub fn key_hash(key: &str) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(key.as_bytes()))
}
