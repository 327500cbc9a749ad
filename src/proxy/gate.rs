//! One sandbox's proxy: its policy, its certificate authority, and the connections it carries.
//!
//! Invariants: connections hold nothing of a policy longer than a request or a tunnel it still
//! permits; closing cuts them all; their number and their silence are bounded.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::timeout;

use super::ca::SandboxCa;
use super::connection::route;
use super::decision::{Announcement, Decision, Protocol, Record};
use super::dial::Dialer;
use super::explicit;
use super::grants::Grants;
use super::io::{Meter, Metered, Rewind, Stream, Traffic};
use super::name::Host;
use super::policy::{HostRules, Policy};
use super::refusal::Refusal;
use super::revoked::Revoked;
use super::settings::EgressSettings;
use super::tally::Tally;
use super::turns::Share;
use super::upstream::{IDLE_TIMEOUT as IDLE_CONNECTION_TIMEOUT, Upstreams};

/// Connections of one sandbox at once.
const CONNECTIONS_MAX: usize = 256;
/// Request bodies of one sandbox held in memory at once, four mebibytes each at most.
const GATHERED_BODIES_MAX: usize = 32;
/// A connection on which nothing moves this long is cut.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// Longest a request waits for its record to be durable (strict audit).
const ANNOUNCE_WAIT: Duration = Duration::from_secs(5);

/// Where a connection of a sandbox was meant to go.
#[derive(Debug, Clone)]
pub struct Target {
    /// The name the sandbox's DNS stub was asked for; `None` for a bare IP literal.
    pub name: Option<String>,
    /// The address connected to (synthetic when there is a name).
    pub ip: IpAddr,
    /// The port connected to.
    pub port: u16,
}

/// The way out of one sandbox.
pub struct SandboxProxy {
    dialer: Dialer,
    ca: SandboxCa,
    policy: watch::Sender<Option<Arc<Policy>>>,
    closings: watch::Sender<u64>,
    decisions: Sender<Decision>,
    announcements: OnceLock<Sender<Announcement>>,
    revoked: Arc<Revoked>,
    grants: Arc<Grants>,
    slots: Arc<Semaphore>,
    gathering: Arc<Semaphore>,
    upstreams: Arc<Upstreams>,
    share: Share,
    traffic: Arc<Traffic>,
}

impl SandboxProxy {
    /// A proxy that is closed (answers 503) while `policy` is `None`. `decisions` must be read:
    /// when it stays full, or its reader is gone, requests are refused.
    pub fn new(
        settings: Arc<EgressSettings>,
        ca: SandboxCa,
        policy: Option<Policy>,
        decisions: Sender<Decision>,
    ) -> Arc<Self> {
        let revoked = Arc::<Revoked>::default();
        let grants = Arc::<Grants>::default();
        let policy = policy.map(|policy| Arc::new(policy.joined(&revoked, &grants)));
        revoked.set_present(policy.as_ref());
        Arc::new(Self {
            dialer: Dialer::new(settings),
            ca,
            policy: watch::Sender::new(policy),
            closings: watch::Sender::new(0),
            decisions,
            announcements: OnceLock::new(),
            revoked,
            grants,
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            gathering: Arc::new(Semaphore::new(GATHERED_BODIES_MAX)),
            upstreams: Upstreams::new(IDLE_CONNECTION_TIMEOUT),
            share: Share::new(),
            traffic: Arc::default(),
        })
    }

    /// Whom to tell what is about to be sent, with [`EgressSettings::strict_audit`]; without anybody
    /// to tell nothing that carries a secret is sent then. The first one stays.
    pub fn announce_to(&self, announcements: Sender<Announcement>) {
        let _ = self.announcements.set(announcements);
    }

    /// Swaps the policy; the next request is judged by it, and what it no longer permits ends:
    /// tunnels, and requests to a host that it takes away or with a secret that it revokes or binds
    /// elsewhere, which are told so before this returns. Others go on with the values they have.
    pub fn set_policy(&self, policy: Policy) {
        let mut policy = policy.joined(&self.revoked, &self.grants);
        if let Some(before) = self.policy.borrow().as_ref() {
            policy = policy.following(before);
        }
        let policy = Arc::new(policy);
        self.revoked.set_present(Some(&policy));
        self.policy.send_replace(Some(policy.clone()));
        self.upstreams.keep(|host| policy.judge(host).is_ok());
    }

    /// Drops the policy and cuts open connections; a later [`set_policy`](Self::set_policy)
    /// opens the proxy again.
    pub fn close(&self) {
        self.revoked.set_present(None);
        self.policy.send_replace(None);
        self.upstreams.clear();
        self.closings
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// What its connections have carried so far; counts on while the proxy lives.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.traffic.clone()
    }

    /// The certificate to put into the sandbox's trust store.
    pub fn ca_certificate_pem(&self) -> &str {
        self.ca.certificate_pem()
    }

