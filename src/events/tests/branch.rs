//! Branches: what they read, what is refused, and that nothing can be told of them that is not so.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use time::OffsetDateTime;
use ulid::Ulid;

use super::support::{command, event, fill, note, open, stream};
use crate::events::EventData;
use crate::events::Head;
use crate::events::engines::sqlite::Sqlite;
use crate::events::engines::{Commit, Engine};
use crate::events::verify::walk;
use crate::events::{
    Actor, BRANCH_KIND, Branched, EventLog, Expected, Keyring, MasterKey, NewEvent, Recorded,
    SealContext, Segment, chain,
};

/// Branches `child` off `parent`, with one event of its own in the same commit.
async fn branch(log: &EventLog, child: &str, parent: &str, revision: u64, value: u64) {
    let (own, from) = (stream(child), stream(parent));
    let first = log.branch_event(&own, &from, revision).await;
    let events = vec![first.expect("a place to branch from"), event(child, value)];
    log.append(command(&[(child, Expected::NoStream)], events))
        .await
        .expect("appended");
}

/// The values of a stream as its lineage gives them, branch events left out.
async fn values(log: &EventLog, name: &str) -> Vec<u64> {
    let lineage = log.lineage(&stream(name)).await.expect("a lineage");
    let mut reader = log.read_lineage(lineage);
    let mut values = Vec::new();
    loop {
        let page = reader.next().await.expect("a page");
        if page.is_empty() {
            return values;
        }
        assert!(page.windows(2).all(|two| two[0].position < two[1].position));
        let happened = page.iter().filter(|event| event.kind != BRANCH_KIND);
        values.extend(happened.map(|event| {
            let data: Value = serde_json::from_str(event.data.get()).expect("JSON");
            data["value"].as_u64().expect("a number")
        }));
    }
}

/// Goal: a branch is its ancestors up to where it left them, then its own; what happens to them
/// afterwards is not its own.
#[tokio::test]
async fn a_branch_reads_through_its_ancestors() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    fill(&log, "root", 4).await;
    branch(&log, "child", "root", 2, 10).await;
    log.append(note("child", 11)).await.expect("appended");
    log.append(note("root", 4)).await.expect("appended");
    branch(&log, "grandchild", "child", 1, 20).await;
    branch(&log, "twin", "child", 0, 30).await;
    assert_eq!(values(&log, "root").await, [0, 1, 2, 3, 4]);
    assert_eq!(values(&log, "child").await, [0, 1, 2, 10, 11]);
    assert_eq!(values(&log, "grandchild").await, [0, 1, 2, 10, 20]);
    assert_eq!(values(&log, "twin").await, [0, 1, 2, 30]);
    assert!(values(&log, "nobody").await.is_empty());
    let lineage = log.lineage(&stream("grandchild")).await.expect("a lineage");
    let named = |stream: &str, until| Segment {
        stream: super::support::stream(stream),
        until,
    };
    let all = [
        named("root", Some(2)),
        named("child", Some(1)),
        named("grandchild", None),
    ];
    assert_eq!(lineage, all);
    log.verify().await.expect("the proof holds");
    log.close().await;
}

/// Goal: a parent that is deleted, its data key destroyed, leaves its branch whole, also for a
/// server that starts afterwards.
#[tokio::test]
async fn a_branch_outlives_its_parent() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    let master = MasterKey::generate().expect("a key");
    let keyring = Keyring::open(&dir.path().join("keys.db"), master, false).expect("a keyring");
    let context = SealContext {
        event_kind: "test.happened.v1",
        name: "KEY",
    };
    let value = crate::secret::SecretValue::from("v".to_owned());
    let sealed = keyring.seal(&stream("parent"), &context, &value);
    let sealed = sealed.expect("sealed");
    fill(&log, "parent", 3).await;
    let mut with_secret = event("parent", 3);
    with_secret.data = json!({ "value": 3, "sealed": sealed });
    log.append(command(&[], vec![with_secret]))
        .await
        .expect("appended");
    branch(&log, "child", "parent", 3, 10).await;
    log.append(note("parent", 99)).await.expect("its deletion");
    keyring.shred(&stream("parent")).expect("shredded");
    assert_eq!(values(&log, "child").await, [0, 1, 2, 3, 10]);
    log.close().await;
    let log = open(dir.path());
    log.append(note("child", 11)).await.expect("it goes on");
    assert_eq!(values(&log, "child").await, [0, 1, 2, 3, 10, 11]);
    log.verify().await.expect("the proof holds");
    log.close().await;
    let opened = keyring.unseal(&stream("parent"), &context, &sealed);
    assert!(opened.is_err(), "the parent's value is gone for good");
}

