//! What happened: the event log, its proof, and the keys its secrets are sealed with.
//!
//! Invariants that hold for the whole room:
//! - the log is a sequence of commits written by one fenced writer; nothing in it is ever changed
//!   or removed; positions (1, 2, 3 …) and each stream's revisions (0, 1, 2 …) have no gaps;
//! - an append answers only when its commit is synced to disk;
//! - every event has a content hash and every commit a chain hash ([`chain`]), so that a stranger
//!   with an export can check the whole history;
//! - a secret value is in the log only as [`Sealed`] text, under a data key that lives outside the
//!   log ([`Keyring`]); destroying the key destroys the value and leaves the history whole.
//!
//! The rooms: [`EventLog`] (`log.rs`, `open.rs`) is the handle; `writer.rs` owns the one writer thread,
//! `answers.rs` wakes its callers; `plan.rs` decides what a group of commands commits (no I/O of its own); `engines/` keeps the
//! bytes and guards them; `index/` finds streams and ids in them and `view.rs` reads through both;
//! `verify.rs` proves the log; `branch.rs` lets a stream continue another one; `snapshots/` is a cache
//! of states that the log alone can rebuild; `keys/` holds the keyring. There is no actix here.

mod answers;
mod backup;
mod branch;
pub mod chain;
mod checkpoint;
mod copy;
mod engines;
mod error;
mod event;
mod export;
mod export_check;
mod export_fault;
mod export_lines;
pub mod families;
mod index;
mod keys;
mod log;
mod maintenance;
mod offline;
mod open;
mod plan;
mod pragmas;
mod prepare;
mod proof;
mod published;
mod readers;
mod recent;
mod repair;
mod replay;
mod seek;
mod snapshots;
mod stream;
mod subscription;
#[cfg(test)]
mod tests;
mod verify;
mod view;
mod watched;
mod writer;

pub use backup::{BackupError, Manifest};
pub use branch::{BRANCH_DEPTH_MAX, BRANCH_KIND, BranchError, Branched, LineageReader, Segment};
pub use checkpoint::{
    Checkpoint, CheckpointError, CheckpointFolder, CheckpointKey, CheckpointOptions, Keeper,
    NOTE_BYTES_MAX, NoteError, PublicKey,
};
pub use error::{AppendError, EngineError, ExportError, OpenError, ReadError, VerifyError};
pub use event::{
    Actor, Append, Appended, COMMIT_BYTES_MAX, COMMIT_EVENTS_MAX, EVENT_DATA_BYTES_MAX, EventData,
    Head, NewEvent, READ_EVENTS_MAX, Recorded,
};
pub use export::{Audience, Export};
pub use export_check::{ExportReport, check_export};
pub use export_fault::ExportFault;
pub use keys::{KeyError, Keyring, MasterKey, Rotated, SealContext, Sealed, open_keyring};
pub use log::{EventLog, LogOptions, LogStats};
pub use maintenance::{DataFolder, MaintenanceError};
pub use offline::OfflineLog;
pub use proof::{Known, StreamReport};
pub use repair::{Dropped, RepairError, RepairReport};
pub use seek::CommitLink;
pub use snapshots::{SNAPSHOTS_FILE, Slot, Snapshot, Snapshots};
pub use stream::{BadStreamId, Expected, StreamId};
pub use subscription::Subscription;
pub use verify::VerifyReport;
