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
use tokio_util::task::TaskTracker;
use ulid::Ulid;

use crate::events::families::{EgressDecided, EgressEvent, Family};
use crate::events::{Actor as Who, Append, EventLog, Expected, NewEvent, StreamId};
use crate::ids::{OrgId, SandboxId};
use crate::proxy::{Decision, EgressSettings, Policy, SandboxCa, SandboxProxy, Target};
use crate::sandbox::EgressAttachment;

/// Decisions waiting to be recorded before connections wait.
const DECISIONS_MAX: usize = 1024;
/// Decisions in one record.
const BATCH_MAX: usize = 128;
/// Longest a decision waits for others before it is recorded.
const BATCH_WAIT: Duration = Duration::from_millis(200);
/// Attempts to record a batch; after them the batch goes to the server's own log.
const RECORD_ATTEMPTS_MAX: u32 = 5;

/// The actor.
pub struct ProxyActor {
    sandbox: SandboxId,
    proxy: Arc<SandboxProxy>,
    attachment: Option<EgressAttachment>,
    revision: u64,
}

/// What a proxy actor is made of.
pub struct ProxyParts {
    /// Whose egress it is.
    pub sandbox: SandboxId,
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
    /// Starts the actor on `arbiter`.
    pub fn start(parts: ProxyParts, arbiter: &ArbiterHandle) -> Addr<Self> {
        let ProxyParts {
            sandbox,
            org,
            settings,
            ca,
            policy,
            revision,
            attachment,
            log,
            recorders,
        } = parts;
        let (decisions, recorded) = mpsc::channel(DECISIONS_MAX);
        let proxy = SandboxProxy::new(settings, ca, Some(policy), decisions);
        // The recorder outlives the actor: it ends when the last connection has reported.
        let recorder = Recorder {
            sandbox: sandbox.clone(),
            org,
            log,
        };
        arbiter.spawn(recorders.track_future(recorder.run(recorded)));
        Self::start_in_arbiter(arbiter, move |_| Self {
            sandbox,
            proxy,
            attachment: Some(attachment),
            revision,
        })
    }
}

impl Actor for ProxyActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(mut attachment) = self.attachment.take() else {
            return;
        };
        let proxy = self.proxy.clone();
        let accept = async move {
            while let Some(connection) = attachment.accept().await {
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

/// Writes decisions to the log in batches.
struct Recorder {
    sandbox: SandboxId,
    org: OrgId,
    log: EventLog,
}

impl Recorder {
    async fn run(self, mut decisions: mpsc::Receiver<Decision>) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
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
            self.record(&batch).await;
            batch.clear();
        }
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
        let event = EgressEvent::Decided(EgressDecided {
            sandbox_id: self.sandbox.clone(),
            org_id: self.org,
            decisions,
        });
        let stream = StreamId::of("egress", &self.sandbox);
        let data = event.data().ok()?;
        Some(Append {
            command: Ulid::generate(),
            expected: vec![(stream.clone(), Expected::Any)],
            events: vec![NewEvent {
                id: Ulid::generate(),
                stream,
                kind: event.kind().to_owned(),
                data,
            }],
            actor: Who {
                org: Some(self.org),
                ..Who::system()
            },
            correlation: None,
            causation: None,
        })
    }
}
