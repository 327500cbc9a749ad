//! Checkpoints: what callers ask for, and the copying behind it.
//!
//! Invariants: whoever copies or replaces a disk holds its sandbox's turn; a copy that nobody is at
//! work on any more is recorded as failed and removed; what the disk has of a checkpoint goes after
//! the event that says so.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;
use ulid::Ulid;

use super::aggregate::Reject;
use super::checkpoint::{Checkpoint, CheckpointCommand as C, CheckpointPhase};
use super::create::SEALED_KIND;
use super::entity::Failure;
use super::images::DEFAULTS;
use super::platform::{Caller, Platform};
use super::sandbox::{Phase, Sandbox, SandboxCommand};
use super::sealing::{internal, off_runtime};
use super::turns::Turn;
use crate::events::Actor as Who;
use crate::events::families::{
    CheckpointFailed, CheckpointKind, CheckpointReady, CheckpointRequested, PatchAdded,
};
use crate::ids::{CheckpointId, PatchId, SandboxId};
use crate::sandbox::{Differences, DriverError};

/// The kind of the event that what a checkpoint has sealed is bound to.
pub(super) const REQUESTED_KIND: &str = "checkpoint.requested.v1";
/// Most checkpoints of one sandbox, by kind.
const FULL_MAX: usize = 10;
const DISK_ONLY_MAX: usize = 100;

/// Checkpoints that somebody copies right now.
pub(super) type Copying = Mutex<HashSet<CheckpointId>>;

/// What makes room for a new checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Nothing: beyond the limit it is refused.
    None,
    /// The oldest of its kind go, so that there are at most this many (`None`: the limit).
    DeleteOldest(Option<i64>),
}

/// A checkpoint as a caller asks for it.
#[derive(Debug)]
pub struct NewCheckpoint {
    /// Its name.
    pub name: String,
    /// What it is to hold.
    pub kind: CheckpointKind,
    /// What makes room for it.
    pub retention: Retention,
}

fn limit_of(kind: CheckpointKind) -> (usize, &'static str) {
    match kind {
        CheckpointKind::Full => (FULL_MAX, "full"),
        CheckpointKind::DiskOnly => (DISK_ONLY_MAX, "disk_only"),
    }
}

/// Keeps the reconciler away from a checkpoint that somebody copies.
pub(super) struct CopyingMark {
    id: CheckpointId,
    platform: Arc<Platform>,
}

impl Drop for CopyingMark {
    fn drop(&mut self) {
        self.platform.copying().remove(&self.id);
    }
}

