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
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::SocketType;
use serde::{Deserialize, Serialize};

use super::image::Image;
use super::launch::{Launched, launch};
use super::plan::{PLAN_BYTES_MAX, Plan, State, write_atomically};
use super::serve::Service;
use super::sys::{Step, StepError};
use super::{doctor, packet, sys};

/// Servers that may wait to be heard.
const CONTROL_BACKLOG: i32 = 16;
/// How long a start may take before it is given up.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest report read, in bytes.
const REPORT_BYTES_MAX: u64 = 64 * 1024;

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
/// a thread. Without words it reads a plan and becomes a supervisor; with `probe` it prints what
/// this machine can do.
pub fn supervisor_main(args: &[String]) -> ExitCode {
    if sys::close_from(3).is_err() {
        return ExitCode::FAILURE;
    }
    match args.first().map(String::as_str) {
        None => become_supervisor(),
        Some("probe") => doctor::probe_main(),
        Some(_) => ExitCode::from(2),
    }
}

fn become_supervisor() -> ExitCode {
    let plan = match read_plan() {
        Ok(plan) => plan,
        Err(error) => return report(&Report::Failed(error.to_string())),
    };
    // The first process ends at once, so that whoever started it has no child to wait for and
    // its end is no business of ours.
    // SAFETY: no thread has been started.
    match unsafe { sys::fork() } {
        Err(error) => return report(&Report::Failed(format!("fork: {error}"))),
        Ok(false) => return ExitCode::SUCCESS,
        Ok(true) => {}
    }
    match hold(&plan) {
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

/// Reads a report to its end, at most [`START_TIMEOUT`] long.
pub fn read_report(mut pipe: std::process::ChildStdout) -> io::Result<Report> {
    let deadline = Instant::now() + START_TIMEOUT;
    let mut text = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = rustix::event::Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [rustix::event::PollFd::new(
            &pipe,
            rustix::event::PollFlags::IN,
        )];
        if rustix::event::poll(&mut fds, Some(&wait))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut part = [0; 1024];
        let count = pipe.read(&mut part)?;
        if count == 0 {
            return Ok(serde_json::from_slice(&text)?);
        }
        text.extend_from_slice(part.get(..count).unwrap_or_default());
        if text.len() as u64 > REPORT_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

fn null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Starts the sandbox and serves it until it ends.
fn hold(plan: &Plan) -> Result<(), Refusal> {
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

    let launched = launch(plan)?;
    let served = serve(plan, launched);
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

fn serve(plan: &Plan, launched: Launched) -> Result<(), StepError> {
    let home = plan.home();
    let started = || -> Result<_, StepError> {
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
        Ok((control, runtime))
    };
    let (control, runtime) = match started() {
        Ok(both) => both,
        Err(error) => {
            end(launched);
            return Err(error);
        }
    };
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
