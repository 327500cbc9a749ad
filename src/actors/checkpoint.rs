//! A checkpoint's life: asked for, ready or failed, forked from, deleted.
//!
//! ```text
//!            requested              ready
//!  Absent ─────────────▶ Processing ──────▶ Ready ──deleted──▶ Deleted
//!                            │ failed                             ▲
//!                            └────────▶ Failed ───────deleted─────┘
//! ```
//!
//! Invariants: an outcome is recorded once; a failed or deleted one has given its name back; patches
//! belong to a ready one and are numbered upwards.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::aggregate::{Aggregate, Decision, NameChange, Reject};
use super::names;
use crate::events::StreamId;
use crate::events::families::{
    CheckpointDeleted, CheckpointEvent, CheckpointFailed, CheckpointPublished, CheckpointReady,
    CheckpointRequested, PatchAdded, PatchDeleted,
};
use crate::ids::{CheckpointId, OrgId, PatchId, SandboxId};

const TAKEN: &str = "checkpoint name already exists for this sandbox";
const NAME_CHARS_MAX: usize = 128;
/// Longest script of a patch, in bytes.
const SCRIPT_BYTES_MAX: usize = 256 * 1024;
const DESCRIPTION_BYTES_MAX: usize = 4096;
/// Most patches of one checkpoint.
const PATCHES_MAX: usize = 100;

/// Where a checkpoint is in its life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CheckpointPhase {
    /// Nothing happened yet.
    #[default]
    Absent,
    /// The disk is being copied.
    Processing,
    /// It can be used.
    Ready,
    /// There is nothing to use.
    Failed(String),
    /// It was there.
    Deleted,
}

/// What can be asked of a checkpoint.
#[derive(Debug)]
pub enum CheckpointCommand {
    /// Open the intent to copy.
    Request(Box<CheckpointRequested>),
    /// Outcome: copied.
    Ready(CheckpointReady),
    /// Outcome: not copied.
    Fail(CheckpointFailed),
    /// Be gone.
    Delete {
        /// Who asks.
        org: OrgId,
        /// Now.
        at: OffsetDateTime,
    },
    /// Let other organizations fork it, or no more.
    Publish {
        /// Who asks.
        org: OrgId,
        /// They may.
        public: bool,
        /// Now.
        at: OffsetDateTime,
    },
    /// Add a patch behind the others.
    AddPatch {
        /// Who asks.
        org: OrgId,
        /// Its id.
        id: PatchId,
        /// What runs.
        script: String,
        /// Free text.
        description: String,
        /// Now.
        at: OffsetDateTime,
    },
    /// Take a patch away.
    DeletePatch {
        /// Who asks.
        org: OrgId,
        /// Which one.
        id: PatchId,
        /// Now.
        at: OffsetDateTime,
    },
}

/// A checkpoint's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// Set once it was asked for.
    pub details: Option<CheckpointRequested>,
    /// Where it is.
    pub phase: CheckpointPhase,
    /// What it takes of the host's disk.
    pub size_bytes: u64,
    /// For how long its sandbox stood still.
    pub paused_us: u64,
    /// Other organizations may fork it.
    pub public: bool,
    /// Its patches, in order.
    pub patches: Vec<PatchAdded>,
    /// When it failed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub failed_at: Option<OffsetDateTime>,
}

impl Checkpoint {
    /// The stream of a checkpoint.
    pub fn stream(id: &CheckpointId) -> StreamId {
        StreamId::of("checkpoint", id)
    }

    /// The checkpoint as its owner may see it.
    pub fn visible_to(&self, org: &OrgId) -> Result<&CheckpointRequested, Reject> {
        match &self.details {
            Some(details) if details.org_id == *org && self.is_there() => Ok(details),
            _ => Err(Reject::not_found("checkpoint")),
        }
    }

    /// The same for whoever wants to fork it.
    pub fn forkable_by(&self, org: &OrgId) -> Result<&CheckpointRequested, Reject> {
        match &self.details {
            Some(details) if self.public && self.is_there() => Ok(details),
            _ => self.visible_to(org),
        }
    }

    /// Whether anything is left of it on the host's disk, or about to be.
    pub fn is_there(&self) -> bool {
        !matches!(
            self.phase,
            CheckpointPhase::Absent | CheckpointPhase::Deleted
        )
    }

    /// Whether it counts against its sandbox's limits.
    pub fn counts(&self) -> bool {
        matches!(
            self.phase,
            CheckpointPhase::Processing | CheckpointPhase::Ready
        )
    }

    /// The status that clients see.
    pub fn status(&self) -> &'static str {
        match self.phase {
            CheckpointPhase::Processing => "processing",
            CheckpointPhase::Ready => "ready",
            _ => "failed",
        }
    }

    /// Frees the name, unless a failure has already.
    fn release(&self) -> Vec<NameChange> {
        let holds = self.counts();
        let details = self.details.iter().filter(|_| holds);
        details
            .map(|details| NameChange::Release {
                name: name_stream(&details.org_id, &details.config.sandbox_id, &details.name),
            })
            .collect()
    }

    fn ready_of(&self, org: &OrgId) -> Result<(), Reject> {
        self.visible_to(org)?;
        match self.phase {
            CheckpointPhase::Ready => Ok(()),
            _ => Err(Reject::invalid("checkpoint not ready")),
        }
    }
}

