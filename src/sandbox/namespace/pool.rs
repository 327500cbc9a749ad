//! A file system that shares blocks between files, in one file, for hosts whose own file system
//! doesn't: a copy of a disk in it takes no time and no room, whatever is on the disk.
//!
//! ```text
//! <data>/sandboxes/
//!   .pool.xfs | .pool.btrfs   the file, sparse; it grows as it is written, and gives back what is freed
//!   .pool/                    where it is mounted
//!     .base/.blank-<MiB>.ext4, <id>/, .checkpoints/<id>/   as beside it
//! ```
//!
//! Invariants: the file has one loop device at most, since the lock on it belongs to the open file that
//! the device keeps; whoever comes later mounts that same device, and so the same file system; a
//! pool is made under another name, so one that has its name is whole. The mount is in the mount
//! namespace of the process that made it, for a server one of its own ([`private_mounts`]), and in those
//! of its supervisors: nothing of it stays when they have ended, however they ended.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::image;
use super::sys::{Step, StepError};
use crate::sandbox::DiskStore;

/// Where it is mounted, in the folder of sandboxes.
pub const MOUNT: &str = ".pool";
/// How long the former holder of a pool may take to let it go.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// Smallest pool, in GiB; it shows as much room as the host's disk has.
const SIZE_GIB_MIN: u64 = 16;
/// Least room on the host's disk at which something new is begun: a pool that can't be written fails
/// for all that lies in it.
const HOST_FREE_BYTES_MIN: u64 = 1 << 30;

/// A file system that a pool can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Xfs,
    Btrfs,
}

impl Kind {
    /// The faster in writing first.
    pub const ALL: [Self; 2] = [Self::Xfs, Self::Btrfs];

    /// Its name, as the kernel has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The name of its file.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Xfs => ".pool.xfs",
            Self::Btrfs => ".pool.btrfs",
        }
    }

    fn file(self, data: &Path) -> PathBuf {
        data.join(self.file_name())
    }

    fn options(self) -> &'static std::ffi::CStr {
        match self {
            Self::Xfs => c"discard",
            // The other kind of discard leaves most for minutes.
            Self::Btrfs => c"discard=sync,commit=10",
        }
    }

    fn mkfs(self) -> Option<PathBuf> {
        let program = format!("mkfs.{}", self.name());
        let folders = ["/usr/sbin", "/sbin"].iter();
        folders
            .map(|folder| Path::new(folder).join(&program))
            .find(|path| path.exists())
    }

    /// Whether this machine can make and mount it, or what is missing.
    pub fn possible(self) -> Result<(), String> {
        let types = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !types.lines().any(|line| line.trim() == self.name()) {
            return Err(format!("the kernel has no {}", self.name()));
        }
        if self.mkfs().is_none() {
            let package = match self {
                Self::Xfs => "xfsprogs",
                Self::Btrfs => "btrfs-progs",
            };
            return Err(format!(
                "there is no mkfs.{}: install {package}",
                self.name()
            ));
        }
        image::possible().map_err(str::to_owned)
    }
}

/// The kind that a setting means here, or why there is none.
pub fn chosen(store: DiskStore) -> Result<Option<Kind>, String> {
    let one = |kind: Kind| kind.possible().map(|()| Some(kind));
    match store {
        DiskStore::Files => Ok(None),
        DiskStore::PoolXfs => one(Kind::Xfs),
        DiskStore::PoolBtrfs => one(Kind::Btrfs),
        DiskStore::Pool => one(Kind::Xfs)
            .or_else(|xfs| one(Kind::Btrfs).map_err(|btrfs| format!("{xfs}; {btrfs}"))),
    }
}

/// The kind of the pool in `data`, if there is one.
pub fn existing(data: &Path) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.file(data).exists())
}

/// From now on mounts of this process are its own and its children's, if it will mount a pool in `data`:
/// one that is there, or one that is `wanted`. For a process with one thread.
pub fn private_mounts(data: &Path, wanted: bool) -> io::Result<()> {
    let needed = wanted || existing(data).is_some();
    if !needed || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // SAFETY: a new mount namespace with the same mounts invalidates nothing this program holds.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
    // What the host mounts later still shows here.
    let all = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(rustix::mount::mount_change("/", all)?)
}

/// A mounted pool; unmounted when dropped, as far as this process is concerned.
#[derive(Debug)]
pub struct Pool {
    at: PathBuf,
    host: PathBuf,
    own: bool,
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.own {
            let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
        }
    }
}

