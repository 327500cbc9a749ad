//! Checking the proof.
//!
//! [`walk`] goes along the commits and leaves nothing to belief: numbers and positions without gaps,
//! times that never go back, each event's content hash made again (by every read), its envelope
//! compared with its commit and its revision with its stream, the chain hash made again, and what a
//! branch event says of its parent's event read again.
//!
//! At start-up a log of up to [`OPEN_EVENTS_MAX`] events is walked whole, together with the engine's
//! own check of its files; so is a log of any size that was not closed in order, since its index is
//! made anew from the same walk. Of a larger log that was closed in order, the end is walked: what
//! the witness has not seen and at least the last [`OPEN_TAIL_EVENTS`] events. [`super::EventLog::replay`],
//! from which a server fills its read models, walks all of it in any case.

use foldhash::HashMap;
use ulid::Ulid;

use super::branch::{self, Place};
use super::chain;
use super::engines::{Commit, Reader};
use super::error::{EngineError, VerifyError};
use super::event::{Head, Recorded};
use super::index::Index;
use super::stream::StreamId;

/// Events up to which start-up checks the log whole.
pub const OPEN_EVENTS_MAX: u64 = 50_000;
/// Events at the end of a larger log that start-up walks.
pub const OPEN_TAIL_EVENTS: u64 = 1_000;

/// How much of a log start-up walks. Tests take less, so that little logs are large ones.
#[derive(Debug, Clone, Copy)]
pub struct Depth {
    /// Events up to which the log is walked whole.
    pub whole_events_max: u64,
    /// Events at the end of a larger log.
    pub tail_events: u64,
}

impl Default for Depth {
    fn default() -> Self {
        Self {
            whole_events_max: OPEN_EVENTS_MAX,
            tail_events: OPEN_TAIL_EVENTS,
        }
    }
}

/// Events read at once.
const PAGE_EVENTS: usize = 1_024;

/// What was checked, all of it found in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// The log's identity.
    pub log: Ulid,
    /// Commits whose place in the chain was checked.
    pub commits: u64,
    /// Events whose content was checked.
    pub events: u64,
    /// Streams they belong to.
    pub streams: u64,
    /// Where the checked log ends.
    pub head: Head,
    /// What the witness had seen; `None` where it was not looked at.
    pub witness: Option<Head>,
}

/// Checks the log from `from` (which is taken to be right) up to `until`, showing each commit that
/// was found right to `visit`. Takes memory in proportion to the number of streams.
pub fn walk(
    reader: &dyn Reader,
    from: Head,
    until: Head,
    mut visit: impl FnMut(&[Commit]),
) -> Result<VerifyReport, VerifyError> {
    let mut walk = Walk::new(from);
    while walk.head.commit < until.commit {
        let mut page = reader.commits(walk.head.position + 1, PAGE_EVENTS)?;
        page.retain(|commit| commit.number <= until.commit);
        if page.is_empty() {
            return Err(broken(&walk.head, "the commits end before the head"));
        }
        for commit in &page {
            walk.commit(commit)?;
            branches(reader, commit)?;
        }
        visit(&page);
    }
    walk.end(reader.log(), until)
}

/// Checks what the branch events of a commit say of the events they name.
pub fn branches(reader: &dyn Reader, commit: &Commit) -> Result<(), VerifyError> {
    for event in &commit.events {
        if let Some(what) = branch::fault(reader, &event.kind, &event.data, Place::of(event))? {
            let what = format!("the branch event of {} is false: {what}", event.stream);
            return Err(position_broken(event.position, &what));
        }
    }
    Ok(())
}

/// Checks that the log holds what was seen of it, at the place where it was seen.
pub fn holds(reader: &dyn Reader, seen: &Head) -> Result<(), VerifyError> {
    let found = match seen.position {
        0 => Some(Head::beginning(reader.log())),
        position => reader.commits(position, 1)?.first().map(Commit::head),
    };
    if found == Some(*seen) {
        return Ok(());
    }
    Err(broken(
        seen,
        "the witness has seen another history up to here",
    ))
}

/// A walk along the commits, one after the other.
pub struct Walk {
    from: Head,
    head: Head,
    last_ms: i64,
    /// From the first event on, so that revisions must start at 0.
    whole: bool,
    streams: HashMap<StreamId, u64>,
}

impl Walk {
    /// A walk that goes on behind `from`.
    pub fn new(from: Head) -> Self {
        Self {
            from,
            head: from,
            last_ms: i64::MIN,
            whole: from.position == 0,
            streams: HashMap::default(),
        }
    }

