//! A sandbox's life as intents and outcomes.
//!
//! ```text
//!            created            started         hibernate           hibernated
//!  Absent ───────────▶ Starting ───────▶ Running ─────────▶ Hibernating ────────▶ Hibernated
//!                       │ ▲  ▲ restart,     │ │                                      │
//!          start_failed │ │  │ reboot       │ └─failed──▶ Failed                     │
//!                       ▼ │  └──────────────┘               │                        │
//!            NeverStarted └──────────── wake ───────────────┴────────────────────────┘
//!
//!  any but the final ones ──stop_requested──▶ Stopping ──stopped──▶ Stopped
//! ```
//!
//! Invariants: at most one intent is open; an outcome is recorded only for the open intent, so a
//! late or repeated one changes nothing; `Stopped` and `NeverStarted` are final and hold no secrets.
//! A start that fails takes a sandbox that slept back to sleep, and one that never ran away.

mod command;
pub mod scaling;
mod sleep;
pub mod tags;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use ulid::Ulid;

use super::aggregate::{Aggregate, Decision, Reject};
use crate::events::families::{
    Patched, SandboxCreated, SandboxEvent, SandboxFailed, SandboxSealed, SealedEntry,
    SecretRotated, SecretTaken, StartCause, StartFailed, StartRequested, Started, StopRequested,
    Stopped, TimeoutSet,
};
use crate::events::{Branched, StreamId};
use crate::ids::{CheckpointId, OrgId, SandboxId};

pub use command::SandboxCommand;
use scaling::Scaling;
pub use sleep::Slept;
use tags::Tags;

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Nothing happened yet.
    #[default]
    Absent,
    /// The intent to run is open.
    Starting(Ulid),
    /// It runs.
    Running,
    /// The intent to sleep is open.
    Hibernating(Ulid),
    /// It sleeps.
    Hibernated,
    /// It stopped by itself; the disk is kept.
    Failed(String),
    /// The intent to be gone is open.
    Stopping(Ulid),
    /// Gone.
    Stopped,
    /// Its creation failed as a whole; nobody was told of it.
    NeverStarted,
}

impl Phase {
    /// The status that clients see, or `None` when there is nothing for them to see.
    pub fn status(&self) -> Option<&'static str> {
        match self {
            Self::Absent | Self::NeverStarted => None,
            Self::Starting(_) | Self::Running | Self::Hibernating(_) => Some("running"),
            Self::Hibernated => Some("hibernated"),
            Self::Failed(_) => Some("error"),
            Self::Stopping(_) | Self::Stopped => Some("stopped"),
        }
    }

    /// Whether nothing can happen to it any more.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Stopped | Self::NeverStarted)
    }

    /// Whether it uses memory and processor time, or is about to.
    pub fn is_live(&self) -> bool {
        matches!(
            self,
            Self::Starting(_) | Self::Running | Self::Hibernating(_)
        )
    }
}

/// A token whose secret was revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadToken {
    /// The secret's name.
    pub name: String,
    /// What still stands in the sandbox.
    pub token: String,
}

/// How far the patches of a sandbox's checkpoint have run in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchState {
    /// Place of the last one that succeeded.
    pub sequence: u32,
    /// Why the one after it failed.
    pub error: Option<String>,
}

/// A sandbox's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Set once it exists; the timeout in it is the present one.
    pub details: Option<SandboxCreated>,
    /// Its secrets; dropped when it is gone.
    pub sealed: Option<SandboxSealed>,
    /// Tokens of secrets that were taken from it.
    pub revoked: Vec<DeadToken>,
    /// Where it is.
    pub phase: Phase,
    /// Why it is starting, or was last started.
    pub cause: StartCause,
    /// The checkpoint whose disk it is to have before it starts.
    pub restoring: Option<CheckpointId>,
    /// Which patches of its checkpoint ran in it.
    pub patched: PatchState,
    /// How it sleeps, or slept before it is up again.
    pub slept: Option<Slept>,
    /// What was said about its size since it was made.
    pub scaling: Scaling,
    /// Its labels.
    pub tags: Tags,
    /// When it first ran.
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    /// Revision of the last event about its secrets: of two policies, the one with the higher is
    /// the newer.
    pub sealed_revision: u64,
}

impl Sandbox {
    /// The stream of a sandbox.
    pub fn stream(id: &SandboxId) -> StreamId {
        StreamId::of("sandbox", id)
    }

    /// The sandbox as `org` may see it.
    pub fn visible_to(&self, org: &OrgId) -> Result<&SandboxCreated, Reject> {
        match &self.details {
            Some(details) if details.org_id == *org && self.phase.status().is_some() => Ok(details),
            _ => Err(Reject::not_found("sandbox")),
        }
    }

    /// Whether it is `org`'s to use: what only builds an image is nobody's.
    pub fn is_of(&self, org: &OrgId) -> bool {
        let details = self.visible_to(org);
        details.is_ok_and(|details| details.builds.is_none())
    }

