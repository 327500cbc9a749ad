//! The protocol between the host and the guest, generated from `proto/guest.proto`.

/// Messages, client and server of `oc.guest.v1`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("oc.guest.v1");
}

/// Version of the protocol; a host refuses a guest with another one.
pub const PROTOCOL: u32 = 1;
