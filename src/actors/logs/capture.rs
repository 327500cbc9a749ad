//! From a sandbox's programs to its log.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::LogSource;
use super::writer::{Exec, LINE_BYTES_MAX, Piece, write};
use crate::actors::exec::TIMED_OUT;
use crate::sandbox::{GuestClient, SessionOutput, StartSession};

/// Pieces on their way to the writer; one is 32 KiB at most.
const PIECES_MAX: usize = 256;
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
    ended: Arc<AtomicBool>,
}

impl SandboxLog {
    /// A log in `folder`, which takes what the sandbox's files below `/var/log` get from now on.
    pub fn start(folder: PathBuf, guest: &GuestClient) -> Self {
        let (pieces, receiver) = mpsc::channel(PIECES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        tokio::spawn(write(folder, receiver, dropped.clone()));
        let log = Self {
            pieces,
            dropped,
            ended: Arc::default(),
        };
        tokio::spawn(follow(log.downgrade(), guest.clone(), SystemTime::now()));
        log
    }

    /// Takes nothing more: the server lets go of the sandbox, and what its programs go on to print is
    /// for the log that is opened when it is held again.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    fn downgrade(&self) -> WeakLog {
        WeakLog {
            pieces: self.pieces.downgrade(),
            dropped: self.dropped.clone(),
            ended: self.ended.clone(),
        }
    }

    /// The way into the log of a process that is about to be started.
    pub fn of(&self, session: &StartSession) -> LoggedExec {
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
        }
    }

    fn put(&self, piece: Piece) {
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        let bytes = match &piece {
            Piece::Output { data, .. } => data.len(),
            _ => 0,
        };
        if self.pieces.try_send(piece).is_err() {
            self.dropped.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}

/// A log that ends when the sandbox's own does.
struct WeakLog {
    pieces: mpsc::WeakSender<Piece>,
    dropped: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl WeakLog {
    fn upgrade(&self) -> Option<SandboxLog> {
        if self.ended.load(Ordering::Acquire) {
            return None;
        }
        Some(SandboxLog {
            pieces: self.pieces.upgrade()?,
            dropped: self.dropped.clone(),
            ended: self.ended.clone(),
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
}

impl LoggedExec {
    /// Takes a piece; never waits.
    pub fn output(&self, output: &SessionOutput) {
        let (source, data) = match output {
            SessionOutput::Stdout(data) => (LogSource::ExecStdout, data.clone()),
            SessionOutput::Stderr(data) => (LogSource::ExecStderr, data.clone()),
            SessionOutput::ReplayEnd => return,
            SessionOutput::Exit {
                code, timed_out, ..
            } => {
                if *timed_out {
                    self.put(LogSource::ExecStderr, TIMED_OUT.into());
                }
                let exec = self.exec.clone();
                return self.log.put(Piece::Exit { exec, code: *code });
            }
        };
        self.put(source, data);
    }

    fn put(&self, source: LogSource, data: bytes::Bytes) {
        let exec = self.exec.clone();
        self.log.put(Piece::Output { exec, source, data });
    }

    /// Takes what a session puts out, for as long as it runs and the sandbox is held here. With
    /// `only_new`, what was put out before is left out.
    pub fn observe(self, guest: GuestClient, only_new: bool) {
        // An observer that kept the log would go on beside the one that comes after a sleep.
        let (log, exec) = (self.log.downgrade(), self.exec);
        tokio::spawn(async move {
            let Ok(mut output) = guest.observe(&exec.id).await else {
                return;
            };
            let mut old = only_new;
            while let Ok(Some(piece)) = output.next().await {
                let Some(log) = log.upgrade() else {
                    return;
                };
                let exec = exec.clone();
                match piece {
                    SessionOutput::ReplayEnd => old = false,
                    piece if !old => Self { log, exec }.output(&piece),
                    _ => {}
                }
            }
        });
    }
}

/// Takes what comes without anybody starting it: sessions from before the server did, and files;
/// until the log or the guest is gone.
async fn follow(log: WeakLog, guest: GuestClient, since: SystemTime) {
    // A sandbox that was just made is not slowed down by it.
    tokio::time::sleep(AFTER_START).await;
    for session in guest.sessions().await.unwrap_or_default() {
        if session.exit_code.is_none()
            && session.started < since
            && let Some(log) = log.upgrade()
        {
            let logged = log.exec(&session.session_id, &session.cmd, &session.args);
            logged.observe(guest.clone(), true);
        }
    }
    while let Ok(lines) = guest.follow_logs().await {
        let mut lines = std::pin::pin!(lines);
        while let Some(Ok((path, line))) = lines.next().await {
            let Some(log) = log.upgrade() else {
                return;
            };
            let line = cut(&line, LINE_BYTES_MAX).to_owned();
            let path = cut(&path, PATH_BYTES_MAX).to_owned();
            // Waits: what is in a file is not lost, the guest reads it later.
            if log.pieces.send(Piece::File { path, line }).await.is_err() {
                return;
            }
        }
        if log.upgrade().is_none() {
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
