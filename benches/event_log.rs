//! What the event log costs beside the least that durability costs: a file, an append, an fdatasync.
//!
//! Both run in turns in one run, on the same disk, with the same number of waiting callers, the same
//! bytes and the same way of gathering a group; what is printed is the median of their ratios. Then
//! the log of `OC_BENCH_EVENTS` events (1 000 000) is verified, replayed and read by entity.
//! `benches/README.md` has a table and the machine it is from.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use opencomputer::events::{Actor, Append, EventLog, LogOptions, NewEvent, StreamId};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use ulid::Ulid;

/// Rounds of each, in turns.
const ROUNDS: usize = 7;
/// What one event takes in the log's file, about: its data and its envelope.
const RECORD_BYTES: usize = 450;
/// The log's own gathering, see `events/writer.rs`.
const GROUP_MAX: usize = 512;
const GATHER_TIMES: u32 = 3;
const GATHER_STEP: Duration = Duration::from_micros(100);

fn note(stream: u64) -> NewEvent {
    NewEvent {
        id: Ulid::generate(),
        stream: StreamId::new(format!("bench-{stream}")).expect("a stream name"),
        kind: "bench.happened.v1".into(),
        data: serde_json::json!({ "text": "x".repeat(200) }),
    }
}

fn command(events: Vec<NewEvent>) -> Append {
    Append {
        command: Ulid::generate(),
        expected: Vec::new(),
        events,
        actor: Actor::system(),
        correlation: None,
        causation: None,
    }
}

