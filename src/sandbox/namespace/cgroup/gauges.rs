//! What the control groups of a sandbox say that it uses.
//!
//! | What | v1 | v2 |
//! |---|---|---|
//! | processor time | `cpuacct.usage` (ns), or `cpu.stat` of the cgroup2 tree (µs) | `cpu.stat` |
//! | memory now, most | `memory.usage_in_bytes`, `memory.max_usage_in_bytes` | `memory.current`, `memory.peak` (Linux 5.19) |
//! | page cache | `total_cache` of `memory.stat` | `file` of `memory.stat` |
//! | limit | `memory.limit_in_bytes` (a huge number: none) | `memory.max` (`max`: none) |
//! | killed for memory | `oom_kill` of `memory.oom_control` | `oom_kill` of `memory.events` |
//! | processes | `pids.current`, `pids.max` | the same |
//!
//! A hybrid machine has the limits of v1 and the processor time of v2, whose core files work
//! without controllers. What is in none of them is unknown.

use std::fs;
use std::io::Read;
use std::path::Path;

use super::Group;
use crate::sandbox::Stats;

/// Longest file read, in bytes: the longest, `memory.stat`, has some 4 KiB.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// v1 spells "no limit" as the largest multiple of the page size.
const V1_UNLIMITED_BYTES: u64 = 1 << 62;

impl Group {
    /// Everything the groups know; the disk is not theirs.
    pub fn stats(&self) -> Stats {
        let (memory, pids) = (self.memory_file(), self.layout.pids.as_deref());
        let unified = self.layout.unified.as_deref();
        let unified_limits = || unified.filter(|_| self.layout.unified_limits);
        let tasks = |file| {
            let read = pids.and_then(|dir| self.read(dir, file));
            read.or_else(|| unified_limits().and_then(|dir| self.read(dir, file)))
        };
        Stats {
            cpu_us: unified
                .and_then(|dir| self.read(dir, "cpu.stat"))
                .and_then(|text| field(&text, "usage_usec"))
                .or_else(|| {
                    let text = self.read(self.layout.cpu.as_deref()?, "cpuacct.usage")?;
                    Some(number(&text)? / 1000)
                }),
            memory_bytes: memory("memory.usage_in_bytes", "memory.current")
                .and_then(|text| number(&text)),
            memory_cache_bytes: memory("memory.stat", "memory.stat")
                .and_then(|text| field(&text, "total_cache").or_else(|| field(&text, "file"))),
            memory_peak_bytes: memory("memory.max_usage_in_bytes", "memory.peak")
                .and_then(|text| number(&text)),
            memory_limit_bytes: memory("memory.limit_in_bytes", "memory.max")
                .and_then(|text| number(&text))
                .filter(|bytes| *bytes < V1_UNLIMITED_BYTES),
            oom_kills: self.oom_kills(),
            tasks: tasks("pids.current").and_then(|text| number(&text)),
            tasks_max: tasks("pids.max").and_then(|text| number(&text)),
            ..Stats::default()
        }
    }

    /// How many processes of the sandbox were killed for memory.
    pub fn oom_kills(&self) -> Option<u64> {
        let text = self.memory_file()("memory.oom_control", "memory.events")?;
        field(&text, "oom_kill")
    }

    /// Reads the memory controller's file, by its name in v1 or in v2.
    fn memory_file(&self) -> impl Fn(&str, &str) -> Option<String> + '_ {
        let v1 = self.layout.memory.as_deref();
        let v2 = self.layout.unified.as_deref();
        let v2 = v2.filter(|_| self.layout.unified_limits);
        move |name_v1, name_v2| match (v1, v2) {
            (Some(base), _) => self.read(base, name_v1),
            (None, Some(base)) => self.read(base, name_v2),
            (None, None) => None,
        }
    }

    fn read(&self, base: &Path, file: &str) -> Option<String> {
        let file = fs::File::open(base.join(&self.name).join(file)).ok()?;
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
        Some(text)
    }
}

/// The whole file is one number; `max` is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number behind `name` in lines of names and numbers.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(number)
}
