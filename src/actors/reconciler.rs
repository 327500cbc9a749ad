//! The reconciler: makes the world and the log agree, at start and then again and again. It takes
//! no input and always does the same work, so whatever was missed once is done the next time.
//!
//! | In the log | In the world | What it does |
//! |---|---|---|
//! | starting, never acknowledged | anything | undoes it, records `start_failed` |
//! | starting again, waking | anything | carries the start out |
//! | falling asleep | anything | puts it to sleep |
//! | running | supervisor there | attaches |
//! | running | nothing (the host was restarted) | starts it again on its disk |
//! | stopping | anything | undoes it, records `stopped` |
//! | asleep, failed | disk, stopped processes | keeps them for their user |
//! | gone or unknown | anything | removes it |
//!
//! It also brings secrets that were rotated meanwhile to the sandboxes that use them, and destroys
//! data keys that outlived their owner's deletion (a crash in between, a keyring that was busy).

use std::sync::{Arc, Weak};
use std::time::Duration;

use actix::prelude::*;
use futures_util::{StreamExt, stream};
use time::OffsetDateTime;
use ulid::Ulid;

use super::catalog::Unsettled;
use super::create::SEALED_KIND;
use super::entity::Failure;
use super::platform::Platform;
use super::project::Project;
use super::sandbox::{Phase, Sandbox, SandboxCommand};
use super::sealing::off_runtime;
use super::secret_store::SecretStore;
use super::secrets::Secrets;
use crate::events::families::{LayerKind, SealedEntry, StopReason};
use crate::events::{Actor as Who, StreamId};
use crate::ids::SandboxId;

/// Time between rounds; a rotated secret that could not be brought to a sandbox at once is there
/// within one round (the contract allows 15 s).
const ROUND: Duration = Duration::from_secs(10);
/// Sandboxes worked on at once: one whose guest doesn't answer must not hold up the others.
const AT_ONCE_MAX: usize = 16;

/// The actor that does the rounds.
pub struct Reconciler {
    platform: Weak<Platform>,
}

impl Reconciler {
    /// Starts the rounds; the first one is over before this returns.
    pub async fn start(platform: &Arc<Platform>) {
        platform.reconcile().await;
        tokio::spawn(platform.clone().shred_what_is_gone());
        tokio::spawn(super::oom::watch(Arc::downgrade(platform)));
        super::sleeper::start(platform);
        let actor = Self {
            platform: Arc::downgrade(platform),
        };
        Actor::start(actor);
    }
}

impl Actor for Reconciler {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_later(ROUND, Self::round);
    }
}

impl Reconciler {
    /// One round; the next begins a while after it ended, so that rounds can't pile up.
    fn round(&mut self, ctx: &mut Context<Self>) {
        let Some(platform) = self.platform.upgrade() else {
            return ctx.stop();
        };
        let work = async move { platform.reconcile().await };
        ctx.spawn(work.into_actor(self).map(|(), _, ctx| {
            ctx.run_later(ROUND, Self::round);
        }));
    }
}

impl Platform {
    /// One round over every sandbox. Failures are logged; the next round tries again.
    pub async fn reconcile(self: &Arc<Self>) {
        // A server that is stopping has let go of its sandboxes: none is attached again.
        if self.recorders.is_closed() {
            return;
        }
        if !self.catalog.caught_up(self.log.head().position).await {
            return; // the next round looks again
        }
        // The world first: what appears in it later has its intent in the log already.
        let world = match self.driver.list().await {
            Ok(world) => world,
            Err(error) => {
                tracing::error!(%error, "the sandboxes of this machine can't be listed");
                return;
            }
        };
        let work = stream::iter(self.catalog.unsettled());
        let one = async |row: Unsettled| {
            if self.needs_work(&row)
                && let Err(error) = self.reconcile_one(&row).await
            {
                tracing::error!(%error, sandbox = %row.id, "the sandbox could not be reconciled");
            }
        };
        work.for_each_concurrent(AT_ONCE_MAX, one).await;
        for id in world {
            if let Err(error) = self.remove_if_left_over(&id).await {
                tracing::error!(%error, sandbox = %id, "what is left could not be removed");
            }
        }
        self.reconcile_checkpoints().await;
        self.reconcile_images().await;
        self.shred_again().await;
    }

    /// A crash between a deletion's commit and the end of its data key leaves the key behind.
    async fn shred_what_is_gone(self: Arc<Self>) {
        for stream in self.catalog.gone() {
            self.shred_or_keep(&stream).await;
        }
    }

    /// Whether a round has anything to do for a sandbox: for one that runs, is attached and has its
    /// present secrets it has not, and its entity may leave memory.
    fn needs_work(&self, row: &Unsettled) -> bool {
        let orphan = row
            .builds
            .is_some_and(|image| self.builds.find(&image).is_none());
        let settled = row.runs
            && !orphan
            && !row.has_old_values
            && self
                .find_live(&row.id)
                .is_some_and(|live| !live.is_behind(row.sealed_revision));
        !settled && !self.is_in_work(&row.id)
    }

