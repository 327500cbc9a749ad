//! A secret value made for one run, and the search for it where it must not be.
//!
//! Invariants: the value is random, so a hit is never chance; each half of it is searched for, so
//! a value cut in two by a page boundary is found too; the value is never printed whole.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use zeroize::Zeroizing;

use crate::cli::private_server::{ServerError, random_hex};

/// Random bytes in a value; each half of their hex is a search pattern.
const RANDOM_BYTES: usize = 24;
/// The shortest pattern: half of that hex.
const PATTERN_BYTES_MIN: usize = RANDOM_BYTES;
/// Memory and files are read in pieces of this many bytes.
const PIECE_BYTES: usize = 1024 * 1024;
/// Two pieces overlap by more than the longest pattern.
const OVERLAP_BYTES: usize = 256;
/// Most memory read of one process, in bytes.
const MEMORY_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// One secret value.
pub struct Canary(Zeroizing<String>);

impl Canary {
    /// A new random value.
    pub fn generate() -> Result<Self, ServerError> {
        let random = random_hex(RANDOM_BYTES)?;
        Ok(Self(Zeroizing::new(format!("demo_{}", *random))))
    }

    /// The value, for the request that sets the secret and for comparison.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The form to print.
    pub fn masked(&self) -> String {
        let shown = self
            .0
            .get(self.0.len().saturating_sub(4)..)
            .unwrap_or_default();
        format!("demo_…{shown} ({} characters)", self.0.len())
    }

    fn halves(&self) -> [&str; 2] {
        let random = self.0.strip_prefix("demo_").unwrap_or(&self.0);
        let (first, second) = random.split_at(random.len() / 2);
        [first, second]
    }
}

/// How much was searched, and where the value was found.
#[derive(Default, Debug)]
pub struct Findings {
    /// Files or processes read.
    pub things: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Where it was found.
    pub hits: Vec<String>,
    /// What could not be read.
    pub unread: Vec<String>,
}

/// The search for a set of values.
pub struct Search(AhoCorasick);

impl Search {
    /// Prepares the search for these values, plain and as hex of their bytes.
    pub fn new(canaries: &[Canary]) -> Result<Self, ServerError> {
        let plain = canaries
            .iter()
            .flat_map(Canary::halves)
            .map(|half| half.as_bytes().to_vec());
        let patterns: Vec<Vec<u8>> = plain
            .flat_map(|half| [hex::encode(&half).into_bytes(), half])
            .collect();
        AhoCorasick::new(&patterns).map(Self).map_err(|error| {
            let source = io::Error::other(error);
            ServerError::System {
                action: "prepare the search".to_owned(),
                source,
            }
        })
    }

    /// Whether the text holds a value.
    pub fn is_in(&self, text: &str) -> bool {
        self.is_match(text.as_bytes())
    }

