//! A restart with a long history: 1,000,000 events in 10,000 streams (`OC_BENCH_EVENTS` for another
//! number). One process writes the log, another one, which starts with nothing, opens it, replays
//! it into the read models, runs its first command and touches every project; so the peak memory
//! it prints is that of a restart alone.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opencomputer::actors::Catalog;
use opencomputer::actors::bench_support::Projects;
use opencomputer::events::{EventLog, LogOptions, Snapshots, StreamId};
use opencomputer::ids::{OrgId, ProjectId, SandboxId, StoreId};
use support::{Filler, egress, organization, project, sandbox, store};
use zeroize::Zeroizing;

/// The folder, for the process that restarts.
const RESTART: &str = "OC_BENCH_RESTART_DIR";
/// Events in all, and a hundredth of it streams.
const EVENTS: &str = "OC_BENCH_EVENTS";
/// Bound on the number, so that a run ends in minutes.
const EVENTS_MAX: usize = 10_000_000;

fn open(dir: &Path) -> EventLog {
    EventLog::open(LogOptions {
        dir: dir.to_owned(),
    })
    .expect("the log opens")
}

/// A line of /proc/self/status in MiB.
fn memory_mib(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(what));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Writes the history: of 20 streams 4 are projects, 2 stores, 10 sandboxes (half of them stopped)
/// and 4 what proxies decided; a hundred events each on average.
async fn build(log: &EventLog, events_max: usize) {
    let (org, mut filler) = (OrgId::generate(), Filler::new(log.clone()));
    for event in organization(org) {
        filler.add(&StreamId::of("org", org), &event).await;
    }
    let mut number = 0;
    while filler.appended < events_max {
        match number % 20 {
            0..4 => {
                let id = ProjectId::generate();
                let stream = StreamId::of("project", id);
                for event in project(org, id, 60) {
                    filler.add(&stream, &event).await;
                }
            }
            4..6 => {
                let id = StoreId::generate();
                let stream = StreamId::of("store", id);
                for event in store(org, id, 60) {
                    filler.add(&stream, &event).await;
                }
            }
            6..16 => {
                let id = SandboxId::generate();
                let stream = StreamId::of("sandbox", &id);
                for event in sandbox(org, &id, 84, number % 2 == 0) {
                    filler.add(&stream, &event).await;
                }
            }
            _ => {
                let id = SandboxId::generate();
                let stream = StreamId::of("egress", &id);
                for _ in 0..200 {
                    filler.add(&stream, &egress(org, &id)).await;
                }
            }
        }
        number += 1;
    }
    println!("{} events in {} streams", filler.appended, number + 1);
    filler.finish().await;
}

fn row(what: &str, time: Duration) {
    let (seconds, rss, peak) = (
        time.as_secs_f64(),
        memory_mib("VmRSS:"),
        memory_mib("VmHWM:"),
    );
    println!("| {what} | {seconds:.2} s | {rss} MiB | {peak} MiB |");
}

async fn restart(dir: &Path) {
    println!("| Step | time | memory after | peak so far |\n|---|---|---|---|");
    row("nothing yet", Duration::ZERO);
    let (start, all) = (Instant::now(), Instant::now());
    let log = open(dir);
    row("open and prove the log", start.elapsed());
    let (start, head) = (Instant::now(), log.head().position);
    let catalog = Arc::new(Catalog::default());
    let (following, followed) = (catalog.clone(), log.clone());
    let follower = tokio::task::spawn_local(async move { following.follow(followed).await });
    catalog.replayed(head).await;
    let replay = start.elapsed();
    row("replay into the read models", replay);
    let org = catalog.first_org().expect("an organization");
    let projects = catalog.projects(&org);
    let ids: Vec<ProjectId> = projects
        .iter()
        .filter_map(|row| row.details.as_ref().map(|details| details.project_id))
        .collect();
    let snapshots = Snapshots::open(dir, Zeroizing::new([7; 32]));
    let entities = Projects::new(log.clone(), snapshots);
    let start = Instant::now();
    entities
        .resize(org, ids[0], 3)
        .await
        .expect("the first command");
    row("first command, on disk", start.elapsed());
    row("ready, all in all", all.elapsed());
    let start = Instant::now();
    for id in &ids {
        entities
            .touch(&StreamId::of("project", id))
            .await
            .expect("loads");
    }
    row(&format!("{} projects touched", ids.len()), start.elapsed());
    println!(
        "\n{:.0} events a second replayed; {} of {} entities stay in memory",
        head as f64 / replay.as_secs_f64(),
        entities.resident(),
        ids.len()
    );
    follower.abort();
    log.close().await;
}

fn main() {
    if let Some(dir) = std::env::var_os(RESTART) {
        actix::System::new().block_on(restart(&PathBuf::from(dir)));
        return;
    }
    let events = std::env::var(EVENTS)
        .ok()
        .and_then(|text| text.parse().ok());
    let events = events.unwrap_or(1_000_000).min(EVENTS_MAX);
    // Beside the build, not in /tmp, which may be memory.
    let dir = tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a folder");
    let start = Instant::now();
    tokio::runtime::Runtime::new()
        .expect("a runtime")
        .block_on(async {
            let log = open(dir.path());
            build(&log, events).await;
            log.close().await;
        });
    println!("written in {:.1} s\n", start.elapsed().as_secs_f64());
    let own = std::env::current_exe().expect("this program");
    let mut child = Command::new(own)
        .env(RESTART, dir.path())
        .spawn()
        .expect("started");
    assert!(
        child.wait().expect("waited for").success(),
        "the restart failed"
    );
}
