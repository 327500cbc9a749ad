//! Whether the disks of this machine and the records agree, for a server that does not run.
//!
//! Invariants: the records decide what is to be there; nothing is destroyed but what no record wants,
//! nobody holds, and can be made again or was never whole; what is missing is told, never made up.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::catalog::Catalog;
use super::checkpoint::CheckpointPhase;
use super::model::Model;
use super::sandbox::Phase;
use crate::events::{EventLog, VerifyError};
use crate::sandbox::{FoundDisk, Inventory, remove_found};

/// By how much what a copy takes may differ from what was recorded: file systems give blocks back
/// that they took in advance.
const TAKEN_DIFFERENCE_BYTES_MAX: u64 = 1 << 20;
const MIB: u64 = 1 << 20;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Fault {
    /// A sandbox's disk, and no sandbox.
    DiskWithoutRecord,
    /// A sandbox, and no disk.
    RecordWithoutDisk,
    /// A copy, and no checkpoint that is ready.
    CopyWithoutRecord,
    /// A checkpoint, and no copy.
    RecordWithoutCopy,
    /// Begun and not finished.
    HalfMade,
    /// A disk of another size than its record says.
    Size,
    /// A template that no disk began with.
    UnusedTemplate,
    /// A plan that can't be read: what the disk needs is unknown.
    Plan,
}

impl Fault {
    /// Whether what is there can go.
    fn can_go(self) -> bool {
        matches!(
            self,
            Self::DiskWithoutRecord
                | Self::CopyWithoutRecord
                | Self::HalfMade
                | Self::UnusedTemplate
        )
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::DiskWithoutRecord => "a disk of no sandbox",
            Self::RecordWithoutDisk => "the disk is missing",
            Self::CopyWithoutRecord => "a copy of no checkpoint",
            Self::RecordWithoutCopy => "the copy is missing",
            Self::HalfMade => "half-made",
            Self::Size => "the size is wrong",
            Self::UnusedTemplate => "a template that nothing uses",
            Self::Plan => "the plan can't be read",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What.
    pub fault: Fault,
    /// A sandbox's or a checkpoint's id, or nothing.
    pub subject: Option<String>,
    /// Where.
    pub path: PathBuf,
    /// What was found.
    pub detail: String,
    /// What it takes of the host's disk, in bytes.
    pub taken_bytes: u64,
    /// It is gone now.
    pub repaired: bool,
}

/// What a check has found.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FsckReport {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What is unusual and no fault.
    pub notes: Vec<String>,
    /// How many disks of sandboxes there are.
    pub sandboxes: usize,
    /// What they take, in bytes; shared blocks are counted more than once.
    pub sandboxes_bytes: u64,
    /// How many copies there are.
    pub checkpoints: usize,
    /// What they take.
    pub checkpoints_bytes: u64,
    /// What templates and empty file systems take.
    pub templates_bytes: u64,
}

impl FsckReport {
    /// Whether nothing is wrong (any more).
    pub fn is_clean(&self) -> bool {
        self.findings.iter().all(|finding| finding.repaired)
    }
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// The records can't be read.
    #[error(transparent)]
    Log(#[from] VerifyError),
    /// Some events are not understood, so what they say of disks is not known.
    #[error(
        "{0} events of the log are not understood: it was written by a newer version, which alone \
         can tell what may go"
    )]
    Unknown(u64),
    /// The disks can't be looked at.
    #[error("can't look at the disks: {0}")]
    Disks(#[from] std::io::Error),
}

/// Compares the folder of sandboxes `data` with the records in `log`, which holds servers off.
pub async fn fsck(log: &EventLog, data: &Path, repair: bool) -> Result<FsckReport, FsckError> {
    let catalog = Arc::new(Catalog::default());
    catalog.replay(log).await?;
    if repair && catalog.skipped() > 0 {
        return Err(FsckError::Unknown(catalog.skipped()));
    }
    // As in the plans: what a disk needs is found by comparing paths.
    let data = &data.canonicalize()?;
    let inventory = Inventory::take(data)?;
    let mut report = catalog.read(|model| compare(model, &inventory, data));
    let going = report.findings.iter_mut().filter(|_| repair);
    for finding in going.filter(|finding| finding.fault.can_go()) {
        match remove_found(&finding.path) {
            Ok(()) => finding.repaired = true,
            Err(error) => finding.detail = format!("{}; not removed: {error}", finding.detail),
        }
    }
    Ok(report)
}

fn compare(model: &Model, inventory: &Inventory, data: &Path) -> FsckReport {
    let mut report = FsckReport {
        sandboxes: inventory.sandboxes.len(),
        sandboxes_bytes: taken(inventory.sandboxes.values()),
        checkpoints: inventory.copies.len(),
        checkpoints_bytes: taken(inventory.copies.values()),
        templates_bytes: inventory.templates_bytes,
        ..FsckReport::default()
    };
    sandboxes(model, inventory, data, &mut report);
    checkpoints(model, inventory, data, &mut report);
    for loose in &inventory.half_made {
        let detail = "somebody began it and did not finish".to_owned();
        report.add(
            Fault::HalfMade,
            None,
            (&loose.path, loose.taken_bytes),
            detail,
        );
    }
    for loose in &inventory.unused_templates {
        let detail = "no disk began with it".to_owned();
        report.add(
            Fault::UnusedTemplate,
            None,
            (&loose.path, loose.taken_bytes),
            detail,
        );
    }
    for path in &inventory.unknown {
        report
            .notes
            .push(format!("{}: not known, left alone", path.display()));
    }
    report
}