    /// Every pattern is hex digits only, so only runs of them are worth a closer look, and a run
    /// as long as a pattern covers one of the places that are that far apart. Looking there first
    /// makes the search of whole memories quick.
    fn is_match(&self, bytes: &[u8]) -> bool {
        let is_digit = |at: &usize| {
            bytes
                .get(*at)
                .is_some_and(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte))
        };
        let mut at = PATTERN_BYTES_MIN - 1;
        while at < bytes.len() {
            if is_digit(&at) {
                let start = (0..at).rev().take_while(is_digit).last().unwrap_or(at);
                let end = (at..bytes.len()).take_while(is_digit).last().unwrap_or(at) + 1;
                if self.0.is_match(bytes.get(start..end).unwrap_or_default()) {
                    return true;
                }
                at = end;
            }
            at += PATTERN_BYTES_MIN;
        }
        false
    }

    /// Searches every regular file below `folder`; links are not followed.
    pub fn files(&self, folder: &Path) -> Findings {
        let mut findings = Findings::default();
        let mut waiting = vec![folder.to_owned()];
        while let Some(path) = waiting.pop() {
            if let Err(error) = self.visit(&path, &mut waiting, &mut findings)
                // Files come and go while a server works.
                && error.kind() != io::ErrorKind::NotFound
            {
                findings
                    .unread
                    .push(format!("{} ({error})", path.display()));
            }
        }
        findings
    }

    fn visit(
        &self,
        path: &Path,
        waiting: &mut Vec<PathBuf>,
        findings: &mut Findings,
    ) -> io::Result<()> {
        // A value in the name of a file is a value in a file.
        if self.is_in(&path.to_string_lossy()) {
            findings
                .hits
                .push(format!("the name of {}", path.display()));
        }
        let kind = fs::symlink_metadata(path)?.file_type();
        if kind.is_dir() {
            for entry in open_dir(path)? {
                waiting.push(entry?.path());
            }
        } else if kind.is_file() {
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let file = fs::OpenOptions::new()
                .read(true)
                .custom_flags(flags)
                .open(path)?;
            findings.things += 1;
            if self.reader(Written(file), &mut findings.bytes)? {
                findings.hits.push(path.display().to_string());
            }
        }
        Ok(())
    }

    /// Searches what `reader` gives; counts into `bytes`.
    fn reader(&self, mut reader: impl Read, bytes: &mut u64) -> io::Result<bool> {
        let mut piece = Zeroizing::new(Vec::with_capacity(PIECE_BYTES + OVERLAP_BYTES));
        loop {
            let read = reader
                .by_ref()
                .take(PIECE_BYTES as u64)
                .read_to_end(&mut piece)?;
            *bytes += read as u64;
            if self.is_match(&piece) {
                return Ok(true);
            }
            if read == 0 {
                return Ok(false);
            }
            let surplus = piece.len().saturating_sub(OVERLAP_BYTES);
            piece.drain(..surplus);
        }
    }

    /// Searches the environment and the readable memory of processes of this machine.
    pub fn processes(&self, pids: &[u32]) -> Findings {
        let mut findings = Findings::default();
        for pid in pids {
            match self.process(*pid, &mut findings.bytes) {
                Ok(hits) => {
                    findings.things += 1;
                    findings.hits.extend(hits);
                }
                Err(error) => findings.unread.push(format!("process {pid} ({error})")),
            }
        }
        findings
    }

    fn process(&self, pid: u32, bytes: &mut u64) -> io::Result<Vec<String>> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let mut hits = Vec::new();
        for name in ["environ", "cmdline"] {
            if self.reader(File::open(folder.join(name))?, bytes)? {
                hits.push(format!("{name} of process {pid}"));
            }
        }
        let memory = File::open(folder.join("mem"))?;
        let limit = *bytes + MEMORY_BYTES_MAX;
        for (start, end) in regions(&fs::read_to_string(folder.join("maps"))?) {
            if *bytes < limit && self.region(&memory, start, end, bytes) {
                hits.push(format!("memory of process {pid} at {start:x}"));
            }
        }
        Ok(hits)
    }

    fn region(&self, memory: &File, start: u64, end: u64, bytes: &mut u64) -> bool {
        let mut piece = Zeroizing::new(vec![0; PIECE_BYTES]);
        let mut at = start;
        while at < end {
            let wanted = usize::try_from(end - at)
                .unwrap_or(PIECE_BYTES)
                .min(PIECE_BYTES);
            let room = piece.get_mut(..wanted).unwrap_or_default();
            // A region may vanish or have no page behind it (a file that was cut): nothing to find.
            let read = memory.read_at(room, at).unwrap_or(0);
            if read == 0 {
                return false;
            }
            *bytes += read as u64;
            if self.is_match(room.get(..read).unwrap_or_default()) {
                return true;
            }
            if at + read as u64 >= end {
                return false;
            }
            at += (read.saturating_sub(OVERLAP_BYTES)).max(1) as u64;
        }
        false
    }
}

/// Reads a folder, and opens it first where its owner has closed it to himself: overlayfs leaves
/// such working folders, which only matters to a user who isn't root.
/// What was written of a file; its holes, of which the disk of a sandbox is nearly all, are left out.
struct Written(File);

