//! `oc demo` and `oc bench` as a user runs them, on this machine: real server, real sandbox.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

/// Each run starts a server and searches memory: one at a time is kinder to a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn oc(arguments: &[&str], temporary: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oc"));
    command
        .args(arguments)
        .env("TMPDIR", temporary)
        .env("HOME", temporary)
        .stdin(Stdio::null());
    command
}

fn text(output: &Output) -> String {
    let streams = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    streams.concat()
}

/// Processes that name `folder` on their command line or have a file below it open.
fn processes_of(folder: &Path) -> Vec<String> {
    let has = |process: &Path| {
        let line = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
        let files = fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        let mut open = files.filter_map(|file| fs::read_link(file.path()).ok());
        line.contains(folder.to_str().unwrap()) || open.any(|path| path.starts_with(folder))
    };
    let all = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let found = all.filter(|path| path.join("cmdline").exists() && has(path));
    found.map(|path| path.display().to_string()).collect()
}

fn mounts_of(folder: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines = table
        .lines()
        .filter(|line| line.contains(folder.to_str().unwrap()));
    lines.map(str::to_owned).collect()
}

fn assert_nothing_left(folder: &Path) {
    assert_eq!(processes_of(folder), Vec::<String>::new());
    assert_eq!(mounts_of(folder), Vec::<String>::new());
    let names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert_eq!(names, Vec::<std::path::PathBuf>::new());
}

/// Whether the machine lets this test start sandboxes with all their limits; says so if not.
fn can_run() -> bool {
    let root = geteuid().is_root();
    if !root {
        println!("skipped: searching the memory of sandboxes needs root");
    }
    root
}

/// Goal: the main job works end to end and leaves nothing.
#[test]
fn the_demo_passes_and_leaves_nothing() {
    if !can_run() {
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let output = oc(&["demo"], folder.path()).output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("All 31 checks passed") && !text.contains('✗'),
        "{text}"
    );
    assert_nothing_left(folder.path());
}

/// Goal: Ctrl-C in the middle of the story leaves nothing either, and is no success.
#[test]
fn an_interrupted_demo_cleans_up() {
    if !can_run() {
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let mut command = oc(&["demo"], folder.path());
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Server and supervisor: from then on there is a sandbox to take away.
    let started = Instant::now();
    let mut processes = 0;
    while processes < 2 && started.elapsed() < Duration::from_secs(30) {
        processes = processes_of(folder.path()).len();
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = text(&output);
    assert!(processes >= 2, "no sandbox was started: {text}");
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("interrupted"), "{text}");
    assert_nothing_left(folder.path());
}

#[test]
fn the_benchmark_needs_its_unit() {
    let folder = tempfile::tempdir().unwrap();
    let output = oc(&["bench", "start"], folder.path())
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("bwrap"), "{}", text(&output));
    assert_nothing_left(folder.path());
}

/// Goal: the figures are there and make sense. Method: the real measurement of a few rounds, with
/// a program that does nothing in the place of bwrap, since only the arithmetic is at stake.
#[test]
fn the_benchmark_reports_ratios() {
    if !can_run() {
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let programs = tempfile::tempdir().unwrap();
    let unit = programs.path().join("bwrap");
    fs::write(&unit, "#!/bin/sh\nexit 0\n").unwrap();
    fs::set_permissions(&unit, fs::Permissions::from_mode(0o755)).unwrap();
    let mut path = programs.path().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let bench = "--json bench start --rounds 3 --burst 3 --idle 1,2";
    let bench: Vec<_> = bench.split(' ').collect();
    let output = oc(&bench, folder.path())
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let figure = |name: &str| {
        figures[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name}: {figures}"))
    };
    let ratio = figure("createToFirstCommandMs") / figure("bwrapMs");
    assert!(
        (ratio - figure("createToFirstCommandRatio")).abs() < 1e-6,
        "{figures}"
    );
    assert!(
        figure("execRoundTripMs") > 0.0 && figure("rounds") == 3.0,
        "{figures}"
    );
    let measures = figures["measures"].as_array().unwrap();
    for what in [
        "delete",
        "hibernate",
        "wake",
        "3 at once: create to first true",
    ] {
        let found = measures.iter().find(|measure| measure["what"] == what);
        let found = found.unwrap_or_else(|| panic!("{what}: {figures}"));
        assert!(
            found["p50Ms"].as_f64() <= found["p95Ms"].as_f64(),
            "{found}"
        );
    }
    let idle = figures["idle"].as_array().unwrap();
    let count = |idle: &serde_json::Value| idle["sandboxes"].as_u64();
    assert_eq!(idle.iter().filter_map(count).collect::<Vec<_>>(), [1, 2]);
    assert!(
        idle[1]["supervisorKib"].as_f64().unwrap() > 0.0,
        "{figures}"
    );
    assert_nothing_left(folder.path());
}

/// Goal: the figures of forks are there and add up, and nothing stays. Method: the real measurement of one round, with a small large file.
#[test]
fn the_benchmark_measures_forks() {
    if !can_run() {
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let bench = "--json bench fork --rounds 1 --forks 2 --large-mib 8 --store files";
    let bench: Vec<_> = bench.split(' ').collect();
    let output = oc(&bench, folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let figures: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let uppers = figures["uppers"].as_array().unwrap();
    let what: Vec<_> = uppers.iter().map(|upper| &upper["what"]).collect();
    assert_eq!(what, ["empty", "10,000 small files", "8 MiB"]);
    for upper in uppers {
        for figure in ["pauseMs", "readyMs", "forkMs", "restoreMs", "forkToCreate"] {
            assert!(upper[figure].as_f64() > Some(0.0), "{figure}: {upper}");
        }
        let ratio = upper["forkMs"].as_f64().unwrap() / uppers[0]["forkMs"].as_f64().unwrap();
        assert!((ratio - upper["forkRatio"].as_f64().unwrap()).abs() < 1e-6);
    }
    let crowd = &figures["crowd"];
    assert!(
        crowd["forks"] == 2 && crowd["memoryKibEach"].as_f64() > Some(0.0),
        "{crowd}"
    );
    assert_nothing_left(folder.path());
}
