//! How large a sandbox is, and who may change it: the rules and the policy of automatic scaling.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Decision, Reject, Sandbox, SandboxCommand};
use crate::events::families::{
    AutoscaleSet, Bounds, SandboxCreated, SandboxEvent, Scaled, ScalingLocked,
};

/// Sizes that `scale` and automatic scaling know: memory in MiB and processors.
pub const TIERS: [(u32, u32); 4] = [(1024, 1), (4096, 1), (8192, 2), (16384, 4)];
/// Most processor time, in percent of one processor.
pub const CPU_PERCENT_MAX: u32 = 400;
/// Least processor time a sandbox can work with.
pub const CPU_PERCENT_MIN: u32 = 5;

/// Use of memory above which the next larger tier is taken, as a share of the limit.
const GROW_ABOVE: f64 = 0.75;
/// Use of memory below which, for a quarter of an hour, the next smaller tier is taken.
const SHRINK_BELOW: f64 = 0.25;
/// Shortest time from one step up, or down, to the next.
const GROW_PAUSE: Duration = Duration::from_secs(60);
const SHRINK_PAUSE: Duration = Duration::from_secs(300);

/// What a sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Memory in MiB.
    pub memory_mb: u32,
    /// Processor time in percent of one processor.
    pub cpu_percent: u32,
}

impl Size {
    /// The tier with this memory.
    pub fn tier(memory_mb: i64) -> Result<Self, Reject> {
        let found = TIERS
            .into_iter()
            .find(|(memory, _)| i64::from(*memory) == memory_mb);
        let Some((memory_mb, cpus)) = found else {
            let known = TIERS.map(|(memory, _)| memory.to_string()).join(", ");
            return Err(Reject::invalid(format!("memoryMB must be one of {known}")));
        };
        Ok(Self {
            memory_mb,
            cpu_percent: cpus * 100,
        })
    }

    /// The next larger (or smaller) tier than `memory_mb`, within `bounds`.
    fn step(memory_mb: u32, bounds: Bounds, larger: bool) -> Option<Self> {
        let within =
            |tier: &&(u32, u32)| (bounds.min_memory_mb..=bounds.max_memory_mb).contains(&tier.0);
        let mut tiers = TIERS.iter().filter(within);
        let found = match larger {
            true => tiers.find(|tier| tier.0 > memory_mb),
            false => tiers.rfind(|tier| tier.0 < memory_mb),
        };
        found.map(|(memory_mb, cpus)| Self {
            memory_mb: *memory_mb,
            cpu_percent: cpus * 100,
        })
    }
}

/// What was said about a sandbox's size since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scaling {
    /// Processor time, when it is no whole number of processors any more.
    pub cpu_percent: Option<u32>,
    /// Its size may not change.
    pub locked: bool,
    /// The server may change it by itself, within these.
    pub autoscale: Option<Bounds>,
}

/// Mean use of memory as a share of the limit, over the last 1, 5 and 15 minutes; `None` where the
/// sandbox hasn't been watched for that long.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Over one minute.
    pub one: Option<f64>,
    /// Over five minutes.
    pub five: Option<f64>,
    /// Over fifteen minutes.
    pub fifteen: Option<f64>,
}

/// What automatic scaling does at this moment: up one tier when the last minute was above three
/// quarters, down one when the last quarter of an hour was below one throughout; never sooner than
/// a minute (or five) after the step before.
pub fn next_size(
    memory_mb: u32,
    bounds: Bounds,
    load: Load,
    since_last: Option<Duration>,
) -> Option<Size> {
    let paused = |pause| since_last.is_none_or(|since| since >= pause);
    if load.one.is_some_and(|one| one > GROW_ABOVE) && paused(GROW_PAUSE) {
        return Size::step(memory_mb, bounds, true);
    }
    let low = |mean: Option<f64>| mean.is_some_and(|mean| mean < SHRINK_BELOW);
    if low(load.one) && low(load.five) && low(load.fifteen) && paused(SHRINK_PAUSE) {
        return Size::step(memory_mb, bounds, false);
    }
    None
}

impl Sandbox {
    /// What it may use now.
    pub fn size(&self) -> Option<Size> {
        self.details.as_ref().map(|details| self.size_of(details))
    }

    fn size_of(&self, details: &SandboxCreated) -> Size {
        Size {
            memory_mb: details.memory_mb,
            cpu_percent: self
                .scaling
                .cpu_percent
                .unwrap_or_else(|| details.cpu_count.saturating_mul(100)),
        }
    }

