//! The read models against the entities and against a replay.

use std::sync::Arc;

use actix::System;
use proptest::prelude::*;

use super::{at, org, other_org, set_secret};
use crate::actors::catalog::Catalog;
use crate::actors::entity::Failure;
use crate::actors::project::{Project, ProjectCommand, ProjectSettings};
use crate::actors::registry::{Arbiters, Registry};
use crate::actors::secret_store::{SecretStore, StoreCommand};
use crate::actors::secrets::SecretCommand;
use crate::events::{Actor, EventLog, LogOptions};
use crate::ids::{OrgId, ProjectId, StoreId};

/// Objects the commands are about.
const OBJECTS: usize = 4;

#[derive(Debug, Clone)]
enum Act {
    Create(usize, u8),
    Rename(usize, u8),
    Resize(usize, i64),
    Set(usize, u8),
    Unset(usize, u8),
    Delete(usize),
}

fn any_act() -> impl Strategy<Value = Act> {
    let (object, letter) = (|| 0..OBJECTS, || 0..5u8);
    prop_oneof![
        3 => (object(), letter()).prop_map(|(o, n)| Act::Create(o, n)),
        3 => (object(), letter()).prop_map(|(o, n)| Act::Rename(o, n)),
        2 => (object(), 1..5i64).prop_map(|(o, n)| Act::Resize(o, n)),
        2 => (object(), letter()).prop_map(|(o, n)| Act::Set(o, n)),
        1 => (object(), letter()).prop_map(|(o, n)| Act::Unset(o, n)),
        1 => object().prop_map(Act::Delete),
    ]
}

fn letter(number: u8) -> String {
    char::from(b'A' + number).to_string()
}

fn secret(act: &Act) -> Option<SecretCommand> {
    match act {
        Act::Set(_, name) => Some(set_secret(&letter(*name), &[], 3)),
        Act::Unset(_, name) => Some(SecretCommand::Delete {
            name: letter(*name),
            at: at(4),
        }),
        _ => None,
    }
}

fn project_command(ids: &mut [ProjectId], act: &Act, org: OrgId) -> (usize, ProjectCommand) {
    let settings = |name: Option<u8>, cpu_count: Option<i64>| ProjectSettings {
        name: name.map(letter),
        cpu_count,
        ..ProjectSettings::default()
    };
    let update = |settings| ProjectCommand::Update {
        org,
        settings,
        memory_mb_max: 1024,
        at: at(2),
    };
    match act {
        Act::Create(object, name) => {
            // A new object in the old one's place; the old one lives on, unasked.
            ids[*object] = ProjectId::generate();
            let command = ProjectCommand::Create {
                id: ids[*object],
                org,
                settings: settings(Some(*name), None),
                memory_mb_max: 1024,
                at: at(1),
            };
            (*object, command)
        }
        Act::Rename(object, name) => (*object, update(settings(Some(*name), None))),
        Act::Resize(object, cpus) => (*object, update(settings(None, Some(*cpus)))),
        Act::Delete(object) => (*object, ProjectCommand::Delete(org, at(9))),
        Act::Set(object, _) | Act::Unset(object, _) => (
            *object,
            ProjectCommand::Secret(org, secret(act).expect("an act on a secret")),
        ),
    }
}

fn store_command(ids: &mut [StoreId], act: &Act, org: OrgId) -> (usize, StoreCommand) {
    let update = |name| StoreCommand::Update {
        org,
        name,
        egress_allowlist: Some(vec!["a.test".to_owned()]),
        at: at(2),
    };
    match act {
        Act::Create(object, name) => {
            ids[*object] = StoreId::generate();
            let (id, name) = (ids[*object], Some(letter(*name)));
            (
                *object,
                StoreCommand::Create {
                    id,
                    org,
                    name,
                    egress_allowlist: None,
                    at: at(1),
                },
            )
        }
        Act::Rename(object, name) => (*object, update(Some(letter(*name)))),
        Act::Resize(object, _) => (*object, update(None)),
        Act::Delete(object) => (*object, StoreCommand::Delete(org, at(9))),
        Act::Set(object, _) | Act::Unset(object, _) => (
            *object,
            StoreCommand::Secret(org, secret(act).expect("an act on a secret")),
        ),
    }
}

