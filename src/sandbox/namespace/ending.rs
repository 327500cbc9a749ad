//! The end of a sandbox, and its control groups.

use std::fs;

use super::cgroup::Group;
use super::leftover::unmount_below;
use super::plan::Plan;
use super::{NamespaceDriver, held, image, remove};
use crate::ids::SandboxId;
use crate::sandbox::DriverError;

impl NamespaceDriver {
    /// Removes all that is left of a sandbox without a living supervisor. Blocks.
    pub(super) fn clear(&self, id: &SandboxId) -> Result<(), DriverError> {
        self.end(id)?;
        unmount_below(&self.roots.home(id).0);
        remove::remove_tree(&self.roots.home(id).0).map_err(|source| DriverError::Io {
            what: format!("{id}: remove its disk"),
            source,
        })
    }

    /// The groups a sandbox may be in: a server started elsewhere may have others than the one that
    /// started the sandbox, whose own come first.
    fn groups_of(&self, id: &SandboxId) -> impl Iterator<Item = Group> {
        let plan = fs::read(self.roots.home(id).plan()).ok();
        let plan = plan.and_then(|text| serde_json::from_slice::<Plan>(&text).ok());
        let layouts = plan.map(|plan| plan.groups).into_iter();
        let id = id.clone();
        layouts
            .chain([self.groups.clone()])
            .map(move |layout| layout.group(&id))
    }

    /// The groups a living sandbox is in. Blocks.
    pub(super) fn group_of(&self, id: &SandboxId) -> Group {
        let own = self.groups.group(id);
        self.groups_of(id).next().unwrap_or(own)
    }

    /// Ends what still runs of a sandbox and removes its control groups; the disk stays. Blocks.
    pub(super) fn end(&self, id: &SandboxId) -> Result<(), DriverError> {
        let failed = |what| {
            move |source| DriverError::Io {
                what: format!("{id}: {what}"),
                source,
            }
        };
        let home = self.roots.home(id);
        held::kill_recorded(&home);
        held::await_lock(&home).map_err(failed("wait for the end of its supervisor"))?;
        if let Ok(disk) = fs::File::open(home.image()) {
            image::released(&disk).map_err(failed("wait for its disk"))?;
        }
        for group in self.groups_of(id) {
            group.kill();
            group
                .remove()
                .map_err(failed("remove its control groups"))?;
        }
        Ok(())
    }
}
