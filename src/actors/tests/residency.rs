//! Entities come and go: how many stay, and what happens to commands at the door.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{at, id, org, set_secret};
use crate::actors::project::{Project, ProjectCommand, ProjectSettings};
use crate::actors::registry::{Arbiters, Registry};
use crate::events::{Actor, EventLog, StreamId};
use crate::ids::ProjectId;

fn create(id: ProjectId, name: &str) -> ProjectCommand {
    ProjectCommand::Create {
        id,
        org: org(),
        settings: ProjectSettings {
            name: Some(name.to_owned()),
            ..ProjectSettings::default()
        },
        memory_mb_max: 1024,
        at: at(1),
    }
}

/// Goal: ten thousand entities that were asked once do not stay, those that were asked last do, and
/// each of them still answers.
#[test]
fn touched_entities_do_not_stay() {
    let log = EventLog::in_memory();
    actix::System::new().block_on(async {
        let registry: Registry<Project> = Registry::new(log.clone(), Arbiters::start(2));
        let name = |number: usize| StreamId::of("project", number);
        for some in (0..10_000).collect::<Vec<_>>().chunks(200) {
            let names: Vec<_> = some.iter().map(|number| name(*number)).collect();
            let asked = names.iter().map(|name| registry.inspect(name));
            for state in futures_util::future::join_all(asked).await {
                assert!(state.expect("answers").details.is_none());
            }
        }
        let mut resident = registry.resident();
        for _ in 0..100 {
            if resident <= 4_096 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            resident = registry.resident();
        }
        assert!(
            (3_000..=4_096).contains(&resident),
            "{resident} are resident"
        );
        registry.inspect(&name(9_999)).await.expect("answers");
        registry.inspect(&name(0)).await.expect("comes back");
        assert!(registry.resident() <= 4_097);
        log.close().await;
    });
}

/// Goal: commands to entities that are being sent away all the time are each recorded once: none is
/// lost and none is doubled.
#[test]
fn commands_to_leaving_entities_count_once() {
    const ROUNDS: usize = 400;
    const PROJECTS: u128 = 4;
    let log = EventLog::in_memory();
    actix::System::new().block_on(async {
        let registry: Arc<Registry<Project>> =
            Arc::new(Registry::new(log.clone(), Arbiters::start(2)));
        let ids: Vec<ProjectId> = (1..=PROJECTS)
            .map(|number| id(&format!("00000000-0000-7000-8000-{number:012}")))
            .collect();
        let who = Actor::api(org(), None);
        for project in &ids {
            let command = create(*project, &project.to_string());
            let stream = Project::stream(project);
            registry
                .execute(&stream, command, &who)
                .await
                .expect("made");
        }
        let mut tasks = Vec::new();
        for (number, project) in ids.iter().enumerate() {
            for half in 0..2 {
                let (registry, who, stream) =
                    (registry.clone(), who.clone(), Project::stream(project));
                tasks.push(actix_rt::spawn(async move {
                    for round in 0..ROUNDS / 2 {
                        let name = format!("S{number}_{half}_{round}");
                        let set = ProjectCommand::Secret(org(), set_secret(&name, &[], 3));
                        registry
                            .execute(&stream, set, &who)
                            .await
                            .expect("recorded");
                    }
                }));
            }
        }
        let (sending, all) = (registry.clone(), ids.clone());
        let away = actix_rt::spawn(async move {
            loop {
                all.iter()
                    .for_each(|project| sending.send_away(&Project::stream(project)));
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        });
        for task in tasks {
            task.await.expect("all of its commands");
        }
        away.abort();
        for project in &ids {
            let events = log.read_stream(&Project::stream(project), 0, 1_000).await;
            let events = events.expect("read");
            let names: BTreeSet<_> = events.iter().map(|event| event.data.get()).collect();
            assert_eq!(events.len(), 1 + ROUNDS, "{project}");
            assert_eq!(names.len(), events.len(), "{project}: each once");
        }
        log.close().await;
    });
}

/// Goal: who waits for a state hears of it as soon as it is there, also when it was so already, when
/// the entity left memory meanwhile, and not at all (but of the present one) when the time is over.
#[test]
fn who_waits_for_a_state_is_told() {
    const LONG: Duration = Duration::from_secs(60);
    let log = EventLog::in_memory();
    actix::System::new().block_on(async {
        let registry: Arc<Registry<Project>> =
            Arc::new(Registry::new(log.clone(), Arbiters::start(2)));
        let project: ProjectId = id("00000000-0000-7000-8000-000000000001");
        let (stream, who) = (Project::stream(&project), Actor::api(org(), None));
        let there: fn(&Project) -> bool = |state| state.details.is_some();
        let early = registry.wait_for(&stream, there, Duration::from_millis(20));
        assert!(early.await.expect("the present one").details.is_none());
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let (registry, stream) = (registry.clone(), stream.clone());
                actix_rt::spawn(async move { registry.wait_for(&stream, there, LONG).await })
            })
            .collect();
        // Some of them ask an entity that leaves.
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            registry.send_away(&stream);
        }
        let begun = std::time::Instant::now();
        registry
            .execute(&stream, create(project, "awaited"), &who)
            .await
            .expect("made");
        for one in waiting {
            let state = one.await.expect("no panic").expect("told");
            assert!(state.details.is_some());
        }
        assert!(begun.elapsed() < LONG, "told, not timed out");
        let late = registry.wait_for(&stream, there, LONG).await;
        assert!(late.expect("told").details.is_some());
        log.close().await;
    });
}