    /// Carries one accepted connection of the sandbox until it ends. Errors end the connection
    /// and are recorded; connections beyond the sandbox's share are dropped.
    pub async fn serve(self: Arc<Self>, stream: TcpStream, target: Target) {
        let host = match &target.name {
            Some(name) => name.parse().map_err(|_| Refusal::HostName),
            None => Ok(Host::Address(target.ip)),
        };
        let seen = host.clone().unwrap_or(Host::Address(target.ip));
        let Some(_slot) = self.slot(&seen, target.port) else {
            return;
        };
        let host = match host {
            Ok(host) => host,
            // The record shows the address: the name is text of the sandbox's choosing.
            Err(refusal) => {
                return self
                    .refuse(&refusal, &Host::Address(target.ip), target.port)
                    .await;
            }
        };
        let (io, meter) = metered(stream, self.traffic.clone());
        let work = route(self.clone(), io, meter.clone(), host, target.port);
        self.carry(work, &meter).await;
    }

    /// Carries one accepted connection of a program that speaks to this proxy as its HTTP proxy:
    /// CONNECT, and absolute requests for `http://`, which carry no secret. Limits, records and
    /// rules are those of [`serve`](Self::serve).
    pub async fn serve_explicit(self: Arc<Self>, stream: TcpStream) {
        // A connection that is gone already has no address.
        let Ok(own) = stream.local_addr() else {
            return;
        };
        let host = Host::Address(own.ip());
        let Some(_slot) = self.slot(&host, own.port()) else {
            return;
        };
        let (io, meter) = metered(stream, self.traffic.clone());
        let work = explicit::serve(self.clone(), Rewind::new(io), meter.clone(), host);
        self.carry(work, &meter).await;
    }

    /// Does `work` until it ends, the proxy closes, or nothing moves any more.
    async fn carry(&self, work: impl Future<Output = ()>, meter: &Meter) {
        let mut closings = self.closings.subscribe();
        tokio::select! {
            () = work => {}
            _ = closings.changed() => {}
            () = meter.idle_for(IDLE_TIMEOUT) => {}
        }
    }

    /// A connection's share of the sandbox; `None`, and recorded if there is room, when it has
    /// used it up.
    fn slot(&self, host: &Host, port: u16) -> Option<OwnedSemaphorePermit> {
        let slot = self.slots.clone().try_acquire_owned();
        if slot.is_err() {
            // A flood must not queue up for the trail: beyond its room it is only logged.
            tracing::warn!("connection limit of a sandbox reached");
            if self.decisions.capacity() > 0 {
                let mut record = self.record(host, port, Protocol::Tunnel);
                record.refused(&Refusal::ConnectionLimit);
            }
        }
        slot.ok()
    }

    pub(crate) fn settings(&self) -> &EgressSettings {
        self.dialer.settings()
    }

    pub(crate) fn ca(&self) -> &SandboxCa {
        &self.ca
    }

    pub(crate) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    pub(crate) fn upstreams(&self) -> &Arc<Upstreams> {
        &self.upstreams
    }

    pub(crate) fn gathering(&self) -> &Arc<Semaphore> {
        &self.gathering
    }

    /// With strict audit, waits until it is on record that this request is about to carry its
    /// secrets; `more_to_come` when its body may carry any of the host's.
    pub(crate) async fn announce(
        &self,
        rules: &HostRules,
        record: &Record,
        more_to_come: bool,
    ) -> Result<(), Refusal> {
        if !self.settings().strict_audit || !rules.substitutes() {
            return Ok(());
        }
        let more = rules.secret_names().filter(|_| more_to_come);
        let sending = record.sending(more).ok_or(Refusal::Internal)?;
        if sending.secrets.is_empty() {
            return Ok(());
        }
        let (recorded, durable) = oneshot::channel();
        let announcement = Announcement { sending, recorded };
        let announcements = self.announcements.get().ok_or(Refusal::AuditUnrecorded)?;
        let told = async {
            announcements.send(announcement).await.ok()?;
            durable.await.ok()
        };
        match timeout(ANNOUNCE_WAIT, told).await {
            Ok(Some(())) => Ok(()),
            _ => Err(Refusal::AuditUnrecorded),
        }
    }

    pub(crate) fn watch_policy(&self) -> watch::Receiver<Option<Arc<Policy>>> {
        self.policy.subscribe()
    }

    /// The current policy, if it lets `host` be spoken to, and the rule by which it does.
    pub(crate) fn judge(&self, host: &Host) -> Result<(Arc<Policy>, &'static str), Refusal> {
        let policy = self.policy.borrow().clone().ok_or(Refusal::Closed)?;
        let rule = policy.judge(host)?;
        match host {
            Host::Address(ip) if !self.settings().allow_private.iter().any(|n| n.contains(ip)) => {
                Err(Refusal::AddressLiteral)
            }
            _ => Ok((policy, rule)),
        }
    }

    pub(crate) fn record(&self, host: &Host, port: u16, protocol: Protocol) -> Record {
        let tally = Arc::new(Tally::of(self.share.clone()));
        Record::new(self.decisions.clone(), host, port, protocol, tally)
    }

    /// Records a refusal nobody can be told of.
    pub(crate) async fn refuse(&self, refusal: &Refusal, host: &Host, port: u16) {
        let mut record = self.record(host, port, Protocol::Tunnel);
        let _ = record.room().await;
        record.refused(refusal);
    }
}

/// The connection with a meter on it.
fn metered(stream: TcpStream, all: Arc<Traffic>) -> (Stream, Arc<Meter>) {
    // Without it small answers wait for acknowledgements; a socket that can't still works.
    let _ = stream.set_nodelay(true);
    let meter = Meter::new(all);
    (Box::new(Metered::new(stream, meter.clone())), meter)
}
