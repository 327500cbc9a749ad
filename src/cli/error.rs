//! What can go wrong in a command, and the exit code each failure has.
//!
//! Invariants: the message says what happened and to what; [`CliError::hint`] says what to do
//! next; neither ever holds a secret value or an API key.

use std::io;

use super::settings::SettingsError;

/// Exit code of a local problem: arguments, files, the network.
pub const EXIT_LOCAL: u8 = 1;
/// Exit code of an HTTP 4xx reply other than 409.
pub const EXIT_REFUSED: u8 = 3;
/// Exit code of an HTTP 409 reply.
pub const EXIT_CONFLICT: u8 = 4;
/// Exit code of an HTTP 5xx reply.
pub const EXIT_SERVER: u8 = 5;

/// A command that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments do not fit together.
    #[error("{0}")]
    Usage(String),
    /// The configuration can't be read or written.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// No connection to the server, or it broke.
    #[error("cannot reach the server at {url}: {reason}")]
    Unreachable {
        /// The server's address as configured.
        url: String,
        /// The innermost cause, as the system names it.
        reason: String,
        /// Nobody listens there (as opposed to a time-out or a broken connection).
        refused: bool,
    },
    /// The server answered something this program does not understand.
    #[error("cannot read the server's reply: {0}")]
    BadReply(String),
    /// The server answered with an error.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The server's own words.
        message: String,
    },
    /// The event log is not what it should be.
    #[error("{0}")]
    Damaged(String),
    /// A session broke off before its end.
    #[error("{0}")]
    Dropped(String),
    /// Standard input can't be read.
    #[error("cannot read standard input: {0}")]
    Input(#[source] io::Error),
    /// Standard output can't be written.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
}

impl CliError {
    /// The documented exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { status: 409, .. } => EXIT_CONFLICT,
            Self::Refused {
                status: 400..=499, ..
            } => EXIT_REFUSED,
            Self::Refused { .. } => EXIT_SERVER,
            _ => EXIT_LOCAL,
        }
    }

    /// What the user can do about it, when there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { refused: true, .. } => Some(
                "is the server running? start it with `oc serve`, or name another with --api-url",
            ),
            Self::Unreachable { .. } => {
                Some("check the address with `oc config show`, or name another with --api-url")
            }
            Self::Refused { status: 401, .. } => Some(
                "set a key with `oc config set api-key <key>`, OPENCOMPUTER_API_KEY or --api-key",
            ),
            _ => None,
        }
    }

    /// Whether the reader of our output went away (`oc ls | head -1`): nothing worth a message.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Whether the server said that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_documented_table() {
        let refused = |status| {
            CliError::Refused {
                status,
                message: String::new(),
            }
            .exit_code()
        };
        assert_eq!([400, 401, 404, 429].map(refused), [EXIT_REFUSED; 4]);
        assert_eq!(refused(409), EXIT_CONFLICT);
        assert_eq!([500, 502, 503].map(refused), [EXIT_SERVER; 3]);
        assert_eq!(CliError::Usage(String::new()).exit_code(), EXIT_LOCAL);
        assert_eq!(CliError::BadReply(String::new()).exit_code(), EXIT_LOCAL);
    }
}
