//! What can go wrong, in the words the operator reads: what happened, to what, what to do.

use std::path::PathBuf;

use ulid::Ulid;

use super::stream::{Expected, StreamId};

/// Why an append was refused. Nothing of a refused append is in the log, with the one exception
/// that [`AppendError::Stopped`] names.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// A stream is not where the command expected it.
    #[error("stream {stream} is not as expected: expected {expected}, found {}", found(*.actual))]
    Conflict {
        /// The stream.
        stream: StreamId,
        /// What the command said.
        expected: Expected,
        /// Revision of its last event; `None`: it has none.
        actual: Option<u64>,
    },
    /// The command id was used before for something else.
    #[error("command {command} was already recorded (commit {commit}) with other content")]
    CommandReused {
        /// The command id.
        command: Ulid,
        /// The commit that has it.
        commit: u64,
    },
    /// An event id is already in the log, or twice in one command.
    #[error("event id {id} is already taken")]
    DuplicateEvent {
        /// The event id.
        id: Ulid,
    },
    /// The command is malformed; sending it again won't help.
    #[error("the command can't be recorded: {reason}")]
    Invalid {
        /// What is wrong with it.
        reason: String,
    },
    /// The command is over a limit.
    #[error("the command is too large: {what} is over {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The disk is full. Nothing was written; the log goes on as soon as there is room.
    #[error("the disk of {dir} is full, nothing was recorded: free some space there and try again")]
    Full {
        /// The log's folder.
        dir: PathBuf,
    },
    /// The log stopped for good, for the reason given. A command that was in hand when it stopped
    /// may be on disk: after the restart, sending it again with the same command id tells.
    #[error("the event log has stopped: {reason}. Restart the server; it checks the log first")]
    Stopped {
        /// Why.
        reason: String,
    },
}

fn found(actual: Option<u64>) -> String {
    actual.map_or_else(
        || "no event".to_owned(),
        |revision| format!("revision {revision}"),
    )
}

/// Why an engine could not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum EngineError {
    /// No room left; the engine is as it was before.
    #[error("no space left")]
    Full,
    /// What is stored is not what was written.
    #[error("the stored log is damaged: {0}")]
    Damaged(String),
    /// The log ends elsewhere than its writer believes: someone else wrote to it.
    #[error("the log's head moved under its writer")]
    HeadMoved,
    /// Any other failure of storage.
    #[error("storage failed: {0}")]
    Io(String),
}

/// Why a read failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// Storage failed or is damaged.
    #[error("the event log can't be read: {0}")]
    Engine(#[from] EngineError),
    /// The log stopped or was closed and there is nothing more to come.
    #[error("the event log has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

/// Why the log did not open. Every variant leaves the log as it was; its index may have to be made
/// anew at the next start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the folder.
    #[error(
        "{dir} is in use by another server (process {holder}): stop that one first, or give this \
         one a data folder of its own"
    )]
    InUse {
        /// The log's folder.
        dir: PathBuf,
        /// What the holder wrote into the lock file.
        holder: String,
    },
    /// A file or the folder can't be used.
    #[error(
        "{path} can't be {action}: {detail}; check that the folder exists, is writable and has space"
    )]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// `read`, `written`, …
        action: &'static str,
        /// The system's words.
        detail: String,
    },
    /// The stored bytes are not what was written.
    #[error(
        "the event log in {dir} is damaged: {detail}. Nothing was changed. Check the disk, \
         then restore the folder from a backup (`oc restore`), or keep what can be verified with \
         `oc log repair --data-dir {}` (add --dry-run to see first what would be lost)",
        data_dir(dir)
    )]
    Damaged {
        /// The log's folder.
        dir: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// Acknowledged events are gone.
    #[error(
        "the event log in {dir} ends at position {log_position} (commit {log_commit}) but its \
         witness has seen position {witness_position} (commit {witness_commit}): acknowledged \
         events are missing. Restore the folder from a backup (`oc restore`); only if they may be \
         lost for good, keep what is there with `oc log repair --data-dir {}`, or accept the log as \
         it is with `oc audit accept-head`",
        data_dir(dir)
    )]
    BehindWitness {
        /// The log's folder.
        dir: PathBuf,
        /// Where the log ends.
        log_position: u64,
        /// Where the log ends.
        log_commit: u64,
        /// Where it must at least reach.
        witness_position: u64,
        /// Where it must at least reach.
        witness_commit: u64,
    },
    /// The witness is missing or unreadable, so that nobody can tell whether the log is whole.
    #[error(
        "{path} is {state}, so nothing proves that the log's end is still there. Restore the file \
         together with the log from a backup; only if you are sure that the log is whole, accept \
         it as it is with `oc audit accept-head` or `oc log repair`"
    )]
    WitnessLost {
        /// The witness file.
        path: PathBuf,
        /// `missing`, `unreadable`, `of another log`.
        state: &'static str,
    },
    /// Made by a newer version.
    #[error(
        "the event log in {dir} has format {found}, this program knows {known}: run a newer version"
    )]
    Format {
        /// The log's folder.
        dir: PathBuf,
        /// The format found.
        found: i64,
        /// The format of this program.
        known: i64,
    },
}

/// The server's data folder, of which the log's folder is a part.
fn data_dir(log: &std::path::Path) -> std::path::Display<'_> {
    log.parent().unwrap_or(log).display()
}

/// What the proof found wrong.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VerifyError {
    /// The log contradicts itself.
    #[error("the proof breaks at {place}: {what}")]
    Broken {
        /// Commit or position.
        place: String,
        /// What does not hold.
        what: String,
    },
    /// The log could not be read to its end.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Why an export did not finish.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The log could not be read.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The receiver could not be written.
    #[error("the export can't be written: {0}")]
    Io(#[from] std::io::Error),
}
