//! Starting a process: a session of its own, the right user, nothing of ours inherited.
//!
//! Invariants: every descriptor of the guest is close-on-exec, so a child holds its three standard
//! ones only; it can gain no rights by `exec`; the kernel takes it before the guest when the
//! sandbox is out of memory; whoever it runs as, it leaves the guest room for a few processes more.
//!
//! An `exec` may take as long as a program in the sandbox wants (it can hold a lease on the file), so
//! nobody waits for it on the guest's only thread: [`spawn`] forks and returns, and what became of
//! the `exec` comes through a pipe.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use rustix::pipe::PipeFlags;
use rustix::process::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

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
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    /// Standard input is a terminal that becomes the one of the process's session.
    pub on_terminal: bool,
}

/// The last signal's number.
const SIGNAL_MAX: libc::c_int = 64;
/// Longest an `exec` is waited for: shorter than the host waits for an answer.
const EXEC_TIME_MAX: Duration = Duration::from_secs(20);

/// A process that has not necessarily become its program yet. The caller tracks the pid at once.
pub struct Spawned {
    pub pid: Pid,
    failure: pipe::Receiver,
}

impl Spawned {
    /// Waits until the process is its program.
    ///
    /// # Errors
    /// Those of the change of user, of `chdir` and of `exec` (`NotFound`: no such program); the
    /// process has ended then. `TimedOut` when it could not be told in time; it is killed then.
    pub async fn running(mut self) -> io::Result<()> {
        let mut code = [0; 4];
        match tokio::time::timeout(EXEC_TIME_MAX, self.failure.read_exact(&mut code)).await {
            Ok(Ok(_)) => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(code))),
            // The pipe closed with the exec.
            Ok(Err(_)) => Ok(()),
            Err(_) => {
                // Still tracked and ours: nobody else waits for it.
                let _ = rustix::process::kill_process(self.pid, rustix::process::Signal::KILL);
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}

/// Starts the process as leader of a new session and process group.
///
/// # Errors
/// Those of fork; all others are told by [`Spawned::running`].
pub fn spawn(program: Program<'_>) -> io::Result<Spawned> {
    let word = |word: &OsStr| CString::new(word.as_bytes());
    let path = word(program.program)?;
    let args: Vec<_> = program
        .args
        .iter()
        .map(|arg| word(arg))
        .collect::<Result<_, _>>()?;
    let pair = |(name, value): &(&OsStr, &OsStr)| {
        CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
    };
    let env: Vec<_> = program.env.iter().map(pair).collect::<Result<_, _>>()?;
    let cwd = word(program.cwd.as_os_str())?;
    let pointers = |words: &[CString]| words.iter().map(|word| word.as_ptr()).collect::<Vec<_>>();
    let null = std::ptr::null();
    let argv = [vec![path.as_ptr()], pointers(&args), vec![null]].concat();
    let envp = [pointers(&env), vec![null]].concat();
    let (failure, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let failure = pipe::Receiver::from_owned_fd(failure)?;
    let streams = [&program.stdin, &program.stdout, &program.stderr].map(AsRawFd::as_raw_fd);
    // SAFETY: the child makes system calls only, on memory that was allocated before the fork, and
    // leaves by `exec` or `_exit`.
    let pid = unsafe {
        match libc::fork() {
            0 => {
                let error = become_program(&program, streams, &cwd, &argv, &envp);
                let code = error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
                libc::write(theirs.as_raw_fd(), code.as_ptr().cast(), code.len());
                libc::_exit(127)
            }
            pid => pid,
        }
    };
    check(pid)?;
    let pid = Pid::from_raw(pid);
    let pid = pid.ok_or_else(|| io::Error::other("the kernel gave a process id out of range"))?;
    Ok(Spawned { pid, failure })
}

unsafe extern "C" {
    static mut environ: *const *const libc::c_char;
}

/// Runs in the child; returns only when it could not become the program. The order matters: what
/// needs root comes before the change of user, `chdir` after it so that the user's own rights decide.
unsafe fn become_program(
    program: &Program<'_>,
    streams: [libc::c_int; 3],
    cwd: &CString,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
) -> io::Error {
    let prepare = || -> io::Result<()> {
        // SAFETY: plain system calls on valid arguments.
        unsafe {
            for (number, stream) in (0..).zip(streams) {
                check(libc::dup2(stream, number))?;
            }
            // What is ignored would be inherited: Rust programs ignore SIGPIPE, and what a shell
            // starts in the background (a server, say) ignores SIGINT. Some numbers are nobody's.
            for signal in 1..=SIGNAL_MAX {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            check(libc::setsid())?;
            if program.on_terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            prefer_as_victim();
            if let Some(identity) = &program.identity {
                check(libc::setgroups(
                    identity.groups.len(),
                    identity.groups.as_ptr(),
                ))?;
                check(libc::setresgid(identity.gid, identity.gid, identity.gid))?;
                check(libc::setresuid(identity.uid, identity.uid, identity.uid))?;
            }
            // After the change of user, which would mark a user with too many for failure at exec.
            leave_room();
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            check(libc::chdir(cwd.as_ptr()))
        }
    };
    if let Err(error) = prepare() {
        return error;
    }
    let Some(path) = argv.first() else {
        return io::ErrorKind::InvalidInput.into();
    };
    // SAFETY: both lists end in a null, and live until the exec; nothing else runs in this copy. The
    // program is looked up in its own PATH, hence by way of `environ`.
    unsafe {
        environ = envp.as_ptr();
        libc::execvp(*path, argv.as_ptr());
    }
    io::Error::last_os_error()
}

/// Lowers the number of processes that this user may have below what the sandbox may: a program that
/// forks without end must not keep its owner from running another one. Several users together still
/// reach the sandbox's own limit.
unsafe fn leave_room() {
    // SAFETY: valid pointers to a local.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NPROC, &mut limit);
        let most = limit.rlim_max.min(oc_guest::TASKS_MAX);
        let most = most.saturating_sub(oc_guest::TASKS_RESERVED);
        limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: most,
        };
        libc::setrlimit(libc::RLIMIT_NPROC, &limit);
    }
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