    /// The sandbox as `org` may see it, if it runs.
    fn running_of(&self, org: &OrgId) -> Result<&SandboxCreated, Reject> {
        let details = self.visible_to(org)?;
        match self.phase {
            Phase::Running => Ok(details),
            _ => Err(Reject::invalid("sandbox is not running")),
        }
    }

    fn close(&mut self, phase: Phase) {
        self.phase = phase;
        self.sealed = None;
        self.revoked.clear();
        self.slept = None;
    }
}

/// The intent to run.
fn start(intent: Ulid, cause: StartCause, at: OffsetDateTime) -> SandboxEvent {
    SandboxEvent::StartRequested(StartRequested {
        intent,
        cause,
        checkpoint: None,
        at,
    })
}

impl Aggregate for Sandbox {
    type Command = SandboxCommand;
    type Event = SandboxEvent;
    const STATE_VERSION: u32 = 4;

    fn decide(&self, command: &SandboxCommand) -> Result<Decision<SandboxEvent>, Reject> {
        use SandboxCommand as C;
        Ok(match command {
            C::Create {
                created,
                sealed,
                intent,
            } => {
                let at = created.at;
                Decision {
                    events: vec![
                        SandboxEvent::Created((**created).clone()),
                        SandboxEvent::Sealed((**sealed).clone()),
                        start(*intent, StartCause::Created, at),
                    ],
                    names: Vec::new(),
                }
            }
            C::Restart { intent, at } => match self.phase {
                Phase::Running => start(*intent, StartCause::Lost, *at).into(),
                _ => Decision::nothing(),
            },
            C::Reboot {
                org,
                intent,
                hard,
                at,
            } => {
                self.running_of(org)?;
                let cause = match hard {
                    true => StartCause::PowerCycle,
                    false => StartCause::Reboot,
                };
                start(*intent, cause, *at).into()
            }
            C::Restore {
                org,
                intent,
                checkpoint,
                at,
            } => {
                if self.phase != Phase::Hibernated {
                    self.running_of(org)?;
                }
                self.visible_to(org)?;
                SandboxEvent::StartRequested(StartRequested {
                    intent: *intent,
                    cause: StartCause::Restore,
                    checkpoint: Some(*checkpoint),
                    at: *at,
                })
                .into()
            }
            C::Patched {
                sequence,
                error,
                at,
            } => match self.phase.is_final() || *sequence <= self.patched.sequence {
                true => Decision::nothing(),
                false => SandboxEvent::Patched(Patched {
                    sequence: *sequence,
                    error: error.clone(),
                    at: *at,
                })
                .into(),
            },
            C::Hibernate { .. }
            | C::Hibernated { .. }
            | C::HibernateFailed { .. }
            | C::ReleaseMemory { .. }
            | C::Wake { .. } => self.decide_sleep(command)?,
            C::Scale { .. } | C::SetAutoscale { .. } | C::LockScaling { .. } => {
                self.decide_scaling(command)?
            }
            C::SetTags { org, tags, at } => {
                self.visible_to(org)?;
                self.tags.decide(tags, *at)?
            }
            C::Started { intent, limits, at } if self.phase == Phase::Starting(*intent) => {
                SandboxEvent::Started(Started {
                    intent: *intent,
                    limits: limits.clone(),
                    at: *at,
                })
                .into()
            }
            C::StartFailed { intent, reason, at } if self.phase == Phase::Starting(*intent) => {
                let reason = reason.clone();
                SandboxEvent::StartFailed(StartFailed {
                    intent: *intent,
                    reason,
                    at: *at,
                })
                .into()
            }
            // The attempt was overtaken (by a stop): its effect is undone by whoever overtook it.
            C::Started { .. } | C::StartFailed { .. } => {
                return Err(Reject::invalid("sandbox is not running"));
            }
            C::Fail { reason, at } => match self.phase {
                Phase::Running => SandboxEvent::Failed(SandboxFailed {
                    reason: reason.clone(),
                    at: *at,
                })
                .into(),
                _ => Decision::nothing(),
            },
            C::Rotate { entry, at } => self.rotate(entry, *at),
            C::Revoke {
                name,
                layer_id,
                version,
                at,
            } => match self.entry(name, layer_id, *version) {
                Some(_) => SandboxEvent::SecretRevoked(SecretTaken {
                    name: name.clone(),
                    layer_id: layer_id.clone(),
                    at: *at,
                })
                .into(),
                None => Decision::nothing(),
            },
            C::SetTimeout { org, seconds, at } => {
                self.visible_to(org)?;
                let timeout_sec = timeout(*seconds)?;
                if !self.phase.is_live() && self.phase != Phase::Hibernated {
                    return Err(Reject::invalid("sandbox is not running"));
                }
                SandboxEvent::TimeoutSet(TimeoutSet {
                    timeout_sec,
                    at: *at,
                })
                .into()
            }
            C::RequestStop {
                org,
                intent,
                reason,
                at,
            } => {
                self.visible_to(org)?;
                match self.phase {
                    Phase::Stopping(_) | Phase::Stopped => Decision::nothing(),
                    _ => SandboxEvent::StopRequested(StopRequested {
                        intent: *intent,
                        reason: *reason,
                        at: *at,
                    })
                    .into(),
                }
            }
            C::Stopped { intent, at } => match self.phase {
                Phase::Stopping(open) if open == *intent => SandboxEvent::Stopped(Stopped {
                    intent: *intent,
                    at: *at,
                })
                .into(),
                _ => Decision::nothing(),
            },
        })
    }

