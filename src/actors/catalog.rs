//! Read models: what lists, name look-ups and key checks are answered from.
//!
//! Fed from the log alone, through the [`Model`] that replays use too, so that live feed and full
//! replay give the same rows. A write waits (bounded) until the model has its position, so every
//! later read sees it. Unknown kinds of events are skipped and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::watch;

use super::checkpoint::{Checkpoint, CheckpointPhase};
use super::images::Image;
use super::model::{Change, Grant, Model};
use super::org::Org;
use super::project::Project;
use super::sandbox::{Phase, Sandbox};
use super::secret_store::SecretStore;
use crate::events::families::{
    DecodeError, Kept, LayerKind, ProjectCreated, SandboxCreated, StoreCreated,
};
use crate::events::{EventLog, ReadError, Recorded, StreamId, VerifyError};
use crate::ids::{CheckpointId, ImageId, KeyId, OrgId, ProjectId, SandboxId};

/// Longest a reply waits for the model to catch up with its own write.
const CATCH_UP_MAX: Duration = Duration::from_secs(5);
/// Pause after the log could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// What the reconciler needs to know of a sandbox to tell whether there is work.
pub struct Unsettled {
    /// Which one.
    pub id: SandboxId,
    /// Its tenant.
    pub org: OrgId,
    /// It runs, as far as the log knows; otherwise an intent is open.
    pub runs: bool,
    /// Revision of the last event about its secrets.
    pub sealed_revision: u64,
    /// One of its secrets was set anew since it was given it.
    pub has_old_values: bool,
    /// The image that it only exists to build.
    pub builds: Option<ImageId>,
}

/// The read models of the whole server.
pub struct Catalog {
    model: RwLock<Model>,
    position: watch::Sender<u64>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            model: RwLock::default(),
            position: watch::Sender::new(0),
        }
    }
}

impl Catalog {
    /// Fills the models with all that `log` has, each event proved on the way. Run once, before
    /// [`Catalog::follow`]. A log that does not prove itself must not be served.
    pub async fn replay(self: &Arc<Self>, log: &EventLog) -> Result<(), VerifyError> {
        let filled = Arc::clone(self);
        let apply = move |recorded: &Arc<Recorded>, change| filled.take(recorded, change);
        let report = log.replay(Change::of, apply).await?;
        self.position.send_replace(report.head.position);
        Ok(())
    }

    /// Follows the log from where the models are until it ends. Run once, as a task of its own.
    pub async fn follow(&self, log: EventLog) {
        let mut subscription = log.subscribe(self.position() + 1);
        loop {
            match subscription.next().await {
                Ok(recorded) => {
                    self.apply(&recorded);
                    self.position.send_replace(recorded.position);
                }
                Err(ReadError::Stopped { .. }) => return,
                // A passing shortage (of descriptors, say): the model goes on where it stopped.
                Err(error) => {
                    tracing::error!(%error, "the read models can't read the log, trying again");
                    tokio::time::sleep(RETRY).await;
                    subscription = log.subscribe(self.position() + 1);
                }
            }
        }
    }

    /// Waits until the model has `position`; false when it hasn't after five seconds. After a
    /// write that is no failure (the write is on disk all the same); whoever would destroy
    /// something because the model doesn't know it must stop there.
    pub async fn caught_up(&self, position: u64) -> bool {
        let mut seen = self.position.subscribe();
        let reached = seen.wait_for(|seen| *seen >= position);
        let in_time = tokio::time::timeout(CATCH_UP_MAX, reached).await.is_ok();
        if !in_time {
            let seen = self.position();
            tracing::warn!(position, seen, "the read models are behind the log");
        }
        in_time
    }

    /// Position of the last event in the model.
    pub fn position(&self) -> u64 {
        *self.position.borrow()
    }

    /// Events that could not be understood, and are missing from the model.
    pub fn skipped(&self) -> u64 {
        self.read(|model| model.skipped)
    }

    /// The whole model, for tests that leave nothing out.
    #[cfg(test)]
    pub(super) fn look<T>(&self, look: impl FnOnce(&Model) -> T) -> T {
        self.read(look)
    }

