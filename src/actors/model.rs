//! The rows that events add up to: what the live read models and every replay of the past are made
//! of. One event goes in at a time, by one pure step, so that they can't drift apart.
//!
//! Rows are the aggregates themselves, and no ciphertext is in any of them. The live model leaves
//! secrets out ([`Keep::Versions`]); a replay keeps their names and hosts ([`Keep::Names`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use time::OffsetDateTime;

use super::aggregate::Aggregate;
use super::checkpoint::Checkpoint;
use super::images::Image;
use super::org::Org;
use super::project::Project;
use super::sandbox::Sandbox;
use super::secret_store::SecretStore;
use super::versions::Versions;
use crate::events::families::{
    CheckpointEvent, DecodeError, Family, ImageEvent, KeyCreated, OrgEvent, ProjectEvent,
    SandboxEvent, SecretSet, StoreEvent,
};
use crate::events::{BRANCH_KIND, Recorded, Sealed};
use crate::ids::{CheckpointId, ImageId, KeyId, OrgId, ProjectId, SandboxId, StoreId};

/// What is kept of secrets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Keep {
    /// Which value each one has, by its version: enough to tell who has an old one.
    #[default]
    Versions,
    /// Names and hosts too, in the rows.
    Names,
}

/// A key that was not revoked: whose it is and what it is good for. It may have expired.
#[derive(Debug)]
pub struct Grant {
    /// The organization.
    pub org: OrgId,
    /// The key.
    pub made: KeyCreated,
}

/// The rows, everything that ever was included; what is gone says so.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub orgs: BTreeMap<OrgId, Org>,
    /// Keys that were not revoked, by their SHA-256 (lower-case hex).
    pub keys: BTreeMap<String, Arc<Grant>>,
    /// The same by their records.
    pub keys_by_id: BTreeMap<KeyId, Arc<Grant>>,
    pub projects: BTreeMap<ProjectId, Project>,
    pub stores: BTreeMap<StoreId, SecretStore>,
    pub sandboxes: BTreeMap<SandboxId, Sandbox>,
    pub checkpoints: BTreeMap<CheckpointId, Checkpoint>,
    pub images: BTreeMap<ImageId, Image>,
    /// When those that run no more stopped.
    pub ended: BTreeMap<SandboxId, OffsetDateTime>,
    pub versions: Versions,
    /// Events that could not be understood.
    pub skipped: u64,
    keep: Keep,
}

impl Model {
    /// No rows yet.
    pub fn new(keep: Keep) -> Self {
        Self {
            keep,
            ..Self::default()
        }
    }

    /// Takes one event. One that is not understood is counted and changes nothing.
    pub fn apply(&mut self, recorded: &Recorded) -> Result<(), DecodeError> {
        self.take(recorded, Change::of(recorded))
    }

    /// The same, with what [`Change::of`] made of the event.
    pub fn take(
        &mut self,
        recorded: &Recorded,
        change: Result<Change, DecodeError>,
    ) -> Result<(), DecodeError> {
        self.skipped += u64::from(change.is_err());
        let Some((_, id)) = recorded.stream.parts() else {
            return Ok(());
        };
        match change? {
            Change::Org(event) => self.apply_org(id, event, recorded),
            Change::Project(event) => {
                self.versions.of_project(id, &event, recorded.revision);
                let kept = self.keep.of_project(event);
                apply_row(&mut self.projects, id, kept, recorded);
            }
            Change::Store(event) => {
                self.versions.of_store(id, &event, recorded.revision);
                let kept = self.keep.of_store(event);
                apply_row(&mut self.stores, id, kept, recorded);
            }
            Change::Sandbox(event) => self.apply_sandbox(id, event, recorded.revision),
            Change::Checkpoint(event) => {
                let kept = Some(without_envs(*event));
                apply_row(&mut self.checkpoints, id, kept, recorded);
            }
            Change::Image(event) => {
                let kept = Some(without_manifest(*event));
                apply_row(&mut self.images, id, kept, recorded);
            }
            Change::None => {}
        }
        Ok(())
    }

    fn apply_sandbox(&mut self, id: &str, event: SandboxEvent, revision: u64) {
        let Ok(id) = id.parse::<SandboxId>() else {
            return;
        };
        let row = self.sandboxes.entry(id.clone()).or_default();
        if let SandboxEvent::Sealed(_)
        | SandboxEvent::SecretRotated(_)
        | SandboxEvent::SecretRevoked(_) = event
        {
            row.sealed_revision = revision;
        }
        match &event {
            SandboxEvent::Stopped(stopped) => drop(self.ended.insert(id.clone(), stopped.at)),
            SandboxEvent::Failed(failed) => drop(self.ended.insert(id.clone(), failed.at)),
            SandboxEvent::StartFailed(failed) => drop(self.ended.insert(id.clone(), failed.at)),
            SandboxEvent::Started(_) => drop(self.ended.remove(&id)),
            _ => {}
        }
        self.versions.of_sandbox(&id, &event);
        if let Some(kept) = self.keep.of_sandbox(event) {
            row.apply(&kept, revision);
        }
        if row.phase.is_final() {
            self.versions.forget(&id);
        }
    }

