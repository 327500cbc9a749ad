//! `oc bench log`: what the event log costs beside the least that durability costs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use ulid::Ulid;

use super::raw::Raw;
use super::{LogArgs, broken, commands, median};
use crate::cli::error::CliError;
use crate::cli::output::{Output, table};
use crate::cli::private_server::{PrivateServer, Scratch};
use crate::events::{Actor, Append, EventLog, LogOptions, NewEvent, StreamId};

/// Waiting callers, and the ratio to a bare file that the project asks of itself.
const CALLERS: [(u64, f64); 4] = [(1, 0.9), (8, 0.85), (64, 0.6), (256, 0.55)];
/// Linux counts a process's time in hundredths of a second, whatever the machine.
const TICKS_A_SECOND: f64 = 100.0;
/// Clients of the durable commands.
const CLIENTS: usize = 64;
/// Events of the entity that is loaded.
const ENTITY_EVENTS: u64 = 1_000;
/// Who fills the log that is read, and over how many streams each.
const WRITERS: u64 = 64;
const STREAMS_EACH: u64 = 157;
const EVENTS_A_COMMIT: u64 = 5;

#[derive(Serialize)]
struct Measure {
    what: String,
    measured: String,
    beside: String,
    ratio: Option<f64>,
    wanted: String,
}

impl Measure {
    fn new(what: impl Into<String>, measured: String, wanted: &str) -> Self {
        Self {
            what: what.into(),
            measured,
            beside: String::new(),
            ratio: None,
            wanted: wanted.to_owned(),
        }
    }
}

/// Runs all measurements and prints them.
pub async fn run(args: LogArgs, output: Output) -> Result<(), CliError> {
    let scratch = match &args.dir {
        Some(dir) => Scratch::create_in(dir, "oc-bench"),
        None => Scratch::create("oc-bench"),
    };
    let scratch = scratch.map_err(broken)?;
    let mut measures = appends(scratch.path(), args.rounds).await?;
    measures.extend(reads(scratch.path(), args.events).await?);
    measures.extend(over_http(scratch.path(), args.seconds).await?);
    scratch.remove().map_err(broken)?;
    output.reply(&json!({ "measures": measures }), || {
        let rows = measures.iter().map(|measure| {
            [
                measure.what.clone(),
                measure.measured.clone(),
                measure.beside.clone(),
                measure
                    .ratio
                    .map_or_else(String::new, |r| format!("{r:.2}")),
                measure.wanted.clone(),
            ]
        });
        table(
            ["MEASURE", "MEASURED", "BARE FILE", "RATIO", "WANTED"],
            rows.collect(),
        )
    })
}

