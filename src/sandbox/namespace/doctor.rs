//! What this machine can do, found by doing it.
//!
//! The probes run in a process of their own (the hidden subcommand with `probe`), since making
//! namespaces needs a single-threaded one, and each is carried out for real on throw-away things.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};

use super::cgroup::Layout;
use super::launch::{NAMESPACES, map_ids};
use super::rootfs::{Disk, Mounts};
use super::sys::{self, Cloned, Step, StepError};
use super::template::Template;
use super::{SELF, SUPERVISE_SUBCOMMAND, host_ids, image, net, packet};
use crate::ids::SandboxId;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Whether it is as sandboxes need it.
    pub ok: bool,
    /// Whether no sandbox can run when it isn't.
    pub required: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub fix: Option<String>,
}

/// Probes this machine, by running this program once more.
pub fn doctor() -> Vec<Check> {
    doctor_by(Path::new(SELF))
}

/// Probes this machine by running `program`, an `oc`.
pub fn doctor_by(program: &Path) -> Vec<Check> {
    let output = Command::new(program)
        .args([SUPERVISE_SUBCOMMAND, "probe"])
        .stdin(Stdio::null())
        .env_clear()
        .output();
    let checks = output.and_then(|o| serde_json::from_slice(&o.stdout).map_err(io::Error::from));
    checks.unwrap_or_else(|error| {
        let fix = "run `oc supervise probe` by hand and read what it says";
        vec![required(check("probe", Err(error.to_string()), fix))]
    })
}