    /// Checks that the walk has come to `until`; says what was walked of `log`.
    pub fn end(&self, log: Ulid, until: Head) -> Result<VerifyReport, VerifyError> {
        if self.head != until {
            return Err(broken(&self.head, "the chain does not lead to the head"));
        }
        Ok(VerifyReport {
            log,
            commits: self.head.commit - self.from.commit,
            events: self.head.position - self.from.position,
            streams: u64::try_from(self.streams.len()).unwrap_or(u64::MAX),
            head: until,
            witness: None,
        })
    }

    /// Checks that `commit` follows.
    pub fn commit(&mut self, commit: &Commit) -> Result<(), VerifyError> {
        let hashes = commit.events.iter().map(|event| &event.content_hash);
        let expected = Head {
            position: self.head.position + u64::try_from(commit.events.len()).unwrap_or(0),
            commit: self.head.commit + 1,
            chain: chain::chain_hash(commit.number, &self.head.chain, hashes),
        };
        let at = |what| broken(&expected, what);
        if commit.number != expected.commit {
            return Err(at("a commit is missing"));
        }
        if commit.first_position() != self.head.position + 1
            || commit.head().position != expected.position
        {
            return Err(at("positions have a gap or overlap"));
        }
        if commit.chain != expected.chain {
            return Err(at(
                "the chain hash does not follow from the commit before it",
            ));
        }
        self.events(commit)?;
        self.head = expected;
        Ok(())
    }

    fn events(&mut self, commit: &Commit) -> Result<(), VerifyError> {
        let Some(first) = commit.events.first() else {
            return Err(broken(&self.head, "a commit has no event"));
        };
        if first.recorded_at_ms() < self.last_ms {
            let at = Head {
                commit: commit.number,
                ..self.head
            };
            return Err(broken(&at, "time goes backwards"));
        }
        self.last_ms = first.recorded_at_ms();
        for (event, position) in commit.events.iter().zip(commit.first_position()..) {
            let fault = if event.position != position {
                Some("the event is missing")
            } else if event.commit != commit.number || event.command != first.command {
                Some("the event belongs to another commit")
            } else {
                self.follows(event)
            };
            if let Some(what) = fault {
                return Err(position_broken(position, what));
            }
        }
        Ok(())
    }

    /// Whether the event's revision is the next one of its stream, as far as can be told.
    fn follows(&mut self, event: &Recorded) -> Option<&'static str> {
        let fits = match self.streams.get_mut(&event.stream) {
            Some(last) => std::mem::replace(last, event.revision) + 1 == event.revision,
            None => {
                self.streams.insert(event.stream.clone(), event.revision);
                !self.whole || event.revision == 0
            }
        };
        if fits {
            None
        } else {
            Some("its stream's revisions have a gap")
        }
    }
}

fn broken(at: &Head, what: &str) -> VerifyError {
    VerifyError::Broken {
        place: format!("commit {}", at.commit),
        what: what.to_owned(),
    }
}

fn position_broken(position: u64, what: &str) -> VerifyError {
    VerifyError::Broken {
        place: format!("position {position}"),
        what: what.to_owned(),
    }
}

/// What start-up checks of a log that ends at `head` when a witness has seen up to `seen`; brings
/// `index` up to the head.
pub fn at_open(
    reader: &dyn Reader,
    head: Head,
    seen: Option<Head>,
    index: &mut Index,
    depth: Depth,
) -> Result<(), EngineError> {
    if let Some(seen) = &seen {
        holds(reader, seen)?;
    }
    let known = index.head();
    let tail = depth.tail_events.min(head.position);
    let whole = known.is_none() || head.position <= depth.whole_events_max;
    let from = if whole {
        reader.check_files()?;
        Head::beginning(reader.log())
    } else {
        let seen = seen.map_or(head.position, |seen| seen.position);
        let indexed = known.map_or(0, |known| known.position);
        let position = (head.position - tail).min(seen).min(indexed);
        let before = reader.commits_before(position + 1, 1)?;
        before
            .first()
            .map_or(Head::beginning(reader.log()), Commit::head)
    };
    let known = known.map_or(0, |known| known.position);
    let mut failed = Ok(());
    walk(reader, from, head, |page| {
        if failed.is_ok() {
            let new = page.partition_point(|commit| commit.head().position <= known);
            index.add(page.get(new..).unwrap_or_default());
            failed = index.room();
        }
    })?;
    failed
}

/// Everything: the engine's files, every commit, every event, and what a witness has seen.
pub fn everything(
    reader: &dyn Reader,
    until: Head,
    seen: Option<Head>,
) -> Result<VerifyReport, VerifyError> {
    reader.check_files()?;
    if let Some(seen) = &seen {
        holds(reader, seen)?;
    }
    let report = walk(reader, Head::beginning(reader.log()), until, |_| {})?;
    Ok(VerifyReport {
        witness: seen,
        ..report
    })
}

impl From<VerifyError> for EngineError {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::Engine(error) => error,
            broken @ VerifyError::Broken { .. } => EngineError::Damaged(broken.to_string()),
        }
    }
}
