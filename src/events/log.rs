//! The handle on the event log: append, read, follow, verify, close. `open.rs` makes one.
//!
//! All it holds is shared: the queue to the one writer, what the writer publishes, and a pool of
//! readers. Reads see what is on disk; nothing here can change what was recorded.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, oneshot};
use ulid::Ulid;

use super::answers;
use super::engines::Engine;
use super::error::{AppendError, EngineError, ReadError, VerifyError};
use super::event::{Append, Appended, Head, READ_EVENTS_MAX, Recorded};
use super::index::Index;
use super::prepare::prepare;
use super::published::Published;
use super::readers::{READERS_MAX, Readers};
use super::stream::StreamId;
use super::subscription::Subscription;
use super::verify::{self, VerifyReport};
use super::view::View;
use super::writer::{Message, QUEUE_COMMANDS_MAX, Writer};

/// Where the log is.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// A folder of its own, made when missing (mode 0700).
    pub dir: PathBuf,
}

/// Counters since the log was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStats {
    /// Commits written.
    pub commits: u64,
    /// Groups they were written in; each cost one sync of the log.
    pub groups: u64,
}

/// The event log. Cheap to clone; the writer ends when the last clone is gone or one is closed.
#[derive(Clone)]
pub struct EventLog {
    inner: Arc<Inner>,
}

struct Inner {
    queue: mpsc::Sender<Message>,
    published: Arc<Published>,
    readers: Readers,
    log: Ulid,
}

impl EventLog {
    /// Starts the writer on an engine that was proved, with an index that has all of it.
    pub(super) fn start(
        dir: PathBuf,
        mut engine: Box<dyn Engine>,
        index: Index,
    ) -> Result<EventLog, EngineError> {
        // Whatever the engine keeps for its own proof may now say what was proved.
        engine.tidy()?;
        let (log, head) = (engine.view().log(), engine.view().head()?);
        let last = engine.view().commits(head.position, 1)?;
        let last_ms = last.first().and_then(|commit| commit.events.first());
        let last_ms = last_ms.map_or(0, |event| event.recorded_at_ms());
        let view = || Ok(View::new(engine.reader()?, index.lookup()));
        let views: Result<Vec<_>, EngineError> = (0..READERS_MAX).map(|_| view()).collect();
        let readers = Readers::new(views?);
        let published = Arc::new(Published::new(head));
        let (queue, waiting) = mpsc::channel(QUEUE_COMMANDS_MAX);
        let writer = Writer {
            view: view()?,
            index,
            published: Arc::clone(&published),
            head,
            last_ms,
            dir: dir.clone(),
            engine,
        };
        std::thread::Builder::new()
            .name("oc-log-writer".into())
            .spawn(move || writer.run(waiting))
            .map_err(|error| EngineError::Io(format!("no thread for the writer: {error}")))?;
        Ok(EventLog {
            inner: Arc::new(Inner {
                queue,
                published,
                readers,
                log,
            }),
        })
    }

