//! Who died: the one place of the guest that waits for processes.
//!
//! As PID 1 the guest inherits every orphan of the sandbox, so it waits for *any* child; elsewhere
//! (tests, a guest that isn't init) only for those it started. Invariants: processes are started
//! and waited for on the one runtime thread, so no exit status can be taken between `spawn` and
//! [`Reaper::track`]; a pid is signalled only
//! while tracked, that is not yet waited for, so a recycled pid is never hit.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, WaitOptions, WaitStatus};
use tokio::sync::oneshot;

/// How a process ended: exactly one of the two is not zero, or both are (success).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub code: i32,
    pub signal: i32,
}

/// See the module.
pub struct Reaper {
    init: bool,
    tracked: Mutex<HashMap<Pid, oneshot::Sender<Ended>>>,
}

impl Reaper {
    /// Starts the task that reaps. Must be called before the first process is started.
    pub fn start() -> io::Result<Arc<Self>> {
        let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child())?;
        let init = rustix::process::getpid() == Pid::INIT;
        let reaper = Arc::new(Self {
            init,
            tracked: Mutex::default(),
        });
        let task = reaper.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                task.reap();
            }
        });
        Ok(reaper)
    }

    fn tracked(&self) -> MutexGuard<'_, HashMap<Pid, oneshot::Sender<Ended>>> {
        self.tracked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when `pid`, just started by this thread, ends.
    pub fn track(&self, pid: Pid) -> oneshot::Receiver<Ended> {
        let (sender, receiver) = oneshot::channel();
        self.tracked().insert(pid, sender);
        receiver
    }

    /// Sends `signal` to the process group `pid` leads; false when that has been waited for, and
    /// nothing was sent.
    pub fn signal_group(&self, pid: Pid, signal: i32) -> bool {
        let tracked = self.tracked();
        let ours = tracked.contains_key(&pid);
        if ours {
            // The leader may be a zombie not yet waited for; its group is still its own.
            signal_group(pid.as_raw_nonzero().get(), signal);
        }
        ours
    }

    fn reap(&self) {
        let mut tracked = self.tracked();
        if self.init {
            while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                if let Some(sender) = tracked.remove(&pid) {
                    let _ = sender.send(ended(status));
                }
            }
            return;
        }
        let pids: Vec<Pid> = tracked.keys().copied().collect();
        for pid in pids {
            let waited = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
            if let Ok(Some((_, status))) = waited
                && let Some(sender) = tracked.remove(&pid)
            {
                let _ = sender.send(ended(status));
            }
        }
    }
}

/// Sends `signal` to a process group, if there is one of that number.
pub fn signal_group(group: i32, signal: i32) {
    // SAFETY: kill touches no memory. rustix has no type for real-time signals, hence libc.
    unsafe { libc::kill(-group, signal) };
}

fn ended(status: WaitStatus) -> Ended {
    Ended {
        code: status.exit_status().unwrap_or(0),
        signal: status.terminating_signal().unwrap_or(0),
    }
}
