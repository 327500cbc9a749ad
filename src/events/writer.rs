//! The one writer: a thread that takes everything waiting, commits it as a group, then answers.
//!
//! ```text
//! recv → plan → one transaction + sync → index → publish → answer → upkeep
//! ```
//!
//! Invariants: an answer is sent only after the sync; subscribers never see an event that is not
//! on disk; the head grows and never forks. After any failure but a full disk the writer never
//! writes again, since nobody can know what a failed sync has kept (the page cache may hold pages
//! that the disk lost): it refuses everything until the process is restarted and the log checked.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use super::engines::{Commit, Engine};
use super::error::{AppendError, EngineError};
use super::event::{Appended, Head, from_unix_ms, unix_ms};
use super::index::Index;
use super::plan::{Answer, Plan, Unplanned};
use super::prepare::Prepared;
use super::published::Published;
use super::view::View;

/// Commands that wait for the writer; a caller beyond that waits to enqueue.
pub const QUEUE_COMMANDS_MAX: usize = 1_024;
/// Most commands committed with one sync.
const GROUP_COMMANDS_MAX: usize = 512;
/// Event data after which a group is closed, in bytes (8 MiB).
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Longest the writer waits for a group to fill up to the size of the one before it, in
/// microseconds. Callers that were just answered are about to send their next command; without the
/// wait the first of them would get a sync of its own and the rest another.
const GATHER_US_MAX: u64 = 300;

type Reply = oneshot::Sender<Result<Appended, AppendError>>;

/// What the writer takes.
pub enum Message {
    Append(Box<Prepared>, Reply),
    /// Ends the writer after what was sent before; answered when the folder is free again.
    Close(oneshot::Sender<()>),
}

/// Commands to be committed together.
#[derive(Default)]
struct Group {
    commands: Vec<(Prepared, Reply)>,
    bytes: usize,
}

impl Group {
    /// Takes `message` and whatever else is waiting; returns the order to close, if it was there.
    fn take(
        &mut self,
        message: Message,
        queue: &mut mpsc::Receiver<Message>,
    ) -> Option<oneshot::Sender<()>> {
        let mut next = Some(message);
        while let Some(message) = next {
            match message {
                Message::Close(done) => return Some(done),
                Message::Append(command, reply) => {
                    self.bytes += command.bytes;
                    self.commands.push((*command, reply));
                }
            }
            next = if self.is_full() {
                None
            } else {
                queue.try_recv().ok()
            };
        }
        None
    }

    fn is_full(&self) -> bool {
        self.commands.len() >= GROUP_COMMANDS_MAX || self.bytes >= GROUP_BYTES_MAX
    }
}

/// The writer's belongings. The engine is the last field: its lock falls when all else is closed.
pub struct Writer {
    /// What commands are judged by.
    pub view: View,
    pub index: Index,
    pub published: Arc<Published>,
    pub head: Head,
    /// Time of the last commit, in milliseconds since 1970.
    pub last_ms: i64,
    pub dir: PathBuf,
    pub engine: Box<dyn Engine>,
}

