//! Loading: through ancestors, from state snapshots, and the same without them.

mod trees;

use std::path::Path;

use serde_json::json;
use ulid::Ulid;
use zeroize::Zeroizing;

use super::{at, id, org, sandbox as scenes, secret_was_set};
use crate::actors::loading::{Loaded, Source};
use crate::actors::project::Project;
use crate::actors::sandbox::{Phase, Sandbox};
use crate::events::families::{
    Family, ProjectCreated, ProjectEvent, SandboxEvent, SecretDeleted, Started, TimeoutSet,
};
use crate::events::{
    Actor, Append, EventLog, Expected, NewEvent, SNAPSHOTS_FILE, Slot, Snapshots, StreamId,
};

/// A log in memory and a cache in a folder.
fn source(dir: &Path) -> Source {
    Source {
        log: EventLog::in_memory(),
        snapshots: Snapshots::open(dir, Zeroizing::new([7; 32])),
    }
}

fn without(source: &Source) -> Source {
    Source {
        log: source.log.clone(),
        snapshots: Snapshots::none(),
    }
}

/// Drops a source and waits until its cache is closed: a thread that worked for it may hold it a
/// moment longer, and a file that is changed under an open database changes nothing.
async fn closed(source: Source, dir: &Path) {
    let path = dir.canonicalize().expect("a folder").join(SNAPSHOTS_FILE);
    drop(source);
    let is_open = || {
        let files = std::fs::read_dir("/proc/self/fd").expect("open files");
        files
            .flatten()
            .any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == path))
    };
    while is_open() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

fn stream(name: &str) -> StreamId {
    StreamId::new(name).expect("a stream name")
}

fn recorded(stream: &StreamId, event: &impl Family) -> NewEvent {
    NewEvent {
        id: Ulid::generate(),
        stream: stream.clone(),
        kind: event.kind().into(),
        data: event.data().expect("event data"),
    }
}

async fn append(log: &EventLog, events: Vec<NewEvent>) {
    for some in events.chunks(200) {
        let append = Append {
            command: Ulid::generate(),
            expected: Vec::new(),
            events: some.to_vec(),
            actor: Actor::system(),
            correlation: None,
            causation: None,
        };
        log.append(append).await.expect("appended");
    }
}

/// A project that was made and whose secret was set and deleted over and over.
fn busy_project(stream: &StreamId, events: usize) -> Vec<NewEvent> {
    let created = ProjectEvent::Created(ProjectCreated {
        project_id: id("00000000-0000-7000-8000-000000000001"),
        org_id: org(),
        name: "busy".to_owned(),
        template: "base".to_owned(),
        cpu_count: 1,
        memory_mb: 1024,
        timeout_sec: 300,
        egress_allowlist: Vec::new(),
        at: at(0),
    });
    let change = |number: usize| match number % 3 {
        0 => ProjectEvent::SecretSet(secret_was_set("A", 1)),
        1 => ProjectEvent::SecretSet(secret_was_set("B", 2)),
        _ => ProjectEvent::SecretDeleted(SecretDeleted {
            name: "A".to_owned(),
            at: at(3),
        }),
    };
    let changes = (1..events).map(change);
    std::iter::once(created)
        .chain(changes)
        .map(|event| recorded(stream, &event))
        .collect()
}

fn shown<A: std::fmt::Debug>(loaded: &Loaded<A>) -> String {
    format!("{:?} at {:?}", loaded.state, loaded.revision)
}

/// Loads and keeps, as an entity does; gives what was loaded once all is written.
async fn load<A: crate::actors::aggregate::Aggregate>(
    source: &Source,
    name: &StreamId,
) -> Loaded<A> {
    let mut loaded = source.load::<A>(name).await.expect("loads");
    source.keep(name, &mut loaded);
    source.snapshots.settled().await;
    loaded
}

