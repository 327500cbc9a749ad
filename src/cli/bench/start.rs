//! `oc bench start`: how fast a sandbox starts and answers on this machine, and what it costs.
//!
//! The unit is bubblewrap, the thinnest sandbox there is: `bwrap … true` runs in the same minutes
//! on the same machine, and what is reported are ratios to it, which carry over between machines.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::process::Command;

use super::boxes::{Box, timed};
use super::idle::{Idle, idle};
use super::{StartArgs, broken};
use crate::cli::client::Api;
use crate::cli::error::CliError;
use crate::cli::output::{Output, table};
use crate::cli::private_server::{PrivateServer, Scratch};

/// Rounds that are run and not counted: caches fill, code is paged in.
const WARM_UP_ROUNDS: u32 = 3;
/// The small file.
const SMALL_BYTES: usize = 1024;
/// The large one: 1 GiB.
const LARGE_BYTES: usize = 1024 * 1024 * 1024;
/// The unit's arguments: every namespace, the host's files read-only, one command.
const UNIT: [&str; 9] = [
    "--unshare-all",
    "--ro-bind",
    "/",
    "/",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--",
];

/// The figures of one run.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    rounds: u32,
    cores: usize,
    bwrap_ms: f64,
    create_to_first_command_ms: f64,
    create_to_first_command_ratio: f64,
    exec_round_trip_ms: f64,
    exec_round_trip_ratio: f64,
    measures: Vec<Measure>,
    idle: Vec<Idle>,
}

/// One line of the table.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Measure {
    what: String,
    p50_ms: f64,
    p95_ms: f64,
    /// The median in bwraps, unless `wanted` says otherwise.
    ratio: f64,
    wanted: &'static str,
}

/// What every round takes the time of, in the table's order.
#[derive(Default)]
struct Times {
    unit: Vec<Duration>,
    created: Vec<Duration>,
    first: Vec<Duration>,
    exec: Vec<Duration>,
    file: Vec<Duration>,
    hibernate: Vec<Duration>,
    wake: Vec<Duration>,
    delete: Vec<Duration>,
    unit_node: Vec<Duration>,
    node: Vec<Duration>,
}

/// Runs the measurement and prints it.
pub async fn run(args: StartArgs, output: Output) -> Result<(), CliError> {
    print(&start(args).await?, output)
}

async fn start(args: StartArgs) -> Result<Figures, CliError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let bwrap = find("bwrap", &path).ok_or_else(|| {
        let message = "bwrap is not on PATH: the ratios need it as their unit; \
                       install it (Debian: apt install bubblewrap)";
        CliError::Usage(message.to_owned())
    })?;
    let scratch = Scratch::create("oc-bench").map_err(broken)?;
    // Room for every sandbox of the run at once.
    let most = args.idle.iter().copied().max().unwrap_or(0).max(args.burst) + 1;
    let config = scratch.path().join("bench.toml");
    std::fs::write(
        &config,
        format!("[limits]\nconcurrent_sandboxes_max = {most}\n"),
    )
    .map_err(|error| CliError::Usage(format!("cannot write {}: {error}", config.display())))?;
    let more = vec!["--config".into(), config.into()];
    let mut server = PrivateServer::start(scratch.path(), more)
        .await
        .map_err(broken)?;
    let pid = server.pid().unwrap_or_default();
    let measured = measure(&server.api, pid, scratch.path(), &bwrap, &args).await;
    server.stop().await;
    scratch.remove().map_err(broken)?;
    measured
}

async fn measure(
    api: &Api,
    server: u32,
    folder: &Path,
    bwrap: &Path,
    args: &StartArgs,
) -> Result<Figures, CliError> {
    // Programs of the host's `/usr` are in the sandbox too.
    let node = find("node", OsStr::new("/usr/bin:/usr/local/bin")).is_some();
    let mut times = Times::default();
    // All take turns, so that a slow moment of the machine hits all of them.
    for round in 0..WARM_UP_ROUNDS + args.rounds {
        let mut own = Times::default();
        this_round(api, bwrap, node, &mut own).await?;
        if round >= WARM_UP_ROUNDS {
            times.add(own);
        }
    }
    let idle = idle(api, server, &folder.join("data"), &args.idle).await?;
    let unit = at(&mut times.unit, 50);
    let (first, exec) = (at(&mut times.first, 50), at(&mut times.exec, 50));
    let mut measures = times.measures(unit);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if args.burst > 0 {
        let (p50, p95) = burst(api, args.burst).await?;
        let alone = first * f64::from(args.burst) / cores as f64;
        measures.push(Measure {
            what: format!("{} at once: create to first true", args.burst),
            p50_ms: p50,
            p95_ms: p95,
            ratio: p95 / alone,
            wanted: "p95 under 3 of what one takes alone, by cores",
        });
    }
    if args.large {
        measures.extend(large(api, folder).await?);
    }
    Ok(Figures {
        rounds: args.rounds,
        cores,
        bwrap_ms: unit,
        create_to_first_command_ms: first,
        create_to_first_command_ratio: first / unit,
        exec_round_trip_ms: exec,
        exec_round_trip_ratio: exec / unit,
        measures,
        idle,
    })
}

