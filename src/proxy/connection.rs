//! The way of one connection through a sandbox's proxy.
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
//! One that stays silent for four seconds where that is refused is told so, but on the ports of HTTP.
//! A connection that was silent and then speaks before the host does is judged anew by what it
//! says, so that waiting gains nothing.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::decision::{Protocol, tls_version};
use super::gate::SandboxProxy;
use super::io::{Gulp, Meter, Rewind, Stream, TLS_BUFFER_BYTES_MAX};
use super::name::Host;
use super::opening::{self, Hello, Opening};
use super::origin::Origin;
use super::policy::Policy;
use super::refusal::Refusal;
use super::serve::{self, http_server};
use super::{explicit, tunnel};

/// Bytes of one head, request or response.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Fields of one head; over HTTP/1 hyper's own bound, without which it sets memory aside for each.
pub(crate) const HEAD_FIELDS_MAX: usize = 100;
/// Time for the TLS handshake with the sandbox.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which the host may be one that speaks first (SSH, SMTP, databases).
const SILENCE: Duration = Duration::from_secs(1);
/// Silence after which a program is told that its host must not speak first, on ports where that is
/// usual. Where programs connect ahead of need, to HTTP, they may be silent for longer.
const SILENCE_TOLD: Duration = Duration::from_secs(4);
/// Ports on which the program speaks first.
const HTTP_PORTS: [u16; 4] = [80, 443, 8080, 8443];
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

/// Takes a connection to the sandbox's own services or on its way out.
pub(crate) async fn route(
    proxy: Arc<SandboxProxy>,
    io: Stream,
    meter: Arc<Meter>,
    host: Host,
    port: u16,
) {
    match &host {
        Host::Address(IpAddr::V4(ip)) if SERVICE_ADDRESSES.contains(ip) => match port {
            EXPLICIT_PORT => explicit::serve(proxy, Rewind::new(io), meter, host).await,
            METADATA_PORT => no_metadata(io, &host).await,
            _ => proxy.refuse(&Refusal::AddressLiteral, &host, port).await,
        },
        _ => transparent(proxy, Rewind::new(io), meter, host, port).await,
    }
}

async fn no_metadata(io: Stream, host: &Host) {
    let service = service_fn(move |request: Request<Incoming>| async move {
        Ok::<_, Infallible>(Refusal::NoMetadata.response(host, request.version()))
    });
    let _ = http_server()
        .serve_connection(TokioIo::new(io), service)
        .await;
}

/// A connection to `host`, whatever it speaks. Boxed: a CONNECT tunnel comes back here.
pub(crate) fn transparent(
    proxy: Arc<SandboxProxy>,
    mut io: Rewind,
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
        let tells = !HTTP_PORTS.contains(&port);
        let patience = match way.permits_opaque() {
            true => SILENCE,
            false if tells => SILENCE_TOLD,
            false => FIRST_BYTE_TIMEOUT,
        };
        match opening::read(&mut io, patience).await {
            Opening::Silent if way.permits_opaque() => way.silent(io).await,
            Opening::Silent if tells => way.tell_silent(io).await,
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
        let far = match self.proxy.dialer().connect(&self.host, self.port).await {
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

    /// Tells a program that waits for a greeting why none comes, in a line as the protocol that is usual
    /// on the port has them.
    async fn tell_silent(self, mut io: Rewind) {
        let refusal = self.proxy.judge(&self.host).err();
        let refusal = refusal.unwrap_or(Refusal::ServerFirst);
        self.refuse(&refusal).await;
        let greeting = match self.port {
            21 => "421 ",
            25 | 587 => "554 ",
            110 => "-ERR ",
            143 => "* BYE ",
            _ => "",
        };
        let line = format!("{greeting}{refusal}\r\n");
        let farewell = async {
            io.write_all(line.as_bytes()).await?;
            io.shutdown().await
        };
        let _ = timeout(HANDSHAKE_TIMEOUT, farewell).await;
    }

    async fn opaque(self, io: Rewind, dialled: Option<TcpStream>) {
        let rule = match self.proxy.judge(&self.host) {
            Ok((_, rule)) if self.permits_opaque() => rule,
            Ok(_) => return self.refuse(&Refusal::Opaque).await,
            Err(refusal) => return self.refuse(&refusal).await,
        };
        let far = match dialled {
            Some(far) => Ok(far),
            None => self.proxy.dialer().connect(&self.host, self.port).await,
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
        match self.proxy.dialer().connect(&self.host, self.port).await {
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
        let origin = match Origin::new(self.host.clone(), self.port, tls) {
            Ok(origin) => origin,
            Err(refusal) => return self.refuse(&refusal).await,
        };
        if !tls {
            return serve::requests(self.proxy, io, origin, false, None).await;
        }
        let config = match self.server_config().await {
            Ok(config) => config,
            Err(refusal) => return self.alert(io, &refusal).await,
        };
        let acceptor = TlsAcceptor::from(config);
        let accepted = acceptor.accept_with(Gulp::new(io), |session| {
            session.set_buffer_limit(Some(TLS_BUFFER_BYTES_MAX));
        });
        match timeout(HANDSHAKE_TIMEOUT, accepted).await {
            Ok(Ok(stream)) => {
                let session = stream.get_ref().1;
                let two = session.alpn_protocol() == Some(b"h2");
                let tls = tls_version(session);
                serve::requests(self.proxy, stream, origin, two, tls).await;
            }
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

    /// Our certificate for the host; one that has to be made waits for its turn.
    async fn server_config(&self) -> Result<Arc<ServerConfig>, Refusal> {
        let ca = self.proxy.ca();
        if let Some(config) = ca.known_config(&self.host) {
            return Ok(config);
        }
        let turn = ca.mint_turn().ok_or(Refusal::LeafLimit)?;
        tokio::time::sleep(turn).await;
        ca.server_config(&self.host).map_err(|error| {
            tracing::error!(host = %self.host, %error, "no certificate for a host");
            Refusal::Internal
        })
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