async fn appends(dir: &Path, rounds: u32) -> Result<Vec<Measure>, CliError> {
    let log = open(&dir.join("appends"))?;
    let raw = Raw::create(&dir.join("raw")).map_err(failed)?;
    let mut measures = Vec::new();
    for (callers, wanted) in CALLERS {
        let each = 1_000 / callers + 100;
        let (mut raws, mut logs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let (mut raw_work, mut log_work) = (0.0, 0.0);
        let (before, raw_before) = (log.stats(), raw.groups());
        // In turns, so that a slow moment of the machine hits both.
        for _ in 0..rounds {
            let started = processor_seconds()?;
            let least = raw.rate(callers, each).await.map_err(failed)?;
            raw_work += processor_seconds()? - started;
            let (ours, work) = rate(&log, callers, each).await?;
            log_work += work;
            raws.push(least);
            logs.push(ours);
            ratios.push(ours / least);
        }
        let after = log.stats();
        let appends = callers * each * u64::from(rounds);
        let group = appends / (after.groups - before.groups).max(1);
        let raw_group = appends / (raw.groups() - raw_before).max(1);
        measures.push(Measure {
            what: format!("durable appends, {callers} callers"),
            measured: format!("{:.0}/s, {group} to a sync", median(logs)),
            beside: format!("{:.0}/s, {raw_group} to a sync", median(raws)),
            ratio: Some(median(ratios)),
            wanted: format!("ratio {wanted}"),
        });
        let each_one = |work: f64| format!("{:.1} µs", work * 1e6 / appends as f64);
        measures.push(Measure {
            beside: each_one(raw_work),
            ..Measure::new("processor time of each", each_one(log_work), "")
        });
    }
    log.close().await;
    Ok(measures)
}

/// What all threads of this process have worked so far, in seconds, in steps of a hundredth.
fn processor_seconds() -> Result<f64, CliError> {
    let stat = std::fs::read_to_string("/proc/self/stat").map_err(failed)?;
    // Behind the name, which is in brackets: the 14th field is the user's time, the next the system's.
    let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
    let fields = fields.split_ascii_whitespace().skip(11).take(2);
    let ticks: Result<Vec<u64>, CliError> =
        fields.map(|field| field.parse().map_err(failed)).collect();
    Ok(ticks?.iter().sum::<u64>() as f64 / TICKS_A_SECOND)
}

/// Appends a second by `callers` callers, each of which waits for its answer before it goes on, and
/// the processor time they took, in seconds.
async fn rate(log: &EventLog, callers: u64, each: u64) -> Result<(f64, f64), CliError> {
    // Made beforehand, as the raw file's bytes are: what is measured is appending.
    let mut work = Vec::new();
    for caller in 0..callers {
        let appends: Result<Vec<_>, CliError> = (0..each)
            .map(|_| Ok(command(vec![note(caller)?])))
            .collect();
        work.push(appends?);
    }
    let (started, worked) = (Instant::now(), processor_seconds()?);
    let mut tasks = JoinSet::new();
    for appends in work {
        let log = log.clone();
        tasks.spawn(async move {
            for mut append in appends {
                append.command = Ulid::generate();
                for event in &mut append.events {
                    event.id = Ulid::generate();
                }
                log.append(append).await.map_err(failed)?;
            }
            Ok::<_, CliError>(())
        });
    }
    all(tasks).await?;
    let rate = (callers * each) as f64 / started.elapsed().as_secs_f64();
    Ok((rate, processor_seconds()? - worked))
}

async fn reads(dir: &Path, wanted: u64) -> Result<Vec<Measure>, CliError> {
    let dir = dir.join("reads");
    let log = open(&dir)?;
    fill(&log, wanted).await?;
    let events = log.head().position;
    let rate = |started: Instant| {
        let rate = events as f64 / started.elapsed().as_secs_f64();
        format!("{rate:.0} events/s")
    };
    let mut measures = Vec::new();
    let started = Instant::now();
    log.verify().await.map_err(failed)?;
    let what = format!("verify {events} events");
    measures.push(Measure::new(what, rate(started), "500000 events/s"));

    let (seen, started) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let last = Arc::clone(&seen);
    log.replay(
        |_| (),
        move |event, ()| last.store(event.position, Ordering::Relaxed),
    )
    .await
    .map_err(failed)?;
    let what = format!(
        "replay {} events, each proved",
        seen.load(Ordering::Relaxed)
    );
    measures.push(Measure::new(what, rate(started), "1000000 events/s"));

    let mut loads = Vec::new();
    for _ in 0..9 {
        let started = Instant::now();
        let read = log.read_stream(&entity()?, 0, 1_000).await;
        let read = read.map_err(failed)?.len();
        loads.push(started.elapsed().as_secs_f64() * 1_000.0);
        if read != 1_000 {
            return Err(CliError::Damaged(format!("an entity has {read} events")));
        }
    }
    let load = format!("{:.2} ms", median(loads));
    let what = format!("read an entity of {ENTITY_EVENTS} events");
    measures.push(Measure::new(what, load, "under 5 ms"));

    let seconds = |started: Instant| format!("{:.2} s", started.elapsed().as_secs_f64());
    log.close().await;
    let started = Instant::now();
    open(&dir)?.close().await;
    let what = "open and close after an orderly end";
    measures.push(Measure::new(what, seconds(started), ""));
    // What a crash leaves: no seal, so the index is made anew and everything verified.
    std::fs::remove_file(dir.join("index.seal")).map_err(failed)?;
    let started = Instant::now();
    open(&dir)?.close().await;
    let what = "open and close after a crash";
    measures.push(Measure::new(what, seconds(started), ""));
    Ok(measures)
}

/// Fills the log with about `wanted` events in some 10 000 streams, and one entity.
async fn fill(log: &EventLog, wanted: u64) -> Result<(), CliError> {
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let log = log.clone();
        tasks.spawn(async move {
            for number in 0..wanted / WRITERS / EVENTS_A_COMMIT {
                let stream = writer * STREAMS_EACH + number % STREAMS_EACH;
                let events: Result<Vec<_>, CliError> =
                    (0..EVENTS_A_COMMIT).map(|_| note(stream)).collect();
                log.append(command(events?)).await.map_err(failed)?;
            }
            Ok::<_, CliError>(())
        });
    }
    all(tasks).await?;
    for _ in 0..ENTITY_EVENTS {
        let own = NewEvent {
            stream: entity()?,
            ..note(0)?
        };
        log.append(command(vec![own, note(0)?]))
            .await
            .map_err(failed)?;
    }
    Ok(())
}

async fn over_http(dir: &Path, seconds: u64) -> Result<Vec<Measure>, CliError> {
    let mut server = PrivateServer::start(dir, Vec::new())
        .await
        .map_err(broken)?;
    // The first second fills caches and is not counted.
    let warm = commands::run(&server.api, 1, 1).await;
    let measured = commands::run(&server.api, CLIENTS, seconds).await;
    server.stop().await;
    warm?;
    let taken = measured?;
    let raw = Raw::create(&dir.join("raw")).map_err(failed)?;
    let clients = CLIENTS as u64;
    let least = raw.rate(clients, 1_000).await.map_err(failed)?;
    let rate = taken.len() as f64 / seconds as f64;
    let at = |share: usize| {
        let index = (taken.len() * share / 100).min(taken.len().saturating_sub(1));
        taken
            .get(index)
            .map_or(0.0, |time| time.as_secs_f64() * 1_000.0)
    };
    let (p50, p99) = (at(50), at(99));
    Ok(vec![
        Measure {
            what: format!("durable commands over HTTP, {CLIENTS} clients"),
            measured: format!("{rate:.0}/s"),
            beside: format!("{least:.0}/s"),
            ratio: Some(rate / least),
            wanted: "5000/s".to_owned(),
        },
        Measure::new("their latency, median", format!("{p50:.1} ms"), ""),
        Measure::new(
            "their latency, 99 of 100",
            format!("{p99:.1} ms"),
            "under 30 ms",
        ),
    ])
}

fn open(dir: &Path) -> Result<EventLog, CliError> {
    let dir = dir.to_owned();
    EventLog::open(LogOptions { dir }).map_err(failed)
}

fn note(stream: u64) -> Result<NewEvent, CliError> {
    Ok(NewEvent {
        id: Ulid::generate(),
        stream: StreamId::new(format!("bench-{stream}")).map_err(failed)?,
        kind: "bench.happened.v1".into(),
        data: json!({ "text": "x".repeat(200) }),
    })
}

fn entity() -> Result<StreamId, CliError> {
    StreamId::new("bench-entity").map_err(failed)
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

async fn all(mut tasks: JoinSet<Result<(), CliError>>) -> Result<(), CliError> {
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(failed)??;
    }
    Ok(())
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Usage(format!("the measurement failed: {error}"))
}
