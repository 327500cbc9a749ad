//! The processes that a session has: in its own group, and in those that its jobs made.
//!
//! A session's number, which is also its group's, is its first process's id. The kernel gives that to
//! nobody else as long as a process of the session or of the group is there, so it stays the
//! session's own after that process has ended, until the last of the others has.

use std::collections::BTreeSet;

use rustix::process::Pid;

/// A living process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: Pid,
    pub group: Pid,
    pub session: Pid,
}

/// All living processes of the sandbox; none without `/proc`.
pub fn living() -> impl Iterator<Item = Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter_map(|pid| {
        // What ends in this moment has no line, and is no member any more.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (group, session) = group_and_session(&stat)?;
        Some(Process {
            pid,
            group,
            session,
        })
    })
}

/// The groups of a session that have a living process.
pub fn groups(session: Pid) -> BTreeSet<i32> {
    let members = living().filter(|process| process.session == session);
    members
        .map(|process| process.group.as_raw_nonzero().get())
        .collect()
}

/// Of a line of `/proc/<pid>/stat`; `None` for a process that has ended. The second field is a name
/// in parentheses that may hold anything, parentheses too.
fn group_and_session(stat: &str) -> Option<(Pid, Pid)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let (_parent, group, session) = (fields.next()?, fields.next()?, fields.next()?);
    let number = |field: &str| Pid::from_raw(field.parse().ok()?);
    match state {
        "Z" | "X" => None,
        _ => Some((number(group)?, number(session)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_read_whatever_the_name() {
        for (line, expected) in [
            ("12 (sleep) S 1 7 5 34816 7 0", Some((7, 5))),
            ("12 (a) S 1 2 3) R 1 7 5 0", Some((7, 5))),
            ("12 (gone) Z 1 7 5 0", None),
            ("12 (a thread of the kernel's) S 2 0 0 0", None),
            ("12 (cut) S 1", None),
            ("", None),
        ] {
            let number = |pid: Pid| pid.as_raw_nonzero().get();
            let found = group_and_session(line);
            let found = found.map(|(group, session)| (number(group), number(session)));
            assert_eq!(found, expected, "{line}");
        }
    }
}
