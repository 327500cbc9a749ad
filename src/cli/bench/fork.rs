//! `oc bench fork`: what checkpoints, forks and restores cost, by what is on the disk, beside a plain
//! create in the same minutes; and many forks of one checkpoint at once.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::boxes::{Box, timed};
use super::idle::{look, supervisor};
use super::{ForkArgs, broken, median};
use crate::cli::client::{Api, body, decode};
use crate::cli::error::CliError;
use crate::cli::output::{Output, table};
use crate::cli::private_server::{PrivateServer, Scratch};

/// Longest until a checkpoint is ready, or a disk is filled.
const LONG: Duration = Duration::from_secs(600);
/// How often a checkpoint is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// How small files come on a disk.
const SMALL_FILES: &str =
    "mkdir files; for i in $(seq 10000); do echo content $i > files/$i; done; sync";
/// The place of the one that many forks are made of.
const CROWD: usize = 1;

/// The figures of one run.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    store: String,
    rounds: u32,
    cores: usize,
    /// A plain create to the end of its first command, beside them all.
    create_ms: f64,
    uppers: Vec<Upper>,
    crowd: Option<Crowd>,
}

/// Medians with one upper layer.
#[derive(Serialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Upper {
    what: String,
    /// For how long the processes stood still.
    pause_ms: f64,
    /// Asked for until ready.
    ready_ms: f64,
    /// Asked for until the end of the fork's first command.
    fork_ms: f64,
    restore_ms: f64,
    /// To those of an empty one.
    pause_ratio: f64,
    fork_ratio: f64,
    restore_ratio: f64,
    /// To a plain create in the same rounds.
    fork_to_create: f64,
}

/// Many forks of one checkpoint, at once.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Crowd {
    forks: u32,
    of: String,
    /// Until the last one had run its first command.
    all_ms: f64,
    p50_ms: f64,
    /// Of a fork's processes (each page counted in parts among those that share it) and its share of
    /// what the server has grown by.
    memory_kib_each: f64,
    /// Of the data folder's files, as they lie on the host's disk.
    disk_kib_each: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Checkpoint {
    id: String,
    status: String,
    paused_ms: f64,
}

#[derive(Default)]
struct Times {
    pause: Vec<f64>,
    ready: Vec<f64>,
    fork: Vec<f64>,
    create: Vec<f64>,
    restore: Vec<f64>,
}

/// Runs the measurement and prints it.
pub async fn run(args: ForkArgs, output: Output) -> Result<(), CliError> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch::create_in(&parent, "oc-bench").map_err(broken)?;
    // A place is taken before the sandbox counts as live, and for a moment both are counted.
    let most = args.forks * 2 + 16;
    let config = scratch.path().join("bench.toml");
    fs::write(
        &config,
        format!("[limits]\nconcurrent_sandboxes_max = {most}\n"),
    )
    .map_err(|error| CliError::Usage(format!("cannot write {}: {error}", config.display())))?;
    let more = vec![
        "--config".into(),
        config.into(),
        "--disk-store".into(),
        args.store.clone().into(),
    ];
    let mut server = PrivateServer::start(scratch.path(), more)
        .await
        .map_err(broken)?;
    let folder = scratch.path().join("data");
    let measured = measure(&server, &folder, &args).await;
    // Also after a failure, which would otherwise leave them running.
    let cleared = clear(&server.api).await;
    server.stop().await;
    scratch.remove().map_err(broken)?;
    let figures = measured?;
    cleared?;
    print(&figures, output)
}