/// Goal: after 500 events a state is kept and the next load reads only what came later; it is the
/// same state as without. Below that none is kept.
#[actix_rt::test]
async fn a_state_snapshot_saves_reading() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = source(dir.path());
    let (large, small) = (stream("project-large"), stream("project-small"));
    append(&source.log, busy_project(&large, 1_200)).await;
    append(&source.log, busy_project(&small, 499)).await;
    for (name, first, again) in [(&large, 1_200, 1), (&small, 499, 499)] {
        assert_eq!(load::<Project>(&source, name).await.read, first);
        assert_eq!(load::<Project>(&source, name).await.read, again);
    }
    let more = ProjectEvent::SecretSet(secret_was_set("C", 5));
    append(&source.log, vec![recorded(&large, &more)]).await;
    let loaded = load::<Project>(&source, &large).await;
    assert_eq!((loaded.read, loaded.revision), (2, Some(1_200)));
    let truth = without(&source)
        .load::<Project>(&large)
        .await
        .expect("loads");
    assert_eq!(shown(&loaded), shown(&truth));
    assert_eq!(truth.read, 1_201);
    source.log.close().await;
}

/// Goal: an entity at work keeps its state every 500 events, so that however long it lives the
/// next load reads no more than that.
#[actix_rt::test]
async fn a_working_entity_keeps_its_state() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = source(dir.path());
    let name = stream("project-long");
    append(&source.log, busy_project(&name, 1)).await;
    let mut loaded = source.load::<Project>(&name).await.expect("loads");
    for _ in 0..6 {
        let set = ProjectEvent::SecretSet(secret_was_set("A", 1));
        let events = (0..200).map(|_| recorded(&name, &set)).collect();
        let appended = source.log.append(Append {
            command: Ulid::generate(),
            expected: Vec::new(),
            events,
            actor: Actor::system(),
            correlation: None,
            causation: None,
        });
        loaded
            .apply(appended.await.expect("appended").events)
            .expect("applied");
        source.keep(&name, &mut loaded);
        source.snapshots.settled().await;
    }
    let again = source.load::<Project>(&name).await.expect("loads");
    assert_eq!(shown(&again), shown(&loaded));
    assert!(again.read < 500, "{} events were read", again.read);
    source.log.close().await;
}

/// Goal: whatever is wrong with the cache (gone, cut, flipped, another key, another version,
/// another event at that revision, not a state), the same is loaded; and it is a cache again
/// afterwards.
#[actix_rt::test]
async fn a_useless_snapshot_is_dropped_and_made_anew() {
    let name = stream("project-large");
    let forge = |dir: &Path, sql: &str| {
        let conn = rusqlite::Connection::open(dir.join(SNAPSHOTS_FILE)).expect("opens");
        assert!(conn.execute(sql, []).expect("forged") > 0);
    };
    for wrong in 0..7 {
        let dir = tempfile::tempdir().expect("a folder");
        let fresh = source(dir.path());
        append(&fresh.log, busy_project(&name, 700)).await;
        let truth = shown(&load::<Project>(&fresh, &name).await);
        assert_eq!(load::<Project>(&fresh, &name).await.read, 1);
        let log = fresh.log.clone();
        closed(fresh, dir.path()).await;
        let (path, mut key) = (dir.path().join(SNAPSHOTS_FILE), [7; 32]);
        match wrong {
            0 => std::fs::remove_file(&path).expect("removed"),
            1 => std::fs::write(
                &path,
                "not a database at all, but long enough to be looked at",
            )
            .expect("written"),
            2 => {
                drop(std::fs::remove_file(dir.path().join("snapshots.db-wal")));
                let bytes = std::fs::read(&path).expect("read");
                std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("cut");
            }
            3 => forge(
                dir.path(),
                "UPDATE states SET state = \
                cast(replace(cast(state AS TEXT), 'busy', 'evil') AS BLOB)",
            ),
            4 => key = [8; 32],
            5 => forge(dir.path(), "UPDATE states SET revision = revision - 1"),
            _ => forge(dir.path(), "UPDATE states SET version = version + 1"),
        }
        let snapshots = Snapshots::open(dir.path(), Zeroizing::new(key));
        let doubtful = Source { log, snapshots };
        let loaded = load::<Project>(&doubtful, &name).await;
        assert_eq!(shown(&loaded), truth, "case {wrong}");
        assert_eq!(loaded.read, 700, "case {wrong}");
        assert_eq!(
            load::<Project>(&doubtful, &name).await.read,
            1,
            "case {wrong}"
        );
        doubtful.log.close().await;
    }
}

