//! Every aggregate on a real log, and commands of every kind for them, right and wrong ones.

mod image;
mod sandbox;

pub use image::image_lives;
pub use sandbox::{checkpoint_lives, sandbox_lives};

use std::sync::Arc;

use actix::System;
use proptest::prelude::*;

use super::{at, id, intent, org, other_org, sealed, set_secret};
use crate::actors::aggregate::Aggregate;
use crate::actors::checkpoint::Checkpoint;
use crate::actors::entity::Failure;
use crate::actors::images::Image;
use crate::actors::org::{Org, OrgCommand};
use crate::actors::project::{Project, ProjectCommand, ProjectSettings};
use crate::actors::registry::{Arbiters, Registry};
use crate::actors::sandbox::Sandbox;
use crate::actors::secret_store::{SecretStore, StoreCommand};
use crate::actors::secrets::SecretCommand;
use crate::events::families::{KeyCreated, KeyRevoked, OrgCreated, Scope};
use crate::events::{Actor, EventLog, StreamId};
use crate::ids::{CheckpointId, ImageId, KeyId, OrgId, ProjectId, SandboxId, StoreId};

/// Slots for objects of a kind: a new object takes the place of an old one, which lives on.
const SLOTS: usize = 3;

/// What happens next.
#[derive(Debug, Clone)]
pub enum Act {
    Org(OrgAct),
    Project(usize, ObjectAct),
    Store(usize, ObjectAct),
    Sandbox(usize, SandboxAct),
    Checkpoint(usize, CheckpointAct),
    Image(usize, ImageAct),
}

#[derive(Debug, Clone)]
pub enum ImageAct {
    Request(Option<u8>),
    AddLayer(u8),
    Ready,
    Fail,
    Use,
    Delete,
}

#[derive(Debug, Clone)]
pub enum CheckpointAct {
    Request(u8),
    Ready,
    Fail,
    Delete,
    Publish(bool),
    AddPatch(u8),
    DeletePatch(u8),
}

#[derive(Debug, Clone)]
pub enum OrgAct {
    Create,
    Key(u8),
    Revoke(u8),
}

/// What can happen to projects and stores alike.
#[derive(Debug, Clone)]
pub enum ObjectAct {
    Create(u8),
    Rename(u8),
    Resize(i64),
    Set(u8),
    Unset(u8),
    Revoke(u8),
    Delete,
}

/// Intents are numbers, so that outcomes come for the open one, for another, or for none.
#[derive(Debug, Clone)]
pub enum SandboxAct {
    Create { store: usize, intent: u128 },
    Restart(u128),
    Started(u128),
    StartFailed(u128),
    Fail,
    Rotate { store: usize, version: u64 },
    Revoke { store: usize, version: u64 },
    SetTimeout(i64),
    RequestStop(u128),
    Stopped(u128),
    Hibernate(u128),
    Hibernated(u128),
    HibernateFailed(u128),
    ReleaseMemory,
    Wake(u128, Option<i64>),
    Reboot(u128),
    Scale(i64, bool),
    Autoscale(bool),
    Lock(bool),
    Tag(u8),
    Restore(u128),
    Patched(u32, bool),
}

/// Any act, and whether the other organization does it.
pub fn any_act() -> impl Strategy<Value = (Act, bool)> {
    let slot = || 0..SLOTS;
    let act = prop_oneof![
        1 => prop_oneof![
            Just(OrgAct::Create),
            (0..3u8).prop_map(OrgAct::Key),
            (0..3u8).prop_map(OrgAct::Revoke),
        ].prop_map(Act::Org),
        3 => (slot(), object_act()).prop_map(|(slot, act)| Act::Project(slot, act)),
        3 => (slot(), object_act()).prop_map(|(slot, act)| Act::Store(slot, act)),
        5 => (slot(), sandbox_act()).prop_map(|(slot, act)| Act::Sandbox(slot, act)),
        3 => (slot(), checkpoint_act()).prop_map(|(slot, act)| Act::Checkpoint(slot, act)),
        3 => (slot(), image_act()).prop_map(|(slot, act)| Act::Image(slot, act)),
    ];
    (act, prop::bool::weighted(0.3))
}

fn checkpoint_act() -> impl Strategy<Value = CheckpointAct> {
    use CheckpointAct as C;
    prop_oneof![
        3 => (0..3u8).prop_map(C::Request),
        3 => Just(C::Ready),
        1 => Just(C::Fail),
        1 => Just(C::Delete),
        1 => any::<bool>().prop_map(C::Publish),
        2 => (0..3u8).prop_map(C::AddPatch),
        1 => (0..3u8).prop_map(C::DeletePatch),
    ]
}

