//! An image's life: asked for, built or failed, used, deleted.
//!
//! ```text
//!            requested             ready
//!  Absent ─────────────▶ Building ───────▶ Ready ──deleted──▶ Deleted
//!                           │ failed                             ▲
//!                           └───────▶ Failed ────────deleted─────┘
//! ```
//!
//! Invariants: an outcome is recorded once; a failed or deleted one has given its name back; results
//! of steps are referred to before they are there, so that nobody removes them meanwhile.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::actors::aggregate::{Aggregate, Decision, NameChange, Reject};
use crate::actors::names;
use crate::events::StreamId;
use crate::events::families::{
    ImageDeleted, ImageEvent, ImageFailed, ImageLayerAdded, ImageReady, ImageRequested, ImageUsed,
};
use crate::ids::{ImageId, OrgId};

const TAKEN: &str = "snapshot name already exists";
const NAME_CHARS_MAX: usize = 128;

/// Where an image is in its life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ImagePhase {
    /// Nothing happened yet.
    #[default]
    Absent,
    /// Its steps run.
    Building,
    /// Sandboxes can be made from it.
    Ready,
    /// There is nothing to make sandboxes from.
    Failed(String),
    /// It was there.
    Deleted,
}

/// What can be asked of an image.
#[derive(Debug)]
pub enum ImageCommand {
    /// Open the intent to build.
    Request(Box<ImageRequested>),
    /// Refer to a step's result.
    AddLayer(ImageLayerAdded),
    /// Outcome: built.
    Ready(ImageReady),
    /// Outcome: not built.
    Fail(ImageFailed),
    /// A sandbox is made from it.
    Use {
        /// Who asks.
        org: OrgId,
        /// Now.
        at: OffsetDateTime,
    },
    /// Be gone.
    Delete {
        /// Who asks.
        org: OrgId,
        /// Now.
        at: OffsetDateTime,
    },
}

/// An image's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Set once it was asked for.
    pub details: Option<ImageRequested>,
    /// Where it is.
    pub phase: ImagePhase,
    /// Results of steps that it uses, in order.
    pub layers: Vec<ImageLayerAdded>,
    /// When it was ready.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ready_at: Option<OffsetDateTime>,
    /// When a sandbox was last made from it.
    #[serde(with = "time::serde::rfc3339::option")]
    pub used_at: Option<OffsetDateTime>,
}

impl Image {
    /// The stream of an image.
    pub fn stream(id: &ImageId) -> StreamId {
        StreamId::of("image", id)
    }

    /// The image as its owner may see it.
    pub fn visible_to(&self, org: &OrgId) -> Result<&ImageRequested, Reject> {
        match &self.details {
            Some(details) if details.org_id == *org && self.is_there() => Ok(details),
            _ => Err(Reject::not_found("snapshot")),
        }
    }

    /// Whether somebody may still want what it refers to.
    pub fn is_there(&self) -> bool {
        !matches!(self.phase, ImagePhase::Absent | ImagePhase::Deleted)
    }

    /// The status that clients see.
    pub fn status(&self) -> &'static str {
        match self.phase {
            ImagePhase::Building => "building",
            ImagePhase::Ready => "ready",
            _ => "failed",
        }
    }

    /// When it was last of use to anybody.
    pub fn last_used(&self) -> Option<OffsetDateTime> {
        self.used_at
            .or(self.details.as_ref().map(|details| details.at))
    }

    /// Its name, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.details.as_ref()?.name.as_deref()
    }

    /// Frees the name, unless a failure has already.
    fn release(&self) -> Vec<NameChange> {
        let holds = matches!(self.phase, ImagePhase::Building | ImagePhase::Ready);
        let details = self.details.iter().filter(|_| holds);
        details
            .filter_map(|details| {
                let name = name_stream(&details.org_id, details.name.as_ref()?);
                Some(NameChange::Release { name })
            })
            .collect()
    }
}

fn name_stream(org: &OrgId, name: &str) -> StreamId {
    names::stream("snapshot", org, name)
}

impl Aggregate for Image {
    type Command = ImageCommand;
    type Event = ImageEvent;
    const STATE_VERSION: u32 = 1;

    fn decide(&self, command: &ImageCommand) -> Result<Decision<ImageEvent>, Reject> {
        use ImageCommand as C;
        let building = self.phase == ImagePhase::Building;
        Ok(match command {
            C::Request(requested) => {
                let mut decision = Decision::from(ImageEvent::Requested((**requested).clone()));
                if let Some(name) = &requested.name {
                    check_name(name)?;
                    let name = name_stream(&requested.org_id, name);
                    decision
                        .names
                        .push(NameChange::Claim { name, taken: TAKEN });
                }
                decision
            }
            C::AddLayer(layer) if building => {
                match self
                    .layers
                    .iter()
                    .any(|one| one.checkpoint_id == layer.checkpoint_id)
                {
                    true => Decision::nothing(),
                    false => ImageEvent::LayerAdded(layer.clone()).into(),
                }
            }
            // It was deleted meanwhile: whoever builds it has to stop.
            C::AddLayer(_) => return Err(Reject::not_found("snapshot")),
            C::Ready(ready) if building => ImageEvent::Ready(ready.clone()).into(),
            C::Fail(failed) if building => Decision {
                events: vec![ImageEvent::Failed(failed.clone())],
                names: self.release(),
            },
            C::Ready(_) | C::Fail(_) => Decision::nothing(),
            C::Use { org, at } => {
                self.visible_to(org)?;
                match self.phase {
                    ImagePhase::Ready => ImageEvent::Used(ImageUsed { at: *at }).into(),
                    _ => return Err(Reject::invalid("snapshot not ready")),
                }
            }
            C::Delete { org, at } => {
                self.visible_to(org)?;
                Decision {
                    events: vec![ImageEvent::Deleted(ImageDeleted { at: *at })],
                    names: self.release(),
                }
            }
        })
    }

    fn apply(&mut self, event: &ImageEvent, _revision: u64) {
        match event {
            ImageEvent::Requested(requested) => {
                self.details = Some(requested.clone());
                self.phase = ImagePhase::Building;
            }
            ImageEvent::LayerAdded(layer) => self.layers.push(layer.clone()),
            ImageEvent::Ready(ready) => {
                self.phase = ImagePhase::Ready;
                self.ready_at = Some(ready.at);
            }
            ImageEvent::Failed(failed) => self.phase = ImagePhase::Failed(failed.reason.clone()),
            ImageEvent::Used(used) => self.used_at = Some(used.at),
            ImageEvent::Deleted(_) => {
                self.phase = ImagePhase::Deleted;
                self.layers.clear();
                if let Some(details) = &mut self.details {
                    details.manifest.clear();
                }
            }
        }
    }
}

/// Names that stand in a path as they are.
fn check_name(name: &str) -> Result<(), Reject> {
    if name.is_empty() {
        return Err(Reject::invalid("name is required"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
    if name.len() > NAME_CHARS_MAX || !name.chars().all(plain) || matches!(name, "." | "..") {
        return Err(Reject::invalid(format!(
            "name must be 1 to {NAME_CHARS_MAX} characters of A-Z a-z 0-9 . _ -"
        )));
    }
    Ok(())
}
