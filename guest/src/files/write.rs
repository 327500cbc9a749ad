//! Writing a file so that its name holds the old content or the whole new one, never a part.
//!
//! The bytes go to a temporary file beside the target, which takes the target's name when the
//! stream is whole. Dropped before that, the temporary file is removed. A new file is the sandbox
//! user's with mode 0644; an existing one keeps its owner and mode, so that a script stays
//! executable. A target that is a link is followed: the link stays a link.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use oc_guest::v1::WriteFileInput;
use tonic::{Status, Streaming};

use super::{Files, blocking, named, path, require_regular};

/// Links followed from one target to the next before it is taken for a loop.
const LINKS_MAX: usize = 40;

/// A file being written.
pub struct Target {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
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
        let Some(parent) = path.parent() else {
            return Err(Status::invalid_argument("is a directory: /"));
        };
        files.make_dirs(parent)?;
        let (temporary, file) = create_temporary(parent)?;
        // From here on the temporary file goes with the value.
        let target = Self {
            path,
            temporary,
            file,
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
    fn finish(self) -> Result<(), Status> {
        match fs::rename(&self.temporary, &self.path) {
            Ok(()) => Ok(()),
            // A file mounted over (as /etc/resolv.conf may be) can only be changed in place.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                let copied = fs::copy(&self.temporary, &self.path);
                copied.map(drop).map_err(|error| named(&self.path, &error))
            }
            Err(error) => Err(named(&self.path, &error)),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // After a rename there is nothing to remove.
        let _ = fs::remove_file(&self.temporary);
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

fn create_temporary(parent: &Path) -> Result<(PathBuf, File), Status> {
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!(".oc-upload-{}-{number}", std::process::id()));
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path);
        match created {
            Ok(file) => return Ok((path, file)),
            // Left over from an earlier life of this disk: the next number.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(named(&path, &error)),
        }
    }
}
