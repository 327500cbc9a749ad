//! The file systems of a sandbox: two overlays, a few kernel file systems, and nothing else.
//!
//! ```text
//! /            overlay: template/root        + disk/root/upper   (private, writable, kept)
//! /usr         overlay: template/usr : /usr  + disk/usr/upper    (private, writable, kept)
//! /dev         tmpfs with six harmless nodes, own pts and shm
//! /proc        of the sandbox's own process namespace; kernel parts masked or read-only
//! /sys         empty but for the number of CPUs, read-only
//! /run         tmpfs; /run/oc/guest is the guest program, read-only
//! ```
//!
//! As root the overlays are made outside, by the supervisor, over lower layers whose owners are
//! shifted into the sandbox's range, and handed in as detached mounts: the launcher inside never
//! needs a path of the host. As an ordinary user they are made inside, with `userxattr`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::java::{TRUST_STORE, entries, trust_store};
use super::sys::{Step, StepError, fd_path, mount_setattr};
use super::template::{GUEST_FILE, GUEST_INSIDE, SYSTEM_BUNDLE, Template};

/// Inside, programs find the bundle of all roots also here.
const EXTRA_BUNDLE: &str = "local/share/ca-certificates/opensandbox-proxy.crt";
/// The sandbox's own certificate alone, so that `update-ca-certificates` keeps it.
const OWN_CERTIFICATE: &str = "local/share/ca-certificates/opensandbox-ca.crt";
/// Nodes of `/dev` every program may use.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Terminals at once; without it one sandbox could take all that the machine has.
const TERMINALS_MAX: u32 = 256;
/// Kernel interfaces of no use to a sandbox: replaced by an empty file.
const MASKED_FILES: [&str; 13] = [
    "kcore",
    "keys",
    "key-users",
    "kallsyms",
    "kmsg",
    "kpagecgroup",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "sched_debug",
    "slabinfo",
    "timer_list",
    "vmallocinfo",
];
/// Likewise, folders.
const MASKED_DIRS: [&str; 7] = [
    "acpi",
    "asound",
    "dynamic_debug",
    "pressure",
    "scsi",
    "tty",
    "bus",
];
/// Readable, since programs read them, but never writable. The last two are the guest's: root inside
/// could make it the first to go when memory is short.
const READ_ONLY: [&str; 7] = [
    "sys",
    "fs",
    "irq",
    "driver",
    "sysrq-trigger",
    "1/oom_score_adj",
    "1/oom_adj",
];

/// The folders of one sandbox's disk.
#[derive(Debug, Clone)]
pub struct Disk(pub PathBuf);

impl Disk {
    fn upper(&self, layer: &str) -> PathBuf {
        self.0.join(layer).join("upper")
    }

    fn work(&self, layer: &str) -> PathBuf {
        self.0.join(layer).join("work")
    }

    /// Makes what is missing and writes the files that are the sandbox's own. `owner` is root
    /// inside as the host sees it, `None` when everything is this process' user's.
    pub fn prepare(
        &self,
        template: &Template,
        host_name: &str,
        ca_pem: &str,
        owner: Option<u32>,
    ) -> io::Result<()> {
        let private = |path: &Path| {
            fs::DirBuilder::new()
                .mode(0o755)
                .recursive(true)
                .create(path)
        };
        let own = |path: &Path| owner.map_or(Ok(()), |uid| chown(path, Some(uid), Some(uid)));
        for layer in ["root", "usr"] {
            private(&self.work(layer))?;
            let upper = self.upper(layer);
            let fresh = !upper.exists();
            private(&upper)?;
            if fresh {
                own(&upper)?;
            }
        }
        // On a restart these folders belong to what ran inside: it may have put links there,
        // which a write from outside must not follow. So files are written once only.
        let (root, usr, prepared) = (
            self.upper("root"),
            self.upper("usr"),
            self.0.join("prepared"),
        );
        if prepared.exists() {
            return Ok(());
        }
        let write = |base: &Path, path: &str, bytes: &[u8]| -> io::Result<()> {
            let mut dir = base.to_owned();
            let (parents, _) = path.rsplit_once('/').unwrap_or_default();
            for part in parents.split('/') {
                dir.push(part);
                if !dir.exists() {
                    private(&dir)?;
                    own(&dir)?;
                }
            }
            let file = base.join(path);
            fs::write(&file, bytes)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
            own(&file)
        };
        let mut bundle = fs::read(&template.bundle)?;
        bundle.push(b'\n');
        bundle.extend_from_slice(ca_pem.as_bytes());
        write(&usr, EXTRA_BUNDLE, &bundle)?;
        write(&usr, OWN_CERTIFICATE, ca_pem.as_bytes())?;
        write(&root, SYSTEM_BUNDLE, &bundle)?;
        if template.has_java() {
            // A template of an earlier version does not have them ready.
            let roots = match fs::read(&template.java_roots) {
                Ok(roots) => roots,
                Err(_) => entries(&fs::read(&template.bundle)?),
            };
            write(&root, TRUST_STORE, &trust_store(&roots, ca_pem.as_bytes()))?;
        }
        let hosts = format!("127.0.0.1\tlocalhost\n127.0.1.1\t{host_name}\n");
        write(&root, "etc/hosts", hosts.as_bytes())?;
        write(&root, "etc/hostname", format!("{host_name}\n").as_bytes())?;
        fs::write(prepared, "")
    }
}

