//! The event log on an engine: order, atomicity, expectations, idempotency, following, reading; all
//! of it with an index so small that it is on disk for the most part.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use ulid::Ulid;

use super::Subject;
use crate::events::tests::support::{
    assert_index_agrees, command, event, everything, fill, note, stream,
};
use crate::events::{
    Append, AppendError, COMMIT_EVENTS_MAX, EVENT_DATA_BYTES_MAX, EventLog, Expected, Recorded,
};

const WRITERS: usize = 64;
/// Longest any of these may take; a subscriber that waits for what never comes fails here.
const PATIENCE: Duration = Duration::from_secs(60);

async fn all<T: 'static>(tasks: Vec<tokio::task::JoinHandle<T>>) -> Vec<T> {
    let mut results = Vec::new();
    for task in tasks {
        let ended = tokio::time::timeout(PATIENCE, task).await;
        results.push(ended.expect("in time").expect("it ended well"));
    }
    results
}

fn positions(events: &[Arc<Recorded>]) -> Vec<u64> {
    events.iter().map(|event| event.position).collect()
}

/// Goal: commands of 64 writers, each over several streams, are in one total order without a gap,
/// each writer's own in the order it sent them; and the log opened again says the same.
pub async fn writers_get_one_total_order(subject: &dyn Subject) {
    const EACH: u64 = 6;
    let log = subject.log();
    let tasks = (0..WRITERS).map(|writer| {
        let log = log.clone();
        tokio::spawn(async move {
            let (own, shared) = (format!("own-{writer}"), format!("shared-{}", writer % 4));
            let mut acknowledged = Vec::new();
            for value in 0..EACH {
                let expected = value
                    .checked_sub(1)
                    .map_or(Expected::NoStream, Expected::Revision);
                let events = vec![event(&own, value), event(&shared, writer)];
                let done = log.append(command(&[(&own, expected)], events)).await;
                let done = done.expect("appended");
                assert_eq!(done.last_position, done.first_position + 1);
                assert_eq!(done.events[0].revision, value);
                acknowledged.push((done.commit, done.first_position));
            }
            assert!(acknowledged.is_sorted());
            acknowledged
        })
    });
    let mut acknowledged = all(tasks.collect()).await.concat();
    acknowledged.sort_unstable();
    let total = WRITERS as u64 * EACH;
    let wanted: Vec<_> = (1..=total).map(|commit| (commit, commit * 2 - 1)).collect();
    assert_eq!(acknowledged, wanted);
    assert_index_agrees(&log).await;
    let before = positions(&everything(&log).await);
    let head = log.head();
    log.close().await;
    let log = subject.log();
    assert_eq!(log.head(), head);
    assert_eq!(positions(&everything(&log).await), before);
    assert_index_agrees(&log).await;
    assert_eq!(log.verify().await.expect("verified").events, total * 2);
    log.close().await;
}

