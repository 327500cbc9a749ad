//! The server's side: a process that compares, and what it says.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{Semaphore, oneshot};

use super::{Question, TIME_MAX};
use crate::ids::CheckpointId;
use crate::sandbox::DriverError;
use crate::sandbox::namespace::{NamespaceDriver, SUPERVISE_SUBCOMMAND};

/// Comparisons at once.
pub const AT_ONCE_MAX: usize = 2;
/// Longest a comparison waits for those before it.
const TURN_WAIT_MAX: Duration = Duration::from_secs(30);
/// Longest until both disks are open.
const OPEN_TIME_MAX: Duration = Duration::from_secs(60);
/// Read at once of what is said, in bytes.
const PIECE_BYTES: usize = 64 * 1024;
/// Longest reason read, in bytes.
const REASON_BYTES_MAX: u64 = 4096;

/// What differs between two copies, as lines of JSON; it is found out as fast as this is read, and
/// no further once this is dropped.
#[derive(Debug)]
pub struct Differences {
    child: Child,
    said: ChildStdout,
    /// Gives the turn back when it is dropped.
    _reads: oneshot::Sender<()>,
}

impl Differences {
    /// The next piece; `None` at the end. An error means that the end is missing.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        if self.said.read_buf(&mut piece).await? > 0 {
            return Ok(Some(piece.into()));
        }
        match self.child.wait().await? {
            status if status.success() => Ok(None),
            status => Err(io::Error::other(format!(
                "the comparison ended with {status}"
            ))),
        }
    }
}

impl NamespaceDriver {
    /// Starts a comparison of the disks of two copies.
    pub(in crate::sandbox) async fn compare(
        &self,
        from: &CheckpointId,
        to: &CheckpointId,
    ) -> Result<Differences, DriverError> {
        let failed = |source| DriverError::Io {
            what: format!("compare checkpoints {from} and {to}"),
            source,
        };
        let turn = tokio::time::timeout(TURN_WAIT_MAX, self.comparing.clone().acquire_owned());
        let turn = match turn.await {
            Ok(Ok(turn)) => turn,
            _ => return Err(DriverError::Busy),
        };
        let question = Question {
            from: self.copy_of(from),
            to: self.copy_of(to),
        };
        let opened = tokio::time::timeout(OPEN_TIME_MAX, ask(self.spawner.program(), &question));
        let (child, said) = opened
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(failed)?;
        let (reads, done) = oneshot::channel();
        // A reader that stops reading holds the place no longer than a comparison may take: the
        // process has ended by then.
        tokio::spawn(async move {
            let _ = tokio::time::timeout(TIME_MAX, done).await;
            drop(turn);
        });
        Ok(Differences {
            child,
            said,
            _reads: reads,
        })
    }
}

/// How many comparisons there may be.
pub fn turns() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(AT_ONCE_MAX))
}

/// Starts `program`, and waits until it has both disks open.
async fn ask(program: &Path, question: &Question) -> io::Result<(Child, ChildStdout)> {
    let mut child = Command::new(program)
        .args([SUPERVISE_SUBCOMMAND, "diff"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let missing = || io::Error::from(io::ErrorKind::BrokenPipe);
    let mut told = child.stdin.take().ok_or_else(missing)?;
    told.write_all(&serde_json::to_vec(question)?).await?;
    drop(told);
    let mut said = child.stdout.take().ok_or_else(missing)?;
    // The empty line that says that the disks are open.
    if said.read_u8().await.is_ok() {
        // Nobody would read it, and a full pipe would hold it up.
        drop(child.stderr.take());
        return Ok((child, said));
    }
    let mut reason = String::new();
    if let Some(words) = child.stderr.take() {
        let _ = words
            .take(REASON_BYTES_MAX)
            .read_to_string(&mut reason)
            .await;
    }
    Err(io::Error::other(reason.trim().to_owned()))
}
