//! `oc log`: work on the event log of a server that does not run.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::error::CliError;
use super::output::{Output, printable};
use crate::config::default_data_dir;
use crate::events::{DataFolder, RepairReport};

/// Streams that are named in the text form.
const STREAMS_SHOWN: usize = 20;

/// `oc log <command>`
#[derive(Subcommand)]
pub enum Log {
    /// Keep what can be verified of a damaged log, and set the damaged log aside
    ///
    /// For a log that refuses to open. Every commit that verifies from the first one on is copied
    /// into a new log; the damaged one is kept beside it as log.damaged-<time>. Nothing is deleted.
    /// What is dropped was acknowledged once: restore a backup instead if there is a newer one.
    Repair(Repair),
}

/// `oc log repair`
#[derive(Args)]
pub struct Repair {
    /// The server's data folder [default: the one `oc serve` uses]
    #[arg(long, env = "OC_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Only say what would be kept and dropped
    #[arg(long)]
    dry_run: bool,
}

impl Log {
    pub(super) fn run(self, output: Output) -> Result<(), CliError> {
        match self {
            Self::Repair(repair) => repair.run(output),
        }
    }
}

impl Repair {
    fn run(self, output: Output) -> Result<(), CliError> {
        let data_dir = self.data_dir.or_else(default_data_dir).ok_or_else(|| {
            CliError::Usage("no data folder: HOME is not set; pass --data-dir".to_owned())
        })?;
        let folder = DataFolder::new(&data_dir);
        let report = match self.dry_run {
            true => folder.examine(),
            false => folder.repair(),
        };
        let report = report.map_err(|error| CliError::Damaged(error.to_string()))?;
        let dropped = report.dropped.as_ref().map(|dropped| {
            json!({
                "firstCommit": dropped.first.0,
                "firstPosition": dropped.first.1,
                "lastCommit": dropped.last.0,
                "lastPosition": dropped.last.1,
                "streams": dropped.streams,
            })
        });
        let reply = json!({
            "log": report.log,
            "commits": report.kept.commit,
            "positions": report.kept.position,
            "chain": hex::encode(report.kept.chain),
            "fault": report.fault,
            "dropped": dropped,
            "aside": report.aside,
        });
        output.reply(&reply, || told(&report, self.dry_run))
    }
}

fn told(report: &RepairReport, dry_run: bool) -> String {
    let mut lines = Vec::new();
    let kept = format!(
        "{} commits, {} events, chain {}",
        report.kept.commit,
        report.kept.position,
        hex::encode(report.kept.chain)
    );
    let Some(fault) = &report.fault else {
        lines.push(format!(
            "The log is whole: {kept}. Nothing was to be repaired."
        ));
        lines.extend(aside(report));
        return lines.join("\n");
    };
    lines.push(format!("Damage: {}", printable(fault)));
    let verb = if dry_run { "Would keep" } else { "Kept" };
    lines.push(format!("{verb}: {kept}"));
    match &report.dropped {
        None => lines.push("Dropped: nothing that is known of".to_owned()),
        Some(dropped) => {
            let count = dropped.last.1 + 1 - dropped.first.1;
            lines.push(format!(
                "Dropped: {count} events known of, from commit {} (position {}) to commit {} \
                 (position {})",
                dropped.first.0, dropped.first.1, dropped.last.0, dropped.last.1
            ));
            for (stream, events) in dropped.streams.iter().take(STREAMS_SHOWN) {
                lines.push(format!(
                    "  {stream}: {events} events, readable in the damaged log"
                ));
            }
            let more = dropped.streams.len().saturating_sub(STREAMS_SHOWN);
            if more > 0 {
                lines.push(format!("  and {more} more streams (--json names them)"));
            }
        }
    }
    lines.extend(aside(report));
    lines.join("\n")
}

fn aside(report: &RepairReport) -> Option<String> {
    let aside = report.aside.as_ref()?;
    Some(format!("The damaged log is kept in {}", aside.display()))
}