fn image_act() -> impl Strategy<Value = ImageAct> {
    use ImageAct as I;
    prop_oneof![
        3 => prop::option::of(0..3u8).prop_map(I::Request),
        2 => (0..3u8).prop_map(I::AddLayer),
        3 => Just(I::Ready),
        1 => Just(I::Fail),
        1 => Just(I::Use),
        1 => Just(I::Delete),
    ]
}

fn object_act() -> impl Strategy<Value = ObjectAct> {
    let letter = || 0..5u8;
    prop_oneof![
        3 => letter().prop_map(ObjectAct::Create),
        2 => letter().prop_map(ObjectAct::Rename),
        2 => (0..6i64).prop_map(ObjectAct::Resize),
        3 => letter().prop_map(ObjectAct::Set),
        1 => letter().prop_map(ObjectAct::Unset),
        1 => letter().prop_map(ObjectAct::Revoke),
        1 => Just(ObjectAct::Delete),
    ]
}

fn sandbox_act() -> impl Strategy<Value = SandboxAct> {
    let (intent, store) = (|| 0..2u128, || 0..SLOTS);
    prop_oneof![
        3 => (store(), intent()).prop_map(|(store, intent)| SandboxAct::Create { store, intent }),
        1 => intent().prop_map(SandboxAct::Restart),
        4 => intent().prop_map(SandboxAct::Started),
        1 => intent().prop_map(SandboxAct::StartFailed),
        1 => Just(SandboxAct::Fail),
        2 => (store(), 0..4u64).prop_map(|(store, version)| SandboxAct::Rotate { store, version }),
        1 => (store(), 0..4u64).prop_map(|(store, version)| SandboxAct::Revoke { store, version }),
        1 => (-1..100i64).prop_map(SandboxAct::SetTimeout),
        2 => intent().prop_map(SandboxAct::RequestStop),
        2 => intent().prop_map(SandboxAct::Stopped),
        3 => intent().prop_map(SandboxAct::Hibernate),
        3 => intent().prop_map(SandboxAct::Hibernated),
        1 => intent().prop_map(SandboxAct::HibernateFailed),
        1 => Just(SandboxAct::ReleaseMemory),
        2 => (intent(), prop::option::of(-1..100i64))
            .prop_map(|(intent, timeout)| SandboxAct::Wake(intent, timeout)),
        1 => intent().prop_map(SandboxAct::Reboot),
        2 => (prop::sample::select(vec![1024, 4096, 8192]), any::<bool>())
            .prop_map(|(memory, automatic)| SandboxAct::Scale(memory, automatic)),
        1 => any::<bool>().prop_map(SandboxAct::Autoscale),
        1 => any::<bool>().prop_map(SandboxAct::Lock),
        1 => (0..3u8).prop_map(SandboxAct::Tag),
        1 => intent().prop_map(SandboxAct::Restore),
        1 => (0..4u32, any::<bool>()).prop_map(|(n, failed)| SandboxAct::Patched(n, failed)),
    ]
}

/// The aggregates, and the ids of what was made.
pub struct World {
    pub orgs: Registry<Org>,
    pub projects: Registry<Project>,
    pub stores: Registry<SecretStore>,
    pub sandboxes: Registry<Sandbox>,
    project_ids: [ProjectId; SLOTS],
    store_ids: [StoreId; SLOTS],
    sandbox_ids: [SandboxId; SLOTS],
    sandbox_owners: [OrgId; SLOTS],
    pub checkpoints: Registry<Checkpoint>,
    checkpoint_ids: [CheckpointId; SLOTS],
    checkpoint_owners: [OrgId; SLOTS],
    pub images: Registry<Image>,
    image_ids: [ImageId; SLOTS],
    image_owners: [OrgId; SLOTS],
}

impl World {
    /// A new world on a log; must run inside an actix system.
    pub fn new(log: EventLog) -> Self {
        let arbiters = Arbiters::start(1);
        Self {
            orgs: Registry::new(log.clone(), arbiters.clone()),
            projects: Registry::new(log.clone(), arbiters.clone()),
            stores: Registry::new(log.clone(), arbiters.clone()),
            sandboxes: Registry::new(log.clone(), arbiters.clone()),
            checkpoints: Registry::new(log.clone(), arbiters.clone()),
            images: Registry::new(log, arbiters),
            image_ids: [(); SLOTS].map(|()| ImageId::generate()),
            image_owners: [org(); SLOTS],
            checkpoint_ids: [(); SLOTS].map(|()| CheckpointId::generate()),
            checkpoint_owners: [org(); SLOTS],
            project_ids: [(); SLOTS].map(|()| ProjectId::generate()),
            store_ids: [(); SLOTS].map(|()| StoreId::generate()),
            sandbox_ids: [(); SLOTS].map(|()| SandboxId::generate()),
            sandbox_owners: [org(); SLOTS],
        }
    }

