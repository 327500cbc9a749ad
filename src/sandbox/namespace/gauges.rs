//! What one running sandbox uses: its control groups and its disk.

use std::fs;

use super::cgroup::{Group, Layout};
use super::plan::{Home, Plan, State};
use super::{image, sys};
use crate::ids::SandboxId;
use crate::sandbox::{Gauges, Stats};

/// Where the figures of one run of a sandbox are.
#[derive(Debug)]
pub struct RunGauges {
    group: Group,
    home: Home,
    supervisor: u32,
}

impl RunGauges {
    /// Of the run that `home` tells of, held by process `supervisor`. Its groups are those it was started in: a server started
    /// elsewhere would make others.
    pub fn of(home: &Home, supervisor: u32, id: &SandboxId, present: &Layout) -> Self {
        let plan = fs::read(home.plan()).ok();
        let plan = plan.and_then(|text| serde_json::from_slice::<Plan>(&text).ok());
        let groups = plan.map(|plan| plan.groups);
        Self {
            group: groups.as_ref().unwrap_or(present).group(id),
            home: home.clone(),
            supervisor,
        }
    }
}

impl Gauges for RunGauges {
    fn read(&self) -> Stats {
        let disk = image::usage(&self.home, self.supervisor);
        Stats {
            disk_bytes: disk.map(|(used, _)| used),
            disk_limit_bytes: disk.map(|(_, size)| size),
            ..self.group.stats()
        }
    }

    fn oom_kills(&self) -> Option<u64> {
        self.group.oom_kills()
    }
}

/// Whether the supervisor that a folder names is alive, and its process id.
pub fn living_supervisor(home: &Home) -> Option<u32> {
    let state: State = serde_json::from_slice(&fs::read(home.state()).ok()?).ok()?;
    let same = sys::start_ticks(state.supervisor_pid).ok()? == state.supervisor_start
        && sys::boot_id().ok()? == state.boot_id;
    same.then_some(state.supervisor_pid)
}
