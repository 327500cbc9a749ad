//! Branches: a stream that starts at a revision of another one.
//!
//! ```text
//! root   0 ── 1 ── 2 ── 3 ── 4              root's own later events are not the branch's
//!                  │
//! child            └─ 0 ── 1 ── 2           0 is `stream.branched.v1`
//!                          │
//! grandchild               └─ 0 ── 1
//! ```
//!
//! Invariants:
//! - a branch event is the first event of its stream (revision 0), names an event that was in the
//!   log before it, and carries that event's content hash: the writer takes no other one, and the
//!   proof ([`super::verify`]) reads each again, by position, without believing any index;
//! - hence a parent's event always has a lower position than the branch's first: lineages have no
//!   cycle, and what was read of one stays true;
//! - nothing is copied and nothing in the parent changes: deleting the parent (an event on it, its
//!   data key destroyed) leaves the branch whole;
//! - a lineage has at most [`BRANCH_DEPTH_MAX`] streams.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::engines::Reader;
use super::error::{EngineError, ReadError};
use super::event::{EventData, NewEvent, READ_EVENTS_MAX, Recorded};
use super::log::EventLog;
use super::stream::StreamId;
use super::view::View;

/// Kind of the event that makes its stream a branch.
pub const BRANCH_KIND: &str = "stream.branched.v1";
/// Most streams in one lineage, the root and the branch itself included.
pub const BRANCH_DEPTH_MAX: usize = 4_096;

/// Beyond it no engine counts; a false branch event may name anything.
const POSITION_MAX: u64 = i64::MAX as u64;
/// The same for what a caller asks for.
const REVISION_MAX: u64 = i64::MAX as u64;

/// Data of the branch event: where the stream branches off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branched {
    /// The stream it continues.
    pub parent: StreamId,
    /// The last of the parent's events that belongs to the branch too.
    pub revision: u64,
    /// Where that event is in the log.
    pub position: u64,
    /// Its content hash, 64 lower-case hexadecimal digits.
    pub hash: String,
}

impl Branched {
    /// What a stored event says when it is a branch event; `None` for any other kind.
    pub fn read(kind: &str, data: &EventData) -> Option<Result<Self, serde_json::Error>> {
        (kind == BRANCH_KIND).then(|| serde_json::from_str(data.get()))
    }
}

/// One stream's part of a lineage: its events from revision 0 to `until`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The stream.
    pub stream: StreamId,
    /// Revision of its last event that counts; `None`: all of them, also those still to come.
    pub until: Option<u64>,
}

/// Why a branch can't be made or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BranchError {
    /// There is nothing at the place where it should start.
    #[error("stream {parent} has no event at revision {revision} to branch from")]
    NoSuchEvent {
        /// The stream.
        parent: StreamId,
        /// The revision asked for.
        revision: u64,
    },
    /// A stream can't continue itself.
    #[error("stream {stream} can't be a branch of itself")]
    Itself {
        /// The stream.
        stream: StreamId,
    },
    /// Too many ancestors.
    #[error(
        "{stream} has {BRANCH_DEPTH_MAX} ancestors or more, which is the limit: start a new stream instead"
    )]
    TooDeep {
        /// The stream whose lineage is too long.
        stream: StreamId,
    },
    /// A recorded branch event is false. The writer takes none that is: the log was tampered with.
    #[error(
        "the branch event of {stream} is false: {what}; run `oc audit verify` and restore the log from a backup"
    )]
    Broken {
        /// The branch.
        stream: StreamId,
        /// What does not hold.
        what: String,
    },
    /// The log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<EngineError> for BranchError {
    fn from(error: EngineError) -> Self {
        Self::Read(error.into())
    }
}

