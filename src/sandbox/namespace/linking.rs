//! A second name for the copy of a disk. Copies are never written to, so two of them may be one file:
//! the host's file system counts the names, and gives the room back with the last.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::snapshot::{COPY, DRAFT, FOLDER, IMAGE, PLAN, finish, private_dir, size_of};
use super::{NamespaceDriver, remove};
use crate::ids::CheckpointId;
use crate::sandbox::{DriverError, Snapshot};

impl NamespaceDriver {
    /// Blocks.
    pub(super) fn link_copy(
        &self,
        from: &CheckpointId,
        to: &CheckpointId,
    ) -> Result<Snapshot, DriverError> {
        let source = self.copy_of(from);
        // Beside the other name: one file system counts both.
        let copies = source.parent().unwrap_or(&source);
        let finished = copies.join(to.to_string());
        if size_of(&finished).is_none() {
            let draft = copies.join(format!("{DRAFT}{to}"));
            let linked = link(&source, &draft).and_then(|()| finish(&draft, &finished));
            if let Err(source) = linked {
                let _ = remove::remove_tree(&draft);
                return Err(DriverError::Io {
                    what: format!("give the copy of checkpoint {from} the name {to}"),
                    source,
                });
            }
        }
        Ok(Snapshot {
            size_bytes: size_of(&finished).unwrap_or(0),
            paused: Duration::ZERO,
        })
    }
}

fn link(from: &Path, draft: &Path) -> io::Result<()> {
    remove::remove_tree(draft)?;
    private_dir(draft)?;
    fs::hard_link(from.join(PLAN), draft.join(PLAN))?;
    if from.join(IMAGE).exists() {
        return fs::hard_link(from.join(IMAGE), draft.join(IMAGE));
    }
    let output = Command::new(COPY)
        .args(["-a", "-l", "-T", "--"])
        .args([from.join(FOLDER), draft.join(FOLDER)])
        .stdin(Stdio::null())
        .output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: both names have all of it, and either may go.
    #[test]
    fn a_copy_has_two_names() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join(FOLDER).join("root")).unwrap();
        fs::write(from.join(PLAN), "plan").unwrap();
        fs::write(from.join(FOLDER).join("root/file"), "text").unwrap();
        link(&from, &to).unwrap();
        fs::remove_dir_all(&from).unwrap();
        assert_eq!(
            fs::read(to.join(FOLDER).join("root/file")).unwrap(),
            b"text"
        );
        assert_eq!(fs::read(to.join(PLAN)).unwrap(), b"plan");
        fs::create_dir(&from).unwrap();
        fs::write(from.join(PLAN), "plan").unwrap();
        fs::write(from.join(IMAGE), "image").unwrap();
        link(&from, &to).unwrap();
        fs::remove_dir_all(&from).unwrap();
        assert_eq!(fs::read(to.join(IMAGE)).unwrap(), b"image");
    }
}
