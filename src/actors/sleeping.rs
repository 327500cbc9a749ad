//! Sleep and waking: carrying out the intents, and calls that find a sandbox asleep.
//!
//! Asleep, a sandbox's processes are stopped where they are, its egress is closed, and what was
//! attached to it has ended. Where they can't be stopped, or no longer after a restart of the host,
//! the disk is what is kept, and waking starts the sandbox on it.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;
use ulid::Ulid;

use super::activity::InUse;
use super::aggregate::Reject;
use super::entity::Failure;
use super::live::LiveSandbox;
use super::platform::{Caller, Platform};
use super::sandbox::{Phase, Sandbox, SandboxCommand};
use crate::events::Actor as Who;
use crate::events::families::{Kept, SleepReason};
use crate::ids::{OrgId, SandboxId};

/// Longest a call waits for a sandbox that is on its way up or down.
const WAIT_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);
/// How long processes get to end when their sandbox is rebooted.
const GRACE: Duration = Duration::from_secs(3);
const SIGTERM: i32 = 15;

/// What a call does when its sandbox is asleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asleep {
    /// It waits until the sandbox is awake.
    Wait,
    /// It has the sandbox woken and fails with [`Failure::Waking`] meanwhile.
    Refuse,
}

impl Platform {
    /// The running sandbox behind a data-plane call: waits for one that is on its way up or down,
    /// and wakes one that sleeps. However many calls find it asleep, it is woken once.
    pub async fn live_sandbox(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
    ) -> Result<InUse, Failure> {
        self.live_sandbox_or(caller, id, Asleep::Wait).await
    }

