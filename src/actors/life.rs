//! A sandbox's effects: starting, attaching, stopping. Each follows an intent that is on disk, and
//! ends in an outcome that is; repeating any of them is harmless.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;
use ulid::Ulid;

use super::activity::Activity;
use super::aggregate::Reject;
use super::create::SEALED_KIND;
use super::entity::Failure;
use super::images::{DEFAULTS, ImageDefaults};
use super::kills::Kills;
use super::live::{LiveSandbox, base_environment};
use super::logs::SandboxLog;
use super::metadata::Metadata;
use super::platform::{Caller, Platform};
use super::proxy::{Close, ProxyActor, ProxyParts};
use super::sandbox::{Phase, Sandbox, SandboxCommand};
use super::scaler::Samples;
use super::sealing::{internal, off_runtime};
use super::secrets::read_placement;
use crate::events::Actor as Who;
use crate::events::families::{LayerKind, SandboxCreated, SandboxSealed, StartCause, StopReason};
use crate::ids::SandboxId;
use crate::proxy::{Binding, Policy, SandboxCa};
use crate::sandbox::{GuestClient, Running, SandboxSpec};

/// Longest a guest may take until it can run commands.
const GUEST_READY_MAX: Duration = Duration::from_secs(20);
/// Longest the last egress decisions may take to be recorded when the server stops.
const RECORDED_MAX: Duration = Duration::from_secs(3);

/// What a sandbox's ciphertexts hold.
struct Opened {
    ca: SandboxCa,
    envs: BTreeMap<String, String>,
    image: ImageDefaults,
    policy: Policy,
}

impl Platform {
    /// Carries out the open intent to run, and records its outcome.
    pub(super) async fn start_sandbox(
        self: &Arc<Self>,
        id: &SandboxId,
        state: &Sandbox,
        who: &Who,
    ) -> Result<Sandbox, Failure> {
        let (Phase::Starting(intent), stream) = (&state.phase, Sandbox::stream(id)) else {
            return Err(Failure::Internal("no start was requested".to_owned()));
        };
        let intent = *intent;
        let brought_up = self.bring_up(id, state).await;
        let at = OffsetDateTime::now_utc();
        let failure = match brought_up {
            Ok(limits) => {
                let command = SandboxCommand::Started { intent, limits, at };
                match self.execute(&self.sandboxes, &stream, command, who).await {
                    Ok(done) => return Ok((*done.state).clone()),
                    Err(failure) => failure,
                }
            }
            Err(failure) => failure,
        };
        tracing::error!(sandbox = %id, error = %failure, "the sandbox could not be started");
        // A sandbox that had run before keeps its disk: it is its user's.
        match state.started_at {
            Some(_) => self.put_out(id).await?,
            None => self.take_down(id).await?,
        }
        let reason = told(&failure);
        let command = SandboxCommand::StartFailed { intent, reason, at };
        if let Ok(done) = self.execute(&self.sandboxes, &stream, command, who).await
            && done.state.phase == Phase::NeverStarted
        {
            self.shred_or_keep(&stream).await;
        }
        Err(failure)
    }

    /// Makes the world what the intent says; answers with the limits that are enforced.
    async fn bring_up(
        self: &Arc<Self>,
        id: &SandboxId,
        state: &Sandbox,
    ) -> Result<serde_json::Value, Failure> {
        let (details, sealed) = parts_of(state)?;
        let spec = SandboxSpec {
            id: id.clone(),
            cpu_count: details.cpu_count,
            cpu_percent: state.scaling.cpu_percent,
            memory_mb: details.memory_mb.into(),
            disk_mb: details.disk_mb.into(),
            network: details.network_enabled,
            ca_pem: sealed.ca_certificate.clone(),
        };
        let origin = details.origin.as_ref().map(|origin| origin.checkpoint_id);
        if let Some(checkpoint) = state.restoring {
            self.driver.stop(id).await.map_err(internal)?;
            let restored = self.driver.restore(id, &checkpoint).await;
            restored.map_err(internal)?;
        } else if state.cause.is_fresh() {
            self.driver.stop(id).await.map_err(internal)?;
        } else if let (Some(checkpoint), StartCause::Created) = (origin, state.cause) {
            let given = self.driver.restore(id, &checkpoint).await;
            given.map_err(internal)?;
        } else if state.slept.is_some() {
            self.driver.resume(id).await.map_err(internal)?;
        }
        // Opening the set changes nothing in the world, so it need not wait for the sandbox.
        let (running, opened) = tokio::join!(self.driver.create(&spec), self.opened(state));
        self.join_up(id, state, running.map_err(internal)?, opened?)
            .await
    }