    /// Looks at the rows.
    pub(super) fn read<T>(&self, look: impl FnOnce(&Model) -> T) -> T {
        look(&self.model.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes one event into the model.
    pub fn apply(&self, recorded: &Recorded) {
        self.take(recorded, Change::of(recorded));
    }

    fn take(&self, recorded: &Recorded, change: Result<Change, DecodeError>) {
        let mut model = self.model.write().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = model.take(recorded, change) {
            tracing::warn!(%error, position = recorded.position, skipped = model.skipped,
                "event skipped by the read models");
        }
    }

    /// What the key with this SHA-256 (lower-case hex) is good for.
    pub fn key(&self, sha256: &str) -> Option<Arc<Grant>> {
        self.read(|model| model.keys.get(sha256).cloned())
    }

    /// What a key is good for.
    pub fn key_by_id(&self, id: &KeyId) -> Option<Arc<Grant>> {
        self.read(|model| model.keys_by_id.get(id).cloned())
    }

    /// An organization.
    pub fn org(&self, id: &OrgId) -> Option<Org> {
        self.read(|model| model.orgs.get(id).cloned())
    }

    /// Every organization, the oldest first.
    pub fn orgs(&self) -> Vec<Org> {
        self.read(|model| model.orgs.values().cloned().collect())
    }

    /// Whether a sandbox is of a project: of the last one it was given, since a fork may be made in
    /// another one than its source.
    pub fn is_of_project(&self, sandbox: &SandboxId, project: &ProjectId) -> bool {
        let project = project.to_string();
        self.read(|model| {
            let details = model.sandboxes.get(sandbox)?.details.as_ref()?;
            let mut layers = details.layers.iter().rev();
            let last = layers.find(|layer| layer.kind == LayerKind::Project)?;
            Some(last.id == project)
        })
        .unwrap_or(false)
    }

    /// Whether any key is valid.
    pub fn has_keys(&self) -> bool {
        self.read(|model| !model.keys.is_empty())
    }

    /// The first organization made, if any.
    pub fn first_org(&self) -> Option<OrgId> {
        self.read(|model| model.orgs.keys().next().copied())
    }

    /// An organization's name.
    pub fn org_name(&self, org: &OrgId) -> Option<String> {
        self.read(|model| {
            model
                .orgs
                .get(org)
                .and_then(|org| org.details.as_ref())
                .map(|org| org.name.clone())
        })
    }

    /// Projects of an organization, by name.
    pub fn projects(&self, org: &OrgId) -> Vec<Project> {
        self.read(|model| {
            let mut rows: Vec<_> = model
                .projects
                .values()
                .filter(|row| row.visible_to(org).is_ok())
                .cloned()
                .collect();
            rows.sort_by(|a, b| project_name(a).cmp(&project_name(b)));
            rows
        })
    }

    /// The project with this name, or else this id.
    pub fn find_project(&self, org: &OrgId, name_or_id: &str) -> Option<ProjectCreated> {
        self.read(|model| {
            let mut visible = model
                .projects
                .values()
                .filter_map(|row| row.visible_to(org).ok());
            let by_name = visible.find(|project| project.name == name_or_id);
            let by_id = || {
                let id = name_or_id.parse().ok()?;
                model
                    .projects
                    .get(&id)
                    .and_then(|row| row.visible_to(org).ok())
            };
            by_name.or_else(by_id).cloned()
        })
    }

    /// Stores of an organization, by name.
    pub fn stores(&self, org: &OrgId) -> Vec<SecretStore> {
        self.read(|model| {
            let mut rows: Vec<_> = model
                .stores
                .values()
                .filter(|row| row.visible_to(org).is_ok())
                .cloned()
                .collect();
            rows.sort_by(|a, b| store_name(a).cmp(&store_name(b)));
            rows
        })
    }

    /// The store with this name.
    pub fn find_store(&self, org: &OrgId, name: &str) -> Option<StoreCreated> {
        self.read(|model| {
            let mut visible = model
                .stores
                .values()
                .filter_map(|row| row.visible_to(org).ok());
            visible.find(|store| store.name == name).cloned()
        })
    }

    /// A page of the sandboxes of an organization that `takes` takes, newest first.
    pub fn sandboxes(
        &self,
        org: &OrgId,
        takes: impl Fn(&Sandbox) -> bool,
        offset: usize,
        limit: usize,
    ) -> Vec<Sandbox> {
        self.read(|model| {
            let rows = model.sandboxes.values().rev();
            rows.filter(|row| row.is_of(org) && takes(row))
                .skip(offset)
                .take(limit)
                .cloned()
                .collect()
        })
    }

    /// How many sandboxes there are of each status that clients see.
    pub fn statuses(&self) -> BTreeMap<&'static str, u64> {
        self.read(|model| {
            let mut counts = BTreeMap::new();
            for status in model
                .sandboxes
                .values()
                .filter_map(|row| row.phase.status())
            {
                *counts.entry(status).or_default() += 1;
            }
            counts
        })
    }

    /// When a sandbox that runs no more stopped.
    pub fn ended_at(&self, id: &SandboxId) -> Option<OffsetDateTime> {
        self.read(|model| model.ended.get(id).copied())
    }

    /// Whether a sandbox has a secret that was revoked since it was given it.
    pub fn has_revoked_values(&self, id: &SandboxId) -> bool {
        self.read(|model| model.versions.has_revoked_values(id))
    }

    /// Sandboxes that the reconciler may have work with: those that run, those with an open
    /// intent, and those with a secret that was revoked.
    pub fn unsettled(&self) -> Vec<Unsettled> {
        self.read(|model| {
            let open = model.sandboxes.iter().filter(|(id, row)| {
                row.phase.is_live()
                    || matches!(row.phase, Phase::Stopping(_))
                    || model.versions.has_revoked_values(id)
            });
            let known = open.filter_map(|(id, row)| {
                row.details.as_ref().map(|details| Unsettled {
                    id: id.clone(),
                    org: details.org_id,
                    runs: row.phase == Phase::Running,
                    sealed_revision: row.sealed_revision,
                    has_old_values: model.versions.has_old_values(id),
                    builds: details.builds,
                })
            });
            known.collect()
        })
    }

    /// The checkpoints of a sandbox that are there, newest first.
    pub fn checkpoints_of(&self, org: &OrgId, sandbox: &SandboxId) -> Vec<Checkpoint> {
        self.read(|model| {
            let rows = model.checkpoints.values().rev();
            let own = rows.filter(|row| {
                let details = row.visible_to(org);
                details.is_ok_and(|details| details.config.sandbox_id == *sandbox)
            });
            own.cloned().collect()
        })
    }

    /// Checkpoints that are being copied, as far as the log knows, and their tenants.
    pub fn checkpoints_in_process(&self) -> Vec<(CheckpointId, OrgId)> {
        self.read(|model| {
            let rows = model.checkpoints.iter();
            let open = rows.filter(|(_, row)| row.phase == CheckpointPhase::Processing);
            open.filter_map(|(id, row)| Some((*id, row.details.as_ref()?.org_id)))
                .collect()
        })
    }

    /// Whether a sandbox that is not gone was made from a checkpoint.
    pub fn has_forks(&self, id: &CheckpointId) -> bool {
        self.read(|model| {
            let mut there = model.sandboxes.values().filter(|row| !row.phase.is_final());
            there.any(|row| {
                let details = row.details.as_ref();
                let origin = details.and_then(|details| details.origin.as_ref());
                origin.is_some_and(|origin| origin.checkpoint_id == *id)
            })
        })
    }

    /// A sandbox's row, whatever became of it.
    pub fn sandbox(&self, id: &SandboxId) -> Option<Sandbox> {
        self.read(|model| model.sandboxes.get(id).cloned())
    }

    /// Sandboxes of an organization that were made from checkpoints of `id`, oldest first.
    pub fn forks_of(&self, org: &OrgId, id: &SandboxId) -> Vec<Sandbox> {
        self.read(|model| {
            let rows = model.sandboxes.values();
            let forks = rows.filter(|row| {
                row.visible_to(org).is_ok_and(|details| {
                    let origin = details.origin.as_ref();
                    origin.is_some_and(|origin| origin.sandbox_id == *id)
                })
            });
            forks.cloned().collect()
        })
    }

    /// Whether the server scales a sandbox by itself.
    pub fn is_autoscaled(&self, id: &SandboxId) -> bool {
        self.read(|model| {
            let row = model.sandboxes.get(id);
            row.is_some_and(|row| row.scaling.autoscale.is_some())
        })
    }

    /// Sandboxes that sleep with their processes in memory, the longest asleep first.
    pub fn sleepers_in_memory(&self) -> Vec<SandboxId> {
        self.read(|model| {
            let rows = model.sandboxes.iter();
            let asleep = rows.filter(|(_, row)| row.phase == Phase::Hibernated);
            let mut found: Vec<_> = asleep
                .filter_map(|(id, row)| row.slept.as_ref().map(|slept| (slept, id)))
                .filter(|(slept, _)| slept.kept == Kept::Memory)
                .map(|(slept, id)| (slept.at, id.clone()))
                .collect();
            found.sort_by_key(|(at, _)| *at);
            found.into_iter().map(|(_, id)| id).collect()
        })
    }

    /// How many sandboxes of an organization have each tag, and how many values it has among them.
    pub fn tags(&self, org: &OrgId) -> Vec<(String, usize, usize)> {
        self.read(|model| {
            let mut found: BTreeMap<&str, (usize, BTreeSet<&str>)> = BTreeMap::new();
            let rows = model.sandboxes.values();
            for row in rows.filter(|row| row.is_of(org) && !row.phase.is_final()) {
                for (key, value) in &row.tags.all {
                    let (count, values) = found.entry(key).or_default();
                    *count += 1;
                    values.insert(value);
                }
            }
            let each = found.into_iter();
            each.map(|(key, (count, values))| (key.to_owned(), count, values.len()))
                .collect()
        })
    }

    /// Streams of everything that is gone for good: their data keys must be gone too.
    pub fn gone(&self) -> Vec<StreamId> {
        self.read(|model| {
            let projects = model.projects.iter().filter(|(_, row)| row.is_deleted());
            let stores = model.stores.iter().filter(|(_, row)| row.is_deleted());
            let sandboxes = model
                .sandboxes
                .iter()
                .filter(|(_, row)| row.phase.is_final());
            let checkpoints = model.checkpoints.iter().filter(|(_, row)| !row.counts());
            let images = model.images.iter().filter(|(_, row)| !row.is_there());
            projects
                .map(|(id, _)| Project::stream(id))
                .chain(checkpoints.map(|(id, _)| Checkpoint::stream(id)))
                .chain(images.map(|(id, _)| Image::stream(id)))
                .chain(stores.map(|(id, _)| SecretStore::stream(id)))
                .chain(sandboxes.map(|(id, _)| Sandbox::stream(id)))
                .collect()
        })
    }

    /// Sandboxes that a layer is attached to and that are not gone.
    pub fn with_layer(&self, layer_id: &str) -> Vec<SandboxCreated> {
        self.read(|model| {
            let there = model.sandboxes.values().filter(|row| !row.phase.is_final());
            let details = there.filter_map(|row| row.details.as_ref());
            details
                .filter(|details| details.layers.iter().any(|layer| layer.id == layer_id))
                .cloned()
                .collect()
        })
    }

    /// How many sandboxes of an organization run or are about to.
    pub fn live_count(&self, org: &OrgId) -> usize {
        self.read(|model| {
            let live = model.sandboxes.values().filter(|row| row.phase.is_live());
            live.filter(|row| row.is_of(org)).count()
        })
    }
}

fn project_name(row: &Project) -> Option<&str> {
    row.details.as_ref().map(|project| project.name.as_str())
}

fn store_name(row: &SecretStore) -> Option<&str> {
    row.details.as_ref().map(|store| store.name.as_str())
}
