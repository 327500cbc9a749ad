//! Replies without an end of their own: how many of them one organization may have open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::http::StatusCode;

use super::error::{ApiError, ApiResult};
use crate::ids::OrgId;

/// Most feeds of one kind of one organization at once.
const FEEDS_MAX: usize = 64;

/// Who follows how much of one kind.
#[derive(Default, Clone)]
pub struct Feeds(Arc<Mutex<HashMap<OrgId, usize>>>);

impl Feeds {
    /// A place for one more; `what` it follows is for the refusal.
    pub(super) fn place(&self, org: OrgId, what: &str) -> ApiResult<Place> {
        let mut feeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = feeds.entry(org).or_default();
        if *count >= FEEDS_MAX {
            let text = format!("at most {FEEDS_MAX} clients can follow {what} at once");
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, text));
        }
        *count += 1;
        let feeds = self.clone();
        Ok(Place { org, feeds })
    }
}

/// One feed's place among those of its organization.
pub(super) struct Place {
    org: OrgId,
    feeds: Feeds,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut feeds = self.feeds.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = feeds.get_mut(&self.org) {
            *count -= 1;
            if *count == 0 {
                feeds.remove(&self.org);
            }
        }
    }
}
