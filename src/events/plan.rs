//! Deciding what a group of commands commits, one command after the other, before a byte is
//! written.
//!
//! Each command is judged against the log *and* against the commands planned before it in the same
//! group, so a group means the same as its commands one by one. A refused command leaves no trace
//! in the plan. The plan reads the engine's indexes and does no other I/O.

use std::sync::Arc;

use foldhash::fast::RandomState;
use foldhash::{HashMap, HashSet};
use time::OffsetDateTime;
use ulid::Ulid;

use super::branch::{self, Place};
use super::chain;
use super::engines::Commit;
use super::error::{AppendError, EngineError};
use super::event::{Appended, Head, Recorded};
use super::prepare::Prepared;
use super::stream::StreamId;
use super::view::View;

/// What the plan holds for one command.
#[derive(Debug)]
pub enum Answer {
    /// It is in the plan as the commit with this index (also a repeat within the group).
    Planned { index: usize, replayed: bool },
    /// It was recorded earlier; nothing is to be written.
    Recorded(Appended),
}

impl Answer {
    /// Of a command that was not looked at, since nothing of its group is written.
    pub const LOST: Self = Answer::Planned {
        index: usize::MAX,
        replayed: false,
    };
}

/// Why a command is not in the plan.
#[derive(Debug)]
pub enum Unplanned {
    /// The command is at fault; the others go on.
    Refused(AppendError),
    /// The log could not be read; the whole group fails.
    Failed(EngineError),
}

impl From<EngineError> for Unplanned {
    fn from(error: EngineError) -> Self {
        Unplanned::Failed(error)
    }
}

impl From<AppendError> for Unplanned {
    fn from(error: AppendError) -> Self {
        Unplanned::Refused(error)
    }
}

/// The plan of one group.
pub struct Plan<'a> {
    view: &'a View,
    now: OffsetDateTime,
    head: Head,
    commits: Vec<Commit>,
    /// Last revision of each stream the plan touches.
    streams: HashMap<StreamId, u64>,
    commands: HashMap<Ulid, usize>,
    event_ids: HashSet<Ulid>,
}

impl<'a> Plan<'a> {
    /// An empty plan behind `head` with room for about `commands` commands; all of its commits get
    /// the time `now`.
    pub fn new(view: &'a View, head: Head, now: OffsetDateTime, commands: usize) -> Self {
        Self {
            view,
            now,
            head,
            commits: Vec::with_capacity(commands),
            streams: HashMap::with_capacity_and_hasher(commands, RandomState::default()),
            commands: HashMap::with_capacity_and_hasher(commands, RandomState::default()),
            event_ids: HashSet::with_capacity_and_hasher(commands, RandomState::default()),
        }
    }

    /// Where the log ends once the plan is written, and what is to be written.
    pub fn finish(self) -> (Head, Vec<Commit>) {
        (self.head, self.commits)
    }

    /// Where the log ends once the plan is written.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The commit that was planned last.
    pub fn last(&self) -> Option<&Commit> {
        self.commits.last()
    }

    /// Takes one command in, or says why not.
    pub fn add(&mut self, command: Prepared) -> Result<Answer, Unplanned> {
        if let Some(answer) = self.seen_before(&command)? {
            return Ok(answer);
        }
        self.check(&command)?;
        let index = self.commits.len();
        self.commands.insert(command.command, index);
        let commit = self.record(command)?;
        self.commits.push(commit);
        Ok(Answer::Planned {
            index,
            replayed: false,
        })
    }

    /// The recorded answer to a command id that was used before.
    fn seen_before(&self, command: &Prepared) -> Result<Option<Answer>, Unplanned> {
        let reused = |commit| AppendError::CommandReused {
            command: command.command,
            commit,
        };
        if let Some(&index) = self.commands.get(&command.command) {
            return match self.commits.get(index) {
                Some(commit) if command.asks_for(&commit.events) => Ok(Some(Answer::Planned {
                    index,
                    replayed: true,
                })),
                other => Err(reused(other.map_or(0, |commit| commit.number)).into()),
            };
        }
        let Some(commit) = self.view.commit_of(command.command)? else {
            return Ok(None);
        };
        if !command.asks_for(&commit.events) {
            return Err(reused(commit.number).into());
        }
        Ok(Some(Answer::Recorded(Appended {
            first_position: commit.first_position(),
            last_position: commit.head().position,
            commit: commit.number,
            events: commit.events,
            replayed: true,
        })))
    }

    /// Everything that may refuse a command, before anything of it is taken in.
    fn check(&self, command: &Prepared) -> Result<(), Unplanned> {
        for (stream, expected) in &command.expected {
            let actual = self.revision(stream)?;
            if !expected.holds(actual) {
                let (stream, expected) = (stream.clone(), *expected);
                return Err(AppendError::Conflict {
                    stream,
                    expected,
                    actual,
                }
                .into());
            }
        }
        for event in &command.events {
            if self.event_ids.contains(&event.id) || self.view.position_of(event.id)?.is_some() {
                return Err(AppendError::DuplicateEvent { id: event.id }.into());
            }
        }
        self.check_branches(command)
    }

