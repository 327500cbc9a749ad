//! What a server's sandboxes leave in the world, found without asking the code under test:
//! processes that hold a file of theirs, mounts on their folders, control groups with their names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Control groups are looked for this many folders deep.
const CGROUP_DEPTH_MAX: usize = 6;

/// Traces of sandboxes; empty sets mean that nothing is there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Names of the sandboxes' folders.
    pub folders: BTreeSet<String>,
    /// Supervisors and guests.
    pub processes: BTreeSet<i32>,
    /// Sandboxes that have a control group.
    pub groups: BTreeSet<String>,
}

/// Ids of the sandboxes that have a folder below `data`.
pub fn folders(data: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(data.join("sandboxes"))
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("sb-")).collect()
}

/// What is there of the sandboxes of `data`, and of those among `ids` that may have lost their
/// folder already.
pub fn traces(data: &Path, ids: &BTreeSet<String>) -> Traces {
    let folders = folders(data);
    let known: BTreeSet<_> = folders.union(ids).cloned().collect();
    let mut groups = BTreeSet::new();
    for group in control_groups() {
        groups.extend(sandbox_of(&group).filter(|id| known.contains(id)));
    }
    Traces {
        processes: holders(data, &known),
        folders,
        groups,
    }
}

/// Ends and removes whatever is left of the sandboxes of `data`. For a server that does not run.
pub fn sweep(data: &Path) {
    let ids = folders(data);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = holders(data, &ids);
        if left.is_empty() || Instant::now() > deadline {
            break;
        }
        for pid in left.into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for group in control_groups() {
        if sandbox_of(&group).is_some_and(|id| ids.contains(&id)) {
            let _ = fs::remove_dir(group);
        }
    }
    for point in mounts_below(data).into_iter().rev() {
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Supervisors, which hold a lock below `data`, and what runs in the control groups of `ids`.
fn holders(data: &Path, ids: &BTreeSet<String>) -> BTreeSet<i32> {
    let data = data.canonicalize().unwrap_or_else(|_| data.to_owned());
    let own = std::process::id().cast_signed();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .filter(|(pid, process)| *pid != own && (locks(process, &data) || is_in(process, ids)))
        .map(|(pid, _)| pid)
        .collect()
}

fn locks(process: &Path, data: &Path) -> bool {
    let sandboxes = data.join("sandboxes");
    let fds = fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten();
    fds.filter_map(|fd| fs::read_link(fd.path()).ok())
        .any(|target| target.starts_with(&sandboxes) && target.ends_with("run/lock"))
}

fn is_in(process: &Path, ids: &BTreeSet<String>) -> bool {
    let text = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
    text.lines()
        .filter_map(|line| sandbox_of(Path::new(line)))
        .any(|id| ids.contains(&id))
}

/// The sandbox that a control group is named after.
fn sandbox_of(group: &Path) -> Option<String> {
    let name = group.file_name()?.to_str()?.strip_prefix("oc-")?;
    name.rfind("sb-")
        .and_then(|at| name.get(at..))
        .map(str::to_owned)
}

/// Mount points below `folder`, in the order in which they were made.
fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = text
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from);
    points
        .filter(|point| point.starts_with(folder) && point != folder)
        .collect()
}

fn control_groups() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((folder, depth)) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if sandbox_of(&entry.path()).is_some() {
                found.push(entry.path());
            } else if depth < CGROUP_DEPTH_MAX {
                open.push((entry.path(), depth + 1));
            }
        }
    }
    found
}
