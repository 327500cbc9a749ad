//! Writing a file so that its name holds the old content or the whole new one, never a part.
//!
//! The bytes go to a temporary file beside the target, which takes the target's name when the
//! stream is whole. Dropped before that, the temporary file is removed, and so are the directories
//! that were made for it. A new file is the sandbox user's with mode 0644; an existing one keeps its
//! owner and mode, so that a script stays executable. A target that is a link is followed: the link
//! stays a link. The directory is held open meanwhile: whoever moves it or puts a link in its place
//! has the file, or nothing of it, in the directory that was found.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use oc_guest::v1::WriteFileInput;
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use tonic::{Status, Streaming};

use super::{Files, Made, blocking, named, path, require_regular, unmakeable};

/// Links followed from one target to the next before it is taken for a loop.
const LINKS_MAX: usize = 40;
/// How often the parents are made anew when somebody removes them in the same moment.
const TRIES_MAX: usize = 4;

/// A file being written.
pub struct Target {
    /// For messages.
    path: PathBuf,
    parent: OwnedFd,
    name: OsString,
    temporary: String,
    file: File,
    made: Made,
}

impl Target {
    /// Makes the parents and the temporary file.
    pub fn open(files: &Files, path: &Path) -> Result<Self, Status> {
        let path = follow(path)?;
        let existing = match fs::symlink_metadata(&path) {
            Ok(found) => {
                require_regular(&path, &found)?;
                Some(found)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(named(&path, &error)),
        };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Status::invalid_argument("is a directory: /"));
        };
        let (parent, temporary, file, made) = place(files, parent)?;
        // From here on the temporary file goes with the value.
        let target = Self {
            name: name.to_owned(),
            path: path.clone(),
            parent,
            temporary,
            file,
            made,
        };
        let given = match existing {
            Some(found) => target.give(found.mode() & 0o777, Some((found.uid(), found.gid()))),
            None => target.give(
                0o644,
                files.owner.as_ref().map(|owner| (owner.uid, owner.gid)),
            ),
        };
        given.map_err(|error| named(&target.path, &error))?;
        Ok(target)
    }

    fn give(&self, mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
        if let Some((uid, gid)) = owner {
            fchown(&self.file, Some(uid), Some(gid))?;
        }
        self.file.set_permissions(Permissions::from_mode(mode))
    }

    fn write(&mut self, data: &[u8]) -> Result<(), Status> {
        self.file
            .write_all(data)
            .map_err(|error| named(&self.path, &error))
    }

    /// Gives the temporary file the target's name.
    fn finish(mut self) -> Result<(), Status> {
        let (parent, temporary) = (&self.parent, self.temporary.as_str());
        let done = match renameat(parent, temporary, parent, &self.name) {
            // A file mounted over (as /etc/resolv.conf may be) can only be changed in place.
            Err(rustix::io::Errno::BUSY) => self.copy_over(),
            renamed => renamed.map_err(io::Error::from),
        };
        done.map_err(|error| unmakeable(&self.path, &error))?;
        self.made.keep();
        Ok(())
    }

    fn copy_over(&self) -> io::Result<()> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |name: &std::ffi::OsStr, flags| {
            openat(&self.parent, name, flags, Mode::empty()).map(File::from)
        };
        let mut from = open(self.temporary.as_ref(), flags | OFlags::RDONLY)?;
        let mut to = open(&self.name, flags | OFlags::WRONLY | OFlags::TRUNC)?;
        io::copy(&mut from, &mut to).map(drop)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // After a rename there is nothing to remove.
        let _ = unlinkat(&self.parent, &self.temporary, AtFlags::empty());
    }
}

/// The directory, held open, with a temporary file in it.
fn place(files: &Files, parent: &Path) -> Result<(OwnedFd, String, File, Made), Status> {
    let mut tries = 0;
    loop {
        tries += 1;
        let made = files.make_dirs(parent)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let found = rustix::fs::open(parent, flags, Mode::empty());
        let found = found.map_err(io::Error::from).and_then(|parent| {
            let (temporary, file) = create_temporary(&parent)?;
            Ok((parent, temporary, file))
        });
        match found {
            Ok((parent, temporary, file)) => return Ok((parent, temporary, file, made)),
            // Made and removed by another upload that broke off: they are made again.
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES_MAX => {}
            Err(error) => return Err(unmakeable(parent, &error)),
        }
    }
}

/// Writes what the client sends; answers the bytes.
pub async fn receive(
    mut target: Target,
    first: WriteFileInput,
    mut inputs: Streaming<WriteFileInput>,
) -> Result<u64, Status> {
    let mut input = first;
    let mut bytes = 0;
    loop {
        bytes += input.data.len() as u64;
        let end = input.end;
        target = blocking(move || {
            target.write(&input.data)?;
            Ok(target)
        })
        .await?;
        if end {
            blocking(move || target.finish()).await?;
            return Ok(bytes);
        }
        input = match inputs.message().await? {
            Some(next) => next,
            None => {
                return Err(Status::aborted(
                    "the upload broke off; the file is as it was",
                ));
            }
        };
    }
}

/// Where `path` really is, also when it is a link to a file that is yet to be made.
fn follow(path: &Path) -> Result<PathBuf, Status> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        if let Ok(real) = fs::canonicalize(&path) {
            return Ok(real);
        }
        let Ok(link) = fs::read_link(&path) else {
            return Ok(path);
        };
        // A relative link starts at the real directory of the link.
        let parent = path.parent().unwrap_or(Path::new("/"));
        let parent = fs::canonicalize(parent).map_err(|error| named(parent, &error))?;
        path = match parent.join(link).to_str() {
            Some(text) => path::resolve(text)?,
            None => return Err(Status::invalid_argument("the link's target is not UTF-8")),
        };
    }
    Err(Status::invalid_argument(format!(
        "too many links: {}",
        path.display()
    )))
}

/// Numbers the temporary files of this guest.
static NEXT: AtomicU64 = AtomicU64::new(0);

fn create_temporary(parent: &OwnedFd) -> io::Result<(String, File)> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".oc-upload-{}-{number}", std::process::id());
        match openat(parent, &name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => return Ok((name, File::from(file))),
            // Left over from an earlier life of this disk: the next number.
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
