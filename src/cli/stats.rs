//! `oc sandbox stats`: what a sandbox uses.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::Context;
use super::client::decode;
use super::error::CliError;
use super::output::table;

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Stats {
    cpu: Cpu,
    memory: Memory,
    processes: Processes,
    disk: Disk,
    network: Network,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Cpu {
    used_micros: Option<u64>,
    count: u64,
    enforced: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Memory {
    used_bytes: Option<u64>,
    cache_bytes: Option<u64>,
    peak_bytes: Option<u64>,
    limit_bytes: Option<u64>,
    oom_kills: Option<u64>,
    enforced: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Processes {
    count: Option<u64>,
    max: Option<u64>,
    enforced: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Disk {
    used_bytes: Option<u64>,
    limit_bytes: Option<u64>,
    enforced: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Network {
    sent_bytes: u64,
    received_bytes: u64,
}

/// Shows it once, or every `watch` seconds until interrupted.
pub(super) async fn run(context: &Context, id: &str, watch: Option<u64>) -> Result<(), CliError> {
    loop {
        let reply: Value = context.api.get(&["sandboxes", id, "stats"]).await?;
        let stats: Stats = decode(reply.clone())?;
        context.output.reply(&reply, || stats.describe())?;
        let Some(seconds) = watch else {
            return Ok(());
        };
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

impl Stats {
    fn describe(&self) -> String {
        let memory = &self.memory;
        let row = |what: &str, used, limit, enforced: &str| {
            [what.to_owned(), used, limit, enforced.to_owned()]
        };
        let seconds = self.cpu.used_micros.map(|us| us as f64 / 1e6);
        let none = String::new;
        let rows = vec![
            row(
                "CPU time",
                seconds.map_or_else(unknown, |seconds| format!("{seconds:.1}s")),
                format!("{} CPU", self.cpu.count),
                &self.cpu.enforced,
            ),
            row(
                "Memory",
                size(memory.used_bytes),
                size(memory.limit_bytes),
                &memory.enforced,
            ),
            row("  page cache", size(memory.cache_bytes), none(), ""),
            row("  at most", size(memory.peak_bytes), none(), ""),
            row("  killed for it", count(memory.oom_kills), none(), ""),
            row(
                "Processes",
                count(self.processes.count),
                count(self.processes.max),
                &self.processes.enforced,
            ),
            row(
                "Disk",
                size(self.disk.used_bytes),
                size(self.disk.limit_bytes),
                &self.disk.enforced,
            ),
            row(
                "Network sent",
                size(Some(self.network.sent_bytes)),
                none(),
                "",
            ),
            row(
                "Network received",
                size(Some(self.network.received_bytes)),
                none(),
                "",
            ),
        ];
        table(["WHAT", "USED", "LIMIT", "ENFORCED"], rows)
    }
}

fn unknown() -> String {
    "-".to_owned()
}

fn count(number: Option<u64>) -> String {
    number.map_or_else(unknown, |number| number.to_string())
}

/// A number of bytes in the largest unit that leaves a whole part.
fn size(bytes: Option<u64>) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let Some(bytes) = bytes else {
        return unknown();
    };
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, UNITS[0]);
    for larger in &UNITS[1..] {
        if value >= 1024.0 {
            (value, unit) = (value / 1024.0, larger);
        }
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_figures_are_dashes_and_sizes_are_readable() {
        let reply = serde_json::json!({
            "cpu": {"usedMicros": 1_500_000, "count": 2, "enforced": "sandbox"},
            "memory": {"usedBytes": 1_572_864, "peakBytes": null, "limitBytes": 1_073_741_824,
                       "oomKills": 3, "enforced": "sandbox"},
            "disk": {"usedBytes": null, "limitBytes": null, "enforced": "none"},
            "network": {"sentBytes": 10, "receivedBytes": 2048},
        });
        let stats: Stats = decode(reply).unwrap();
        let expected = "\
WHAT              USED     LIMIT    ENFORCED
CPU time          1.5s     2 CPU    sandbox
Memory            1.5 MiB  1.0 GiB  sandbox
  page cache      -
  at most         -
  killed for it   3
Processes         -        -
Disk              -        -        none
Network sent      10 B
Network received  2.0 KiB";
        assert_eq!(stats.describe(), expected);
    }
}
