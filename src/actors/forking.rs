//! Forks: a new sandbox that begins at a checkpoint of another one, as a branch of its stream on a
//! copy of its disk. Layers are looked up again, so the fork has the present values and new tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::aggregate::Reject;
use super::checkpoint::{Checkpoint, CheckpointPhase};
use super::checkpointing::REQUESTED_KIND;
use super::create::{CreateSandbox, Inherited};
use super::entity::Failure;
use super::idempotency::{Created, Keyed};
use super::images::DEFAULTS;
use super::platform::{Caller, Platform};
use super::project::TIMEOUT_SEC_DEFAULT;
use super::sandbox::Sandbox;
use super::sealing::off_runtime;
use crate::events::Actor as Who;
use crate::events::families::{CheckpointKind, Origin};
use crate::ids::CheckpointId;

/// Longest a fork waits for its checkpoint to be copied.
const READY_WAIT_MAX: Duration = Duration::from_secs(30);

/// A fork as a caller asks for it; what is absent is the source's.
#[derive(Debug, Clone, Default)]
pub struct ForkSandbox {
    /// Idle timeout in seconds; absent: 300.
    pub timeout: Option<i64>,
    /// Plain variables, over the source's.
    pub envs: BTreeMap<String, String>,
    /// Secret store by name, above every inherited layer.
    pub secret_store: Option<String>,
    /// Project by name or id, above the inherited layers.
    pub project: Option<String>,
    /// Free map, over the source's.
    pub metadata: BTreeMap<String, String>,
    /// Memory in MiB.
    pub memory_mb: Option<i64>,
    /// Virtual CPUs.
    pub cpu_count: Option<i64>,
    /// Free label.
    pub alias: Option<String>,
}

impl Platform {
    /// Makes a sandbox from a checkpoint, once for each key, and returns when it can run commands
    /// and the checkpoint's patches have run in it.
    pub async fn fork_checkpoint(
        self: &Arc<Self>,
        caller: &Caller,
        id: &CheckpointId,
        fork: ForkSandbox,
        keyed: Option<&Keyed>,
    ) -> Result<Created<Sandbox>, Failure> {
        let checkpoint = self.ready_checkpoint(caller, id).await?;
        let request = self.fork_request(caller, &checkpoint, fork).await?;
        let made = self.create_sandbox(caller, request, keyed).await?;
        if made.replayed {
            return Ok(made);
        }
        self.with_patches(made, &caller.who()).await
    }

    /// Runs the patches of what a sandbox was just made from.
    pub(super) async fn with_patches(
        self: &Arc<Self>,
        made: Created<Sandbox>,
        who: &Who,
    ) -> Result<Created<Sandbox>, Failure> {
        let details = made.state.details.as_ref();
        let Some(id) = details.map(|details| details.sandbox_id.clone()) else {
            return Ok(made);
        };
        let patched = self.apply_patches(&id, who).await?;
        Ok(Created {
            state: patched.unwrap_or(made.state),
            replayed: false,
        })
    }

    /// Waits until a checkpoint can be used.
    async fn ready_checkpoint(
        &self,
        caller: &Caller,
        id: &CheckpointId,
    ) -> Result<Arc<Checkpoint>, Failure> {
        let stream = Checkpoint::stream(id);
        // Who may not know of it learns that at once.
        let state = self.checkpoints.inspect(&stream).await?;
        state.forkable_by(&caller.org)?;
        let settled = |state: &Checkpoint| state.phase != CheckpointPhase::Processing;
        let settled = self.checkpoints.wait_for(&stream, settled, READY_WAIT_MAX);
        let state = settled.await?;
        state.forkable_by(&caller.org)?;
        match state.phase {
            CheckpointPhase::Ready => Ok(state),
            CheckpointPhase::Failed(_) => Err(Reject::invalid("checkpoint failed").into()),
            _ => Err(Reject::invalid("checkpoint not ready").into()),
        }
    }

    async fn fork_request(
        self: &Arc<Self>,
        caller: &Caller,
        checkpoint: &Arc<Checkpoint>,
        fork: ForkSandbox,
    ) -> Result<CreateSandbox, Failure> {
        let details = checkpoint.forkable_by(&caller.org)?.clone();
        let config = details.config;
        // Of another's public checkpoint nothing of the owner's is carried but the disk.
        let own = details.org_id == caller.org;
        let (platform, envs, key) = (self.clone(), details.envs, details.ca_key);
        let stream = Checkpoint::stream(&details.checkpoint_id);
        let said = details.image;
        let (mut envs, image, ca_key) = off_runtime(move || {
            let mut carried = BTreeMap::new();
            if own {
                let envs = platform.unseal(&stream, REQUESTED_KIND, "envs", &envs)?;
                carried = serde_json::from_slice::<BTreeMap<String, String>>(envs.expose())?;
            }
            let key = platform.unseal(&stream, REQUESTED_KIND, "ca-key", &key)?;
            let image = match said.filter(|_| own) {
                None => None,
                Some(said) => {
                    let said = platform.unseal(&stream, REQUESTED_KIND, DEFAULTS, &said)?;
                    Some(serde_json::from_slice(said.expose())?)
                }
            };
            Ok((carried, image, Arc::new(key)))
        })
        .await?;
        envs.extend(fork.envs);
        let mut metadata = match own {
            true => config.metadata,
            false => BTreeMap::new(),
        };
        metadata.extend(fork.metadata);
        let least = i64::from(config.memory_mb);
        let given = fork.memory_mb.filter(|mb| *mb > 0);
        let memory_mb = match (given, details.kind) {
            (None, _) => least,
            // What it holds of memory has to fit in again.
            (Some(mb), CheckpointKind::Full) => {
                mb.clamp(least, least.max(self.limits.memory_mb_max.into()))
            }
            (Some(mb), CheckpointKind::DiskOnly) => mb,
        };
        let cpu_count = fork.cpu_count.filter(|count| *count > 0);
        let own_allowlist = config.own_allowlist.unwrap_or(config.egress_allowlist);
        Ok(CreateSandbox {
            template: Some(config.template),
            alias: fork.alias,
            metadata,
            timeout: Some(fork.timeout.unwrap_or(TIMEOUT_SEC_DEFAULT.into())),
            cpu_count: Some(cpu_count.unwrap_or_else(|| config.cpu_count.into())),
            memory_mb: Some(memory_mb),
            disk_mb: Some(config.disk_mb.into()),
            envs,
            project: fork.project,
            secret_store: fork.secret_store,
            egress_allowlist: if own { own_allowlist } else { Vec::new() },
            port: Some(config.port.into()),
            network_enabled: Some(config.network_enabled),
            image,
            builds: None,
            inherited: Some(Inherited {
                layers: if own { config.layers } else { Vec::new() },
                origin: Origin {
                    checkpoint_id: details.checkpoint_id,
                    sandbox_id: config.sandbox_id,
                },
                revision: Some(details.revision),
                ca_certificate: details.ca_certificate,
                ca_key,
            }),
        })
    }
}