fn false_branch(child: &str, data: Value) -> NewEvent {
    NewEvent {
        id: Ulid::generate(),
        stream: stream(child),
        kind: BRANCH_KIND.into(),
        data,
    }
}

/// Goal: whoever asks for a branch that can't be is told why, and no false branch event gets into
/// the log, whose writer goes on.
#[tokio::test]
async fn false_branches_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    fill(&log, "a", 3).await;
    let asked = |child: &'static str, revision: u64| {
        let log = log.clone();
        async move {
            let (child, parent) = (stream(child), stream("a"));
            let made = log.branch_event(&child, &parent, revision);
            made.await.expect_err("refused").to_string()
        }
    };
    assert!(asked("b", 3).await.contains("no event at revision 3"));
    assert!(asked("b", u64::MAX).await.contains("no event at revision"));
    assert!(asked("a", 1).await.contains("a branch of itself"));

    let good = log.branch_event(&stream("b"), &stream("a"), 1).await;
    let good = good.expect("a branch").data;
    let with = |field: &str, value: Value| {
        let mut data = good.clone();
        data[field] = value;
        data
    };
    let zeros = "0".repeat(64);
    let upper = good["hash"].as_str().expect("text").to_uppercase();
    for (data, says) in [
        (
            with("position", json!(4)),
            "event 4, which is not before it",
        ),
        (with("position", json!(u64::MAX)), "which is not before it"),
        (with("position", json!(0)), "event 0, which is not there"),
        (with("position", json!(1)), "but that is revision 0 of a"),
        (with("revision", json!(0)), "but that is revision 1 of a"),
        (with("revision", json!(-1)), "does not fit"),
        (
            with("parent", json!("nobody")),
            "revision 1 of nobody, but that is",
        ),
        (with("parent", json!("not a name")), "does not fit"),
        (with("hash", json!(zeros)), "a hash that is not its own"),
        (with("hash", json!(upper)), "a hash that is not its own"),
        (json!({}), "does not fit"),
    ] {
        let append = command(&[], vec![false_branch("b", data)]);
        let refused = log.append(append).await.expect_err("refused").to_string();
        assert!(refused.contains(says), "{refused}");
    }
    // True, but not the first event: of a stream that is there, and within one command.
    let late = command(&[], vec![false_branch("a", good.clone())]);
    let second = command(&[], vec![event("b", 0), false_branch("b", good.clone())]);
    let twice = vec![
        false_branch("b", good.clone()),
        false_branch("b", good.clone()),
    ];
    for append in [late, second, command(&[], twice)] {
        let refused = log.append(append).await.expect_err("refused").to_string();
        assert!(refused.contains("only begin a stream"), "{refused}");
    }
    let right = command(&[], vec![false_branch("b", good)]);
    log.append(right).await.expect("the true one is taken");
    log.verify().await.expect("the proof holds");
    log.close().await;
}

/// Goal: a false branch event that someone wrote into the log with every hash made anew is found
/// by the proof and named with its position and its fault, and is not read through.
#[tokio::test]
async fn a_forged_branch_is_noticed() {
    let fork = |parent: &str, revision: u64, position: u64, hash: &str| {
        json!(Branched {
            parent: stream(parent),
            revision,
            position,
            hash: hash.to_owned(),
        })
    };
    for (child, which, says) in [
        ("b", 0, "event 2 a hash that is not its own"),
        ("b", 1, "revision 9 of a, but that is revision 1 of a"),
        ("b", 2, "revision 1 of nobody, but that is revision 1 of a"),
        ("b", 3, "does not fit"),
        ("a", 4, "can only begin a stream"),
        ("b", 5, "event 4, which is not before it"),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let log = open(dir.path());
        fill(&log, "a", 3).await;
        let (known, head) = (log.read_all(1, 9).await.expect("read"), log.head());
        log.close().await;
        let hash = hex::encode(known[1].content_hash);
        let data = match which {
            0 => fork("a", 1, 2, &"0".repeat(64)),
            1 => fork("a", 9, 2, &hash),
            2 => fork("nobody", 1, 2, &hash),
            3 => json!({ "parent": 1 }),
            4 => fork("a", 1, 2, &hash),
            _ => fork("b", 0, 4, &hash),
        };
        let forged = forge(&known, head.position, head.commit, child, &data);
        let chain = chain::chain_hash(head.commit + 1, &head.chain, [&forged.content_hash]);
        let commit = Commit {
            number: head.commit + 1,
            chain,
            events: vec![Arc::new(forged)],
        };
        let mut engine = Sqlite::open(dir.path()).expect("opened");
        engine.append(&head, &[commit]).expect("forged");
        let (from, until) = (
            Head::beginning(engine.view().log()),
            engine.view().head().expect("a head"),
        );
        let broken = walk(engine.view(), from, until, |_| {}).expect_err("broken");
        let broken = broken.to_string();
        assert!(
            broken.contains(says) && broken.contains("position 4"),
            "{broken}"
        );
        engine.close().expect("closed");
        drop(engine);
        // A log this small is proved whole when it opens.
        let refused = super::support::refusal(dir.path());
        assert!(refused.contains(says), "{refused}");
    }
}

