//! Sizes and labels of sandboxes: what callers and the scaler ask for.

use std::collections::BTreeMap;
use std::sync::Arc;

use time::OffsetDateTime;

use super::aggregate::{Aggregate, Reject};
use super::entity::Failure;
use super::platform::{Caller, Platform};
use super::sandbox::scaling::{CPU_PERCENT_MAX, CPU_PERCENT_MIN, Size};
use super::sandbox::{Sandbox, SandboxCommand};
use crate::events::Actor as Who;
use crate::events::families::Bounds;
use crate::ids::{OrgId, SandboxId};

const MIB: u64 = 1024 * 1024;

/// The state after a change of size.
pub struct Resized {
    /// The sandbox.
    pub state: Arc<Sandbox>,
    /// Automatic scaling was on and is off now.
    pub autoscale_disabled: bool,
}

impl Platform {
    /// Gives a running sandbox another size at once; automatic scaling is off from then on.
    pub async fn scale_sandbox(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
        size: Size,
    ) -> Result<Resized, Failure> {
        let before = self.get_sandbox(caller, id).await?;
        let state = self
            .resize(id, caller.org, size, false, &caller.who())
            .await?;
        Ok(Resized {
            state,
            autoscale_disabled: before.scaling.autoscale.is_some(),
        })
    }

    /// Free values for memory (MiB) and processor time (percent of one processor); what is `None`
    /// stays as it is.
    pub async fn limit_sandbox(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
        memory_mb: Option<i64>,
        cpu_percent: Option<i64>,
    ) -> Result<Resized, Failure> {
        let state = self.get_sandbox(caller, id).await?;
        let now = state.size().ok_or_else(|| Reject::not_found("sandbox"))?;
        let memory_max = self.limits.memory_mb_max;
        let within = |field: &str, given: Option<i64>, now: u32, min: u32, max: u32| match given {
            None => Ok(now),
            Some(given) => u32::try_from(given)
                .ok()
                .filter(|given| (min..=max).contains(given))
                .ok_or_else(|| Reject::invalid(format!("{field} must be between {min} and {max}"))),
        };
        let memory_min = super::project::MEMORY_MB_MIN.unsigned_abs() as u32;
        let size = Size {
            memory_mb: within("memoryMB", memory_mb, now.memory_mb, memory_min, memory_max)?,
            cpu_percent: within(
                "cpuPercent",
                cpu_percent,
                now.cpu_percent,
                CPU_PERCENT_MIN,
                CPU_PERCENT_MAX,
            )?,
        };
        self.scale_sandbox(caller, id, size).await
    }

    /// Records the size and sets it in the world. What the world refuses is taken back.
    pub(super) async fn resize(
        self: &Arc<Self>,
        id: &SandboxId,
        org: OrgId,
        size: Size,
        automatic: bool,
        who: &Who,
    ) -> Result<Arc<Sandbox>, Failure> {
        if size.memory_mb > self.limits.memory_mb_max {
            let max = self.limits.memory_mb_max;
            return Err(Reject::invalid(format!("memoryMB must not exceed {max}")).into());
        }
        let _turn = self.take_turn(id).await;
        let stream = Sandbox::stream(id);
        let before = self.sandboxes.inspect(&stream).await?;
        let command = |size, automatic| SandboxCommand::Scale {
            org,
            size,
            automatic,
            at: OffsetDateTime::now_utc(),
        };
        // The rules first: they say more than the world does.
        before.decide(&command(size, automatic))?;
        let limit = u64::from(size.memory_mb) * MIB;
        if let Some(used) = self.driver.memory_used(id).await
            && used > limit
        {
            return Err(Failure::OomFloor {
                used_mb: used.div_ceil(MIB),
                asked_mb: size.memory_mb.into(),
            });
        }
        let scaled = command(size, automatic);
        let done = self.execute(&self.sandboxes, &stream, scaled, who).await?;
        let set = self
            .driver
            .resize(id, size.memory_mb.into(), size.cpu_percent);
        if let Err(error) = set.await {
            tracing::error!(%error, sandbox = %id, "the sandbox's size could not be set");
            if let Some(size) = before.size() {
                let back = command(size, automatic);
                self.execute(&self.sandboxes, &stream, back, who).await?;
                let _ = self
                    .driver
                    .resize(id, size.memory_mb.into(), size.cpu_percent)
                    .await;
            }
            return Err(Failure::Internal(error.to_string()));
        }
        Ok(done.state)
    }

    /// Has the server size a sandbox by itself within `bounds`, or not.
    pub async fn set_autoscale(
        &self,
        caller: &Caller,
        id: &SandboxId,
        bounds: Option<Bounds>,
    ) -> Result<Arc<Sandbox>, Failure> {
        let max = self.limits.memory_mb_max;
        if bounds.is_some_and(|bounds| bounds.max_memory_mb > max) {
            return Err(Reject::invalid(format!("maxMemoryMB must not exceed {max}")).into());
        }
        let command = SandboxCommand::SetAutoscale {
            org: caller.org,
            bounds,
            at: OffsetDateTime::now_utc(),
        };
        self.change(caller, id, command).await
    }

    /// Forbids changes of a sandbox's size, or permits them again.
    pub async fn lock_scaling(
        &self,
        caller: &Caller,
        id: &SandboxId,
        locked: bool,
    ) -> Result<Arc<Sandbox>, Failure> {
        let command = SandboxCommand::LockScaling {
            org: caller.org,
            locked,
            at: OffsetDateTime::now_utc(),
        };
        self.change(caller, id, command).await
    }

    /// Replaces a sandbox's tags.
    pub async fn set_tags(
        &self,
        caller: &Caller,
        id: &SandboxId,
        tags: BTreeMap<String, String>,
    ) -> Result<Arc<Sandbox>, Failure> {
        let command = SandboxCommand::SetTags {
            org: caller.org,
            tags,
            at: OffsetDateTime::now_utc(),
        };
        self.change(caller, id, command).await
    }

    /// A change that has no effect in the world.
    async fn change(
        &self,
        caller: &Caller,
        id: &SandboxId,
        command: SandboxCommand,
    ) -> Result<Arc<Sandbox>, Failure> {
        let stream = Sandbox::stream(id);
        let done = self
            .execute(&self.sandboxes, &stream, command, &caller.who())
            .await?;
        Ok(done.state)
    }
}
