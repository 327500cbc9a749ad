//! The fence: a lock file that lets one server at a time into a data folder.
//!
//! `flock` belongs to the open file, so the kernel takes the fence down when the holder ends in any
//! way, `kill -9` included. The file itself stays; it says who held it last. The descriptor is
//! close-on-exec: a supervisor that outlives the server does not keep the fence up. Between fork and
//! exec, though, a child of any other thread shares it, so an orderly end unlocks in so many words.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::events::error::OpenError;

/// Name of the lock file in the log's folder.
pub const FILE: &str = "lock";

/// Held while it lives.
pub struct Fence {
    file: File,
}

impl Fence {
    /// Takes the fence of `dir`, which must exist, or says who has it.
    pub fn raise(dir: &Path) -> Result<Fence, OpenError> {
        let path = dir.join(FILE);
        let io = |action, error: std::io::Error| OpenError::Io {
            path: path.clone(),
            action,
            detail: error.to_string(),
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| io("opened", error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Only for the message: whoever holds it may be about to write its number.
                let _ = (&mut file).take(32).read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "unknown".to_owned(),
                    number => number.to_owned(),
                };
                return Err(OpenError::InUse {
                    dir: dir.to_owned(),
                    holder,
                });
            }
            Err(error) => return Err(io("locked", error.into())),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        // The number is for the message above, the lock does not rest on it: a full disk, which
        // the log itself survives, must not keep the server from starting.
        let _ = write(&mut file);
        Ok(Fence { file })
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        // Should it fail, the lock goes with the last descriptor, a moment later.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a descriptor that a forked child still shares does not keep a fence up that was taken
    /// down in order.
    #[test]
    fn a_fence_taken_down_is_down_at_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let fence = Fence::raise(dir.path()).expect("raised");
        assert!(Fence::raise(dir.path()).is_err(), "one at a time");
        let shared = fence
            .file
            .try_clone()
            .expect("a second descriptor of the same file");
        drop(fence);
        assert!(Fence::raise(dir.path()).is_ok(), "still up");
        drop(shared);
    }
}
