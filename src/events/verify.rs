//! Checking the proof.
//!
//! [`walk`] goes along the commits: numbers and positions without gaps, times that never go back,
//! each chain hash made again from the one before it. For commits from `events_from` on it reads
//! the events too: their content hashes are made again (by every read) and compared with the
//! commit's list, envelope and revisions are compared with the commit and the stream; the event that
//! a branch event names is read again.
//!
//! At start-up the whole chain of commits is always walked (about 200 bytes a commit). Events are
//! read for all commits of a log of up to [`OPEN_EVENTS_MAX`] events, together with SQLite's own
//! integrity check; of a larger log for the commits the witness has not seen and for the last
//! [`OPEN_TAIL_COMMITS`]. `oc audit verify` reads everything.

use std::collections::HashMap;

use ulid::Ulid;

use super::branch::{self, Place};
use super::chain;
use super::engines::{CommitRow, Reader};
use super::error::{EngineError, VerifyError};
use super::event::{Head, Recorded};
use super::stream::StreamId;

/// Events up to which start-up checks the log whole.
pub const OPEN_EVENTS_MAX: u64 = 50_000;
/// Commits at the end of a larger log whose events start-up reads.
pub const OPEN_TAIL_COMMITS: u64 = 1_000;
const PAGE_COMMITS: usize = 64;
const PAGE_EVENTS: usize = 1_000;

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

/// Checks the log up to `until`, with the events of commits from number `events_from` on.
/// Takes memory in proportion to the number of streams among those.
pub fn walk(
    reader: &dyn Reader,
    until: Head,
    events_from: u64,
) -> Result<VerifyReport, VerifyError> {
    let log = reader.log();
    let mut walk = Walk {
        reader,
        head: Head {
            position: 0,
            commit: 0,
            chain: chain::genesis(log),
        },
        last_ms: i64::MIN,
        events: 0,
        whole: events_from <= 1,
        streams: HashMap::new(),
    };
    while walk.head.commit < until.commit {
        let page = reader.commits(walk.head.commit + 1, PAGE_COMMITS)?;
        if page.is_empty() {
            return Err(broken(&walk.head, "the commits end before the head"));
        }
        for commit in page
            .iter()
            .take_while(|commit| commit.number <= until.commit)
        {
            walk.commit(commit, commit.number >= events_from)?;
        }
        if page.iter().all(|commit| commit.number > until.commit) {
            return Err(broken(&walk.head, "the next commit is missing"));
        }
    }
    if walk.head != until {
        return Err(broken(&walk.head, "the chain does not lead to the head"));
    }
    Ok(VerifyReport {
        log,
        commits: walk.head.commit,
        events: walk.events,
        streams: u64::try_from(walk.streams.len()).unwrap_or(u64::MAX),
        head: until,
        witness: None,
    })
}

/// Checks that the log holds what the witness saw, at the place where it saw it.
pub fn holds(reader: &dyn Reader, seen: &Head) -> Result<(), VerifyError> {
    let found = match seen.commit {
        0 => Some((0, chain::genesis(reader.log()))),
        number => reader
            .commits(number, 1)?
            .first()
            .filter(|commit| commit.number == number)
            .map(|commit| (commit.last_position, commit.chain)),
    };
    if found == Some((seen.position, seen.chain)) {
        return Ok(());
    }
    Err(broken(
        seen,
        "the witness has seen another history up to here",
    ))
}

struct Walk<'a> {
    reader: &'a dyn Reader,
    head: Head,
    last_ms: i64,
    events: u64,
    /// From the first event on, so that revisions must start at 0.
    whole: bool,
    streams: HashMap<StreamId, u64>,
}

impl Walk<'_> {
    fn commit(&mut self, commit: &CommitRow, with_events: bool) -> Result<(), VerifyError> {
        let expected = Head {
            position: self.head.position + u64::try_from(commit.event_hashes.len()).unwrap_or(0),
            commit: self.head.commit + 1,
            chain: chain::chain_hash(commit.number, &self.head.chain, &commit.event_hashes),
        };
        let at = |what| broken(&expected, what);
        if commit.number != expected.commit {
            return Err(at("a commit is missing"));
        }
        if commit.first_position != self.head.position + 1
            || commit.last_position != expected.position
        {
            return Err(at("positions have a gap or overlap"));
        }
        if commit.chain != expected.chain {
            return Err(at(
                "the chain hash does not follow from the commit before it",
            ));
        }
        if commit.recorded_at_ms < self.last_ms {
            return Err(at("time goes backwards"));
        }
        if with_events {
            self.events(commit)?;
        }
        self.last_ms = commit.recorded_at_ms;
        self.head = expected;
        Ok(())
    }

    fn events(&mut self, commit: &CommitRow) -> Result<(), VerifyError> {
        let mut events = Vec::with_capacity(commit.event_hashes.len());
        while events.len() < commit.event_hashes.len() {
            let next = commit.first_position + u64::try_from(events.len()).unwrap_or(u64::MAX);
            let left = (commit.event_hashes.len() - events.len()).min(PAGE_EVENTS);
            let page = self.reader.events(next, left)?;
            if page.is_empty() {
                return Err(position_broken(next, "the event is missing"));
            }
            events.extend(page);
        }
        for (position, (event, hash)) in
            (commit.first_position..).zip(events.iter().zip(&commit.event_hashes))
        {
            if let Some(what) =
                branch::fault(self.reader, &event.kind, &event.data, Place::of(event))?
            {
                let what = format!("the branch event of {} is false: {what}", event.stream);
                return Err(position_broken(position, &what));
            }
            let fault = if event.position != position {
                Some("the event is missing")
            } else if event.content_hash != *hash {
                Some("the event is not the one its commit names")
            } else if event.commit != commit.number || event.command != commit.command {
                Some("the event belongs to another commit")
            } else {
                self.follows(event)
            };
            if let Some(what) = fault {
                return Err(position_broken(position, what));
            }
        }
        let request = chain::request_hash(
            events
                .iter()
                .map(|e| (e.stream.as_str(), e.kind.as_str(), e.data.get())),
        );
        if request != commit.request_hash {
            return Err(position_broken(
                commit.first_position,
                "the request's hash is not its own",
            ));
        }
        self.events += u64::try_from(events.len()).unwrap_or(0);
        Ok(())
    }

    /// Whether the event's revision is the next one of its stream, as far as can be told.
    fn follows(&mut self, event: &Recorded) -> Option<&'static str> {
        let before = self.streams.insert(event.stream.clone(), event.revision);
        let fits = match before {
            Some(last) => event.revision == last + 1,
            None => !self.whole || event.revision == 0,
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

/// What start-up checks of a log that ends at `head` when the witness has seen up to `seen`.
pub fn at_open(reader: &dyn Reader, head: Head, seen: Head) -> Result<(), VerifyError> {
    holds(reader, &seen)?;
    if head.position <= OPEN_EVENTS_MAX {
        reader.check_files()?;
        walk(reader, head, 1)?;
    } else {
        let tail = head.commit.saturating_sub(OPEN_TAIL_COMMITS);
        walk(reader, head, seen.commit.min(tail) + 1)?;
    }
    Ok(())
}

/// Everything: the engine's files, every commit, every event, the witness.
pub fn everything(
    reader: &dyn Reader,
    until: Head,
    seen: Head,
) -> Result<VerifyReport, VerifyError> {
    reader.check_files()?;
    holds(reader, &seen)?;
    let report = walk(reader, until, 1)?;
    Ok(VerifyReport {
        witness: Some(seen),
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
