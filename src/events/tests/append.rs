//! Appending: order, expectations, atomicity, idempotency, limits, group commit.

use std::sync::Arc;

use serde_json::json;
use ulid::Ulid;

use super::support::{command, event, fill, note, open, stream, witnessed};
use crate::events::{AppendError, COMMIT_EVENTS_MAX, EVENT_DATA_BYTES_MAX, EventLog, Expected};

/// Goal: 64 writers at once get one total order without gaps, with fewer syncs than commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_writers_share_one_order_and_their_syncs() {
    const WRITERS: usize = 64;
    const EACH: usize = 10;
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let log = log.clone();
            tokio::spawn(async move {
                let mut positions = Vec::new();
                for value in 0..EACH {
                    let name = format!("writer-{writer}");
                    let done = log.append(note(&name, value)).await.expect("appended");
                    assert_eq!(done.events[0].revision, value as u64);
                    positions.push(done.first_position);
                }
                positions
            })
        })
        .collect();
    let mut positions = Vec::new();
    for task in tasks {
        positions.extend(task.await.expect("a writer ended"));
    }
    positions.sort_unstable();
    let total = (WRITERS * EACH) as u64;
    assert_eq!(positions, (1..=total).collect::<Vec<_>>());
    let stats = log.stats();
    assert_eq!(stats.commits, total);
    assert!(
        stats.groups < total / 2,
        "{} groups for {total} commits",
        stats.groups
    );
    witnessed(&log).await;
    let report = log.verify().await.expect("verified");
    assert_eq!(
        (report.commits, report.events, report.streams),
        (total, total, WRITERS as u64)
    );
    assert_eq!(report.witness, Some(log.head()));
    log.close().await;
}

/// Goal: of many commands that expect the same revision exactly one is recorded, whether they meet
/// in one group or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn exactly_one_of_many_with_the_same_expectation_wins() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    for round in 0..20_u64 {
        let expected = round
            .checked_sub(1)
            .map_or(Expected::NoStream, Expected::Revision);
        let tasks: Vec<_> = (0..16)
            .map(|racer| {
                let log = log.clone();
                let append = command(&[("race", expected)], vec![event("race", racer)]);
                tokio::spawn(async move { log.append(append).await })
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            match task.await.expect("a racer ended") {
                Ok(done) => {
                    assert_eq!(done.events[0].revision, round);
                    won += 1;
                }
                Err(AppendError::Conflict { actual, .. }) => assert_eq!(actual, Some(round)),
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(won, 1);
    }
    log.close().await;
}

/// Goal: a commit over several streams is recorded whole or leaves no trace in any of them.
#[tokio::test]
async fn a_commit_is_atomic_over_its_streams() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    let both = |project: &str| {
        let expected = [
            ("name-a", Expected::NoStream),
            (project, Expected::NoStream),
        ];
        command(
            &expected,
            vec![event("name-a", "taken"), event(project, "created")],
        )
    };
    let first = log.append(both("project-1")).await.expect("recorded");
    assert_eq!(
        (first.first_position, first.last_position, first.commit),
        (1, 2, 1)
    );
    let second = log.append(both("project-2")).await;
    let message = second.expect_err("the name is taken").to_string();
    assert_eq!(
        message,
        "stream name-a is not as expected: expected no event, found revision 0"
    );
    assert!(
        log.stream_head(&stream("project-2"))
            .await
            .expect("read")
            .is_none()
    );
    assert_eq!(log.head().position, 2);

    // An expectation of a stream that gets no event counts as well.
    let guarded = command(
        &[("project-1", Expected::Revision(4))],
        vec![event("other", 1)],
    );
    assert!(matches!(
        log.append(guarded).await,
        Err(AppendError::Conflict { .. })
    ));
    let (revision, last) = log
        .stream_head(&stream("project-1"))
        .await
        .expect("read")
        .expect("it exists");
    assert_eq!((revision, last.position), (0, 2));
    log.close().await;
}

/// Goal: a repeated command answers what was recorded, also after a restart; the same id for
/// something else is refused; an event id is used once.
#[tokio::test]
async fn a_command_counts_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    let mut first = command(
        &[("a", Expected::NoStream)],
        vec![event("a", 1), event("b", 2)],
    );
    let recorded = log.append(first.clone()).await.expect("recorded");
    log.close().await;

    let log = open(dir.path());
    let taken = first.events[0].id;
    // A caller that retries makes new event ids; what it says is the same.
    first
        .events
        .iter_mut()
        .for_each(|event| event.id = Ulid::generate());
    let again = log.append(first.clone()).await.expect("answered");
    assert!(again.replayed && !recorded.replayed);
    assert_eq!((again.first_position, again.last_position), (1, 2));
    assert_eq!(
        again.events[0].content_hash,
        recorded.events[0].content_hash
    );

    first.events[1].data = json!({ "value": 3 });
    let reused = log.append(first).await.expect_err("other content");
    assert!(
        matches!(reused, AppendError::CommandReused { commit: 1, .. }),
        "{reused}"
    );

    let mut twin = note("c", 1);
    twin.events[0].id = taken;
    let twice = log.append(twin).await.expect_err("the event id is taken");
    assert!(
        matches!(twice, AppendError::DuplicateEvent { id } if id == taken),
        "{twice}"
    );
    assert_eq!(log.head().position, 2);
    log.close().await;
}