impl Writer {
    /// Works until the log is closed or every handle is gone.
    pub fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut closed = None;
        let mut last_group = 0;
        while closed.is_none() {
            let Some(first) = queue.blocking_recv() else {
                break;
            };
            let mut group = Group::default();
            closed = group.take(first, &mut queue);
            let gathering = Instant::now();
            while closed.is_none()
                && group.commands.len() < last_group
                && !group.is_full()
                && gathering.elapsed() < Duration::from_micros(GATHER_US_MAX)
            {
                match queue.try_recv() {
                    Ok(next) => closed = group.take(next, &mut queue),
                    // Not asleep: a sleep takes longer than what there is to wait for.
                    Err(_) => std::thread::yield_now(),
                }
            }
            last_group = group.commands.len();
            self.commit(group.commands);
        }
        self.end(queue);
        if let Some(done) = closed {
            let _ = done.send(());
        }
    }

    /// The orderly end: upkeep, refusals for whoever came too late, the files closed.
    fn end(mut self, mut queue: mpsc::Receiver<Message>) {
        let well = self.stopped().is_none();
        self.published.stop("it was closed");
        if well {
            if let Err(error) = self.engine.close() {
                tracing::warn!(%error, "the event log was closed without its last upkeep");
            }
            self.index.close();
        }
        queue.close();
        while let Ok(message) = queue.try_recv() {
            if let Message::Append(_, reply) = message {
                let _ = reply.send(Err(self.refusal()));
            }
        }
    }

    fn stopped(&self) -> Option<Arc<str>> {
        self.published.state.borrow().stopped.clone()
    }

    fn refusal(&self) -> AppendError {
        let reason = self
            .stopped()
            .map_or_else(|| "it was closed".into(), |why| why.to_string());
        AppendError::Stopped { reason }
    }

    /// One group: all of its commits are on disk when the first answer goes out. A failure is told
    /// to everyone in the group who was judged by what the group would have written.
    fn commit(&mut self, group: Vec<(Prepared, Reply)>) {
        if group.is_empty() {
            return;
        }
        let mut replies = Vec::with_capacity(group.len());
        let mut outcomes = Vec::with_capacity(group.len());
        let mut commands = Vec::with_capacity(group.len());
        for (command, reply) in group {
            commands.push(command);
            replies.push(reply);
        }
        let written = match self.stopped() {
            Some(_) => Err(self.refusal()),
            None => self.write(commands, &mut outcomes),
        };
        let mut outcomes = outcomes.into_iter();
        for reply in replies {
            let answer = match (&written, outcomes.next()) {
                (_, Some(Ok(Answer::Recorded(appended)))) => Ok(appended),
                (Err(error), _) => Err(error.clone()),
                (Ok(_), Some(Err(refused))) => Err(refused),
                (Ok(commits), Some(Ok(Answer::Planned { index, replayed }))) => commits
                    .get(index)
                    .and_then(|c| appended(c, replayed))
                    .ok_or_else(|| AppendError::Stopped {
                        reason: "a plan lost one of its commits".into(),
                    }),
                (Ok(_), None) => Err(self.refusal()),
            };
            // A caller that went away does not change what was recorded.
            let _ = reply.send(answer);
        }
        if self.stopped().is_none()
            && let Err(error) = self.engine.tidy()
        {
            self.stop(&error);
        }
    }

    /// Plans the commands, writes what they come to, and publishes it.
    fn write(
        &mut self,
        commands: Vec<Prepared>,
        outcomes: &mut Vec<Result<Answer, AppendError>>,
    ) -> Result<Vec<Commit>, AppendError> {
        let now_ms = unix_ms(OffsetDateTime::now_utc()).max(self.last_ms);
        let now = from_unix_ms(now_ms).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        match self.index.room() {
            Ok(()) => {}
            Err(EngineError::Full) => return Err(self.full()),
            Err(error) => return Err(self.stop(&error)),
        }
        let mut plan = Plan::new(&self.view, self.head, now);
        for command in commands {
            match plan.add(command) {
                Ok(answer) => outcomes.push(Ok(answer)),
                Err(Unplanned::Refused(refused)) => outcomes.push(Err(refused)),
                // A look into the index may need room; nothing was written.
                Err(Unplanned::Failed(EngineError::Full)) => return Err(self.full()),
                Err(Unplanned::Failed(error)) => return Err(self.stop(&error)),
            }
        }
        let (head, commits) = plan.finish();
        if commits.is_empty() {
            return Ok(commits);
        }
        match self.engine.append(&self.head, &commits) {
            Ok(()) => {}
            Err(EngineError::Full) => return Err(self.full()),
            Err(error) => return Err(self.stop(&error)),
        }
        self.index.add(&commits);
        self.head = head;
        self.last_ms = now_ms;
        self.publish(&commits);
        Ok(commits)
    }

    fn publish(&self, commits: &[Commit]) {
        let count = u64::try_from(commits.len()).unwrap_or(u64::MAX);
        self.published.commits.fetch_add(count, Ordering::Relaxed);
        self.published.groups.fetch_add(1, Ordering::Relaxed);
        {
            let mut recent = self
                .published
                .recent
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            for event in commits.iter().flat_map(|commit| &commit.events) {
                recent.push(Arc::clone(event));
            }
        }
        self.published
            .state
            .send_modify(|state| state.head = self.head);
    }

    fn full(&self) -> AppendError {
        AppendError::Full {
            dir: self.dir.clone(),
        }
    }

    /// Stops for good and says so.
    fn stop(&self, error: &EngineError) -> AppendError {
        tracing::error!(%error, dir = %self.dir.display(), "the event log stops for good");
        self.published.stop(&error.to_string());
        self.refusal()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Also when the thread unwinds: nobody may wait for a writer that is gone.
        self.published.stop("its writer ended");
    }
}

fn appended(commit: &Commit, replayed: bool) -> Option<Appended> {
    Some(Appended {
        first_position: commit.events.first()?.position,
        last_position: commit.events.last()?.position,
        commit: commit.number,
        events: commit.events.clone(),
        replayed,
    })
}
