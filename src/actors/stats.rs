//! What sandboxes use of the machine, and what this server has done since it was started.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use time::OffsetDateTime;

use super::entity::Failure;
use super::live::LiveSandbox;
use super::platform::{Caller, Platform};
use super::sealing::off_runtime;
use crate::ids::SandboxId;
use crate::proxy::{Decision, Outcome};
use crate::sandbox::{Limits, Stats};

/// What one running sandbox uses.
#[derive(Debug, Clone)]
pub struct SandboxStats {
    /// Whose figures.
    pub id: SandboxId,
    /// When they were read.
    pub at: OffsetDateTime,
    /// CPUs it may use.
    pub cpu_count: u32,
    /// What the machine says.
    pub usage: Stats,
    /// How far its limits reach.
    pub limits: Limits,
    /// Bytes its connections sent out, as they were on its side, since this server has held it.
    pub bytes_out: u64,
    /// Bytes they received.
    pub bytes_in: u64,
}

impl SandboxStats {
    /// Reads them. Blocks for a moment.
    fn of(live: &LiveSandbox) -> Self {
        Self {
            id: live.details.sandbox_id.clone(),
            at: OffsetDateTime::now_utc(),
            cpu_count: live.details.cpu_count,
            usage: live.gauges.read(),
            limits: live.limits,
            bytes_out: live.traffic.out.load(Ordering::Relaxed),
            bytes_in: live.traffic.back.load(Ordering::Relaxed),
        }
    }
}

/// What this server has counted since it was started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests of sandboxes that were sent to their hosts.
    pub egress_allowed: AtomicU64,
    /// Connections that were passed through unread.
    pub egress_tunnelled: AtomicU64,
    /// Those that were not.
    pub egress_refused: AtomicU64,
}

impl Counters {
    /// Counts decisions of a proxy.
    pub(super) fn decided(&self, decisions: &[Decision]) {
        for decision in decisions {
            let counter = match decision.outcome {
                Outcome::Allowed => &self.egress_allowed,
                Outcome::Tunnelled => &self.egress_tunnelled,
                Outcome::Refused => &self.egress_refused,
            };
            counter.fetch_add(decision.times.into(), Ordering::Relaxed);
        }
    }
}

impl Platform {
    /// What a running sandbox uses. Does not wake one that rests.
    pub async fn sandbox_stats(
        &self,
        caller: &Caller,
        id: &SandboxId,
    ) -> Result<SandboxStats, Failure> {
        let state = self.get_sandbox(caller, id).await?;
        match (self.find_live(id), state.phase.status()) {
            (Some(live), Some("running")) => off_runtime(move || Ok(SandboxStats::of(&live))).await,
            (_, Some(status)) if status != "running" => Err(Failure::Gone(status)),
            _ => Err(Failure::Unavailable),
        }
    }

    /// What every sandbox that this server holds uses, in order of their ids.
    pub async fn all_stats(&self) -> Result<Vec<SandboxStats>, Failure> {
        let mut all: Vec<_> = {
            let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.values().cloned().collect()
        };
        all.sort_by(|a, b| a.details.sandbox_id.cmp(&b.details.sandbox_id));
        off_runtime(move || Ok(all.iter().map(|live| SandboxStats::of(live)).collect())).await
    }

    /// How many sandboxes there are of each status.
    pub fn sandboxes_by_status(&self) -> BTreeMap<&'static str, u64> {
        self.catalog.statuses()
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
