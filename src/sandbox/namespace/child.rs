//! The launcher's inner half: from the first instruction in the new namespaces to the guest.
//!
//! It runs on a copy of the single-threaded supervisor and ends in `execve` or in `_exit`; it
//! never returns. Until the last steps it holds every capability over its own namespaces, so
//! nothing here reads a byte that a sandboxed program could have written.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Resource, Signal};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use super::rootfs::{Disk, Dress, Mounts};
use super::seccomp::Filters;
use super::sys::{Step, StepError};
use super::template::{GUEST_INSIDE, SANDBOX_UID};
use super::{cgroup, net, packet, rootfs, sys};
use crate::sandbox::{Enforcement, Limits};

/// What root inside may still do. Absent on purpose, among others: SYS_ADMIN, NET_ADMIN, NET_RAW,
/// SYS_PTRACE, MKNOD, SYS_CHROOT, SETPCAP, SETFCAP, AUDIT_WRITE.
const KEPT: [u32; 8] = [
    0,  // CHOWN
    1,  // DAC_OVERRIDE
    3,  // FOWNER
    4,  // FSETID
    5,  // KILL
    6,  // SETGID
    7,  // SETUID
    10, // NET_BIND_SERVICE
];
/// Open files of one process.
const OPEN_FILES_MAX: u64 = 65_536;
/// The guest finds its listening socket here.
const GUEST_FD: i32 = 3;

/// From the supervisor to the child.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToChild {
    /// Ids are mapped; as root the three mounts come with it. Build the tree.
    Build,
    /// The groups hold you, as far as said. Start the guest.
    Go(Limits),
}

/// From the child to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromChild {
    /// The network stands; its two sockets come with it unless it is switched off.
    Network,
    /// A step failed, and the child is gone.
    Failed(String),
}

/// What the child inherits.
#[derive(Debug)]
pub struct Child<'a> {
    pub plan: &'a Plan,
    pub socket: OwnedFd,
    pub guest_listener: OwnedFd,
    pub filters: &'a Filters,
}

