//! Results of steps: checkpoints of the sandboxes that build, shared between images, and gone when no
//! image refers to them.
//!
//! Invariants: an image refers to a result before it is made, and a result that is found is referred to
//! in the same moment ([`Builds::order`](super::builds::Builds)); so what nobody refers to is of no use
//! to anybody, and can go at any time.

use std::sync::Arc;

use time::OffsetDateTime;

use super::builds::Build;
use super::defaults::ImageDefaults;
use super::image::{Image, ImageCommand};
use crate::actors::aggregate::Reject;
use crate::actors::checkpoint::{Checkpoint, CheckpointCommand, CheckpointPhase};
use crate::actors::checkpointing::REQUESTED_KIND;
use crate::actors::create::SEALED_KIND;
use crate::actors::entity::Failure;
use crate::actors::platform::{Caller, Platform};
use crate::actors::sandbox::Sandbox;
use crate::actors::sealing::{internal, off_runtime};
use crate::events::families::{
    CheckpointFailed, CheckpointKind, CheckpointReady, CheckpointRequested, ImageLayerAdded,
};
use crate::ids::{CheckpointId, SandboxId};
use crate::secret::SecretValue;

/// The name under which what an image says of processes is sealed.
pub(in crate::actors) const DEFAULTS: &str = "image";

