//! Removal of a folder a hostile program has filled.
//!
//! It may hold folders without permissions (the overlay itself makes such), links that point
//! anywhere, and a depth beyond any path or recursion limit. Invariants: no link is followed; the
//! number of open descriptors and the stack are bounded whatever the depth: folders deeper than
//! [`DEPTH_MAX`] are moved to the top and removed from there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Deepest folder entered by recursion.
const DEPTH_MAX: u32 = 64;

/// Removes `path` and all below it. What is not there is fine.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let Some(top) = enter(CWD, path)? else {
        return Ok(());
    };
    let mut removal = Removal {
        top: top.as_fd(),
        moved: 0,
    };
    loop {
        let before = removal.moved;
        removal.empty(top.as_fd(), 0)?;
        if removal.moved == before {
            break;
        }
    }
    match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

struct Removal<'a> {
    top: BorrowedFd<'a>,
    /// Folders moved to the top so far; also the source of their new names.
    moved: u64,
}

impl Removal<'_> {
    fn empty(&mut self, dir: BorrowedFd<'_>, depth: u32) -> io::Result<()> {
        // Names first: removing while reading may skip entries.
        let mut names = Vec::new();
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        for (name, kind) in names {
            if kind != FileType::Directory {
                match rustix::fs::unlinkat(dir, &name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => continue,
                    // A file system that does not tell types in listings.
                    Err(Errno::ISDIR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if depth >= DEPTH_MAX {
                self.moved += 1;
                let new = format!(".oc-removed-{}", self.moved);
                rustix::fs::renameat(dir, &name, self.top, new)?;
                continue;
            }
            if let Some(inner) = enter(dir, &name)? {
                self.empty(inner.as_fd(), depth + 1)?;
            }
            match rustix::fs::unlinkat(dir, &name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Opens a folder for emptying, giving its owner (us) the right to if that was taken away.
fn enter(dir: BorrowedFd<'_>, name: impl rustix::path::Arg + Copy) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(dir, name, flags, Mode::empty());
    let opened = open().or_else(|error| {
        if error != Errno::ACCESS {
            return Err(error);
        }
        rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
        open()
    });
    match opened {
        Ok(fd) => {
            // To read a folder is not yet to change it; a failure shows when something is removed.
            let _ = rustix::fs::fchmod(&fd, Mode::RWXU);
            Ok(Some(fd))
        }
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn links_are_not_followed_and_closed_folders_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, tree) = (dir.path().join("outside"), dir.path().join("tree"));
        fs::write(&outside, "keep").unwrap();
        fs::create_dir_all(tree.join("a/b")).unwrap();
        symlink(&outside, tree.join("a/link")).unwrap();
        symlink(dir.path(), tree.join("a/b/up")).unwrap();
        fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(tree.join("a"), fs::Permissions::from_mode(0o500)).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(&outside).unwrap(), "keep");
        remove_tree(&tree).unwrap();
    }

    /// Goal: a depth far beyond PATH_MAX and the limit of open files is no hindrance.
    #[test]
    fn any_depth_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let mut at = enter(CWD, tree.as_path()).unwrap().unwrap();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = enter(at.as_fd(), "d").unwrap().unwrap();
        }
        drop(at);
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
    }
}