impl EventLog {
    /// The event that makes `child` a branch of `parent` at `revision`. It belongs first into a
    /// commit that expects `child` to have no event; the log is only ever appended to, so it stays
    /// true however long that takes.
    pub async fn branch_event(
        &self,
        child: &StreamId,
        parent: &StreamId,
        revision: u64,
    ) -> Result<NewEvent, BranchError> {
        if child == parent {
            return Err(BranchError::Itself {
                stream: child.clone(),
            });
        }
        let at = parent.clone();
        let found = self
            .readers()
            .run(move |view| {
                let found = view.stream(&at, revision.min(REVISION_MAX), 1)?.pop();
                let found = found.filter(|event| event.revision == revision);
                let found = found.ok_or_else(|| BranchError::NoSuchEvent {
                    parent: at.clone(),
                    revision,
                })?;
                // One less: the child is one more.
                lineage(view, &at, BRANCH_DEPTH_MAX - 1)?;
                Ok::<_, BranchError>(found)
            })
            .await?;
        let (parent, stream) = (parent.clone(), child.clone());
        Ok(NewEvent {
            id: Ulid::generate(),
            data: serde_json::json!(Branched {
                parent,
                revision,
                position: found.position,
                hash: hex::encode(found.content_hash),
            }),
            kind: BRANCH_KIND.into(),
            stream,
        })
    }

    /// Where `stream` branches off; `None` when it has no parent. The branch event is checked.
    pub async fn origin(&self, stream: &StreamId) -> Result<Option<Branched>, BranchError> {
        let stream = stream.clone();
        self.readers().run(move |view| origin(view, &stream)).await
    }

    /// The streams whose events make up `stream`, the root first and `stream` itself last. A stream
    /// that is no branch, or has no event, is its own lineage.
    pub async fn lineage(&self, stream: &StreamId) -> Result<Vec<Segment>, BranchError> {
        let stream = stream.clone();
        self.readers()
            .run(move |view| lineage(view, &stream, BRANCH_DEPTH_MAX))
            .await
    }

    /// Reads a lineage from its beginning, page by page.
    pub fn read_lineage(&self, lineage: Vec<Segment>) -> LineageReader {
        LineageReader {
            log: self.clone(),
            left: lineage.into(),
            next: 0,
        }
    }

    /// Reads one part of a lineage from a revision on.
    pub fn read_segment(&self, segment: Segment, from_revision: u64) -> LineageReader {
        LineageReader {
            log: self.clone(),
            left: VecDeque::from([segment]),
            next: from_revision,
        }
    }
}

/// Gives the events of a lineage in order. Holds no more than a page.
pub struct LineageReader {
    log: EventLog,
    left: VecDeque<Segment>,
    /// Revision to be read next in the first of `left`.
    next: u64,
}

impl LineageReader {
    /// The next events, all of one stream, up to [`READ_EVENTS_MAX`]; empty at the end, also when
    /// asked again after it.
    pub async fn next(&mut self) -> Result<Vec<Arc<Recorded>>, ReadError> {
        while let Some(Segment { stream, until }) = self.left.front() {
            let left = until.map(|until| until.saturating_add(1).saturating_sub(self.next));
            if left == Some(0) {
                self.left.pop_front();
                self.next = 0;
                continue;
            }
            let limit = left.map_or(READ_EVENTS_MAX, |left| {
                usize::try_from(left).map_or(READ_EVENTS_MAX, |left| left.min(READ_EVENTS_MAX))
            });
            let page = self.log.read_stream(stream, self.next, limit).await?;
            match (page.last(), until) {
                (Some(last), _) => {
                    self.next = last.revision + 1;
                    return Ok(page);
                }
                (None, None) => drop(self.left.pop_front()),
                (None, Some(until)) => {
                    let (stream, next) = (stream.as_str(), self.next);
                    return Err(EngineError::Damaged(format!(
                        "stream {stream} ends before revision {next}, but a branch of it starts at {until}"
                    ))
                    .into());
                }
            }
        }
        Ok(Vec::new())
    }
}

/// The event at a position; `None` beyond the log's end.
fn event_at(reader: &dyn Reader, position: u64) -> Result<Option<Arc<Recorded>>, EngineError> {
    if position > POSITION_MAX {
        return Ok(None);
    }
    let commit = reader.commits(position, 1)?.pop();
    let mut events = commit.into_iter().flat_map(|commit| commit.events);
    Ok(events.find(|event| event.position == position))
}

