//! The sleeper: puts idle sandboxes to sleep, and lets go of the processes of those that sleep when
//! memory runs short. It takes no input and always does the same work, like the reconciler.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use time::OffsetDateTime;

use super::platform::Platform;
use super::sandbox::{Sandbox, SandboxCommand};
use super::{entity::Failure, scaler};
use crate::events::Actor as Who;
use crate::ids::SandboxId;

/// Time between two looks for idle sandboxes: how late one may fall asleep.
const LOOK: Duration = Duration::from_millis(250);
/// Looks between two looks at memory.
const MEMORY_EVERY: u64 = 20;
const SCALE_EVERY: u64 = (scaler::LOOK.as_millis() / LOOK.as_millis()) as u64;
/// Sandboxes put to sleep at once.
const AT_ONCE_MAX: usize = 8;
const MIB: u64 = 1024 * 1024;
/// Memory of the host that stays free for those who are awake, as a part of all of it: below it,
/// sleepers lose theirs.
const RESERVE_PARTS: u64 = 10;
const SHORT: &str = "memory was needed for others";

/// Starts looking; ends with the platform.
pub(super) fn start(platform: &Arc<Platform>) {
    let platform = Arc::downgrade(platform);
    tokio::spawn(run(platform));
}

async fn run(platform: Weak<Platform>) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for look in 1u64.. {
        looks.tick().await;
        let Some(platform) = platform.upgrade() else {
            return;
        };
        // A server that is stopping has let go of its sandboxes.
        if platform.recorders.is_closed() {
            return;
        }
        platform.sleep_all_idle().await;
        if look % MEMORY_EVERY == 0 {
            platform.keep_within_memory().await;
        }
        if look % SCALE_EVERY == 0 {
            platform.scale_all().await;
        }
    }
}

impl Platform {
    async fn sleep_all_idle(self: &Arc<Self>) {
        let all = self.all_live().into_iter();
        let overdue = all.filter(|live| live.activity.is_overdue());
        stream::iter(overdue)
            .for_each_concurrent(AT_ONCE_MAX, async |live| self.sleep_if_idle(&live).await)
            .await;
    }

    /// Lets go of sleepers' processes, the longest asleep first, until theirs and the host's memory
    /// are as the operator wants them.
    async fn keep_within_memory(self: &Arc<Self>) {
        let sleepers = self.catalog.sleepers_in_memory();
        if sleepers.is_empty() {
            return;
        }
        let mut held = 0u64;
        let mut each = Vec::with_capacity(sleepers.len());
        for id in sleepers {
            let bytes = self.driver.memory_used(&id).await.unwrap_or(0);
            held = held.saturating_add(bytes);
            each.push((id, bytes));
        }
        let (all, mut available) = host_memory().unwrap_or((u64::MAX, u64::MAX));
        let most = match self.limits.hibernated_memory_mb_max {
            0 => all / 2,
            mb => u64::from(mb) * MIB,
        };
        for (id, bytes) in each {
            if held <= most && available >= all / RESERVE_PARTS {
                return;
            }
            if let Err(error) = self.release_memory(&id).await {
                tracing::warn!(%error, sandbox = %id, "a sleeper's memory could not be released");
                continue;
            }
            held = held.saturating_sub(bytes);
            available = available.saturating_add(bytes);
        }
    }

    /// Ends the processes of a sandbox that sleeps; its disk stays.
    async fn release_memory(self: &Arc<Self>, id: &SandboxId) -> Result<(), Failure> {
        let Some(_turn) = self.try_turn(id) else {
            return Ok(());
        };
        let stream = Sandbox::stream(id);
        let state = self.sandboxes.inspect(&stream).await?;
        let (Some(_), Some(details)) = (&state.slept, &state.details) else {
            return Ok(());
        };
        let who = Who {
            org: Some(details.org_id),
            ..Who::system()
        };
        let command = SandboxCommand::ReleaseMemory {
            reason: SHORT.to_owned(),
            at: OffsetDateTime::now_utc(),
        };
        let done = self
            .execute(&self.sandboxes, &stream, command, &who)
            .await?;
        if done.position.is_none() {
            return Ok(());
        }
        let stopped = self.driver.stop(id).await;
        stopped.map_err(|error| Failure::Internal(error.to_string()))
    }
}

/// All memory of the host and what of it can be had, in bytes.
fn host_memory() -> Option<(u64, u64)> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    };
    Some((field("MemTotal:")?, field("MemAvailable:")?))
}
