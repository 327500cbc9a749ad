//! What a server and a supervisor say to each other, over a packet socket at `control.sock`.
//!
//! A connection starts with one [`Request`], which names the protocol's version, and gets one
//! [`Reply`]. After `Attach` it stays open: each egress connection arrives on it as one
//! [`Egress`] message with the accepted socket, and its end means that the sandbox is gone or
//! that another server attached. The socket's folder has mode 0700, and both sides check the
//! other's user.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::sandbox::Limits;

/// Version of these messages; raised with every change an older peer could misread.
pub const PROTOCOL: u32 = 1;

/// The first message of a connection.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Request {
    /// Version the server speaks.
    pub protocol: u32,
    /// What it wants.
    pub want: Want,
}

/// What a server wants of a supervisor.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// To receive what leaves the sandbox from now on, instead of whoever does.
    Attach,
    /// The end of the sandbox. The reply comes first, the connection closes with the supervisor.
    Kill,
    /// All processes stopped at one instant, until thawed or until the connection ends.
    Freeze,
}

/// The answer to a [`Request`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done(Info),
    /// Not done, and why.
    Refused(String),
}

/// What a supervisor says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Info {
    /// Version the supervisor speaks.
    pub protocol: u32,
    /// Which limits hold.
    pub limits: Limits,
    /// When the sandbox was started.
    pub started_unix_ms: u64,
}

/// One connection on its way out; its socket comes with the message.
#[derive(Debug, Serialize, Deserialize)]
pub struct Egress {
    /// The name the address was given out for; `None` for an address the program chose itself.
    pub name: Option<String>,
    /// The address it connected to.
    pub ip: Ipv4Addr,
    /// The port.
    pub port: u16,
}
