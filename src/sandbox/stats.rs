//! What a sandbox uses of the machine, as far as the machine can say.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What one sandbox uses. `None` is "this machine can't say", never "nothing".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Processor time of all its processes since it was started, in microseconds.
    pub cpu_us: Option<u64>,
    /// Memory now, in bytes, as the limit counts it: with the page cache of its files.
    pub memory_bytes: Option<u64>,
    /// The part of it that is page cache, which the kernel takes back before it kills.
    pub memory_cache_bytes: Option<u64>,
    /// The most it ever was.
    pub memory_peak_bytes: Option<u64>,
    /// The limit.
    pub memory_limit_bytes: Option<u64>,
    /// Processes killed because the limit was reached.
    pub oom_kills: Option<u64>,
    /// Processes and threads now.
    pub tasks: Option<u64>,
    /// Most of them at once.
    pub tasks_max: Option<u64>,
    /// Bytes of its private disk in use.
    pub disk_bytes: Option<u64>,
    /// Size of its private disk.
    pub disk_limit_bytes: Option<u64>,
}

/// Reads what one running sandbox uses. Reading is quick, and blocks for as long as a few small
/// files of the kernel take.
pub trait Gauges: fmt::Debug + Send + Sync {
    /// Everything.
    fn read(&self) -> Stats;

    /// Only [`Stats::oom_kills`].
    fn oom_kills(&self) -> Option<u64>;
}