/// The three mounts a sandbox is made of, attached nowhere yet.
#[derive(Debug)]
pub struct Mounts {
    /// `/`
    pub root: OwnedFd,
    /// `/usr`
    pub usr: OwnedFd,
    /// A folder that holds the guest program, read-only.
    pub guest: OwnedFd,
}

impl Mounts {
    /// Made in the caller's mount namespace, which must be private. With `idmap`, owners of the
    /// lower layers are shifted as that user namespace says; `scratch` is then an empty folder
    /// to attach them below. Without it the overlays keep their marks in `user.*` attributes.
    pub fn make(
        template: &Template,
        disk: &Disk,
        idmap: Option<(BorrowedFd<'_>, &Path)>,
    ) -> Result<Self, StepError> {
        let lower = |path: &Path, name: &str| -> Result<OwnedFd, StepError> {
            match idmap {
                Some((userns, scratch)) => shifted(path, userns, &scratch.join(name)),
                None => open_dir(path).step("open a layer"),
            }
        };
        let synthetic = lower(&template.root, "root")?;
        let additions = lower(&template.usr, "additions")?;
        let host = lower(Path::new("/usr"), "usr")?;
        let user = idmap.is_none();
        let root = overlay(&[&synthetic], disk, "root", user).step("mount the root overlay")?;
        let usr =
            overlay(&[&additions, &host], disk, "usr", user).step("mount the /usr overlay")?;
        let guest = guest_layer(template).step("mount the guest program")?;
        Ok(Self { root, usr, guest })
    }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// A copy of the mount at `path`, without anything mounted below it.
fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// `path` with its owners shifted by `userns`, attached at `at`: older kernels take only attached
/// mounts as layers.
fn shifted(path: &Path, userns: BorrowedFd<'_>, at: &Path) -> Result<OwnedFd, StepError> {
    let mount = clone_mount(path).step("take a layer")?;
    mount_setattr(mount.as_fd(), false, libc::MOUNT_ATTR_RDONLY, Some(userns))
        .step("shift the owners of a layer (idmapped mount, Linux 5.19 for overlays)")?;
    fs::create_dir(at).step("make a place for a layer")?;
    attach(&mount, at).step("attach a layer")?;
    open_dir(at).step("open a layer")
}

fn attach(mount: &OwnedFd, at: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(
        mount,
        "",
        CWD,
        at,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

fn overlay(lowers: &[&OwnedFd], disk: &Disk, layer: &str, user: bool) -> io::Result<OwnedFd> {
    use rustix::mount::{fsconfig_create, fsconfig_set_flag, fsconfig_set_string};
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // Descriptors instead of paths: those may hold any character, and be longer than the 255
    // bytes a mount option may have.
    let lower: Vec<String> = lowers.iter().map(fd_path).collect();
    let (upper, work) = (open_dir(&disk.upper(layer))?, open_dir(&disk.work(layer))?);
    fsconfig_set_string(&fs, "source", "oc")?;
    fsconfig_set_string(&fs, "lowerdir", lower.join(":"))?;
    fsconfig_set_string(&fs, "upperdir", fd_path(&upper))?;
    fsconfig_set_string(&fs, "workdir", fd_path(&work))?;
    if user {
        fsconfig_set_flag(&fs, "userxattr")?;
    }
    fsconfig_create(&fs)?;
    let safe = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(rustix::mount::fsmount(
        &fs,
        FsMountFlags::FSMOUNT_CLOEXEC,
        safe,
    )?)
}

/// An overlay, although nothing is laid over anything: the mount table inside then names no
/// folder of the host, as that of a plain bind would.
fn guest_layer(template: &Template) -> io::Result<OwnedFd> {
    use rustix::mount::{fsconfig_create, fsconfig_set_string};
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let layers = [open_dir(&template.program)?, open_dir(&template.empty)?];
    fsconfig_set_string(&fs, "source", "oc")?;
    fsconfig_set_string(&fs, "lowerdir", layers.each_ref().map(fd_path).join(":"))?;
    fsconfig_create(&fs)?;
    let fixed = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    Ok(rustix::mount::fsmount(
        &fs,
        FsMountFlags::FSMOUNT_CLOEXEC,
        fixed,
    )?)
}

/// How the tree is to be dressed.
#[derive(Debug, Clone, Copy)]
pub struct Dress {
    /// CPUs shown in `/sys`.
    pub cpu_count: u32,
    /// Bound of `/dev/shm` and `/run`, in MiB.
    pub shm_mb: u64,
    /// Whether group 5 (tty) exists inside.
    pub tty_group: bool,
}

/// Puts the tree together around the caller, who must be alone in new mount and process
/// namespaces, and makes it the only thing there is.
pub fn enter(mounts: &Mounts, dress: Dress) -> Result<(), StepError> {
    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", all).step("make mounts private")?;
    // Any folder that exists on every host and that everybody may enter serves as the place.
    let place = Path::new("/usr");
    attach(&mounts.root, place).step("attach the root")?;
    let inside = open_dir(place).step("open the root")?;
    // Devices must be taken while the host's tree is still there.
    let devices: Vec<_> = DEVICES
        .iter()
        .map(|name| clone_mount(&Path::new("/dev").join(name)))
        .collect::<io::Result<_>>()
        .step("take the devices")?;
    rustix::process::fchdir(&inside).step("enter the root")?;
    attach(&mounts.usr, Path::new("usr")).step("attach /usr")?;
    dev(&devices, dress).step("make /dev")?;
    run(mounts, dress).step("make /run")?;
    sys(dress.cpu_count).step("make /sys")?;
    proc_fs().step("make /proc")?;
    rustix::process::pivot_root(".", ".").step("change the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("let go of the host's tree")?;
    rustix::process::chdir("/").step("enter the new root")
}

fn tmpfs(at: &str, options: &str, flags: MountFlags) -> io::Result<()> {
    let options = std::ffi::CString::new(options)?;
    Ok(rustix::mount::mount(
        "tmpfs",
        at,
        "tmpfs",
        flags,
        options.as_c_str(),
    )?)
}

fn dev(devices: &[OwnedFd], dress: Dress) -> io::Result<()> {
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
    tmpfs("dev", "mode=755,size=64k,nr_inodes=64", MountFlags::NOSUID)?;
    for (name, device) in DEVICES.iter().zip(devices) {
        let at = Path::new("dev").join(name);
        fs::write(&at, "")?;
        attach(device, &at)?;
    }
    fs::create_dir("dev/pts")?;
    let group = if dress.tty_group { ",gid=5" } else { "" };
    let options = format!("newinstance,ptmxmode=0666,mode=0620,max={TERMINALS_MAX}{group}");
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount("devpts", "dev/pts", "devpts", quiet, options.as_c_str())?;
    fs::create_dir("dev/shm")?;
    let options = format!("mode=1777,size={}m", dress.shm_mb);
    tmpfs("dev/shm", &options, MountFlags::NOSUID | MountFlags::NODEV)?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, Path::new("dev").join(name))?;
    }
    Ok(())
}

fn run(mounts: &Mounts, dress: Dress) -> io::Result<()> {
    let options = format!("mode=755,size={}m", dress.shm_mb.min(64));
    tmpfs("run", &options, MountFlags::NOSUID | MountFlags::NODEV)?;
    fs::create_dir("run/oc")?;
    fs::create_dir("run/lock")?;
    fs::set_permissions("run/lock", fs::Permissions::from_mode(0o1777))?;
    let guest = GUEST_INSIDE.trim_start_matches('/');
    fs::write(guest, "")?;
    // Attached first, since older kernels take a single file only out of an attached mount.
    let layer = Path::new("run/oc-layer");
    fs::create_dir(layer)?;
    attach(&mounts.guest, layer)?;
    attach(&clone_mount(&layer.join(GUEST_FILE))?, Path::new(guest))?;
    rustix::mount::unmount(layer, UnmountFlags::DETACH)?;
    fs::remove_dir(layer)
}

fn sys(cpu_count: u32) -> io::Result<()> {
    tmpfs("sys", "mode=755,size=64k,nr_inodes=64", MountFlags::empty())?;
    fs::create_dir_all("sys/devices/system/cpu")?;
    for file in ["online", "possible", "present"] {
        let cpus = format!("0-{}\n", cpu_count.saturating_sub(1));
        fs::write(Path::new("sys/devices/system/cpu").join(file), cpus)?;
    }
    remount_read_only("sys")
}

/// Read-only, in a user namespace, is only allowed together with what is already locked.
fn remount_read_only(at: &str) -> io::Result<()> {
    let mount = rustix::mount::open_tree(CWD, at, OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let flags = libc::MOUNT_ATTR_RDONLY
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOEXEC;
    mount_setattr(mount.as_fd(), true, flags, None)
}

fn proc_fs() -> io::Result<()> {
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("proc", "proc", "proc", quiet, None)?;
    let exists = |path: &str| fs::symlink_metadata(path).is_ok();
    for name in READ_ONLY {
        let path = format!("proc/{name}");
        if exists(&path) {
            rustix::mount::mount_bind(path.as_str(), path.as_str())?;
            remount_read_only(&path)?;
        }
    }
    for name in MASKED_FILES {
        let path = format!("proc/{name}");
        if exists(&path) {
            rustix::mount::mount_bind("dev/null", path.as_str())?;
        }
    }
    for name in MASKED_DIRS {
        let path = format!("proc/{name}");
        if exists(&path) {
            tmpfs(
                &path,
                "mode=555,size=4k,nr_inodes=2",
                quiet | MountFlags::RDONLY,
            )?;
        }
    }
    Ok(())
}