/// Goal: of many who claim a name at once exactly one gets it, and what the others would have made
/// with it is nowhere; a released name can be claimed again, by one.
pub async fn a_name_goes_to_one_of_many_and_the_rest_leave_no_trace(subject: &dyn Subject) {
    const NAMES: usize = 8;
    let log = subject.log();
    for round in 0..3_u64 {
        let tasks = (0..WRITERS).map(|racer| {
            let log = log.clone();
            tokio::spawn(async move {
                let name = format!("name-{}", racer % NAMES);
                let entity = format!("entity-{round}-{racer}");
                let free = match round {
                    0 => Expected::NoStream,
                    _ => Expected::Revision(round * 2 - 1),
                };
                let events = vec![
                    event(&entity, "before"),
                    event(&name, racer),
                    event(&entity, 2),
                ];
                let expected = [(&*entity, Expected::NoStream), (&*name, free)];
                let outcome = log.append(command(&expected, events)).await;
                (name, entity, outcome)
            })
        });
        let mut winners = BTreeMap::new();
        for (name, entity, outcome) in all(tasks.collect()).await {
            let head = log.stream_head(&stream(&entity)).await.expect("read");
            match outcome {
                Ok(_) => {
                    assert_eq!(head.expect("its events").0, 1);
                    assert_eq!(winners.insert(name, entity), None, "two winners");
                }
                Err(AppendError::Conflict { stream, .. }) => {
                    assert_eq!(stream.as_str(), name);
                    assert!(head.is_none(), "{entity} lost and left a trace");
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(winners.len(), NAMES);
        for name in winners.keys() {
            let expected = [(&**name, Expected::Revision(round * 2))];
            let released = log.append(command(&expected, vec![event(name, "released")]));
            released.await.expect("released");
        }
    }
    assert_eq!(log.head().position, 3 * NAMES as u64 * 4);
    assert_index_agrees(&log).await;
    log.close().await;
}

/// Goal: while writers run, every page a reader gets and everything a subscriber gets, from
/// wherever it started, is gapless and each event comes once; what was shown does not change.
pub async fn readers_and_subscribers_see_no_gap_and_no_double(subject: &dyn Subject) {
    const TOTAL: u64 = 30 + 16 * 25 * 2;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let log = subject.log();
    fill(&log, "before", 30).await;
    let mut followers = Vec::new();
    for follower in 0..12 {
        let (log, from) = (log.clone(), random.random_range(0..=TOTAL));
        let start = Duration::from_micros(random.random_range(0..40_000));
        followers.push(tokio::spawn(async move {
            tokio::time::sleep(start).await;
            let mut subscription = log.subscribe(from);
            let mut seen = Vec::new();
            for position in from.max(1)..=TOTAL {
                let event = subscription.next().await.expect("an event");
                assert_eq!(event.position, position, "from {from}");
                seen.push((position, event.content_hash));
                if follower % 3 == 0 && position % 16 == 0 {
                    tokio::time::sleep(Duration::from_micros(300)).await;
                }
            }
            seen
        }));
    }
    let done = Arc::new(AtomicBool::new(false));
    let reader = {
        let (log, done) = (log.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let head = log.head().position;
                let from = head.saturating_sub(40).max(1);
                let forwards = positions(&log.read_all(from, 1_000).await.expect("read"));
                let end = forwards.last().copied().unwrap_or(0);
                assert!(end >= head, "{end} is shown and the head was {head}");
                assert_eq!(forwards, (from..=end).collect::<Vec<_>>());
                let backwards = log
                    .read_all_backwards(Some(head + 1), 40)
                    .await
                    .expect("read");
                let wanted: Vec<_> = (1..=head).rev().take(40).collect();
                assert_eq!(positions(&backwards), wanted);
            }
        })
    };
    let writers = (0..16).map(|writer| {
        let log = log.clone();
        tokio::spawn(async move {
            for value in 0..25 {
                let events = vec![event(&format!("w-{writer}"), value), event("all", writer)];
                log.append(command(&[], events)).await.expect("appended");
            }
        })
    });
    all(writers.collect()).await;
    let seen = all(followers).await;
    done.store(true, Ordering::Relaxed);
    all(vec![reader]).await;
    let truth: HashMap<_, _> = everything(&log)
        .await
        .iter()
        .map(|e| (e.position, e.content_hash))
        .collect();
    assert_eq!(truth.len() as u64, TOTAL);
    assert!(
        seen.iter()
            .flatten()
            .all(|(position, hash)| truth[position] == *hash)
    );
    log.close().await;
}

/// Goal: a repeat by command id is answered with the first commit, and an event id is used once,
/// wherever the index has the first: in memory, on its way, on disk; also after opening again.
pub async fn a_repeat_is_known_wherever_its_first_is(subject: &dyn Subject) {
    let log = subject.log();
    let mut sent: Vec<Append> = Vec::new();
    for value in 0..120 {
        let append = note(&format!("s-{}", value % 7), value);
        log.append(append.clone()).await.expect("appended");
        sent.push(append);
        // An old id again: every time, since what is in which part changes all the time.
        check_repeat(&log, &sent, value * 31 % sent.len()).await;
    }
    log.close().await;
    let log = subject.log();
    for index in 0..sent.len() {
        check_repeat(&log, &sent, index).await;
    }
    // Older than all that is stored and yet new.
    let mut old = note("s-0", "old");
    (old.command, old.events[0].id) = (Ulid::from(1_u128), Ulid::from(2_u128));
    assert!(!log.append(old.clone()).await.expect("appended").replayed);
    assert!(log.append(old).await.expect("answered").replayed);
    log.close().await;
}

async fn check_repeat(log: &EventLog, sent: &[Append], index: usize) {
    let head = log.head();
    let mut again = sent[index].clone();
    again.events[0].id = Ulid::generate();
    let done = log.append(again.clone()).await.expect("answered");
    assert!(done.replayed, "command {index} was recorded twice");
    assert_eq!(
        (done.first_position, done.commit),
        (index as u64 + 1, index as u64 + 1)
    );
    assert_eq!(done.events[0].id, sent[index].events[0].id);
    again.events[0].data = json!("something else");
    let reused = log.append(again).await.expect_err("other content");
    assert!(matches!(reused, AppendError::CommandReused { commit, .. } if commit == done.commit));
    let mut twin = note("twin", index);
    twin.events[0].id = sent[index].events[0].id;
    let twin = log.append(twin).await.expect_err("a taken event id");
    assert!(matches!(twin, AppendError::DuplicateEvent { .. }), "{twin}");
    assert_eq!(log.head(), head, "something was written");
}

/// Goal: the largest event, the largest commit and the one with most events come back whole, and
/// pages over them stay bounded and lose nothing.
pub async fn large_events_and_commits_come_back_whole(subject: &dyn Subject) {
    let log = subject.log();
    let text = |fill: &str, bytes: usize| fill.repeat(bytes);
    // `{"value":""}` is 12 bytes.
    let largest = text("x", EVENT_DATA_BYTES_MAX - 12);
    let done = log.append(note("large", &largest)).await.expect("appended");
    assert_eq!(done.events[0].data.get().len(), EVENT_DATA_BYTES_MAX);
    for round in 0..2 {
        let events = (0..4)
            .map(|n| event(&format!("wide-{n}"), &largest))
            .collect();
        log.append(command(&[], events)).await.expect("appended");
        let many = (0..COMMIT_EVENTS_MAX).map(|n| event(&format!("many-{}", n % 3), (round, n)));
        log.append(command(&[], many.collect()))
            .await
            .expect("appended");
    }
    let total = 1 + 2 * (4 + COMMIT_EVENTS_MAX as u64);
    assert_eq!(log.head().position, total);
    let (mut next, mut hashes) = (1, BTreeSet::new());
    while next <= total {
        let page = log.read_all(next, 1_000).await.expect("read");
        let bytes: usize = page.iter().map(|event| event.data.get().len()).sum();
        assert!(
            !page.is_empty() && bytes <= 13 * EVENT_DATA_BYTES_MAX,
            "{bytes}"
        );
        hashes.extend(page.iter().map(|event| event.content_hash));
        next = page.last().expect("not empty").position + 1;
    }
    assert_eq!(hashes.len() as u64, total);
    let mut subscription = log.subscribe(1);
    for position in 1..=total {
        assert_eq!(
            subscription.next().await.expect("an event").position,
            position
        );
    }
    let wide = log
        .read_stream(&stream("wide-3"), 0, 9)
        .await
        .expect("read");
    assert_eq!(wide.len(), 2);
    assert!(
        wide.iter()
            .all(|event| event.data.get().len() == EVENT_DATA_BYTES_MAX)
    );
    log.verify().await.expect("verified");
    log.close().await;
}

/// Goal: read backwards from anywhere, in pages of any size, the log is what it is forwards.
pub async fn pages_backwards_mirror_pages_forwards(subject: &dyn Subject) {
    let log = subject.log();
    for size in (1..12).chain([40, 1, 90, 2]) {
        let events = (0..size)
            .map(|n| event(&format!("s-{}", n % 4), n))
            .collect();
        log.append(command(&[], events)).await.expect("appended");
    }
    let forwards = positions(&everything(&log).await);
    let end = log.head().position;
    for limit in [1, 2, 7, 39, 1_000] {
        for start in [
            None,
            Some(end + 1),
            Some(end),
            Some(70),
            Some(2),
            Some(1),
            Some(0),
        ] {
            let (mut found, mut before) = (Vec::new(), start);
            loop {
                let page = positions(&log.read_all_backwards(before, limit).await.expect("read"));
                assert!(page.len() <= limit);
                let Some(last) = page.last() else { break };
                before = Some(*last);
                found.extend(page);
            }
            let until = start.unwrap_or(u64::MAX);
            let wanted = forwards.iter().rev().filter(|p| **p < until);
            assert!(found.iter().eq(wanted), "{start:?} in pages of {limit}");
        }
    }
    log.close().await;
}

/// Goal: a stream reads the same whether the index has it in memory, on its way to disk, on disk
/// or in parts, while writers go on. Method: random writes against a list kept here; runs longer
/// than a row of the index; checked all the time and once more in the opened log.
pub async fn streams_read_the_same_from_every_part_of_the_index(subject: &dyn Subject) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let log = subject.log();
    let mut model: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for _ in 0..40 {
        let name = |random: &mut StdRng| match random.random_range(0..10) {
            0..6 => "busy".to_owned(),
            6..9 => format!("some-{}", random.random_range(0..6)),
            _ => format!("rare-{}", random.random_range(0..40)),
        };
        let count = *[1, 3, 30, 130]
            .get(random.random_range(0..4))
            .expect("one of them");
        let names: Vec<_> = (0..count).map(|_| name(&mut random)).collect();
        let events = names.iter().map(|name| event(name, 0)).collect();
        let done = log.append(command(&[], events)).await.expect("appended");
        for (name, position) in names.into_iter().zip(done.first_position..) {
            model.entry(name).or_default().push(position);
        }
        for name in ["busy", "some-1", "rare-3", "none"] {
            let known = model.get(name).map_or(&[][..], Vec::as_slice);
            let head = log.stream_head(&stream(name)).await.expect("read");
            let head = head.map(|(revision, event)| (revision as usize + 1, event.position));
            assert_eq!(
                head,
                known.last().map(|last| (known.len(), *last)),
                "{name}"
            );
            let from = random.random_range(0..=known.len() + 2);
            let limit = random.random_range(1..200);
            let read = log
                .read_stream(&stream(name), from as u64, limit)
                .await
                .expect("read");
            let wanted: Vec<u64> = known.iter().skip(from).take(limit).copied().collect();
            assert_eq!(positions(&read), wanted, "{name} from {from}, {limit}");
        }
    }
    for from in [u64::MAX, i64::MAX as u64, i64::MAX as u64 + 1] {
        assert!(
            log.read_stream(&stream("busy"), from, 5)
                .await
                .expect("read")
                .is_empty()
        );
    }
    assert_index_agrees(&log).await;
    log.close().await;
    let log = subject.log();
    assert_index_agrees(&log).await;
    log.close().await;
}
