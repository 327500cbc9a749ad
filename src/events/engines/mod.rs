//! What an engine has to do: append commits at the head, and give them back by position. Nothing
//! else: PostgreSQL or KurrentDB fit behind the same few calls.
//!
//! Order, expectations, idempotency, hashing and acknowledging are decided above ([`super::plan`],
//! [`super::writer`]), streams and ids are looked up in the log's own index ([`super::index`]), so
//! all of them mean the same on every engine. Since one fenced writer makes every commit, it is the
//! writer who tells the others that there are new ones ([`super::published`]). An engine's promises:
//! - [`Engine::append`] is atomic over all the commits it is given and returns `Ok` only when they
//!   would survive a power cut;
//! - after `Err(EngineError::Full)` it holds exactly what it held before; after any other error
//!   nobody may trust it and the writer stops;
//! - commits come back byte for byte as they were appended, in one total order, and every event it
//!   returns has had its content hash recomputed and compared;
//! - while it is open nobody else can append.
//!
//! `tests/contract/` has the tests that every engine must pass.

#[cfg(test)]
pub mod memory;
pub mod record;
pub mod sqlite;

use std::sync::Arc;

use ulid::Ulid;

use super::chain::Hash;
use super::error::EngineError;
use super::event::{Head, Recorded};

/// Event data after which a page of a read ends early, in bytes (8 MiB).
pub const READ_BYTES_MAX: usize = 8 * 1024 * 1024;

/// One command's events, chained to the commit before it.
#[derive(Debug, Clone)]
pub struct Commit {
    pub number: u64,
    pub chain: Hash,
    /// In order of position, never empty; command, actor and time are the same in all.
    pub events: Vec<Arc<Recorded>>,
}

impl Commit {
    /// Position of its first event; 0 for a commit without events, which is never stored.
    pub fn first_position(&self) -> u64 {
        self.events.first().map_or(0, |event| event.position)
    }

    /// Where the log ended when this was its last commit.
    pub fn head(&self) -> Head {
        Head {
            position: self.events.last().map_or(0, |event| event.position),
            commit: self.number,
            chain: self.chain,
        }
    }

    /// Event data in it, in bytes.
    pub fn bytes(&self) -> usize {
        self.events.iter().map(|e| e.data.get().len()).sum()
    }
}

/// A view of the log. Each call sees one consistent state.
pub trait Reader: Send {
    /// The log's identity, made once at its creation.
    fn log(&self) -> Ulid;
    fn head(&self) -> Result<Head, EngineError>;
    /// Whole commits in ascending order, from the one that holds position `from` on (0 means the
    /// beginning), as many as it takes to have `limit` events. Fewer beyond [`READ_BYTES_MAX`], none
    /// only at the end.
    fn commits(&self, from: u64, limit: usize) -> Result<Vec<Commit>, EngineError>;
    /// The same in descending order, from the commit that holds position `before` - 1 on.
    fn commits_before(&self, before: u64, limit: usize) -> Result<Vec<Commit>, EngineError>;
    /// The commits that hold `positions`, which ascend; each commit once. Shorter beyond
    /// [`READ_BYTES_MAX`], but never empty when there is a commit at the first position.
    fn holding(&self, positions: &[u64]) -> Result<Vec<Commit>, EngineError> {
        let (mut found, mut bytes): (Vec<Commit>, _) = (Vec::new(), 0);
        for &position in positions {
            if bytes >= READ_BYTES_MAX {
                break;
            }
            if found.last().is_some_and(|c| c.head().position >= position) {
                continue;
            }
            let Some(commit) = self.commits(position, 1)?.pop() else {
                break;
            };
            bytes += commit.bytes();
            found.push(commit);
        }
        Ok(found)
    }
    /// How far a witness outside the log's own files has seen it grow; `None`: there is none.
    fn witnessed(&self) -> Result<Option<Head>, EngineError>;
    /// The engine's own check of its files, as thorough as it has one.
    fn check_files(&self) -> Result<(), EngineError>;
}

/// Where commits are kept. Only the writer has it.
pub trait Engine: Send {
    /// What the writer sees: everything appended so far.
    fn view(&self) -> &dyn Reader;
    /// Says that `commit` is about to be appended, directly behind `at`: an engine may get ready for
    /// it while the rest of its group comes in. It changes nothing that anybody can see, and only
    /// what [`Engine::append`] is given counts.
    fn announce(&mut self, _at: &Head, _commit: &Commit) {}
    /// Writes `commits` (never empty) behind `at`, which must be the head.
    fn append(&mut self, at: &Head, commits: &[Commit]) -> Result<(), EngineError>;
    /// One more independent view.
    fn reader(&self) -> Result<Box<dyn Reader>, EngineError>;
    /// Upkeep between groups; called after each append, so it must be cheap when nothing is due.
    fn tidy(&mut self) -> Result<(), EngineError>;
    /// Upkeep before an orderly end; nothing is appended afterwards.
    fn close(&mut self) -> Result<(), EngineError>;
}