    /// The same, with a say in what happens when the sandbox sleeps.
    pub async fn live_sandbox_or(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
        asleep: Asleep,
    ) -> Result<InUse, Failure> {
        let deadline = Instant::now() + WAIT_MAX;
        loop {
            let state = self.get_sandbox(caller, id).await?;
            match &state.phase {
                Phase::Running => {
                    if let Some(live) = self.find_in_use(id) {
                        return Ok(live);
                    }
                }
                Phase::Starting(_) if state.slept.is_some() && asleep == Asleep::Refuse => {
                    return Err(Failure::Waking);
                }
                Phase::Starting(_) | Phase::Hibernating(_) => {}
                Phase::Hibernated => {
                    let (platform, caller, id) = (self.clone(), *caller, id.clone());
                    let waking =
                        tokio::spawn(
                            async move { platform.wake_sandbox(&caller, &id, None).await },
                        );
                    if asleep == Asleep::Refuse {
                        return Err(Failure::Waking);
                    }
                    // A task of its own: the wake goes on when this call's client hangs up.
                    let woken = waking.await;
                    woken.map_err(|error| Failure::Internal(error.to_string()))??;
                    continue;
                }
                phase => {
                    let gone = |status| Err(Failure::Gone(status));
                    let unknown = || Err(Reject::not_found("sandbox").into());
                    return phase.status().map_or_else(unknown, gone);
                }
            }
            if Instant::now() > deadline {
                return Err(Failure::Busy);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A living sandbox, in use from the moment it is found.
    pub(super) fn find_in_use(&self, id: &SandboxId) -> Option<InUse> {
        // Under the table's lock, so that it is not taken for idle in between.
        let all = self
            .live
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        all.get(id).map(InUse::new)
    }

    /// A sign of use that wakes nobody.
    pub fn touch(&self, id: &SandboxId) {
        if let Some(live) = self.find_live(id) {
            live.activity.touch();
        }
    }

    /// Sets the idle timeout; the clock starts anew.
    pub async fn set_timeout(
        &self,
        caller: &Caller,
        id: &SandboxId,
        seconds: i64,
    ) -> Result<(), Failure> {
        let at = OffsetDateTime::now_utc();
        let command = SandboxCommand::SetTimeout {
            org: caller.org,
            seconds,
            at,
        };
        let stream = Sandbox::stream(id);
        let done = self
            .execute(&self.sandboxes, &stream, command, &caller.who())
            .await?;
        self.restart_clock(id, &done.state);
        Ok(())
    }

    fn restart_clock(&self, id: &SandboxId, state: &Sandbox) {
        if let (Some(live), Some(details)) = (self.find_live(id), &state.details) {
            live.activity.set_timeout(details.timeout_sec);
        }
    }

    /// Puts a sandbox to sleep. Returns when it sleeps; one that sleeps already is fine.
    pub async fn hibernate_sandbox(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
    ) -> Result<Arc<Sandbox>, Failure> {
        self.get_sandbox(caller, id).await?;
        let _turn = self.take_turn(id).await;
        let reason = SleepReason::UserRequested;
        self.put_to_sleep(id, caller.org, reason, &caller.who(), None)
            .await
    }

    /// Puts a sandbox to sleep that nobody has used for as long as its timeout says.
    pub(super) async fn sleep_if_idle(self: &Arc<Self>, live: &Arc<LiveSandbox>) {
        let id = &live.details.sandbox_id;
        // Somebody works on it: the next look is soon.
        let Some(_turn) = self.try_turn(id) else {
            return;
        };
        let Some(removed) = self.remove_live(id, true) else {
            return;
        };
        let org = live.details.org_id;
        let who = Who {
            org: Some(org),
            ..Who::system()
        };
        let slept = self.put_to_sleep(id, org, SleepReason::Idle, &who, Some(&removed));
        if let Err(error) = slept.await {
            tracing::error!(%error, sandbox = %id, "an idle sandbox could not be put to sleep");
            // The reconciler attaches it again if it runs on.
            self.leave(&removed).await;
        }
    }

    async fn put_to_sleep(
        self: &Arc<Self>,
        id: &SandboxId,
        org: OrgId,
        reason: SleepReason,
        who: &Who,
        removed: Option<&Arc<LiveSandbox>>,
    ) -> Result<Arc<Sandbox>, Failure> {
        let command = SandboxCommand::Hibernate {
            org,
            intent: Ulid::generate(),
            reason,
            at: OffsetDateTime::now_utc(),
        };
        let stream = Sandbox::stream(id);
        let done = self.execute(&self.sandboxes, &stream, command, who).await?;
        self.finish_sleep(id, done.state, who, removed.cloned())
            .await
    }

    /// Carries out the open intent to sleep, and records its outcome.
    pub(super) async fn finish_sleep(
        self: &Arc<Self>,
        id: &SandboxId,
        state: Arc<Sandbox>,
        who: &Who,
        removed: Option<Arc<LiveSandbox>>,
    ) -> Result<Arc<Sandbox>, Failure> {
        let Phase::Hibernating(intent) = state.phase else {
            return Ok(state);
        };
        let live = removed.or_else(|| self.remove_live(id, false));
        // Stopped first, so that no process sees its connections end before it has to.
        let frozen = self.driver.hibernate(id).await;
        if let Some(live) = live {
            self.leave(&live).await;
        }
        let kept = match frozen {
            Ok(Some(bytes)) => Ok((Kept::Memory, bytes)),
            Ok(None) | Err(_) => {
                let stopped = self.driver.stop(id).await;
                stopped.map(|()| (Kept::Disk, 0))
            }
        };
        let at = OffsetDateTime::now_utc();
        let stream = Sandbox::stream(id);
        match kept {
            Ok((kept, size_bytes)) => {
                let command = SandboxCommand::Hibernated {
                    intent,
                    kept,
                    size_bytes,
                    at,
                };
                let done = self.execute(&self.sandboxes, &stream, command, who).await?;
                Ok(done.state)
            }
            Err(error) => {
                tracing::error!(%error, sandbox = %id, "the sandbox could not be put to sleep");
                let command = SandboxCommand::HibernateFailed {
                    intent,
                    reason: "the sandbox could not be stopped".to_owned(),
                    at,
                };
                self.execute(&self.sandboxes, &stream, command, who).await?;
                Err(Failure::Internal(error.to_string()))
            }
        }
    }

    /// Wakes a sandbox and returns when it can run commands; one that runs is fine. `timeout`: its
    /// idle timeout from now on.
    pub async fn wake_sandbox(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
        timeout: Option<i64>,
    ) -> Result<Sandbox, Failure> {
        self.get_sandbox(caller, id).await?;
        let _turn = self.take_turn(id).await;
        let (stream, who) = (Sandbox::stream(id), caller.who());
        let mut state = self.get_sandbox(caller, id).await?;
        let sleeps = matches!(state.phase, Phase::Hibernated | Phase::Failed(_));
        let place = match sleeps {
            true => {
                // It comes up with what its layers say now, and without what was revoked.
                state = self.take_revoked(id, state, &who).await?;
                self.refresh_secrets(id, &state, &who).await?;
                Some(self.take_place(caller)?)
            }
            false => None,
        };
        let command = SandboxCommand::Wake {
            org: caller.org,
            intent: Ulid::generate(),
            timeout,
            at: OffsetDateTime::now_utc(),
        };
        let done = self
            .execute(&self.sandboxes, &stream, command, &who)
            .await?;
        drop(place);
        match done.state.phase {
            Phase::Starting(_) => {
                let woken = self.start_sandbox(id, &done.state, &who).await;
                let woken = woken.map_err(|failure| match failure {
                    Failure::Reject(_) => failure,
                    other => {
                        tracing::error!(error = %other, sandbox = %id, "the sandbox did not wake");
                        Failure::WakeFailed
                    }
                })?;
                let patched = self.apply_patches(id, &who).await?;
                Ok(patched.map_or(woken, |state| (*state).clone()))
            }
            _ => {
                self.restart_clock(id, &done.state);
                Ok((*done.state).clone())
            }
        }
    }

    /// Ends all that runs in a sandbox and starts it anew on its disk; unless `hard`, its processes
    /// are asked to end first and get three seconds for it.
    pub async fn reboot_sandbox(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
        hard: bool,
    ) -> Result<(), Failure> {
        self.get_sandbox(caller, id).await?;
        let _turn = self.take_turn(id).await;
        let command = SandboxCommand::Reboot {
            org: caller.org,
            intent: Ulid::generate(),
            hard,
            at: OffsetDateTime::now_utc(),
        };
        let (stream, who) = (Sandbox::stream(id), caller.who());
        let done = self
            .execute(&self.sandboxes, &stream, command, &who)
            .await?;
        if let Some(live) = self.remove_live(id, false) {
            if !hard {
                let _ = tokio::time::timeout(GRACE, ask_to_end(&live)).await;
            }
            self.leave(&live).await;
        }
        self.start_sandbox(id, &done.state, &who).await.map(drop)
    }
}

/// Asks every session's processes to end, and waits until they have.
async fn ask_to_end(live: &LiveSandbox) {
    while let Ok(sessions) = live.guest.sessions().await {
        let mut running = sessions.iter().filter(|one| one.exit_code.is_none());
        let Some(first) = running.next() else { return };
        for session in std::iter::once(first).chain(running) {
            let _ = live.guest.signal(&session.session_id, SIGTERM).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