/// Goal: a snapshot of another history (the log was restored from a backup, say) does not count,
/// though its code is right: neither when that history is shorter nor when it has another event.
#[actix_rt::test]
async fn a_snapshot_of_another_log_does_not_count() {
    let name = stream("project-large");
    let dir = tempfile::tempdir().expect("a folder");
    let first = source(dir.path());
    append(&first.log, busy_project(&name, 700)).await;
    for events in [600, 1_000] {
        load::<Project>(&first, &name).await;
        let mixed = Source {
            log: EventLog::in_memory(),
            snapshots: first.snapshots.clone(),
        };
        append(&mixed.log, busy_project(&name, events)).await;
        let loaded = mixed.load::<Project>(&name).await.expect("loads");
        assert_eq!(
            (loaded.read, loaded.revision),
            (events as u64, Some(events as u64 - 1))
        );
        mixed.log.close().await;
    }
    first.log.close().await;
}

fn timeout(seconds: u32) -> SandboxEvent {
    SandboxEvent::TimeoutSet(TimeoutSet {
        timeout_sec: seconds,
        at: at(4),
    })
}

/// Appends a branch with events of its own in the same commit.
async fn fork(log: &EventLog, child: &StreamId, parent: &StreamId, at: u64, own: &[SandboxEvent]) {
    let branch = log.branch_event(child, parent, at).await.expect("a branch");
    let own = own.iter().map(|event| recorded(child, event));
    let append = Append {
        command: Ulid::generate(),
        expected: vec![(child.clone(), Expected::NoStream)],
        events: std::iter::once(branch).chain(own).collect(),
        actor: Actor::system(),
        correlation: None,
        causation: None,
    };
    log.append(append).await.expect("appended");
}

/// Goal: a branch of a running sandbox has its settings as they were at the fork, and no secret,
/// no intent, no life of its own yet; what happens to the parent later is not the branch's.
#[actix_rt::test]
async fn a_forked_sandbox_inherits_settings_and_nothing_live() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = source(dir.path());
    let (parent, child) = (stream("sandbox-parent"), stream("sandbox-child"));
    let mut life: Vec<_> = scenes::running();
    life.push(timeout(111));
    life.push(SandboxEvent::StartRequested(
        crate::events::families::StartRequested {
            cause: crate::events::families::StartCause::Created,
            checkpoint: None,
            intent: super::intent(9),
            at: at(4),
        },
    ));
    append(
        &source.log,
        life.iter().map(|event| recorded(&parent, event)).collect(),
    )
    .await;
    let last = life.len() as u64 - 1;
    fork(&source.log, &child, &parent, last, &[]).await;
    append(&source.log, vec![recorded(&parent, &timeout(222))]).await;
    let before = source.load::<Sandbox>(&parent).await.expect("loads").state;
    assert!(before.sealed.is_some() && before.phase == Phase::Starting(super::intent(9)));
    // First from the events, then from what the first load kept.
    for read in [life.len() as u64 + 1, 0] {
        let loaded = load::<Sandbox>(&source, &child).await;
        assert_eq!((loaded.read, loaded.revision), (read, Some(0)));
        let state = &loaded.state;
        assert!(state.sealed.is_none() && state.started_at.is_none());
        assert_eq!((&state.phase, state.sealed_revision), (&Phase::Absent, 0));
        let inherited = state.details.as_ref().expect("its settings");
        assert_eq!(inherited.timeout_sec, 111);
        assert_eq!(inherited.layers, scenes::created().layers);
        assert!(
            state.visible_to(&org()).is_err(),
            "nobody was told of it yet"
        );
    }
    // Its own life is its own: it starts, and a load after that finds the same.
    let own = [
        SandboxEvent::Created(scenes::created()),
        SandboxEvent::Sealed(scenes::set()),
        SandboxEvent::Started(Started {
            intent: super::intent(1),
            limits: json!({}),
            at: at(9),
        }),
    ];
    append(
        &source.log,
        own.iter().map(|event| recorded(&child, event)).collect(),
    )
    .await;
    let loaded = load::<Sandbox>(&source, &child).await;
    let truth = without(&source)
        .load::<Sandbox>(&child)
        .await
        .expect("loads");
    assert_eq!(shown(&loaded), shown(&truth));
    assert!(loaded.state.sealed.is_some() && loaded.revision == Some(3));
    source.log.close().await;
}

