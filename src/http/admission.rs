//! How often an API key may be used, and when it last was.
//!
//! Rates are token buckets of one second ([`governor`]), held in memory. Times of use are kept in
//! `key-uses.json` in the data folder: a convenience for who tidies up, no part of the audit log; a
//! crash loses at most [`SAVE_INTERVAL`] of them.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use actix_web::http::StatusCode;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use time::OffsetDateTime;

use super::error::ApiError;
use crate::events::families::KeyCreated;
use crate::ids::KeyId;

/// Time between two writes of the file.
pub(super) const SAVE_INTERVAL: Duration = Duration::from_secs(60);
const FILE: &str = "key-uses.json";

/// What is known of a key's use.
struct Usage {
    /// Seconds since 1970; 0: never.
    last: AtomicI64,
    limiter: Option<DefaultDirectRateLimiter>,
}

/// What every worker of a server shares. One entry a key that was ever used.
pub(crate) struct Admission {
    file: PathBuf,
    /// Requests a second of keys without a rate of their own; 0: any.
    rate: u32,
    keys: RwLock<HashMap<KeyId, Arc<Usage>>>,
    /// Times of use of earlier runs.
    before: BTreeMap<KeyId, i64>,
    changed: AtomicBool,
}

impl Admission {
    /// With the times that an earlier run on `data_dir` left; a file that can't be read counts as
    /// none.
    pub fn open(data_dir: &Path, rate: u32) -> Self {
        let file = data_dir.join(FILE);
        let before = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), %error, "times of use of API keys are lost");
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        Self {
            file,
            rate,
            keys: RwLock::default(),
            before,
            changed: AtomicBool::new(false),
        }
    }

    /// Counts a request with `key`.
    ///
    /// # Errors
    /// 429 beyond the key's rate.
    pub fn pass(&self, key: &KeyCreated, now: OffsetDateTime) -> Result<(), ApiError> {
        let usage = self.usage(key);
        if let Some(limiter) = &usage.limiter
            && limiter.check().is_err()
        {
            let rate = key.rate.unwrap_or(self.rate);
            let text = format!("this API key is good for {rate} requests a second");
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, text));
        }
        let now = now.unix_timestamp();
        if usage.last.swap(now, Ordering::Relaxed) != now {
            self.changed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// When a key was last used, to the second.
    pub fn last_used(&self, key: &KeyId) -> Option<OffsetDateTime> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let now = keys
            .get(key)
            .map(|usage| usage.last.load(Ordering::Relaxed));
        let last = now.filter(|at| *at > 0).or(self.before.get(key).copied())?;
        OffsetDateTime::from_unix_timestamp(last).ok()
    }

    fn usage(&self, key: &KeyCreated) -> Arc<Usage> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = keys.get(&key.key_id) {
            return usage.clone();
        }
        drop(keys);
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let usage = keys.entry(key.key_id).or_insert_with(|| {
            let rate = NonZeroU32::new(key.rate.unwrap_or(self.rate));
            Arc::new(Usage {
                last: AtomicI64::new(0),
                limiter: rate.map(|rate| RateLimiter::direct(Quota::per_second(rate))),
            })
        });
        usage.clone()
    }

    /// Writes the file if a key was used since it last was.
    pub fn save(&self) {
        if !self.changed.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut uses = self.before.clone();
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let last = |usage: &Usage| usage.last.load(Ordering::Relaxed);
        uses.extend(
            keys.iter()
                .map(|(id, usage)| (*id, last(usage)))
                .filter(|(_, at)| *at > 0),
        );
        drop(keys);
        let fresh = self.file.with_extension("json.new");
        let written = serde_json::to_vec(&uses)
            .map_err(std::io::Error::other)
            .and_then(|text| std::fs::write(&fresh, text))
            .and_then(|()| std::fs::rename(&fresh, &self.file));
        if let Err(error) = written {
            tracing::warn!(file = %self.file.display(), %error, "times of use of API keys are not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::families::Scope;

    fn key(rate: Option<u32>) -> KeyCreated {
        KeyCreated {
            key_id: KeyId::generate(),
            name: "k".to_owned(),
            prefix: "osb_".to_owned(),
            sha256: "00".repeat(32),
            scope: Scope::Write,
            target: None,
            expires_at: None,
            rate,
            at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    /// Goal: a key's own rate goes before the server's, another key is not held up, and a refusal says
    /// when to try again.
    #[test]
    fn each_key_has_a_rate_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let admission = Admission::open(dir.path(), 5);
        let now = OffsetDateTime::now_utc();
        let (slow, usual) = (key(Some(2)), key(None));
        let passed =
            |key: &KeyCreated| (0..50).filter(|_| admission.pass(key, now).is_ok()).count();
        // A slow machine may take part of a second for the loop, and gets tokens back meanwhile.
        assert!((2..25).contains(&passed(&slow)));
        assert!((5..50).contains(&passed(&usual)));
        let refused = admission.pass(&slow, now).unwrap_err().to_string();
        assert!(
            refused.starts_with("429") && refused.contains("2 requests"),
            "{refused}"
        );
    }

    /// Goal: the last use survives a restart, also of keys that the next run doesn't see; a damaged
    /// file stops nothing.
    #[test]
    fn times_of_use_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let (one, two) = (key(None), key(None));
        let first = Admission::open(dir.path(), 0);
        first.pass(&one, now).unwrap();
        first.save();
        let second = Admission::open(dir.path(), 0);
        second.pass(&two, now + time::Duration::minutes(1)).unwrap();
        second.save();
        let third = Admission::open(dir.path(), 0);
        assert_eq!(third.last_used(&one.key_id), Some(now));
        assert_eq!(
            third.last_used(&two.key_id),
            Some(now + time::Duration::minutes(1))
        );
        std::fs::write(dir.path().join(FILE), "[").unwrap();
        assert_eq!(Admission::open(dir.path(), 0).last_used(&one.key_id), None);
    }
}
