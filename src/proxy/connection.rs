//! One sandbox's proxy, and the way of one connection through it.
//!
//! | The connection begins with | and goes |
//! |---|---|
//! | TLS, host without secrets | through unread, to the address checked for the name |
//! | TLS, host with secrets (or all is inspected, or ECH is offered) | decrypted, request by request |
//! | TLS, host refused | decrypted with our certificate, each request answered with the reason |
//! | TLS without SNI, or SNI of another name | refused with an alert |
//! | HTTP | request by request under the same rules, without substitution |
//! | anything else, or one second of silence | through unread if [`Policy::permits_opaque`], else closed |
//!
//! A connection that was silent and then speaks before the host does is judged anew by what it
//! says, so that waiting gains nothing.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc::Sender;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::ca::SandboxCa;
use super::decision::{Decision, Protocol, Record};
use super::dial::Dialer;
use super::exchange::Exchange;
use super::head::Origin;
use super::io::{Duplex, Meter, Metered, Rewind, Stream};
use super::name::Host;
use super::opening::{self, Hello, Opening};
use super::policy::Policy;
use super::refusal::Refusal;
use super::settings::EgressSettings;
use super::{explicit, tunnel};

/// Connections of one sandbox at once.
const CONNECTIONS_MAX: usize = 256;
/// Bytes of one head, request or response.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Fields of one head.
pub(crate) const HEAD_FIELDS_MAX: usize = 128;
/// Time for a request head, idle time between requests included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the TLS handshake with the sandbox.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection on which nothing moves this long is cut.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// Silence after which the host may be one that speaks first (SSH, SMTP, databases).
const SILENCE: Duration = Duration::from_secs(1);
/// How long a connection may stay silent otherwise.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(30);

/// Addresses of the sandbox's own services, as programs inside see them.
const SERVICE_ADDRESSES: [Ipv4Addr; 2] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 169, 253),
];
/// Port of the explicit proxy.
const EXPLICIT_PORT: u16 = 3128;
/// Port of the metadata service.
const METADATA_PORT: u16 = 80;

/// A fatal `unrecognized_name` alert (RFC 6066, section 3), before any handshake.
const ALERT_UNRECOGNIZED_NAME: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 112];

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
    slots: Arc<Semaphore>,
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
        Arc::new(Self {
            dialer: Dialer::new(settings),
            ca,
            policy: watch::Sender::new(policy.map(Arc::new)),
            closings: watch::Sender::new(0),
            decisions,
            slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        })
    }

    /// Swaps the policy; the next request is judged by it, and tunnels it no longer permits end.
    pub fn set_policy(&self, policy: Policy) {
        self.policy.send_replace(Some(Arc::new(policy)));
    }

    /// Drops the policy and cuts open connections; a later [`set_policy`](Self::set_policy)
    /// opens the proxy again.
    pub fn close(&self) {
        self.policy.send_replace(None);
        self.closings
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// The certificate to put into the sandbox's trust store.
    pub fn ca_certificate_pem(&self) -> &str {
        self.ca.certificate_pem()
    }

    /// Carries one accepted connection of the sandbox until it ends. Errors end the connection
    /// and are recorded; connections beyond the sandbox's share are dropped.
    pub async fn serve(self: Arc<Self>, stream: TcpStream, target: Target) {
        let mut closings = self.closings.subscribe();
        let host = match &target.name {
            Some(name) => name.parse().map_err(|_| Refusal::HostName),
            None => Ok(Host::Address(target.ip)),
        };
        let Ok(_slot) = self.slots.clone().try_acquire_owned() else {
            // A flood must not queue up for the trail: beyond its room it is only logged.
            tracing::warn!("connection limit of a sandbox reached");
            if self.decisions.capacity() > 0 {
                let host = host.unwrap_or(Host::Address(target.ip));
                let mut record = self.record(&host, target.port, Protocol::Tunnel);
                record.refused(&Refusal::ConnectionLimit);
            }
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
        let _ = stream.set_nodelay(true);
        let meter = Meter::new();
        let io: Stream = Box::new(Metered::new(stream, meter.clone()));
        let work = route(self.clone(), io, meter.clone(), host, target.port);
        tokio::select! {
            () = work => {}
            _ = closings.changed() => {}
            () = meter.idle_for(IDLE_TIMEOUT) => {}
        }
    }

    pub(crate) fn settings(&self) -> &EgressSettings {
        self.dialer.settings()
    }

    pub(crate) fn dialer(&self) -> &Dialer {
        &self.dialer
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
        Record::new(self.decisions.clone(), host, port, protocol)
    }

    /// Records a refusal nobody can be told of.
    async fn refuse(&self, refusal: &Refusal, host: &Host, port: u16) {
        let mut record = self.record(host, port, Protocol::Tunnel);
        let _ = record.room().await;
        record.refused(refusal);
    }
}

/// The server side of every HTTP connection with a sandbox.
pub(crate) fn http_server() -> http1::Builder {
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEAD_FIELDS_MAX);
    server
}

