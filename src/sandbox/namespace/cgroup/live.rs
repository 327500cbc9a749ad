//! What can be changed about the groups of a sandbox that runs, and read from them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{CPU_PERIOD_US, Group};

impl Group {
    /// Sets memory (MiB) and processor time (percent of one processor) for everything in the groups,
    /// as far as this machine enforces them at all. Refused with `EBUSY` when more memory is in use
    /// than there would be.
    pub fn resize(&self, memory_mb: u64, cpu_percent: u32) -> io::Result<()> {
        let memory = (memory_mb * 1024 * 1024).to_string();
        let quota = u64::from(cpu_percent) * CPU_PERIOD_US / 100;
        if let Some(dir) = self.dir_of(&self.layout.memory) {
            set_memory_v1(&dir, &memory)?;
        }
        if let Some(dir) = self.dir_of(&self.layout.cpu) {
            fs::write(dir.join("cpu.cfs_quota_us"), quota.to_string())?;
        }
        if let Some(dir) = self.unified_with_limits() {
            fs::write(dir.join("memory.max"), &memory)?;
            fs::write(dir.join("cpu.max"), format!("{quota} {CPU_PERIOD_US}"))?;
        }
        Ok(())
    }

    /// Memory in use that the kernel can't take back by itself, in bytes; `None` where no group
    /// counts it.
    pub fn working_set(&self) -> Option<u64> {
        let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let (used, stat, key) = match self.dir_of(&self.layout.memory) {
            Some(dir) => (
                number(dir.join("memory.usage_in_bytes"))?,
                dir.join("memory.stat"),
                "total_inactive_file",
            ),
            None => {
                let dir = self.unified_with_limits()?;
                (
                    number(dir.join("memory.current"))?,
                    dir.join("memory.stat"),
                    "inactive_file",
                )
            }
        };
        let stat = fs::read_to_string(stat).ok()?;
        Some(used.saturating_sub(field(&stat, key).unwrap_or(0)))
    }

    /// Has the kernel take back what memory it can: file pages, and with swap other pages too. Best
    /// effort, may take a moment. Do it while the processes are stopped.
    pub fn reclaim(&self) {
        if let Some(dir) = self.dir_of(&self.layout.memory) {
            let _ = fs::write(dir.join("memory.force_empty"), "0");
        } else if let Some(dir) = self.unified_with_limits()
            && let Ok(used) = fs::read_to_string(dir.join("memory.current"))
        {
            let _ = fs::write(dir.join("memory.reclaim"), used.trim());
        }
    }

    fn dir_of(&self, base: &Option<PathBuf>) -> Option<PathBuf> {
        let dir = base.as_ref()?.join(&self.name);
        dir.is_dir().then_some(dir)
    }

    fn unified_with_limits(&self) -> Option<PathBuf> {
        match self.layout.unified_limits {
            true => self.dir_of(&self.layout.unified),
            false => None,
        }
    }
}

/// Memory and swap together may never be below memory alone, so the order depends on the direction.
fn set_memory_v1(dir: &Path, memory: &str) -> io::Result<()> {
    let (limit, with_swap) = (
        dir.join("memory.limit_in_bytes"),
        dir.join("memory.memsw.limit_in_bytes"),
    );
    if !with_swap.exists() {
        return fs::write(limit, memory);
    }
    fs::write(&limit, memory)
        .and_then(|()| fs::write(&with_swap, memory))
        .or_else(|_| {
            fs::write(&with_swap, memory)?;
            fs::write(&limit, memory)
        })
}

fn field(stat: &str, key: &str) -> Option<u64> {
    let mut lines = stat.lines().map(str::split_whitespace);
    let mut line = lines.find(|line| line.clone().next() == Some(key))?;
    line.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let stat = "inactive_file_x 1\ninactive_file 42\ntotal_inactive_file 7\n";
        assert_eq!(field(stat, "inactive_file"), Some(42));
        assert_eq!(field(stat, "total_inactive_file"), Some(7));
        assert_eq!(field(stat, "anon"), None);
    }
}
