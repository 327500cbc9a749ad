//! Users of the host behind the users inside.
//!
//! Invariant: what the kernel counts by user is counted for each sandbox alone. Descriptors on
//! their way through sockets and memory of pipes are counted by the user that a process has
//! outside, inotify instances by the owner of its user namespace: shared by two sandboxes (or by
//! a sandbox and root outside), one of them could use them up for the other.
//!
//! The range is a function of the sandbox's id, so that a disk keeps its owners. Two of many
//! sandboxes may meet in a range; they then share counts, and nothing else.

use std::io;

use rustix::thread::CapabilitySet;
use sha2::{Digest, Sha256};

use crate::ids::SandboxId;

/// First id of the ranges; above what hosts give to their users and to containers.
const IDS_FIRST: u32 = 0x4000_0000;
/// Ids in one range.
pub const COUNT: u32 = 65_536;
/// Ranges.
const RANGES: u32 = 8192;

/// The first id of a sandbox's range: root inside is this unprivileged user.
pub fn first_of(id: &SandboxId) -> u32 {
    let hash = Sha256::digest(id.as_str().as_bytes());
    let number = u32::from(hash[0]) << 8 | u32::from(hash[1]);
    IDS_FIRST + number % RANGES * COUNT
}

/// Whether sandboxes can have ranges of ids of their own: as root, with the ranges mapped (in a
/// container they may not be).
pub fn can_be_given() -> bool {
    let maps = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    rustix::process::geteuid().is_root() && all_mapped(&maps)
}

/// Whether `uid_map` (of a process, in the kernel's format) has every range.
fn all_mapped(uid_map: &str) -> bool {
    uid_map.lines().any(|line| {
        let mut numbers = line
            .split_ascii_whitespace()
            .map(|n| n.parse().unwrap_or(0u64));
        let (first, _, count) = (numbers.next(), numbers.next(), numbers.next());
        let (first, count) = (first.unwrap_or(0), count.unwrap_or(0));
        let last = u64::from(IDS_FIRST) + u64::from(RANGES) * u64::from(COUNT);
        first <= u64::from(IDS_FIRST) && last <= first + count
    })
}

/// Does `work` as the user `owner` with all of root's capabilities: a user namespace made there
/// belongs to `owner`. Where that can't be, `work` is done as root.
///
/// The caller must be root and single-threaded; a copy of the process made by `work` stays `owner`.
pub fn as_owner<T>(owner: u32, work: impl FnOnce() -> T) -> T {
    let Ok(bits) = become_owner(owner) else {
        return work();
    };
    let done = work();
    // In a copy made by `work`, root is the one inside, or nobody yet; either is as good there.
    let _ = set_effective(0).and_then(|()| set_securebits(bits));
    done
}

/// The secure bits as they were.
fn become_owner(owner: u32) -> io::Result<libc::c_int> {
    // Needed to open the namespace of a process of another user.
    let held = rustix::thread::capabilities(None)?.effective;
    if !held.contains(CapabilitySet::SYS_PTRACE | CapabilitySet::SETPCAP) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // SAFETY: plain integers.
    let bits = unsafe { libc::prctl(libc::PR_GET_SECUREBITS, 0, 0, 0, 0) };
    if bits < 0 {
        return Err(io::Error::last_os_error());
    }
    set_securebits(bits | libc::SECBIT_NO_SETUID_FIXUP)?;
    set_effective(owner).inspect_err(|_| drop(set_securebits(bits)))?;
    Ok(bits)
}

fn set_securebits(bits: libc::c_int) -> io::Result<()> {
    // SAFETY: plain integers.
    match unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_effective(uid: u32) -> io::Result<()> {
    const SAME: libc::uid_t = libc::uid_t::MAX;
    // SAFETY: plain integers. The raw call acts on this thread, the only one.
    match unsafe { libc::syscall(libc::SYS_setresuid, SAME, uid, SAME) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_apart_and_stay() {
        let ids: Vec<SandboxId> = (0..64).map(|_| SandboxId::generate()).collect();
        let firsts: std::collections::BTreeSet<u32> = ids.iter().map(first_of).collect();
        assert!(firsts.len() > 48, "{firsts:?}");
        assert!(firsts.iter().all(|first| first % COUNT == 0));
        assert!(
            firsts
                .iter()
                .all(|first| *first >= IDS_FIRST && *first < 0x6000_0000)
        );
        assert_eq!(first_of(&ids[0]), first_of(&ids[0].clone()));
    }

    #[test]
    fn a_part_of_the_ranges_is_not_enough() {
        for (map, all) in [
            ("         0          0 4294967295\n", true),
            ("0 0 65536\n", false),
            ("0 100000 1073741824\n", false),
            ("", false),
            ("x y z", false),
        ] {
            assert_eq!(all_mapped(map), all, "{map:?}");
        }
    }
}
