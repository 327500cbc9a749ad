//! One session: a process group, its pipes or its terminal, and the two tasks that serve it.
//!
//! *supervise* owns the process (time limits, exit); *pump* owns its output. Invariants: the
//! exit is told only after all output the process had written when it ended; a grandchild that
//! keeps a pipe open delays the exit by [`DRAIN_MAX`] at most, and is not killed by `SIGPIPE` for
//! it (its later output is read and dropped); a session never waits for a client except within
//! the bounds of [`output`].
//!
//! What a command leaves running when it ends runs on. Signals still reach it by the session's name
//! ([`Session::signal`]) for as long as that is known; after that it ends with the sandbox.

pub mod attach;
mod hang_up;
mod io;
mod members;
pub mod output;
mod pump;
mod scrollback;
pub mod start;
pub mod table;

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oc_guest::v1;
use rustix::process::Pid;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use crate::reaper::{self, Ended, Reaper};
use crate::terminal::{Size, Terminal};
use io::Input;
use output::{Exit, Output, READER_STALL_MAX};

/// How long after the process's end its pipes are still read when someone holds them open.
pub const DRAIN_MAX: Duration = Duration::from_millis(200);
/// Looks for groups to kill; new ones are found only while a program makes them on purpose.
const LOOKS_MAX: u32 = 8;

/// The two kinds of sessions; calls for one do not find the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Has pipes.
    Command,
    /// Has a terminal.
    Terminal,
}

/// See the module.
pub struct Session {
    pub id: String,
    pub kind: Kind,
    cmd: String,
    args: Vec<String>,
    started: SystemTime,
    one_shot: bool,
    pid: Pid,
    reaper: Arc<Reaper>,
    pub output: Arc<Output>,
    /// Taken when closed. The lock keeps concurrent clients' messages whole.
    stdin: tokio::sync::Mutex<Option<Input>>,
    /// Of a [`Kind::Terminal`] until its end.
    terminal: Mutex<Option<Arc<Terminal>>>,
    /// How many clients are attached.
    attached: watch::Sender<u32>,
    /// Set when the process has ended; the output may still be draining.
    ended: watch::Sender<Option<Exit>>,
    /// Processes of it may be there when the first one has ended, so that its number is still its own.
    /// Never set again once they were seen to be gone, since the number may be anybody's then.
    left: AtomicBool,
}

/// When a session's process is killed without anybody asking.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Counted from the start.
    pub timeout: Option<Duration>,
    /// Counted from when the last client detached; on a terminal, which nobody may ever attach
    /// to, from the start too.
    pub detached: Option<Duration>,
}

impl Session {
    /// What was asked for.
    pub fn cmd(&self) -> &str {
        &self.cmd
    }

    /// Sends a signal to the process group. `SIGKILL` to a command also goes to the groups that its
    /// jobs made for themselves, and so does every signal once the first process has ended. Nothing
    /// when nothing is left.
    pub fn signal(&self, signal: i32) {
        let runs = self.reaper.signal_group(self.pid, signal);
        let all = if runs {
            signal == libc::SIGKILL
        } else {
            self.left.load(Ordering::Relaxed)
        };
        if !all || self.kind == Kind::Terminal {
            return;
        }
        let mut told = BTreeSet::new();
        if runs {
            told.insert(self.pid.as_raw_nonzero().get());
        }
        for _ in 0..LOOKS_MAX {
            let new = &members::groups(self.pid) - &told;
            for group in &new {
                reaper::signal_group(*group, signal);
            }
            // What was being forked into a group of its own meanwhile is found by another look.
            if new.is_empty() || signal != libc::SIGKILL {
                return;
            }
            told.extend(new);
        }
    }

    /// Whether the first process has ended and others may be left.
    fn has_left_some(&self) -> bool {
        self.left.load(Ordering::Relaxed) && self.ended.borrow().is_some()
    }

    /// Writes to the process's stdin, waiting for room. Bytes for a process that has ended or
    /// closed its end are dropped, as a terminal would.
    pub async fn write_stdin(&self, data: &[u8]) {
        let mut stdin = self.stdin.lock().await;
        let Some(input) = stdin.as_mut() else { return };
        let open = tokio::select! {
            open = input.write_all(data) => open,
            () = self.until_ended() => false,
        };
        if !open {
            *stdin = None;
        }
    }