    /// Does it. A refusal by the rules is fine, anything else is not.
    pub async fn act(&mut self, act: &Act, theirs: bool) {
        let org = if theirs { other_org() } else { org() };
        match act {
            Act::Org(act) => {
                let command = org_command(act, org);
                execute(&self.orgs, &Org::stream(&org), command, org).await;
            }
            Act::Project(slot, act) => {
                let own = &mut self.project_ids[*slot];
                if let ObjectAct::Create(_) = act {
                    *own = ProjectId::generate();
                }
                let command = project_command(*own, act, org);
                execute(&self.projects, &Project::stream(own), command, org).await;
            }
            Act::Store(slot, act) => {
                let own = &mut self.store_ids[*slot];
                if let ObjectAct::Create(_) = act {
                    *own = StoreId::generate();
                }
                let command = store_command(*own, act, org);
                execute(&self.stores, &SecretStore::stream(own), command, org).await;
            }
            Act::Checkpoint(slot, act) => {
                let own = &mut self.checkpoint_ids[*slot];
                let owner = &mut self.checkpoint_owners[*slot];
                if let CheckpointAct::Request(_) = act {
                    (*own, *owner) = (CheckpointId::generate(), org);
                }
                let command = sandbox::checkpoint_command(own, act, org);
                let who = match act {
                    CheckpointAct::Ready | CheckpointAct::Fail => *owner,
                    _ => org,
                };
                execute(&self.checkpoints, &Checkpoint::stream(own), command, who).await;
            }
            Act::Image(slot, act) => {
                let (own, owner) = (&mut self.image_ids[*slot], &mut self.image_owners[*slot]);
                if let ImageAct::Request(_) = act {
                    (*own, *owner) = (ImageId::generate(), org);
                }
                let command = image::image_command(own, act, org);
                let who = match act {
                    ImageAct::Use | ImageAct::Delete => org,
                    _ => *owner,
                };
                execute(&self.images, &Image::stream(own), command, who).await;
            }
            Act::Sandbox(slot, act) => {
                let own = &mut self.sandbox_ids[*slot];
                let owner = &mut self.sandbox_owners[*slot];
                if let SandboxAct::Create { .. } = act {
                    (*own, *owner) = (SandboxId::generate(), org);
                }
                let command = sandbox::sandbox_command(own, &self.store_ids, act, org);
                // What the platform does to a sandbox, it does for the sandbox's organization.
                let who = match act {
                    SandboxAct::SetTimeout(_)
                    | SandboxAct::RequestStop(_)
                    | SandboxAct::Hibernate(_)
                    | SandboxAct::Wake(..)
                    | SandboxAct::Reboot(_)
                    | SandboxAct::Scale(..)
                    | SandboxAct::Autoscale(_)
                    | SandboxAct::Lock(_)
                    | SandboxAct::Tag(_)
                    | SandboxAct::Restore(_) => org,
                    _ => *owner,
                };
                execute(&self.sandboxes, &Sandbox::stream(own), command, who).await;
            }
        }
    }

    /// The state of the entity of `stream`, as its own actor has it.
    pub async fn entity(&self, stream: &StreamId) -> Option<String> {
        let (family, _) = stream.parts()?;
        Some(match family {
            "org" => format!("{:#?}", inspect(&self.orgs, stream).await),
            "project" => format!("{:#?}", inspect(&self.projects, stream).await),
            "store" => format!("{:#?}", inspect(&self.stores, stream).await),
            "sandbox" => format!("{:#?}", inspect(&self.sandboxes, stream).await),
            "checkpoint" => format!("{:#?}", inspect(&self.checkpoints, stream).await),
            "image" => format!("{:#?}", inspect(&self.images, stream).await),
            _ => return None,
        })
    }
}

async fn inspect<A: Aggregate + Unpin>(registry: &Registry<A>, stream: &StreamId) -> Arc<A> {
    registry.inspect(stream).await.expect("the entity loads")
}

async fn execute<A: Aggregate + Unpin>(
    registry: &Registry<A>,
    stream: &StreamId,
    command: A::Command,
    org: OrgId,
) {
    let who = Actor::api(org, Some(id("00000000-0000-7000-8000-0000000000f1")));
    match registry.execute(stream, command, &who).await {
        Ok(_) | Err(Failure::Reject(_)) => {}
        Err(failure) => panic!("a command on {stream} failed: {failure}"),
    }
}