/// Everything lists would show, without secrets, which the read models leave out.
fn shown(catalog: &Catalog) -> String {
    [org(), other_org()]
        .map(|org| format!("{:?}\n{:?}\n", catalog.projects(&org), catalog.stores(&org)))
        .concat()
}

async fn play(log: EventLog, acts: Vec<(Act, bool, bool)>) -> Result<(), TestCaseError> {
    let arbiters = Arbiters::start(1);
    let live = Arc::new(Catalog::default());
    let (following, followed) = (live.clone(), log.clone());
    actix_rt::spawn(async move { following.follow(followed).await });
    let projects: Registry<Project> = Registry::new(log.clone(), arbiters.clone());
    let stores: Registry<SecretStore> = Registry::new(log.clone(), arbiters);
    let mut project_ids = [(); OBJECTS].map(|()| ProjectId::generate());
    let mut store_ids = [(); OBJECTS].map(|()| StoreId::generate());
    let mut every_project = Vec::new();
    for (act, theirs, is_store) in acts {
        let org = if theirs { other_org() } else { org() };
        let who = Actor::api(org, None);
        let outcome = if is_store {
            let (object, command) = store_command(&mut store_ids, &act, org);
            let stream = SecretStore::stream(&store_ids[object]);
            stores.execute(&stream, command, &who).await.map(drop)
        } else {
            let (object, command) = project_command(&mut project_ids, &act, org);
            every_project.push(project_ids[object]);
            let stream = Project::stream(&project_ids[object]);
            projects.execute(&stream, command, &who).await.map(drop)
        };
        let fine = matches!(outcome, Ok(()) | Err(Failure::Reject(_)));
        prop_assert!(fine, "{act:?} failed: {:?}", outcome.err());
    }
    let head = log.head().position;
    live.caught_up(head).await;
    prop_assert_eq!(live.position(), head);

    // A replay of the whole log gives the same rows as the live feed.
    let rebuilt = Catalog::default();
    let mut from = 1;
    while from <= head {
        for event in log.read_all(from, 7).await.expect("read") {
            from = event.position + 1;
            rebuilt.apply(&event);
        }
    }
    prop_assert_eq!(shown(&live), shown(&rebuilt));

    // The rows are what the entities say, and no name is there twice.
    for id in every_project {
        let entity = projects
            .inspect(&Project::stream(&id))
            .await
            .expect("loads");
        for org in [org(), other_org()] {
            let row = live.find_project(&org, &id.to_string());
            let own = entity.visible_to(&org).ok().cloned();
            prop_assert_eq!(format!("{row:?}"), format!("{own:?}"));
        }
    }
    for org in [org(), other_org()] {
        let rows = live.projects(&org);
        let mut names: Vec<_> = rows
            .iter()
            .filter_map(|row| row.visible_to(&org).ok())
            .map(|row| &row.name)
            .collect();
        names.dedup();
        prop_assert_eq!(names.len(), rows.len());
    }
    Ok(())
}

proptest! {
    // Each case has a log of its own on disk, with a sync for each accepted command.
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Goal: after any commands of two organizations, the live model, a full replay and the
    /// entities agree, and names stay unique.
    #[test]
    fn live_feed_replay_and_entities_agree(
        acts in prop::collection::vec((any_act(), any::<bool>(), any::<bool>()), 1..40)
    ) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let system = System::new();
        let outcome = system.block_on(async {
            let log = EventLog::open(LogOptions { dir: dir.path().to_owned() }).expect("opens");
            let outcome = play(log.clone(), acts).await;
            log.close().await;
            System::current().stop();
            outcome
        });
        outcome?;
    }
}