    /// A branch has the settings and layers; it runs nothing yet, and values, the authority's key
    /// and the plain environment are sealed for the parent alone.
    fn branched(&mut self, _at: &Branched) {
        *self = Self {
            details: self.details.take(),
            ..Self::default()
        };
    }

    fn apply(&mut self, event: &SandboxEvent, revision: u64) {
        match event {
            SandboxEvent::Created(created) => self.details = Some(created.clone()),
            SandboxEvent::Sealed(sealed) => {
                self.sealed = Some(sealed.clone());
                self.sealed_revision = revision;
            }
            SandboxEvent::StartRequested(requested) => {
                self.phase = Phase::Starting(requested.intent);
                self.cause = requested.cause;
                self.restoring = requested.checkpoint;
            }
            SandboxEvent::Started(started) => {
                self.phase = Phase::Running;
                self.started_at = self.started_at.or(Some(started.at));
                self.slept = None;
                self.restoring = None;
            }
            SandboxEvent::StartFailed(failed) => match (self.started_at, &self.slept) {
                (Some(_), Some(_)) => self.phase = Phase::Hibernated,
                (Some(_), None) => self.phase = Phase::Failed(failed.reason.clone()),
                (None, _) => self.close(Phase::NeverStarted),
            },
            SandboxEvent::HibernateRequested(_)
            | SandboxEvent::Hibernated(_)
            | SandboxEvent::HibernateFailed(_)
            | SandboxEvent::MemoryReleased(_) => self.apply_sleep(event),
            SandboxEvent::Scaled(_)
            | SandboxEvent::AutoscaleSet(_)
            | SandboxEvent::ScalingLocked(_) => self.apply_scaling(event),
            SandboxEvent::TagsSet(set) => self.tags.apply(set),
            SandboxEvent::Patched(patched) => {
                if patched.error.is_none() {
                    self.patched.sequence = patched.sequence;
                }
                self.patched.error.clone_from(&patched.error);
            }
            SandboxEvent::Failed(failed) => self.phase = Phase::Failed(failed.reason.clone()),
            SandboxEvent::SecretRotated(rotated) => {
                self.sealed_revision = revision;
                let present = self
                    .sealed
                    .iter_mut()
                    .flat_map(|sealed| &mut sealed.secrets);
                for entry in present.filter(|entry| entry.name == rotated.entry.name) {
                    *entry = rotated.entry.clone();
                }
            }
            SandboxEvent::SecretRevoked(taken) => {
                self.sealed_revision = revision;
                if let Some(sealed) = &mut self.sealed {
                    let of_it = |entry: &mut SealedEntry| entry.name == taken.name;
                    let taken = sealed.secrets.extract_if(.., of_it);
                    self.revoked.extend(taken.map(|entry| DeadToken {
                        name: entry.name,
                        token: entry.token,
                    }));
                }
            }
            SandboxEvent::TimeoutSet(set) => {
                if let Some(details) = &mut self.details {
                    details.timeout_sec = set.timeout_sec;
                }
            }
            SandboxEvent::StopRequested(requested) => {
                self.phase = Phase::Stopping(requested.intent);
            }
            SandboxEvent::Stopped(_) => self.close(Phase::Stopped),
        }
    }
}

impl Sandbox {
    /// The entry of a secret of a layer, with a value from before `version`.
    pub(super) fn entry(&self, name: &str, layer_id: &str, version: u64) -> Option<&SealedEntry> {
        let mut entries = self.sealed.iter().flat_map(|sealed| &sealed.secrets);
        entries.find(|entry| {
            entry.name == name && entry.layer_id == layer_id && entry.version < version
        })
    }

    /// A rotation is recorded only for a secret that came from that layer, and only once.
    fn rotate(&self, entry: &SealedEntry, at: OffsetDateTime) -> Decision<SandboxEvent> {
        match self.entry(&entry.name, &entry.layer_id, entry.version) {
            Some(present) => {
                let entry = SealedEntry {
                    token: present.token.clone(),
                    ..entry.clone()
                };
                SandboxEvent::SecretRotated(SecretRotated { entry, at }).into()
            }
            None => Decision::nothing(),
        }
    }
}

/// An idle timeout in seconds as a caller gives it.
pub fn timeout(seconds: i64) -> Result<u32, Reject> {
    if seconds < 0 {
        return Err(Reject::invalid("timeout must not be negative"));
    }
    if seconds > super::project::TIMEOUT_SEC_MAX {
        let max = super::project::TIMEOUT_SEC_MAX;
        return Err(Reject::invalid(format!("timeout must not exceed {max}")));
    }
    u32::try_from(seconds).map_err(|_| Reject::invalid("timeout is out of range"))
}
