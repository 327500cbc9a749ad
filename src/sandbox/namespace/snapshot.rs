//! Copies of disks: what checkpoints are made of.
//!
//! ```text
//! <data>/sandboxes/.checkpoints/<id>/   0700; complete once it has this name
//!   disk.img | disk/                    the disk, as the sandbox has it
//!   plan.json                           the plan of the sandbox: its template, its host ids
//! ```
//!
//! Invariants: a copy is made under another name and renamed when it is on the host's disk, so one
//! that has its name is whole; a sandbox's disk is replaced in one step; while a disk is copied the
//! sandbox's processes stand still, and so does its file system where it has one of its own. Blocks
//! are shared where the host's file system can (btrfs, XFS), and copied elsewhere.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::control::Want;
use super::plan::{Home, Plan};
use super::{NamespaceDriver, held, image, remove, sys};
use crate::ids::{CheckpointId, SandboxId};
use crate::sandbox::{DriverError, Snapshot};

/// Folder of the copies, beside the sandboxes' folders; not a sandbox id.
pub(super) const CHECKPOINTS: &str = ".checkpoints";
/// Prefix of what is not whole yet.
pub(super) const DRAFT: &str = ".draft-";
pub(super) const IMAGE: &str = "disk.img";
pub(super) const FOLDER: &str = "disk";
pub(super) const PLAN: &str = "plan.json";
/// Copies files as they are, sharing blocks where that is possible. Part of every Linux.
pub(super) const COPY: &str = "cp";

/// A file system that takes no writes as long as this lives.
struct StillDisk(Option<File>);

impl Drop for StillDisk {
    fn drop(&mut self) {
        if let Some(disk) = &self.0 {
            let _ = sys::freeze_file_system(disk.as_fd(), false);
        }
    }
}

impl NamespaceDriver {
    pub(super) fn copy_of(&self, id: &CheckpointId) -> PathBuf {
        self.roots.copy(id)
    }

    pub(super) async fn take_snapshot(
        &self,
        id: &SandboxId,
        to: &CheckpointId,
    ) -> Result<Snapshot, DriverError> {
        if let Some(there) = size_of(&self.copy_of(to)) {
            return Ok(Snapshot {
                size_bytes: there,
                paused: Duration::ZERO,
            });
        }
        // What is dirty is written out first, so that the pause is short.
        self.blocking(id, |driver, id| {
            if let Some(disk) = driver.own_disk(id) {
                let _ = rustix::fs::syncfs(&disk);
            }
            Ok(())
        })
        .await?;
        let frozen = self.supervisor(id, Want::Freeze).await?;
        let frozen = frozen.ok_or_else(|| DriverError::Failed {
            id: id.clone(),
            what: "it does not run, so there is nothing to copy".to_owned(),
        })?;
        let began = Instant::now();
        let to = *to;
        let copied = self
            .blocking(id, move |driver, id| driver.copy_disk(id, &to))
            .await;
        drop(frozen);
        let paused = began.elapsed();
        let draft = copied?;
        // Beside its draft, and so in the same file system.
        let finished = draft.with_file_name(to.to_string());
        self.blocking(id, move |_, id| {
            let failed = |source| DriverError::Io {
                what: format!("{id}: keep the copy of its disk"),
                source,
            };
            finish(&draft, &finished).map_err(failed)?;
            Ok(Snapshot {
                size_bytes: size_of(&finished).unwrap_or(0),
                paused,
            })
        })
        .await
    }