    /// The process reads end of file after what was written before. On a terminal, which others
    /// may type on, it means nothing.
    pub async fn close_stdin(&self) {
        if self.kind == Kind::Command {
            *self.stdin.lock().await = None;
        }
    }

    /// Changes the terminal's size; nothing once the shell has ended.
    pub fn resize(&self, size: Size) -> Result<(), Status> {
        let Some(terminal) = self.terminal() else {
            return Ok(());
        };
        let resized = terminal.resize(size);
        resized.map_err(|error| Status::internal(format!("can't resize the terminal: {error}")))
    }

    fn terminal(&self) -> Option<Arc<Terminal>> {
        let terminal = self.terminal.lock();
        terminal.unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn until_ended(&self) {
        // An error would mean that the sender, a field of self, is gone.
        let _ = self.ended.subscribe().wait_for(Option::is_some).await;
    }

    /// The state as the protocol shows it.
    pub fn info(&self) -> v1::SessionInfo {
        let exit = self.output.exit();
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        v1::SessionInfo {
            session_id: self.id.clone(),
            cmd: self.cmd.clone(),
            args: self.args.clone(),
            running: exit.is_none(),
            exit_code: exit.map_or(0, |exit| exit.code),
            started_unix_ms: u64::try_from(started.as_millis()).unwrap_or(u64::MAX),
            attached: *self.attached.borrow(),
            timed_out: exit.is_some_and(|exit| exit.timed_out),
        }
    }

    /// Waits for the process and kills it at its limits.
    async fn supervise(self: Arc<Self>, limits: Limits, mut ended: oneshot::Receiver<Ended>) {
        let mut timeout = limits.timeout.map(|limit| Instant::now() + limit);
        // Nobody but its starter knows a one-shot session: without it, it has no reason to run.
        let mut detached = self.one_shot.then(|| Instant::now() + READER_STALL_MAX);
        if self.kind == Kind::Terminal {
            detached = limits.detached.map(|limit| Instant::now() + limit);
        }
        let mut attached = self.attached.subscribe();
        let mut timed_out = false;
        let ended = loop {
            tokio::select! {
                ended = &mut ended => break ended,
                () = until(timeout) => {
                    timeout = None;
                    timed_out = true;
                    self.signal(libc::SIGKILL);
                }
                () = until(detached) => {
                    detached = None;
                    match self.kind {
                        Kind::Command => self.signal(libc::SIGKILL),
                        Kind::Terminal => drop(tokio::spawn(self.clone().hang_up())),
                    }
                }
                Ok(()) = attached.changed() => {
                    let alone = *attached.borrow_and_update() == 0;
                    detached = limits.detached.filter(|_| alone).map(|limit| Instant::now() + limit);
                }
            }
        };
        // A one-shot session is forgotten with its exit: nobody can ask for what it left. What a
        // terminal leaves was told to outlive it.
        let left =
            self.kind == Kind::Command && !self.one_shot && !members::groups(self.pid).is_empty();
        self.left.store(left, Ordering::Relaxed);
        self.ended
            .send_replace(Some(exit_of(ended.ok(), timed_out)));
        *self.stdin.lock().await = None;
        // The terminal goes back to the system now, not when the session is forgotten.
        *self.terminal.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Sleeps until `deadline`; forever without one.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

fn exit_of(ended: Option<Ended>, timed_out: bool) -> Exit {
    match ended {
        // The process may have ended by itself in the moment it was killed: then it was in time.
        Some(Ended { code, signal: 0 }) => Exit {
            code,
            signal: 0,
            timed_out: false,
        },
        Some(Ended { signal, .. }) if timed_out => Exit {
            code: -1,
            signal,
            timed_out,
        },
        Some(Ended { signal, .. }) => Exit {
            code: 128 + signal,
            signal,
            timed_out,
        },
        // The reaper is gone: the guest is ending.
        None => Exit {
            code: -1,
            signal: 0,
            timed_out,
        },
    }
}
