//! How differences are told.

use std::io::{self, Write};

use rustix::fs::FileType;
use serde::Serialize;

/// Something that differs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry<'a> {
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
    pub change: &'static str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub what: &'a [&'static str],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Told>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Told>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A thing as it is told.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub mode: String,
    pub uid: u32,
    pub gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// How much differed.
#[derive(Serialize, Default)]
pub struct Summary {
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
    pub unknown: u64,
    pub complete: bool,
}

/// Writes one entry as a line.
pub fn write_line(out: &mut impl Write, entry: &Entry<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, entry).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

/// The word for a kind.
pub fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice | FileType::BlockDevice => "device",
        FileType::Unknown => "unknown",
    }
}
