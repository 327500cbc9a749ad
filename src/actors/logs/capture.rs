//! From a sandbox's programs to its log.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::LogSource;
use super::heard::{Heard, Walk};
use super::writer::{Exec, LINE_BYTES_MAX, Piece};
use crate::actors::exec::TIMED_OUT;
use crate::actors::kills::Kills;
use crate::sandbox::{GuestClient, SessionOutput, StartSession};

/// What of a command and of its arguments is kept with each line, in bytes.
const COMMAND_BYTES_MAX: usize = 1024;
/// What an argument counts beside its text.
const ARG_BYTES: usize = 16;
/// Longest path told, in bytes.
const PATH_BYTES_MAX: usize = 4096;
/// When the files of a sandbox that was just made are first looked at.
const AFTER_START: Duration = Duration::from_millis(250);
/// Pause before a sandbox whose files could not be followed is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// The log of one running sandbox. Clones write to the same one.
#[derive(Clone)]
pub struct SandboxLog {
    pieces: mpsc::Sender<Piece>,
    dropped: Arc<AtomicU64>,
    ended: CancellationToken,
    kills: Arc<Kills>,
    heard: Arc<Heard>,
}

impl SandboxLog {
    /// A log in `folder`, which goes on with the sessions of the sandbox where `heard` says, and takes
    /// what its files below `/var/log` get. `uptime`: how long the guest has been there.
    pub fn start(
        folder: PathBuf,
        (guest, uptime): (&GuestClient, Duration),
        kills: &Arc<Kills>,
        heard: &Arc<Heard>,
    ) -> Self {
        let (pieces, dropped) = heard.writer(folder);
        let log = Self {
            pieces,
            dropped,
            ended: CancellationToken::new(),
            kills: kills.clone(),
            heard: heard.clone(),
        };
        let known = heard.known();
        let pause = AFTER_START.saturating_sub(uptime);
        let (follower, guest) = (log.downgrade(), guest.clone());
        tokio::spawn(follow(follower, guest, known, SystemTime::now(), pause));
        log
    }

    /// Observes nothing more: the server lets go of the sandbox, and what its sessions go on to print
    /// is for the log that is opened when it is held again. Commands that are captured stay with this
    /// one, and have the same writer.
    pub fn end(&self) {
        self.ended.cancel();
    }

    /// Cancelled by [`SandboxLog::end`].
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    fn downgrade(&self) -> WeakLog {
        WeakLog {
            pieces: self.pieces.downgrade(),
            dropped: self.dropped.clone(),
            ended: self.ended.clone(),
            kills: self.kills.clone(),
            heard: self.heard.clone(),
        }
    }

    /// The way into the log of a process that is about to be started.
    pub fn of(&self, session: &StartSession) -> LoggedExec {
        self.kills.began(&session.session_id);
        self.exec(&session.session_id, &session.cmd, &session.args)
    }

    fn exec(&self, id: &str, command: &str, args: &[String]) -> LoggedExec {
        let mut left = COMMAND_BYTES_MAX;
        let args = args.iter().map_while(|arg| {
            left = left.checked_sub(arg.len() + ARG_BYTES)?;
            Some(arg.clone())
        });
        let exec = Exec {
            argv: args.collect(),
            id: id.to_owned(),
            command: cut(command, COMMAND_BYTES_MAX).to_owned(),
        };
        LoggedExec {
            log: self.clone(),
            exec: Arc::new(exec),
            captured: false,
        }
    }

    /// False when the log takes nothing more from observers.
    fn put(&self, piece: Piece, captured: bool) -> bool {
        if !captured && self.ended.is_cancelled() {
            return false;
        }
        let bytes = match &piece {
            Piece::Output { data, .. } => data.len(),
            _ => 0,
        };
        if self.pieces.try_send(piece).is_err() {
            self.dropped.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        true
    }
}

/// A log that ends when the sandbox's own does.
struct WeakLog {
    pieces: mpsc::WeakSender<Piece>,
    dropped: Arc<AtomicU64>,
    ended: CancellationToken,
    kills: Arc<Kills>,
    heard: Arc<Heard>,
}

impl WeakLog {
    fn upgrade(&self) -> Option<SandboxLog> {
        if self.ended.is_cancelled() {
            return None;
        }
        Some(SandboxLog {
            pieces: self.pieces.upgrade()?,
            dropped: self.dropped.clone(),
            ended: self.ended.clone(),
            kills: self.kills.clone(),
            heard: self.heard.clone(),
        })
    }
}

/// The longest beginning of a text that fits.
fn cut(text: &str, bytes_max: usize) -> &str {
    let end = text.floor_char_boundary(bytes_max);
    text.get(..end).unwrap_or_default()
}

/// The way of one process's output into its sandbox's log.
pub struct LoggedExec {
    log: SandboxLog,
    exec: Arc<Exec>,
    captured: bool,
}

impl Drop for LoggedExec {
    fn drop(&mut self) {
        if self.captured {
            self.log.heard.set_captured(&self.exec.id, false);
        }
    }
}

impl LoggedExec {
    /// All of its output comes to this one, whatever becomes of the sandbox meanwhile: no observer is
    /// wanted.
    pub fn captured(mut self) -> Self {
        self.log.heard.set_captured(&self.exec.id, true);
        self.captured = true;
        self
    }

