//! Who decides. One file an aggregate (`org`, `project`, `secret_store`, `sandbox`): pure state,
//! commands and rules. `entity` is the one generic actor around them, `registry` finds it,
//! `model` adds events up to rows, for `catalog`, which answers lists, and for `history`, which
//! tells how things were; `trail` finds and shows single events. `platform` is what the door calls, `life`, `create` and `reconciler`
//! carry intents out, `proxy` is the actor that holds a sandbox's seal.

mod activity;
mod aggregate;
mod announcer;
#[doc(hidden)]
pub mod bench_support;
mod catalog;
mod checkpoint;
mod checkpointing;
mod create;
mod disks;
mod entity;
mod exec;
mod forking;
mod fsck;
mod history;
mod idempotency;
mod images;
mod kills;
mod layering;
mod life;
mod live;
mod loading;
mod logs;
mod metadata;
mod model;
mod names;
mod oom;
mod org;
mod patching;
mod platform;
mod project;
mod proxy;
mod quota;
mod reconciler;
mod registry;
mod resizing;
mod sandbox;
mod scaler;
mod sealing;
mod secret_store;
mod secrets;
mod sessions;
mod sleeper;
mod sleeping;
mod stats;
mod terminals;
#[cfg(test)]
mod tests;
pub mod trail;
mod turns;
mod versions;

pub use activity::InUse;
pub use aggregate::Reject;
pub use catalog::Catalog;
pub use checkpoint::{Checkpoint, CheckpointPhase};
pub use checkpointing::{NewCheckpoint, Retention};
pub use create::CreateSandbox;
pub use entity::Failure;
pub use exec::{Captured, Handle, ProcessRequest, TIMED_OUT};
pub use forking::ForkSandbox;
pub use fsck::{Fault, Finding, FsckError, FsckReport, fsck};
pub use history::{BadMoment, History, HistoryError, Moment, org_key};
pub use idempotency::{Created, KEY_CHARS_MAX, Keyed};
pub use images::Build;
pub use images::{
    BuildLine, Ended, Follower, Image, ImagePhase, ImageSource, ImageWithManifest, Manifest,
    ManifestBody,
};
pub use logs::{LogLine, LogQuery, LogReader, LogSource};
pub use metadata::REGION;
pub use model::Grant;
pub use org::{Org, OrgKey};
pub use platform::{Caller, NewKey, NewSecret, Parts, Platform, key_hash};
pub use project::{Project, ProjectSettings};
pub use reconciler::Reconciler;
pub use resizing::Resized;
pub use sandbox::{Phase, Sandbox, scaling};
pub use secret_store::SecretStore;
pub use secrets::{Secret, Secrets};
pub use sessions::{Command, Session, SessionFailure};
pub use sleeping::Asleep;
pub use stats::{Counters, SandboxStats};
pub use terminals::{Terminal, TerminalRequest, terminal_size};