    /// Joins a running sandbox with its guest and its proxy.
    pub(super) async fn wire_up(
        self: &Arc<Self>,
        id: &SandboxId,
        state: &Sandbox,
        running: Running,
    ) -> Result<serde_json::Value, Failure> {
        let opened = self.opened(state).await?;
        self.join_up(id, state, running, opened).await
    }

    async fn opened(self: &Arc<Self>, state: &Sandbox) -> Result<Opened, Failure> {
        let (platform, own) = (self.clone(), state.clone());
        off_runtime(move || platform.open(&own)).await
    }

    async fn join_up(
        self: &Arc<Self>,
        id: &SandboxId,
        state: &Sandbox,
        running: Running,
        opened: Opened,
    ) -> Result<serde_json::Value, Failure> {
        let (details, sealed) = parts_of(state)?;
        let Opened {
            ca,
            envs,
            image,
            policy,
        } = opened;
        let revision = state.sealed_revision;
        let guest = GuestClient::connect(&running.guest_socket)
            .await
            .map_err(internal)?;
        let uptime = guest.hello(GUEST_READY_MAX).await.map_err(internal)?.uptime;
        let (enforced, gauges) = (running.limits, running.gauges.clone());
        let limits = serde_json::to_value(enforced)?;
        // A size that was set while the server went down is on record and not in the world yet.
        if let (Some(cpu_percent), memory_mb) = (state.scaling.cpu_percent, details.memory_mb)
            && let Err(error) = self.driver.resize(id, memory_mb.into(), cpu_percent).await
        {
            tracing::warn!(%error, sandbox = %id, "the sandbox's size could not be set");
        }
        // A dead token stays where it was: programs see what they saw before.
        let dead = state.revoked.iter();
        let tokens = dead.map(|dead| (dead.name.clone(), dead.token.clone()));
        let mut injected: BTreeMap<String, String> = tokens.collect();
        let alive = sealed.secrets.iter();
        injected.extend(alive.map(|entry| (entry.name.clone(), entry.token.clone())));
        let governed =
            !envs.is_empty() || !injected.is_empty() || !details.egress_allowlist.is_empty();
        injected.extend(envs);
        let mut base = base_environment(governed && details.network_enabled);
        base.extend(image.env);
        let exited = running.exit_watch();
        let (proxy, traffic) = ProxyActor::start(
            ProxyParts {
                sandbox: id.clone(),
                metadata: Metadata::new(self, id, details.org_id, uptime),
                org: details.org_id,
                settings: self.egress.clone(),
                ca,
                policy,
                revision,
                attachment: running.egress,
                log: self.log.clone(),
                recorders: self.recorders.clone(),
                counters: self.counters.clone(),
            },
            &self.proxy_arbiters.next(),
        );
        let kills = Arc::new(Kills::new(gauges.clone()));
        let live = Arc::new(LiveSandbox {
            details: details.clone(),
            log: SandboxLog::start(
                self.driver.log_folder(id),
                (&guest, uptime),
                &kills,
                &self.heard_of(id),
            ),
            guest,
            proxy,
            base,
            workdir: image.workdir,
            injected,
            policy_revision: revision.into(),
            kills,
            gauges,
            limits: enforced,
            traffic,
            activity: Activity::new(details.timeout_sec),
            samples: Samples::default(),
        });
        self.keep_live(id, &live);
        let (platform, watched) = (self.clone(), id.clone());
        // Not kept by who waits for its end: it holds a connection to the guest, and each wake has
        // one of its own.
        let (left, live) = (live.log.ended(), Arc::downgrade(&live));
        tokio::spawn(async move {
            if left.run_until_cancelled(exited.wait()).await.is_some()
                && let Some(live) = live.upgrade()
            {
                platform.ended_by_itself(&watched, &live).await;
            }
        });
        // A secret that was rotated while the sandbox came up found no proxy to tell.
        let now = self.sandboxes.inspect(&Sandbox::stream(id)).await?;
        self.renew_policy(id, &now).await?;
        Ok(limits)
    }

    /// Opens what the log has of a sandbox under its data key. Blocks.
    fn open(&self, state: &Sandbox) -> Result<Opened, Failure> {
        let (details, sealed) = parts_of(state)?;
        let stream = Sandbox::stream(&details.sandbox_id);
        let ca_key = self.unseal(&stream, SEALED_KIND, "ca-key", &sealed.ca_key)?;
        let envs = self.unseal(&stream, SEALED_KIND, "envs", &sealed.envs)?;
        Ok(Opened {
            ca: SandboxCa::load(&sealed.ca_certificate, &ca_key).map_err(internal)?,
            envs: serde_json::from_slice(envs.expose())?,
            image: match &sealed.image {
                None => ImageDefaults::default(),
                Some(said) => {
                    let said = self.unseal(&stream, SEALED_KIND, DEFAULTS, said)?;
                    serde_json::from_slice(said.expose())?
                }
            },
            policy: self.policy(state)?,
        })
    }

