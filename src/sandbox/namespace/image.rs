//! A sandbox's private disk: a file system of its own in one sparse file, so that the size it was
//! given is the size it has.
//!
//! ```text
//! .base/.blank-<MiB>.ext4   an empty file system of that size, made once; never mounted
//! <id>/disk.img             its copy (a few MiB of the host's disk at first)
//! <id>/disk/                where the supervisor alone has it mounted, in a mount namespace of its own
//! ```
//!
//! Invariants: the mount and the loop device live in the supervisor's mount namespace and nowhere
//! else, so they end with it, however it ends; a file is attached at most once, since the lock on it
//! is held by the open file that the loop device keeps; a disk that began in a file is never used
//! without it.
//!
//! Where there is no ext4, no loop device or no `mkfs.ext4`, or no root, the disk is a plain folder
//! and its size is not enforced.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, SeekFrom};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::plan::Home;
use super::sys::{self, Step, StepError};

/// Programs that make an empty file system.
const MKFS: [&str; 2] = ["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"];
/// Where free loop devices are asked for.
const LOOP_CONTROL: &str = "/dev/loop-control";
/// Size of the journal, in MiB; it is a part of the disk. Small disks get the smallest there is.
const JOURNAL_MB: u64 = 16;
const JOURNAL_MB_MIN: u64 = 4;
/// Tables of unused inodes stay unwritten, since the file is zeros where nothing was written; room
/// that files leave is given back to the host; a disk that errs is read-only from then on.
const OPTIONS: &std::ffi::CStr = c"noinit_itable,discard,errors=remount-ro";
/// Tries to get a loop device before another process takes it.
const LOOP_TRIES_MAX: u32 = 64;
/// Copied at once between file systems, in bytes.
const PIECE_BYTES: usize = 1024 * 1024;
/// How long the former holder of a disk may take to let it go: what it wrote is written out first.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an unmount waits for the last user.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether this machine can do it, or what is missing.
pub fn possible() -> Result<(), &'static str> {
    let types = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !types.lines().any(|line| line.trim() == "ext4") {
        return Err("the kernel has no ext4");
    }
    if mkfs().is_none() {
        return Err("there is no mkfs.ext4: install e2fsprogs");
    }
    match File::options().read(true).write(true).open(LOOP_CONTROL) {
        Ok(_) => Ok(()),
        Err(_) => Err("there are no loop devices: load the module loop"),
    }
}

fn mkfs() -> Option<&'static str> {
    MKFS.into_iter().find(|path| Path::new(path).exists())
}

/// Held while an empty file system is made, so that two starts do not make one in one place.
static MAKING: Mutex<()> = Mutex::new(());

/// An empty file system of `mb` MiB below `templates`, made now if it was not there. Blocks.
pub fn blank(templates: &Path, mb: u64) -> io::Result<PathBuf> {
    let finished = templates.join(format!(".blank-{mb}.ext4"));
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if finished.exists() {
        return Ok(finished);
    }
    let draft = templates.join(format!(".blank-{mb}.draft-{}", std::process::id()));
    let file = File::create(&draft)?;
    file.set_len(mb << 20)?;
    let journal = if mb < 1024 {
        JOURNAL_MB_MIN
    } else {
        JOURNAL_MB
    };
    let output = Command::new(mkfs().ok_or(io::ErrorKind::NotFound)?)
        .args(["-q", "-F", "-m", "0", "-b", "4096"])
        .args(["-J", &format!("size={journal}")])
        .args(["-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"])
        .arg(&draft)
        .stdin(Stdio::null())
        .env_clear()
        .output()?;
    if !output.status.success() {
        let _ = fs::remove_file(&draft);
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("mkfs.ext4: {why}")));
    }
    fs::rename(&draft, &finished)?;
    Ok(finished)
}

/// A mounted disk. Ends with the process that holds it.
#[derive(Debug)]
pub struct Image {
    file: File,
    at: PathBuf,
}

impl Image {
    /// Mounts the disk of `home` where its folders are expected, in the caller's mount namespace,
    /// which must be private. A new one is a copy of `blank`; `None` when the sandbox has no such
    /// disk and gets none.
    pub fn provide(home: &Home, blank: Option<&Path>) -> Result<Option<Self>, StepError> {
        let (path, at) = (home.image(), home.disk().0);
        if !path.exists() {
            // A disk that began in a plain folder stays there.
            let Some(blank) = blank.filter(|_| !at.join("prepared").exists()) else {
                return Ok(None);
            };
            let draft = path.with_extension("draft");
            copy_sparse(blank, &draft).step("make the disk")?;
            fs::rename(&draft, &path).step("make the disk")?;
        }
        let file = File::options().read(true).write(true).open(&path);
        let file = file.step("open the disk")?;
        lock(&file, RELEASE_TIMEOUT).step("wait for the last holder of the disk")?;
        fs::create_dir_all(&at).step("make a place for the disk")?;
        let device = attach(&file).step("attach the disk to a loop device")?;
        let source = device.1.as_path();
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
        rustix::mount::mount(source, &at, "ext4", flags, OPTIONS).step("mount the disk")?;
        Ok(Some(Self { file, at }))
    }