async fn measure(
    server: &PrivateServer,
    folder: &Path,
    args: &ForkArgs,
) -> Result<Figures, CliError> {
    let (mut uppers, mut crowd) = (Vec::<Upper>::new(), None);
    let mut creates = Vec::new();
    let large = format!(
        "head -c {} /dev/urandom > large; sync",
        u64::from(args.large_mib) << 20
    );
    let on_the_disk = [
        ("empty".to_owned(), "true"),
        ("10,000 small files".to_owned(), SMALL_FILES),
        (format!("{} MiB", args.large_mib), &large),
    ];
    for (number, (what, fill)) in on_the_disk.into_iter().enumerate() {
        let source = Box::create(&server.api).await?;
        source.run_long(fill, LONG).await?;
        let mut times = Times::default();
        // The first round fills caches and is not counted.
        for round in 0..=args.rounds {
            let mut own = Times::default();
            this_round(&server.api, &source, round, &mut own).await?;
            if round > 0 {
                times.add(own);
            }
        }
        creates.extend_from_slice(&times.create);
        let upper = times.upper(what.clone(), uppers.first());
        uppers.push(upper);
        if number == CROWD && args.forks > 0 {
            crowd = Some(crowded(server, folder, &source, what, args.forks).await?);
        }
        source.delete().await?;
    }
    Ok(Figures {
        store: args.store.clone(),
        rounds: args.rounds,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        create_ms: median(creates),
        uppers,
        crowd,
    })
}

impl Times {
    fn add(&mut self, mut other: Self) {
        self.pause.append(&mut other.pause);
        self.ready.append(&mut other.ready);
        self.fork.append(&mut other.fork);
        self.create.append(&mut other.create);
        self.restore.append(&mut other.restore);
    }

    fn upper(self, what: String, empty: Option<&Upper>) -> Upper {
        let (pause_ms, fork_ms) = (median(self.pause), median(self.fork));
        let restore_ms = median(self.restore);
        let ratio = |own: f64, of: fn(&Upper) -> f64| own / empty.map_or(own, of);
        Upper {
            what,
            pause_ms,
            ready_ms: median(self.ready),
            fork_ms,
            restore_ms,
            pause_ratio: ratio(pause_ms, |upper| upper.pause_ms),
            fork_ratio: ratio(fork_ms, |upper| upper.fork_ms),
            restore_ratio: ratio(restore_ms, |upper| upper.restore_ms),
            fork_to_create: fork_ms / median(self.create),
        }
    }
}

async fn this_round(
    api: &Api,
    source: &Box<'_>,
    round: u32,
    times: &mut Times,
) -> Result<(), CliError> {
    let (taken, ready) = timed(checkpoint(api, source, &format!("r{round}"))).await?;
    times.pause.push(taken.paused_ms);
    times.ready.push(ms(ready));
    let begun = Instant::now();
    let one = Box::create(api).await?;
    let ran = one.run("true").await;
    times.create.push(ms(begun.elapsed()));
    ran.and(one.delete().await)?;
    let begun = Instant::now();
    let one = Box::fork(api, &taken.id).await?;
    let ran = one.run("true").await;
    times.fork.push(ms(begun.elapsed()));
    ran.and(one.delete().await)?;
    let path = ["sandboxes", &source.id, "checkpoints", &taken.id, "restore"];
    let restore = async {
        api.send(Method::POST, &path, None).await?;
        source.run("true").await
    };
    times.restore.push(ms(timed(restore).await?.1));
    let path = ["sandboxes", &source.id, "checkpoints", &taken.id];
    api.delete(&path, &[]).await
}