    pub(super) fn decide_scaling(
        &self,
        command: &SandboxCommand,
    ) -> Result<Decision<SandboxEvent>, Reject> {
        use SandboxCommand as C;
        Ok(match command {
            C::Scale {
                org,
                size,
                automatic,
                at,
            } => {
                let details = self.running_of(org)?;
                if self.scaling.locked {
                    return Err(Reject::ScalingLocked);
                }
                if *automatic && self.scaling.autoscale.is_none() {
                    return Ok(Decision::nothing());
                }
                let mut events = Vec::new();
                if !automatic && self.scaling.autoscale.is_some() {
                    let off = AutoscaleSet {
                        bounds: None,
                        at: *at,
                    };
                    events.push(SandboxEvent::AutoscaleSet(off));
                }
                if self.size_of(details) != *size {
                    events.push(SandboxEvent::Scaled(Scaled {
                        memory_mb: size.memory_mb,
                        cpu_percent: size.cpu_percent,
                        automatic: *automatic,
                        at: *at,
                    }));
                }
                Decision {
                    events,
                    names: Vec::new(),
                }
            }
            C::SetAutoscale { org, bounds, at } => {
                self.visible_to(org)?;
                if bounds.is_some() {
                    self.running_of(org)?;
                    if self.scaling.locked {
                        return Err(Reject::ScalingLocked);
                    }
                }
                match self.scaling.autoscale == *bounds {
                    true => Decision::nothing(),
                    false => SandboxEvent::AutoscaleSet(AutoscaleSet {
                        bounds: *bounds,
                        at: *at,
                    })
                    .into(),
                }
            }
            C::LockScaling { org, locked, at } => {
                self.visible_to(org)?;
                if self.phase.is_final() {
                    return Err(Reject::invalid("sandbox is stopped"));
                }
                match self.scaling.locked == *locked {
                    true => Decision::nothing(),
                    false => SandboxEvent::ScalingLocked(ScalingLocked {
                        locked: *locked,
                        at: *at,
                    })
                    .into(),
                }
            }
            _ => Decision::nothing(),
        })
    }

    pub(super) fn apply_scaling(&mut self, event: &SandboxEvent) {
        match event {
            SandboxEvent::Scaled(scaled) => {
                self.scaling.cpu_percent = Some(scaled.cpu_percent);
                if let Some(details) = &mut self.details {
                    details.memory_mb = scaled.memory_mb;
                    details.cpu_count = scaled.cpu_percent.div_ceil(100).max(1);
                }
            }
            SandboxEvent::AutoscaleSet(set) => self.scaling.autoscale = set.bounds,
            SandboxEvent::ScalingLocked(set) => {
                self.scaling.locked = set.locked;
                // Locking switches automatic scaling off; unlocking does not switch it on.
                if set.locked {
                    self.scaling.autoscale = None;
                }
            }
            _ => {}
        }
    }
}

/// Bounds of automatic scaling as a caller gives them: both, both tiers, in order.
pub fn bounds(min: Option<i64>, max: Option<i64>) -> Result<Bounds, Reject> {
    let (Some(min), Some(max)) = (min, max) else {
        return Err(Reject::invalid(
            "minMemoryMB and maxMemoryMB are required to enable autoscale",
        ));
    };
    let tier = |name: &str, memory| {
        Size::tier(memory)
            .map(|size| size.memory_mb)
            .map_err(|error| Reject::invalid(error.to_string().replacen("memoryMB", name, 1)))
    };
    let bounds = Bounds {
        min_memory_mb: tier("minMemoryMB", min)?,
        max_memory_mb: tier("maxMemoryMB", max)?,
    };
    if bounds.min_memory_mb > bounds.max_memory_mb {
        return Err(Reject::invalid("minMemoryMB must not exceed maxMemoryMB"));
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Bounds = Bounds {
        min_memory_mb: 1024,
        max_memory_mb: 16384,
    };

    fn steady(share: f64) -> Load {
        let share = Some(share);
        Load {
            one: share,
            five: share,
            fifteen: share,
        }
    }

    /// Goal: one tier at a time, inside the bounds, not before the pause is over.
    #[test]
    fn automatic_scaling_takes_one_step_within_its_bounds() {
        let check = |memory, bounds, load, since: Option<u64>| {
            let since = since.map(Duration::from_secs);
            next_size(memory, bounds, load, since).map(|size| size.memory_mb)
        };
        assert_eq!(check(1024, ALL, steady(0.76), None), Some(4096));
        assert_eq!(check(1024, ALL, steady(0.75), None), None);
        assert_eq!(check(1024, ALL, steady(0.9), Some(59)), None);
        assert_eq!(check(1024, ALL, steady(0.9), Some(60)), Some(4096));
        assert_eq!(check(16384, ALL, steady(0.9), None), None);
        let low = Bounds {
            max_memory_mb: 1024,
            ..ALL
        };
        assert_eq!(check(1024, low, steady(0.9), None), None);
        assert_eq!(check(8192, ALL, steady(0.2), Some(300)), Some(4096));
        assert_eq!(check(8192, ALL, steady(0.2), Some(299)), None);
        let young = Load {
            fifteen: None,
            ..steady(0.1)
        };
        assert_eq!(check(8192, ALL, young, None), None);
        let high = Bounds {
            min_memory_mb: 8192,
            ..ALL
        };
        assert_eq!(check(8192, high, steady(0.1), None), None);
        // A size between the tiers goes to the next one.
        assert_eq!(check(2000, ALL, steady(0.9), None), Some(4096));
    }

    #[test]
    fn bounds_are_two_tiers_in_order() {
        assert!(bounds(Some(1024), Some(4096)).is_ok());
        for (min, max) in [
            (None, Some(4096)),
            (Some(1024), None),
            (Some(4096), Some(1024)),
            (Some(2048), Some(4096)),
            (Some(1024), Some(-1)),
        ] {
            assert!(bounds(min, max).is_err(), "{min:?} {max:?}");
        }
    }
}
