//! From a stream to a state: the latest state snapshot, or the one a branch begins with, or nothing;
//! then the events after it, those of ancestors first.
//!
//! Invariants: what is loaded is the same with and without snapshots; a snapshot counts only when
//! its event is in the log with that very hash; nothing here writes to the log, and no snapshot is
//! taken on a command's path.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::aggregate::Aggregate;
use super::entity::Failure;
use crate::events::{
    BRANCH_DEPTH_MAX, BRANCH_KIND, BranchError, Branched, EventLog, READ_EVENTS_MAX, Recorded,
    Segment, Slot, Snapshots, StreamId,
};

/// Events after which a state is worth keeping: fewer are read as fast as a snapshot is.
const SNAPSHOT_EVENTS: u64 = 500;

/// One entity in memory, for as long as this lives.
pub struct Resident(Arc<AtomicUsize>);

impl Resident {
    /// Counts one more.
    pub fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// State and where it stands in its stream.
#[derive(Clone)]
pub struct Loaded<A> {
    /// The state.
    pub state: Arc<A>,
    /// Revision of the stream's last event; `None`: it has none.
    pub revision: Option<u64>,
    /// Content hash of that event.
    hash: [u8; 32],
    /// Events since the state snapshot that the next load would begin with.
    unsaved: u64,
    /// Events read from the log to get here.
    pub(super) read: u64,
}

impl<A: Aggregate> Loaded<A> {
    fn new(state: A) -> Self {
        Self {
            state: Arc::new(state),
            revision: None,
            hash: [0; 32],
            unsaved: 0,
            read: 0,
        }
    }

    /// Takes in the events that come next in the stream.
    pub fn apply(&mut self, events: Vec<Arc<Recorded>>) -> Result<(), Failure> {
        events.iter().try_for_each(|event| self.fold(event))
    }

    fn fold(&mut self, event: &Recorded) -> Result<(), Failure> {
        Arc::make_mut(&mut self.state).fold(event)?;
        self.revision = Some(event.revision);
        self.hash = event.content_hash;
        self.unsaved += 1;
        Ok(())
    }
}

/// Where entities are loaded from.
#[derive(Clone)]
pub struct Source {
    /// The truth.
    pub log: EventLog,
    /// The short cut.
    pub snapshots: Snapshots,
}

impl Source {
    /// The present state of a stream.
    pub async fn load<A: Aggregate>(&self, stream: &StreamId) -> Result<Loaded<A>, Failure> {
        let (mut loaded, from, mut segments) = self.start::<A>(stream).await?;
        let mut from = Some(from);
        while let Some(segment) = segments.pop() {
            let (from, last) = (from.take().unwrap_or(0), segments.is_empty());
            self.replay(&mut loaded, &segment, from, last).await?;
        }
        Ok(loaded)
    }

    /// Goes up from `stream` to where a state is known. Gives that state, the revision to go on
    /// from in the segment it belongs to, and the segments, `stream` first.
    async fn start<A: Aggregate>(
        &self,
        stream: &StreamId,
    ) -> Result<(Loaded<A>, u64, Vec<Segment>), Failure> {
        let mut segments = Vec::new();
        let mut at = Segment {
            stream: stream.clone(),
            until: None,
        };
        loop {
            segments.push(at.clone());
            if let Some(loaded) = self.latest::<A>(&at).await? {
                let from = loaded.revision.map_or(0, |revision| revision + 1);
                return Ok((loaded, from, segments));
            }
            if segments.len() == 1
                && let Some(root) = self.root(stream).await?
            {
                let from = root.revision.map_or(0, |revision| revision + 1);
                return Ok((root, from, segments));
            }
            let Some(branched) = self.log.origin(&at.stream).await.map_err(unbranched)? else {
                return Ok((Loaded::new(A::default()), 0, segments));
            };
            if let Some(state) = self.forked::<A>(&branched).await {
                // Its branch event is in the state, and nothing after it.
                let loaded = Loaded {
                    revision: Some(0),
                    ..Loaded::new(state)
                };
                return Ok((loaded, 1, segments));
            }
            if segments.len() >= BRANCH_DEPTH_MAX {
                let stream = stream.clone();
                return Err(unbranched(BranchError::TooDeep { stream }));
            }
            at = Segment {
                stream: branched.parent,
                until: Some(branched.revision),
            };
        }
    }