impl Platform {
    /// Asks for a checkpoint of a running sandbox. It is copied after this returns; what else is to
    /// happen to the sandbox waits for that.
    pub async fn create_checkpoint(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
        new: NewCheckpoint,
    ) -> Result<Arc<Checkpoint>, Failure> {
        self.get_sandbox(caller, id).await?;
        let most = retention(&new)?;
        let turn = self.take_turn(id).await;
        let state = self.get_sandbox(caller, id).await?;
        let (Phase::Running, Some(config)) = (&state.phase, &state.details) else {
            return Err(Reject::invalid("sandbox is not running").into());
        };
        let checkpoint_id = CheckpointId::generate();
        let stream = Checkpoint::stream(&checkpoint_id);
        let head = self.log.stream_head(&Sandbox::stream(id)).await?;
        let (revision, _) = head.ok_or_else(|| Reject::not_found("sandbox"))?;
        let make_room = self.room_for(caller, id, &new, most)?;
        let (platform, own, from) = (self.clone(), stream.clone(), state.clone());
        let envs = off_runtime(move || {
            let (from, sealed) = match (&from.details, &from.sealed) {
                (Some(details), Some(sealed)) => (Sandbox::stream(&details.sandbox_id), sealed),
                _ => return Err(Failure::Internal("no sealed set".to_owned())),
            };
            let envs = platform.unseal(&from, SEALED_KIND, "envs", &sealed.envs)?;
            let key = platform.unseal(&from, SEALED_KIND, "ca-key", &sealed.ca_key)?;
            let envs = platform.seal(&own, REQUESTED_KIND, "envs", &envs)?;
            let key = platform.seal(&own, REQUESTED_KIND, "ca-key", &key)?;
            let image = match &sealed.image {
                None => None,
                Some(said) => {
                    let said = platform.unseal(&from, SEALED_KIND, DEFAULTS, said)?;
                    Some(platform.seal(&own, REQUESTED_KIND, DEFAULTS, &said)?)
                }
            };
            Ok((envs, image, sealed.ca_certificate.clone(), key))
        });
        let (envs, image, ca_certificate, ca_key) = envs.await?;
        let request = C::Request(Box::new(CheckpointRequested {
            checkpoint_id,
            org_id: caller.org,
            name: new.name,
            kind: new.kind,
            config: config.clone(),
            revision,
            envs,
            image,
            ca_certificate,
            ca_key,
            at: OffsetDateTime::now_utc(),
        }));
        self.copying().insert(checkpoint_id);
        let who = caller.who();
        let accepted = self
            .execute(&self.checkpoints, &stream, request, &who)
            .await;
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(failure) => {
                self.copying().remove(&checkpoint_id);
                self.shred_or_keep(&stream).await;
                return Err(failure);
            }
        };
        for old in make_room {
            if let Err(error) = self.delete_checkpoint(caller, id, &old).await {
                tracing::warn!(%error, checkpoint = %old, "an old checkpoint was not removed");
            }
        }
        tokio::spawn(self.clone().copy(turn, id.clone(), checkpoint_id, who));
        Ok(accepted.state)
    }

    /// Copies the disk and records the outcome.
    async fn copy(self: Arc<Self>, turn: Turn, id: SandboxId, checkpoint: CheckpointId, who: Who) {
        let copied = self.driver.snapshot(&id, &checkpoint).await;
        drop(turn);
        let at = OffsetDateTime::now_utc();
        let outcome = match copied {
            Ok(snapshot) => C::Ready(CheckpointReady {
                size_bytes: snapshot.size_bytes,
                paused_us: u64::try_from(snapshot.paused.as_micros()).unwrap_or(u64::MAX),
                at,
            }),
            Err(error) => {
                tracing::error!(%error, sandbox = %id, %checkpoint, "no checkpoint was made");
                let reason = "the disk could not be copied; the server's log has the reason";
                C::Fail(CheckpointFailed {
                    reason: reason.to_owned(),
                    at,
                })
            }
        };
        if let Err(error) = self.settle_checkpoint(&checkpoint, outcome, &who).await {
            tracing::error!(%error, %checkpoint, "the checkpoint's outcome is not recorded");
        }
        self.copying().remove(&checkpoint);
    }

    /// Records an outcome; unless the checkpoint is ready now, nothing is left of it after.
    pub(super) async fn settle_checkpoint(
        &self,
        id: &CheckpointId,
        outcome: C,
        who: &Who,
    ) -> Result<(), Failure> {
        let stream = Checkpoint::stream(id);
        let done = self
            .execute(&self.checkpoints, &stream, outcome, who)
            .await?;
        if done.state.phase != CheckpointPhase::Ready {
            self.driver.forget_snapshot(id).await.map_err(internal)?;
            self.shred_or_keep(&stream).await;
        }
        Ok(())
    }

    /// Marks a checkpoint as being copied until the mark is dropped.
    pub(super) fn begin_copying(self: &Arc<Self>, id: CheckpointId) -> CopyingMark {
        self.copying().insert(id);
        CopyingMark {
            id,
            platform: self.clone(),
        }
    }

    fn copying(&self) -> std::sync::MutexGuard<'_, HashSet<CheckpointId>> {
        self.copying.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which old checkpoints have to go for a new one.
    fn room_for(
        &self,
        caller: &Caller,
        id: &SandboxId,
        new: &NewCheckpoint,
        most: Option<usize>,
    ) -> Result<Vec<CheckpointId>, Reject> {
        let (limit, kind) = limit_of(new.kind);
        let all = self.catalog.checkpoints_of(&caller.org, id);
        let same = |one: &&Checkpoint| {
            one.counts() && one.details.as_ref().is_some_and(|d| d.kind == new.kind)
        };
        // Newest first.
        let there: Vec<_> = all.iter().filter(same).collect();
        let Some(most) = most else {
            return match there.len() < limit {
                true => Ok(Vec::new()),
                false => Err(Reject::invalid(format!(
                    "maximum {limit} {kind} checkpoints per sandbox"
                ))),
            };
        };
        let mut surplus = (there.len() + 1).saturating_sub(most);
        let mut going = Vec::new();
        for old in there.iter().rev() {
            let Some(details) = &old.details else {
                continue;
            };
            let needed = old.public
                || !old.patches.is_empty()
                || old.phase != CheckpointPhase::Ready
                || self.catalog.has_forks(&details.checkpoint_id);
            if surplus > 0 && !needed {
                going.push(details.checkpoint_id);
                surplus -= 1;
            }
        }
        match surplus {
            0 => Ok(going),
            _ => Err(Reject::invalid(format!(
                "maximum {most} {kind} checkpoints per sandbox, and the old ones are in use"
            ))),
        }
    }

    /// A checkpoint of a sandbox, as its owner may see it.
    pub async fn get_checkpoint(
        &self,
        caller: &Caller,
        id: &CheckpointId,
    ) -> Result<Arc<Checkpoint>, Failure> {
        let state = self.checkpoints.inspect(&Checkpoint::stream(id)).await?;
        state.visible_to(&caller.org)?;
        Ok(state)
    }

    /// What differs between the disks of two checkpoints of the caller's, in lines of JSON.
    pub async fn compare_checkpoints(
        &self,
        caller: &Caller,
        from: &CheckpointId,
        to: &CheckpointId,
    ) -> Result<Differences, Failure> {
        for id in [from, to] {
            let state = self.get_checkpoint(caller, id).await?;
            if state.phase != CheckpointPhase::Ready {
                return Err(Reject::invalid("checkpoint not ready").into());
            }
        }
        match self.driver.compare_snapshots(from, to).await {
            Err(DriverError::Busy) => Err(Failure::Busy),
            compared => compared.map_err(internal),
        }
    }

    /// Deletes a checkpoint of a sandbox, which need not be there any more.
    pub async fn delete_checkpoint(
        &self,
        caller: &Caller,
        sandbox: &SandboxId,
        id: &CheckpointId,
    ) -> Result<(), Failure> {
        let before = self.get_checkpoint(caller, id).await?;
        let details = before.visible_to(&caller.org)?;
        // An image's goes with the image.
        if details.config.sandbox_id != *sandbox || details.config.builds.is_some() {
            return Err(Reject::not_found("checkpoint").into());
        }
        self.remove_checkpoint(caller, id).await
    }

    /// Deletes a checkpoint and all it takes of the disk.
    pub(super) async fn remove_checkpoint(
        &self,
        caller: &Caller,
        id: &CheckpointId,
    ) -> Result<(), Failure> {
        let delete = C::Delete {
            org: caller.org,
            at: OffsetDateTime::now_utc(),
        };
        let stream = Checkpoint::stream(id);
        self.execute(&self.checkpoints, &stream, delete, &caller.who())
            .await?;
        // Whoever copies it finds it deleted, and removes what there is.
        if !self.copying().contains(id) {
            self.driver.forget_snapshot(id).await.map_err(internal)?;
            self.shred_or_keep(&stream).await;
        }
        Ok(())
    }

    /// Lets other organizations fork a checkpoint, or no more.
    pub async fn publish_checkpoint(
        &self,
        caller: &Caller,
        id: &CheckpointId,
        public: bool,
    ) -> Result<Arc<Checkpoint>, Failure> {
        let before = self.get_checkpoint(caller, id).await?;
        if before.visible_to(&caller.org)?.config.builds.is_some() {
            return Err(Reject::not_found("checkpoint").into());
        }
        let command = C::Publish {
            org: caller.org,
            public,
            at: OffsetDateTime::now_utc(),
        };
        self.change_checkpoint(caller, id, command).await
    }

    /// Adds a patch: it runs in every fork made from now on, and in older ones when they wake.
    pub async fn add_patch(
        &self,
        caller: &Caller,
        id: &CheckpointId,
        script: String,
        description: String,
    ) -> Result<PatchAdded, Failure> {
        let patch = PatchId::generate();
        let command = C::AddPatch {
            org: caller.org,
            id: patch,
            script,
            description,
            at: OffsetDateTime::now_utc(),
        };
        let state = self.change_checkpoint(caller, id, command).await?;
        let mut all = state.patches.iter();
        let added = all.rfind(|one| one.patch_id == patch).cloned();
        added.ok_or_else(|| Reject::not_found("patch").into())
    }

    /// Takes a patch away; where it ran, it stays.
    pub async fn delete_patch(
        &self,
        caller: &Caller,
        id: &CheckpointId,
        patch: &PatchId,
    ) -> Result<(), Failure> {
        let command = C::DeletePatch {
            org: caller.org,
            id: *patch,
            at: OffsetDateTime::now_utc(),
        };
        self.change_checkpoint(caller, id, command).await.map(drop)
    }

    async fn change_checkpoint(
        &self,
        caller: &Caller,
        id: &CheckpointId,
        command: C,
    ) -> Result<Arc<Checkpoint>, Failure> {
        let stream = Checkpoint::stream(id);
        let done = self
            .execute(&self.checkpoints, &stream, command, &caller.who())
            .await?;
        Ok(done.state)
    }

    /// Puts a sandbox back to a checkpoint of its own: its disk is replaced and it starts anew. The
    /// work goes on after this returns; calls wait for it. Its secrets stay those of now.
    pub async fn restore_checkpoint(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
        checkpoint: &CheckpointId,
    ) -> Result<(), Failure> {
        self.get_sandbox(caller, id).await?;
        let state = self.get_checkpoint(caller, checkpoint).await?;
        let details = state.visible_to(&caller.org)?;
        if details.config.sandbox_id != *id {
            return Err(Reject::invalid("checkpoint belongs to another sandbox").into());
        }
        if state.phase != CheckpointPhase::Ready {
            return Err(Reject::invalid("checkpoint not ready").into());
        }
        let turn = self.take_turn(id).await;
        let command = SandboxCommand::Restore {
            org: caller.org,
            intent: Ulid::generate(),
            checkpoint: *checkpoint,
            at: OffsetDateTime::now_utc(),
        };
        let (stream, who) = (Sandbox::stream(id), caller.who());
        let done = self
            .execute(&self.sandboxes, &stream, command, &who)
            .await?;
        let (platform, id) = (self.clone(), id.clone());
        tokio::spawn(async move {
            let _turn = turn;
            platform.drop_live(&id).await;
            // A failure is recorded, and logged, where it happens.
            let _ = platform.start_sandbox(&id, &done.state, &who).await;
        });
        Ok(())
    }

    /// Settles what a crash left: checkpoints that nobody copies, and copies that no checkpoint has.
    pub(super) async fn reconcile_checkpoints(&self) {
        for (id, org) in self.catalog.checkpoints_in_process() {
            if self.copying().contains(&id) {
                continue;
            }
            let who = Who {
                org: Some(org),
                ..Who::system()
            };
            let failed = C::Fail(CheckpointFailed {
                reason: "the server stopped while the disk was copied".to_owned(),
                at: OffsetDateTime::now_utc(),
            });
            if let Err(error) = self.settle_checkpoint(&id, failed, &who).await {
                tracing::error!(%error, checkpoint = %id, "the checkpoint could not be settled");
            }
        }
        let there = match self.driver.snapshots().await {
            Ok(there) => there,
            Err(error) => {
                tracing::error!(%error, "the disks of checkpoints can't be listed");
                return;
            }
        };
        for id in there {
            if self.copying().contains(&id) {
                continue;
            }
            // Its own stream decides: nothing is destroyed on the word of a read model.
            let gone = match self.checkpoints.inspect(&Checkpoint::stream(&id)).await {
                Ok(state) => state.phase != CheckpointPhase::Ready,
                Err(_) => continue,
            };
            if gone && let Err(error) = self.driver.forget_snapshot(&id).await {
                tracing::error!(%error, checkpoint = %id, "what is left could not be removed");
            }
        }
    }
}

/// The most checkpoints that a retention policy leaves, or `None` without one.
fn retention(new: &NewCheckpoint) -> Result<Option<usize>, Reject> {
    let (limit, _) = limit_of(new.kind);
    match new.retention {
        Retention::None => Ok(None),
        Retention::DeleteOldest(None | Some(0)) => Ok(Some(limit)),
        Retention::DeleteOldest(Some(count)) => usize::try_from(count)
            .ok()
            .filter(|count| (1..=limit).contains(count))
            .map(Some)
            .ok_or_else(|| {
                Reject::invalid(format!(
                    "retentionPolicy.maxCount must be between 1 and {limit}"
                ))
            }),
    }
}
