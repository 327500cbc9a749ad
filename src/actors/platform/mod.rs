//! The platform: every aggregate's registry, the read models, and what joins the log, the boxes
//! and the seal. The door calls its methods, a file a kind of object; nothing here knows HTTP.

mod orgs;
mod projects;
mod sandboxes;
mod stores;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::task::TaskTracker;

use super::aggregate::Aggregate;
use super::catalog::Catalog;
use super::checkpoint::Checkpoint;
use super::checkpointing::Copying;
use super::entity::{Beside, Done, Failure};
use super::exec::Handles;
use super::idempotency::Keys;
use super::images::{Builds, Image};
use super::live::LiveSandbox;
use super::logs::Heard;
use super::org::Org;
use super::project::Project;
use super::quota::Places;
use super::registry::{Arbiters, Registry};
use super::sandbox::Sandbox;
use super::sealing::{ToShred, internal};
use super::secret_store::SecretStore;
use super::stats::Counters;
use super::turns::Turns;
use crate::config::{Images, Limits};
use crate::events::families::SecretPlacement;
use crate::events::{Actor as Who, EventLog, Keyring, Snapshots, StreamId, VerifyError};
use crate::ids::{KeyId, OrgId, SandboxId};
use crate::proxy::EgressSettings;
use crate::sandbox::Driver;
use crate::secret::SecretValue;

pub use orgs::{NewKey, key_hash};

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

/// A secret as a caller gives it.
pub struct NewSecret {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: SecretValue,
    /// Hosts that may receive it; empty: any.
    pub allowed_hosts: Vec<String>,
    /// Where in requests to them it may stand; `None`: anywhere.
    pub placement: Option<SecretPlacement>,
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
    /// How images are built.
    pub images: Images,
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
    pub(super) checkpoints: Registry<Checkpoint>,
    pub(super) copying: Copying,
    pub(super) images: Registry<Image>,
    pub(super) builds: Builds,
    pub(super) image_settings: Images,
    pub(super) live: Mutex<HashMap<SandboxId, Arc<LiveSandbox>>>,
    /// How far each sandbox's log has got.
    pub(super) heard: Mutex<HashMap<SandboxId, Arc<Heard>>>,
    /// Who is starting or stopping which sandbox right now.
    pub(super) turns: Arc<Turns>,
    pub(super) places: Places,
    /// What is deleted and has its data key still.
    pub(super) to_shred: ToShred,
    pub(super) proxy_arbiters: Arbiters,
    pub(super) handles: Handles,
    pub(super) idempotency: Keys,
    pub(super) recorders: TaskTracker,
    pub(super) counters: Arc<Counters>,
}

impl Platform {
    /// Builds the platform with its read models, which have all of the log when this returns; must
    /// run inside an actix system. Fails on a log that does not prove itself.
    pub async fn start(parts: Parts) -> Result<Arc<Self>, VerifyError> {
        let catalog = Arc::new(Catalog::default());
        catalog.replay(&parts.log).await?;
        let arbiters = Arbiters::start(2);
        let (following, log) = (catalog.clone(), parts.log.clone());
        arbiters
            .next()
            .spawn(async move { following.follow(log).await });
        let (log, snapshots) = (parts.log.clone(), parts.snapshots);
        Ok(Arc::new(Self {
            orgs: Registry::with_snapshots(log.clone(), snapshots.clone(), arbiters.clone()),
            projects: Registry::with_snapshots(log.clone(), snapshots.clone(), arbiters.clone()),
            stores: Registry::with_snapshots(log.clone(), snapshots.clone(), arbiters.clone()),
            sandboxes: Registry::with_snapshots(log.clone(), snapshots.clone(), arbiters.clone()),
            checkpoints: Registry::with_snapshots(log.clone(), snapshots.clone(), arbiters.clone()),
            images: Registry::with_snapshots(log, snapshots.clone(), arbiters),
            builds: Builds::new(parts.images.concurrent_builds_max),
            image_settings: parts.images,
            copying: Copying::default(),
            snapshots,
            catalog,
            live: Mutex::default(),
            heard: Mutex::default(),
            turns: Arc::default(),
            places: Places::default(),
            to_shred: Mutex::default(),
            // The byte path has threads of its own, so that a busy sandbox can't slow commands.
            proxy_arbiters: Arbiters::start(2),
            handles: Handles::default(),
            idempotency: Keys::default(),
            recorders: TaskTracker::new(),
            counters: Arc::default(),
            log: parts.log,
            keyring: parts.keyring,
            driver: parts.driver,
            egress: parts.egress,
            limits: parts.limits,
        }))
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
        Ok(self.seen(done).await)
    }

    /// The same with further events in the command's commit.
    pub(super) async fn execute_beside<A: Aggregate + Unpin>(
        &self,
        registry: &Registry<A>,
        stream: &StreamId,
        command: A::Command,
        who: &Who,
        beside: Vec<Beside>,
    ) -> Result<Done<A>, Failure> {
        let done = registry
            .execute_beside(stream, command, who, beside)
            .await?;
        Ok(self.seen(done).await)
    }

    /// Waits until the read models have what a command did.
    async fn seen<A>(&self, done: Done<A>) -> Done<A> {
        if let Some(position) = done.position {
            self.catalog.caught_up(position).await;
        }
        done
    }

    pub(super) fn find_live(&self, id: &SandboxId) -> Option<Arc<LiveSandbox>> {
        self.live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }
}