impl Times {
    fn lists(&mut self) -> [&mut Vec<Duration>; 10] {
        let Self {
            unit,
            created,
            first,
            exec,
            file,
            hibernate,
            wake,
            delete,
            unit_node,
            node,
        } = self;
        [
            unit, created, first, exec, file, hibernate, wake, delete, unit_node, node,
        ]
    }

    fn add(&mut self, mut other: Self) {
        for (all, more) in self.lists().into_iter().zip(other.lists()) {
            all.append(more);
        }
    }

    fn measures(mut self, unit: f64) -> Vec<Measure> {
        let names = [
            ("bwrap true", ""),
            ("create", ""),
            (
                "create to first true",
                "ratio 2 and the guest's own start, under 60 ms",
            ),
            ("exec true", "under 5 ms"),
            ("write and read a file of 1 KiB", ""),
            ("hibernate", ""),
            ("wake", ""),
            ("delete", ""),
            ("bwrap node -v", ""),
            ("create to first node -v", ""),
        ];
        let lists = self.lists().into_iter().zip(names);
        lists
            .filter(|(list, _)| !list.is_empty())
            .map(|(list, (what, wanted))| Measure {
                what: what.to_owned(),
                p50_ms: at(list, 50),
                p95_ms: at(list, 95),
                ratio: at(list, 50) / unit,
                wanted,
            })
            .collect()
    }
}

async fn this_round(
    api: &Api,
    bwrap: &Path,
    node: bool,
    times: &mut Times,
) -> Result<(), CliError> {
    times.unit.push(run_unit(bwrap, &["true"]).await?);
    let started = Instant::now();
    let (one, created) = timed(Box::create(api)).await?;
    times.created.push(created);
    let used = use_one(&one, started, times).await;
    // Also after a failure, which would otherwise leave the sandbox running.
    let (_, deleted) = timed(async { used.and(one.delete().await) }).await?;
    times.delete.push(deleted);
    if node {
        let taken = run_unit(bwrap, &["node", "-v"]).await?;
        times.unit_node.push(taken);
        let started = Instant::now();
        let one = Box::create(api).await?;
        let ran = one.run("node -v").await;
        times.node.push(started.elapsed());
        ran.and(one.delete().await)?;
    }
    Ok(())
}

async fn use_one(one: &Box<'_>, started: Instant, times: &mut Times) -> Result<(), CliError> {
    one.run("true").await?;
    times.first.push(started.elapsed());
    times.exec.push(timed(one.run("true")).await?.1);
    let file = async {
        one.write(SMALL_BYTES).await?;
        one.read(SMALL_BYTES).await
    };
    times.file.push(timed(file).await?.1);
    times.hibernate.push(timed(one.asleep(true)).await?.1);
    times.wake.push(timed(one.asleep(false)).await?.1);
    Ok(())
}

/// Median and 95th of 100 of `count` sandboxes made at once, each until its first command ended.
async fn burst(api: &Api, count: u32) -> Result<(f64, f64), CliError> {
    let starts = (0..count).map(|_| async {
        let started = Instant::now();
        let one = Box::create(api).await?;
        let ran = one.run("true").await;
        Ok::<_, CliError>((one, ran.map(|()| started.elapsed())))
    });
    let started = futures_util::future::join_all(starts).await;
    let (mut times, mut failed) = (Vec::new(), Ok(()));
    let mut boxes = Vec::new();
    for one in started {
        match one {
            Ok((one, Ok(taken))) => {
                times.push(taken);
                boxes.push(one);
            }
            Ok((one, Err(error))) => {
                failed = Err(error);
                boxes.push(one);
            }
            Err(error) => failed = Err(error),
        }
    }
    for one in boxes {
        failed = failed.and(one.delete().await);
    }
    failed.map(|()| (at(&mut times, 50), at(&mut times, 95)))
}