    /// Who may receive which value, from the log's ciphertexts. Blocks.
    fn policy(&self, state: &Sandbox) -> Result<Policy, Failure> {
        let (details, sealed) = parts_of(state)?;
        let stream = Sandbox::stream(&details.sandbox_id);
        let mut bindings = Vec::with_capacity(sealed.secrets.len());
        for entry in &sealed.secrets {
            let name = format!("secret:{}", entry.name);
            bindings.push(Binding {
                name: entry.name.clone(),
                token: parse(&entry.token)?,
                value: self.unseal(&stream, SEALED_KIND, &name, &entry.sealed)?,
                hosts: parse_all(&entry.allowed_hosts)?,
                placement: read_placement(entry.placement.as_ref()).map_err(internal)?,
            });
        }
        let allowlist = parse_all(&details.egress_allowlist)?;
        let dead = state.revoked.iter();
        let revoked: Result<_, Failure> = dead
            .map(|dead| Ok((parse(&dead.token)?, dead.name.clone())))
            .collect();
        let policy = Policy::new(allowlist, bindings, details.network_enabled, true);
        Ok(policy.with_revoked(revoked?))
    }

    /// Has the running proxy use what the log says now.
    pub(super) async fn renew_policy(
        self: &Arc<Self>,
        id: &SandboxId,
        state: &Arc<Sandbox>,
    ) -> Result<(), Failure> {
        let revision = state.sealed_revision;
        if let Some(live) = self.find_live(id).filter(|live| live.is_behind(revision)) {
            let (platform, state) = (self.clone(), state.clone());
            let policy = off_runtime(move || platform.policy(&state)).await?;
            live.renew_policy(policy, revision).await;
        }
        Ok(())
    }

    /// The guest is gone and nobody asked for it.
    async fn ended_by_itself(&self, id: &SandboxId, live: &Arc<LiveSandbox>) {
        // Only for the sandbox that was watched: it may have been stopped or started anew.
        if !self
            .find_live(id)
            .is_some_and(|now| Arc::ptr_eq(&now, live))
        {
            return;
        }
        let _in_work = self.begin_work(id);
        if let Err(error) = self.put_out(id).await {
            tracing::error!(%error, sandbox = %id, "what is left of a sandbox could not be ended");
        }
        let who = Who {
            org: Some(live.details.org_id),
            ..Who::system()
        };
        let command = SandboxCommand::Fail {
            reason: "the sandbox's first process ended".to_owned(),
            at: OffsetDateTime::now_utc(),
        };
        let stream = Sandbox::stream(id);
        if let Err(error) = self.execute(&self.sandboxes, &stream, command, &who).await {
            tracing::error!(%error, sandbox = %id, "the end of a sandbox could not be recorded");
        }
    }

    pub(super) fn keep_live(&self, id: &SandboxId, live: &Arc<LiveSandbox>) {
        let mut all = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(id.clone(), live.clone());
    }

    /// Every sandbox that is attached.
    pub(super) fn all_live(&self) -> Vec<Arc<LiveSandbox>> {
        let all = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect()
    }

    /// Takes a sandbox from those that calls find, unless it was used in time (or in any case).
    pub(super) fn remove_live(
        &self,
        id: &SandboxId,
        only_overdue: bool,
    ) -> Option<Arc<LiveSandbox>> {
        let mut all = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = |live: &Arc<LiveSandbox>| only_overdue && !live.activity.is_overdue();
        match all.get(id) {
            Some(live) if !stays(live) => all.remove(id),
            _ => None,
        }
    }

    /// Ends what is attached to a sandbox that was removed, and its egress.
    pub(super) async fn leave(&self, live: &LiveSandbox) {
        live.activity.leave();
        live.log.end();
        // A dead actor is closed already.
        let _ = live.proxy.send(Close).await;
    }

    /// Closed before anything else happens to the sandbox.
    pub(super) async fn drop_live(&self, id: &SandboxId) {
        if let Some(live) = self.remove_live(id, false) {
            self.leave(&live).await;
        }
    }