async fn route(proxy: Arc<SandboxProxy>, io: Stream, meter: Arc<Meter>, host: Host, port: u16) {
    match &host {
        Host::Address(IpAddr::V4(ip)) if SERVICE_ADDRESSES.contains(ip) => match port {
            EXPLICIT_PORT => explicit::serve(proxy, Rewind::new(io), meter, host).await,
            METADATA_PORT => no_metadata(io, &host).await,
            _ => proxy.refuse(&Refusal::AddressLiteral, &host, port).await,
        },
        _ => transparent(proxy, io, meter, host, port).await,
    }
}

async fn no_metadata(io: Stream, host: &Host) {
    let service =
        service_fn(move |_| async move { Ok::<_, Infallible>(Refusal::NoMetadata.response(host)) });
    let _ = http_server()
        .serve_connection(TokioIo::new(io), service)
        .await;
}

/// A connection to `host`, whatever it speaks. Boxed: a CONNECT tunnel comes back here.
pub(crate) fn transparent(
    proxy: Arc<SandboxProxy>,
    io: Stream,
    meter: Arc<Meter>,
    host: Host,
    port: u16,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let way = Way {
            proxy,
            meter,
            host,
            port,
        };
        let mut io = Rewind::new(io);
        let patience = if way.permits_opaque() {
            SILENCE
        } else {
            FIRST_BYTE_TIMEOUT
        };
        match opening::read(&mut io, patience).await {
            Opening::Silent if way.permits_opaque() => way.silent(io).await,
            opening => way.go(opening, io, None).await,
        }
    })
}

/// One connection's way out.
struct Way {
    proxy: Arc<SandboxProxy>,
    meter: Arc<Meter>,
    host: Host,
    port: u16,
}

impl Way {
    async fn go(self, opening: Opening, io: Rewind, dialled: Option<TcpStream>) {
        match opening {
            Opening::Tls(hello) => self.tls(hello, io).await,
            Opening::Http => self.requests(io, false).await,
            Opening::Opaque => self.opaque(io, dialled).await,
            Opening::TlsMalformed => self.refuse(&Refusal::TlsMalformed).await,
            Opening::Silent | Opening::Closed => {}
        }
    }

    fn permits_opaque(&self) -> bool {
        let Ok((policy, _)) = self.proxy.judge(&self.host) else {
            return false;
        };
        !self.proxy.settings().inspect_all && opaque_to(&policy, &self.host)
    }

    /// A connection that waits for the host to speak first, or has not made up its mind.
    async fn silent(self, mut io: Rewind) {
        let far = match self.proxy.dialer.connect(&self.host, self.port).await {
            Ok(far) => far,
            Err(refusal) => return self.refuse(&refusal).await,
        };
        tokio::select! {
            // Bytes, not the end of the stream or an error: those are the client's to see too,
            // which the tunnel takes care of.
            _ = far.readable() => self.opaque(io, Some(far)).await,
            _ = io.look() => {
                let opening = opening::read(&mut io, FIRST_BYTE_TIMEOUT).await;
                self.go(opening, io, Some(far)).await;
            }
        }
    }

    async fn opaque(self, io: Rewind, dialled: Option<TcpStream>) {
        let rule = match self.proxy.judge(&self.host) {
            Ok((_, rule)) if self.permits_opaque() => rule,
            Ok(_) => return self.refuse(&Refusal::Opaque).await,
            Err(refusal) => return self.refuse(&refusal).await,
        };
        let far = match dialled {
            Some(far) => Ok(far),
            None => self.proxy.dialer.connect(&self.host, self.port).await,
        };
        match far {
            Ok(far) => {
                self.tunnel(io, far, rule, |host, policy| opaque_to(policy, host))
                    .await
            }
            Err(refusal) => self.refuse(&refusal).await,
        }
    }

