//! Finding a place in the log: by time or an event's id; and how a commit hangs in the chain.
//!
//! Recorded times never go backwards along the log, so a time is found by halving.

use time::OffsetDateTime;
use ulid::Ulid;

use super::chain::{self, Hash};
use super::engines::Commit;
use super::error::{EngineError, ReadError};
use super::log::EventLog;
use super::view::View;

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

    /// Position of the event with this id; `None` when there is none.
    pub async fn position_of(&self, id: Ulid) -> Result<Option<u64>, ReadError> {
        let found = self.readers().run(move |view| view.position_of(id)).await;
        found.map_err(ReadError::Engine)
    }

    /// The links of the commit that holds the event at `position`; `None` when there is none.
    pub async fn commit_link(&self, position: u64) -> Result<Option<CommitLink>, ReadError> {
        let read = move |view: &View| {
            let reader = view.reader();
            let found = reader.commits(position.max(1), 1)?.pop();
            let holds = |commit: &Commit| {
                (commit.first_position()..=commit.head().position).contains(&position)
            };
            let Some(commit) = found.filter(holds) else {
                return Ok(None);
            };
            let before = reader.commits_before(commit.first_position(), 1)?.pop();
            Ok(Some(CommitLink {
                previous: before
                    .map_or_else(|| chain::genesis(reader.log()), |before| before.chain),
                events: commit
                    .events
                    .iter()
                    .map(|event| event.content_hash)
                    .collect(),
                chain: commit.chain,
            }))
        };
        self.readers().run(read).await.map_err(ReadError::Engine)
    }
}