    /// Lets go of the disk, when nothing runs on it any more. What was written to one that is being
    /// removed is not written out first.
    pub fn release(self) {
        let doomed = self.file.metadata().is_ok_and(|meta| meta.nlink() == 0);
        if doomed && let Ok(top) = File::open(&self.at) {
            let _ = sys::ext4_shutdown(top.as_fd());
        }
        let deadline = Instant::now() + UNMOUNT_TIMEOUT;
        while let Err(error) = rustix::mount::unmount(&self.at, UnmountFlags::empty()) {
            if error != rustix::io::Errno::BUSY || Instant::now() >= deadline {
                let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Takes the name of a disk that is being removed away: its holder then drops what is unwritten.
/// Answers with the file, to wait for with [`released`].
pub fn doom(home: &Home) -> Option<File> {
    let file = File::open(home.image()).ok()?;
    fs::remove_file(home.image()).ok()?;
    Some(file)
}

/// Waits until no loop device holds the file. Blocks.
pub fn released(file: &File) -> io::Result<()> {
    lock(file, RELEASE_TIMEOUT)
}

/// Bytes in use and in all, of the disk that supervisor `pid` has mounted.
pub fn usage(home: &Home, pid: u32) -> Option<(u64, u64)> {
    if !home.image().exists() {
        return None;
    }
    // Every part of this path is the host's own, none the sandbox's.
    let at = home.disk().0;
    let inside = PathBuf::from(format!("/proc/{pid}/root")).join(at.strip_prefix("/").ok()?);
    let stat = rustix::fs::statvfs(inside).ok()?;
    let used = stat.f_blocks.checked_sub(stat.f_bfree)?;
    Some((used * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

pub fn lock(file: &File, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return Ok(other?),
        }
    }
}

/// Mounts the disk in `path` where nobody sees it, read-only, and answers with its top. It ends with
/// the descriptor, and those of what was opened below it.
pub fn open_read_only(path: &Path) -> Result<OwnedFd, StepError> {
    let file = File::open(path).step("open the disk")?;
    let (device, source) = attach(&file).step("attach the disk to a loop device")?;
    let mount = || -> io::Result<OwnedFd> {
        let fs = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "source", &source)?;
        fsconfig_set_flag(&fs, "ro")?;
        // A copy was made of a still file system: its journal has nothing that is missing.
        fsconfig_set_flag(&fs, "noload")?;
        fsconfig_create(&fs)?;
        let shut = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        Ok(fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, shut)?)
    };
    let mount = mount().step("mount the disk");
    drop(device);
    mount
}

/// A loop device on `file`, which goes when its last user does, and its path.
pub fn attach(file: &File) -> io::Result<(File, PathBuf)> {
    let control = File::options().read(true).write(true).open(LOOP_CONTROL)?;
    for _ in 0..LOOP_TRIES_MAX {
        let path = PathBuf::from(format!("/dev/loop{}", sys::loop_free(control.as_fd())?));
        let device = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(&path)?;
        match sys::loop_configure(device.as_fd(), file.as_fd()) {
            Ok(()) => return Ok((device, path)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Has `to` share the blocks of `from`, where the file system can.
pub fn share(from: &File, to: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

/// Copies what was written of a file; the rest stays a hole. Shares the blocks where the file
/// system can.
pub fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(to)?;
    if share(&source, &target).is_ok() {
        return Ok(());
    }
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    loop {
        at = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole is left.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&source, SeekFrom::Hole(at))?.min(size);
        while at < end {
            let (mut read, mut write) = (at, at);
            let length = usize::try_from(end - at).unwrap_or(usize::MAX);
            let range = rustix::fs::copy_file_range(
                &source,
                Some(&mut read),
                &target,
                Some(&mut write),
                length,
            );
            match range {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => at += count as u64,
                // From one file system to another.
                Err(rustix::io::Errno::XDEV) => {
                    let piece = &mut piece[..length.min(PIECE_BYTES)];
                    source.read_exact_at(piece, at)?;
                    target.write_all_at(piece, at)?;
                    at += piece.len() as u64;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a copy has every byte and no more blocks than there is data.
    #[test]
    fn copies_stay_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(b"middle", 32 << 20).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert!(fs::read(&to).unwrap() == fs::read(&from).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
    }

    /// Goal: who waits for a disk waits for its holder's end, and not for ever.
    #[test]
    fn a_disk_has_one_holder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path());
        let (first, second) = (open().unwrap(), open().unwrap());
        lock(&first, Duration::ZERO).unwrap();
        let begin = Instant::now();
        assert!(lock(&second, Duration::from_millis(20)).is_err());
        assert!(begin.elapsed() >= Duration::from_millis(20));
        drop(first);
        released(&second).unwrap();
    }
}