    fn apply_org(&mut self, id: &str, event: OrgEvent, recorded: &Recorded) {
        if let Ok(org) = id.parse::<OrgId>() {
            match &event {
                OrgEvent::KeyCreated(made) => {
                    let made = made.clone();
                    let grant = Arc::new(Grant { org, made });
                    self.keys_by_id.insert(grant.made.key_id, grant.clone());
                    self.keys.insert(grant.made.sha256.clone(), grant);
                }
                OrgEvent::KeyRevoked(revoked) => {
                    if let Some(grant) = self.keys_by_id.remove(&revoked.key_id) {
                        self.keys.remove(&grant.made.sha256);
                    }
                }
                OrgEvent::Created(_) => {}
            }
        }
        apply_row(&mut self.orgs, id, Some(event), recorded);
    }
}

/// What an event is to the rows: the part of a replay that needs no row, and so can be done on other
/// threads.
pub(super) enum Change {
    Org(OrgEvent),
    Project(ProjectEvent),
    Store(StoreEvent),
    Sandbox(SandboxEvent),
    Checkpoint(Box<CheckpointEvent>),
    Image(Box<ImageEvent>),
    /// Nothing: names, egress records and idempotency keys have no rows of their own, and a branch's
    /// own events after its first one say all that its row shows.
    None,
}

impl Change {
    /// Reads an event.
    pub fn of(recorded: &Recorded) -> Result<Self, DecodeError> {
        if recorded.kind == BRANCH_KIND {
            return Ok(Self::None);
        }
        let (kind, data) = (&recorded.kind, &recorded.data);
        Ok(match recorded.stream.parts() {
            Some(("org", _)) => Self::Org(OrgEvent::decode(kind, data)?),
            Some(("project", _)) => Self::Project(ProjectEvent::decode(kind, data)?),
            Some(("store", _)) => Self::Store(StoreEvent::decode(kind, data)?),
            Some(("sandbox", _)) => Self::Sandbox(SandboxEvent::decode(kind, data)?),
            Some(("checkpoint", _)) => {
                Self::Checkpoint(Box::new(CheckpointEvent::decode(kind, data)?))
            }
            Some(("image", _)) => Self::Image(Box::new(ImageEvent::decode(kind, data)?)),
            _ => Self::None,
        })
    }
}

/// Applies what is kept of an event to its row.
fn apply_row<K: Ord + std::str::FromStr, A: Aggregate>(
    rows: &mut BTreeMap<K, A>,
    id: &str,
    event: Option<A::Event>,
    recorded: &Recorded,
) {
    if let (Ok(id), Some(event)) = (id.parse(), event) {
        rows.entry(id).or_default().apply(&event, recorded.revision);
    }
}

impl Keep {
    fn of_project(self, event: ProjectEvent) -> Option<ProjectEvent> {
        match (self, event) {
            (
                Self::Versions,
                ProjectEvent::SecretSet(_)
                | ProjectEvent::SecretDeleted(_)
                | ProjectEvent::SecretRevoked(_),
            ) => None,
            (Self::Names, ProjectEvent::SecretSet(set)) => {
                Some(ProjectEvent::SecretSet(without_value(set)))
            }
            (_, event) => Some(event),
        }
    }

    fn of_store(self, event: StoreEvent) -> Option<StoreEvent> {
        match (self, event) {
            (
                Self::Versions,
                StoreEvent::SecretSet(_)
                | StoreEvent::SecretDeleted(_)
                | StoreEvent::SecretRevoked(_),
            ) => None,
            (Self::Names, StoreEvent::SecretSet(set)) => {
                Some(StoreEvent::SecretSet(without_value(set)))
            }
            (_, event) => Some(event),
        }
    }

    fn of_sandbox(self, event: SandboxEvent) -> Option<SandboxEvent> {
        match (self, event) {
            (
                Self::Versions,
                SandboxEvent::Sealed(_)
                | SandboxEvent::SecretRotated(_)
                | SandboxEvent::SecretRevoked(_),
            ) => None,
            (Self::Names, SandboxEvent::Sealed(mut sealed)) => {
                let entries = sealed.secrets.iter_mut().map(|entry| &mut entry.sealed);
                entries
                    .chain([&mut sealed.ca_key, &mut sealed.envs])
                    .chain(&mut sealed.image)
                    .for_each(empty);
                Some(SandboxEvent::Sealed(sealed))
            }
            (Self::Names, SandboxEvent::SecretRotated(mut rotated)) => {
                empty(&mut rotated.entry.sealed);
                Some(SandboxEvent::SecretRotated(rotated))
            }
            (_, event) => Some(event),
        }
    }
}

fn without_value(mut set: SecretSet) -> SecretSet {
    empty(&mut set.sealed);
    set
}

/// What is left out is ciphertext, and the scripts of patches, which no list shows.
fn without_envs(mut event: CheckpointEvent) -> CheckpointEvent {
    match &mut event {
        CheckpointEvent::Requested(requested) => {
            [&mut requested.envs, &mut requested.ca_key]
                .into_iter()
                .chain(&mut requested.image)
                .for_each(empty);
        }
        CheckpointEvent::PatchAdded(added) => added.script.clear(),
        _ => {}
    }
    event
}

/// What is left out is ciphertext.
fn without_manifest(mut event: ImageEvent) -> ImageEvent {
    if let ImageEvent::Requested(requested) = &mut event {
        requested.manifest.iter_mut().for_each(empty);
    }
    event
}

fn empty(sealed: &mut Sealed) {
    sealed.nonce = String::new();
    sealed.ciphertext = String::new();
}
