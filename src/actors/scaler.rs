//! Automatic scaling: looks at how much memory sandboxes use, and takes the steps that the policy of
//! [`next_size`] says. What it has seen is in memory only: a restarted server watches anew.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::live::LiveSandbox;
use super::platform::Platform;
use super::sandbox::Sandbox;
use super::sandbox::scaling::{Load, next_size};
use crate::events::Actor as Who;

/// Time between two looks.
pub(super) const LOOK: Duration = Duration::from_secs(10);
/// Looks that are kept: a quarter of an hour.
const SAMPLES_MAX: usize = 90;
const MINUTE: usize = 6;
const MIB: u64 = 1024 * 1024;

/// What was seen of one sandbox lately.
#[derive(Default)]
pub struct Samples(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// Used share of the memory limit, newest last.
    shares: VecDeque<f64>,
    /// The last step.
    stepped: Option<Instant>,
}

impl Samples {
    fn take(&self, share: f64) -> (Load, Option<Duration>) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.shares.len() == SAMPLES_MAX {
            seen.shares.pop_front();
        }
        seen.shares.push_back(share);
        let mean = |count: usize| {
            let newest = seen.shares.iter().rev().take(count);
            (seen.shares.len() >= count).then(|| newest.sum::<f64>() / count as f64)
        };
        let load = Load {
            one: mean(MINUTE),
            five: mean(5 * MINUTE),
            fifteen: mean(SAMPLES_MAX),
        };
        (load, seen.stepped.map(|at| at.elapsed()))
    }

    /// The size changed: the shares of before say nothing about it.
    fn step(&self) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.shares.clear();
        seen.stepped = Some(Instant::now());
    }
}

impl Platform {
    /// One look at every sandbox that is scaled automatically.
    pub(super) async fn scale_all(self: &Arc<Self>) {
        for live in self.all_live() {
            if let Err(error) = self.scale_one(&live).await {
                let id = &live.details.sandbox_id;
                tracing::warn!(%error, sandbox = %id, "the sandbox was not scaled");
            }
        }
    }

    async fn scale_one(
        self: &Arc<Self>,
        live: &Arc<LiveSandbox>,
    ) -> Result<(), super::entity::Failure> {
        let id = &live.details.sandbox_id;
        if !self.catalog.is_autoscaled(id) {
            return Ok(());
        }
        let state = self.sandboxes.inspect(&Sandbox::stream(id)).await?;
        let (Some(bounds), Some(size)) = (state.scaling.autoscale, state.size()) else {
            return Ok(());
        };
        let Some(used) = self.driver.memory_used(id).await else {
            return Ok(());
        };
        let share = used as f64 / (u64::from(size.memory_mb.max(1)) * MIB) as f64;
        let (load, since_last) = live.samples.take(share);
        let Some(next) = next_size(size.memory_mb, bounds, load, since_last) else {
            return Ok(());
        };
        let org = live.details.org_id;
        let who = Who {
            org: Some(org),
            ..Who::system()
        };
        self.resize(id, org, next, true, &who).await?;
        live.samples.step();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a mean is told only when the whole time was watched, and starts anew after a step.
    #[test]
    fn means_are_of_whole_minutes() {
        let samples = Samples::default();
        let mut load = Load::default();
        for _ in 0..MINUTE - 1 {
            load = samples.take(0.5).0;
        }
        assert_eq!(load, Load::default());
        for share in [0.5, 1.1] {
            load = samples.take(share).0;
        }
        assert!((load.one.unwrap() - 0.6).abs() < 1e-9);
        assert_eq!(load.five, None);
        for _ in 0..SAMPLES_MAX * 2 {
            load = samples.take(0.1).0;
        }
        assert!((load.fifteen.unwrap() - 0.1).abs() < 1e-9);
        samples.step();
        let (load, since) = samples.take(0.9);
        assert_eq!(load, Load::default());
        assert!(since.is_some());
    }
}