    /// What the first page of a stream comes to; `None` for a branch. Most streams are no branches
    /// and have no more than that.
    async fn root<A: Aggregate>(&self, stream: &StreamId) -> Result<Option<Loaded<A>>, Failure> {
        let page = self.log.read_stream(stream, 0, READ_EVENTS_MAX).await?;
        if page.first().is_some_and(|first| first.kind == BRANCH_KIND) {
            return Ok(None);
        }
        let mut loaded = Loaded::new(A::default());
        loaded.read = page.len() as u64;
        loaded.apply(page)?;
        Ok(Some(loaded))
    }

    /// Takes in a segment's events from a revision on. Of the last one, `last`, whatever it begins
    /// with as a branch is kept: siblings and the next load begin there too.
    async fn replay<A: Aggregate>(
        &self,
        loaded: &mut Loaded<A>,
        segment: &Segment,
        from: u64,
        last: bool,
    ) -> Result<(), Failure> {
        let mut events = self.log.read_segment(segment.clone(), from);
        loop {
            let page = events.next().await?;
            if page.is_empty() {
                return Ok(());
            }
            loaded.read += page.len() as u64;
            for event in &page {
                loaded.fold(event)?;
                if last && event.kind == BRANCH_KIND {
                    self.keep_fork(loaded, event);
                }
            }
        }
    }

    /// The latest snapshot of a segment's stream, if it lies in the segment and in the log.
    async fn latest<A: Aggregate>(&self, segment: &Segment) -> Result<Option<Loaded<A>>, Failure> {
        let Segment { stream, until } = segment;
        let found = self.snapshots.load(stream, Slot::Latest, A::STATE_VERSION);
        let Some(snapshot) = found.await else {
            return Ok(None);
        };
        if until.is_some_and(|until| until < snapshot.revision) {
            return Ok(None);
        }
        let event = self.log.read_stream(stream, snapshot.revision, 1).await?;
        let is_true = event.first().is_some_and(|event| {
            event.revision == snapshot.revision && event.content_hash == snapshot.hash
        });
        match serde_json::from_slice(&snapshot.state) {
            Ok(state) if is_true => Ok(Some(Loaded {
                revision: Some(snapshot.revision),
                hash: snapshot.hash,
                read: 1,
                ..Loaded::new(state)
            })),
            _ => {
                self.snapshots.discard(stream, Slot::Latest).await;
                Ok(None)
            }
        }
    }

    /// The state that a branch begins with, if it was kept.
    async fn forked<A: Aggregate>(&self, at: &Branched) -> Option<A> {
        let slot = Slot::Fork(at.revision);
        let found = self.snapshots.load(&at.parent, slot, A::STATE_VERSION);
        let snapshot = found.await?;
        match serde_json::from_slice(&snapshot.state) {
            Ok(state) if hex::encode(snapshot.hash) == at.hash => Some(state),
            _ => {
                self.snapshots.discard(&at.parent, slot).await;
                None
            }
        }
    }

    /// Keeps the state right after its branch event, under what it branched from.
    fn keep_fork<A: Aggregate>(&self, loaded: &mut Loaded<A>, event: &Recorded) {
        let Some(Ok(at)) = Branched::read(&event.kind, &event.data) else {
            return;
        };
        let mut hash = [0; 32];
        if hex::decode_to_slice(&at.hash, &mut hash).is_ok() {
            let (state, slot) = (loaded.state.clone(), Slot::Fork(at.revision));
            let written = move || serde_json::to_vec(&*state).ok();
            self.snapshots.save(
                &at.parent,
                slot,
                (at.revision, hash),
                A::STATE_VERSION,
                written,
            );
            loaded.unsaved = 0;
        }
    }

    /// Keeps the state when many events came since it was last kept. Returns at once.
    pub fn keep<A: Aggregate>(&self, stream: &StreamId, loaded: &mut Loaded<A>) {
        if let (Some(revision), SNAPSHOT_EVENTS..) = (loaded.revision, loaded.unsaved) {
            let state = loaded.state.clone();
            let written = move || serde_json::to_vec(&*state).ok();
            let at = (revision, loaded.hash);
            self.snapshots
                .save(stream, Slot::Latest, at, A::STATE_VERSION, written);
            loaded.unsaved = 0;
        }
    }
}

fn unbranched(error: BranchError) -> Failure {
    match error {
        BranchError::Read(error) => Failure::Read(error),
        other => Failure::Internal(other.to_string()),
    }
}
