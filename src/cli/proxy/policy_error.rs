//! What is wrong with a policy: file, line, key and reason.
//!
//! Invariant: no text of the file that could be a secret by mistake is repeated, nor the name of a
//! variable or file a value was to come from: people paste values into the wrong place.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A policy that can't be used.
#[derive(Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// The policy file.
    pub file: PathBuf,
    /// Line in it, from 1; `None` when the file as a whole is meant.
    pub line: Option<usize>,
    /// The key as a path, `secret[0].hosts`; empty for the whole file.
    pub key: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        match self.key.as_str() {
            "" | "." => write!(f, ": {}", self.reason),
            key => write!(f, ": {key}: {}", self.reason),
        }
    }
}

impl std::error::Error for PolicyError {}

/// Where errors of one file are made.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The policy file.
    pub file: &'a Path,
    /// Its text.
    pub text: &'a str,
}

impl Place<'_> {
    /// An error at `span` of the text.
    pub fn error(
        &self,
        span: Option<Range<usize>>,
        key: impl Into<String>,
        reason: impl Into<String>,
    ) -> PolicyError {
        let line = span.map(|span| {
            let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
            before.iter().filter(|byte| **byte == b'\n').count() + 1
        });
        PolicyError {
            file: self.file.to_owned(),
            line,
            key: key.into(),
            reason: reason.into(),
        }
    }
}
