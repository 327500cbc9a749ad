//! Images in the read models: names, hashes, and who refers to which result.

use std::collections::BTreeSet;

use super::image::{Image, ImagePhase};
use crate::actors::catalog::Catalog;
use crate::actors::checkpoint::CheckpointPhase;
use crate::ids::{CheckpointId, ImageId, OrgId};

/// Images of `org` that are there, newest first.
fn of<'a>(
    rows: impl DoubleEndedIterator<Item = (&'a ImageId, &'a Image)>,
    org: &OrgId,
) -> impl Iterator<Item = (&'a ImageId, &'a Image)> {
    rows.rev().filter(|(_, row)| row.visible_to(org).is_ok())
}

impl Catalog {
    /// Images of an organization, newest first; with `named`, those that have a name. Of a name the
    /// newest only: an older one has failed, and is about to go.
    pub(super) fn images(&self, org: &OrgId, named: bool) -> Vec<ImageId> {
        self.read(|model| {
            let mut seen = BTreeSet::new();
            let rows = of(model.images.iter(), org);
            let newest = rows.filter(|(_, row)| row.name().is_none_or(|name| seen.insert(name)));
            newest
                .filter(|(_, row)| !named || row.name().is_some())
                .map(|(id, _)| *id)
                .collect()
        })
    }

    /// The image with this name.
    pub(super) fn snapshot_named(&self, org: &OrgId, name: &str) -> Option<ImageId> {
        self.read(|model| {
            let mut rows = of(model.images.iter(), org);
            rows.find(|(_, row)| row.name() == Some(name))
                .map(|(id, _)| *id)
        })
    }

    /// The image without a name that is built of the same, and did not fail.
    pub(super) fn image_with_hash(&self, org: &OrgId, hash: &str) -> Option<ImageId> {
        self.read(|model| {
            let mut rows = of(model.images.iter(), org);
            let same = |row: &Image| {
                let details = row.details.as_ref();
                row.name().is_none() && details.is_some_and(|details| details.content_hash == hash)
            };
            let alive = |row: &Image| matches!(row.phase, ImagePhase::Building | ImagePhase::Ready);
            rows.find(|(_, row)| same(row) && alive(row))
                .map(|(id, _)| *id)
        })
    }

    /// Failures that a new image takes the place of: those of its name, or of its content.
    pub(super) fn failed_images(
        &self,
        org: &OrgId,
        name: Option<&str>,
        hash: &str,
    ) -> Vec<ImageId> {
        self.read(|model| {
            let rows = of(model.images.iter(), org);
            let replaced = rows.filter(|(_, row)| {
                let same = match name {
                    Some(_) => true,
                    None => row
                        .details
                        .as_ref()
                        .is_some_and(|one| one.content_hash == hash),
                };
                matches!(row.phase, ImagePhase::Failed(_)) && row.name() == name && same
            });
            replaced.map(|(id, _)| *id).collect()
        })
    }

    /// Results of a step with this key that images of the organization refer to, newest first.
    pub(super) fn layers_with_key(&self, org: &OrgId, key: &str) -> Vec<CheckpointId> {
        self.read(|model| {
            let rows = of(model.images.iter(), org);
            let layers = rows.flat_map(|(_, row)| &row.layers);
            let mut found: Vec<_> = layers
                .filter(|layer| layer.key == key)
                .map(|layer| layer.checkpoint_id)
                .filter(|id| {
                    let row = model.checkpoints.get(id);
                    row.is_some_and(|row| row.phase == CheckpointPhase::Ready)
                })
                .collect();
            found.dedup();
            found
        })
    }

    /// Results of steps and checkpoints of images that no image refers to, and their tenants.
    pub(super) fn unreferenced_layers(&self) -> Vec<(CheckpointId, OrgId)> {
        self.read(|model| {
            let there = model.images.values().filter(|row| row.is_there());
            let referred: BTreeSet<CheckpointId> = there
                .flat_map(|row| {
                    let layers = row.layers.iter().map(|layer| layer.checkpoint_id);
                    layers.chain(row.details.as_ref().map(|details| details.checkpoint_id))
                })
                .collect();
            let rows = model.checkpoints.iter();
            let built = rows.filter_map(|(id, row)| {
                let details = row.details.as_ref().filter(|_| row.is_there())?;
                details.config.builds?;
                Some((*id, details.org_id))
            });
            built.filter(|(id, _)| !referred.contains(id)).collect()
        })
    }

    /// Images without a name beyond the `most` that were used last.
    pub(super) fn surplus_images(&self, org: &OrgId, most: usize) -> Vec<ImageId> {
        self.read(|model| {
            let rows = of(model.images.iter(), org);
            let idle =
                rows.filter(|(_, row)| row.name().is_none() && row.phase != ImagePhase::Building);
            // One that took long to build is not the oldest when it is done.
            let since = |row: &Image| row.last_used().max(row.ready_at);
            let mut idle: Vec<_> = idle.map(|(id, row)| (since(row), *id)).collect();
            idle.sort();
            let surplus = idle.len().saturating_sub(most);
            idle.into_iter().take(surplus).map(|(_, id)| id).collect()
        })
    }

    /// Images that are being built, as far as the log knows, and their tenants.
    pub(super) fn images_in_building(&self) -> Vec<(ImageId, OrgId)> {
        self.read(|model| {
            let rows = model.images.iter();
            let open = rows.filter(|(_, row)| row.phase == ImagePhase::Building);
            open.filter_map(|(id, row)| Some((*id, row.details.as_ref()?.org_id)))
                .collect()
        })
    }
}
