//! Writes checkpoints while a server runs: when the head moved and it is time, and at the end.
//!
//! A checkpoint that can't be written is told in the server's log and tried again; it does not
//! stop the server, since the folder is often on another machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::folder::{CheckpointError, CheckpointFolder};
use super::signer::CheckpointKey;
use crate::events::log::EventLog;

/// How often the head is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Where and how often.
#[derive(Debug, Clone)]
pub struct CheckpointOptions {
    /// The folder, best on another machine or medium.
    pub dir: PathBuf,
    /// Longest time from a commit to the checkpoint that covers it.
    pub every: Duration,
    /// Most commits from one checkpoint to the next, as far as one look a second can tell.
    pub every_commits: u64,
}

/// The running task.
pub struct Keeper {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

struct Work {
    log: EventLog,
    key: Arc<CheckpointKey>,
    folder: CheckpointFolder,
    options: CheckpointOptions,
    /// Commit of the newest note.
    kept: u64,
}

impl Keeper {
    /// Checks the log against the newest checkpoint in the folder; signs and writes none. A log that
    /// was cut off or rewritten since is refused.
    pub async fn check(
        log: &EventLog,
        key: &CheckpointKey,
        options: &CheckpointOptions,
    ) -> Result<(), CheckpointError> {
        latest(log, key, options).await.map(drop)
    }

    /// Checks the log as [`Keeper::check`] does, then starts writing new checkpoints.
    pub async fn start(
        log: EventLog,
        key: Arc<CheckpointKey>,
        options: CheckpointOptions,
    ) -> Result<Keeper, CheckpointError> {
        let (folder, kept) = latest(&log, &key, &options).await?;
        let (stop, stopped) = oneshot::channel();
        let work = Work {
            log,
            key,
            folder,
            options,
            kept,
        };
        Ok(Keeper {
            stop,
            task: tokio::spawn(work.run(stopped)),
        })
    }

    /// Writes a last checkpoint, if the head moved, and ends.
    pub async fn stop(self) {
        // The task ends by itself only when it was told to.
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// The folder and the commit of its newest note (0: there is none), which the log holds.
async fn latest(
    log: &EventLog,
    key: &CheckpointKey,
    options: &CheckpointOptions,
) -> Result<(CheckpointFolder, u64), CheckpointError> {
    let folder = CheckpointFolder::open(&options.dir)?;
    let Some(latest) = folder.latest(&key.public(log.id()))? else {
        return Ok((folder, 0));
    };
    let kept = latest.head.commit;
    let found = log.head_at(kept).await?;
    if found == Some(latest.head) {
        return Ok((folder, kept));
    }
    let found = found.map(|head| hex::encode(head.chain));
    Err(CheckpointError::OtherHistory {
        path: folder.latest_path(),
        commit: kept,
        signed: hex::encode(latest.head.chain),
        found: found.unwrap_or_else(|| "no such commit".to_owned()),
    })
}

impl Work {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut looks = tokio::time::interval(LOOK);
        let mut last = Instant::now();
        loop {
            tokio::select! {
                _ = looks.tick() => {
                    let ahead = self.log.head().commit.saturating_sub(self.kept);
                    let due = last.elapsed() >= self.options.every
                        || ahead >= self.options.every_commits;
                    if ahead > 0 && due {
                        last = Instant::now();
                        self.keep().await;
                    }
                }
                _ = &mut stopped => break,
            }
        }
        if self.log.head().commit > self.kept {
            self.keep().await;
        }
    }

    async fn keep(&mut self) {
        let (key, log, folder) = (self.key.clone(), self.log.clone(), self.folder.clone());
        let (told, written) = oneshot::channel();
        // A thread of its own: a runtime that ends would wait for one of its pool, and the folder may
        // be on a machine that doesn't answer any more.
        std::thread::spawn(move || {
            let (checkpoint, note) = key.sign_head(&log);
            let file = folder.write(&checkpoint, &note);
            // Nobody waits any more when the server had no time left.
            let _ = told.send(file.map(|file| (checkpoint.head.commit, file)));
        });
        match written.await {
            Ok(Ok((commit, file))) => {
                self.kept = commit;
                tracing::debug!(commit, file = %file.display(), "wrote a checkpoint");
            }
            Ok(Err(error)) => tracing::error!(%error, "no checkpoint was written"),
            Err(error) => tracing::error!(%error, "no checkpoint was written"),
        }
    }
}
