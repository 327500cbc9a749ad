//! What idle sandboxes cost outside of themselves: memory and descriptors of the server and of
//! their supervisors. What runs inside a sandbox is its own, and not counted.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::boxes::Box;
use crate::cli::client::Api;
use crate::cli::error::CliError;

/// How long everything rests before it is looked at: caches are given back, batches written.
const REST: Duration = Duration::from_secs(2);

/// The figures at one number of sandboxes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Idle {
    pub sandboxes: u32,
    /// What the server has grown by for each, KiB of memory that no file is behind: its program's
    /// pages count for less with each supervisor that shares them.
    pub server_kib_each: f64,
    pub server_fds_each: f64,
    /// The median supervisor's proportional set, KiB: pages that several share count in part.
    pub supervisor_kib: f64,
    /// What no other process shares, KiB.
    pub supervisor_private_kib: f64,
    pub supervisor_fds: f64,
    /// Server and supervisor together for each, KiB.
    pub total_kib_each: f64,
}

#[derive(Clone, Copy)]
pub struct Process {
    pub anonymous_kib: u64,
    /// Pages that several share count in part.
    pub proportional_kib: u64,
    private_kib: u64,
    fds: usize,
}

/// Makes sandboxes until there are as many as each of `counts` says, the least first, and looks;
/// then takes them away. `data` is the server's folder.
pub async fn idle(
    api: &Api,
    server: u32,
    data: &Path,
    counts: &[u32],
) -> Result<Vec<Idle>, CliError> {
    tokio::time::sleep(REST).await;
    let before = look(server)?;
    let mut counts = counts.to_vec();
    counts.sort_unstable();
    let mut boxes = Vec::new();
    let measured = grow(api, server, before, data, &counts, &mut boxes).await;
    // Also after a failure, which would otherwise leave them running.
    let mut deleted = Ok(());
    for one in boxes {
        deleted = one.delete().await.and(deleted);
    }
    deleted.and(measured)
}

async fn grow<'a>(
    api: &'a Api,
    server: u32,
    before: Process,
    data: &Path,
    counts: &[u32],
    boxes: &mut Vec<Box<'a>>,
) -> Result<Vec<Idle>, CliError> {
    let mut figures = Vec::new();
    for count in counts {
        while boxes.len() < *count as usize {
            let one = Box::create(api).await?;
            let ran = one.run("true").await;
            boxes.push(one);
            ran?;
        }
        tokio::time::sleep(REST).await;
        let now = look(server)?;
        let supervisors: Result<Vec<_>, _> = boxes
            .iter()
            .map(|one| look(supervisor(data, &one.id)?))
            .collect();
        let supervisors = supervisors?;
        let median = |of: fn(&Process) -> f64| super::median(supervisors.iter().map(of).collect());
        let each = |now: f64, before: f64| (now - before) / f64::from((*count).max(1));
        let server_kib = each(now.anonymous_kib as f64, before.anonymous_kib as f64);
        let supervisor_kib = median(|process| process.proportional_kib as f64);
        figures.push(Idle {
            sandboxes: *count,
            server_kib_each: server_kib,
            server_fds_each: each(now.fds as f64, before.fds as f64),
            supervisor_kib,
            supervisor_private_kib: median(|process| process.private_kib as f64),
            supervisor_fds: median(|process| process.fds as f64),
            total_kib_each: server_kib + supervisor_kib,
        });
    }
    Ok(figures)
}

/// The process that holds a sandbox, as the sandbox's folder names it.
pub fn supervisor(data: &Path, id: &str) -> Result<u32, CliError> {
    let disks = data.join("sandboxes");
    let at = |root: &Path| root.join(id).join("run/state.json");
    let path = match at(&disks).exists() {
        true => at(&disks),
        false => at(&disks.join(".pool")),
    };
    let state: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).map_err(|error| unreadable(&path, &error))?)
            .map_err(|error| CliError::BadReply(error.to_string()))?;
    state["supervisor_pid"]
        .as_u64()
        .and_then(|pid| pid.try_into().ok())
        .ok_or_else(|| CliError::BadReply(format!("{} names no process", path.display())))
}

/// What a process takes.
pub fn look(pid: u32) -> Result<Process, CliError> {
    let folder = Path::new("/proc").join(pid.to_string());
    let path = folder.join("smaps_rollup");
    let text = fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
    let path = folder.join("fd");
    let fds = fs::read_dir(&path).map_err(|error| unreadable(&path, &error))?;
    Ok(Process {
        anonymous_kib: field(&text, "Anonymous:"),
        proportional_kib: field(&text, "Pss:"),
        private_kib: field(&text, "Private_Clean:") + field(&text, "Private_Dirty:"),
        fds: fds.count(),
    })
}

fn field(rollup: &str, name: &str) -> u64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::Usage(format!("cannot read {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the fields are told apart although some names begin alike, and this process has some.
    #[test]
    fn memory_is_read_from_the_rollup() {
        let text = "5580-7ffe ---p 00000000 00:00 0    [rollup]\n\
                    Rss:    3000 kB\nPss:    1200 kB\nPss_Anon:  7 kB\n\
                    Private_Clean:  30 kB\nPrivate_Dirty:   12 kB\n";
        assert_eq!(field(text, "Pss:"), 1200);
        assert_eq!(field(text, "Private_Dirty:"), 12);
        assert_eq!(field(text, "Swap:"), 0);
        let own = look(std::process::id()).unwrap();
        assert!(own.proportional_kib > 0 && own.fds > 0);
    }
}
