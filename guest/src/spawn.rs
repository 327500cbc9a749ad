//! Starting a process: a session of its own, the right user, nothing of ours inherited.
//!
//! Invariants: every descriptor of the guest is close-on-exec, so a child holds its three standard
//! ones only; it can gain no rights by `exec`; the kernel takes it before the guest when the
//! sandbox is out of memory.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Pid;

/// The user of a sandbox's processes, as uid and gid.
pub const SANDBOX_ID: u32 = 1000;

/// Whom a process runs as.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Whom the guest can run processes as, found once at start.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    /// The guest is root inside and the sandbox user exists in its user namespace. Otherwise (a
    /// rootless sandbox with one user) everything runs as the guest itself.
    can_switch: bool,
}

impl Rights {
    /// Looks at this process.
    pub fn find() -> Self {
        let root = rustix::process::geteuid().is_root();
        // Without /proc there is nothing to look at; the switch itself then tells.
        let mapped = std::fs::read_to_string("/proc/self/uid_map")
            .map_or(true, |map| is_mapped(&map, SANDBOX_ID));
        Self {
            can_switch: root && mapped,
        }
    }

    /// The sandbox user; `None` when processes run as the guest does.
    pub fn sandbox(self) -> Option<Identity> {
        let identity = Identity {
            uid: SANDBOX_ID,
            gid: SANDBOX_ID,
            groups: Vec::new(),
        };
        self.can_switch.then_some(identity)
    }

    /// Any other user.
    pub fn of(self, identity: Identity) -> Option<Identity> {
        self.can_switch.then_some(identity)
    }
}

fn is_mapped(uid_map: &str, uid: u32) -> bool {
    uid_map.lines().any(|line| {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        match (fields.next(), fields.next(), fields.next()) {
            (Some(Ok(inside)), Some(Ok(_)), Some(Ok(count))) => {
                (inside..inside.saturating_add(count)).contains(&u64::from(uid))
            }
            _ => false,
        }
    })
}

/// What to start.
pub struct Program<'a> {
    /// A path, or a name looked up in the `PATH` of `env`.
    pub program: &'a OsStr,
    pub args: Vec<&'a OsStr>,
    /// The whole environment.
    pub env: Vec<(&'a OsStr, &'a OsStr)>,
    pub cwd: &'a Path,
    /// `None`: as the guest itself.
    pub identity: Option<Identity>,
    pub stdin: Stdio,
    pub stdout: Stdio,
    pub stderr: Stdio,
}

/// Starts the process as leader of a new session and process group. The caller tracks the pid.
///
/// # Errors
/// Those of fork, of the change of user, of `chdir` and of `exec` (`NotFound`: no such program).
pub fn spawn(program: Program<'_>) -> io::Result<Pid> {
    let cwd = CString::new(program.cwd.as_os_str().as_bytes())?;
    let mut command = Command::new(program.program);
    command.args(program.args).env_clear().envs(program.env);
    command
        .stdin(program.stdin)
        .stdout(program.stdout)
        .stderr(program.stderr);
    let identity = program.identity;
    // SAFETY: between fork and exec the closure makes system calls only, on memory that was
    // allocated before the fork.
    unsafe { command.pre_exec(move || become_child(identity.as_ref(), &cwd)) };
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other("the kernel gave a process id out of range"))
}

/// Runs in the child. The order matters: what needs root comes before the change of user, `chdir`
/// after it so that the user's own rights decide.
fn become_child(identity: Option<&Identity>, cwd: &CString) -> io::Result<()> {
    // SAFETY: plain system calls on valid arguments.
    unsafe {
        check(libc::setsid())?;
        prefer_as_victim();
        if let Some(identity) = identity {
            check(libc::setgroups(
                identity.groups.len(),
                identity.groups.as_ptr(),
            ))?;
            check(libc::setresgid(identity.gid, identity.gid, identity.gid))?;
            check(libc::setresuid(identity.uid, identity.uid, identity.uid))?;
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        check(libc::chdir(cwd.as_ptr()))?;
    }
    Ok(())
}

/// Raises the process's out-of-memory score. Best effort: without /proc there is none to raise.
unsafe fn prefer_as_victim() {
    const SCORE: &[u8] = b"500";
    // SAFETY: valid pointers and lengths; the descriptor is closed here.
    unsafe {
        let flags = libc::O_WRONLY | libc::O_CLOEXEC;
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), flags);
        if file >= 0 {
            libc::write(file, SCORE.as_ptr().cast(), SCORE.len());
            libc::close(file);
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: single-user, full and split maps are told apart.
    #[test]
    fn uid_maps() {
        assert!(is_mapped("         0          0 4294967295\n", 1000));
        assert!(!is_mapped("0 1001 1\n", 1000));
        assert!(is_mapped("0 1001 1\n1 100000 65535\n", 1000));
        assert!(!is_mapped("garbage", 1000));
    }
}
