//! What the index knows of a run of commits, in memory.

use foldhash::HashMap;

use ulid::Ulid;

use crate::events::engines::Commit;
use crate::events::event::Head;
use crate::events::stream::StreamId;

/// Consecutive revisions of one stream: the first one, and the position of each.
#[derive(Debug, Clone)]
pub struct Run {
    pub first: u64,
    pub positions: Vec<u64>,
}

impl Run {
    /// The last revision in it.
    pub fn last(&self) -> u64 {
        self.first + (self.positions.len() as u64).saturating_sub(1)
    }
}

/// Commits that follow one another, as the index sees them.
#[derive(Debug, Default)]
pub struct Batch {
    pub streams: HashMap<StreamId, Run>,
    /// Position of the first event of each command's commit.
    pub commands: HashMap<Ulid, u64>,
    /// Position of each event.
    pub events: HashMap<Ulid, u64>,
    /// Newest id among commands and events.
    pub newest: Ulid,
    /// Where the log ends with the batch; `None`: the batch is empty.
    pub head: Option<Head>,
}

impl Batch {
    /// An empty one with room for about `events` events, each with a command.
    pub fn with_room(events: usize) -> Self {
        let ids =
            || HashMap::with_capacity_and_hasher(events, foldhash::fast::RandomState::default());
        Self {
            commands: ids(),
            events: ids(),
            ..Self::default()
        }
    }

    /// Takes the next commit in.
    pub fn add(&mut self, commit: &Commit) {
        for event in &commit.events {
            self.events.insert(event.id, event.position);
            self.newest = self.newest.max(event.id);
            match self.streams.get_mut(&event.stream) {
                Some(run) => run.positions.push(event.position),
                None => {
                    let run = Run {
                        first: event.revision,
                        positions: vec![event.position],
                    };
                    self.streams.insert(event.stream.clone(), run);
                }
            }
        }
        if let Some(first) = commit.events.first() {
            self.commands.insert(first.command, first.position);
            self.newest = self.newest.max(first.command);
            self.head = Some(commit.head());
        }
    }

    /// How many events it has.
    pub fn len(&self) -> usize {
        self.events.len()
    }
}