fn taken<'a>(disks: impl Iterator<Item = &'a FoundDisk>) -> u64 {
    disks.map(|disk| disk.taken_bytes).sum()
}

fn sandboxes(model: &Model, inventory: &Inventory, data: &Path, report: &mut FsckReport) {
    for (id, disk) in &inventory.sandboxes {
        let (subject, place) = (Some(id.to_string()), (&disk.folder, disk.taken_bytes));
        let row = model.sandboxes.get(id);
        let phase = row.map(|row| &row.phase);
        if phase.is_none_or(|phase| phase.is_final() || *phase == Phase::Absent) {
            let mut detail = match phase {
                None | Some(Phase::Absent) => "no record has it".to_owned(),
                _ => "the sandbox is gone".to_owned(),
            };
            if disk.held {
                detail += "; its supervisor lives: a server ends it at its next start";
            }
            report.add(Fault::DiskWithoutRecord, subject, place, detail);
            continue;
        }
        if disk.is_there
            && let Some(why) = &disk.bad_plan
        {
            let detail = format!("plan.json: {why}");
            report.add(Fault::Plan, subject.clone(), place, detail);
        }
        let details = row.and_then(|row| row.details.as_ref());
        let wanted = details.map(|details| u64::from(details.disk_mb) * MIB);
        report.size(disk, wanted, subject);
    }
    for (id, row) in &model.sandboxes {
        let subject = Some(id.to_string());
        match &row.phase {
            Phase::Starting(_) if row.started_at.is_none() => {
                report.notes.push(format!(
                    "{id}: its start is not finished; a server undoes it"
                ));
            }
            Phase::Stopping(_) => {
                report
                    .notes
                    .push(format!("{id}: its end is not finished; a server ends it"));
            }
            Phase::Starting(_) | Phase::Running | Phase::Hibernating(_) | Phase::Hibernated => {
                let disk = inventory.sandboxes.get(id);
                if disk.is_none_or(|disk| !disk.is_there) {
                    let detail = "what it had written is lost; it would start on an empty disk";
                    let path = data.join(id.as_str());
                    report.add(
                        Fault::RecordWithoutDisk,
                        subject,
                        (&path, 0),
                        detail.to_owned(),
                    );
                }
            }
            _ => {}
        }
    }
}

fn checkpoints(model: &Model, inventory: &Inventory, data: &Path, report: &mut FsckReport) {
    for (id, copy) in &inventory.copies {
        let (subject, place) = (Some(id.to_string()), (&copy.folder, copy.taken_bytes));
        let row = model.checkpoints.get(id);
        let ready = row.filter(|row| row.phase == CheckpointPhase::Ready);
        let Some(ready) = ready else {
            let detail = match row.map(|row| &row.phase) {
                None | Some(CheckpointPhase::Absent) => "no record has it",
                Some(CheckpointPhase::Deleted) => "the checkpoint is deleted",
                Some(CheckpointPhase::Failed(_)) => "the checkpoint has failed",
                _ => "the server ended before it was recorded as ready",
            };
            report.add(Fault::CopyWithoutRecord, subject, place, detail.to_owned());
            continue;
        };
        if let Some(why) = &copy.bad_plan {
            let detail = format!("plan.json: {why}");
            report.add(Fault::Plan, subject.clone(), place, detail);
        }
        let details = ready.details.as_ref();
        let wanted = details.map(|details| u64::from(details.config.disk_mb) * MIB);
        report.size(copy, wanted, subject.clone());
        let differ = copy.taken_bytes.abs_diff(ready.size_bytes);
        if copy.is_there && differ > TAKEN_DIFFERENCE_BYTES_MAX.max(ready.size_bytes / 8) {
            let detail = format!(
                "it takes {} bytes, recorded are {}",
                copy.taken_bytes, ready.size_bytes
            );
            report.add(Fault::Size, subject, place, detail);
        }
    }
    for (id, row) in &model.checkpoints {
        let copy = inventory.copies.get(id);
        match row.phase {
            CheckpointPhase::Ready if copy.is_none_or(|copy| !copy.is_there) => {
                let path = data.join(".checkpoints").join(id.to_string());
                let detail = "it can't be forked or restored; delete it".to_owned();
                let subject = Some(id.to_string());
                report.add(Fault::RecordWithoutCopy, subject, (&path, 0), detail);
            }
            CheckpointPhase::Processing => {
                report
                    .notes
                    .push(format!("{id}: not finished; a server records it as failed"));
            }
            _ => {}
        }
    }
}

impl FsckReport {
    fn add(
        &mut self,
        fault: Fault,
        subject: Option<String>,
        (path, taken_bytes): (&PathBuf, u64),
        detail: String,
    ) {
        self.findings.push(Finding {
            fault,
            subject,
            path: path.clone(),
            detail,
            taken_bytes,
            repaired: false,
        });
    }

    /// A disk with a file system of its own has the size that was recorded.
    fn size(&mut self, disk: &FoundDisk, wanted: Option<u64>, subject: Option<String>) {
        if let (Some(shown), Some(wanted)) = (disk.shown_bytes, wanted)
            && shown != wanted
        {
            let detail = format!("it shows {shown} bytes, recorded are {wanted}");
            self.add(
                Fault::Size,
                subject,
                (&disk.folder, disk.taken_bytes),
                detail,
            );
        }
    }
}
