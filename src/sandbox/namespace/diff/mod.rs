//! What differs between the disks of two checkpoints, told line by line as it is found.
//!
//! ```text
//! {"path":"/etc/x","change":"changed","what":["size","content"],"from":{…},"to":{…}}
//! {"path":"/srv/\u{fffd}","pathBase64":"L3Nydi//","change":"added","to":{…}}
//! {"path":"/deep","change":"unknown","reason":"…"}
//! {"progress":{"entries":120000}}
//! {"summary":{"added":1,"removed":0,"changed":1,"unknown":1,"complete":true}}
//! ```
//!
//! It is done by a process of its own (this program, with `diff`), which ends with whoever asked.
//!
//! Invariants: the disks are mounted read-only, where nobody else sees them, and nothing that lies on
//! them is run or followed; at most [`walk::NAMES_MAX`] names of a folder are held, and no more than
//! [`walk::DEPTH_MAX`] folders are open; contents are compared piece by piece; what can't be compared is
//! told as `unknown`; a comparison that takes longer than [`TIME_MAX`] ends as not complete.

mod asking;
mod content;
mod told;
mod walk;

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use asking::{Differences, turns};

use super::merged::{Folder, Layer};
use super::plan::{PLAN_BYTES_MAX, Plan};
use super::sys::{Step, StepError};
use super::{host_ids, image};
use walk::compare;

/// Longest comparison.
const TIME_MAX: Duration = Duration::from_secs(600);

/// What the process is asked: the folders of two copies.
#[derive(Debug, Serialize, Deserialize)]
pub struct Question {
    pub from: PathBuf,
    pub to: PathBuf,
}

/// Answers the question on standard input on standard output. One empty line comes first, when the
/// disks could be opened.
pub fn diff_main() -> ExitCode {
    match answer() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever asked may be gone.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn answer() -> Result<(), StepError> {
    let mut text = Vec::new();
    let mut asked = io::stdin().lock().take(PLAN_BYTES_MAX);
    asked.read_to_end(&mut text).step("read the question")?;
    let question: Question = serde_json::from_slice(&text)
        .map_err(io::Error::from)
        .step("understand the question")?;
    // Also when nobody reads what is written: the signal ends the process.
    // SAFETY: the call has no preconditions.
    unsafe { libc::alarm(u32::try_from(TIME_MAX.as_secs()).unwrap_or(u32::MAX)) };
    let (from, to) = (Side::open(&question.from)?, Side::open(&question.to)?);
    let mut out = io::BufWriter::with_capacity(content::PIECE_BYTES, io::stdout().lock());
    out.write_all(b"\n").step("answer")?;
    out.flush().step("answer")?;
    compare(&from, &to, TIME_MAX, &mut out).step("answer")
}

/// The disk of one checkpoint.
struct Side {
    root: Folder,
    usr: Folder,
    /// First of the host's ids that own it.
    first: u32,
}

impl Side {
    fn open(copy: &Path) -> Result<Self, StepError> {
        let plan = fs::read(copy.join("plan.json")).step("read the plan of a checkpoint")?;
        let plan: Plan = serde_json::from_slice(&plan)
            .map_err(io::Error::from)
            .step("understand the plan of a checkpoint")?;
        let template = plan.template();
        let file = copy.join("disk.img");
        let disk = match file.exists() {
            true => Layer::below(image::open_read_only(&file)?.as_fd(), "."),
            false => Layer::open(&copy.join("disk")),
        }
        .step("open the disk of a checkpoint")?;
        let folder = |own: &str, lowers: &[&Path]| -> io::Result<Folder> {
            let upper = Layer::below(disk.dir.as_fd(), own)?;
            let lowers = lowers.iter().map(|path| Layer::open(path));
            let layers: io::Result<Vec<_>> = [Ok(upper)].into_iter().chain(lowers).collect();
            Ok(Folder(layers?))
        };
        Ok(Self {
            root: folder("root/upper", &[&template.root]).step("open the layers of /")?,
            usr: folder("usr/upper", &[&template.usr, Path::new("/usr")])
                .step("open the layers of /usr")?,
            first: plan.first_id(),
        })
    }

    /// An owner as the sandbox knows it.
    fn inside(&self, id: u32) -> u32 {
        match id.checked_sub(self.first) {
            Some(own) if own < host_ids::COUNT => own,
            _ => id,
        }
    }
}

#[cfg(test)]
mod tests;
