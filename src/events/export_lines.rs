//! The lines of an export as they are read back: borrowed from the line, nothing beside the known
//! fields, and never more than one line in memory.

use std::borrow::Cow;
use std::io::{BufRead, Read};

use serde::Deserialize;

use super::chain::{self, Hash};
use super::export_fault::ExportFault;

/// Longest line, in bytes: the largest commit, with every character of it escaped.
const LINE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// The first line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header<'a> {
    pub format: &'a str,
    pub log: &'a str,
    /// Whose events are in full; no hash covers it and nothing rests on it.
    #[serde(default, rename = "org")]
    _org: Option<crate::ids::OrgId>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit<'a> {
    pub commit: u64,
    pub chain: &'a str,
    #[serde(borrow)]
    pub events: Vec<Event<'a>>,
}

/// An event in full, or of another organization: then only its content hash is there.
#[derive(Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Event<'a> {
    pub id: &'a str,
    pub stream: &'a str,
    pub revision: u64,
    pub position: u64,
    pub commit: u64,
    pub recorded_at_ms: i64,
    pub kind: &'a str,
    pub actor: &'a str,
    pub org: &'a str,
    pub key: &'a str,
    pub command: &'a str,
    pub correlation: &'a str,
    pub causation: &'a str,
    #[serde(borrow)]
    pub data: Cow<'a, str>,
    pub content_hash: &'a str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndLine<'a> {
    #[serde(borrow)]
    pub end: End<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End<'a> {
    pub position: u64,
    pub commit: u64,
    pub chain: &'a str,
}

impl Event<'_> {
    /// Whether its content hash is all there is.
    pub fn is_withheld(&self) -> bool {
        let content_hash = self.content_hash;
        *self
            == Event {
                content_hash,
                ..Event::default()
            }
    }

    /// The content hash made again from the fields, in the order of `chain.rs`.
    pub fn hash(&self) -> Hash {
        let [revision, position, commit] =
            [self.revision, self.position, self.commit].map(|number| number.to_string());
        let fields = [
            self.id,
            self.stream,
            &revision,
            &position,
            &commit,
            &self.recorded_at_ms.to_string(),
            self.kind,
            self.actor,
            self.org,
            self.key,
            self.command,
            self.correlation,
            self.causation,
            &self.data,
        ];
        chain::content_hash_of_texts(fields)
    }
}

/// 32 bytes from exactly 64 lower-case hex digits.
pub fn hash_of(text: &str) -> Option<Hash> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash).ok()?;
    (!text.bytes().any(|byte| byte.is_ascii_uppercase())).then_some(hash)
}

/// A line as what it should be; `number` is for the message.
pub fn parse<'a, T: Deserialize<'a>>(line: &'a [u8], number: u64) -> Result<T, ExportFault> {
    serde_json::from_slice(line).map_err(|error| malformed(number, &error.to_string()))
}

pub fn malformed(line: u64, what: &str) -> ExportFault {
    ExportFault::Malformed {
        line,
        what: what.to_owned(),
    }
}

/// The lines of a file, one at a time in a buffer of bounded size.
pub struct Lines<R> {
    export: R,
    buffer: Vec<u8>,
    /// Of the line given last, from 1.
    pub number: u64,
}

impl<R: BufRead> Lines<R> {
    /// Those of `export`.
    pub fn new(export: R) -> Self {
        Self {
            export,
            buffer: Vec::new(),
            number: 0,
        }
    }

    /// The next line without its end; `None` behind the last one.
    pub fn next(&mut self) -> Result<Option<&[u8]>, ExportFault> {
        self.buffer.clear();
        let mut limited = (&mut self.export).take(LINE_BYTES_MAX);
        limited.read_until(b'\n', &mut self.buffer)?;
        if self.buffer.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        match self.buffer.strip_suffix(b"\n") {
            Some(line) => Ok(Some(line)),
            None => Err(malformed(
                self.number,
                "it is cut off, or longer than any commit",
            )),
        }
    }
}
