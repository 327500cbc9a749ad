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

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use super::answers::{Reply, Wakes};
use super::engines::{Commit, Engine};
use super::error::{AppendError, EngineError};
use super::event::{Appended, Head, from_unix_ms, unix_ms};
use super::index::Index;
use super::plan::{Answer, Plan, Unplanned};
use super::prepare::Prepared;
use super::published::Published;
use super::recent::Recent;
use super::view::View;

/// Commands that wait for the writer; a caller beyond that waits to enqueue.
pub const QUEUE_COMMANDS_MAX: usize = 1_024;
/// Most commands committed with one sync.
const GROUP_COMMANDS_MAX: usize = 512;
/// Event data after which a group is closed, in bytes (8 MiB).
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Longest the writer idles in all so that a group may fill up to the size of the one before it, in
/// microseconds. Callers that were just answered are about to send their next command; without the
/// wait the first of them would get a sync of its own and the rest another.
const GATHER_US_MAX: u64 = 300;

/// Longest the writer looks for the first command of a group before it sleeps, in microseconds, when
/// the group before had several. To be woken costs it and its caller more than most such waits take.
const AWAKE_US_MAX: u64 = 100;

/// What the writer takes.
pub enum Message {
    Append(Box<Prepared>, Reply),
    /// Ends the writer after what was sent before; answered when the folder is free again.
    Close(oneshot::Sender<()>),
}

/// What was sent to the writer, in order.
struct Inbox {
    queue: mpsc::Receiver<Message>,
    taken: VecDeque<Message>,
    /// Passes through here from the queue: one visit for all that is there.
    passing: Vec<Message>,
}

impl Inbox {
    /// Waits for the next message, awake when it is to come `soon`; `None`: there will be none.
    fn wait(&mut self, soon: bool) -> Option<Message> {
        if soon {
            let awake = Instant::now();
            while awake.elapsed() < Duration::from_micros(AWAKE_US_MAX) {
                if let Some(next) = self.next() {
                    return Some(next);
                }
                std::thread::yield_now();
            }
        }
        if self.taken.is_empty() {
            self.queue
                .blocking_recv_many(&mut self.passing, GROUP_COMMANDS_MAX);
            self.taken.extend(self.passing.drain(..));
        }
        self.taken.pop_front()
    }

    /// The next message, if it is here.
    fn next(&mut self) -> Option<Message> {
        if self.taken.is_empty() {
            // Nobody is to be woken: whoever asks asks again.
            let mut context = Context::from_waker(Waker::noop());
            let limit = GROUP_COMMANDS_MAX;
            let found = self
                .queue
                .poll_recv_many(&mut context, &mut self.passing, limit);
            if matches!(found, Poll::Ready(1..)) {
                self.taken.extend(self.passing.drain(..));
            }
        }
        self.taken.pop_front()
    }
}

/// Commands that are committed together, planned as they come in.
struct Group<'a> {
    plan: Plan<'a>,
    engine: &'a mut dyn Engine,
    bytes: usize,
    callers: Vec<(Reply, Result<Answer, AppendError>)>,
    /// Why nothing of the group is written.
    failed: Option<Failed>,
    closed: Option<oneshot::Sender<()>>,
}

/// Why a group is not written.
enum Failed {
    /// The log had stopped before.
    Stopped,
    Engine(EngineError),
}

impl<'a> Group<'a> {
    fn new(
        plan: Plan<'a>,
        engine: &'a mut dyn Engine,
        failed: Option<Failed>,
        commands: usize,
    ) -> Self {
        Self {
            plan,
            engine,
            bytes: 0,
            callers: Vec::with_capacity(commands),
            failed,
            closed: None,
        }
    }

