//! How many sandboxes an organization may have at once.
//!
//! Invariant: sandboxes that the read models count as live and creates that they can't count yet
//! never exceed the limit together, however many creates run side by side.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::entity::Failure;
use super::platform::{Caller, Platform};
use crate::ids::OrgId;

/// Creates that the read models can't count yet, by organization.
pub(super) type Places = Arc<Mutex<HashMap<OrgId, usize>>>;

/// One such create; its place is given back when this is dropped.
pub(super) struct Place {
    org: OrgId,
    places: Places,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = places.get_mut(&self.org) {
            *count = count.saturating_sub(1);
        }
    }
}

impl Platform {
    /// Takes a place for one more sandbox; hold it until the read models count the sandbox.
    pub(super) fn take_place(&self, caller: &Caller) -> Result<Place, Failure> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = places.entry(caller.org).or_insert(0);
        let limit = self.limits.concurrent_sandboxes_max;
        let active = self.catalog.live_count(&caller.org) + *waiting;
        if active >= limit {
            return Err(Failure::Quota { active, limit });
        }
        *waiting += 1;
        Ok(Place {
            org: caller.org,
            places: self.places.clone(),
        })
    }
}