/// Asks for a checkpoint and waits until it is ready.
async fn checkpoint(api: &Api, source: &Box<'_>, name: &str) -> Result<Checkpoint, CliError> {
    let path = ["sandboxes", &source.id, "checkpoints"];
    let asked = Some(body(&json!({ "name": name }))?);
    let made: Checkpoint = decode(api.send(Method::POST, &path, asked).await?)?;
    let deadline = Instant::now() + LONG;
    loop {
        let all: Vec<Checkpoint> = decode(api.get(&path).await?)?;
        match all.into_iter().find(|one| one.id == made.id) {
            Some(one) if one.status == "ready" => return Ok(one),
            Some(one) if one.status == "processing" && Instant::now() < deadline => {}
            _ => {
                let text = format!("checkpoint {} did not become ready", made.id);
                return Err(CliError::BadReply(text));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn crowded(
    server: &PrivateServer,
    folder: &Path,
    source: &Box<'_>,
    of: String,
    count: u32,
) -> Result<Crowd, CliError> {
    let (api, pid) = (&server.api, server.pid().unwrap_or_default());
    let taken = checkpoint(api, source, "crowd").await?;
    let (disk, memory) = (on_disk(folder), look(pid)?.anonymous_kib);
    let begun = Instant::now();
    let forks = (0..count).map(|_| async {
        let one = Box::fork(api, &taken.id).await?;
        one.run("true").await?;
        Ok::<_, CliError>((one, ms(begun.elapsed())))
    });
    let made = futures_util::future::join_all(forks).await;
    let all_ms = ms(begun.elapsed());
    // The first failure ends it; what was made is cleared with all else.
    let made: Vec<_> = made.into_iter().collect::<Result<_, _>>()?;
    let grown = on_disk(folder).saturating_sub(disk);
    let mut kib = look(pid)?.anonymous_kib.saturating_sub(memory);
    let seen = seen_by(pid, folder);
    for (one, _) in &made {
        kib += with_children(supervisor(&seen, &one.id)?)?;
    }
    let each = |all: f64| all / f64::from(count);
    let crowd = Crowd {
        forks: count,
        of,
        all_ms,
        p50_ms: median(made.iter().map(|(_, taken)| *taken).collect()),
        memory_kib_each: each(kib as f64),
        disk_kib_each: each(grown as f64 / 1024.0),
    };
    for (one, _) in made {
        one.delete().await?;
    }
    Ok(crowd)
}

/// A folder as a process sees it, which may have mounts of its own there.
fn seen_by(pid: u32, folder: &Path) -> PathBuf {
    let inside = folder.strip_prefix("/").unwrap_or(folder);
    Path::new("/proc")
        .join(pid.to_string())
        .join("root")
        .join(inside)
}

/// Memory of a process and all below it, KiB.
fn with_children(pid: u32) -> Result<u64, CliError> {
    let mut kib = look(pid)?.proportional_kib;
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    for child in children.unwrap_or_default().split_whitespace() {
        // One that has just ended has none.
        if let Ok(child) = child.parse() {
            kib += with_children(child).unwrap_or_default();
        }
    }
    Ok(kib)
}

/// What the files in a folder take of the disk, in bytes.
fn on_disk(folder: &Path) -> u64 {
    rustix::fs::sync();
    let (mut open, mut bytes) = (vec![folder.to_owned()], 0);
    while let Some(path) = open.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            open.extend(entries.map(|entry| entry.path()));
        }
    }
    bytes
}

/// Takes away every sandbox there is.
async fn clear(api: &Api) -> Result<(), CliError> {
    let all: Value = api.get(&["sandboxes"]).await?;
    let ids = all.as_array().into_iter().flatten();
    let ids: Vec<_> = ids.filter_map(|one| one["sandboxID"].as_str()).collect();
    for id in ids {
        api.delete(&["sandboxes", id], &[]).await?;
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn print(figures: &Figures, output: Output) -> Result<(), CliError> {
    output.reply(figures, || {
        let both = |ms: f64, ratio: f64| format!("{ms:.1} ms ({ratio:.2})");
        let rows = figures.uppers.iter().map(|upper| {
            [
                upper.what.clone(),
                both(upper.pause_ms, upper.pause_ratio),
                format!("{:.1} ms", upper.ready_ms),
                both(upper.fork_ms, upper.fork_ratio),
                format!("{:.2}", upper.fork_to_create),
                both(upper.restore_ms, upper.restore_ratio),
            ]
        });
        let header = ["ON THE DISK", "PAUSE", "READY", "FORK", "TO CREATE", "RESTORE"];
        let speed = table(header, rows.collect());
        let mut text = format!(
            "{speed}\n\nStore: {}. Medians of {} rounds; in brackets: to that of an empty one. A plain \
             create to its first command: {:.1} ms.",
            figures.store, figures.rounds, figures.create_ms
        );
        if let Some(crowd) = &figures.crowd {
            text += &format!(
                "\n{} forks at once of a checkpoint with {}: all after {:.0} ms, the median after \
                 {:.0} ms; each {:.0} KiB of memory, {:.0} KiB on the disk.",
                crowd.forks,
                crowd.of,
                crowd.all_ms,
                crowd.p50_ms,
                crowd.memory_kib_each,
                crowd.disk_kib_each
            );
        }
        text
    })
}
