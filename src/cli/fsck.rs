//! `oc fsck`: whether the disks of a stopped server and its records agree.

use std::path::PathBuf;

use clap::Args;

use super::block_on;
use super::error::CliError;
use super::output::{Output, printable};
use crate::actors::{FsckReport, fsck};
use crate::config::default_data_dir;
use crate::events::{DataFolder, EventLog, LogOptions};
use crate::sandbox::private_mounts;

/// Exit code when something is wrong and was not put right.
const EXIT_FAULTS: u8 = 2;

/// `oc fsck`
#[derive(Args)]
pub struct Fsck {
    /// The server's data folder [default: the one `oc serve` uses]
    #[arg(long, env = "OC_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Remove what no record wants and what was never finished
    #[arg(long)]
    repair: bool,
}

impl Fsck {
    /// Checks and prints; the exit code.
    pub(super) fn run(self, output: Output) -> Result<u8, CliError> {
        let data_dir = self.data_dir.or_else(default_data_dir).ok_or_else(|| {
            CliError::Usage("no data folder: HOME is not set; pass --data-dir".to_owned())
        })?;
        let dir = DataFolder::new(&data_dir).log();
        // Opening would make a log where there is none.
        if !dir.join("log.db").is_file() {
            let text = format!("{} is no server's data folder", data_dir.display());
            return Err(CliError::Usage(text));
        }
        let disks = data_dir.join("sandboxes");
        // A pool of disks is mounted for this process alone. Nothing has started a thread yet.
        private_mounts(&disks, false).map_err(|error| {
            CliError::Usage(format!("cannot keep mounts to this process: {error}"))
        })?;
        let report = block_on(async {
            // Held to the end, so that no server starts meanwhile.
            let log = EventLog::open(LogOptions { dir })
                .map_err(|error| CliError::Damaged(error.to_string()))?;
            let report = fsck(&log, &disks, self.repair).await;
            log.close().await;
            report.map_err(|error| CliError::Damaged(error.to_string()))
        })??;
        let mut reply =
            serde_json::to_value(&report).map_err(|error| CliError::BadReply(error.to_string()))?;
        reply["clean"] = report.is_clean().into();
        output.reply(&reply, || told(&report, self.repair))?;
        Ok(match report.is_clean() {
            true => 0,
            false => EXIT_FAULTS,
        })
    }
}

fn told(report: &FsckReport, repair: bool) -> String {
    let mut lines = Vec::new();
    for finding in &report.findings {
        let mark = match finding.repaired {
            true => "removed  ",
            false => "FAULT    ",
        };
        let subject = finding.subject.as_ref();
        let subject = subject.map(|id| format!("{id}: ")).unwrap_or_default();
        lines.push(format!(
            "{mark}{subject}{} ({}), {} MB: {}",
            finding.fault.words(),
            printable(&finding.detail),
            megabytes(finding.taken_bytes),
            printable(&finding.path.display().to_string()),
        ));
    }
    lines.extend(
        report
            .notes
            .iter()
            .map(|note| format!("note     {}", printable(note))),
    );
    lines.push(format!(
        "{} disks of sandboxes take {} MB, {} checkpoints {} MB, templates {} MB (blocks that are \
         shared are counted more than once).",
        report.sandboxes,
        megabytes(report.sandboxes_bytes),
        report.checkpoints,
        megabytes(report.checkpoints_bytes),
        megabytes(report.templates_bytes),
    ));
    let left = report.findings.iter().filter(|finding| !finding.repaired);
    lines.push(match (left.count(), repair) {
        (0, _) => "Disks and records agree.".to_owned(),
        (count, false) => format!("{count} faults; --repair removes what can go."),
        (count, true) => format!("{count} faults are left, which nothing here can mend."),
    });
    lines.join("\n")
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1_048_576.0)
}
