//! The process that supervisors are forked from.
//!
//! Loading this program takes longer than all else of a sandbox's start, and each copy of it would
//! have memory of its own for what loading fills in. So a server loads it once, as the spawner, and
//! every supervisor is a fork of that: made in a fraction of a millisecond, sharing its pages.
//!
//! ```text
//! server                                   spawner
//!   one packet: plan pipe, report pipe ──────▶ fork ─────▶ supervisor: reads the plan, reports
//!   end of the socket (it ended) ────────────▶ ends; the supervisors stay
//! ```
//!
//! Invariants: a spawner is single-threaded, knows no sandbox and reads no plan (its forks do);
//! a server has at most one, which ends with it; one that died is replaced at the next start.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::pipe::PipeFlags;
use serde::{Deserialize, Serialize};

use super::seccomp::Filters;
use super::supervisor::{Report, become_supervisor, null, report_to};
use super::{SUPERVISE_SUBCOMMAND, packet, sys};

/// How long a start may take before it is given up.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest report read, in bytes.
const REPORT_BYTES_MAX: u64 = 64 * 1024;
/// Starts tried: a second one when the spawner turned out to be gone.
const ATTEMPTS_MAX: usize = 2;

/// What a server sends, together with the reading end of the plan's pipe and the writing end of
/// the report's.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Start,
}

/// The server's end.
#[derive(Debug)]
pub struct Spawner {
    program: PathBuf,
    process: Mutex<Option<Process>>,
}

#[derive(Debug)]
struct Process {
    socket: OwnedFd,
    child: Child,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has nothing to finish, and what it forked is no part of it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Spawner {
    /// Starts `program` (an `oc`) as a spawner. When that fails, the first start tells.
    pub fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            process: Mutex::new(Process::start(program).ok()),
        }
    }

    /// Has a supervisor started that is given `plan`, and waits for its report. Blocks.
    pub fn start(&self, plan: &[u8]) -> io::Result<Report> {
        for _ in 1..ATTEMPTS_MAX {
            match self.try_start(plan) {
                // Nobody took the order to its end. Should a supervisor live all the same, the next
                // one finds its lock.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                done => return done,
            }
        }
        self.try_start(plan)
    }

    /// The program it is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The process, while there is one.
    pub fn pid(&self) -> Option<u32> {
        let process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        process.as_ref().map(|process| process.child.id())
    }

    fn try_start(&self, plan: &[u8]) -> io::Result<Report> {
        let (plan_out, plan_in) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (report_out, report_in) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        self.order(&[plan_out.as_fd(), report_in.as_fd()])?;
        drop((plan_out, report_in));
        std::fs::File::from(plan_in).write_all(plan)?;
        read_report(report_out.into())
    }

    fn order(&self, fds: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*process {
            match packet::send(&running.socket, &Order::Start, fds) {
                Err(error) if gone(&error) => *process = None,
                done => return done,
            }
        }
        let started = process.insert(Process::start(&self.program)?);
        packet::send(&started.socket, &Order::Start, fds)
    }
}

impl Process {
    fn start(program: &Path) -> io::Result<Self> {
        let (ours, theirs) = packet::pair()?;
        rustix::net::sockopt::set_socket_timeout(
            &ours,
            rustix::net::sockopt::Timeout::Send,
            Some(START_TIMEOUT),
        )?;
        let child = Command::new(program)
            .arg(SUPERVISE_SUBCOMMAND)
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // The server's environment may hold keys; a supervisor needs none of it.
            .env_clear()
            .spawn()?;
        Ok(Self {
            socket: ours,
            child,
        })
    }
}

fn gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

/// Reads a report to its end, at most [`START_TIMEOUT`] long.
fn read_report(mut pipe: std::fs::File) -> io::Result<Report> {
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
        if count == 0 && text.is_empty() {
            // Whoever was to write it died, perhaps before it began.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if count == 0 {
            return Ok(serde_json::from_slice(&text)?);
        }
        text.extend_from_slice(part.get(..count).unwrap_or_default());
        if text.len() as u64 > REPORT_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

/// Serves the server behind standard input until that ends. Returns in each fork as well, when its
/// sandbox has ended.
pub fn spawner_main() -> ExitCode {
    let prepared = || -> io::Result<Filters> {
        // Out of the server's session, so that a key pressed in its terminal is for it alone.
        rustix::process::setsid()?;
        rustix::process::chdir("/")?;
        // A huge page for a few kilobytes in each supervisor would be most of its memory.
        sys::huge_pages(false)?;
        // What was forked is nobody's to wait for.
        sys::reap_children_unseen(true);
        Filters::compile().map_err(io::Error::other)
    };
    let Ok(filters) = prepared() else {
        return ExitCode::FAILURE;
    };
    loop {
        let fds = match packet::recv::<Order>(io::stdin()) {
            Ok(Some((Order::Start, fds))) => fds,
            Ok(None) => return ExitCode::SUCCESS,
            Err(_) => return ExitCode::FAILURE,
        };
        let Ok([plan, report]) = <[OwnedFd; 2]>::try_from(fds) else {
            continue;
        };
        // SAFETY: this process has one thread.
        match unsafe { sys::fork() } {
            Ok(false) => {}
            Ok(true) => {
                let placed = place(plan, report);
                return placed.map_or(ExitCode::FAILURE, |()| become_supervisor(&filters));
            }
            Err(error) => report_to(report, &Report::Failed(format!("fork: {error}"))),
        }
    }
}

/// In the fork: the two pipes on 0 and 1, all else closed.
fn place(plan: OwnedFd, report: OwnedFd) -> io::Result<()> {
    sys::reap_children_unseen(false);
    sys::place_fd(plan.as_fd(), 0)?;
    sys::place_fd(report.as_fd(), 1)?;
    let null = null()?;
    sys::place_fd(null.as_fd(), 2)?;
    drop((plan, report, null));
    sys::close_from(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a program that is no spawner is an error at once, not a wait.
    #[test]
    fn what_does_not_serve_is_an_error() {
        let before = Instant::now();
        assert!(Spawner::new(Path::new("/bin/true")).start(b"{}").is_err());
        assert!(Spawner::new(Path::new("/nowhere")).start(b"{}").is_err());
        assert!(before.elapsed() < Duration::from_secs(10));
    }
}
