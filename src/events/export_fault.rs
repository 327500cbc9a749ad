//! What is wrong with an export, named and placed.

use super::stream::StreamId;

/// What is wrong with an export. The first fault met is told; a file may have more.
#[derive(Debug, thiserror::Error)]
pub enum ExportFault {
    /// The file can't be read.
    #[error("the export can't be read: {0}")]
    Io(#[from] std::io::Error),
    /// A line is not what an export has there.
    #[error("line {line} is not a line of an export: {what}")]
    Malformed {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// An event's bytes are not what they were.
    #[error("event {position} (commit {commit}) was altered: its content does not match its hash")]
    Altered {
        /// Its place.
        position: u64,
        /// Its commit.
        commit: u64,
    },
    /// Commits are not in the file.
    #[error("{} missing: dropped from the export", commits(*first, *last))]
    Dropped {
        /// First one.
        first: u64,
        /// Last one.
        last: u64,
    },
    /// Commits are in another order.
    #[error("commit {commit} stands in line {line}, behind later ones: commits were reordered")]
    Reordered {
        /// The one that is late.
        commit: u64,
        /// Where it is.
        line: u64,
    },
    /// A commit number comes twice.
    #[error("line {line} has a commit {commit} once more: a commit was inserted")]
    Inserted {
        /// The number.
        commit: u64,
        /// Where it is.
        line: u64,
    },
    /// The events of a commit are not all there, or not only they, or in another order.
    #[error("commit {commit} has {what} at position {position}")]
    Events {
        /// The commit.
        commit: u64,
        /// Where.
        position: u64,
        /// `an event dropped`, …
        what: &'static str,
    },
    /// The chain does not hold although each event agrees with its own hash.
    #[error(
        "the chain breaks at commit {commit}: its chain hash does not follow from its events and \
         the commit before it (an event was added, removed or exchanged, or history was rewritten \
         only in part)"
    )]
    Chain {
        /// The commit.
        commit: u64,
    },
    /// An event contradicts those around it.
    #[error("event {position} contradicts its place: {what}")]
    Envelope {
        /// Its place.
        position: u64,
        /// How.
        what: &'static str,
    },
    /// The end of the file is gone.
    #[error("the export was cut off behind commit {commit}: {what}")]
    Truncated {
        /// The last commit that is there.
        commit: u64,
        /// What shows it.
        what: &'static str,
    },
    /// There is something behind the end.
    #[error("line {line} stands behind the export's end: it was added")]
    AfterEnd {
        /// From 1.
        line: u64,
    },
    /// The history is whole in itself and not the one that was noted elsewhere.
    #[error(
        "history was rewritten: at commit {commit} the export has chain {found}, what was noted \
         elsewhere is {wanted}"
    )]
    OtherHistory {
        /// The commit.
        commit: u64,
        /// The export's chain hash there.
        found: String,
        /// The one noted.
        wanted: String,
    },
    /// Ends before a commit that was noted elsewhere.
    #[error(
        "the end was cut off: the export ends at commit {ends}, but commit {commit} was noted \
         elsewhere"
    )]
    EndsEarly {
        /// Where it ends.
        ends: u64,
        /// How far the log had come.
        commit: u64,
    },
    /// A checkpoint of another log.
    #[error("the export is of log {found}, the checkpoint of log {wanted}")]
    OtherLog {
        /// The export's.
        found: String,
        /// The checkpoint's.
        wanted: String,
    },
    /// The stream asked for is not there.
    #[error("no event of stream {stream} is in the export (in full)")]
    NoStream {
        /// The stream.
        stream: StreamId,
    },
}

fn commits(first: u64, last: u64) -> String {
    match first == last {
        true => format!("commit {first} is"),
        false => format!("commits {first} to {last} are"),
    }
}
