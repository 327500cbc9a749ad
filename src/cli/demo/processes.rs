//! Finds the processes of one sandbox on the host, and what a failed run left behind.
//!
//! The way in is a process that was started inside with a mark in its environment: its ancestor
//! that is PID 1 in a namespace of its own is the guest, that one's parent the supervisor.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
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

/// Ends every process that names `folder`, which is this run's alone, on its command line.
/// Answers with those it found.
pub fn end_strays(folder: &Path) -> Vec<u32> {
    let own = std::process::id();
    let names_folder = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        *pid != own && memmem::find(&line, folder.as_os_str().as_bytes()).is_some()
    };
    let strays: Vec<u32> = pids().into_iter().filter(names_folder).collect();
    for pid in strays
        .iter()
        .filter_map(|pid| Pid::from_raw(pid.cast_signed()))
    {
        // One that has ended meanwhile is what is wanted.
        let _ = kill_process(pid, Signal::KILL);
    }
    strays
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
    use std::process::Command;

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

    /// Goal: only processes that name this run's folder are ended.
    #[test]
    fn strays_are_those_that_name_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let start = |argument: &Path| {
            let mut shell = Command::new("sh");
            // Waits for input that never comes, without a child that would be left behind.
            shell
                .args(["-c", "read nothing"])
                .arg(argument)
                .stdin(std::process::Stdio::piped());
            shell.spawn().unwrap()
        };
        let mut stray = start(&folder.path().join("data"));
        let mut other = start(Path::new("/nowhere"));
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(end_strays(folder.path()), [stray.id()]);
        assert!(!stray.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none());
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(detach_mounts(folder.path()).is_empty());
    }
}