/// Goal: an aggregate that says nothing about branches hands nothing on.
#[actix_rt::test]
async fn a_branch_of_a_project_inherits_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = source(dir.path());
    let (parent, child) = (stream("project-parent"), stream("project-child"));
    append(&source.log, busy_project(&parent, 5)).await;
    fork(&source.log, &child, &parent, 4, &[]).await;
    let loaded = source.load::<Project>(&child).await.expect("loads");
    assert_eq!(
        format!("{:?}", loaded.state),
        format!("{:?}", Project::default())
    );
    source.log.close().await;
}

/// Goal: with state snapshots a branch of depth 100 reads no more events than one of depth 1, and
/// without them it reads each ancestor's part once.
#[actix_rt::test]
async fn a_deep_branch_reads_no_more_than_a_shallow_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = source(dir.path());
    let own: Vec<_> = (1..=10).map(timeout).collect();
    let name = |depth: u32| stream(&format!("sandbox-{depth}"));
    let life = scenes::running();
    append(
        &source.log,
        life.iter().map(|event| recorded(&name(0), event)).collect(),
    )
    .await;
    let mut reads = Vec::new();
    for depth in 1..=100 {
        // Forked in the middle of the parent's own part.
        let at = if depth == 1 { 3 } else { 5 };
        fork(&source.log, &name(depth), &name(depth - 1), at, &own).await;
        load::<Sandbox>(&source, &name(depth)).await;
        reads.push(load::<Sandbox>(&source, &name(depth)).await.read);
    }
    assert!(reads.iter().all(|read| *read == 10), "{reads:?}");
    let (deepest, cold) = (name(100), without(&source));
    let truth = cold.load::<Sandbox>(&deepest).await.expect("loads");
    assert_eq!(truth.read, 4 + 99 * 6 + 11);
    let loaded = source.load::<Sandbox>(&deepest).await.expect("loads");
    assert_eq!(shown(&loaded), shown(&truth));
    source.log.close().await;
}

/// Goal: when a stream's data key is destroyed its ciphertexts leave the cache, overwritten, and a
/// state that was on its way is not taken; a branch's beginning, which has none, stays.
#[actix_rt::test]
async fn a_forgotten_streams_ciphertexts_are_in_no_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = source(dir.path());
    let (parent, child) = (stream("sandbox-parent"), stream("sandbox-child"));
    let mut life = scenes::running();
    life.extend((0..600).map(timeout));
    append(
        &source.log,
        life.iter().map(|event| recorded(&parent, event)).collect(),
    )
    .await;
    fork(&source.log, &child, &parent, 3, &[]).await;
    load::<Sandbox>(&source, &parent).await;
    load::<Sandbox>(&source, &child).await;
    let ciphertext = scenes::set().ca_key.ciphertext;
    let held = || {
        let files = [SNAPSHOTS_FILE, "snapshots.db-wal"].map(|file| dir.path().join(file));
        files.iter().any(|file| {
            let bytes = std::fs::read(file).unwrap_or_default();
            bytes
                .windows(ciphertext.len())
                .any(|window| window == ciphertext.as_bytes())
        })
    };
    assert!(held(), "the state was kept at all");
    source.snapshots.forget(&parent).await;
    assert!(!held());
    load::<Sandbox>(&source, &parent).await;
    assert!(!held(), "not taken again");
    let version = <Sandbox as crate::actors::aggregate::Aggregate>::STATE_VERSION;
    let beginning = source.snapshots.load(&parent, Slot::Fork(3), version).await;
    assert!(beginning.is_some(), "the branch still begins there");
    source.log.close().await;
}