    /// Copies the disk of a frozen sandbox into a draft. Blocks.
    fn copy_disk(&self, id: &SandboxId, to: &CheckpointId) -> Result<PathBuf, DriverError> {
        let failed = |what: &'static str| {
            move |source| DriverError::Io {
                what: format!("{id}: {what}"),
                source,
            }
        };
        let home = self.roots.home(id);
        // Where the disk is: blocks are shared within one file system.
        let root = self.roots.root_of(&home);
        let copies = root
            .map_err(failed("find room for a copy"))?
            .join(CHECKPOINTS);
        let draft = copies.join(format!("{DRAFT}{to}"));
        remove::remove_tree(&draft).map_err(failed("remove an old draft"))?;
        private_dir(&draft).map_err(failed("make a folder for the copy"))?;
        let still = StillDisk(self.own_disk(id));
        if let Some(disk) = &still.0 {
            sys::freeze_file_system(disk.as_fd(), true).map_err(failed("still its disk"))?;
        }
        let name = if still.0.is_some() { IMAGE } else { FOLDER };
        let copied = copy(&home.0.join(name), &draft.join(name));
        drop(still);
        let copied = copied.and_then(|()| fs::copy(home.plan(), draft.join(PLAN)).map(drop));
        if let Err(error) = copied {
            let _ = remove::remove_tree(&draft);
            return Err(failed("copy its disk")(error));
        }
        Ok(draft)
    }

    /// The top of a living sandbox's disk, when that is a file system of its own. It is mounted where
    /// its supervisor alone sees it.
    fn own_disk(&self, id: &SandboxId) -> Option<File> {
        let home = self.roots.home(id);
        if !home.0.join(IMAGE).exists() {
            return None;
        }
        let pid = held::supervisor_pid(&home)?;
        let inside = |path: &Path| {
            let path = path.strip_prefix("/").unwrap_or(path);
            PathBuf::from(format!("/proc/{pid}/root")).join(path)
        };
        let disk = File::open(inside(&home.0.join(FOLDER))).ok()?;
        let outer = fs::metadata(&home.0).ok()?;
        // Anything else would be the host's own file system.
        (disk.metadata().ok()?.dev() != outer.dev()).then_some(disk)
    }

    /// Lets a file system go on that a server stilled which died meanwhile. Blocks.
    pub(super) fn unstill(&self, id: &SandboxId) {
        drop(StillDisk(self.own_disk(id)));
    }

    pub(super) fn give_disk(&self, id: &SandboxId, from: &CheckpointId) -> Result<(), DriverError> {
        let failed = |what: &'static str| {
            move |source| DriverError::Io {
                what: format!("{id}: {what}"),
                source,
            }
        };
        let (home, copy_dir) = (self.roots.home(id), self.copy_of(from));
        let name = match copy_dir.join(IMAGE).exists() {
            true => IMAGE,
            false => FOLDER,
        };
        if held::is_held(&home) {
            return Err(failed("replace its disk")(io::Error::other("it runs")));
        }
        let room = self.roots.root_of(&home);
        room.map_err(failed("find room for its disk"))?;
        private_dir(&home.run()).map_err(failed("make its folder"))?;
        let (draft, finished) = (home.0.join("disk.new"), home.0.join(name));
        remove_any(&draft).map_err(failed("remove an old draft"))?;
        copy(&copy_dir.join(name), &draft).map_err(failed("copy the disk of the checkpoint"))?;
        // A disk has the template and the host ids it began with.
        if !home.plan().exists() {
            let plan = fs::copy(copy_dir.join(PLAN), home.plan());
            plan.map_err(failed("keep the plan of the checkpoint"))?;
        }
        replace(&draft, &finished).map_err(failed("replace its disk"))?;
        remove_any(&draft).map_err(failed("remove its former disk"))
    }

    pub(super) fn forget_copy(&self, id: &CheckpointId) -> Result<(), DriverError> {
        for root in self.roots.all() {
            let copies = root.join(CHECKPOINTS);
            let draft = copies.join(format!("{DRAFT}{id}"));
            // Not whole any more from here on.
            let renamed = match fs::rename(copies.join(id.to_string()), &draft) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            };
            let removed = renamed.and_then(|()| remove::remove_tree(&draft));
            removed.map_err(|source| DriverError::Io {
                what: format!("remove the copy of checkpoint {id}"),
                source,
            })?;
        }
        Ok(())
    }

    pub(super) fn all_copies(&self) -> Result<Vec<CheckpointId>, DriverError> {
        let mut found = Vec::new();
        for root in self.roots.all() {
            let entries = match fs::read_dir(root.join(CHECKPOINTS)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.map_err(|source| DriverError::Io {
                    what: "list the copies of checkpoints".to_owned(),
                    source,
                })?,
            };
            found.extend(entries.flatten().filter_map(|entry| {
                let name = entry.file_name();
                let name = name.to_str()?;
                let id = name.strip_prefix(DRAFT).unwrap_or(name);
                id.parse::<CheckpointId>().ok()
            }));
        }
        Ok(found)
    }

    /// Plans of all copies, which name templates that are in use.
    pub(super) fn plans_of_copies(&self) -> Vec<PathBuf> {
        let folders = self.roots.all().map(|root| root.join(CHECKPOINTS));
        let entries = folders.filter_map(|folder| fs::read_dir(folder).ok());
        let entries = entries.flat_map(|entries| entries.flatten());
        entries.map(|entry| entry.path().join(PLAN)).collect()
    }
}