impl Pool {
    /// Mounts the pool in `data`, made now when there is none and `make` says of which kind; `None`
    /// when there is none. Blocks.
    pub fn open(data: &Path, make: Option<Kind>) -> Result<Option<Self>, StepError> {
        let kind = match (existing(data), make) {
            (Some(kind), _) => kind,
            (None, Some(kind)) => {
                create(data, kind).step("make the pool of disks")?;
                kind
            }
            (None, None) => return Ok(None),
        };
        let at = data.join(MOUNT);
        fs::create_dir_all(&at).step("make a place for the pool of disks")?;
        let pool = |own| Self {
            at: at.clone(),
            host: data.to_owned(),
            own,
        };
        if is_mounted(data, &at).step("look at the pool of disks")? {
            return Ok(Some(pool(false)));
        }
        let path = kind.file(data);
        let deadline = Instant::now() + OPEN_TIMEOUT;
        loop {
            match mount_once(&path, &at, kind) {
                Ok(true) => return Ok(Some(pool(true))),
                Err(error) if !passes(&error) || Instant::now() >= deadline => {
                    return Err(error).step("mount the pool of disks");
                }
                Ok(false) if Instant::now() >= deadline => {
                    let what = io::Error::other("somebody holds its file");
                    return Err(what).step("mount the pool of disks");
                }
                // Its former holder is about to let it go.
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The folder in which disks may be made.
    pub fn root(&self) -> &Path {
        &self.at
    }

    /// Refuses something new while the host's disk is nearly full.
    pub fn check_room(&self) -> io::Result<()> {
        let stat = rustix::fs::statvfs(&self.host)?;
        match stat.f_bavail * stat.f_frsize < HOST_FREE_BYTES_MIN {
            true => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the disk of the data folder is nearly full",
            )),
            false => Ok(()),
        }
    }
}

/// Whether an error is one of a device that is just being let go.
fn passes(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [libc::EBUSY, libc::ENXIO, libc::ENODEV]
        .map(Some)
        .contains(&code)
}

fn is_mounted(data: &Path, at: &Path) -> io::Result<bool> {
    Ok(fs::metadata(at)?.dev() != fs::metadata(data)?.dev())
}

/// Whether it is mounted now; `false`: somebody holds the file, and through no device yet or any more.
fn mount_once(path: &Path, at: &Path, kind: Kind) -> io::Result<bool> {
    let file = File::options().read(true).write(true).open(path)?;
    let (device, source) = match image::lock(&file, Duration::ZERO) {
        Ok(()) => image::attach(&file)?,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => match device_of(path)? {
            Some(found) => found,
            None => return Ok(false),
        },
        Err(error) => return Err(error),
    };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    rustix::mount::mount(&source, at, kind.name(), flags, kind.options())?;
    drop(device);
    Ok(true)
}

/// The loop device that has the file, open so that it stays.
fn device_of(path: &Path) -> io::Result<Option<(File, PathBuf)>> {
    let wanted = path.canonicalize()?;
    for entry in fs::read_dir("/sys/block")?.flatten() {
        let backing = entry.path().join("loop/backing_file");
        let is_it = || {
            let text = fs::read_to_string(&backing).unwrap_or_default();
            Path::new(text.trim_end_matches('\n')) == wanted
        };
        if !is_it() {
            continue;
        }
        let source = Path::new("/dev").join(entry.file_name());
        let device = File::options().read(true).write(true).open(&source)?;
        // It may have been given another file before it was open.
        if is_it() {
            return Ok(Some((device, source)));
        }
    }
    Ok(None)
}

/// Makes an empty pool with as much room as the host's disk has.
fn create(data: &Path, kind: Kind) -> io::Result<()> {
    let mkfs = kind.mkfs().ok_or(io::ErrorKind::NotFound)?;
    let host = rustix::fs::statvfs(data)?;
    let gib = (host.f_blocks * host.f_frsize) >> 30;
    let draft = data.join(format!("{MOUNT}.draft"));
    let file = File::create(&draft)?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o600))?;
    file.set_len(gib.max(SIZE_GIB_MIN) << 30)?;
    let mut command = Command::new(mkfs);
    match kind {
        // Its loop device has blocks of 4096 bytes.
        Kind::Xfs => command.args(["-q", "-K", "-s", "size=4096"]).args([
            "-m",
            "reflink=1,crc=1",
            "-l",
            "size=64m",
        ]),
        Kind::Btrfs => command.args(["-q", "-K", "-m", "single"]),
    };
    let output = command
        .arg(&draft)
        .stdin(Stdio::null())
        .env_clear()
        .output()?;
    if !output.status.success() {
        let _ = fs::remove_file(&draft);
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("mkfs.{}: {why}", kind.name())));
    }
    file.sync_all()?;
    fs::rename(&draft, kind.file(data))
}
