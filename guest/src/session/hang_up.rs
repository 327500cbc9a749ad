//! The end of a terminal, as when its window is closed.
//!
//! The shell and what runs in the foreground are told (`SIGHUP`, and `SIGCONT` for what is stopped);
//! what of them is still there after [`GRACE`] is killed. A shell tells its other jobs itself, and a
//! program that was started to outlive its terminal (`nohup`, `setsid`) does.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep, timeout_at};

use super::Session;
use super::members::{Process, living};

/// How long the shell and the foreground may take to end by themselves.
pub const GRACE: Duration = Duration::from_secs(1);
/// Pause between two looks at what is left.
const LOOK: Duration = Duration::from_millis(20);

impl Session {
    /// Returns when the shell and what ran in the foreground have ended.
    pub async fn hang_up(self: Arc<Self>) {
        let deadline = Instant::now() + GRACE;
        let foreground = self.terminal().and_then(|terminal| terminal.foreground());
        let foreground = foreground.filter(|group| *group != self.pid);
        if let Some(group) = foreground {
            signal_members(self.pid, group, &[Signal::HUP, Signal::CONT]);
        }
        self.signal(libc::SIGHUP);
        self.signal(libc::SIGCONT);
        if timeout_at(deadline, self.until_ended()).await.is_err() {
            self.signal(libc::SIGKILL);
            self.until_ended().await;
        }
        let Some(group) = foreground else { return };
        while !members(self.pid, group).is_empty() {
            if Instant::now() >= deadline {
                signal_members(self.pid, group, &[Signal::KILL]);
                return;
            }
            sleep(LOOK).await;
        }
    }
}

/// Signals each process of a group that is still in the session. A group that the terminal names may
/// be long gone and its number another's by now; a session's number is its own for as long as it has
/// a process.
fn signal_members(session: Pid, group: Pid, signals: &[Signal]) {
    for pid in members(session, group) {
        for signal in signals {
            // It may have ended in this moment.
            let _ = kill_process(pid, *signal);
        }
    }
}

/// The living processes of a group in a session.
fn members(session: Pid, group: Pid) -> Vec<Pid> {
    let wanted = |process: &Process| (process.group, process.session) == (group, session);
    living().filter(wanted).map(|process| process.pid).collect()
}
