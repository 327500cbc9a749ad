//! How long an entity takes to load, with and without state snapshots, and at which depth of
//! branches. What matters is the ratio of depth 100 to depth 1 within one run, at most 2, and that
//! an entity of 1,000 events loads in under 5 ms.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use opencomputer::actors::bench_support::{load_project, load_sandbox};
use opencomputer::events::{EventLog, LogOptions, Snapshots, StreamId};
use opencomputer::ids::{OrgId, ProjectId, SandboxId};
use support::{Filler, append_of, new_event, project, sandbox, timeout};
use zeroize::Zeroizing;

const ROUNDS: usize = 200;
const DEPTH: usize = 100;
/// Events of each branch's own.
const OWN_EVENTS: u32 = 20;

fn stream(depth: usize) -> StreamId {
    StreamId::of("sandbox", format!("depth-{depth}"))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn row(what: &str, time: Duration, read: u64) {
    println!(
        "| {what} | {read} | {:.3} ms |",
        time.as_secs_f64() * 1_000.0
    );
}

async fn fill(log: &EventLog, project_stream: &StreamId) {
    let org = OrgId::generate();
    let mut filler = Filler::new(log.clone());
    for event in project(org, ProjectId::generate(), 1_000) {
        filler.add(project_stream, &event).await;
    }
    for event in sandbox(org, &SandboxId::generate(), 50, false) {
        filler.add(&stream(0), &event).await;
    }
    filler.finish().await;
    for depth in 1..=DEPTH {
        let at = if depth == 1 {
            49
        } else {
            u64::from(OWN_EVENTS) / 2
        };
        let branch = log
            .branch_event(&stream(depth), &stream(depth - 1), at)
            .await;
        let mut events = vec![branch.expect("a branch")];
        events.extend((0..OWN_EVENTS).map(|number| new_event(&stream(depth), &timeout(number))));
        log.append(append_of(events)).await.expect("appended");
    }
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // Beside the build, not in /tmp, which may be memory.
    let dir = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a folder");
    let log = EventLog::open(LogOptions {
        dir: dir.path().to_owned(),
    });
    let log = log.expect("the log opens");
    let (none, kept) = (
        Snapshots::none(),
        Snapshots::open(dir.path(), Zeroizing::new([7; 32])),
    );
    let large = StreamId::of("project", ProjectId::generate());
    runtime.block_on(async {
        fill(&log, &large).await;
        println!("| Load of | events read | median of {ROUNDS} |\n|---|---|---|");
        for (what, snapshots) in [("without a snapshot", &none), ("with one", &kept)] {
            load_project(&log, snapshots, &large).await.expect("loads");
            let (mut times, mut read) = (Vec::new(), 0);
            for _ in 0..ROUNDS {
                let start = Instant::now();
                read = load_project(&log, snapshots, &large)
                    .await
                    .expect("loads")
                    .1;
                times.push(start.elapsed());
            }
            row(&format!("1,000 events, {what}"), median(times), read);
        }
        let cold = Instant::now();
        let (_, read) = load_sandbox(&log, &none, &stream(DEPTH))
            .await
            .expect("loads");
        row("depth 100, without snapshots (once)", cold.elapsed(), read);
        // Every branch was loaded at least once, as one that is used is.
        for depth in 1..=DEPTH {
            load_sandbox(&log, &kept, &stream(depth))
                .await
                .expect("loads");
        }
        // In turn, so that what else the machine does hits both alike.
        let (mut shallow, mut deep, mut reads) = (Vec::new(), Vec::new(), [0; 2]);
        for _ in 0..ROUNDS {
            for (depth, times, read) in [(1, &mut shallow, 0), (DEPTH, &mut deep, 1)] {
                let start = Instant::now();
                reads[read] = load_sandbox(&log, &kept, &stream(depth))
                    .await
                    .expect("loads")
                    .1;
                times.push(start.elapsed());
            }
        }
        let (shallow, deep) = (median(shallow), median(deep));
        row("depth 1, with snapshots", shallow, reads[0]);
        row("depth 100, with snapshots", deep, reads[1]);
        let ratio = deep.as_secs_f64() / shallow.as_secs_f64();
        println!("\ndepth 100 takes {ratio:.2} times as long as depth 1 (at most 2 is promised)");
        log.close().await;
    });
}
