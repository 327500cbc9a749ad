//! Signed checkpoints: the log's head, signed, to be kept where whoever can change the log can't
//! change it.
//!
//! Invariants:
//! - a checkpoint names one log, one commit of it and the chain hash there, so it stands for every
//!   byte of history up to that commit ([`super::chain`]);
//! - its text form is a C2SP signed note (`note.rs`), which strangers verify with Ed25519 alone;
//! - the key signs nothing else. Whoever holds the private key can sign a forged history: the
//!   notes prove something only from the moment they are out of that one's reach.

mod folder;
mod keeper;
mod note;
mod signer;

pub use folder::{CheckpointError, CheckpointFolder};
pub use keeper::{CheckpointOptions, Keeper};
pub use note::{Checkpoint, NOTE_BYTES_MAX, NoteError, PublicKey};
pub use signer::CheckpointKey;
