//! The head witness: a second small file that remembers how far the log had come.
//!
//! SQLite silently drops a damaged WAL tail at recovery, which would make acknowledged events
//! vanish without a word. So, after a group of commits is on disk, the head is written here with a
//! sync of its own (when, says `witness_task.rs`). A log that ends before its witness has lost
//! events and must not start. A crash between the two syncs leaves the log ahead of the witness,
//! which is fine: what lies beyond verifies by the chain.
//!
//! ```text
//! file = slot at 0, slot at 4096          8192 bytes from birth: a full disk can't stop a write
//! slot = "ocwitns1" | log id 16 | position u64 | commit u64 | chain 32 | SHA-256 of all that 32
//! ```
//!
//! Integers are big-endian. Writes alternate between the slots, so a torn write leaves the other
//! slot, which is one write older.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use ulid::Ulid;

use crate::events::event::Head;

/// Name of the witness in the log's folder.
pub const FILE: &str = "head.witness";
const MAGIC: &[u8; 8] = b"ocwitns1";
const BODY_BYTES: usize = 8 + 16 + 8 + 8 + 32;
const SLOT_BYTES: usize = BODY_BYTES + 32;
const SLOT_OFFSETS: [u64; 2] = [0, 4096];
const FILE_BYTES: usize = 8192;

/// What the witness has seen: `log` reached `head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub log: Ulid,
    pub head: Head,
}

/// What is in the folder.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Missing,
    /// There is a file and neither slot is whole.
    Unreadable,
    Seen(Seen),
}

/// The open witness.
pub struct Witness {
    file: File,
    path: PathBuf,
    next_slot: usize,
}

impl Witness {
    /// The witness's file in `dir`.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// Reads what the witness in `dir` has seen last.
    pub fn look(dir: &Path) -> io::Result<Found> {
        match File::open(Self::path(dir)) {
            Ok(file) => Ok(match newest(&file)? {
                Some((_, seen)) => Found::Seen(seen),
                None => Found::Unreadable,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Missing),
            Err(error) => Err(error),
        }
    }

    /// Makes the file (or replaces it) with `seen` in both slots; whole or not at all.
    pub fn create(dir: &Path, seen: &Seen) -> io::Result<Witness> {
        let path = Self::path(dir);
        let fresh = dir.join("head.witness.new");
        let mut bytes = vec![0; FILE_BYTES];
        for offset in SLOT_OFFSETS {
            let start = usize::try_from(offset).unwrap_or(0);
            bytes[start..start + SLOT_BYTES].copy_from_slice(&encode(seen));
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        File::open(dir)?.sync_all()?;
        Self::open(dir)
    }

    /// Opens the file to go on writing where the newest slot is not.
    pub fn open(dir: &Path) -> io::Result<Witness> {
        let path = Self::path(dir);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let next_slot = newest(&file)?.map_or(0, |(slot, _)| 1 - slot);
        Ok(Witness {
            file,
            path,
            next_slot,
        })
    }

    /// Writes `seen` and syncs it.
    pub fn record(&mut self, seen: &Seen) -> io::Result<()> {
        let offset = SLOT_OFFSETS[self.next_slot % 2];
        self.file.write_all_at(&encode(seen), offset)?;
        self.file.sync_data()?;
        self.next_slot = (self.next_slot + 1) % 2;
        Ok(())
    }

    /// Where it is, for messages.
    pub fn file_path(&self) -> &Path {
        &self.path
    }
}

/// The whole slot with the highest commit, and its index.
fn newest(file: &File) -> io::Result<Option<(usize, Seen)>> {
    let mut best: Option<(usize, Seen)> = None;
    for (index, offset) in SLOT_OFFSETS.into_iter().enumerate() {
        let mut slot = [0; SLOT_BYTES];
        match file.read_exact_at(&mut slot, offset) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            Err(error) => return Err(error),
        }
        let Some(seen) = decode(&slot) else { continue };
        if best.is_none_or(|(_, other)| other.head.commit <= seen.head.commit) {
            best = Some((index, seen));
        }
    }
    Ok(best)
}

fn encode(seen: &Seen) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..8].copy_from_slice(MAGIC);
    slot[8..24].copy_from_slice(&seen.log.to_bytes());
    slot[24..32].copy_from_slice(&seen.head.position.to_be_bytes());
    slot[32..40].copy_from_slice(&seen.head.commit.to_be_bytes());
    slot[40..BODY_BYTES].copy_from_slice(&seen.head.chain);
    let sum = Sha256::digest(&slot[..BODY_BYTES]);
    slot[BODY_BYTES..].copy_from_slice(&sum);
    slot
}

