//! Who holds a sandbox: the lock of its folder, and the supervisor that is written down there.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, PidfdFlags, Signal};

use super::plan::{Home, State};
use super::sys;

/// How long a supervisor that is ending may take: what its sandbox wrote is written out first.
const GONE_TIMEOUT: Duration = Duration::from_secs(60);

/// Kills the supervisor a folder names, if that process is still the one that was written down.
pub(super) fn kill_recorded(home: &Home) {
    let Ok(text) = fs::read(home.state()) else {
        return;
    };
    let Ok(state) = serde_json::from_slice::<State>(&text) else {
        return;
    };
    let Some(pid) = Pid::from_raw(state.supervisor_pid as i32) else {
        return;
    };
    // Opened before the check: from then on the number can't be given to another process
    // without the check or the signal failing.
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let same = sys::start_ticks(state.supervisor_pid).ok() == Some(state.supervisor_start)
        && sys::boot_id().ok() == Some(state.boot_id);
    if same {
        let _ = rustix::process::pidfd_send_signal(pidfd.as_fd(), Signal::KILL);
    }
}

/// The supervisor that a folder names, if that process is still the one that was written down.
pub(super) fn supervisor_pid(home: &Home) -> Option<u32> {
    let state: State = serde_json::from_slice(&fs::read(home.state()).ok()?).ok()?;
    let same = sys::start_ticks(state.supervisor_pid).ok() == Some(state.supervisor_start)
        && sys::boot_id().ok() == Some(state.boot_id);
    same.then_some(state.supervisor_pid)
}

/// Whether a supervisor holds the folder's lock.
pub(super) fn is_held(home: &Home) -> bool {
    let Ok(lock) = fs::File::open(home.lock()) else {
        return false;
    };
    let free = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared);
    free == Err(rustix::io::Errno::WOULDBLOCK)
}

/// Waits until no supervisor holds the folder's lock.
pub(super) fn await_lock(home: &Home) -> io::Result<()> {
    let lock = match fs::File::open(home.lock()) {
        Ok(lock) => lock,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let deadline = Instant::now() + GONE_TIMEOUT;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error.into()),
        }
    }
}
