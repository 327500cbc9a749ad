//! Builds under way. Only what is alive is here; what has to last is in the log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::feed::{Ended, Feed};
use crate::actors::platform::Caller;
use crate::ids::{ImageId, OrgId};

type Key = (OrgId, String);

/// An image that is built, or was there already.
pub struct Build {
    /// The image.
    pub image: ImageId,
    /// Who asked first.
    pub caller: Caller,
    /// What it says.
    pub feed: Arc<Feed>,
    /// Cancelled when nobody wants it any more.
    pub cancelled: CancellationToken,
}

impl Build {
    pub(super) fn of(image: ImageId, caller: &Caller) -> Arc<Self> {
        Arc::new(Self {
            image,
            caller: *caller,
            feed: Arc::default(),
            cancelled: CancellationToken::new(),
        })
    }
}

/// All builds under way.
pub struct Builds {
    running: Mutex<HashMap<ImageId, Arc<Build>>>,
    steps: Arc<Mutex<HashMap<Key, Arc<Feed>>>>,
    /// Held by whoever looks for an image or a step's result and refers to it, and by whoever removes
    /// what nobody refers to.
    pub(super) order: tokio::sync::Mutex<()>,
    /// Sandboxes that may build at once.
    pub(super) places: Arc<Semaphore>,
}

impl Builds {
    /// No builds yet, and how many there may be at once.
    pub fn new(at_once: usize) -> Self {
        Self {
            running: Mutex::default(),
            steps: Arc::default(),
            order: tokio::sync::Mutex::default(),
            places: Arc::new(Semaphore::new(at_once.clamp(1, Semaphore::MAX_PERMITS))),
        }
    }

    /// The build of an image, if it is under way.
    pub fn find(&self, image: &ImageId) -> Option<Arc<Build>> {
        self.running().get(image).cloned()
    }

    pub(super) fn begin(&self, build: &Arc<Build>) {
        self.running().insert(build.image, build.clone());
    }

    pub(super) fn finish(&self, build: &Build) {
        self.running().remove(&build.image);
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<ImageId, Arc<Build>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to make a step's result, or what another one who makes it says.
    pub(super) fn step(&self, org: OrgId, key: &str) -> StepTurn {
        let key = (org, key.to_owned());
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(feed) = steps.get(&key) {
            return StepTurn::Theirs(feed.clone());
        }
        let feed = Arc::new(Feed::default());
        steps.insert(key.clone(), feed.clone());
        StepTurn::Mine(Step {
            key,
            feed,
            steps: self.steps.clone(),
        })
    }
}

/// Who makes a step's result.
pub(super) enum StepTurn {
    Mine(Step),
    Theirs(Arc<Feed>),
}

/// The right to make a step's result; given back when dropped.
pub(super) struct Step {
    key: Key,
    pub feed: Arc<Feed>,
    steps: Arc<Mutex<HashMap<Key, Arc<Feed>>>>,
}

impl Step {
    /// Tells those who wait how it ended.
    pub fn end(self, ended: Ended) {
        self.leave(ended);
    }

    fn leave(&self, ended: Ended) {
        // Gone from the table first: who is told looks for itself.
        self.steps
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
        self.feed.end(ended);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if self.feed.ended().is_none() {
            self.leave(Ended::Abandoned);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: one makes a result, the others are told how it ended, and whoever gives up makes room.
    #[tokio::test]
    async fn a_step_is_made_by_one() {
        let builds = Builds::new(1);
        let org = OrgId::generate();
        let StepTurn::Mine(first) = builds.step(org, "key") else {
            panic!("nobody else is there");
        };
        let StepTurn::Theirs(feed) = builds.step(org, "key") else {
            panic!("the first one makes it");
        };
        assert!(matches!(
            builds.step(OrgId::generate(), "key"),
            StepTurn::Mine(_)
        ));
        drop(first);
        assert_eq!(feed.wait().await, Ended::Abandoned);
        let StepTurn::Mine(second) = builds.step(org, "key") else {
            panic!("the first one has left");
        };
        let StepTurn::Theirs(feed) = builds.step(org, "key") else {
            panic!("the second one makes it");
        };
        second.end(Ended::Done);
        assert_eq!(feed.wait().await, Ended::Done);
    }
}
