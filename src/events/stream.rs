//! Names of streams, and what a command expects of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest stream name, in bytes.
pub const STREAM_ID_BYTES_MAX: usize = 200;

/// Text that is not a stream's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a stream name: 1 to {STREAM_ID_BYTES_MAX} of A-Z a-z 0-9 . _ : - are allowed")]
pub struct BadStreamId;

/// The name of one entity's stream: `project-<uuid>`, `sandbox-sb-…`, `name-…`.
///
/// 1 to 200 bytes of `[A-Za-z0-9._:-]`, so that it can stand in a log line, a URL and a shell
/// without quoting.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamId(String);

impl StreamId {
    /// Checks `text` and takes it as a name.
    pub fn new(text: impl Into<String>) -> Result<Self, BadStreamId> {
        let text = text.into();
        let allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-');
        let fits = (1..=STREAM_ID_BYTES_MAX).contains(&text.len());
        if fits && text.bytes().all(allowed) {
            Ok(Self(text))
        } else {
            Err(BadStreamId)
        }
    }

    /// The stream of one entity: its family and its id, `project-<uuid>`.
    ///
    /// The id must print as 1 to 180 of the allowed characters, as every id type of this program
    /// does, and the family is a constant of ours.
    pub fn of(family: &'static str, id: impl fmt::Display) -> Self {
        Self::new(format!("{family}-{id}")).expect("ids print as few, allowed characters")
    }

    /// Family and id, as [`StreamId::of`] put them together.
    pub fn parts(&self) -> Option<(&str, &str)> {
        self.0.split_once('-')
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for StreamId {
    type Err = BadStreamId;
    fn from_str(text: &str) -> Result<Self, BadStreamId> {
        Self::new(text)
    }
}

impl TryFrom<String> for StreamId {
    type Error = BadStreamId;
    fn try_from(text: String) -> Result<Self, BadStreamId> {
        Self::new(text)
    }
}

impl From<StreamId> for String {
    fn from(id: StreamId) -> Self {
        id.0
    }
}

/// What a command expects of a stream at the moment it commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nothing: whatever is there is fine.
    Any,
    /// The stream has no event yet.
    NoStream,
    /// The stream's last event has exactly this revision (the first event has revision 0).
    Revision(u64),
}

impl Expected {
    /// Whether a stream whose last event has revision `actual` (`None`: no event) is as expected.
    pub fn holds(self, actual: Option<u64>) -> bool {
        match self {
            Expected::Any => true,
            Expected::NoStream => actual.is_none(),
            Expected::Revision(revision) => actual == Some(revision),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Any => f.write_str("anything"),
            Expected::NoStream => f.write_str("no event"),
            Expected::Revision(revision) => write!(f, "revision {revision}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_short_names_are_stream_ids() {
        for good in [
            "project-0190",
            "sandbox-sb-01h",
            "name-a.b_c:d",
            &"x".repeat(200),
        ] {
            assert_eq!(StreamId::new(good).map(String::from), Ok(good.to_owned()));
        }
        for bad in ["", "a b", "a/b", "a\n", "é", "a\0", &"x".repeat(201)] {
            assert_eq!(StreamId::new(bad), Err(BadStreamId), "{bad:?}");
            let json = serde_json::to_string(bad).expect("a string is JSON");
            assert!(serde_json::from_str::<StreamId>(&json).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_expectation_holds_for_exactly_the_revision_it_names() {
        assert!(Expected::Any.holds(None) && Expected::Any.holds(Some(3)));
        assert!(Expected::NoStream.holds(None) && !Expected::NoStream.holds(Some(0)));
        assert!(Expected::Revision(0).holds(Some(0)));
        assert!(!Expected::Revision(0).holds(None) && !Expected::Revision(0).holds(Some(1)));
    }
}
