//! Where the trail's events are read from, one after the other, from a cursor on, either way.
//!
//! The whole log, or, when one entity is asked for, only its streams: an object's own and what is
//! recorded beside it (a sandbox's egress, say) are merged by position. So what one object costs depends
//! on its own history and not on everybody's.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Cursor;
use crate::events::{EventLog, ReadError, Recorded, StreamId};

/// Events of the whole log read at a time.
const LOG_PAGE_EVENTS: usize = 500;
/// Events of one stream read at a time. Kept in memory as long as they are not asked for.
const STREAM_PAGE_EVENTS: u64 = 64;
/// Families whose streams are named by the object's id.
const FAMILIES: [&str; 7] = [
    "project",
    "store",
    "sandbox",
    "checkpoint",
    "egress",
    "resource",
    "org",
];

/// Events in the order of a cursor.
pub(super) struct Source<'a> {
    log: &'a EventLog,
    down: bool,
    lanes: Vec<Lane>,
}

/// One sequence of events. Those of `buffer` come first, then those from `place` on.
struct Lane {
    /// `None`: the whole log.
    stream: Option<StreamId>,
    /// Upwards: the position behind which, or the revision from which, it goes on. Downwards: the
    /// position, or the revision, before which it does; 0 is the end.
    place: u64,
    buffer: VecDeque<Arc<Recorded>>,
    ended: bool,
}

impl<'a> Source<'a> {
    /// The events of an entity, or of the whole log.
    pub(super) async fn open(
        log: &'a EventLog,
        entity: Option<&str>,
        cursor: Cursor,
    ) -> Result<Self, ReadError> {
        let (down, bound) = match cursor {
            Cursor::Before(before) => (true, before.unwrap_or(u64::MAX)),
            Cursor::After(after) => (false, after),
        };
        let mut lanes = Vec::new();
        match entity {
            None => lanes.push(Lane::new(None, bound)),
            Some(entity) => {
                let beside = FAMILIES.map(|family| format!("{family}-{entity}"));
                for name in [entity.to_owned()].into_iter().chain(beside) {
                    let Ok(stream) = StreamId::new(name) else {
                        continue;
                    };
                    let first = if down { bound } else { bound + 1 };
                    let place = events_before(log, &stream, first).await?;
                    lanes.push(Lane::new(Some(stream), place));
                }
            }
        }
        Ok(Self { log, down, lanes })
    }

    /// The next event; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Arc<Recorded>>, ReadError> {
        for lane in &mut self.lanes {
            if lane.buffer.is_empty() && !lane.ended {
                lane.fill(self.log, self.down).await?;
            }
        }
        let position = |lane: &&mut Lane| lane.buffer.front().map(|event| event.position);
        let waiting = self.lanes.iter_mut().filter(|lane| !lane.buffer.is_empty());
        let lane = match self.down {
            true => waiting.max_by_key(position),
            false => waiting.min_by_key(position),
        };
        Ok(lane.and_then(|lane| lane.buffer.pop_front()))
    }
}

impl Lane {
    fn new(stream: Option<StreamId>, place: u64) -> Self {
        Self {
            stream,
            place,
            buffer: VecDeque::new(),
            ended: false,
        }
    }

    async fn fill(&mut self, log: &EventLog, down: bool) -> Result<(), ReadError> {
        self.buffer = match (&self.stream, down) {
            (None, true) => {
                log.read_all_backwards(Some(self.place), LOG_PAGE_EVENTS)
                    .await?
            }
            (None, false) => log.read_all(self.place + 1, LOG_PAGE_EVENTS).await?,
            (Some(stream), true) => {
                let from = self.place.saturating_sub(STREAM_PAGE_EVENTS);
                let mut page = read(log, stream, from, self.place).await?;
                page.reverse();
                page
            }
            (Some(stream), false) => {
                let until = self.place.saturating_add(STREAM_PAGE_EVENTS);
                read(log, stream, self.place, until).await?
            }
        }
        .into();
        match self.buffer.back() {
            Some(last) => {
                self.place = match (&self.stream, down) {
                    (None, _) => last.position,
                    (Some(_), true) => last.revision,
                    (Some(_), false) => last.revision + 1,
                };
            }
            None => self.ended = true,
        }
        Ok(())
    }
}

/// A stream's events from revision `from` to before `until`, as far as there are any. A page of the
/// log may be shorter than was asked for, hence the loop.
async fn read(
    log: &EventLog,
    stream: &StreamId,
    from: u64,
    until: u64,
) -> Result<Vec<Arc<Recorded>>, ReadError> {
    let mut events: Vec<Arc<Recorded>> = Vec::new();
    let mut next = from;
    while next < until {
        let missing = usize::try_from(until - next).unwrap_or(usize::MAX);
        let page = log.read_stream(stream, next, missing).await?;
        let Some(last) = page.last() else { break };
        next = last.revision + 1;
        events.extend(page);
    }
    Ok(events)
}

/// How many of a stream's events are before a position. Positions grow along a stream, so the place
/// is found by halving.
async fn events_before(log: &EventLog, stream: &StreamId, position: u64) -> Result<u64, ReadError> {
    let Some((revision, last)) = log.stream_head(stream).await? else {
        return Ok(0);
    };
    if last.position < position {
        return Ok(revision + 1);
    }
    let (mut before, mut behind) = (0, revision);
    while before < behind {
        let middle = before + (behind - before) / 2;
        let page = log.read_stream(stream, middle, 1).await?;
        match page.first().is_some_and(|event| event.position < position) {
            true => before = middle + 1,
            false => behind = middle,
        }
    }
    Ok(before)
}
