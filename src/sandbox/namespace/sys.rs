//! The system calls neither `std` nor `rustix` offers, each in one small safe function.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Which step of a launch failed, in words an operator can act on.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct StepError {
    /// What was tried.
    pub step: &'static str,
    /// The system's reason.
    pub source: io::Error,
}

/// Names the step an error happened in.
pub trait Step<T> {
    /// Wraps the error, if there is one, with the step's name.
    fn step(self, step: &'static str) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: &'static str) -> Result<T, StepError> {
        self.map_err(|e| StepError {
            step,
            source: e.into(),
        })
    }
}

/// The two sides of [`clone3`].
pub enum Cloned {
    /// In the new process.
    Child,
    /// In the caller: the child's id and a descriptor that stays its own.
    Parent { pid: u32, pidfd: OwnedFd },
}

/// The kernel's `struct clone_args`, second published version (cgroup is in the third).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `libc` has it as a number too small to hold it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Starts a child in new namespaces (`CLONE_NEW*` in `flags`), inside `cgroup` if one is given.
///
/// # Safety
/// The caller must be single-threaded: the child is a copy of it that goes on allocating.
pub unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: std::ptr::addr_of_mut!(pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` is a valid clone_args of the given size; without CLONE_VM the child gets its
    // own copy of memory and returns here on the same stack.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => {
            // SAFETY: on success the kernel stored a fresh descriptor that only we own.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent {
                pid: pid as u32,
                pidfd,
            })
        }
    }
}

/// Changes attributes of a mount (`MOUNT_ATTR_*`), or its id mapping when `userns` is given.
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    userns: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut attr: libc::mount_attr = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    if let Some(userns) = userns {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = userns.as_raw_fd() as u64;
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string and `attr` a valid mount_attr of the given size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::addr_of!(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Closes every descriptor from `first` on.
pub fn close_from(first: u32) -> io::Result<()> {
    close_range(first, 0)
}

/// Marks every descriptor from `first` on as closed by the next exec.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, flags: u32) -> io::Result<()> {
    // SAFETY: no memory is passed. Whoever calls `close_from` owns no descriptor above `first`.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes `fd` available under `number` across exec, replacing what was there.
pub fn place_fd(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        return Ok(());
    }
    // SAFETY: plain integers; the launcher keeps no owner of `number`.
    let done = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    if done >= 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Replaces the process by `program`. Returns only when that failed.
pub fn exec(program: &CString, args: &[CString], env: &[CString]) -> io::Error {
    let null = std::ptr::null();
    let argv: Vec<_> = args.iter().map(|a| a.as_ptr()).chain([null]).collect();
    let envp: Vec<_> = env.iter().map(|e| e.as_ptr()).chain([null]).collect();
    // SAFETY: all three are valid, null-terminated and live across the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Forks. `true` in the child.
///
/// # Safety
/// The caller must be single-threaded.
pub unsafe fn fork() -> io::Result<bool> {
    // SAFETY: the caller promises that no other thread holds a lock the child would miss.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(true),
        _ => Ok(false),
    }
}

/// Whether memory of this process (and of what it forks and becomes) may come in huge pages.
pub fn huge_pages(allowed: bool) -> io::Result<()> {
    let disabled = libc::c_ulong::from(!allowed);
    // SAFETY: plain integers.
    let done = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, disabled, 0, 0, 0) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether children vanish as they end, instead of waiting to be waited for.
pub fn reap_children_unseen(unseen: bool) {
    let way = if unseen { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: no handler is installed, only one of the two fixed dispositions.
    unsafe { libc::signal(libc::SIGCHLD, way) };
}

/// Sets soft and hard limit of `resource` to `value`, or to the hard limit if that is lower:
/// raising one needs a capability that even root may lack.
pub fn set_rlimit(resource: rustix::process::Resource, value: u64) -> io::Result<()> {
    let hard = rustix::process::getrlimit(resource)
        .maximum
        .unwrap_or(u64::MAX);
    let value = Some(value.min(hard));
    rustix::process::setrlimit(
        resource,
        rustix::process::Rlimit {
            current: value,
            maximum: value,
        },
    )
    .map_err(io::Error::from)
}

/// The number of a loop device that nobody uses.
pub fn loop_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
    // SAFETY: no memory is passed.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// The kernel's `struct loop_config` with the `struct loop_info64` in it.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    numbers: [u64; 5],
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names_and_key: [u8; 64 + 64 + 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

/// Puts `file` behind a loop device, past the page cache where that can be, until the last user
/// of the device is gone.
pub fn loop_configure(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
    const AUTOCLEAR: u32 = 4;
    const DIRECT_IO: u32 = 16;
    let config = LoopConfig {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: 4096,
        numbers: [0; 5],
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: AUTOCLEAR | DIRECT_IO,
        names_and_key: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    const { assert!(size_of::<LoopConfig>() == 304) };
    // SAFETY: `config` is a valid loop_config, which the kernel only reads.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &config) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes the ext4 that `top` lies in drop what it has not written, and refuse everything from then
/// on.
pub fn ext4_shutdown(top: BorrowedFd<'_>) -> io::Result<()> {
    const EXT4_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587D;
    const NO_LOG_FLUSH: u32 = 2;
    // SAFETY: the kernel reads one integer.
    let done = unsafe { libc::ioctl(top.as_raw_fd(), EXT4_IOC_SHUTDOWN, &NO_LOG_FLUSH) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `/proc/self/fd/<fd>`: names what a descriptor is open on, whatever the length of its path.
pub fn fd_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Field 22 of `/proc/<pid>/stat`: when the process started, in clock ticks since boot. With the
/// boot id it tells a process from a later one that got the same number.
pub fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command name (field 2) may hold blanks and parentheses: count from its last ')'.
    let fields = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest)
        .unwrap_or_default();
    let field = fields.split_ascii_whitespace().nth(19);
    field
        .and_then(|f| f.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Identifies this boot of the machine.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Milliseconds of the Unix epoch.
pub fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map(|d| d.as_millis() as u64)
        .unwrap_or_default()
}

/// Has the file system that `fd` is on take no writes, with all that was written on its disk
/// (`FIFREEZE`), or lets it go on (`FITHAW`).
pub fn freeze_file_system(fd: BorrowedFd<'_>, frozen: bool) -> io::Result<()> {
    const FIFREEZE: libc::c_ulong = 0xC004_5877;
    const FITHAW: libc::c_ulong = 0xC004_5878;
    let request = if frozen { FIFREEZE } else { FITHAW };
    // SAFETY: both take no argument.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request as _, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_ticks_tell_this_process_from_none() {
        let own = start_ticks(std::process::id()).unwrap();
        assert!(own > 0);
        assert_eq!(own, start_ticks(std::process::id()).unwrap());
        assert!(start_ticks(u32::MAX).is_err());
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
