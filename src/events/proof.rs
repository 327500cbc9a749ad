//! What a proof is compared with: heads that were noted elsewhere, and single streams.

use std::cmp::Ordering;

use super::checkpoint::Checkpoint;
use super::engines::Reader;
use super::error::EngineError;
use super::error::{ReadError, VerifyError};
use super::event::Head;
use super::log::EventLog;
use super::stream::StreamId;
use crate::ids::OrgId;

/// A chain hash that somebody noted outside the log: a signed checkpoint, or a line on paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The log it was noted of, where that is known.
    pub log: Option<ulid::Ulid>,
    /// The commit.
    pub commit: u64,
    /// The chain hash there.
    pub chain: [u8; 32],
}

impl From<Checkpoint> for Known {
    fn from(checkpoint: Checkpoint) -> Self {
        Self {
            log: Some(checkpoint.log),
            commit: checkpoint.head.commit,
            chain: checkpoint.head.chain,
        }
    }
}

/// `COMMIT:CHAIN`, the chain hash in lower-case hexadecimal.
impl std::str::FromStr for Known {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':');
        let parsed = parts.and_then(|(commit, chain)| {
            let mut known = Self {
                log: None,
                commit: commit.parse().ok()?,
                chain: [0; 32],
            };
            hex::decode_to_slice(chain, &mut known.chain).ok()?;
            Some(known)
        });
        parsed.ok_or_else(|| format!("`{text}` is not COMMIT:CHAIN, a number and 64 hex digits"))
    }
}

/// One stream, found whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamReport {
    /// The stream.
    pub stream: StreamId,
    /// Events of it that were checked.
    pub events: u64,
    /// Revision of the last one.
    pub last_revision: u64,
}

impl EventLog {
    /// Position and chain hash at a commit; `None` when the log has not come so far.
    pub async fn head_at(&self, commit: u64) -> Result<Option<Head>, ReadError> {
        self.readers()
            .run(move |view| head_at(view.reader(), commit).map_err(ReadError::Engine))
            .await
    }

    /// Whether the log holds what was noted. Call it after [`EventLog::verify`], which checks that
    /// the chain itself is sound.
    pub async fn holds(&self, known: Known) -> Result<(), VerifyError> {
        self.readers()
            .run(move |view| holds(view.reader(), &known))
            .await
    }

    /// Number of events and last revision of a stream, if `org` may know of it: its first event is
    /// that organization's. Revisions have no gap in a log that verifies.
    pub async fn stream_report(
        &self,
        stream: &StreamId,
        org: OrgId,
    ) -> Result<Option<StreamReport>, ReadError> {
        let first = self.read_stream(stream, 0, 1).await?;
        if first
            .first()
            .is_none_or(|event| event.actor.org != Some(org))
        {
            return Ok(None);
        }
        let head = self.stream_head(stream).await?;
        Ok(head.map(|(last_revision, _)| StreamReport {
            stream: stream.clone(),
            events: last_revision + 1,
            last_revision,
        }))
    }
}

/// As [`EventLog::head_at`], of any view. Commits are found by position only, so this searches:
/// their numbers grow with their positions.
pub(super) fn head_at(view: &dyn Reader, commit: u64) -> Result<Option<Head>, EngineError> {
    if commit == 0 {
        return Ok(Some(Head::beginning(view.log())));
    }
    let (mut low, mut high) = (1, view.head()?.position);
    while low <= high {
        let middle = low + (high - low) / 2;
        let Some(found) = view.commits(middle, 1)?.pop() else {
            return Ok(None);
        };
        match found.number.cmp(&commit) {
            Ordering::Equal => return Ok(Some(found.head())),
            Ordering::Less => low = found.head().position + 1,
            // In a log with a gap what is found may begin behind the middle.
            Ordering::Greater => high = middle.min(found.first_position()).saturating_sub(1),
        }
    }
    Ok(None)
}

/// As [`EventLog::holds`], of any view.
pub(super) fn holds(view: &dyn Reader, known: &Known) -> Result<(), VerifyError> {
    let broken = |what: String| VerifyError::Broken {
        place: format!("commit {}", known.commit),
        what,
    };
    if let Some(log) = known.log.filter(|log| *log != view.log()) {
        let here = view.log();
        return Err(broken(format!(
            "the checkpoint is of log {log}, this is log {here}"
        )));
    }
    let chain = hex::encode(known.chain);
    match head_at(view, known.commit)? {
        Some(head) if head.chain == known.chain => Ok(()),
        Some(head) => Err(broken(format!(
            "its chain is {}, what was noted elsewhere is {chain}: history up to here was rewritten",
            hex::encode(head.chain)
        ))),
        None => Err(broken(format!(
            "the log ends before it, but its chain {chain} was noted elsewhere: the end was cut off"
        ))),
    }
}
