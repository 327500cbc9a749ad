//! Appends a second, from one writer and from 64 at once. What matters is the ratio: it says how
//! well group commit shares a sync, on whatever disk this runs.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use opencomputer::events::{Actor, Append, EventLog, LogOptions, NewEvent, StreamId};
use tokio::runtime::Runtime;
use ulid::Ulid;

const WRITERS: [u64; 2] = [1, 64];

fn note(writer: u64) -> Append {
    Append {
        command: Ulid::generate(),
        expected: Vec::new(),
        events: vec![NewEvent {
            id: Ulid::generate(),
            stream: StreamId::new(format!("writer-{writer}")).expect("a stream name"),
            kind: "bench.happened.v1".into(),
            data: serde_json::json!({ "text": "x".repeat(200) }),
        }],
        actor: Actor::system(),
        correlation: None,
        causation: None,
    }
}

/// Time for `writers` tasks to append `each` events each.
fn append(runtime: &Runtime, log: &EventLog, writers: u64, each: u64) -> Duration {
    runtime.block_on(async {
        let start = Instant::now();
        let tasks: Vec<_> = (0..writers)
            .map(|writer| {
                let log = log.clone();
                tokio::spawn(async move {
                    for _ in 0..each {
                        black_box(log.append(note(writer)).await.expect("appended"));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a writer ended well");
        }
        start.elapsed()
    })
}

fn bench(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    // Beside the build, not in /tmp, which may be memory and then has no sync to share.
    let dir = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a folder");
    let log = EventLog::open(LogOptions {
        dir: dir.path().to_owned(),
    })
    .expect("the log opens");
    let mut group = criterion.benchmark_group("event_log/append");
    for writers in WRITERS {
        group.throughput(Throughput::Elements(writers));
        group.bench_function(format!("{writers} writers"), |bencher| {
            bencher.iter_custom(|iterations| append(&runtime, &log, writers, iterations));
        });
    }
    group.finish();

    let figures = WRITERS.map(|writers| {
        let (each, before) = (2_048 / writers, log.stats());
        let took = append(&runtime, &log, writers, each).as_secs_f64();
        let after = log.stats();
        let commits = (after.commits - before.commits) as f64;
        (
            commits / took,
            commits / (after.groups - before.groups) as f64,
        )
    });
    let [(one, _), (many, group)] = figures;
    let ratio = many / one;
    println!("1 writer {one:.0}/s, 64 writers {many:.0}/s, ratio {ratio:.1}, {group:.1} to a sync");
    runtime.block_on(log.close());
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(4));
    targets = bench
}
criterion_main!(benches);