impl Child<'_> {
    /// Becomes the sandbox's PID 1.
    pub fn run(self) -> ! {
        let error = match self.start() {
            Err(error) => error,
            Ok(never) => match never {},
        };
        let _ = packet::send(&self.socket, &FromChild::Failed(error.to_string()), &[]);
        // SAFETY: ends this copy of the process without running what the original registered.
        unsafe { libc::_exit(1) }
    }

    fn start(&self) -> Result<std::convert::Infallible, StepError> {
        let spec = &self.plan.spec;
        let sockets = net::set_up(spec.network)?;
        let fds: Vec<_> = sockets
            .iter()
            .flat_map(|s| [s.listener.as_fd(), s.names.as_fd()])
            .collect();
        packet::send(&self.socket, &FromChild::Network, &fds).step("hand the sockets out")?;
        drop(sockets);
        let (ToChild::Build, handed) = self.receive()? else {
            return Err(out_of_turn());
        };
        self.become_inner_user()?;
        let mounts = self.mounts(handed)?;
        let dress = Dress {
            cpu_count: spec.cpu_count,
            shm_mb: (spec.memory_mb / 2).max(16),
            tty_group: self.plan.privileged,
        };
        rootfs::enter(&mounts, dress)?;
        drop(mounts);
        rustix::system::sethostname(spec.id.as_str().as_bytes()).step("set the host name")?;
        let limits = match self.receive()? {
            (ToChild::Go(limits), _) => limits,
            (ToChild::Build, _) => return Err(out_of_turn()),
        };
        // After the groups were joined: this makes them the root of what is seen inside.
        unshare_cgroups().step("hide the control groups")?;
        self.limit(limits)?;
        self.take_places()?;
        self.exec_guest()
    }

    /// Waits for one message; the supervisor's death ends the child here.
    fn receive(&self) -> Result<(ToChild, Vec<OwnedFd>), StepError> {
        let message = packet::recv(&self.socket).step("wait for the supervisor")?;
        message.ok_or_else(out_of_turn)
    }

    fn become_inner_user(&self) -> Result<(), StepError> {
        let set = |call: libc::c_long, id: u32| {
            // SAFETY: plain integers. The raw call acts on this thread, the only one.
            let done = unsafe { libc::syscall(call, id, id, id) };
            if done == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        };
        if self.plan.privileged {
            rustix::thread::set_thread_groups(&[]).step("leave the host's groups")?;
            set(libc::SYS_setresgid, 0).step("become root's group inside")?;
            set(libc::SYS_setresuid, 0).step("become root inside")?;
        }
        // After the last change of identity, which would clear it. That the supervisor was still
        // alive is proven by the next message from it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .step("bind the sandbox's life to its supervisor's")
    }

    fn mounts(&self, handed: Vec<OwnedFd>) -> Result<Mounts, StepError> {
        if !self.plan.privileged {
            let disk: Disk = self.plan.home().disk();
            return Mounts::make(&self.plan.template(), &disk, None);
        }
        let [root, usr, guest]: [OwnedFd; 3] = handed
            .try_into()
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
            .step("take the mounts")?;
        Ok(Mounts { root, usr, guest })
    }

    /// Limits of each process, and in place of groups where those do not hold.
    fn limit(&self, held: Limits) -> Result<(), StepError> {
        sys::set_rlimit(Resource::Core, 0).step("forbid core files")?;
        sys::set_rlimit(Resource::Nofile, OPEN_FILES_MAX).step("limit open files")?;
        if held.pids == Enforcement::None || !self.plan.groups.counts_processes() {
            // The kernel counts these per user namespace, so that it holds for the sandbox.
            sys::set_rlimit(Resource::Nproc, cgroup::PIDS_MAX).step("limit processes")?;
        }
        if held.memory != Enforcement::Sandbox {
            let bytes = self.plan.spec.memory_mb * 1024 * 1024;
            sys::set_rlimit(Resource::Data, bytes).step("limit memory")?;
        }
        Ok(())
    }

    /// Standard streams on the sandbox's own null device, the guest's socket on 3, all else
    /// closed at exec: nothing of the host's is inherited.
    fn take_places(&self) -> Result<(), StepError> {
        use rustix::fs::{Mode, OFlags};
        // First 3: duplicating from 3 to 3 keeps it, and no source lies below it.
        sys::place_fd(self.guest_listener.as_fd(), GUEST_FD).step("place the guest's socket")?;
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .step("open the null device")?;
        for number in 0..3 {
            sys::place_fd(null.as_fd(), number).step("place the standard streams")?;
        }
        sys::cloexec_from(4).step("close what is the host's")
    }

    fn exec_guest(&self) -> Result<std::convert::Infallible, StepError> {
        let argument = |text: &str| {
            CString::new(text)
                .map_err(io::Error::from)
                .step("name the guest")
        };
        let program = argument(GUEST_INSIDE)?;
        let arguments = [argument("oc-guest")?];
        let environment = [
            argument("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")?,
            argument(&format!("OC_SANDBOX_UID={SANDBOX_UID}"))?,
        ];
        reset_signals();
        // The supervisor does without huge pages; the sandbox's programs shall have them.
        sys::huge_pages(true).step("allow huge pages")?;
        drop_capabilities().step("drop capabilities")?;
        rustix::thread::set_no_new_privs(true).step("forbid new privileges")?;
        self.filters.load()?;
        Err(sys::exec(&program, &arguments, &environment)).step("start the guest")
    }
}

fn out_of_turn() -> StepError {
    let source = io::Error::from(io::ErrorKind::UnexpectedEof);
    StepError {
        step: "wait for the supervisor",
        source,
    }
}

fn unshare_cgroups() -> io::Result<()> {
    // SAFETY: a cgroup namespace changes only what paths look like.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }?)
}

/// Default handling of every signal: Rust programs ignore SIGPIPE, and that would be inherited.
fn reset_signals() {
    // SAFETY: integers and a local set; no handler of ours is installed.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Takes all but [`KEPT`] out of the bounding set for good; the exec that follows computes the
/// guest's capabilities from it.
fn drop_capabilities() -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    for capability in 0..64u32 {
        if KEPT.contains(&capability) {
            continue;
        }
        // SAFETY: plain integers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            let error = io::Error::last_os_error();
            // The first number past the last capability of this kernel.
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(error);
        }
    }
    Ok(())
}
