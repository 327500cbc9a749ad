//! What the kernel knows of the proxy's process: time on the processor and memory.

use std::fs;

use crate::Result;

/// Nanoseconds on the processor of all threads that live.
pub fn cpu_ns(pids: &[u32]) -> Result<u64> {
    let mut total = 0;
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            let first = text.split_whitespace().next().ok_or("empty schedstat")?;
            total += first.parse::<u64>()?;
        }
    }
    Ok(total)
}

/// Makes the peak start again from what is resident now.
pub fn reset_peak(pids: &[u32]) -> Result<()> {
    for pid in pids {
        fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    }
    Ok(())
}

/// A field of `/proc/PID/status` in KiB, summed.
pub fn memory_kib(pids: &[u32], field: &str) -> Result<u64> {
    let mut total = 0;
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let number = line.and_then(|line| line.trim_matches([':', ' ', '\t']).split(' ').next());
        total += number.ok_or("no such field")?.parse::<u64>()?;
    }
    Ok(total)
}