    /// Lets go of every sandbox, without stopping one: egress is closed, and what was decided
    /// about it is in the log when this returns (or three seconds have passed).
    pub async fn let_go(&self) {
        self.recorders.close();
        let all: Vec<_> = {
            let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.drain().map(|(_, live)| live).collect()
        };
        for live in all {
            live.proxy.do_send(Close);
        }
        let recorded = tokio::time::timeout(RECORDED_MAX, self.recorders.wait()).await;
        if recorded.is_err() {
            tracing::error!("the last egress decisions may be missing from the event log");
        }
    }

    /// Leaves nothing of the sandbox but its disk.
    async fn put_out(&self, id: &SandboxId) -> Result<(), Failure> {
        self.drop_live(id).await;
        self.driver.stop(id).await.map_err(internal)
    }

    /// Leaves nothing of the sandbox in the world.
    pub(super) async fn take_down(&self, id: &SandboxId) -> Result<(), Failure> {
        self.drop_live(id).await;
        self.forget_heard(id);
        self.driver.destroy(id).await.map_err(internal)
    }

    /// Stops a sandbox for good. Returns once nothing of it is left; stopping it twice is fine.
    pub async fn delete_sandbox(
        self: &Arc<Self>,
        caller: &Caller,
        id: &SandboxId,
        delete_store: bool,
    ) -> Result<(), Failure> {
        let _in_work = self.begin_work(id);
        let command = SandboxCommand::RequestStop {
            org: caller.org,
            intent: Ulid::generate(),
            reason: StopReason::UserRequested,
            at: OffsetDateTime::now_utc(),
        };
        let stream = Sandbox::stream(id);
        let done = self
            .execute(&self.sandboxes, &stream, command, &caller.who())
            .await?;
        // The intent is on record: whoever else waits for a turn finds the sandbox ended.
        let turn = self.take_turn(id).await;
        self.finish_stop(id, &done.state, &caller.who()).await?;
        drop(turn);
        if delete_store {
            let mut layers = done
                .state
                .details
                .iter()
                .flat_map(|details| &details.layers);
            let store = layers.rfind(|layer| layer.kind == LayerKind::Store);
            if let Some(store_id) = store.and_then(|layer| layer.id.parse().ok())
                && let Err(error) = self.delete_store(caller, &store_id).await
            {
                tracing::warn!(%error, sandbox = %id, "the sandbox's secret store was not deleted");
            }
        }
        Ok(())
    }

    /// Carries out the open intent to be gone, and records its outcome.
    pub(super) async fn finish_stop(
        &self,
        id: &SandboxId,
        state: &Sandbox,
        who: &Who,
    ) -> Result<(), Failure> {
        let Phase::Stopping(intent) = state.phase else {
            return Ok(());
        };
        let stream = Sandbox::stream(id);
        self.take_down(id).await?;
        let command = SandboxCommand::Stopped {
            intent,
            at: OffsetDateTime::now_utc(),
        };
        self.execute(&self.sandboxes, &stream, command, who).await?;
        // Last: after it nothing can open the sandbox's values any more.
        self.shred_or_keep(&stream).await;
        Ok(())
    }

    /// A sandbox as the caller may see it.
    pub async fn get_sandbox(
        &self,
        caller: &Caller,
        id: &SandboxId,
    ) -> Result<Arc<Sandbox>, Failure> {
        let state = self.sandboxes.inspect(&Sandbox::stream(id)).await?;
        match state.is_of(&caller.org) {
            true => Ok(state),
            false => Err(Reject::not_found("sandbox").into()),
        }
    }
}

/// What the trail tells of a failed start. The whole reason may name what is the operator's alone
/// (paths, devices, other programs' words): it is in the server's log.
fn told(failure: &Failure) -> String {
    match failure {
        Failure::Reject(reject) => reject.to_string(),
        _ => "the sandbox could not be started; the server's log has the reason".to_owned(),
    }
}

/// Settings and sealed set of a sandbox that has both.
fn parts_of(state: &Sandbox) -> Result<(&SandboxCreated, &SandboxSealed), Failure> {
    match (&state.details, &state.sealed) {
        (Some(details), Some(sealed)) => Ok((details, sealed)),
        _ => Err(Failure::Internal(
            "the sandbox has no sealed set".to_owned(),
        )),
    }
}

/// Reads back what was checked before it was recorded; a misfit fails closed.
fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Failure> {
    text.parse()
        .map_err(|error: T::Err| Failure::Internal(error.to_string()))
}

fn parse_all<T: std::str::FromStr<Err: std::fmt::Display>>(
    texts: &[String],
) -> Result<Vec<T>, Failure> {
    texts.iter().map(|text| parse(text)).collect()
}
