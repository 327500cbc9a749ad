//! Starting processes in a sandbox: sessions that callers attach to, and commands whose output they
//! wait for. Sessions live in the guest alone and results in the server's memory; only that an
//! idempotency key started one is in the log.
//!
//! Invariant: a key starts at most one process. It is taken before the guest is asked, so a crash in
//! between costs the key, never a second process; it is given back when the guest refused.

use std::sync::Arc;

use ulid::Ulid;

use super::activity::InUse;
use super::aggregate::Reject;
use super::entity::{Beside, Failure};
use super::exec::{Handle, ProcessRequest, command, session};
use super::idempotency::{Begun, Claim, First, Keyed, in_progress};
use super::live::LiveSandbox;
use super::platform::{Caller, Platform};
use super::sandbox::Sandbox;
use crate::events::{Append, AppendError};
use crate::sandbox::{GuestError, SessionInfo};

pub(super) const GONE: &str = "what this Idempotency-Key started is no longer known, \
                    use another key to start it again";

/// A session that a request started, now or when it first came.
pub struct Session {
    /// As the guest knows it now.
    pub info: SessionInfo,
    /// This request repeats one, and started nothing.
    pub replayed: bool,
}

/// A command that a request started, now or when it first came.
pub struct Command {
    /// Its output, which grows until it ended.
    pub handle: Arc<Handle>,
    /// This request repeats one, and started nothing.
    pub replayed: bool,
}

/// Why no session was started.
#[derive(Debug, thiserror::Error)]
pub enum SessionFailure {
    /// The request or the server stands in the way.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The guest does.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The sandbox has none of the shells that a terminal has by default.
    #[error("no shell found")]
    NoShell,
}

impl From<Reject> for SessionFailure {
    fn from(reject: Reject) -> Self {
        Self::Refused(reject.into())
    }
}

impl Platform {
    /// Starts a session, once for each key. A repeat finds it for as long as the guest knows it:
    /// while it runs, and some minutes after.
    pub async fn start_session(
        self: Arc<Self>,
        caller: Caller,
        live: InUse,
        request: ProcessRequest,
        keyed: Option<Keyed>,
    ) -> Result<Session, SessionFailure> {
        let session = session(&live, request)?;
        let first = match self
            .begin_in(&live.details.sandbox_id, keyed.as_ref())
            .await?
        {
            Begun::First(first) => first,
            Begun::Repeat((_, taken)) => {
                let known = live.guest.sessions().await?.into_iter();
                let id = taken.session.as_deref();
                let info = known.into_iter().find(|one| Some(&*one.session_id) == id);
                let info = info.ok_or_else(|| Reject::Conflict(GONE.to_owned()))?;
                return Ok(Session {
                    info,
                    replayed: true,
                });
            }
        };
        self.take_key(&caller, &first, &live, &session.session_id)
            .await?;
        let logged = live.log.of(&session);
        let started = live.guest.start(session).await;
        if let (Err(error), Some(claim)) = (&started, &first.claim)
            && is_refusal(error)
        {
            self.give_back(&caller, claim).await;
        }
        let info = started?;
        logged.observe(live.guest.clone(), Some(0));
        Ok(Session {
            info,
            replayed: false,
        })
    }

    /// Starts a command, once for each key. A repeat finds it while this server knows its result:
    /// until ten minutes after its end. An attended command is a use of the sandbox until it ends.
    pub async fn start_command(
        self: Arc<Self>,
        caller: Caller,
        live: InUse,
        request: ProcessRequest,
        keyed: Option<Keyed>,
        attended: bool,
    ) -> Result<Command, Failure> {
        let session = command(&live, request)?;
        let first = match self
            .begin_in(&live.details.sandbox_id, keyed.as_ref())
            .await?
        {
            Begun::First(first) => first,
            Begun::Repeat((_, taken)) => {
                let id = taken.session.as_deref().unwrap_or_default();
                let known = self.find_handle(&live.details.sandbox_id, id);
                let handle = known.ok_or_else(|| Reject::Conflict(GONE.to_owned()))?;
                return Ok(Command {
                    handle,
                    replayed: true,
                });
            }
        };
        let handle = Handle::of(&live, &session);
        // Before the key is taken: a repeat must find what it started.
        let place = match first.claim {
            Some(_) => Some(self.handles.reserve(&handle)?),
            None => None,
        };
        self.take_key(&caller, &first, &live, &session.session_id)
            .await?;
        if let Some(place) = place {
            place.taken();
        }
        let in_use = attended.then(|| live.clone());
        self.capture(live.unattended(), in_use, session, &handle);
        Ok(Command {
            handle,
            replayed: false,
        })
    }

    /// Takes the request's key, if it has one, for a process of a sandbox.
    pub(super) async fn take_key(
        &self,
        caller: &Caller,
        first: &First,
        live: &LiveSandbox,
        session: &str,
    ) -> Result<(), Failure> {
        let sandbox = Sandbox::stream(&live.details.sandbox_id);
        for beside in first.beside_session(&sandbox, session)? {
            self.record(caller, beside).await?;
        }
        Ok(())
    }

    /// Records one event in a commit of its own.
    async fn record(&self, caller: &Caller, beside: Beside) -> Result<(), Failure> {
        let append = Append {
            command: Ulid::generate(),
            expected: vec![(beside.event.stream.clone(), beside.expected)],
            events: vec![beside.event],
            actor: caller.who(),
            correlation: None,
            causation: None,
        };
        match self.log.append(append).await {
            Ok(_) => Ok(()),
            // Taken by a request whose caller has hung up: how far that one got isn't known yet.
            Err(AppendError::Conflict { .. }) => Err(in_progress()),
            Err(error) => Err(error.into()),
        }
    }

    /// Frees a key of which nothing came. A failure costs the key, and nothing else.
    pub(super) async fn give_back(&self, caller: &Caller, claim: &Claim) {
        let released = match claim.release() {
            Ok(beside) => self.record(caller, beside).await,
            Err(failure) => Err(failure),
        };
        if let Err(error) = released {
            tracing::warn!(%error, "an idempotency key of which nothing came stays taken");
        }
    }
}

/// Whether the guest has certainly started nothing.
pub(super) fn is_refusal(error: &GuestError) -> bool {
    match error {
        GuestError::NotFound(_)
        | GuestError::Invalid(_)
        | GuestError::Precondition(_)
        | GuestError::CommandNotFound(_)
        | GuestError::Refused(_)
        | GuestError::Full(_)
        | GuestError::Unsupported => true,
        GuestError::Gone(_)
        | GuestError::Protocol { .. }
        | GuestError::Broken(_)
        | GuestError::Upload(_) => false,
    }
}
