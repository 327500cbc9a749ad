//! Notices that files have changed, by looking.
//!
//! Invariant: a change is told once, when two looks in a row see the same new state, so that a
//! file that is being written is not read in the middle.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// What a look at a file finds: device, inode, size, change and modification time; nothing for a
/// file that is not there.
type Look = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

/// Files under watch.
#[derive(Default)]
pub struct Watch {
    files: Vec<PathBuf>,
    known: Vec<Look>,
    last: Vec<Look>,
}

impl Watch {
    /// Watches a file too, from its present state on: called before it is read.
    pub fn add(&mut self, file: PathBuf) {
        let now = look(&file);
        self.files.push(file);
        self.known.push(now);
        self.last.push(now);
    }

    /// Looks; whether there is a change that has come to rest.
    pub fn changed(&mut self) -> bool {
        let now: Vec<_> = self.files.iter().map(look).collect();
        let rests = now == self.last;
        self.last.clone_from(&now);
        if rests && now != self.known {
            self.known = now;
            return true;
        }
        false
    }
}

fn look(path: &PathBuf) -> Look {
    let about = std::fs::metadata(path).ok()?;
    Some((
        about.dev(),
        about.ino(),
        about.size(),
        (about.ctime(), about.ctime_nsec()),
        (about.mtime(), about.mtime_nsec()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_after_it_rests() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "1").unwrap();
        let mut watch = Watch::default();
        watch.add(path.clone());
        assert!(!watch.changed());
        std::fs::write(&path, "two").unwrap();
        assert_eq!(
            [watch.changed(), watch.changed(), watch.changed()],
            [false, true, false]
        );
        std::fs::write(&path, "three").unwrap();
        assert!(!watch.changed());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            [watch.changed(), watch.changed(), watch.changed()],
            [false, true, false]
        );
    }
}