/// A large file, streamed in and out, beside the same bytes written to and read from a plain file.
async fn large(api: &Api, folder: &Path) -> Result<Vec<Measure>, CliError> {
    let path = folder.join("large");
    let plain = tokio::task::spawn_blocking(move || plain_file(&path))
        .await
        .map_err(|error| CliError::Usage(error.to_string()))?
        .map_err(|error| CliError::Usage(format!("cannot write a plain file: {error}")))?;
    let one = Box::create(api).await?;
    let moved = async {
        let ((), written) = timed(one.write(LARGE_BYTES)).await?;
        let ((), read) = timed(one.read(LARGE_BYTES)).await?;
        Ok::<_, CliError>((written, read))
    };
    let moved = moved.await;
    one.delete().await?;
    let (written, read) = moved?;
    let row = |what: &str, taken: Duration, beside: Duration| Measure {
        what: format!("{what} a file of 1 GiB"),
        p50_ms: ms(taken),
        p95_ms: ms(taken),
        ratio: ms(taken) / ms(beside),
        wanted: "(ratio to a plain file)",
    };
    Ok(vec![
        row("write", written, plain.0),
        row("read", read, plain.1),
    ])
}

fn plain_file(path: &Path) -> std::io::Result<(Duration, Duration)> {
    use std::io::{Read, Write};
    let mut piece = vec![b'x'; 256 * 1024];
    let started = Instant::now();
    let mut file = std::fs::File::create(path)?;
    for _ in 0..LARGE_BYTES / piece.len() {
        file.write_all(&piece)?;
    }
    let written = started.elapsed();
    let started = Instant::now();
    let mut file = std::fs::File::open(path)?;
    while file.read(&mut piece)? > 0 {}
    let read = started.elapsed();
    std::fs::remove_file(path)?;
    Ok((written, read))
}

async fn run_unit(bwrap: &Path, program: &[&str]) -> Result<Duration, CliError> {
    let started = Instant::now();
    let mut command = Command::new(bwrap);
    command.args(UNIT).args(program);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let ran = command.output().await;
    let taken = started.elapsed();
    match ran {
        Ok(output) if output.status.success() => Ok(taken),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(CliError::Usage(format!(
                "bwrap can't make a sandbox here: {text}"
            )))
        }
        Err(error) => Err(CliError::Usage(format!(
            "cannot run {}: {error}",
            bwrap.display()
        ))),
    }
}

fn print(figures: &Figures, output: Output) -> Result<(), CliError> {
    output.reply(figures, || {
        let rows = figures.measures.iter().map(|measure| {
            [
                measure.what.clone(),
                format!("{:.1} ms", measure.p50_ms),
                format!("{:.1} ms", measure.p95_ms),
                format!("{:.2}", measure.ratio),
                measure.wanted.to_owned(),
            ]
        });
        let header = ["MEASURE", "P50", "P95", "RATIO", "WANTED"];
        let speed = table(header, rows.collect());
        if figures.idle.is_empty() {
            return speed;
        }
        let rows = figures.idle.iter().map(|idle| {
            [
                idle.sandboxes.to_string(),
                format!("{:.0} KiB", idle.server_kib_each),
                format!("{:.1}", idle.server_fds_each),
                format!("{:.0} KiB", idle.supervisor_kib),
                format!("{:.0} KiB", idle.supervisor_private_kib),
                format!("{:.0}", idle.supervisor_fds),
                format!("{:.0} KiB", idle.total_kib_each),
            ]
        });
        let header = [
            "IDLE SANDBOXES",
            "SERVER EACH",
            "FDS",
            "SUPERVISOR",
            "ITS OWN",
            "FDS",
            "TOGETHER (4096 KiB WANTED)",
        ];
        format!("{speed}\n\n{}", table(header, rows.collect()))
    })
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// The time that `share` of 100 are not above, in milliseconds; between the two middle ones for 50.
fn at(times: &mut [Duration], share: usize) -> f64 {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    let place = last * share;
    let get = |index: usize| times.get(index).copied().unwrap_or_default();
    match share {
        50 => ms(get(place / 100) + get(place.div_ceil(100))) / 2.0,
        _ => ms(get(place.div_ceil(100))),
    }
}

fn find(program: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_tails_of_few_times() {
        let check = |times: &[u64], share, expected: f64| {
            let times = times.iter().map(|ms| Duration::from_millis(*ms));
            let mut times: Vec<_> = times.collect();
            assert!((at(&mut times, share) - expected).abs() < 1e-9);
        };
        check(&[3, 1, 2], 50, 2.0);
        check(&[4, 1, 3, 2], 50, 2.5);
        check(&[4, 1, 3, 2], 95, 4.0);
        check(&[7], 50, 7.0);
        check(&[], 95, 0.0);
    }

    #[test]
    fn programs_are_found_on_the_path() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("bwrap"), "").unwrap();
        let path = std::env::join_paths(["/nowhere".as_ref(), folder.path()]).unwrap();
        assert_eq!(find("bwrap", &path), Some(folder.path().join("bwrap")));
        assert_eq!(find("bwrap", OsStr::new("/nowhere")), None);
    }
}