fn key_id(number: &u8) -> KeyId {
    id(&format!("00000000-0000-7000-8000-0000000000f{number}"))
}

fn org_command(act: &OrgAct, org: OrgId) -> OrgCommand {
    match act {
        OrgAct::Create => OrgCommand::Create(OrgCreated {
            org_id: org,
            name: "team".to_owned(),
            at: at(0),
        }),
        OrgAct::Key(number) => OrgCommand::CreateKey {
            by: None,
            made: KeyCreated {
                key_id: key_id(number),
                name: letter(*number),
                prefix: "osb_00000000".to_owned(),
                sha256: format!("{org}{number}"),
                scope: Scope::Admin,
                target: None,
                expires_at: None,
                rate: None,
                at: at(1),
            },
        },
        OrgAct::Revoke(number) => OrgCommand::RevokeKey(KeyRevoked {
            key_id: key_id(number),
            at: at(2),
        }),
    }
}

fn project_command(id: ProjectId, act: &ObjectAct, org: OrgId) -> ProjectCommand {
    let update = |settings| ProjectCommand::Update {
        org,
        settings,
        memory_mb_max: 4096,
        at: at(2),
    };
    match act {
        ObjectAct::Create(name) => ProjectCommand::Create {
            id,
            org,
            settings: ProjectSettings {
                name: Some(letter(*name)),
                egress_allowlist: Some(vec!["a.test".to_owned()]),
                ..ProjectSettings::default()
            },
            memory_mb_max: 4096,
            at: at(1),
        },
        ObjectAct::Rename(name) => update(ProjectSettings {
            name: Some(letter(*name)),
            ..ProjectSettings::default()
        }),
        // Every setting, the name left as it is; more than four processors are refused.
        ObjectAct::Resize(size) => update(ProjectSettings {
            name: None,
            template: Some(format!("template-{size}")),
            cpu_count: Some(*size),
            memory_mb: Some(size * 512),
            timeout_sec: Some(size * 60),
            egress_allowlist: Some(vec![format!("{size}.test")]),
        }),
        ObjectAct::Set(name) => ProjectCommand::Secret(org, set(*name)),
        ObjectAct::Unset(name) => ProjectCommand::Secret(org, unset(*name)),
        ObjectAct::Revoke(name) => ProjectCommand::Secret(org, revoke(*name)),
        ObjectAct::Delete => ProjectCommand::Delete(org, at(9)),
    }
}

fn store_command(id: StoreId, act: &ObjectAct, org: OrgId) -> StoreCommand {
    let update = |name, egress_allowlist| StoreCommand::Update {
        org,
        name,
        egress_allowlist,
        at: at(2),
    };
    match act {
        ObjectAct::Create(name) => StoreCommand::Create {
            id,
            org,
            name: Some(letter(*name)),
            egress_allowlist: None,
            at: at(1),
        },
        ObjectAct::Rename(name) => update(Some(letter(*name)), None),
        ObjectAct::Resize(size) => update(None, Some(vec![format!("{size}.test")])),
        ObjectAct::Set(name) => StoreCommand::Secret(org, set(*name)),
        ObjectAct::Unset(name) => StoreCommand::Secret(org, unset(*name)),
        ObjectAct::Revoke(name) => StoreCommand::Secret(org, revoke(*name)),
        ObjectAct::Delete => StoreCommand::Delete(org, at(9)),
    }
}

fn set(name: u8) -> SecretCommand {
    let mut command = set_secret(&letter(name), &["a.test"], 3);
    if let SecretCommand::Set(set) = &mut command {
        set.sealed = sealed("CIPHERTEXT");
        set.placement = Some(super::placement());
    }
    command
}

fn unset(name: u8) -> SecretCommand {
    SecretCommand::Delete {
        name: letter(name),
        at: at(4),
    }
}

fn revoke(name: u8) -> SecretCommand {
    SecretCommand::Revoke {
        name: letter(name),
        at: at(4),
    }
}

fn letter(number: u8) -> String {
    char::from(b'A' + number).to_string()
}

/// Runs `work` on a new log in memory, with actors at hand.
pub fn with_log<T, F: Future<Output = T>>(work: impl FnOnce(EventLog) -> F) -> T {
    System::new().block_on(async {
        let log = EventLog::in_memory();
        let outcome = work(log.clone()).await;
        log.close().await;
        System::current().stop();
        outcome
    })
}
