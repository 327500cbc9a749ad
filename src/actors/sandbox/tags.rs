//! Labels of a sandbox: at most [`TAGS_MAX`], which any state takes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Decision, Reject};
use crate::events::families::{SandboxEvent, TagsSet};

/// Most tags of one sandbox.
pub const TAGS_MAX: usize = 50;
const KEY_CHARS_MAX: usize = 128;
const VALUE_CHARS_MAX: usize = 256;
/// Prefix of keys that are the server's own.
const RESERVED: &str = "oc:";

/// The tags of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    /// All of them.
    pub all: BTreeMap<String, String>,
    /// When they were last set; `None`: never.
    #[serde(with = "time::serde::rfc3339::option")]
    pub set_at: Option<OffsetDateTime>,
}

impl Tags {
    pub(super) fn decide(
        &self,
        tags: &BTreeMap<String, String>,
        at: OffsetDateTime,
    ) -> Result<Decision<SandboxEvent>, Reject> {
        check(tags)?;
        let tags = tags.clone();
        Ok(SandboxEvent::TagsSet(TagsSet { tags, at }).into())
    }

    pub(super) fn apply(&mut self, set: &TagsSet) {
        self.all.clone_from(&set.tags);
        self.set_at = Some(set.at);
    }
}

fn check(tags: &BTreeMap<String, String>) -> Result<(), Reject> {
    if tags.len() > TAGS_MAX {
        return Err(Reject::invalid(format!(
            "a sandbox has at most {TAGS_MAX} tags"
        )));
    }
    for (key, value) in tags {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-:".contains(c);
        if !(1..=KEY_CHARS_MAX).contains(&key.len()) || !key.chars().all(plain) {
            return Err(Reject::invalid(format!(
                "a tag's key has 1 to {KEY_CHARS_MAX} characters of A-Z a-z 0-9 _ . - :"
            )));
        }
        if key.starts_with(RESERVED) {
            return Err(Reject::invalid(format!(
                "tags that begin with {RESERVED} are reserved"
            )));
        }
        if value.chars().count() > VALUE_CHARS_MAX {
            return Err(Reject::invalid(format!(
                "a tag's value has at most {VALUE_CHARS_MAX} characters"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_bounded_and_plain() {
        let one = |key: &str, value: &str| check(&[(key.to_owned(), value.to_owned())].into());
        for (key, value) in [
            ("team", "x"),
            ("a_B.c-d:e", ""),
            (&"k".repeat(128), "é"),
            ("k", &"é".repeat(256)),
        ] {
            assert!(one(key, value).is_ok(), "{key}");
        }
        for (key, value) in [
            ("", "x"),
            ("oc:x", "y"),
            ("a b", "y"),
            ("é", "y"),
            (&"k".repeat(129), ""),
            ("k", &"v".repeat(257)),
        ] {
            assert!(one(key, value).is_err(), "{key}");
        }
        let many: BTreeMap<_, _> = (0..51).map(|n| (n.to_string(), String::new())).collect();
        assert!(check(&many).is_err());
    }
}
