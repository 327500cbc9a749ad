//! Reading the log by stream, command and event id: an engine's reader with the index beside it.
//!
//! What the index says is only where to look: every event is checked to be the one that was asked
//! for, so a wrong index is an error and never a wrong answer.

use std::sync::Arc;

use ulid::Ulid;

use super::engines::{Commit, READ_BYTES_MAX, Reader};
use super::error::EngineError;
use super::event::Recorded;
use super::index::Lookup;
use super::stream::StreamId;

/// One independent view of the log.
pub struct View {
    reader: Box<dyn Reader>,
    lookup: Lookup,
}

impl View {
    /// A view through `reader`.
    pub fn new(reader: Box<dyn Reader>, lookup: Lookup) -> Self {
        Self { reader, lookup }
    }

    /// The engine's own view.
    pub fn reader(&self) -> &dyn Reader {
        self.reader.as_ref()
    }

    /// Events from position `from` on, ascending. Shorter than `limit` beyond [`READ_BYTES_MAX`].
    pub fn events(&self, from: u64, limit: usize) -> Result<Vec<Arc<Recorded>>, EngineError> {
        let mut events = Vec::new();
        let mut next = from.max(1);
        let mut bytes = 0;
        while events.len() < limit && bytes < READ_BYTES_MAX {
            let page = self.reader.commits(next, limit - events.len())?;
            let Some(last) = page.last() else { break };
            let after = last.head().position + 1;
            bytes += page.iter().map(Commit::bytes).sum::<usize>();
            let found = page.into_iter().flat_map(|commit| commit.events);
            events.extend(found.filter(|event| event.position >= next));
            next = after;
        }
        events.truncate(limit);
        Ok(events)
    }

    /// Events before position `before`, descending.
    pub fn events_before(
        &self,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Arc<Recorded>>, EngineError> {
        let mut events = Vec::new();
        let mut bytes = 0;
        let mut next = before;
        while events.len() < limit && bytes < READ_BYTES_MAX {
            let page = self.reader.commits_before(next, limit - events.len())?;
            let Some(last) = page.last() else { break };
            let reached = last.first_position();
            bytes += page.iter().map(Commit::bytes).sum::<usize>();
            let found = page.into_iter().flat_map(|c| c.events.into_iter().rev());
            events.extend(found.filter(|event| event.position < next));
            next = reached;
        }
        events.truncate(limit);
        Ok(events)
    }

    /// A stream's events from revision `from` on, ascending. Shorter than `limit` beyond
    /// [`READ_BYTES_MAX`].
    pub fn stream(
        &self,
        stream: &StreamId,
        from: u64,
        limit: usize,
    ) -> Result<Vec<Arc<Recorded>>, EngineError> {
        let positions = self.lookup.positions(stream, from, limit)?;
        let mut commits = self.reader.holding(&positions)?.into_iter().peekable();
        let mut events: Vec<Arc<Recorded>> = Vec::with_capacity(positions.len());
        for (position, revision) in positions.into_iter().zip(from..) {
            while commits
                .next_if(|commit| commit.head().position < position)
                .is_some()
            {}
            let Some(commit) = commits.peek() else {
                // The page is full; it is a fault only when nothing is in it.
                if events.is_empty() {
                    return Err(astray(position));
                }
                break;
            };
            let event = at(commit, position)
                .filter(|event| event.stream == *stream && event.revision == revision)
                .ok_or_else(|| astray(position))?;
            events.push(Arc::clone(event));
        }
        Ok(events)
    }

    /// The last revision of a stream; `None`: it has no event.
    pub fn stream_revision(&self, stream: &StreamId) -> Result<Option<u64>, EngineError> {
        self.lookup.last_revision(stream)
    }

    /// The commit of a command.
    pub fn commit_of(&self, command: Ulid) -> Result<Option<Commit>, EngineError> {
        let Some(position) = self.lookup.command(command)? else {
            return Ok(None);
        };
        let commit = self.reader.commits(position, 1)?.pop();
        let is_its = |commit: &Commit| commit.events.first().map(|e| e.command) == Some(command);
        match commit.filter(is_its) {
            Some(commit) => Ok(Some(commit)),
            None => Err(astray(position)),
        }
    }

    /// Position of the event with this id.
    pub fn position_of(&self, id: Ulid) -> Result<Option<u64>, EngineError> {
        self.lookup.event(id)
    }
}

fn at(commit: &Commit, position: u64) -> Option<&Arc<Recorded>> {
    let index = position.checked_sub(commit.first_position())?;
    commit.events.get(usize::try_from(index).ok()?)
}

fn astray(position: u64) -> EngineError {
    EngineError::Damaged(format!(
        "the index leads astray at event {position}; the next start makes it anew"
    ))
}