    /// Takes a piece; never waits. False when the log takes nothing more.
    pub fn output(&self, output: &SessionOutput) -> bool {
        let (source, data) = match output {
            SessionOutput::Stdout(data) => (LogSource::ExecStdout, data.clone()),
            SessionOutput::Stderr(data) => (LogSource::ExecStderr, data.clone()),
            SessionOutput::ReplayEnd | SessionOutput::Position(_) => return true,
            SessionOutput::Exit {
                code, timed_out, ..
            } => {
                if *timed_out {
                    self.put(LogSource::ExecStderr, TIMED_OUT.into());
                }
                if let Some(note) = self.log.kills.note(&self.exec.id, *code) {
                    self.put(LogSource::ExecStderr, note.into());
                }
                let exec = self.exec.clone();
                let exit = Piece::Exit { exec, code: *code };
                return self.log.put(exit, self.captured);
            }
        };
        self.put(source, data)
    }

    fn put(&self, source: LogSource, data: bytes::Bytes) -> bool {
        let exec = self.exec.clone();
        let output = Piece::Output { exec, source, data };
        self.log.put(output, self.captured)
    }

    /// Takes what a session puts out from a place on (or from now on), for as long as it runs and the
    /// sandbox is held here.
    pub fn observe(self, guest: GuestClient, from: Option<u64>) {
        // An observer that kept the log would go on beside the one that comes after a sleep.
        let (log, exec) = (self.log.downgrade(), self.exec.clone());
        tokio::spawn(async move {
            let ended = log.ended.clone();
            // Ends with the log also while the session is silent: it holds a connection to the guest.
            let observe = ended.run_until_cancelled(log.observe(exec, guest, from));
            observe.await;
        });
    }
}

impl WeakLog {
    async fn observe(&self, exec: Arc<Exec>, guest: GuestClient, from: Option<u64>) {
        if let Some(from) = from {
            // Before anything is heard: it may fall asleep first.
            let place = self.heard.place(&exec.id);
            place.fetch_max(from, Ordering::Relaxed);
        }
        let Ok(mut output) = guest.observe(&exec.id).await else {
            return;
        };
        let (mut walk, mut place) = (Walk::from(from), None);
        while let Ok(Some(piece)) = output.next().await {
            let Some(log) = self.upgrade() else {
                return;
            };
            let (new, missed) = walk.take(piece);
            log.dropped.fetch_add(missed, Ordering::Relaxed);
            let ended = matches!(new, Some(SessionOutput::Exit { .. }));
            let logged = LoggedExec {
                log,
                exec: exec.clone(),
                captured: false,
            };
            // What the log did not take any more is for the next one.
            if new.is_some_and(|new| !logged.output(&new)) {
                return;
            }
            if let Some(at) = walk.at() {
                let place = place.get_or_insert_with(|| self.heard.place(&exec.id));
                place.fetch_max(at, Ordering::Relaxed);
            }
            // A guest that says no positions can't be asked to go on at one.
            if ended || walk.at().is_none() {
                self.heard.forget(&exec.id);
            }
        }
    }

    /// Takes what is added to files, until the log has ended or the guest is gone.
    async fn take_files(&self, guest: &GuestClient) -> Option<()> {
        let ended = &self.ended;
        loop {
            let after = self.heard.batch.load(Ordering::Relaxed);
            let following = ended.run_until_cancelled(guest.follow_logs(after));
            let mut batches = std::pin::pin!(following.await?.ok()?);
            while let Some(Ok(batch)) = ended.run_until_cancelled(batches.next()).await? {
                let log = self.upgrade()?;
                // Whole, or it would come again.
                for (path, line) in batch.lines {
                    let line = cut(&line, LINE_BYTES_MAX).to_owned();
                    let path = cut(&path, PATH_BYTES_MAX).to_owned();
                    // Waits: what is in a file is not lost, the guest reads it later.
                    log.pieces.send(Piece::File { path, line }).await.ok()?;
                }
                self.heard.batch.store(batch.number, Ordering::Relaxed);
            }
            ended.run_until_cancelled(tokio::time::sleep(AGAIN)).await?;
        }
    }
}

/// Takes what comes without anybody starting it: sessions from before this log was opened, and files;
/// until the log or the guest is gone.
async fn follow(
    log: WeakLog,
    guest: GuestClient,
    mut known: HashMap<String, u64>,
    since: SystemTime,
    pause: Duration,
) {
    // A sandbox that was just made is not slowed down by it.
    tokio::time::sleep(pause).await;
    let sessions = guest.sessions().await;
    let listed = sessions.is_ok();
    for session in sessions.unwrap_or_default() {
        let from = known.remove(&session.session_id);
        let runs = session.exit_code.is_none() && session.started < since;
        let Some(log) = log.upgrade().filter(|_| runs || from.is_some()) else {
            continue;
        };
        if runs {
            log.kills.began(&session.session_id);
        }
        if log.heard.is_captured(&session.session_id) {
            continue;
        }
        let logged = log.exec(&session.session_id, &session.cmd, &session.args);
        logged.observe(guest.clone(), from);
    }
    // A guest that started anew has none of them.
    if listed && log.upgrade().is_some() {
        known.keys().for_each(|gone| log.heard.forget(gone));
    }
    for terminal in guest.terminals().await.unwrap_or_default() {
        if terminal.exit_code.is_none() && terminal.started < since {
            log.kills.began(&terminal.session_id);
        }
    }
    log.take_files(&guest).await;
}
