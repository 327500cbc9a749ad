//! The protocol between the host and the guest, generated from `proto/guest.proto`.

/// Messages, client and server of `oc.guest.v1`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("oc.guest.v1");
}

/// Version of the protocol; a host refuses a guest with another one.
pub const PROTOCOL: u32 = 1;

/// Most processes and threads of one sandbox.
pub const TASKS_MAX: u64 = 1024;
/// How many of them programs leave, whatever they do, for the guest to start others.
pub const TASKS_RESERVED: u64 = 64;

/// Largest message either side accepts, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest piece of process output in one message, in bytes.
pub const OUTPUT_BYTES_MAX: usize = 32 * 1024;
/// Largest piece of a file in one message, in bytes.
pub const FILE_CHUNK_BYTES_MAX: usize = 64 * 1024;
