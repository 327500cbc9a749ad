//! Files of the sandbox, with the guest's rights.
//!
//! The guest sees only the sandbox's own root (it runs after `pivot_root`), so no path can lead
//! out. Invariants: only regular files are read or written, so that no device or pipe can hang an
//! operation; a path is made absolute and rid of `.` and `..` as text, before any link is looked
//! at, so that what is checked is what is used; all blocking calls run off the runtime's thread.

mod path;
mod read;
mod write;

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, lchown};
use std::path::{Path, PathBuf};

use oc_guest::v1::{DirEntry, FileChunk, ListDirReply, WriteFileInput};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::spawn::{Identity, Rights};

/// Most entries of a directory that are listed.
const LIST_ENTRIES_MAX: usize = 100_000;
/// Entries in one message: at 255 bytes a name and 4096 a path it stays under the message cap.
const LIST_BATCH: usize = 512;

/// See the module.
#[derive(Debug, Clone)]
pub struct Files {
    /// Who owns what is created; `None`: the guest itself.
    owner: Option<Identity>,
}

impl Files {
    /// File operations with the rights found.
    pub fn new(rights: Rights) -> Self {
        Self {
            owner: rights.sandbox(),
        }
    }

    /// The file's chunks; the first one tells the size.
    pub async fn read(
        &self,
        path: &str,
    ) -> Result<ReceiverStream<Result<FileChunk, Status>>, Status> {
        read::read(path::resolve(path)?).await
    }

    /// Replaces the file's content when the stream is whole; answers the bytes written.
    pub async fn write(&self, mut inputs: Streaming<WriteFileInput>) -> Result<u64, Status> {
        let Some(first) = inputs.message().await? else {
            return Err(Status::invalid_argument("the first message names the path"));
        };
        let path = path::resolve(&first.path)?;
        let (files, opened) = (self.clone(), path.clone());
        let target = blocking(move || write::Target::open(&files, &opened)).await?;
        write::receive(target, first, inputs).await
    }

    /// The directory's entries in batches, sorted by name, hidden ones included, links not
    /// followed.
    pub async fn list(&self, path: &str) -> Result<Vec<ListDirReply>, Status> {
        let path = path::resolve(path)?;
        blocking(move || list(&path)).await
    }

    /// Makes the directory and its parents; an existing one is fine.
    pub async fn make_dir(&self, path: &str) -> Result<(), Status> {
        let (files, path) = (self.clone(), path::resolve(path)?);
        blocking(move || files.make_dirs(&path).map(|mut made| made.keep())).await
    }

    /// Removes the file or the whole directory; links are removed, never followed. A missing path
    /// is fine.
    pub async fn remove(&self, path: &str) -> Result<(), Status> {
        let path = path::resolve(path)?;
        if path == Path::new("/") {
            return Err(Status::invalid_argument(
                "the root directory can't be removed",
            ));
        }
        blocking(move || remove(&path)).await
    }

    fn own(&self, path: &Path) -> io::Result<()> {
        match &self.owner {
            Some(owner) => lchown(path, Some(owner.uid), Some(owner.gid)),
            None => Ok(()),
        }
    }

    /// Makes what is missing of `path`, from the top, each directory owned by the sandbox user.
    fn make_dirs(&self, path: &Path) -> Result<Made, Status> {
        let mut made = Made(Vec::new());
        let mut ancestors: Vec<&Path> = path.ancestors().collect();
        ancestors.reverse();
        for directory in ancestors {
            match DirBuilder::new().mode(0o755).create(directory) {
                Ok(()) => {
                    made.0.push(directory.to_owned());
                    self.own(directory)
                        .map_err(|error| named(directory, &error))?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if !fs::metadata(directory).is_ok_and(|found| found.is_dir()) {
                        let directory = directory.display();
                        let reason = format!("not a directory: {directory}");
                        return Err(Status::failed_precondition(reason));
                    }
                }
                Err(error) => return Err(unmakeable(directory, &error)),
            }
        }
        Ok(made)
    }
}

/// Directories made for something that is not there yet: dropped before [`Made::keep`], those that
/// are still empty are removed.
#[derive(Debug)]
struct Made(Vec<PathBuf>);

impl Made {
    fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for directory in self.0.iter().rev() {
            let _ = fs::remove_dir(directory);
        }
    }
}

fn list(path: &Path) -> Result<Vec<ListDirReply>, Status> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotADirectory => {
            Status::not_found(format!("not a directory: {}", path.display()))
        }
        _ => named(path, &error),
    })? {
        let entry = entry.map_err(|error| named(path, &error))?;
        if entries.len() == LIST_ENTRIES_MAX {
            let reason = format!("more than {LIST_ENTRIES_MAX} entries: {}", path.display());
            return Err(Status::failed_precondition(reason));
        }
        // Removed since it was read: not part of the answer.
        let Ok(found) = entry.metadata() else {
            continue;
        };
        entries.push((entry.file_name(), found.is_dir(), found.size()));
    }
    entries.sort();
    let entry = |(name, is_dir, size): &(std::ffi::OsString, bool, u64)| DirEntry {
        name: name.to_string_lossy().into_owned(),
        is_dir: *is_dir,
        size: *size,
        path: path.join(name).to_string_lossy().into_owned(),
    };
    let batch = |batch: &[_]| ListDirReply {
        entries: batch.iter().map(entry).collect(),
    };
    Ok(entries.chunks(LIST_BATCH).map(batch).collect())
}

fn remove(path: &Path) -> Result<(), Status> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => Ok(()),
        // A file among the parents: then the path is missing as well.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotADirectory) => Ok(()),
        Err(error) => Err(named(path, &error)),
    }
}

/// Refuses what is not a regular file, before anything could block on it.
fn require_regular(path: &Path, found: &Metadata) -> Result<(), Status> {
    let path = path.display();
    if found.is_dir() {
        return Err(Status::invalid_argument(format!("is a directory: {path}")));
    }
    if !found.is_file() {
        return Err(Status::invalid_argument(format!(
            "not a regular file: {path}"
        )));
    }
    Ok(())
}

/// The status for a failed operation, with the path it failed on.
fn named(path: &Path, error: &io::Error) -> Status {
    let path = path.display();
    match error.raw_os_error() {
        Some(libc::ENOENT) => Status::not_found(format!("no such file or directory: {path}")),
        Some(libc::ENOTDIR) => Status::failed_precondition(format!("a file is in the way: {path}")),
        Some(libc::EISDIR) => Status::invalid_argument(format!("is a directory: {path}")),
        Some(libc::ENAMETOOLONG | libc::ELOOP | libc::EINVAL) => {
            Status::invalid_argument(format!("not a usable path: {path}: {error}"))
        }
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            Status::permission_denied(format!("can't change or read {path}: {error}"))
        }
        Some(libc::EBUSY) => Status::failed_precondition(format!("in use: {path}")),
        Some(libc::ENOSPC | libc::EDQUOT | libc::EMFILE | libc::ENFILE | libc::ENOMEM) => {
            Status::resource_exhausted(format!("{path}: {error}"))
        }
        _ => Status::internal(format!("{path}: {error}")),
    }
}

/// The status for something that can't be made: where nothing can be, or no longer, nothing is
/// "not found".
fn unmakeable(path: &Path, error: &io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::NotFound => {
            let path = path.display();
            Status::failed_precondition(format!("nothing can be made here: {path}"))
        }
        _ => named(path, error),
    }
}

/// Runs blocking calls on a thread for them.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Status::internal("a file operation broke off")))
}
