//! What an engine has to do: keep commits in order and give them back. Nothing else.
//!
//! Order, expectations, idempotency, hashing and acknowledging are decided above ([`super::plan`],
//! [`super::writer`]), so that they mean the same on every engine. An engine's promises:
//! - [`Engine::append`] is atomic over all the commits it is given and returns `Ok` only when they
//!   would survive a power cut;
//! - after `Err(EngineError::Full)` it holds exactly what it held before; after any other error
//!   nobody may trust it and the writer stops;
//! - every event it returns has had its content hash recomputed and compared.

pub mod sqlite;

use std::sync::Arc;

use ulid::Ulid;

use super::chain::Hash;
use super::error::EngineError;
use super::event::{Head, Recorded};
use super::stream::StreamId;

/// Event data after which a page of a read ends early, in bytes (8 MiB).
pub const READ_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A commit about to be written. Its events are never empty and carry command, actor and time.
#[derive(Debug)]
pub struct Commit {
    pub number: u64,
    pub request_hash: Hash,
    pub chain: Hash,
    pub events: Vec<Arc<Recorded>>,
}

/// A commit as it stands in the log, without its events.
#[derive(Debug, Clone)]
pub struct CommitRow {
    pub number: u64,
    pub first_position: u64,
    pub last_position: u64,
    pub recorded_at_ms: i64,
    pub command: Ulid,
    pub request_hash: Hash,
    pub event_hashes: Vec<Hash>,
    pub chain: Hash,
}

/// A view of the log. Each call sees one consistent state; pages may be shorter than the limit
/// ([`READ_BYTES_MAX`]) but are empty only when there is nothing.
pub trait Reader: Send {
    /// The log's identity, made once at its creation.
    fn log(&self) -> Ulid;
    fn head(&self) -> Result<Head, EngineError>;
    /// Events from `from` on, ascending.
    fn events(&self, from: u64, limit: usize) -> Result<Vec<Recorded>, EngineError>;
    /// Events before `before`, descending.
    fn events_before(&self, before: u64, limit: usize) -> Result<Vec<Recorded>, EngineError>;
    /// A stream's events from revision `from` on, ascending.
    fn stream(
        &self,
        stream: &StreamId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Recorded>, EngineError>;
    fn stream_revision(&self, stream: &StreamId) -> Result<Option<u64>, EngineError>;
    /// Commits from number `from` on, ascending.
    fn commits(&self, from: u64, limit: usize) -> Result<Vec<CommitRow>, EngineError>;
    fn commit_of(&self, command: Ulid) -> Result<Option<CommitRow>, EngineError>;
    fn has_event(&self, id: Ulid) -> Result<bool, EngineError>;
    /// The engine's own check of its files, as thorough as it has one.
    fn check_files(&self) -> Result<(), EngineError>;
}

/// The one writer's end of an engine.
pub trait Engine: Send {
    /// What the writer sees: everything appended so far.
    fn view(&self) -> &dyn Reader;
    /// Writes `commits` (never empty) behind `at`, which must be the head.
    fn append(&mut self, at: &Head, commits: &[Commit]) -> Result<(), EngineError>;
    /// One more independent view.
    fn reader(&self) -> Result<Box<dyn Reader>, EngineError>;
    /// Upkeep between groups; called after each append, so it must be cheap when nothing is due.
    fn tidy(&mut self) -> Result<(), EngineError>;
    /// Upkeep before an orderly end; nothing is appended afterwards.
    fn close(&mut self) -> Result<(), EngineError>;
}
