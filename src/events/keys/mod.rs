//! The keyring: what secret payloads in the log are sealed with, kept outside the log.
//!
//! ```text
//! master key (file, 0600) --HKDF--> wrapping key --AES-256-GCM-SIV--> data key, one a stream (keys.db)
//! data key --HKDF--> sealing key --AES-256-GCM-SIV--> sealed values (in the log's events)
//!          --HKDF--> derived keys (tokens and the like)
//! ```
//!
//! Invariants:
//! - a data key is on disk before anything is sealed with it; it is stored only wrapped;
//! - stream, event kind, secret name and key version are bound to a sealed value as associated
//!   data: a ciphertext that was moved does not open;
//! - shredding overwrites the wrapped key in place (`secure_delete`), then truncates the WAL, so
//!   that no file of ours holds it; a shredded stream never gets a key again;
//! - the length of a value shows in its ciphertext, and a backup of `keys.db` made before a
//!   shredding still holds the key: SECURITY.md tells operators to expire those.

mod cipher;
mod file;
mod keyring;
mod master;
mod rotate;
mod source;
mod store;

use std::path::PathBuf;

pub use cipher::{SealContext, Sealed};
pub(super) use file::{create as create_key, generate as generate_key, load as load_key};
pub use keyring::{Keyring, open_keyring};
pub use master::MasterKey;
pub use rotate::Rotated;
#[cfg(test)]
pub(super) use rotate::Step;
pub(super) use rotate::{keep_old, rotate};

use super::stream::StreamId;

/// Why a key could not be had or a value not be sealed or opened. Never holds a key or a value.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file can't be used.
    #[error("{path} can't be {action}: {detail}")]
    Io {
        /// The file.
        path: PathBuf,
        /// `read`, `created`, …
        action: &'static str,
        /// The system's words.
        detail: String,
    },
    /// Others can read a key.
    #[error(
        "the {what} {path} has mode {mode:04o}, others may have read it: run `chmod 600 \
         {path}`, and rotate the key if that is possible"
    )]
    Mode {
        /// `master key`, `checkpoint key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A key is somebody else's.
    #[error(
        "the {what} {path} belongs to user {owner}, the server runs as {me}: run `chown {me} {path}`"
    )]
    Owner {
        /// `master key`, `checkpoint key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// This process's user.
        me: u32,
    },
    /// Not a key.
    #[error(
        "{source_name} is not a {what}: 64 hexadecimal digits are needed. Restore it from a backup"
    )]
    NotAKey {
        /// `master key`, `checkpoint key`.
        what: &'static str,
        /// The file, or where else the text came from.
        source_name: String,
    },
    /// The command that prints the master key failed. Its output is not repeated.
    #[error(
        "the master key can't be had from `{program}`: {detail}; run it by hand, or mend \
         `master_key_command` in the configuration"
    )]
    Command {
        /// The program.
        program: String,
        /// What happened.
        detail: String,
    },
    /// A rotation of a key that this program does not keep.
    #[error(
        "the master key is {source_name}, which can't be written from here: name a file for the \
         new key with `--new-key-file` (it is made when missing), and put its content there \
         afterwards"
    )]
    NotOurs {
        /// Where the key comes from.
        source_name: String,
    },
    /// A rotation to a given key where the key's own file is replaced.
    #[error(
        "the master key is kept in {path}, where the new one takes its place by itself: leave out \
         `--new-key-file`"
    )]
    NotThere {
        /// The key file.
        path: PathBuf,
    },
    /// The keyring was made with another master key.
    #[error("{path} does not open with this master key: put back the one it was made with")]
    WrongMaster {
        /// The keyring.
        path: PathBuf,
    },
    /// The master key is gone but what it opens is there.
    #[error(
        "the master key {path} is missing while a keyring or event log made with it exists: \
         restore it from a backup (a new one would open nothing)"
    )]
    MasterLost {
        /// The key file.
        path: PathBuf,
    },
    /// The log has events but the keyring is gone.
    #[error(
        "{path} is missing or empty while the event log is not, so sealed values could not be \
         opened: restore it from a backup"
    )]
    Lost {
        /// The keyring.
        path: PathBuf,
    },
    /// The keyring's file is damaged or can't be used.
    #[error(
        "the keyring {path} failed: {detail}; check the disk, restore the file from a backup if it is damaged"
    )]
    Store {
        /// The keyring.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The stream's key was destroyed.
    #[error("the data key of {stream} was destroyed, its sealed values are gone for good")]
    Shredded {
        /// The stream.
        stream: StreamId,
    },
    /// A sealed value does not open: moved, altered, or of another keyring.
    #[error(
        "a sealed value ({name} in {stream}) does not open: it was altered or belongs elsewhere"
    )]
    Unopenable {
        /// The stream it was read from.
        stream: StreamId,
        /// The secret's name.
        name: String,
    },
    /// Over the limit of a secret value.
    #[error("a secret value is over {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The system gave no randomness, or a primitive refused its input.
    #[error("a key can't be made: {0}")]
    Crypto(&'static str),
}
