//! The launcher's outer half: makes the namespaces and everything the child can't make itself.
//!
//! The two halves work at the same time: while the child sets up its network, the groups are
//! joined (slow on v1) and the overlays are mounted here.
//!
//! ```text
//! supervisor                               child
//!   clone3 ───────────────────────────────▶ network: links, rules, two sockets
//!   id maps, disk, overlays                ──▶ Network + sockets
//!   Build + mounts ────────────────────────▶ identity, tree, pivot_root
//!   (thread) join the groups
//!   Go ────────────────────────────────────▶ limits, capabilities, filter, exec
//!   end of file: the exec happened
//! ```

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::mount::MountPropagationFlags;
use rustix::net::SocketType;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::thread::UnshareFlags;

use super::cgroup::Group;
use super::child::{Child, FromChild, ToChild};
use super::image::Image;
use super::net::Sockets;
use super::plan::Plan;
use super::rootfs::Mounts;
use super::seccomp::Filters;
use super::sys::{Cloned, Step, StepError};
use super::template::SANDBOX_UID;
use super::{host_ids, packet, sys};
use crate::sandbox::{Enforcement, Limits};

/// How long the child may take for one step.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);
/// Host connections that may wait for the guest.
const GUEST_BACKLOG: i32 = 64;
/// The namespaces of a sandbox. The cgroup one follows later, see [`super::child`].
pub const NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS) as u64;

/// A running sandbox, as its supervisor holds it.
#[derive(Debug)]
pub struct Launched {
    /// PID 1 of the sandbox.
    pub init: Init,
    /// Its control groups.
    pub group: Group,
    /// Which limits hold.
    pub limits: Limits,
    /// What leaves arrives here; `None` without network.
    pub sockets: Option<Sockets>,
    /// Its disk, where that is a file system of its own.
    pub image: Option<Image>,
}

/// The first process of a sandbox, our child.
#[derive(Debug)]
pub struct Init {
    /// Its number on the host.
    pub pid: u32,
    /// Readable once it has ended.
    pub pidfd: OwnedFd,
}

impl Init {
    /// Kills it, and with it every process of its namespace.
    pub fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Waits for its end and takes its status: exit code, or 128 and the signal.
    pub fn reap(&self) -> io::Result<i32> {
        let id = WaitId::PidFd(self.pidfd.as_fd());
        let status = rustix::process::waitid(id, WaitIdOptions::EXITED)?;
        let status = status.ok_or(io::ErrorKind::WouldBlock)?;
        let signal = status.terminating_signal().map(|signal| 128 + signal);
        Ok(status.exit_status().or(signal).unwrap_or(-1))
    }
}

/// Starts the sandbox, and does `meanwhile` while its first process becomes the guest. The caller
/// must be single-threaded. On failure nothing is left running.
pub fn launch<T>(
    plan: &Plan,
    filters: &Filters,
    meanwhile: impl FnOnce() -> Result<T, StepError>,
) -> Result<(Launched, T), StepError> {
    let home = plan.home();
    let group = plan.groups.group(&plan.spec.id);
    let limits = group.create(plan.spec.cpu_percent(), plan.spec.memory_mb);
    let guest_listener = packet::listen(&home.guest_socket(), SocketType::STREAM, GUEST_BACKLOG)
        .step("open the guest's socket")?;
    if plan.privileged {
        private_mounts().step("leave the host's mount namespace")?;
    }
    let (ours, theirs) = packet::pair().step("open a channel to the child")?;
    for side in [&ours, &theirs] {
        use rustix::net::sockopt::{Timeout, set_socket_timeout};
        set_socket_timeout(side, Timeout::Recv, Some(STEP_TIMEOUT)).step("bound the waiting")?;
    }
    let born_in = group.unified_dir();
    let first_id = plan.privileged.then(|| plan.first_id());
    // SAFETY: the supervisor has started no thread yet.
    let clone = || match unsafe { sys::clone3(NAMESPACES, born_in.as_ref().map(AsFd::as_fd)) } {
        // Not allowed to be born there: it will be moved, if that is allowed.
        Err(_) if born_in.is_some() => unsafe { sys::clone3(NAMESPACES, None) }.map(|c| (c, false)),
        other => other.map(|c| (c, born_in.is_some())),
    };
    let cloned = match first_id {
        Some(owner) => host_ids::as_owner(owner, clone),
        None => clone(),
    };
    let (init, born_in) = match cloned.step("make the namespaces (user namespaces allowed?)")? {
        (Cloned::Child, _) => {
            drop(ours);
            Child {
                plan,
                socket: theirs,
                guest_listener,
                filters,
            }
            .run()
        }
        (Cloned::Parent { pid, pidfd }, born_in) => (Init { pid, pidfd }, born_in),
    };
    drop((theirs, guest_listener));
    let mut launched = Launched {
        init,
        group,
        limits,
        sockets: None,
        image: None,
    };
    match finish(plan, &mut launched, &ours, born_in, meanwhile) {
        Ok(done) => Ok((launched, done)),
        Err(error) => {
            launched.init.kill();
            let _ = launched.init.reap();
            let _ = launched.group.remove();
            launched.image.into_iter().for_each(Image::release);
            Err(error)
        }
    }
}

