//! Finding a place in the log: by time, and a commit by its number.
//!
//! Recorded times never go backwards along the log, so a time is found by halving.

use time::OffsetDateTime;

use super::chain::{self, Hash};
use super::error::{EngineError, ReadError};
use super::log::EventLog;

/// How a commit is linked into the chain: what its chain hash is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitLink {
    /// Chain hash of the commit before it, or of the empty log.
    pub previous: Hash,
    /// Content hashes of its events, in order.
    pub events: Vec<Hash>,
    /// Its own chain hash.
    pub chain: Hash,
}

impl EventLog {
    /// Position of the last event that was recorded at `time` or earlier; 0 when there is none.
    /// Reads some twenty events of a log with a million. Events of one commit have one time, so
    /// this never lies within a commit.
    pub async fn position_at(&self, time: OffsetDateTime) -> Result<u64, ReadError> {
        // What is at `early` is in time (or nothing is), what is at `late` is not.
        let (mut early, mut late) = (0, self.head().position + 1);
        while late - early > 1 {
            let middle = early + (late - early) / 2;
            let page = self.read_all(middle, 1).await?;
            let Some(event) = page.first().filter(|event| event.position == middle) else {
                let missing = format!("an event from position {middle} on is missing");
                return Err(EngineError::Damaged(missing).into());
            };
            match event.recorded_at <= time {
                true => early = middle,
                false => late = middle,
            }
        }
        Ok(early)
    }

    /// The links of commit `number` (from 1 on); `None` when there is no such commit.
    pub async fn commit_link(&self, number: u64) -> Result<Option<CommitLink>, ReadError> {
        let read = move |view: &dyn super::engines::Reader| {
            let Some(before) = number.checked_sub(1) else {
                return Ok(None);
            };
            let rows = view.commits(before.max(1), 2)?;
            let find = |number| rows.iter().find(|row| row.number == number);
            let Some(commit) = find(number) else {
                return Ok(None);
            };
            let previous = match before {
                0 => chain::genesis(view.log()),
                _ => find(before)
                    .map(|row| row.chain)
                    .ok_or_else(|| EngineError::Damaged(format!("commit {before} is missing")))?,
            };
            Ok(Some(CommitLink {
                previous,
                events: commit.event_hashes.clone(),
                chain: commit.chain,
            }))
        };
        self.readers().run(read).await.map_err(ReadError::Engine)
    }
}