fn forge(
    known: &[Arc<Recorded>],
    position: u64,
    commit: u64,
    child: &str,
    data: &Value,
) -> Recorded {
    let last = known
        .iter()
        .rev()
        .find(|event| event.stream == stream(child));
    let mut forged = Recorded {
        id: Ulid::generate(),
        stream: stream(child),
        revision: last.map_or(0, |last| last.revision + 1),
        position: position + 1,
        commit: commit + 1,
        kind: BRANCH_KIND.into(),
        recorded_at: known
            .last()
            .map_or(OffsetDateTime::UNIX_EPOCH, |last| last.recorded_at),
        actor: Actor::system(),
        command: Ulid::generate(),
        correlation: None,
        causation: None,
        data: EventData::of(data).expect("JSON"),
        content_hash: [0; 32],
    };
    forged.content_hash = chain::content_hash(&forged);
    forged
}

/// One step of a random history: events on a stream, or a branch off one.
#[derive(Debug, Clone)]
enum Step {
    Note { stream: usize, count: usize },
    Branch { parent: usize, at: usize },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (any::<usize>(), 1..6_usize).prop_map(|(stream, count)| Step::Note { stream, count }),
        (any::<usize>(), any::<usize>()).prop_map(|(parent, at)| Step::Branch { parent, at }),
    ]
}

/// What a stream should read as, and for each of its own events how much of that was there then.
#[derive(Clone, Default)]
struct Model {
    values: Vec<u64>,
    own: Vec<usize>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Goal: however streams branch off each other, each one reads as a copy of its parent's values
    /// at that point with its own behind them.
    #[test]
    fn any_tree_of_branches_reads_as_copies_would(
        steps in proptest::collection::vec(any_step(), 1..40)
    ) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let log = EventLog::in_memory();
            fill(&log, "s0", 1).await;
            let mut models = vec![Model { values: vec![0], own: vec![1] }];
            let mut next = 1;
            for step in &steps {
                match *step {
                    Step::Note { stream, count } => {
                        let stream = stream % models.len();
                        let (name, model) = (format!("s{stream}"), &mut models[stream]);
                        let mut events = Vec::new();
                        for _ in 0..count {
                            events.push(event(&name, next));
                            model.values.push(next);
                            model.own.push(model.values.len());
                            next += 1;
                        }
                        log.append(command(&[], events)).await.expect("appended");
                    }
                    Step::Branch { parent, at } => {
                        let parent_at = parent % models.len();
                        let parent = &models[parent_at];
                        let revision = at % parent.own.len();
                        let mut values = parent.values[..parent.own[revision]].to_vec();
                        let inherited = values.len();
                        values.push(next);
                        let own = vec![inherited, inherited + 1];
                        let (child, parent) = (format!("s{}", models.len()), format!("s{parent_at}"));
                        branch(&log, &child, &parent, revision as u64, next).await;
                        models.push(Model { values, own });
                        next += 1;
                    }
                }
            }
            for (stream, model) in models.iter().enumerate() {
                prop_assert_eq!(&values(&log, &format!("s{stream}")).await, &model.values);
            }
            log.verify().await.expect("the proof holds");
            log.close().await;
            Ok(())
        })?;
    }
}