/// Appends a second by `callers` callers, each waiting for its answer before it goes on.
async fn log_rate(log: &EventLog, callers: u64, each: u64) -> f64 {
    // Made beforehand, as the raw bytes are: what is measured is appending.
    let work = |caller| (0..each).map(|_| command(vec![note(caller)])).collect();
    let work: Vec<Vec<Append>> = (0..callers).map(work).collect();
    let start = Instant::now();
    let tasks = work.into_iter().map(|appends| {
        let log = log.clone();
        tokio::spawn(async move {
            for mut append in appends {
                append.command = Ulid::generate();
                append.events[0].id = Ulid::generate();
                log.append(append).await.expect("appended");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a caller ended well");
    }
    (callers * each) as f64 / start.elapsed().as_secs_f64()
}

type Raw = mpsc::Sender<(Arc<[u8]>, oneshot::Sender<()>)>;

/// A file, a thread that appends to it, and one sync a group.
fn raw_file(mut file: File) -> Raw {
    let (queue, mut waiting) = mpsc::channel::<(Arc<[u8]>, oneshot::Sender<()>)>(1_024);
    std::thread::spawn(move || {
        let mut last = 0;
        while let Some(first) = waiting.blocking_recv() {
            let mut group = vec![first];
            let mut take = |group: &mut Vec<_>| {
                while group.len() < GROUP_MAX
                    && let Ok(next) = waiting.try_recv()
                {
                    group.push(next);
                }
            };
            take(&mut group);
            for _ in 0..GATHER_TIMES {
                if group.len() >= last {
                    break;
                }
                std::thread::sleep(GATHER_STEP);
                take(&mut group);
            }
            last = group.len();
            let bytes: Vec<u8> = group.iter().flat_map(|(b, _)| b.iter().copied()).collect();
            file.write_all(&bytes).expect("written");
            file.sync_data().expect("synced");
            for (_, done) in group {
                done.send(()).expect("a caller waits");
            }
        }
    });
    queue
}

async fn raw_rate(raw: &Raw, callers: u64, each: u64) -> f64 {
    let bytes: Arc<[u8]> = vec![b'x'; RECORD_BYTES].into();
    let start = Instant::now();
    let tasks = (0..callers).map(|_| {
        let (raw, bytes) = (raw.clone(), Arc::clone(&bytes));
        tokio::spawn(async move {
            for _ in 0..each {
                let (done, answer) = oneshot::channel();
                raw.send((Arc::clone(&bytes), done)).await.expect("sent");
                answer.await.expect("synced");
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("a caller ended well");
    }
    (callers * each) as f64 / start.elapsed().as_secs_f64()
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn open(dir: &Path) -> EventLog {
    EventLog::open(LogOptions {
        dir: dir.to_owned(),
    })
    .expect("the log opens")
}

fn appends(runtime: &Runtime, dir: &Path) {
    println!("| callers | raw appends/s | log appends/s | ratio | wanted | events to a sync |");
    println!("|---|---|---|---|---|---|");
    let log = open(&dir.join("appends"));
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("raw"));
    let raw = raw_file(file.expect("a file"));
    for (callers, wanted) in [(1, 0.9), (8, 0.85), (64, 0.6), (256, 0.55)] {
        let each = 1_000 / callers + 100;
        let (mut raws, mut logs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let before = log.stats();
        for _ in 0..ROUNDS {
            let least = runtime.block_on(raw_rate(&raw, callers, each));
            let ours = runtime.block_on(log_rate(&log, callers, each));
            raws.push(least);
            logs.push(ours);
            ratios.push(ours / least);
        }
        let after = log.stats();
        let group = (after.commits - before.commits) / (after.groups - before.groups).max(1);
        println!(
            "| {callers} | {:.0} | {:.0} | {:.2} | {wanted} | {group} |",
            median(raws),
            median(logs),
            median(ratios)
        );
    }
    runtime.block_on(log.close());
}

/// Events a second and microseconds of work, of reading all of a log.
fn timed(what: &str, wanted: &str, events: u64, run: impl Fn()) {
    let rates = (0..3).map(|_| {
        let start = Instant::now();
        run();
        events as f64 / start.elapsed().as_secs_f64()
    });
    println!(
        "| {what} | {:.0} events/s | {wanted} |",
        median(rates.collect())
    );
}

fn reads(runtime: &Runtime, dir: &Path) {
    let wanted: u64 = match std::env::var("OC_BENCH_EVENTS") {
        Ok(text) => text.parse().expect("OC_BENCH_EVENTS is a number"),
        Err(_) => 1_000_000,
    };
    let log = open(&dir.join("reads"));
    runtime.block_on(async {
        // 64 callers, 5 events a commit, some 10 000 streams; then one entity of 1 000 events.
        let tasks = (0..64).map(|caller| {
            let log = log.clone();
            tokio::spawn(async move {
                for number in 0..wanted / 64 / 5 {
                    let events = (0..5).map(|_| note(caller * 157 + number % 157)).collect();
                    log.append(command(events)).await.expect("appended");
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("a caller ended well");
        }
        for _ in 0..1_000 {
            log.append(command(vec![note(u64::MAX), note(0)]))
                .await
                .expect("appended");
        }
    });
    let events = log.head().position;
    println!("\n| a log of {events} events | measured | wanted |\n|---|---|---|");
    timed("verify", "500 000", events, || {
        runtime.block_on(log.verify()).expect("whole");
    });
    timed("replay, proved on the way", "1 000 000", events, || {
        let seen = Arc::new(AtomicU64::new(0));
        let last = Arc::clone(&seen);
        let replay = log.replay(
            |_| (),
            move |event, ()| last.store(event.position, Ordering::Relaxed),
        );
        runtime.block_on(replay).expect("whole");
        assert_eq!(seen.load(Ordering::Relaxed), events);
    });
    let entity = StreamId::new(format!("bench-{}", u64::MAX)).expect("a stream name");
    let loads = (0..9).map(|_| {
        let start = Instant::now();
        let read = runtime.block_on(log.read_stream(&entity, 0, 1_000));
        assert_eq!(read.expect("read").len(), 1_000);
        start.elapsed().as_secs_f64() * 1_000.0
    });
    let load = median(loads.collect());
    println!("| read an entity of 1 000 events | {load:.2} ms | under 5 ms |");
    let start = Instant::now();
    runtime.block_on(log.close());
    println!(
        "| close in order | {:.2} s | |",
        start.elapsed().as_secs_f64()
    );
    let start = Instant::now();
    let log = open(&dir.join("reads"));
    println!(
        "| open after that | {:.2} s | |",
        start.elapsed().as_secs_f64()
    );
    runtime.block_on(log.close());
    // What a crash leaves: no seal, so the index can't be believed.
    std::fs::remove_file(dir.join("reads/index.seal")).expect("a seal");
    let start = Instant::now();
    let log = open(&dir.join("reads"));
    println!(
        "| open after a crash | {:.2} s | |",
        start.elapsed().as_secs_f64()
    );
    runtime.block_on(log.close());
}

fn main() {
    let runtime = Runtime::new().expect("a runtime");
    // Beside the build, not in /tmp, which may be memory and then has no sync to share.
    let dir = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a folder");
    appends(&runtime, dir.path());
    reads(&runtime, dir.path());
}