fn origin(view: &View, stream: &StreamId) -> Result<Option<Branched>, BranchError> {
    let Some(first) = view.stream(stream, 0, 1)?.pop() else {
        return Ok(None);
    };
    let broken = |what: String| BranchError::Broken {
        stream: stream.clone(),
        what,
    };
    let Some(branched) = Branched::read(&first.kind, &first.data) else {
        return Ok(None);
    };
    let branched = branched.map_err(|error| broken(error.to_string()))?;
    match fault(view.reader(), &first.kind, &first.data, Place::of(&first))? {
        None => Ok(Some(branched)),
        Some(what) => Err(broken(what)),
    }
}

fn lineage(view: &View, stream: &StreamId, depth_max: usize) -> Result<Vec<Segment>, BranchError> {
    let mut lineage = Vec::new();
    let (mut at, mut until) = (stream.clone(), None);
    loop {
        let origin = origin(view, &at)?;
        lineage.push(Segment { stream: at, until });
        let Some(branched) = origin else {
            lineage.reverse();
            return Ok(lineage);
        };
        if lineage.len() >= depth_max {
            let stream = stream.clone();
            return Err(BranchError::TooDeep { stream });
        }
        (at, until) = (branched.parent, Some(branched.revision));
    }
}

/// Where an event stands, or is about to stand.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub revision: u64,
    pub position: u64,
}

impl Place {
    pub fn of(event: &Recorded) -> Self {
        Self {
            revision: event.revision,
            position: event.position,
        }
    }
}

/// What is wrong with an event that stands, or is about to stand, at that place: `None` for a true branch event and for any event that is not one.
pub(super) fn fault(
    reader: &dyn Reader,
    kind: &str,
    data: &EventData,
    at: Place,
) -> Result<Option<String>, EngineError> {
    let branched = match Branched::read(kind, data) {
        None => return Ok(None),
        Some(Err(error)) => return Ok(Some(format!("its data does not fit: {error}"))),
        Some(Ok(branched)) => branched,
    };
    if at.revision != 0 {
        return Ok(Some("a branch can only begin a stream".to_owned()));
    }
    let Branched {
        parent,
        revision,
        position,
        hash,
    } = branched;
    if position >= at.position {
        return Ok(Some(format!(
            "it names event {position}, which is not before it"
        )));
    }
    let Some(event) = event_at(reader, position)? else {
        return Ok(Some(format!(
            "it names event {position}, which is not there"
        )));
    };
    if event.stream != parent || event.revision != revision {
        let found = format!("revision {} of {}", event.revision, event.stream);
        return Ok(Some(format!(
            "it names event {position} as revision {revision} of {parent}, but that is {found}"
        )));
    }
    let is_its = hex::encode(event.content_hash) == hash;
    Ok((!is_its).then(|| format!("it gives event {position} a hash that is not its own")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::tests::support::{command, event, open, stream};

    /// Goal: a lineage longer than the limit is refused and not walked to its end.
    #[tokio::test]
    async fn a_lineage_has_a_limit() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = open(dir.path());
        log.append(command(&[], vec![event("s0", 0)]))
            .await
            .expect("appended");
        for depth in 1..=4 {
            let (child, parent) = (format!("s{depth}"), format!("s{}", depth - 1));
            let branch = log.branch_event(&stream(&child), &stream(&parent), 0).await;
            let append = command(&[], vec![branch.expect("a branch")]);
            log.append(append).await.expect("appended");
        }
        for (depth_max, fits) in [(5, true), (4, false), (1, false)] {
            let walked = log
                .readers()
                .run(move |view| lineage(view, &stream("s4"), depth_max))
                .await;
            match walked {
                Ok(lineage) => assert!(fits && lineage.len() == 5),
                Err(error) => assert!(!fits && matches!(error, BranchError::TooDeep { .. })),
            }
        }
        log.close().await;
    }
}
