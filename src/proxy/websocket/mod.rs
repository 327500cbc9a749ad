//! WebSocket (RFC 6455) through the seal, with permessage-deflate (RFC 7692).
//!
//! Both sides shake hands with this proxy and not with each other: [`Handshake`] lets through what
//! can be looked into, and [`Relay`] carries the frames. Text and binary messages, close reasons
//! and the payload of pings and pongs are substituted towards the host and re-sealed towards the
//! sandbox.
//!
//! Invariants:
//! - What a message becomes does not depend on how it was cut into frames, reads or compressed
//!   blocks. Frames may be cut anew; messages, their order and their kind stay.
//! - Whatever the length of a frame or a message, memory is constant: a message passes in pieces
//!   of about [`FRAGMENT_BYTES_AIM`], and nothing is read that the other side has no room for.
//! - A frame that two readers could take differently, or a message that a rule forbids, is not
//!   passed on: both sides get a close frame that says why.
//! - A message is judged by the rules in force when it begins; a relay the policy no longer
//!   permits ends at once.
//!
//! `handshake`, `frame`, `deflate`, `seal` and `pump` do no I/O; `relay` does nothing else.

mod deflate;
mod extension;
mod frame;
mod handshake;
mod pump;
mod relay;
mod seal;
mod utf8;

use super::refusal::Refusal;

pub(crate) use handshake::{ANSWER_FIELDS, Handshake};
pub(crate) use relay::{Relay, Terms};

/// Bytes of a message after which a frame is passed on before it is complete.
const FRAGMENT_BYTES_AIM: usize = 64 * 1024;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the sandbox to the host: frames are masked.
    Up,
    /// From the host to the sandbox: frames are not.
    Down,
}

/// Why a relay ends before its peers want to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stop {
    /// Frames that RFC 6455 or 7692 forbid.
    #[error("{0}")]
    Protocol(&'static str),
    /// A text message that is not UTF-8, as it came or with a value in place.
    #[error("a text message is not UTF-8")]
    NotUtf8,
    /// A message that grows too much when it is decompressed.
    #[error("a message expands too much")]
    Expansion,
    /// The values changed so often that answers could hold any of many.
    #[error("the secrets changed; connect again")]
    Renewed,
    /// A rule forbids the rest.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Stop {
    /// The status code of the close frame (RFC 6455, section 7.4.1, and the IANA registry).
    fn code(&self) -> u16 {
        match self {
            Self::Protocol(_) => 1002,
            Self::NotUtf8 => 1007,
            Self::Refused(_) => 1008,
            Self::Expansion => 1009,
            Self::Renewed => 1012,
        }
    }

    /// The reason in the close frame: for a refusal, its rule.
    fn reason(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.rule().to_owned(),
            other => other.to_string(),
        }
    }

    /// The refusal for the audit trail.
    fn refusal(&self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal.clone(),
            Self::Protocol(what) => Refusal::Frames(what),
            Self::NotUtf8 => Refusal::Frames("a text message is not UTF-8"),
            Self::Expansion => Refusal::Frames("a message expands too much"),
            Self::Renewed => Refusal::Frames("the secrets changed too often"),
        }
    }
}
