//! Commands and sessions of a real sandbox, through the API. Where this machine can't have any, the
//! tests say so and stop.

#[path = "../common/mod.rs"]
mod common;

mod logs;
mod processes;
mod runs;
mod socket;
mod sockets;
