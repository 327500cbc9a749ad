//! What the programs of a sandbox print: lines of a bounded log in the sandbox's own folder.
//!
//! Kept are the newest 8 to 16 MiB of
//! - standard output and error of commands (`run`, `run-async`) and exec sessions, seen from here: what
//!   is printed while the server is away is not in it, nor what came faster than it could be written
//!   (the log then says how much). A sandbox's sleep takes nothing of it;
//! - lines that are added to files below `/var/log`, told by the guest, which remembers how far it was.
//!
//! Invariants: nobody who runs a program waits for the log ([`SandboxLog`] drops and counts instead);
//! memory and disk are bounded whatever is printed; the log goes with the sandbox. It is no part of
//! the event log and proves nothing. Programs hold tokens, never values, so their output does too.

mod capture;
mod heard;
mod read;
mod segments;
#[cfg(test)]
mod tests;
mod writer;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub use capture::SandboxLog;
pub use heard::Heard;
pub use read::{LogQuery, LogReader};

/// Where a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// A file below `/var/log`.
    VarLog,
    /// Standard output of a command or session.
    ExecStdout,
    /// Its standard error.
    ExecStderr,
    /// Agent sessions; nothing writes it yet.
    Agent,
}

impl LogSource {
    /// Every one, by the name that queries use.
    pub const ALL: [(&'static str, Self); 4] = [
        ("var_log", Self::VarLog),
        ("exec_stdout", Self::ExecStdout),
        ("exec_stderr", Self::ExecStderr),
        ("agent", Self::Agent),
    ];
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was seen here.
    #[serde(rename = "_time", with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// Where it comes from.
    pub source: LogSource,
    /// Its text, without the line feed; what is no UTF-8 is replaced.
    pub line: String,
    /// The file, for `var_log`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The session, or the handle of the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec_id: Option<String>,
    /// What was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// How it ended: in the last entry of a command, whose line is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}
