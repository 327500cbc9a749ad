//! Following the log.

use std::time::Duration;

use super::support::{event, fill, note, open};

/// Goal: subscribers that start before, during and after the writing, fast and slow, each see every
/// event once and in order. Method: 8 writers against 6 subscribers with different starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_misses_or_doubles_an_event() {
    const TOTAL: u64 = 50 + 8 * 60;
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    fill(&log, "before", 50).await;
    let mut subscribers = Vec::new();
    for start in [0, 1, 25, 50, 51, 200] {
        let mut subscription = log.subscribe(start);
        subscribers.push(tokio::spawn(async move {
            let mut next = start.max(1);
            while next <= TOTAL {
                let event = subscription.next().await.expect("an event");
                assert_eq!(event.position, next, "from {start}");
                next += 1;
                if start == 25 {
                    tokio::time::sleep(Duration::from_micros(500)).await;
                }
            }
        }));
    }
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let log = log.clone();
            tokio::spawn(async move { fill(&log, &format!("writer-{writer}"), 60).await })
        })
        .collect();
    for task in writers.into_iter().chain(subscribers) {
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, task)
            .await
            .expect("in time")
            .expect("it ended well");
    }
    log.close().await;
}

/// Goal: a subscriber further behind than the window in memory catches up from disk without a gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_subscriber_crosses_from_disk_to_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    for _ in 0..25 {
        let mut append = note("a", 0);
        append.events = (0..200).map(|value| event("a", value)).collect();
        log.append(append).await.expect("appended");
    }
    let mut subscription = log.subscribe(1);
    for position in 1..=5_000 {
        assert_eq!(
            subscription.next().await.expect("an event").position,
            position
        );
    }
    log.close().await;
}

/// Goal: when the log ends, a subscriber gets what was recorded and then the reason.
#[tokio::test]
async fn a_subscription_ends_with_its_log() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(dir.path());
    let mut subscription = log.subscribe(1);
    fill(&log, "a", 2).await;
    log.close().await;
    for position in 1..=2 {
        assert_eq!(
            subscription.next().await.expect("an event").position,
            position
        );
    }
    let end = subscription
        .next()
        .await
        .expect_err("the log was closed")
        .to_string();
    assert!(end.contains("it was closed"), "{end}");
}
