//! The process that holds one sandbox and outlives the server.
//!
//! Invariants: it starts single-threaded, inherits nothing but its plan (on standard input) and
//! the pipe it reports on, and holds the lock of its sandbox's folder as long as it lives. Its
//! death is the sandbox's death; the sandbox's end is its own. It parses what a hostile sandbox
//! sends (name queries) and therefore holds no secret, no environment and no way to the server
//! but the connection the server made.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::SocketType;
use serde::{Deserialize, Serialize};

use super::diff::diff_main;
use super::image::Image;
use super::launch::{Launched, launch};
use super::plan::{PLAN_BYTES_MAX, Plan, State, write_atomically};
use super::seccomp::Filters;
use super::serve::Service;
use super::spawner::spawner_main;
use super::sys::{Step, StepError};
use super::{doctor, packet, sys};

/// Servers that may wait to be heard.
const CONTROL_BACKLOG: i32 = 16;

/// What a supervisor tells the process that started it, as one JSON text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The sandbox runs and the control socket is open.
    Started,
    /// Another supervisor holds this sandbox.
    AlreadyRuns,
    /// It does not run, and nothing is left of the attempt.
    Failed(String),
}

/// How a sandbox ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code of PID 1, or 128 and the signal that ended it.
    pub status: i32,
    /// Whether a server had asked for it.
    pub asked: bool,
    /// When.
    pub unix_ms: u64,
}

/// The hidden subcommand of `oc`: `args` are the words after it. Call it before anything starts
/// a thread. Without words it is the process that supervisors are forked from; with `probe` it
/// prints what this machine can do, with `diff` what differs between two disks.
pub fn supervisor_main(args: &[String]) -> ExitCode {
    if sys::close_from(3).is_err() {
        return ExitCode::FAILURE;
    }
    match args.first().map(String::as_str) {
        None => spawner_main(),
        Some("probe") => doctor::probe_main(),
        Some("diff") => diff_main(),
        Some(_) => ExitCode::from(2),
    }
}

/// In a fork of the spawner, with the plan on standard input and the report's pipe on standard
/// output: holds a sandbox to its end.
pub fn become_supervisor(filters: &Filters) -> ExitCode {
    let held = read_plan()
        .map_err(Refusal::Step)
        .and_then(|plan| hold(&plan, filters));
    match held {
        Ok(()) => ExitCode::SUCCESS,
        Err(Refusal::AlreadyRuns) => report(&Report::AlreadyRuns),
        Err(Refusal::Step(error)) => {
            eprintln!("{error}");
            report(&Report::Failed(error.to_string()))
        }
    }
}

enum Refusal {
    AlreadyRuns,
    Step(StepError),
}

impl From<StepError> for Refusal {
    fn from(error: StepError) -> Self {
        Self::Step(error)
    }
}

fn read_plan() -> Result<Plan, StepError> {
    let mut text = Vec::new();
    io::stdin()
        .lock()
        .take(PLAN_BYTES_MAX)
        .read_to_end(&mut text)
        .step("read the plan")?;
    serde_json::from_slice(&text)
        .map_err(io::Error::from)
        .step("understand the plan")
}

/// Writes the report and closes the pipe it went to.
fn report(report: &Report) -> ExitCode {
    let text = serde_json::to_vec(report).unwrap_or_default();
    let written = io::stdout()
        .write_all(&text)
        .and_then(|()| io::stdout().flush());
    let closed = null().and_then(|null| sys::place_fd(null.as_fd(), 1));
    match (report, written.and(closed)) {
        (Report::Started, Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Writes the report of a supervisor that could not be made.
pub fn report_to(pipe: OwnedFd, report: &Report) {
    let text = serde_json::to_vec(report).unwrap_or_default();
    // Whoever waits for it sees the end of the pipe at least.
    let _ = fs::File::from(pipe).write_all(&text);
}

/// The host's null device, open both ways.
pub fn null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Starts the sandbox and serves it until it ends.
fn hold(plan: &Plan, filters: &Filters) -> Result<(), Refusal> {
    let home = plan.home();
    rustix::process::setsid().step("leave the starter's session")?;
    rustix::process::chdir("/").step("leave the starter's folder")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::set_rlimit(rustix::process::Resource::Core, 0).step("forbid core files")?;
    let _lock = lock(plan)?;
    // Under the lock, so that the plan kept is that of the sandbox that runs.
    write_atomically(&home.plan(), plan).step("keep the plan")?;
    let log = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let log = rustix::fs::open(home.log(), log, Mode::from_raw_mode(0o600)).step("open the log")?;
    sys::place_fd(log.as_fd(), 2).step("place the log")?;
    let null = null().step("open the null device")?;
    sys::place_fd(null.as_fd(), 0).step("place standard input")?;
    let _ = fs::remove_file(home.exit());

    let served = launch(plan, filters, || Ready::make(plan))
        .and_then(|(launched, ready)| serve(plan, launched, ready));
    for stale in [home.control_socket(), home.guest_socket(), home.state()] {
        let _ = fs::remove_file(stale);
    }
    Ok(served?)
}

fn lock(plan: &Plan) -> Result<OwnedFd, Refusal> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let lock = rustix::fs::open(plan.home().lock(), flags, Mode::from_raw_mode(0o600))
        .step("open the lock")?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Refusal::AlreadyRuns),
        Err(error) => Err(Refusal::Step(StepError {
            step: "take the lock",
            source: error.into(),
        })),
    }
}

/// What a supervisor serves with.
struct Ready {
    control: OwnedFd,
    runtime: tokio::runtime::Runtime,
}

impl Ready {
    /// Says who we are and opens the control socket. Whoever connects waits until it is served.
    fn make(plan: &Plan) -> Result<Self, StepError> {
        let home = plan.home();
        let pid = std::process::id();
        let state = State {
            supervisor_pid: pid,
            supervisor_start: sys::start_ticks(pid).step("read our start time")?,
            boot_id: sys::boot_id().step("read the boot id")?,
        };
        write_atomically(&home.state(), &state).step("write the state")?;
        let control = packet::listen(
            &home.control_socket(),
            SocketType::SEQPACKET,
            CONTROL_BACKLOG,
        )
        .step("open the control socket")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .step("start the runtime")?;
        Ok(Self { control, runtime })
    }
}

fn serve(plan: &Plan, launched: Launched, ready: Ready) -> Result<(), StepError> {
    let (home, Ready { control, runtime }) = (plan.home(), ready);
    // The pipe's other end may be gone with the server; the sandbox stays, as it was asked for.
    report(&Report::Started);
    let asked = runtime.block_on(tokio::task::LocalSet::new().run_until(async {
        match Service::new(&launched, control) {
            Ok(service) => service.run().await,
            Err(error) => {
                eprintln!("serve: {error}");
                false
            }
        }
    }));
    let status = end(launched);
    let exit = Exit {
        status,
        asked,
        unix_ms: sys::unix_ms(),
    };
    write_atomically(&home.exit(), &exit).step("write how it ended")
}

/// Kills what is left, takes its status, removes its groups and lets go of its disk.
fn end(launched: Launched) -> i32 {
    launched.init.kill();
    // A sandbox that sleeps must run to die, on cgroups v1.
    let _ = launched.group.freeze(false);
    let status = launched.init.reap().unwrap_or(-1);
    launched.group.kill();
    if let Err(error) = launched.group.remove() {
        eprintln!("remove the control groups: {error}");
    }
    launched.image.into_iter().for_each(Image::release);
    status
}
