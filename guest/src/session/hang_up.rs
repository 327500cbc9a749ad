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

/// The living processes of a group in a session; none without `/proc`.
fn members(session: Pid, group: Pid) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let wanted = (group.as_raw_nonzero().get(), session.as_raw_nonzero().get());
    pids.filter(|pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| group_and_session(&stat) == Some(wanted))
    })
    .filter_map(Pid::from_raw)
    .collect()
}

/// Of a line of `/proc/<pid>/stat`; `None` for a process that has ended. The second field is a name
/// in parentheses that may hold anything, parentheses too.
fn group_and_session(stat: &str) -> Option<(i32, i32)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let (_parent, group, session) = (fields.next()?, fields.next()?, fields.next()?);
    match state {
        "Z" | "X" => None,
        _ => Some((group.parse().ok()?, session.parse().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_read_whatever_the_name() {
        for (line, expected) in [
            ("12 (sleep) S 1 7 5 34816 7 0", Some((7, 5))),
            ("12 (a) S 1 2 3) R 1 7 5 0", Some((7, 5))),
            ("12 (gone) Z 1 7 5 0", None),
            ("12 (cut) S 1", None),
            ("", None),
        ] {
            assert_eq!(group_and_session(line), expected, "{line}");
        }
    }
}
