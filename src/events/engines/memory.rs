//! An engine that keeps commits in memory: for unit tests that need a log and not a disk.

use std::sync::{Arc, PoisonError, RwLock};

use ulid::Ulid;

use super::{Commit, Engine, READ_BYTES_MAX, Reader};
use crate::events::error::EngineError;
use crate::events::event::Head;

/// The commits, and every view of them.
#[derive(Clone)]
pub struct Memory {
    log: Ulid,
    commits: Arc<RwLock<Vec<Commit>>>,
}

impl Memory {
    /// A new, empty log.
    pub fn new() -> Self {
        Self {
            log: Ulid::generate(),
            commits: Arc::default(),
        }
    }

    /// The same log as it was after so many commits, going its own way from there.
    pub fn prefix(&self, commits: usize) -> Self {
        let first = self.read(|all| all.iter().take(commits).cloned().collect());
        Self {
            log: self.log,
            commits: Arc::new(RwLock::new(first)),
        }
    }

    fn read<T>(&self, look: impl FnOnce(&[Commit]) -> T) -> T {
        look(&self.commits.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Commits until they have `limit` events or [`READ_BYTES_MAX`] is reached.
fn page<'a>(commits: impl Iterator<Item = &'a Commit>, limit: usize) -> Vec<Commit> {
    let (mut page, mut events, mut bytes) = (Vec::new(), 0, 0);
    for commit in commits {
        if events >= limit || bytes >= READ_BYTES_MAX {
            break;
        }
        events += commit.events.len();
        bytes += commit.bytes();
        page.push(commit.clone());
    }
    page
}

impl Reader for Memory {
    fn log(&self) -> Ulid {
        self.log
    }

    fn head(&self) -> Result<Head, EngineError> {
        Ok(self.read(|commits| {
            commits
                .last()
                .map_or(Head::beginning(self.log), Commit::head)
        }))
    }

    fn commits(&self, from: u64, limit: usize) -> Result<Vec<Commit>, EngineError> {
        Ok(self.read(|commits| {
            let start = commits.partition_point(|commit| commit.head().position < from);
            page(commits.iter().skip(start), limit)
        }))
    }

    fn commits_before(&self, before: u64, limit: usize) -> Result<Vec<Commit>, EngineError> {
        Ok(self.read(|commits| {
            let end = commits.partition_point(|commit| commit.first_position() < before);
            page(commits.iter().take(end).rev(), limit)
        }))
    }

    fn witnessed(&self) -> Result<Option<Head>, EngineError> {
        Ok(None)
    }

    fn check_files(&self) -> Result<(), EngineError> {
        Ok(())
    }
}

impl Engine for Memory {
    fn view(&self) -> &dyn Reader {
        self
    }

    fn append(&mut self, at: &Head, commits: &[Commit]) -> Result<(), EngineError> {
        if self.head()? != *at {
            return Err(EngineError::HeadMoved);
        }
        let mut kept = self.commits.write().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(commits);
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn Reader>, EngineError> {
        Ok(Box::new(self.clone()))
    }

    fn tidy(&mut self) -> Result<(), EngineError> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}