fn finish<T>(
    plan: &Plan,
    launched: &mut Launched,
    child: &OwnedFd,
    born_in: bool,
    meanwhile: impl FnOnce() -> Result<T, StepError>,
) -> Result<T, StepError> {
    let Launched {
        init,
        group,
        limits,
        sockets,
        image,
    } = launched;
    let done = std::thread::scope(|scope| {
        let joining = scope.spawn(|| {
            group.adopt(init.pid, born_in, limits);
            *limits
        });
        *image = build(plan, init.pid, child)?;
        *sockets = match receive(child)? {
            Some(fds) => match <[OwnedFd; 2]>::try_from(fds) {
                Ok([listener, names]) => Some(Sockets { listener, names }),
                Err(_) => None,
            },
            None => return Err(died()),
        };
        let held = joining.join().map_err(|_| died())?;
        packet::send(child, &ToChild::Go(held), &[]).step("let the child go on")?;
        let done = meanwhile()?;
        // The child's end closes at its exec: the end of the channel is the success.
        match receive(child)? {
            None => Ok(done),
            Some(_) => Err(died()),
        }
    })?;
    if launched.image.is_some() {
        launched.limits.disk = Enforcement::Sandbox;
    } else {
        launched.limits.disk = Enforcement::None;
    }
    Ok(done)
}

/// Maps the ids and hands in what has to be made outside; answers with the disk, where it is a file
/// system of its own.
fn build(plan: &Plan, pid: u32, child: &OwnedFd) -> Result<Option<Image>, StepError> {
    let (disk, template, spec) = (plan.home().disk(), plan.template(), &plan.spec);
    let owner = plan.privileged.then(|| plan.first_id());
    map_ids(pid, owner)?;
    let image = match plan.privileged {
        true => Image::provide(&plan.home(), plan.blank.as_deref())?,
        false => None,
    };
    disk.prepare(&template, spec.id.as_str(), &spec.ca_pem, owner)
        .step("prepare the disk")?;
    if !plan.privileged {
        packet::send(child, &ToChild::Build, &[]).step("let the child build")?;
        return Ok(None);
    }
    let userns = fs::File::open(format!("/proc/{pid}/ns/user")).step("open the user namespace")?;
    let scratch = scratch().step("make a place for layers")?;
    let mounts = Mounts::make(&template, &disk, Some((userns.as_fd(), &scratch)))?;
    let fds = [
        mounts.root.as_fd(),
        mounts.usr.as_fd(),
        mounts.guest.as_fd(),
    ];
    packet::send(child, &ToChild::Build, &fds).step("hand the mounts in")?;
    Ok(image)
}

/// Fresh memory in this process' own mount namespace; `/mnt` exists on every host that follows
/// the hierarchy standard, `/tmp` on every other.
fn scratch() -> io::Result<std::path::PathBuf> {
    let at = ["/mnt", "/tmp"]
        .into_iter()
        .find(|path| std::path::Path::new(path).is_dir());
    let at = at.ok_or(io::ErrorKind::NotFound)?;
    let quiet = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    rustix::mount::mount(
        "tmpfs",
        at,
        "tmpfs",
        quiet,
        c"mode=700,size=64k,nr_inodes=16",
    )?;
    Ok(at.into())
}

/// Sockets of the `Network` message, `None` at the end of the channel.
fn receive(child: &OwnedFd) -> Result<Option<Vec<OwnedFd>>, StepError> {
    match packet::recv(child).step("wait for the child")? {
        None => Ok(None),
        Some((FromChild::Network, fds)) => Ok(Some(fds)),
        Some((FromChild::Failed(why), _)) => Err(io::Error::other(why)).step("start inside"),
    }
}

fn died() -> StepError {
    StepError {
        step: "start inside",
        source: io::Error::other("the first process died early"),
    }
}

fn private_mounts() -> io::Result<()> {
    // SAFETY: a new mount namespace invalidates nothing this program holds.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", all)?)
}

/// Gives the child's user namespace its ids: the unprivileged ones from `first` on, or as an
/// ordinary user only our own, which is the user `sandbox` inside.
pub fn map_ids(pid: u32, first: Option<u32>) -> Result<(), StepError> {
    let write = |file: &str, text: String| fs::write(format!("/proc/{pid}/{file}"), text);
    if let Some(first) = first {
        let map = format!("0 {first} {}", host_ids::COUNT);
        write("uid_map", map.clone()).step("map user ids")?;
        return write("gid_map", map).step("map group ids");
    }
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    write("setgroups", "deny".to_owned()).step("forbid setgroups, as the kernel demands")?;
    write("uid_map", format!("{SANDBOX_UID} {} 1", uid.as_raw())).step("map the user id")?;
    write("gid_map", format!("{SANDBOX_UID} {} 1", gid.as_raw())).step("map the group id")
}
