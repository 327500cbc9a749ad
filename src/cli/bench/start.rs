//! `oc bench start`: how fast a sandbox starts and answers on this machine.
//!
//! The unit is bubblewrap, the thinnest sandbox there is: `bwrap … true` runs in the same minutes
//! on the same machine, and what is reported are ratios to it, which carry over between machines.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::process::Command;

use super::broken;
use crate::cli::client::{Api, body, decode};
use crate::cli::error::CliError;
use crate::cli::exec::RunResult;
use crate::cli::output::{Output, table};
use crate::cli::private_server::{PrivateServer, Scratch};

/// Rounds that are run and not counted: caches fill, code is paged in.
const WARM_UP_ROUNDS: u32 = 3;
/// The unit's arguments: every namespace, the host's files read-only, one command.
const UNIT: [&str; 10] = [
    "--unshare-all",
    "--ro-bind",
    "/",
    "/",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--",
    "true",
];

/// The figures of one run.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    rounds: u32,
    bwrap_ms: f64,
    create_to_first_command_ms: f64,
    create_to_first_command_ratio: f64,
    exec_round_trip_ms: f64,
    exec_round_trip_ratio: f64,
}

/// Runs the measurement and prints it.
pub async fn run(rounds: u32, output: Output) -> Result<(), CliError> {
    print(&start(rounds).await?, output)
}

async fn start(rounds: u32) -> Result<Figures, CliError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let bwrap = find("bwrap", &path).ok_or_else(|| {
        let message = "bwrap is not on PATH: the ratios need it as their unit; \
                       install it (Debian: apt install bubblewrap)";
        CliError::Usage(message.to_owned())
    })?;
    let scratch = Scratch::create("oc-bench").map_err(broken)?;
    let mut server = PrivateServer::start(scratch.path(), Vec::new())
        .await
        .map_err(broken)?;
    let measured = measure(&server.api, &bwrap, rounds).await;
    server.stop().await;
    scratch.remove().map_err(broken)?;
    measured
}

async fn measure(api: &Api, bwrap: &Path, rounds: u32) -> Result<Figures, CliError> {
    let mut unit = Vec::new();
    let mut create = Vec::new();
    let mut exec = Vec::new();
    // The three take turns, so that a slow moment of the machine hits all of them.
    for round in 0..WARM_UP_ROUNDS + rounds {
        let times = (run_unit(bwrap).await?, run_sandbox(api).await?);
        if round >= WARM_UP_ROUNDS {
            unit.push(times.0);
            create.push(times.1.0);
            exec.push(times.1.1);
        }
    }
    let [unit, create, exec] = [unit, create, exec].map(median_ms);
    Ok(Figures {
        rounds,
        bwrap_ms: unit,
        create_to_first_command_ms: create,
        create_to_first_command_ratio: create / unit,
        exec_round_trip_ms: exec,
        exec_round_trip_ratio: exec / unit,
    })
}

async fn run_unit(bwrap: &Path) -> Result<Duration, CliError> {
    let started = Instant::now();
    let mut command = Command::new(bwrap);
    command.args(UNIT).stdin(Stdio::null()).kill_on_drop(true);
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

/// A whole sandbox: the time until its first command has ended, and that of a second command.
async fn run_sandbox(api: &Api) -> Result<(Duration, Duration), CliError> {
    #[derive(Deserialize)]
    struct Created {
        #[serde(rename = "sandboxID")]
        id: String,
    }
    let started = Instant::now();
    let reply = api
        .send(Method::POST, &["sandboxes"], Some(body(&json!({}))?))
        .await?;
    let created: Created = decode(reply)?;
    let ran = run_true(api, &created.id).await;
    let create = started.elapsed();
    let again = Instant::now();
    let ran_again = run_true(api, &created.id).await;
    let exec = again.elapsed();
    // Also after a failure, which would otherwise leave the sandbox running.
    let deleted = api.delete(&["sandboxes", &created.id], &[]).await;
    ran.and(ran_again).and(deleted).map(|()| (create, exec))
}

async fn run_true(api: &Api, sandbox: &str) -> Result<(), CliError> {
    let path = ["sandboxes", sandbox, "exec", "run"];
    let request = body(&json!({ "cmd": "true" }))?;
    let reply: Value = api.send(Method::POST, &path, Some(request)).await?;
    let result: RunResult = decode(reply)?;
    match result.exit_code {
        0 => Ok(()),
        code => Err(CliError::BadReply(format!(
            "`true` ended with {code}: {}",
            result.stderr
        ))),
    }
}

fn print(figures: &Figures, output: Output) -> Result<(), CliError> {
    output.reply(figures, || {
        let row = |what: &str, ms: f64, ratio: f64| {
            [
                what.to_owned(),
                format!("{ms:.1} ms"),
                format!("{ratio:.2}"),
            ]
        };
        let (create, exec) = (
            figures.create_to_first_command_ms,
            figures.exec_round_trip_ms,
        );
        let rows = vec![
            row("bwrap true", figures.bwrap_ms, 1.0),
            row(
                "create to first true",
                create,
                figures.create_to_first_command_ratio,
            ),
            row("exec true", exec, figures.exec_round_trip_ratio),
        ];
        table(["MEASURE", "MEDIAN", "RATIO"], rows)
    })
}

fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    let upper = times.get(times.len() / 2).copied().unwrap_or_default();
    let lower = times
        .get(times.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or_default();
    (lower + upper).as_secs_f64() * 1000.0 / 2.0
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
    fn medians_of_odd_and_even_counts() {
        let check = |times: &[u64], expected: f64| {
            let times = times.iter().map(|ms| Duration::from_millis(*ms)).collect();
            assert!((median_ms(times) - expected).abs() < 1e-9);
        };
        check(&[3, 1, 2], 2.0);
        check(&[4, 1, 3, 2], 2.5);
        check(&[7], 7.0);
        check(&[], 0.0);
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