fn name_stream(org: &OrgId, sandbox: &SandboxId, name: &str) -> StreamId {
    names::stream("checkpoint", org, &format!("{sandbox}/{name}"))
}

impl Aggregate for Checkpoint {
    type Command = CheckpointCommand;
    type Event = CheckpointEvent;
    const STATE_VERSION: u32 = 2;

    fn decide(&self, command: &CheckpointCommand) -> Result<Decision<CheckpointEvent>, Reject> {
        use CheckpointCommand as C;
        Ok(match command {
            C::Request(requested) => {
                check_name(&requested.name)?;
                let name = name_stream(
                    &requested.org_id,
                    &requested.config.sandbox_id,
                    &requested.name,
                );
                Decision {
                    events: vec![CheckpointEvent::Requested((**requested).clone())],
                    names: vec![NameChange::Claim { name, taken: TAKEN }],
                }
            }
            C::Ready(ready) if self.phase == CheckpointPhase::Processing => {
                CheckpointEvent::Ready(ready.clone()).into()
            }
            C::Fail(failed) if self.phase == CheckpointPhase::Processing => Decision {
                events: vec![CheckpointEvent::Failed(failed.clone())],
                names: self.release(),
            },
            // It was deleted meanwhile.
            C::Ready(_) | C::Fail(_) => Decision::nothing(),
            C::Delete { org, at } => {
                self.visible_to(org)?;
                Decision {
                    events: vec![CheckpointEvent::Deleted(CheckpointDeleted { at: *at })],
                    names: self.release(),
                }
            }
            C::Publish { org, public, at } => {
                self.ready_of(org)?;
                match self.public == *public {
                    true => Decision::nothing(),
                    false => CheckpointEvent::Published(CheckpointPublished {
                        public: *public,
                        at: *at,
                    })
                    .into(),
                }
            }
            C::AddPatch {
                org,
                id,
                script,
                description,
                at,
            } => {
                self.ready_of(org)?;
                check_patch(script, description)?;
                if self.patches.len() >= PATCHES_MAX {
                    return Err(Reject::invalid(format!(
                        "a checkpoint has at most {PATCHES_MAX} patches"
                    )));
                }
                let last = self.patches.last().map_or(0, |patch| patch.sequence);
                CheckpointEvent::PatchAdded(PatchAdded {
                    patch_id: *id,
                    sequence: last.saturating_add(1),
                    script: script.clone(),
                    description: description.clone(),
                    at: *at,
                })
                .into()
            }
            C::DeletePatch { org, id, at } => {
                self.visible_to(org)?;
                if !self.patches.iter().any(|patch| patch.patch_id == *id) {
                    return Err(Reject::not_found("patch"));
                }
                CheckpointEvent::PatchDeleted(PatchDeleted {
                    patch_id: *id,
                    at: *at,
                })
                .into()
            }
        })
    }

    fn apply(&mut self, event: &CheckpointEvent, _revision: u64) {
        match event {
            CheckpointEvent::Requested(requested) => {
                self.details = Some(requested.clone());
                self.phase = CheckpointPhase::Processing;
            }
            CheckpointEvent::Ready(ready) => {
                self.phase = CheckpointPhase::Ready;
                self.size_bytes = ready.size_bytes;
                self.paused_us = ready.paused_us;
            }
            CheckpointEvent::Failed(failed) => {
                self.phase = CheckpointPhase::Failed(failed.reason.clone());
                self.failed_at = Some(failed.at);
            }
            CheckpointEvent::Deleted(_) => {
                self.phase = CheckpointPhase::Deleted;
                self.patches.clear();
            }
            CheckpointEvent::Published(published) => self.public = published.public,
            CheckpointEvent::PatchAdded(added) => self.patches.push(added.clone()),
            CheckpointEvent::PatchDeleted(deleted) => {
                self.patches
                    .retain(|patch| patch.patch_id != deleted.patch_id);
            }
        }
    }
}

fn check_name(name: &str) -> Result<(), Reject> {
    if name.is_empty() {
        return Err(Reject::invalid("name is required"));
    }
    if name.chars().count() > NAME_CHARS_MAX || name.chars().any(char::is_control) {
        return Err(Reject::invalid(format!(
            "name must be at most {NAME_CHARS_MAX} printable characters"
        )));
    }
    Ok(())
}

fn check_patch(script: &str, description: &str) -> Result<(), Reject> {
    if script.trim().is_empty() {
        return Err(Reject::invalid("script is required"));
    }
    if script.len() > SCRIPT_BYTES_MAX || script.contains('\0') {
        return Err(Reject::invalid(format!(
            "script must be at most {SCRIPT_BYTES_MAX} bytes, without NUL"
        )));
    }
    if description.len() > DESCRIPTION_BYTES_MAX {
        return Err(Reject::invalid(format!(
            "description must be at most {DESCRIPTION_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}
