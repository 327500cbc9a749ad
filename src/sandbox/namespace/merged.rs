//! A sandbox's tree as its programs see it, read from the layers of its disk: what overlayfs would
//! show, without a mount of it. So two trees can be compared by what differs between their layers,
//! and what both have from one template is not looked at.
//!
//! Invariants: no link is followed; a name is looked up only below a folder that is already open; an
//! entry whose meaning is not known (a folder that overlayfs has redirected) is told as unclear,
//! never guessed.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Marks of a folder below which nothing of the lower layers shows.
const OPAQUE: [&CStr; 2] = [c"trusted.overlay.opaque", c"user.overlay.opaque"];
/// Marks of a folder whose lower layers are elsewhere.
const REDIRECT: [&CStr; 2] = [c"trusted.overlay.redirect", c"user.overlay.redirect"];

/// A folder of one layer.
#[derive(Debug, Clone)]
pub struct Layer {
    pub dir: Rc<OwnedFd>,
    /// Device and number, which tell a folder from every other one.
    id: (u64, u64),
}

/// A folder as it shows: its layers, the topmost first. Without any it is not there.
#[derive(Debug, Clone, Default)]
pub struct Folder(pub Vec<Layer>);

/// Something at a name.
#[derive(Debug, Clone)]
pub struct Node {
    /// As it lies in its layer.
    pub stat: Stat,
    /// The folder of the layer it lies in.
    pub parent: Rc<OwnedFd>,
    /// Its layers, when it is a folder.
    pub folder: Folder,
}

impl Node {
    /// What it is.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether it is the very same thing of the host's.
    pub fn is(&self, other: &Self) -> bool {
        identity(&self.stat) == identity(&other.stat)
            && self.folder.0.len() == other.folder.0.len()
            && self.folder.shared_with(&other.folder) == self.folder.0.len()
    }
}

impl Layer {
    /// The folder at `path`, itself no link.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(open_folder(CWD, path)?)
    }

    /// The folder `name` in `dir`; may have blanks of its own, but no link.
    pub fn below(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> io::Result<Self> {
        Self::of(open_folder(dir, name)?)
    }

    fn of(dir: OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&dir)?;
        Ok(Self {
            dir: Rc::new(dir),
            id: identity(&stat),
        })
    }

    /// What lies at `name` here, whiteouts too.
    pub fn look(&self, name: &CStr) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&*self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn has_mark(&self, names: [&CStr; 2]) -> bool {
        let mut value = [0u8; 1];
        names.iter().any(|name| {
            let got = rustix::fs::fgetxattr(&*self.dir, *name, &mut value[..]);
            // A value longer than that is one too.
            got.is_ok() || got == Err(Errno::RANGE)
        })
    }
}

impl Folder {
    /// How many of the lowest layers this one and another have in common.
    pub fn shared_with(&self, other: &Self) -> usize {
        let (own, theirs) = (self.0.iter().rev(), other.0.iter().rev());
        own.zip(theirs).take_while(|(a, b)| a.id == b.id).count()
    }

    /// What shows at `name`.
    pub fn find(&self, name: &CStr) -> io::Result<Option<Node>> {
        let mut found: Option<Node> = None;
        for layer in &self.0 {
            let Some(stat) = layer.look(name)? else {
                continue;
            };
            if is_whiteout(&stat) {
                break;
            }
            let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_folder {
                // Below a folder it doesn't show.
                return Ok(found.or(Some(Node {
                    stat,
                    parent: layer.dir.clone(),
                    folder: Self::default(),
                })));
            }
            let inner = Layer::below(layer.dir.as_fd(), name)?;
            let (opaque, redirected) = (inner.has_mark(OPAQUE), inner.has_mark(REDIRECT));
            if redirected {
                let what = "its lower layers are elsewhere (overlayfs has redirected it)";
                return Err(io::Error::other(what));
            }
            let node = found.get_or_insert_with(|| Node {
                stat,
                parent: layer.dir.clone(),
                folder: Self::default(),
            });
            node.folder.0.push(inner);
            if opaque {
                break;
            }
        }
        Ok(found)
    }
}

/// Opens a file of a layer to be read; the caller knows that it is one.
pub fn open_file(node: &Node, name: &CStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&*node.parent, name, flags, Mode::empty())?.into())
}

fn open_folder(dir: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::fs;

    fn whiteout(path: &Path) -> bool {
        rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).is_ok()
    }

    /// Goal: what shows is what overlayfs would show: the topmost, folders joined, nothing below a
    /// whiteout or an opaque folder.
    #[test]
    fn layers_show_as_overlayfs_shows_them() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
        for (path, text) in [
            (lower.join("file"), "lower"),
            (lower.join("only"), "lower"),
            (lower.join("both/low"), "lower"),
            (lower.join("opaque/low"), "lower"),
            (upper.join("file"), "upper!"),
            (upper.join("both/up"), "upper"),
            (upper.join("opaque/up"), "upper"),
        ] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let opaque = rustix::fs::setxattr(
            upper.join("opaque"),
            OPAQUE[0],
            b"y",
            rustix::fs::XattrFlags::empty(),
        );
        if opaque.is_err() || !whiteout(&upper.join("only")) {
            println!("skipped: marks of overlayfs need root and a file system with attributes");
            return;
        }
        let top = Folder(vec![
            Layer::open(&upper).unwrap(),
            Layer::open(&lower).unwrap(),
        ]);
        let find = |folder: &Folder, name: &str| folder.find(&CString::new(name).unwrap()).unwrap();
        assert_eq!(find(&top, "file").unwrap().stat.st_size, 6);
        assert!(find(&top, "only").is_none() && find(&top, "none").is_none());
        let both = find(&top, "both").unwrap().folder;
        assert_eq!(both.0.len(), 2);
        assert!(find(&both, "low").is_some() && find(&both, "up").is_some());
        let opaque = find(&top, "opaque").unwrap().folder;
        assert!(find(&opaque, "low").is_none() && find(&opaque, "up").is_some());
        let plain = Folder(vec![Layer::open(&lower).unwrap()]);
        assert_eq!(top.shared_with(&plain), 1);
        assert_eq!(both.shared_with(&find(&plain, "both").unwrap().folder), 1);
        assert_eq!(
            opaque.shared_with(&find(&plain, "opaque").unwrap().folder),
            0
        );
    }
}