    /// Removes what the world has of a sandbox that is gone or unknown. Its own stream decides:
    /// nothing is destroyed on the word of a read model.
    async fn remove_if_left_over(&self, id: &SandboxId) -> Result<(), Failure> {
        if self.find_live(id).is_some() || self.is_in_work(id) {
            return Ok(());
        }
        let phase = &self.sandboxes.inspect(&Sandbox::stream(id)).await?.phase;
        if phase.is_final() || *phase == Phase::Absent {
            tracing::info!(sandbox = %id, "removing what is left of a sandbox");
            self.take_down(id).await?;
        }
        Ok(())
    }

    async fn reconcile_one(self: &Arc<Self>, row: &Unsettled) -> Result<(), Failure> {
        let id = &row.id;
        // Whoever has the turn does what there is to do.
        let Some(_turn) = self.try_turn(id) else {
            return Ok(());
        };
        let (stream, who) = (
            Sandbox::stream(id),
            Who {
                org: Some(row.org),
                ..Who::system()
            },
        );
        // The read model may be a moment behind: the entity decides.
        let mut state = self.sandboxes.inspect(&stream).await?;
        let builds = state.details.as_ref().and_then(|details| details.builds);
        if builds.is_some_and(|image| self.builds.find(&image).is_none()) && state.phase.is_live() {
            state = self.stop_builder(row, &who).await?;
        }
        match state.phase {
            Phase::Starting(intent) if state.started_at.is_none() => {
                self.take_down(id).await?;
                let command = SandboxCommand::StartFailed {
                    intent,
                    reason: "the server stopped while the sandbox was starting".to_owned(),
                    at: OffsetDateTime::now_utc(),
                };
                self.execute(&self.sandboxes, &stream, command, &who)
                    .await?;
                self.shred_or_keep(&stream).await;
                Ok(())
            }
            Phase::Starting(_) => {
                let state = self.take_revoked(id, state, &who).await?;
                self.start_sandbox(id, &state, &who).await.map(drop)
            }
            Phase::Running => {
                // Before it is attached: it must not have a revoked secret for a moment.
                let state = self.take_revoked(id, state, &who).await?;
                if self.find_live(id).is_none() {
                    self.attach_or_restart(id, &state, &who).await?;
                }
                self.renew_policy(id, &state).await?;
                self.refresh_secrets(id, &state, &who).await
            }
            Phase::Stopping(_) => self.finish_stop(id, &state, &who).await,
            Phase::Hibernating(_) => self.finish_sleep(id, state, &who, None).await.map(drop),
            _ => self.take_revoked(id, state, &who).await.map(drop),
        }
    }

    /// A sandbox whose build is over is of no use to anybody.
    async fn stop_builder(&self, row: &Unsettled, who: &Who) -> Result<Arc<Sandbox>, Failure> {
        let command = SandboxCommand::RequestStop {
            org: row.org,
            intent: Ulid::generate(),
            reason: StopReason::UserRequested,
            at: OffsetDateTime::now_utc(),
        };
        let stream = Sandbox::stream(&row.id);
        let done = self.execute(&self.sandboxes, &stream, command, who).await?;
        Ok(done.state)
    }

    async fn attach_or_restart(
        self: &Arc<Self>,
        id: &SandboxId,
        state: &Sandbox,
        who: &Who,
    ) -> Result<(), Failure> {
        let attached = self.driver.attach(id).await;
        match attached.map_err(|error| Failure::Internal(error.to_string()))? {
            Some(running) => self.wire_up(id, state, running).await.map(drop),
            None => {
                let at = OffsetDateTime::now_utc();
                let command = SandboxCommand::Restart {
                    intent: Ulid::generate(),
                    at,
                };
                let stream = Sandbox::stream(id);
                let done = self.execute(&self.sandboxes, &stream, command, who).await?;
                self.start_sandbox(id, &done.state, who).await.map(drop)
            }
        }
    }

    /// Brings the present values of a sandbox's layers to it.
    pub(super) async fn refresh_secrets(
        self: &Arc<Self>,
        id: &SandboxId,
        state: &Sandbox,
        who: &Who,
    ) -> Result<(), Failure> {
        for layer in state.details.iter().flat_map(|details| &details.layers) {
            let (stream, secrets) = match self.layer_secrets(layer.kind, &layer.id).await? {
                Some(found) => found,
                None => continue,
            };
            for entry in state.sealed.iter().flat_map(|sealed| &sealed.secrets) {
                let newer = secrets
                    .get(&entry.name)
                    .is_some_and(|secret| secret.version > entry.version);
                if newer && entry.layer_id == layer.id {
                    self.bring(id, &layer.id, &entry.name, &secrets, &stream, who)
                        .await?;
                }
            }
        }
        Ok(())
    }

