//! What something left mounted below a folder that is to be removed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;

/// Lets go of everything that is mounted below `folder` in this process' mount namespace: a mount
/// or a namespace that something left there would keep the folder from being removed.
pub fn unmount_below(folder: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The last mounted first.
    for point in points_below(&table, folder).into_iter().rev() {
        let _ = rustix::mount::unmount(point, UnmountFlags::DETACH);
    }
}

fn points_below(table: &str, folder: &Path) -> Vec<PathBuf> {
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .map(unescaped)
        .filter(|point| point.starts_with(folder))
        .collect()
}

/// A path as the kernel's tables spell it: blanks and the like as `\\` and three octal digits.
fn unescaped(text: &str) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, behind)) = rest.split_first() {
        let octal = behind.get(..3).filter(|_| first == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = behind.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_whatever_their_folder_is_called() {
        let table = "30 1 0:26 / /data/a\\040b rw - tmpfs none rw\n\
                     31 1 0:26 / /data/a\\040b/sb-1/x\\134y rw - tmpfs none rw\n\
                     32 1 0:26 / /data/a rw - tmpfs none rw";
        let found = points_below(table, Path::new("/data/a b/sb-1"));
        assert_eq!(found, [PathBuf::from("/data/a b/sb-1/x\\y")]);
    }
}