impl Platform {
    /// The result of a step that another build has made, which the image refers to from now on.
    pub(super) async fn adopt_layer(
        &self,
        build: &Build,
        key: &str,
    ) -> Result<Option<CheckpointId>, Failure> {
        let _order = self.builds.order.lock().await;
        for found in self.catalog.layers_with_key(&build.caller.org, key) {
            let state = self
                .checkpoints
                .inspect(&Checkpoint::stream(&found))
                .await?;
            if state.phase == CheckpointPhase::Ready {
                self.refer(build, key, found).await?;
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Has the image refer to a result.
    pub(super) async fn refer(
        &self,
        build: &Build,
        key: &str,
        checkpoint_id: CheckpointId,
    ) -> Result<(), Failure> {
        let command = ImageCommand::AddLayer(ImageLayerAdded {
            key: key.to_owned(),
            checkpoint_id,
            at: OffsetDateTime::now_utc(),
        });
        let stream = Image::stream(&build.image);
        self.execute(&self.images, &stream, command, &build.caller.who())
            .await
            .map(drop)
    }

    /// Keeps the disk of the sandbox that builds as the result of a step. Once begun it goes on to its
    /// end, whether anybody waits or not.
    pub(super) async fn keep_layer(
        self: &Arc<Self>,
        build: &Build,
        sandbox: &SandboxId,
        key: &str,
    ) -> Result<CheckpointId, Failure> {
        let id = CheckpointId::generate();
        self.refer(build, key, id).await?;
        let (platform, caller) = (self.clone(), build.caller);
        let (sandbox, key) = (sandbox.clone(), key.to_owned());
        let copy = async move { platform.copy_layer(&caller, &sandbox, &key, id).await };
        tokio::spawn(copy).await.map_err(internal)??;
        Ok(id)
    }

    async fn copy_layer(
        self: &Arc<Self>,
        caller: &Caller,
        sandbox: &SandboxId,
        key: &str,
        id: CheckpointId,
    ) -> Result<(), Failure> {
        let _turn = self.take_turn(sandbox).await;
        let stream = Sandbox::stream(sandbox);
        let state = self.sandboxes.inspect(&stream).await?;
        let (Some(config), Some(sealed)) = (state.details.clone(), state.sealed.clone()) else {
            return Err(Failure::Internal(
                "the sandbox that builds is gone".to_owned(),
            ));
        };
        let head = self.log.stream_head(&stream).await?;
        let (revision, _) = head.ok_or_else(|| Reject::not_found("sandbox"))?;
        let (platform, own) = (self.clone(), Checkpoint::stream(&id));
        let certificate = sealed.ca_certificate.clone();
        let (envs, ca_key) = off_runtime(move || {
            let key = platform.unseal(&stream, SEALED_KIND, "ca-key", &sealed.ca_key)?;
            platform.seal_parts(&own, &key)
        })
        .await?;
        let request = CheckpointRequested {
            checkpoint_id: id,
            org_id: caller.org,
            name: key.to_owned(),
            kind: CheckpointKind::DiskOnly,
            config,
            revision,
            envs,
            image: None,
            ca_certificate: certificate,
            ca_key,
            at: OffsetDateTime::now_utc(),
        };
        let copying = self.begin_copying(id);
        self.request_checkpoint(caller, request).await?;
        let copied = self.driver.snapshot(sandbox, &id).await;
        let settled = self.settle_copy(caller, &id, copied).await;
        drop(copying);
        settled
    }

    /// Makes a finished image's own checkpoint of the result of its last step.
    pub(super) async fn keep_image(
        self: &Arc<Self>,
        build: &Build,
        last: &CheckpointId,
        defaults: ImageDefaults,
        memory_mb: u32,
    ) -> Result<(), Failure> {
        let image = self.images.inspect(&Image::stream(&build.image)).await?;
        let id = image.visible_to(&build.caller.org)?.checkpoint_id;
        let from = Checkpoint::stream(last);
        let layer = self.checkpoints.inspect(&from).await?;
        let layer = layer.visible_to(&build.caller.org)?.clone();
        let (platform, own) = (self.clone(), Checkpoint::stream(&id));
        let (envs, ca_key, said) = off_runtime(move || {
            let key = platform.unseal(&from, REQUESTED_KIND, "ca-key", &layer.ca_key)?;
            let (envs, key) = platform.seal_parts(&own, &key)?;
            let said = match defaults.is_empty() {
                true => None,
                false => {
                    let said = SecretValue::new(serde_json::to_vec(&defaults)?);
                    Some(platform.seal(&own, REQUESTED_KIND, DEFAULTS, &said)?)
                }
            };
            Ok((envs, key, said))
        })
        .await?;
        let mut config = layer.config;
        (config.memory_mb, config.cpu_count) = (memory_mb, 1);
        (config.egress_allowlist, config.own_allowlist) = (Vec::new(), Some(Vec::new()));
        let request = CheckpointRequested {
            checkpoint_id: id,
            org_id: build.caller.org,
            name: build.image.to_string(),
            kind: CheckpointKind::DiskOnly,
            config,
            revision: layer.revision,
            envs,
            image: said,
            ca_certificate: layer.ca_certificate,
            ca_key,
            at: OffsetDateTime::now_utc(),
        };
        let copying = self.begin_copying(id);
        self.request_checkpoint(&build.caller, request).await?;
        let linked = self.driver.link_snapshot(last, &id).await;
        let settled = self.settle_copy(&build.caller, &id, linked).await;
        drop(copying);
        settled
    }

    /// No variables, and the authority's key, for a checkpoint. Blocks.
    fn seal_parts(
        &self,
        own: &crate::events::StreamId,
        key: &SecretValue,
    ) -> Result<(crate::events::Sealed, crate::events::Sealed), Failure> {
        let none = SecretValue::new(b"{}".to_vec());
        let envs = self.seal(own, REQUESTED_KIND, "envs", &none)?;
        Ok((envs, self.seal(own, REQUESTED_KIND, "ca-key", key)?))
    }

    async fn request_checkpoint(
        &self,
        caller: &Caller,
        request: CheckpointRequested,
    ) -> Result<(), Failure> {
        let stream = Checkpoint::stream(&request.checkpoint_id);
        let command = CheckpointCommand::Request(Box::new(request));
        let who = caller.who();
        let asked = self.execute(&self.checkpoints, &stream, command, &who);
        match asked.await {
            Ok(_) => Ok(()),
            Err(failure) => {
                self.shred_or_keep(&stream).await;
                Err(failure)
            }
        }
    }

    /// Records how a copy went.
    async fn settle_copy(
        &self,
        caller: &Caller,
        id: &CheckpointId,
        copied: Result<crate::sandbox::Snapshot, crate::sandbox::DriverError>,
    ) -> Result<(), Failure> {
        let at = OffsetDateTime::now_utc();
        let (outcome, failure) = match copied {
            Ok(snapshot) => {
                let ready = CheckpointReady {
                    size_bytes: snapshot.size_bytes,
                    paused_us: u64::try_from(snapshot.paused.as_micros()).unwrap_or(u64::MAX),
                    at,
                };
                (CheckpointCommand::Ready(ready), None)
            }
            Err(error) => {
                let reason = "the disk could not be copied; the server's log has the reason";
                let failed = CheckpointFailed {
                    reason: reason.to_owned(),
                    at,
                };
                (CheckpointCommand::Fail(failed), Some(internal(error)))
            }
        };
        self.settle_checkpoint(id, outcome, &caller.who()).await?;
        failure.map_or(Ok(()), Err)
    }

    /// Removes results and checkpoints of images that no image refers to. Failures are logged; the next
    /// time tries again.
    pub(super) async fn sweep_layers(&self) {
        let _order = self.builds.order.lock().await;
        for (id, org) in self.catalog.unreferenced_layers() {
            let caller = Caller { org, key: None };
            if let Err(error) = self.remove_checkpoint(&caller, &id).await {
                tracing::error!(%error, checkpoint = %id, "a step's result could not be removed");
            }
        }
    }
}
