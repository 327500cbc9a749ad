//! The proxy actor: one for each sandbox. It holds the seal (policy, real values, certificate
//! authority), feeds it the connections that come out of the sandbox, and records what it decides.
//!
//! Invariants: the sealed-to-real map exists only in here, in memory; when the actor is gone, so
//! are its connections, and nobody accepts new ones (egress is closed). The byte path is not in
//! the mailbox: connections run as tasks on the actor's thread.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::announcer::announce;
use super::metadata::Metadata;
use super::stats::Counters;
use crate::events::families::{EgressAnnounced, EgressDecided, EgressEvent, observed};
use crate::events::{Append, EventLog, StreamId};
use crate::ids::{OrgId, SandboxId};
use crate::proxy::{
    Decision, EgressSettings, Policy, SandboxCa, SandboxProxy, Sending, Target, Traffic,
};
use crate::sandbox::EgressAttachment;

/// Decisions waiting to be recorded before connections wait.
const DECISIONS_MAX: usize = 1024;
/// Decisions in one record.
pub(super) const BATCH_MAX: usize = 128;
/// Longest a decision waits for others before it is recorded.
const BATCH_WAIT: Duration = Duration::from_millis(200);
/// Decisions a sandbox may have recorded at once, and each second from then on. Beyond it they
/// wait, and connections with them: one sandbox must not fill the server's disk by asking.
const BURST_MAX: u32 = 20_000;
const PER_SECOND_MAX: u32 = 200;
/// Attempts to record a batch; after them the batch goes to the server's own log.
const RECORD_ATTEMPTS_MAX: u32 = 5;

/// The actor.
pub struct ProxyActor {
    sandbox: SandboxId,
    metadata: Arc<Metadata>,
    proxy: Arc<SandboxProxy>,
    attachment: Option<EgressAttachment>,
    revision: u64,
}

/// What a proxy actor is made of.
pub struct ProxyParts {
    /// Whose egress it is.
    pub sandbox: SandboxId,
    /// What it finds at the metadata service's address.
    pub metadata: Arc<Metadata>,
    /// Its tenant.
    pub org: OrgId,
    /// The operator's settings.
    pub settings: Arc<EgressSettings>,
    /// The sandbox's certificate authority.
    pub ca: SandboxCa,
    /// Who may receive what.
    pub policy: Policy,
    /// Revision of the event that the policy is as new as.
    pub revision: u64,
    /// Where its connections come from.
    pub attachment: EgressAttachment,
    /// Where its decisions are recorded.
    pub log: EventLog,
    /// Who waits for the last of them when the server stops.
    pub recorders: TaskTracker,
    /// What the server counts.
    pub counters: Arc<Counters>,
}

/// A newer policy (a rotated secret, say) takes the place of the present one. An older one, sent
/// by somebody who was overtaken, changes nothing.
#[derive(Message)]
#[rtype(result = "()")]
pub struct SetPolicy {
    /// Who may receive what.
    pub policy: Policy,
    /// Revision of the event that it is as new as.
    pub revision: u64,
}

/// Closes egress and ends the actor.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Close;

impl ProxyActor {
    /// Starts the actor on `arbiter`; what its connections carry is counted in the second part.
    pub fn start(parts: ProxyParts, arbiter: &ArbiterHandle) -> (Addr<Self>, Arc<Traffic>) {
        let ProxyParts {
            sandbox,
            metadata,
            org,
            settings,
            ca,
            policy,
            revision,
            attachment,
            log,
            recorders,
            counters,
        } = parts;
        let (decisions, recorded) = mpsc::channel(DECISIONS_MAX);
        let strict = settings.strict_audit;
        let proxy = SandboxProxy::new(settings, ca, Some(policy), decisions);
        // The recorder outlives the actor: it ends when the last connection has reported.
        let recorder = Recorder {
            sandbox: sandbox.clone(),
            org,
            log,
            counters,
        };
        let traffic = proxy.traffic();
        if strict {
            let (announcements, waiting) = mpsc::channel(BATCH_MAX);
            proxy.announce_to(announcements);
            let recorder = recorder.clone();
            arbiter.spawn(recorders.track_future(announce(recorder, waiting)));
        }
        arbiter.spawn(recorders.track_future(recorder.run(recorded)));
        let actor = Self::start_in_arbiter(arbiter, move |_| Self {
            metadata,
            sandbox,
            proxy,
            attachment: Some(attachment),
            revision,
        });
        (actor, traffic)
    }
}

impl Actor for ProxyActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(mut attachment) = self.attachment.take() else {
            return;
        };
        let (proxy, metadata) = (self.proxy.clone(), self.metadata.clone());
        let accept = async move {
            while let Some(connection) = attachment.accept().await {
                let (name, ip) = (connection.name.as_deref(), connection.ip.into());
                if Metadata::is_meant(name, ip, connection.port) {
                    actix_rt::spawn(metadata.clone().serve(connection.stream));
                    continue;
                }
                let target = Target {
                    name: connection.name,
                    ip: connection.ip.into(),
                    port: connection.port,
                };
                actix_rt::spawn(proxy.clone().serve(connection.stream, target));
            }
        };
        ctx.spawn(accept.into_actor(self).map(|(), actor, ctx| {
            tracing::info!(sandbox = %actor.sandbox, "the sandbox's egress ended");
            ctx.stop();
        }));
    }

    fn stopped(&mut self, _ctx: &mut Self::Context) {
        self.proxy.close();
    }
}