/// Prints the checks as JSON.
pub fn probe_main() -> ExitCode {
    match serde_json::to_string(&probe()) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn check(name: &str, found: Result<String, String>, fix: &str) -> Check {
    let ok = found.is_ok();
    let fix = (!ok).then(|| fix.to_owned());
    Check {
        name: name.to_owned(),
        ok,
        required: false,
        detail: found.unwrap_or_else(|why| why),
        fix,
    }
}

/// Without it no sandbox runs.
fn required(check: Check) -> Check {
    Check {
        required: true,
        ..check
    }
}

fn probe() -> Vec<Check> {
    let privileged = host_ids::can_be_given();
    let user = match privileged {
        true => {
            Ok("root: root inside a sandbox is an unprivileged user of this machine".to_owned())
        }
        false => Err("an ordinary user: no root inside, weaker limits".to_owned()),
    };
    let words = |result: Result<(), StepError>, good: &str| match result {
        Ok(()) => Ok(good.to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let namespaces = words(
        inside(privileged, || Ok(()), |_| Ok(())),
        "all kinds can be made",
    );
    let network = inside(privileged, || net::set_up(true).map(drop), |_| Ok(()));
    let network = words(
        network,
        "veth, nf_tables redirect and reject work in a sandbox's network",
    );
    vec![
        check(
            "user",
            user,
            "sandboxes run; start the server as root for full isolation",
        ),
        required(check(
            "namespaces",
            namespaces,
            "allow user namespaces: sysctl kernel.unprivileged_userns_clone=1, \
             user.max_user_namespaces above 0, and on Ubuntu \
             kernel.apparmor_restrict_unprivileged_userns=0; no sandbox runs without",
        )),
        required(check(
            "root file system",
            root_file_system(privileged),
            "needs overlayfs on a local disk, as root also idmapped mounts (Linux 5.19); \
             no sandbox runs without",
        )),
        required(check(
            "network",
            network,
            "load the kernel modules veth, nf_tables, nft_redir, nft_chain_nat, nft_ct, \
             nft_reject_inet; only sandboxes without network run without",
        )),
        check(
            "limits",
            limits(),
            "sandboxes run; run the server where it may make control groups \
             (as root, or with Delegate=yes in its systemd unit)",
        ),
        check(
            "disk limit",
            disk(privileged),
            "sandboxes run, and each may fill the disk of the data folder; as root, install \
             e2fsprogs and load the modules ext4 and loop",
        ),
    ]
}

fn disk(privileged: bool) -> Result<String, String> {
    match (privileged, image::possible()) {
        (true, Ok(())) => Ok("each sandbox has a file system of its own size".to_owned()),
        (true, Err(why)) => Err(why.to_owned()),
        (false, _) => Err("an ordinary user can't mount file systems".to_owned()),
    }
}

fn limits() -> Result<String, String> {
    let layout = Layout::detect("probe");
    let words = format!("control groups: {}; {:?}", layout.kind(), layout.limits());
    if layout.kind() == "none" {
        Err(words)
    } else {
        Ok(words)
    }
}

/// Makes a template and both overlays in a folder of its own.
fn root_file_system(privileged: bool) -> Result<String, String> {
    let dir = std::env::temp_dir().join(format!("oc-probe-{}", std::process::id()));
    let tried = || -> Result<(), StepError> {
        let template = Template::ensure(&dir, privileged).step("make the base template")?;
        let disk = Disk(dir.join("disk"));
        disk.prepare(&template, "probe", "", None)
            .step("prepare a disk")?;
        if !privileged {
            return inside(
                false,
                || Mounts::make(&template, &disk, None).map(drop),
                |_| Ok(()),
            );
        }
        let scratch = dir.join("scratch");
        std::fs::create_dir(&scratch).step("make a folder")?;
        inside(
            true,
            || Ok(()),
            |pid| {
                // SAFETY: a new mount namespace invalidates nothing this program holds.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
                    .step("leave the mount namespace")?;
                let all = rustix::mount::MountPropagationFlags::PRIVATE
                    | rustix::mount::MountPropagationFlags::REC;
                rustix::mount::mount_change("/", all).step("make mounts private")?;
                let userns = std::fs::File::open(format!("/proc/{pid}/ns/user")).step("open it")?;
                let made = Mounts::make(&template, &disk, Some((userns.as_fd(), &scratch)));
                // Attached below a folder that is removed right after.
                for layer in ["root", "additions", "usr"] {
                    let flags = rustix::mount::UnmountFlags::DETACH;
                    let _ = rustix::mount::unmount(scratch.join(layer), flags);
                }
                made.map(drop)
            },
        )
    };
    let result = tried();
    let _ = super::remove::remove_tree(&dir);
    let kind = if privileged { "idmapped" } else { "userxattr" };
    result
        .map(|()| format!("overlayfs, {kind}"))
        .map_err(|error| error.to_string())
}

/// Runs `within` in a child in new namespaces, then `beside` here while the child still lives.
fn inside(
    privileged: bool,
    within: impl FnOnce() -> Result<(), StepError>,
    beside: impl FnOnce(u32) -> Result<(), StepError>,
) -> Result<(), StepError> {
    let (ours, theirs): (OwnedFd, OwnedFd) = packet::pair().step("open a channel")?;
    // SAFETY: the probe process starts no thread.
    let cloned = unsafe { sys::clone3(NAMESPACES, None) }.step("make namespaces")?;
    let Cloned::Parent { pid, pidfd } = cloned else {
        drop(ours);
        let said = match packet::recv::<String>(&theirs) {
            Ok(Some(_)) => within().map_err(|e| e.to_string()),
            _ => Err("the probe was broken off".to_owned()),
        };
        let _ = packet::send(&theirs, &said, &[]);
        // The end of the channel is the leave to end.
        let _ = packet::recv::<String>(&theirs);
        // SAFETY: ends this copy without running what the original registered.
        unsafe { libc::_exit(0) }
    };
    drop(theirs);
    let exchange = || -> Result<(), StepError> {
        map_ids(
            pid,
            privileged.then(|| host_ids::first_of(&SandboxId::generate())),
        )?;
        packet::send(&ours, &"go", &[]).step("start the probe")?;
        let said = packet::recv::<Result<(), String>>(&ours).step("hear the probe")?;
        match said {
            Some((Ok(()), _)) => beside(pid),
            Some((Err(why), _)) => Err(io::Error::other(why)).step("inside"),
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)).step("hear the probe"),
        }
    };
    let result = exchange();
    drop(ours);
    let _ = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    result
}