/// Runs work that blocks, of no sandbox, on a thread for such work.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(DriverError::Io {
            what: "work on checkpoints".to_owned(),
            source: io::Error::other(error),
        })
    })
}

/// First of the host ids that own a disk: those of the sandbox it began with.
pub(super) fn owner_of(home: &Home) -> Option<u32> {
    let plan = fs::read(home.plan()).ok()?;
    let plan: Plan = serde_json::from_slice(&plan).ok()?;
    Some(plan.first_id())
}

pub(super) fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// A copy of a file or folder with all that belongs to it, which is not there before.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_file() {
        return image::copy_sparse(from, to);
    }
    let output = Command::new(COPY)
        .args(["-a", "--reflink=auto", "--sparse=always", "-T", "--"])
        .args([from, to])
        .stdin(Stdio::null())
        .output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or("no reason given").to_owned();
            Err(io::Error::other(last))
        }
    }
}

/// Removes a file or a folder, if it is there.
fn remove_any(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_dir() => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => remove::remove_tree(path),
    }
}

/// Writes a draft out and gives it its name.
pub(super) fn finish(draft: &Path, finished: &Path) -> io::Result<()> {
    rustix::fs::syncfs(File::open(draft)?)?;
    fs::rename(draft, finished)?;
    if let Some(parent) = finished.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Puts `draft` in the place of `finished`, which is at the draft's name after, if there was one.
fn replace(draft: &Path, finished: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, draft, CWD, finished, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::NOENT) => fs::rename(draft, finished),
        other => Ok(other?),
    }
}

/// What a whole copy takes of the disk; `None` when there is none.
pub(super) fn size_of(copy: &Path) -> Option<u64> {
    copy.is_dir().then(|| blocks_below(copy))
}

pub(super) fn blocks_below(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else {
        return 0;
    };
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        bytes += entries
            .map(|entry| blocks_below(&entry.path()))
            .sum::<u64>();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: whatever was there is there or replaced, and what was replaced is at hand to be removed.
    #[test]
    fn a_disk_is_replaced_in_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let (draft, finished) = (dir.path().join("new"), dir.path().join("disk"));
        fs::write(&draft, "first").unwrap();
        replace(&draft, &finished).unwrap();
        assert_eq!(fs::read(&finished).unwrap(), b"first");
        assert!(!draft.exists());
        fs::write(&draft, "second").unwrap();
        replace(&draft, &finished).unwrap();
        assert_eq!(fs::read(&finished).unwrap(), b"second");
        assert_eq!(fs::read(&draft).unwrap(), b"first");
    }

    /// Goal: links, holes, modes and extended attributes are copied, and nothing is followed.
    #[test]
    fn folders_are_copied_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir(&from).unwrap();
        fs::write(from.join("file"), "text").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", from.join("link")).unwrap();
        let hole = File::create(from.join("hole")).unwrap();
        hole.set_len(64 << 20).unwrap();
        let to = dir.path().join("to");
        copy(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("file")).unwrap(), b"text");
        let link = fs::read_link(to.join("link")).unwrap();
        assert_eq!(link, Path::new("/etc/passwd"));
        assert!(blocks_below(&to) < 1 << 20, "the hole was filled");
        assert!(copy(&dir.path().join("none"), &to).is_err());
    }
}