impl Handler<SetPolicy> for ProxyActor {
    type Result = ();
    fn handle(&mut self, message: SetPolicy, _ctx: &mut Self::Context) {
        if message.revision > self.revision {
            self.revision = message.revision;
            self.proxy.set_policy(message.policy);
        }
    }
}

impl Handler<Close> for ProxyActor {
    type Result = ();
    fn handle(&mut self, _message: Close, ctx: &mut Self::Context) {
        self.proxy.close();
        ctx.stop();
    }
}

/// How fast a sandbox's decisions are recorded.
pub(super) struct Pace {
    /// When the burst will be whole again; in the past while it is.
    whole_at: Instant,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            whole_at: Instant::now(),
        }
    }

    /// When `count` more may be recorded, which counts as done.
    pub(super) fn admit(&mut self, count: usize, now: Instant) -> Instant {
        let cost = Duration::from_secs(1) / PER_SECOND_MAX;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.whole_at = self.whole_at.max(now) + cost.saturating_mul(count);
        self.whole_at.checked_sub(cost * BURST_MAX).unwrap_or(now)
    }
}

/// Writes decisions to the log in batches.
#[derive(Clone)]
pub(super) struct Recorder {
    sandbox: SandboxId,
    org: OrgId,
    log: EventLog,
    counters: Arc<Counters>,
}

impl Recorder {
    async fn run(self, mut decisions: mpsc::Receiver<Decision>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut pace = Pace::new();
        while let Some(first) = decisions.recv().await {
            batch.push(first);
            let full = tokio::time::sleep(BATCH_WAIT);
            tokio::pin!(full);
            while batch.len() < BATCH_MAX {
                tokio::select! {
                    () = &mut full => break,
                    more = decisions.recv() => match more {
                        Some(decision) => batch.push(decision),
                        None => break,
                    },
                }
            }
            batch.dedup_by(|next, entry| entry.absorb(next));
            self.counters.decided(&batch);
            let at = pace.admit(batch.len(), Instant::now());
            // At the end what is left is bounded, and the server waits for it.
            if !decisions.is_closed() {
                tokio::time::sleep_until(at).await;
            }
            self.record(&batch).await;
            batch.clear();
        }
    }

    /// Records requests that are about to be sent; whether they are durable now. Tried once: whoever
    /// waits for it is refused otherwise.
    pub(super) async fn record_sending(&self, sending: &[Sending]) -> bool {
        let values = sending.iter().map(serde_json::to_value);
        let Ok(sending) = values.collect() else {
            return false;
        };
        let event = EgressEvent::Announced(EgressAnnounced {
            sandbox_id: self.sandbox.clone(),
            org_id: self.org,
            sending,
        });
        let Some(append) = self.append_event(&event) else {
            return false;
        };
        let recorded = self.log.append(append).await;
        recorded
            .inspect_err(|error| {
                tracing::error!(%error, sandbox = %self.sandbox,
                    "requests with secrets are refused: they could not be recorded");
            })
            .is_ok()
    }

    async fn record(&self, batch: &[Decision]) {
        let Some(append) = self.append(batch) else {
            return;
        };
        for attempt in 1..=RECORD_ATTEMPTS_MAX {
            // The command keeps its id over the attempts, so that it is recorded once.
            match self.log.append(append.clone()).await {
                Ok(_) => return,
                Err(error) => {
                    tracing::error!(%error, attempt, sandbox = %self.sandbox,
                        "egress decisions could not be recorded");
                    tokio::time::sleep(Duration::from_millis(100) * 2u32.pow(attempt)).await;
                }
            }
        }
        // Kept where the operator can find them; they hold names, never values.
        tracing::error!(sandbox = %self.sandbox, lost = batch.len(),
            "egress decisions are missing from the event log");
    }

    fn append(&self, batch: &[Decision]) -> Option<Append> {
        let decisions: Vec<_> = batch
            .iter()
            .filter_map(|decision| serde_json::to_value(decision).ok())
            .collect();
        self.append_event(&EgressEvent::Decided(EgressDecided {
            sandbox_id: self.sandbox.clone(),
            org_id: self.org,
            decisions,
        }))
    }

    fn append_event(&self, event: &EgressEvent) -> Option<Append> {
        observed(StreamId::of("egress", &self.sandbox), event, self.org).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: however many decisions there are, the log grows by a bounded number a second, and a
    /// usual burst does not wait at all.
    #[test]
    fn a_flood_of_decisions_is_slowed_down() {
        let (begun, mut pace) = (Instant::now(), Pace::new());
        let mut admit = |count: u32| {
            let batches = count as usize / BATCH_MAX;
            let last = (0..batches).map(|_| pace.admit(BATCH_MAX, begun)).last();
            last.unwrap().saturating_duration_since(begun)
        };
        assert_eq!(admit(BURST_MAX), Duration::ZERO);
        assert!((98..102).contains(&admit(100 * PER_SECOND_MAX).as_secs()));
    }
}
