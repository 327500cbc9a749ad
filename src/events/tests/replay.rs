//! Replays: several readers, one order, and nothing handed on that does not prove itself.

use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rusqlite::params;
use tempfile::TempDir;

use super::damage::{forge, forger};
use super::support::{command, event, everything, open};
use crate::events::{EventLog, VerifyError, VerifyReport};

/// Events in the largest commit: more than two stretches of a test's replay.
const EVENTS_MAX: usize = 20;

/// A log of commits of 1 to 20 events, and the positions where they begin.
async fn mixed(commits: usize) -> (TempDir, EventLog, Vec<u64>) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    let mut starts = Vec::new();
    for _ in 0..commits {
        starts.push(log.head().position + 1);
        let size = random.random_range(1..=EVENTS_MAX);
        let events = (0..size).map(|value| event(&format!("s:{}", value % 3), value));
        let append = command(&[], events.collect());
        log.append(append).await.expect("appended");
    }
    (dir, log, starts)
}

/// What a replay hands on: the position of each event and what was prepared for it.
async fn replayed(log: &EventLog) -> (Result<VerifyReport, VerifyError>, Vec<(u64, u64)>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let taken = seen.clone();
    let report = log.replay(
        |event| event.position,
        move |event, prepared| {
            let mut taken = taken.lock().expect("no panic before");
            taken.push((event.position, prepared));
        },
    );
    let report = report.await;
    let seen = seen.lock().expect("no panic before").clone();
    (report, seen)
}

/// Goal: a replay of many stretches hands on every event once, in order, each with what was made of
/// it, however commits lie across the stretches; also when there is nothing, or next to nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_hands_on_every_event_once_and_in_order() {
    for commits in [0, 1, 2, 60] {
        let (_dir, log, _) = mixed(commits).await;
        let end = log.head().position;
        let (report, seen) = replayed(&log).await;
        assert_eq!(
            report.expect("whole"),
            log.verify()
                .await
                .map(|mut report| {
                    report.witness = None;
                    report
                })
                .expect("whole")
        );
        let wanted: Vec<_> = (1..=end).map(|position| (position, position)).collect();
        assert_eq!(seen, wanted, "{commits} commits");
        assert_eq!(everything(&log).await.len() as u64, end);
        log.close().await;
    }
}

/// Goal: whichever event is damaged, in whichever stretch, and so whichever reader has it, the
/// replay fails and hands on nothing from its commit on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_stops_at_damage_in_any_stretch() {
    let (dir, log, starts) = mixed(30).await;
    let conn = forger(dir.path());
    for start in starts {
        let whole: Vec<u8> = conn
            .query_row(
                "SELECT records FROM blocks WHERE first_position = ?1",
                [start.cast_signed()],
                |row| row.get(0),
            )
            .expect("a commit to a row");
        forge(&conn, start, |commit| {
            let last = commit.events.last_mut().expect("an event");
            Arc::make_mut(last).kind = "test.forged.v1".into();
        });
        let (report, seen) = replayed(&log).await;
        let said = report.expect_err("broken").to_string();
        assert!(said.contains("does not match its hash"), "{start}: {said}");
        let last = seen.last().map_or(0, |(position, _)| *position);
        assert!(last < start, "{start}: handed on up to {last}");
        conn.execute(
            "UPDATE blocks SET records = ?2 WHERE first_position = ?1",
            params![start.cast_signed(), whole],
        )
        .expect("put back");
    }
    assert!(replayed(&log).await.0.is_ok(), "all is as it was");
    log.close().await;
}