    /// Takes `first` and whatever else waits, until as many have come as `wanted` or it is to no
    /// purpose to wait for them.
    fn gather(&mut self, first: Message, inbox: &mut Inbox, wanted: usize) {
        self.take(first);
        let mut idle = Duration::ZERO;
        let mut idle_since = None;
        while !self.is_full() {
            if let Some(next) = inbox.next() {
                idle += idle_since
                    .take()
                    .as_ref()
                    .map_or(Duration::ZERO, Instant::elapsed);
                self.take(next);
                continue;
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            if self.callers.len() >= wanted
                || idle + since.elapsed() >= Duration::from_micros(GATHER_US_MAX)
            {
                return;
            }
            // Not asleep: a sleep takes longer than what there is to wait for.
            std::thread::yield_now();
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Close(done) => self.closed = Some(done),
            Message::Append(command, reply) => {
                self.bytes += command.bytes;
                self.plan(*command, reply);
            }
        }
    }

    fn plan(&mut self, command: Prepared, reply: Reply) {
        let at = self.plan.head();
        let planned = match &self.failed {
            None => self.plan.add(command),
            // Its caller is told why in the end.
            Some(_) => return self.callers.push((reply, Ok(Answer::LOST))),
        };
        let outcome = match planned {
            Ok(answer) => {
                if self.plan.head() != at
                    && let Some(commit) = self.plan.last()
                {
                    self.engine.announce(&at, commit);
                }
                Ok(answer)
            }
            Err(Unplanned::Refused(refused)) => Err(refused),
            Err(Unplanned::Failed(error)) => {
                self.failed = Some(Failed::Engine(error));
                Ok(Answer::LOST)
            }
        };
        self.callers.push((reply, outcome));
    }

    fn is_full(&self) -> bool {
        self.closed.is_some()
            || self.callers.len() >= GROUP_COMMANDS_MAX
            || self.bytes >= GROUP_BYTES_MAX
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
    pub fn run(mut self, queue: mpsc::Receiver<Message>) {
        let mut inbox = Inbox {
            queue,
            taken: VecDeque::new(),
            passing: Vec::new(),
        };
        let mut closed = None;
        let mut last_group = 0;
        while closed.is_none()
            && let Some(first) = inbox.wait(last_group > 1)
        {
            (closed, last_group) = self.group(first, &mut inbox, last_group);
        }
        self.end(inbox);
        if let Some(done) = closed {
            let _ = done.send(());
        }
    }

    /// The orderly end: upkeep, refusals for whoever came too late, the files closed.
    fn end(mut self, mut inbox: Inbox) {
        let well = self.stopped().is_none();
        self.published.stop("it was closed");
        if well {
            if let Err(error) = self.engine.close() {
                tracing::warn!(%error, "the event log was closed without its last upkeep");
            }
            self.index.close();
        }
        inbox.queue.close();
        let mut wakes = Wakes::default();
        while let Some(message) = inbox.next() {
            if let Message::Append(_, reply) = message {
                wakes.tell(reply, Err(self.refusal()));
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
    /// to everyone in the group who was judged by what the group would have written. Returns the
    /// order to close, if it came, and how many commands there were.
    fn group(
        &mut self,
        first: Message,
        inbox: &mut Inbox,
        wanted: usize,
    ) -> (Option<oneshot::Sender<()>>, usize) {
        let failed = match self.stopped() {
            Some(_) => Some(Failed::Stopped),
            None => self.index.room().err().map(Failed::Engine),
        };
        let now_ms = unix_ms(OffsetDateTime::now_utc()).max(self.last_ms);
        let now = from_unix_ms(now_ms).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let mut group = Group::new(
            Plan::new(&self.view, self.head, now, wanted),
            self.engine.as_mut(),
            failed,
            wanted,
        );
        group.gather(first, inbox, wanted);
        let Group {
            plan,
            callers,
            failed,
            closed,
            ..
        } = group;
        let size = callers.len();
        let (head, commits) = plan.finish();
        let written = match failed {
            None => self.write(head, now_ms, &commits),
            Some(Failed::Stopped) => Err(self.refusal()),
            // A look into the index may need room; nothing was written.
            Some(Failed::Engine(error)) => Err(self.failure(error)),
        };
        let mut wakes = Wakes::default();
        for (reply, outcome) in callers {
            let answer = match (&written, outcome) {
                (_, Ok(Answer::Recorded(appended))) => Ok(appended),
                (Err(error), _) => Err(error.clone()),
                (Ok(()), Err(refused)) => Err(refused),
                (Ok(()), Ok(Answer::Planned { index, replayed })) => commits
                    .get(index)
                    .and_then(|c| appended(c, replayed))
                    .ok_or_else(|| AppendError::Stopped {
                        reason: "a plan lost one of its commits".into(),
                    }),
            };
            // A caller that went away does not change what was recorded.
            wakes.tell(reply, answer);
        }
        drop(wakes);
        self.recent().trim();
        if size > 0
            && self.stopped().is_none()
            && let Err(error) = self.engine.tidy()
        {
            self.stop(&error);
        }
        (closed, size)
    }

    /// Writes what was planned and publishes it.
    fn write(&mut self, head: Head, now_ms: i64, commits: &[Commit]) -> Result<(), AppendError> {
        if commits.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.engine.append(&self.head, commits) {
            return Err(self.failure(error));
        }
        self.index.add(commits);
        self.head = head;
        self.last_ms = now_ms;
        self.publish(commits);
        Ok(())
    }

    /// What an error of the engine or the index means: a full disk is survived, nothing else is.
    fn failure(&self, error: EngineError) -> AppendError {
        match error {
            EngineError::Full => AppendError::Full {
                dir: self.dir.clone(),
            },
            error => self.stop(&error),
        }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        let recent = self.published.recent.lock();
        recent.unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, commits: &[Commit]) {
        let count = u64::try_from(commits.len()).unwrap_or(u64::MAX);
        self.published.commits.fetch_add(count, Ordering::Relaxed);
        self.published.groups.fetch_add(1, Ordering::Relaxed);
        {
            let mut recent = self.recent();
            for event in commits.iter().flat_map(|commit| &commit.events) {
                recent.push(Arc::clone(event));
            }
        }
        self.published
            .state
            .send_modify(|state| state.head = self.head);
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