fn decode(slot: &[u8; SLOT_BYTES]) -> Option<Seen> {
    let (magic, rest) = slot.split_first_chunk::<8>()?;
    let (log, rest) = rest.split_first_chunk::<16>()?;
    let (position, rest) = rest.split_first_chunk::<8>()?;
    let (commit, rest) = rest.split_first_chunk::<8>()?;
    let (chain, sum) = rest.split_first_chunk::<32>()?;
    if magic != MAGIC || Sha256::digest(&slot[..BODY_BYTES]).as_slice() != sum {
        return None;
    }
    Some(Seen {
        log: Ulid::from_bytes(*log),
        head: Head {
            position: u64::from_be_bytes(*position),
            commit: u64::from_be_bytes(*commit),
            chain: *chain,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(commit: u64) -> Seen {
        let head = Head {
            position: commit * 3,
            commit,
            chain: [commit as u8; 32],
        };
        Seen {
            log: Ulid::from_bytes([7; 16]),
            head,
        }
    }

    /// Goal: a write torn at any byte leaves the head before it or the new one, never nothing.
    #[test]
    fn a_torn_write_leaves_the_old_head_or_the_new_one() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut witness = Witness::create(dir.path(), &seen(1)).expect("created");
        witness.record(&seen(2)).expect("recorded");
        let before = std::fs::read(Witness::path(dir.path())).expect("read");
        witness.record(&seen(9)).expect("recorded");
        let after = std::fs::read(Witness::path(dir.path())).expect("read");
        assert_eq!(before.len(), FILE_BYTES);
        // Between the slots there is nothing to tear.
        for torn in (0..=FILE_BYTES).filter(|torn| torn % 4096 <= SLOT_BYTES + 1) {
            let bytes = [&after[..torn], &before[torn..]].concat();
            std::fs::write(Witness::path(dir.path()), bytes).expect("written");
            let found = Witness::look(dir.path()).expect("readable");
            let fine = [Found::Seen(seen(2)), Found::Seen(seen(9))];
            assert!(fine.contains(&found), "torn at {torn}: {found:?}");
        }
    }

    /// Goal: reopening goes on in the older slot, so that the newest is never overwritten.
    #[test]
    fn reopening_never_overwrites_the_newest_slot() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        drop(Witness::create(dir.path(), &seen(1)).expect("created"));
        for commit in 2..6 {
            let newest_before = Witness::look(dir.path()).expect("readable");
            let mut witness = Witness::open(dir.path()).expect("opened");
            let slot = witness.next_slot;
            witness.record(&seen(commit)).expect("recorded");
            witness
                .file
                .write_all_at(&[0xff; SLOT_BYTES], SLOT_OFFSETS[slot])
                .expect("torn");
            assert_eq!(Witness::look(dir.path()).expect("readable"), newest_before);
            witness.next_slot = slot;
            witness.record(&seen(commit)).expect("recorded");
        }
        assert_eq!(
            Witness::look(dir.path()).expect("readable"),
            Found::Seen(seen(5))
        );
    }

    #[test]
    fn a_missing_and_a_garbled_witness_are_told_apart() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(Witness::look(dir.path()).expect("readable"), Found::Missing);
        for garbage in [vec![], vec![0; 100], vec![0xaa; FILE_BYTES]] {
            std::fs::write(Witness::path(dir.path()), garbage).expect("written");
            assert_eq!(
                Witness::look(dir.path()).expect("readable"),
                Found::Unreadable
            );
        }
    }
}