    /// A false branch event would stand in the log for ever and break its proof.
    fn check_branches(&self, command: &Prepared) -> Result<(), Unplanned> {
        for (index, event) in command.events.iter().enumerate() {
            if event.kind != branch::BRANCH_KIND {
                continue;
            }
            let before = command.events.iter().take(index);
            let first = self.revision(&event.stream)?.is_none()
                && before.clone().all(|other| other.stream != event.stream);
            let at = Place {
                revision: u64::from(!first),
                position: self.head.position + 1,
            };
            if let Some(what) = branch::fault(self.view.reader(), &event.kind, &event.data, at)? {
                let reason = format!("the branch event of {} is false: {what}", event.stream);
                return Err(AppendError::Invalid { reason }.into());
            }
        }
        Ok(())
    }

    fn revision(&self, stream: &StreamId) -> Result<Option<u64>, EngineError> {
        match self.streams.get(stream) {
            Some(revision) => Ok(Some(*revision)),
            None => self.view.stream_revision(stream),
        }
    }

    /// Numbers and hashes a command that was checked. Fails only when the log can't be read.
    fn record(&mut self, command: Prepared) -> Result<Commit, EngineError> {
        let number = self.head.commit + 1;
        let mut position = self.head.position;
        let mut events = Vec::with_capacity(command.events.len());
        for event in command.events {
            let revision = self.revision(&event.stream)?.map_or(0, |last| last + 1);
            position += 1;
            self.streams.insert(event.stream.clone(), revision);
            self.event_ids.insert(event.id);
            let mut recorded = Recorded {
                id: event.id,
                stream: event.stream,
                revision,
                position,
                commit: number,
                kind: event.kind,
                recorded_at: self.now,
                actor: command.actor.clone(),
                command: command.command,
                correlation: command.correlation,
                causation: command.causation,
                data: event.data,
                content_hash: [0; 32],
            };
            recorded.content_hash = chain::content_hash(&recorded);
            events.push(Arc::new(recorded));
        }
        let hashes = events.iter().map(|event| &event.content_hash);
        let chain = chain::chain_hash(number, &self.head.chain, hashes);
        self.head = Head {
            position,
            commit: number,
            chain,
        };
        Ok(Commit {
            number,
            chain,
            events,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::events::engines::memory::Memory;
    use crate::events::engines::{Engine, Reader};
    use crate::events::index::Index;
    use crate::events::prepare::prepare;
    use crate::events::{Actor, Append, Expected, NewEvent};

    /// A command over few ids, streams and values, so that all kinds of clashes come up.
    fn command() -> impl Strategy<Value = Append> {
        let stream = || "[abc]".prop_map(|name| StreamId::new(name).expect("a stream name"));
        let ulid = |max: u128| (0..max).prop_map(Ulid::from);
        let expected = prop_oneof![
            Just(Expected::Any),
            Just(Expected::NoStream),
            (0..4_u64).prop_map(Expected::Revision),
        ];
        let event = (ulid(40), stream(), 0..2).prop_map(|(id, stream, value)| NewEvent {
            id,
            stream,
            kind: "test.happened.v1".into(),
            data: json!(value),
        });
        let parts = (
            ulid(8),
            proptest::collection::vec((stream(), expected), 0..2),
            proptest::collection::vec(event, 1..3),
        );
        parts.prop_map(|(command, expected, events)| Append {
            command,
            expected,
            events,
            actor: Actor::system(),
            correlation: None,
            causation: None,
        })
    }

    /// Runs `commands` in groups of `size` on a new log; returns what each was told and the log.
    fn run(commands: &[Append], size: usize) -> (Vec<String>, Vec<String>) {
        let mut engine = Memory::new();
        let index = Index::in_memory(engine.log());
        let view = View::new(engine.reader().expect("a reader"), index.lookup());
        let mut told = Vec::new();
        for group in commands.chunks(size) {
            let at = engine.view().head().expect("a head");
            let mut plan = Plan::new(&view, at, OffsetDateTime::UNIX_EPOCH, 0);
            let mut numbers = Vec::new();
            for append in group {
                let planned = prepare(append.clone()).map_err(Unplanned::Refused);
                numbers.push(match planned.and_then(|prepared| plan.add(prepared)) {
                    Ok(Answer::Planned { index, replayed }) => Ok((index, replayed)),
                    Ok(Answer::Recorded(done)) => Err(format!("repeat of {}", done.commit)),
                    Err(Unplanned::Refused(refused)) => Err(refused.to_string()),
                    Err(Unplanned::Failed(error)) => panic!("{error}"),
                });
            }
            let (_, commits) = plan.finish();
            told.extend(numbers.into_iter().map(|number| match number {
                Ok((index, true)) => format!("repeat of {}", commits[index].number),
                Ok((index, false)) => format!("recorded as {}", commits[index].number),
                Err(other) => other,
            }));
            if !commits.is_empty() {
                engine.append(&at, &commits).expect("appended");
                index.add(&commits);
            }
        }
        let events = view.events(1, 1_000).expect("read");
        let log = events
            .into_iter()
            .map(|e| {
                format!(
                    "{} {} in {} at {}",
                    e.stream, e.revision, e.commit, e.position
                )
            })
            .collect();
        (told, log)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Goal: a group means the same as its commands one by one, to every sender and in the log.
        #[test]
        fn a_group_means_the_same_as_its_commands_one_by_one(
            commands in proptest::collection::vec(command(), 1..24), size in 2..24_usize,
        ) {
            prop_assert_eq!(run(&commands, size), run(&commands, 1));
        }
    }
}