impl Read for Written {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let at = self.0.stream_position()?;
        match rustix::fs::seek(&self.0, rustix::fs::SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => Ok(0),
            // A file system that can't tell has no holes.
            _ => self.0.read(buffer),
        }
    }
}

fn open_dir(path: &Path) -> io::Result<fs::ReadDir> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
            fs::read_dir(path)
        }
        read => read,
    }
}

/// The readable regions of a `/proc/<pid>/maps`.
fn regions(maps: &str) -> Vec<(u64, u64)> {
    let region = |line: &str| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let readable = words.next()?.starts_with('r');
        let special = matches!(
            words.nth(3),
            Some("[vvar]" | "[vsyscall]" | "[vvar_vclock]")
        );
        let range = (
            u64::from_str_radix(start, 16).ok()?,
            u64::from_str_radix(end, 16).ok()?,
        );
        (readable && !special).then_some(range)
    };
    maps.lines().filter_map(region).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search() -> (Canary, Search) {
        let canary = Canary::generate().unwrap();
        let search = Search::new(std::slice::from_ref(&canary)).unwrap();
        (canary, search)
    }

    /// Goal: the search finds what it is for: plain, cut at a page boundary, in hex, in a name,
    /// across the pieces it reads in; and nothing else.
    #[test]
    fn values_are_found_wherever_they_lie() {
        let (canary, search) = search();
        let value = canary.expose().to_owned();
        let check = |name: &str, content: Vec<u8>, found: bool| {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("deep")).unwrap();
            fs::write(folder.path().join("deep").join(name), &content).unwrap();
            let findings = search.files(folder.path());
            assert_eq!(
                (findings.things, findings.bytes > 0),
                (1, !content.is_empty())
            );
            assert_eq!(!findings.hits.is_empty(), found, "{name}: {findings:?}");
        };
        let around = |before: usize, value: &str| {
            [
                vec![b'x'; before],
                value.as_bytes().to_vec(),
                vec![b'y'; 100],
            ]
            .concat()
        };
        check("plain", around(10, &value), true);
        check("hex", around(10, &hex::encode(&value)), true);
        check("half", around(0, &value[..30]), true);
        check("other half", around(0, &value[28..]), true);
        for shift in 0..60 {
            check("edge", around(PIECE_BYTES - shift, &value), true);
        }
        for shift in 0..60 {
            check("offset", around(shift, &value[5..29]), true);
            check(
                "in other hex",
                around(shift, &format!("0a{}b1", &value[29..])),
                true,
            );
        }
        check(&value, vec![], true);
        check(
            "clean",
            around(3 * PIECE_BYTES, "demo_0123456789abcdef"),
            false,
        );
        check("masked", around(0, &canary.masked()), false);
    }

    /// Goal: memory really is searched. Method: this process holds the value, a child does not.
    #[test]
    fn memory_of_processes_is_searched() {
        let (canary, search) = search();
        let own = search.processes(&[std::process::id()]);
        if own.things == 0 {
            println!(
                "skipped: this process may not read its own memory: {:?}",
                own.unread
            );
            return;
        }
        assert!(!own.hits.is_empty() && own.bytes > 100_000, "{own:?}");
        let mut clean = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let mut tainted = std::process::Command::new("sleep")
            .arg("60")
            .env("LEAK", canary.expose())
            .spawn()
            .unwrap();
        // Let both reach their own program: before exec a child has a copy of our memory.
        std::thread::sleep(std::time::Duration::from_millis(300));
        let found = [&clean, &tainted].map(|child| search.processes(&[child.id()]));
        for child in [&mut clean, &mut tainted] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(
            (found[0].things, found[0].hits.len()),
            (1, 0),
            "{:?}",
            found[0]
        );
        assert!(
            found[1].hits.iter().any(|hit| hit.contains("environ")),
            "{:?}",
            found[1]
        );
        assert!(
            found[1].hits.iter().any(|hit| hit.contains("memory")),
            "{:?}",
            found[1]
        );
        assert!(!search.processes(&[u32::MAX]).unread.is_empty());
    }
}