    /// Records one command's events, all or none; returns when they are synced to disk.
    ///
    /// Waits when the queue is full. If the future is dropped the command may still be recorded:
    /// sending it again with the same command id tells.
    pub async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let command = Box::new(prepare(append)?);
        let (reply, answer) = answers::answer();
        let sent = self.inner.queue.send(Message::Append(command, reply)).await;
        sent.map_err(|_| self.stopped_error())?;
        answer.await.unwrap_or_else(|| Err(self.stopped_error()))
    }

    /// Up to `limit` (at most [`READ_EVENTS_MAX`]) events of a stream from a revision on. A page
    /// may be shorter; it is empty only at the end.
    pub async fn read_stream(
        &self,
        stream: &StreamId,
        from_revision: u64,
        limit: usize,
    ) -> Result<Vec<Arc<Recorded>>, ReadError> {
        let stream = stream.clone();
        self.read(move |view| view.stream(&stream, from_revision, limit.min(READ_EVENTS_MAX)))
            .await
    }

    /// The last event of a stream and its revision; `None` when the stream has no event.
    pub async fn stream_head(
        &self,
        stream: &StreamId,
    ) -> Result<Option<(u64, Arc<Recorded>)>, ReadError> {
        let stream = stream.clone();
        self.read(move |view| {
            let Some(revision) = view.stream_revision(&stream)? else {
                return Ok(None);
            };
            Ok(view
                .stream(&stream, revision, 1)?
                .pop()
                .map(|event| (event.revision, event)))
        })
        .await
    }

    /// Up to `limit` (at most [`READ_EVENTS_MAX`]) events of the whole log from a position on
    /// (that one included). A page may be shorter; it is empty only at the end.
    pub async fn read_all(
        &self,
        from_position: u64,
        limit: usize,
    ) -> Result<Vec<Arc<Recorded>>, ReadError> {
        self.read(move |view| view.events(from_position, limit.min(READ_EVENTS_MAX)))
            .await
    }

    /// The same backwards: the events before a position (`None`: from the end), newest first.
    pub async fn read_all_backwards(
        &self,
        before_position: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Arc<Recorded>>, ReadError> {
        let before = before_position.unwrap_or(u64::MAX);
        self.read(move |view| view.events_before(before, limit.min(READ_EVENTS_MAX)))
            .await
    }

    /// Where the log ends. Everything up to here is on disk.
    pub fn head(&self) -> Head {
        self.inner.published.state.borrow().head
    }

    /// Follows the log from a position on (that one included; 0 and 1 mean the beginning).
    pub fn subscribe(&self, from_position: u64) -> Subscription {
        let published = Arc::clone(&self.inner.published);
        Subscription::new(self.inner.readers.clone(), published, from_position)
    }

    /// Reads and checks everything up to the present head, and the witness. Takes time and disk
    /// in proportion to the log; appends go on meanwhile.
    pub async fn verify(&self) -> Result<VerifyReport, VerifyError> {
        // The witness first: the log may only ever be ahead of it.
        let witnessed = self.inner.readers.run(|view| {
            let seen = view.reader().witnessed()?;
            view.reader().check_files()?;
            if let Some(seen) = &seen {
                verify::holds(view.reader(), seen)?;
            }
            Ok::<_, VerifyError>(seen)
        });
        let witness = witnessed.await?;
        let report = self.replay(|_| (), |_, ()| {}).await?;
        Ok(VerifyReport { witness, ..report })
    }

    /// Completes when the log has stopped for good, with the reason. A server ends then.
    pub async fn wait_stopped(&self) -> Arc<str> {
        let mut state = self.inner.published.state.subscribe();
        let stopped = state.wait_for(|state| state.stopped.is_some()).await;
        let reason = stopped.ok().and_then(|state| state.stopped.clone());
        reason.unwrap_or_else(|| "its writer ended".into())
    }

    /// Ends the writer in order: what was appended before is committed, the folder is free for
    /// another server when this returns. Other clones get [`AppendError::Stopped`] from then on.
    pub async fn close(self) {
        let (done, closed) = oneshot::channel();
        if self.inner.queue.send(Message::Close(done)).await.is_ok() {
            // An error means that the writer has ended already, which is what was asked for.
            let _ = closed.await;
        }
    }

    /// The log's identity, made at its creation.
    pub fn id(&self) -> Ulid {
        self.inner.log
    }

    /// Counters since the log was opened.
    pub fn stats(&self) -> LogStats {
        LogStats {
            commits: self.inner.published.commits.load(Ordering::Relaxed),
            groups: self.inner.published.groups.load(Ordering::Relaxed),
        }
    }

    pub(super) fn readers(&self) -> &Readers {
        &self.inner.readers
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&View) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, ReadError> {
        self.inner
            .readers
            .run(work)
            .await
            .map_err(ReadError::Engine)
    }

    fn stopped_error(&self) -> AppendError {
        let stopped = self.inner.published.state.borrow().stopped.clone();
        let reason = stopped.map_or_else(|| "its writer ended".into(), |why| why.to_string());
        AppendError::Stopped { reason }
    }
}
