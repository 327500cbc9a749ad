//! Going to sleep and waking up: the rules.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use ulid::Ulid;

use super::{Decision, Phase, Reject, Sandbox, SandboxCommand, StartCause, start, timeout};
use crate::events::families::{
    HibernateFailed, HibernateRequested, Hibernated, Kept, MemoryReleased, SandboxEvent, TimeoutSet,
};

/// How a sandbox sleeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Slept {
    /// The attempt that put it to sleep.
    pub key: Ulid,
    /// What is kept of it.
    pub kept: Kept,
    /// Memory it held when it fell asleep.
    pub size_bytes: u64,
    /// Since when.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

impl Sandbox {
    pub(super) fn decide_sleep(
        &self,
        command: &SandboxCommand,
    ) -> Result<Decision<SandboxEvent>, Reject> {
        use SandboxCommand as C;
        Ok(match command {
            C::Hibernate {
                org,
                intent,
                reason,
                at,
            } => {
                self.visible_to(org)?;
                if matches!(self.phase, Phase::Hibernating(_) | Phase::Hibernated) {
                    return Ok(Decision::nothing());
                }
                self.running_of(org)?;
                SandboxEvent::HibernateRequested(HibernateRequested {
                    intent: *intent,
                    reason: *reason,
                    at: *at,
                })
                .into()
            }
            C::Hibernated {
                intent,
                kept,
                size_bytes,
                at,
            } if self.phase == Phase::Hibernating(*intent) => {
                SandboxEvent::Hibernated(Hibernated {
                    intent: *intent,
                    kept: *kept,
                    size_bytes: *size_bytes,
                    at: *at,
                })
                .into()
            }
            C::HibernateFailed { intent, reason, at }
                if self.phase == Phase::Hibernating(*intent) =>
            {
                SandboxEvent::HibernateFailed(HibernateFailed {
                    intent: *intent,
                    reason: reason.clone(),
                    at: *at,
                })
                .into()
            }
            C::ReleaseMemory { reason, at } => match (&self.phase, &self.slept) {
                (Phase::Hibernated, Some(slept)) if slept.kept == Kept::Memory => {
                    SandboxEvent::MemoryReleased(MemoryReleased {
                        reason: reason.clone(),
                        at: *at,
                    })
                    .into()
                }
                _ => Decision::nothing(),
            },
            C::Wake {
                org,
                intent,
                timeout: seconds,
                at,
            } => {
                self.visible_to(org)?;
                let mut events = Vec::new();
                if let Some(seconds) = seconds {
                    let timeout_sec = timeout(*seconds)?;
                    events.push(SandboxEvent::TimeoutSet(TimeoutSet {
                        timeout_sec,
                        at: *at,
                    }));
                }
                match self.phase {
                    // What stopped by itself has its disk: waking is the way back for it too.
                    Phase::Hibernated | Phase::Failed(_) => {
                        events.push(start(*intent, StartCause::Wake, *at));
                    }
                    Phase::Running | Phase::Starting(_) => {}
                    Phase::Hibernating(_) => {
                        return Err(Reject::invalid("sandbox is not hibernated yet"));
                    }
                    _ => return Err(Reject::invalid("sandbox is stopped")),
                }
                Decision {
                    events,
                    names: Vec::new(),
                }
            }
            // An outcome of an attempt that was overtaken.
            _ => Decision::nothing(),
        })
    }

    pub(super) fn apply_sleep(&mut self, event: &SandboxEvent) {
        match event {
            SandboxEvent::HibernateRequested(requested) => {
                self.phase = Phase::Hibernating(requested.intent);
            }
            SandboxEvent::Hibernated(hibernated) => {
                self.phase = Phase::Hibernated;
                self.slept = Some(Slept {
                    key: hibernated.intent,
                    kept: hibernated.kept,
                    size_bytes: hibernated.size_bytes,
                    at: hibernated.at,
                });
            }
            SandboxEvent::HibernateFailed(_) => self.phase = Phase::Running,
            SandboxEvent::MemoryReleased(_) => {
                if let Some(slept) = &mut self.slept {
                    slept.kept = Kept::Disk;
                }
            }
            _ => {}
        }
    }
}
