//! Finds the processes of one sandbox on the host, and what a failed run left behind.
//!
//! The way in is a process that was started inside with a mark in its environment: its ancestor
//! that is PID 1 in a namespace of its own is the guest, that one's parent the supervisor.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use memchr::memmem;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// Who is whose child, by process id.
struct Tree(BTreeMap<u32, u32>);

impl Tree {
    fn read() -> Self {
        Self(
            pids()
                .into_iter()
                .filter_map(|pid| Some((pid, parent(pid)?)))
                .collect(),
        )
    }

    fn with_descendants(&self, root: u32) -> Vec<u32> {
        let mut found = vec![root];
        let mut next = 0;
        while let Some(&ancestor) = found.get(next) {
            next += 1;
            found.extend(
                self.0
                    .iter()
                    .filter(|(_, parent)| **parent == ancestor)
                    .map(|(pid, _)| pid),
            );
        }
        found
    }
}

/// All processes of the sandbox in which a process has `mark` in its environment, the supervisor
/// first; empty when there is none that we may see.
pub fn of_sandbox(mark: &str) -> Vec<u32> {
    let Some(marked) = pids().into_iter().find(|pid| environment_has(*pid, mark)) else {
        return Vec::new();
    };
    let tree = Tree::read();
    let mut pid = marked;
    while !is_namespace_init(pid) {
        match tree.0.get(&pid) {
            Some(&parent) if parent > 1 => pid = parent,
            _ => return Vec::new(),
        }
    }
    // The guest's parent holds the sandbox; without one (init took over) the guest is the root.
    let supervisor = tree.0.get(&pid).copied().filter(|parent| *parent > 1);
    tree.with_descendants(supervisor.unwrap_or(pid))
}

/// Ends every process of `program` that has a file below `folder`, which is this run's alone, open
/// or on its command line: a server or a supervisor that a broken run left. Answers with those it
/// found.
pub fn end_strays(folder: &Path, program: &Path) -> Vec<u32> {
    let own = std::process::id();
    let strays = pids().into_iter().filter(|pid| {
        *pid != own && runs(*pid, program) && (names(*pid, folder) || holds_open(*pid, folder))
    });
    let strays: Vec<u32> = strays.collect();
    for pid in strays
        .iter()
        .filter_map(|pid| Pid::from_raw(pid.cast_signed()))
    {
        // One that has ended meanwhile is what is wanted.
        let _ = kill_process(pid, Signal::KILL);
    }
    strays
}

/// Compares the files, not their names: a program may be replaced while it runs.
fn runs(pid: u32, program: &Path) -> bool {
    let file = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let of_process = file(Path::new(&format!("/proc/{pid}/exe")));
    of_process.is_some() && of_process == file(program)
}

fn names(pid: u32, folder: &Path) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    memmem::find(&line, folder.as_os_str().as_bytes()).is_some()
}

fn holds_open(pid: u32, folder: &Path) -> bool {
    let files = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    files
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|path| path.starts_with(folder))
}

/// Detaches every mount below `folder`, the deepest first. Answers with those it found.
pub fn detach_mounts(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    let mut mounts: Vec<PathBuf> = points.filter(|point| point.starts_with(folder)).collect();
    mounts.reverse();
    for point in &mounts {
        // What stays is seen when the folder is removed.
        let _ = unmount(point, UnmountFlags::DETACH);
    }
    mounts
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn environment_has(pid: u32, mark: &str) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    memmem::find(&environment, mark.as_bytes()).is_some()
}

fn parent(pid: u32) -> Option<u32> {
    status_words(pid, "PPid:")?.first()?.parse().ok()
}

/// PID 1 of a PID namespace below ours: its line holds one number for each namespace.
fn is_namespace_init(pid: u32) -> bool {
    status_words(pid, "NSpid:")
        .is_some_and(|ids| ids.len() > 1 && ids.last().is_some_and(|id| id == "1"))
}

fn status_words(pid: u32, label: &str) -> Option<Vec<String>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(label))?;
    Some(line.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Goal: from a marked process deep in a PID namespace to all of the "sandbox", supervisor
    /// first. Method: unshare(1) stands in for the supervisor, a shell for the guest.
    #[test]
    fn a_sandbox_is_found_from_inside_out() {
        let mark = format!("mark-{}", ulid::Ulid::generate());
        let script = format!("MARK={mark} sleep 60 & sleep 60; :");
        let mut supervisor = match Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "sh", "-c", &script])
            .spawn()
        {
            Ok(child) => child,
            Err(error) => return println!("skipped: no unshare program: {error}"),
        };
        std::thread::sleep(std::time::Duration::from_millis(500));
        let ended = supervisor.try_wait().unwrap();
        let found = of_sandbox(&mark);
        if ended.is_none() {
            supervisor.kill().unwrap();
        }
        supervisor.wait().unwrap();
        if ended.is_some() {
            return println!("skipped: this user may not make PID namespaces");
        }
        assert_eq!(found.first(), Some(&supervisor.id()));
        assert_eq!(found.len(), 4, "supervisor, guest, two commands: {found:?}");
        assert!(of_sandbox("mark-nobody-has").is_empty());
    }

    /// Goal: only processes of the program that have to do with the folder are ended.
    #[test]
    fn strays_are_known_by_program_and_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        fs::write(&file, "").unwrap();
        // Each waits for input that never comes, without a child that would be left behind.
        let start = |program: &str, argument: &Path, open: &Path| {
            let mut command = Command::new(program);
            command
                .args(["-c", "read nothing"])
                .arg(argument)
                .stdin(Stdio::piped());
            command
                .stdout(fs::File::open(open).unwrap())
                .spawn()
                .unwrap()
        };
        let nowhere = Path::new("/dev/null");
        let mut named = start("/bin/bash", &folder.path().join("data"), nowhere);
        let mut open = start("/bin/bash", nowhere, &file);
        let mut others = [
            start("/bin/bash", nowhere, nowhere),
            start("/bin/dash", folder.path(), &file),
        ];
        std::thread::sleep(std::time::Duration::from_millis(300));
        let mut found = end_strays(folder.path(), Path::new("/bin/bash"));
        let others_live = others
            .each_mut()
            .map(|other| other.try_wait().unwrap().is_none());
        for child in [&mut named, &mut open].into_iter().chain(&mut others) {
            // Those that should be gone are; those that should live are ours to end.
            let _ = child.kill();
            child.wait().unwrap();
        }
        let mut expected = [named.id(), open.id()];
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(
            (found.as_slice(), others_live),
            (&expected[..], [true, true])
        );
        assert!(detach_mounts(folder.path()).is_empty());
    }
}
