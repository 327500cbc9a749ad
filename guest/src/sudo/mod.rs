//! `sudo` without set-user-id: sandboxed processes can gain no rights by `exec`, so the command is
//! started by PID 1 instead.
//!
//! The client (this program under the name `sudo`) connects to a socket of PID 1 and sends what to
//! run, with its own standard descriptors; PID 1 runs it and answers with its exit code. This is no
//! boundary: the sandbox user may do everything inside, as with password-less sudo anywhere.
//!
//! On the wire, client to server: the request's length (4 bytes, little endian, together with the
//! three descriptors), the request, then one byte for each signal to pass on. Server to client: one
//! byte [`EXITED`] and the code (4 bytes, little endian), or one byte [`FAILED`] and a text up to
//! the end. A closed connection ends the command.

mod args;
mod client;
mod server;
mod users;

use std::ffi::OsString;
use std::path::PathBuf;

pub use client::main;
pub use server::start;

/// Largest request, in bytes: the kernel's own limit for arguments and environment.
const REQUEST_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Longest failure text, in bytes.
const FAILURE_BYTES_MAX: u64 = 4096;
/// First byte of an answer: the command ended.
const EXITED: u8 = 0;
/// First byte of an answer: the command could not be started.
const FAILED: u8 = 1;

/// What PID 1 is asked to run, all of it worked out by the client.
#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    /// The program, then its arguments.
    #[prost(bytes = "vec", repeated, tag = "1")]
    command: Vec<Vec<u8>>,
    /// `NAME=value`, the whole environment.
    #[prost(bytes = "vec", repeated, tag = "2")]
    env: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "3")]
    cwd: Vec<u8>,
    #[prost(uint32, tag = "4")]
    uid: u32,
    #[prost(uint32, tag = "5")]
    gid: u32,
    #[prost(uint32, repeated, tag = "6")]
    groups: Vec<u32>,
}

/// The folder the launcher made for us, or the one a test names.
fn run_dir() -> PathBuf {
    PathBuf::from(std::env::var_os("OC_RUN_DIR").unwrap_or_else(|| OsString::from("/run/oc")))
}

fn socket_path() -> PathBuf {
    run_dir().join("sudo.sock")
}