/// Goal: the same command many times at once, so that repeats meet in one group, is one commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_command_repeated_within_a_group_is_one_commit() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    let append = command(&[("a", Expected::NoStream)], vec![event("a", 1)]);
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let (log, append) = (log.clone(), append.clone());
            tokio::spawn(async move { log.append(append).await.expect("answered") })
        })
        .collect();
    let mut fresh = 0;
    for task in tasks {
        let done = task.await.expect("a caller ended");
        assert_eq!((done.commit, done.first_position), (1, 1));
        fresh += usize::from(!done.replayed);
    }
    assert_eq!((fresh, log.head().position), (1, 1));
    log.close().await;
}

/// Goal: every limit is refused by name and nothing of the command is recorded.
#[tokio::test]
async fn what_is_over_a_limit_or_malformed_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    let refused = async |change: &dyn Fn(&mut crate::events::Append)| {
        let mut append = note("a", 1);
        change(&mut append);
        log.append(append).await.expect_err("refused").to_string()
    };
    assert!(refused(&|a| a.events.clear()).await.contains("no event"));
    assert!(
        refused(&|a| a.events[0].kind = "Not A Kind".into())
            .await
            .contains("kind")
    );
    assert!(
        refused(&|a| a.actor.kind = "".into())
            .await
            .contains("actor's kind")
    );
    let big = json!("x".repeat(EVENT_DATA_BYTES_MAX));
    assert!(
        refused(&|a| a.events[0].data = big.clone())
            .await
            .contains("one event")
    );
    let many = |a: &mut crate::events::Append| {
        a.events = (0..=COMMIT_EVENTS_MAX).map(|n| event("a", n)).collect();
    };
    assert!(refused(&many).await.contains("number of events"));
    let heavy = |a: &mut crate::events::Append| {
        a.events = (0..5)
            .map(|_| event("a", "x".repeat(EVENT_DATA_BYTES_MAX - 100)))
            .collect();
    };
    assert!(refused(&heavy).await.contains("all its events"));
    let twins = |a: &mut crate::events::Append| a.events = vec![a.events[0].clone(); 2];
    assert!(refused(&twins).await.contains("already taken"));
    assert_eq!(log.head().position, 0);
    log.close().await;
}

/// Goal: pages forwards, backwards and along a stream have the right events in the right order.
#[tokio::test]
async fn reads_page_in_both_directions() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    fill(&log, "a", 5).await;
    fill(&log, "b", 5).await;
    let positions = |events: Vec<Arc<crate::events::Recorded>>| -> Vec<u64> {
        events.iter().map(|event| event.position).collect()
    };
    assert_eq!(
        positions(log.read_all(4, 3).await.expect("read")),
        [4, 5, 6]
    );
    assert_eq!(positions(log.read_all(0, 2).await.expect("read")), [1, 2]);
    assert_eq!(
        positions(log.read_all(11, 2).await.expect("read")),
        [0_u64; 0]
    );
    assert_eq!(
        positions(log.read_all_backwards(None, 2).await.expect("read")),
        [10, 9]
    );
    assert_eq!(
        positions(log.read_all_backwards(Some(3), 9).await.expect("read")),
        [2, 1]
    );
    assert_eq!(
        positions(log.read_stream(&stream("b"), 3, 9).await.expect("read")),
        [9, 10]
    );
    let times: Vec<_> = log
        .read_all(1, 100)
        .await
        .expect("read")
        .iter()
        .map(|e| e.recorded_at)
        .collect();
    assert!(times.is_sorted());
    log.close().await;
}

/// Goal: a closed log has recorded what came before, refuses what comes after, and frees its
/// folder; a second server is told who has it meanwhile.
#[tokio::test]
async fn closing_is_orderly_and_the_folder_has_one_server() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    let other = log.clone();
    fill(&log, "a", 3).await;
    let message = super::support::refusal(dir.path());
    let (path, pid) = (
        dir.path().display().to_string(),
        std::process::id().to_string(),
    );
    assert!(
        message.contains(&path) && message.contains(&pid),
        "{message}"
    );
    assert!(message.contains("stop that one first"), "{message}");

    log.close().await;
    let refused = other
        .append(note("a", 4))
        .await
        .expect_err("closed")
        .to_string();
    assert!(refused.contains("it was closed"), "{refused}");
    assert_eq!(&*other.wait_stopped().await, "it was closed");
    let log = open(dir.path());
    assert_eq!(log.head().position, 3);
    log.close().await;
}

/// Goal: handles are shareable between threads.
#[test]
fn the_handle_is_send_and_sync() {
    fn check<T: Send + Sync + 'static>() {}
    check::<EventLog>();
    check::<crate::events::Keyring>();
    check::<Arc<crate::events::Recorded>>();
}