    async fn tls(self, hello: Hello, io: Rewind) {
        if let Err(refusal) = self.check_server_name(&hello) {
            return self.alert(io, &refusal).await;
        }
        let Ok((policy, rule)) = self.proxy.judge(&self.host) else {
            return self.requests(io, true).await;
        };
        let inspect = self.proxy.settings().inspect_all || hello.encrypted_hello;
        if inspect || !unread_to(&policy, &self.host) {
            return self.requests(io, true).await;
        }
        match self.proxy.dialer.connect(&self.host, self.port).await {
            Ok(far) => {
                self.tunnel(io, far, rule, |host, policy| unread_to(policy, host))
                    .await
            }
            // Decrypted, so that each request gets the reason in words.
            Err(_) => self.requests(io, true).await,
        }
    }

    fn check_server_name(&self, hello: &Hello) -> Result<(), Refusal> {
        match (&self.host, &hello.server_name) {
            (Host::Address(_), None) => Ok(()),
            (_, None) => Err(Refusal::SniMissing),
            (host, Some(name)) if name.parse().as_ref() == Ok(host) => Ok(()),
            _ => Err(Refusal::SniMismatch),
        }
    }

    /// Serves requests, decrypted first when `tls`.
    async fn requests(self, io: Rewind, tls: bool) {
        let origin = Origin {
            host: self.host.clone(),
            port: self.port,
            tls,
        };
        if !tls {
            return serve_requests(self.proxy, io, &origin).await;
        }
        let Ok(config) = self.proxy.ca.server_config(&self.host) else {
            return self.refuse(&Refusal::Internal).await;
        };
        match timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(io)).await {
            Ok(Ok(stream)) => serve_requests(self.proxy, stream, &origin).await,
            failed => {
                if let Ok(Err(error)) = failed {
                    tracing::debug!(host = %self.host, %error, "TLS with the sandbox failed");
                }
                let reason = self
                    .proxy
                    .judge(&self.host)
                    .err()
                    .unwrap_or(Refusal::SandboxTls);
                self.refuse(&reason).await;
            }
        }
    }

    async fn tunnel(
        self,
        io: Rewind,
        far: TcpStream,
        rule: &str,
        permitted: impl Fn(&Host, &Policy) -> bool,
    ) {
        let mut record = self.proxy.record(&self.host, self.port, Protocol::Tunnel);
        record.up = self.meter.read.clone();
        record.down = self.meter.written.clone();
        if let Err(refusal) = record.room().await {
            return record.refused(&refusal);
        }
        let still =
            |policy: &Policy| policy.judge(&self.host).is_ok() && permitted(&self.host, policy);
        tunnel::run(&self.proxy, io, far, record, rule, still).await;
    }

    /// Refuses a ClientHello: an alert is all its sender can be told.
    async fn alert(self, mut io: Rewind, refusal: &Refusal) {
        self.refuse(refusal).await;
        let farewell = async {
            io.write_all(&ALERT_UNRECOGNIZED_NAME).await?;
            io.shutdown().await
        };
        let _ = timeout(HANDSHAKE_TIMEOUT, farewell).await;
    }

    async fn refuse(&self, refusal: &Refusal) {
        tracing::debug!(host = %self.host, rule = refusal.rule(), "connection refused");
        self.proxy.refuse(refusal, &self.host, self.port).await;
    }
}

/// Whether TLS to `host` needs no looking into.
fn unread_to(policy: &Policy, host: &Host) -> bool {
    match host {
        Host::Name(name) => !policy.has_secrets_for(name),
        Host::Address(_) => true,
    }
}

/// Whether bytes that are neither TLS nor HTTP may go to `host`. An address passes here only
/// because the operator listed it.
fn opaque_to(policy: &Policy, host: &Host) -> bool {
    match host {
        Host::Name(name) => policy.permits_opaque(name),
        Host::Address(_) => true,
    }
}

async fn serve_requests(proxy: Arc<SandboxProxy>, io: impl Duplex + 'static, origin: &Origin) {
    let exchange = Exchange::new(proxy.clone());
    let exchange = &exchange;
    let service = service_fn(move |request: Request<Incoming>| async move {
        Ok::<_, Infallible>(exchange.answer(request, origin).await)
    });
    if let Err(error) = http_server()
        .serve_connection(TokioIo::new(io), service)
        .await
    {
        tracing::debug!(host = %origin.host, %error, "connection with the sandbox ended");
        if error.is_parse() {
            proxy
                .refuse(&Refusal::Framing("malformed"), &origin.host, origin.port)
                .await;
        }
    }
}
