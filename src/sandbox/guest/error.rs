//! What can go wrong between the host and a guest.

use tonic::{Code, Status};

/// Longest text taken from a guest into an error, in characters.
const TEXT_CHARS_MAX: usize = 512;

/// A failed call to a guest. Texts that came from the guest are cut to 512 characters and hold no
/// control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// No such file, directory or session.
    #[error("{0}")]
    NotFound(String),
    /// The request can't be carried out as it is, whatever the state of the sandbox.
    #[error("{0}")]
    Invalid(String),
    /// Something in the sandbox stands in the way, such as a file where a directory is needed.
    #[error("{0}")]
    Precondition(String),
    /// There is no such program; shells answer 127.
    #[error("{0}")]
    CommandNotFound(String),
    /// The sandbox's kernel refused, such as for a program that isn't executable (shells answer
    /// 126) or a read-only file.
    #[error("{0}")]
    Refused(String),
    /// A bound was reached: sessions, disk, memory, entries of a directory, size of a message.
    #[error("{0}")]
    Full(String),
    /// The guest can't be reached: the sandbox is stopped, stopping, or out of order.
    #[error("the sandbox does not answer: {0}")]
    Gone(String),
    /// The guest speaks another version of the protocol.
    #[error("the sandbox speaks protocol {theirs}, this server {ours}; restart the sandbox")]
    Protocol {
        /// This server's version.
        ours: u32,
        /// The guest's version.
        theirs: u32,
    },
    /// The guest is older than this server and does not know the call.
    #[error("the sandbox is older than this server and can't do that; make a new one")]
    Unsupported,
    /// The guest answered against the protocol, or failed inside.
    #[error("the sandbox failed: {0}")]
    Broken(String),
    /// The source of an upload failed; the target is as it was.
    #[error("the upload broke off: {0}")]
    Upload(String),
}

impl From<Status> for GuestError {
    fn from(status: Status) -> Self {
        let text = clean(status.message());
        match status.code() {
            Code::NotFound => Self::NotFound(text),
            Code::InvalidArgument => Self::Invalid(text),
            Code::FailedPrecondition | Code::AlreadyExists => Self::Precondition(text),
            Code::PermissionDenied => Self::Refused(text),
            Code::ResourceExhausted | Code::OutOfRange => Self::Full(text),
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded => Self::Gone(text),
            Code::Unimplemented => Self::Unsupported,
            // A connection that breaks under a call shows as `Unknown` with a transport source.
            Code::Unknown if std::error::Error::source(&status).is_some() => Self::Gone(text),
            _ => Self::Broken(text),
        }
    }
}

/// Text of a guest, fit for a log line or a reply.
pub(super) fn clean(text: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(TEXT_CHARS_MAX).map(printable).collect()
}