    async fn layer_secrets(
        &self,
        kind: LayerKind,
        id: &str,
    ) -> Result<Option<(StreamId, Secrets)>, Failure> {
        Ok(match kind {
            LayerKind::Project => match id.parse() {
                Ok(id) => {
                    let stream = Project::stream(&id);
                    let state = self.projects.inspect(&stream).await?;
                    Some((stream, state.secrets.clone()))
                }
                Err(_) => None,
            },
            LayerKind::Store => match id.parse() {
                Ok(id) => {
                    let stream = SecretStore::stream(&id);
                    let state = self.stores.inspect(&stream).await?;
                    Some((stream, state.secrets.clone()))
                }
                Err(_) => None,
            },
        })
    }

    /// Takes away what was revoked in a sandbox's layers since it was given it; the state after.
    pub(super) async fn take_revoked(
        self: &Arc<Self>,
        id: &SandboxId,
        state: Arc<Sandbox>,
        who: &Who,
    ) -> Result<Arc<Sandbox>, Failure> {
        if !self.catalog.has_revoked_values(id) {
            return Ok(state);
        }
        for layer in state.details.iter().flat_map(|details| &details.layers) {
            let Some((_, secrets)) = self.layer_secrets(layer.kind, &layer.id).await? else {
                continue;
            };
            for entry in state.sealed.iter().flat_map(|sealed| &sealed.secrets) {
                if entry.layer_id == layer.id {
                    self.take(id, &layer.id, &entry.name, &secrets, who).await?;
                }
            }
        }
        self.sandboxes.inspect(&Sandbox::stream(id)).await
    }

    /// Takes a secret from a sandbox that was given it before it was revoked, and cuts what is
    /// under way with it; whether it did.
    async fn take(
        self: &Arc<Self>,
        id: &SandboxId,
        layer_id: &str,
        name: &str,
        secrets: &Secrets,
        who: &Who,
    ) -> Result<bool, Failure> {
        let Some(version) = secrets.revoked_at(name) else {
            return Ok(false);
        };
        let stream = Sandbox::stream(id);
        let state = self.sandboxes.inspect(&stream).await?;
        if state.entry(name, layer_id, version).is_none() {
            return Ok(false);
        }
        let command = SandboxCommand::Revoke {
            name: name.to_owned(),
            layer_id: layer_id.to_owned(),
            version,
            at: OffsetDateTime::now_utc(),
        };
        let done = self.execute(&self.sandboxes, &stream, command, who).await?;
        self.renew_policy(id, &done.state).await?;
        Ok(true)
    }

    /// Brings what became of a secret (a new value, its revocation) to every sandbox that has it;
    /// whether all of them have it now. The reconciler's next round reaches the others.
    pub(super) async fn bring_to_all(
        self: &Arc<Self>,
        layer_id: &str,
        name: &str,
        secrets: &Secrets,
        layer_stream: &StreamId,
    ) -> bool {
        let mut all = true;
        for details in self.catalog.with_layer(layer_id) {
            let who = Who {
                org: Some(details.org_id),
                ..Who::system()
            };
            let id = &details.sandbox_id;
            if let Err(error) = self
                .bring(id, layer_id, name, secrets, layer_stream, &who)
                .await
            {
                tracing::warn!(%error, sandbox = %id, "a changed secret will be brought later");
                all = false;
            }
        }
        all
    }

    async fn bring(
        self: &Arc<Self>,
        id: &SandboxId,
        layer_id: &str,
        name: &str,
        secrets: &Secrets,
        layer_stream: &StreamId,
        who: &Who,
    ) -> Result<(), Failure> {
        // A value that was set after the revocation is not for tokens from before it.
        if self.take(id, layer_id, name, secrets, who).await? {
            return Ok(());
        }
        let Some(secret) = secrets.get(name) else {
            return Ok(());
        };
        let stream = Sandbox::stream(id);
        let state = self.sandboxes.inspect(&stream).await?;
        let uses = state.entry(name, layer_id, secret.version).is_some();
        if !uses || !(state.phase.is_live() || state.phase == Phase::Hibernated) {
            return Ok(());
        }
        let event_kind = match layer_stream.parts() {
            Some(("project", _)) => "project.secret_set.v1",
            _ => "store.secret_set.v1",
        };
        let (platform, from, sealed) = (self.clone(), layer_stream.clone(), secret.sealed.clone());
        let (to, name) = (stream.clone(), name.to_owned());
        let (name, sealed) = off_runtime(move || {
            let value = platform.unseal(&from, event_kind, &name, &sealed)?;
            let sealed = platform.seal(&to, SEALED_KIND, &format!("secret:{name}"), &value)?;
            Ok((name, sealed))
        })
        .await?;
        let entry = SealedEntry {
            name,
            token: String::new(), // the aggregate keeps the present one
            allowed_hosts: secret.allowed_hosts.clone(),
            placement: secret.placement.clone(),
            layer_id: layer_id.to_owned(),
            version: secret.version,
            sealed,
        };
        let command = SandboxCommand::Rotate {
            entry,
            at: OffsetDateTime::now_utc(),
        };
        let done = self.execute(&self.sandboxes, &stream, command, who).await?;
        self.renew_policy(id, &done.state).await
    }
}
