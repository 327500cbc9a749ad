//! From a name to a connection: resolve here, check every address, dial only what was checked.
//!
//! Invariant: the address that is dialled was checked in the same call, so an answer that changes
//! between check and use (rebinding) has no effect. A set of answers with one forbidden address
//! is refused whole: a name that leads inside and outside is never an honest one.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::forbidden_range;
use super::decision::tls_version;
use super::io::{Gulp, Stream, TLS_BUFFER_BYTES_MAX};
use super::name::{CanonicalName, Host};
use super::origin::Origin;
use super::refusal::Refusal;
use super::settings::EgressSettings;

/// Time for a DNS answer.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a connection, over all addresses of a host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for one address of a host.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(4);
/// Look-ups of one sandbox at once.
const LOOK_UPS_MAX: usize = 8;
/// Time for the TLS handshake with a host.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses of one host that are tried.
const ADDRESSES_MAX: usize = 8;

/// TLS sessions kept for resumption with each host, per sandbox: none is shared across two.
const SESSIONS_MAX: usize = 64;

/// The versions of HTTP offered to a host (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpn {
    /// HTTP/1.1 only.
    One,
    /// HTTP/2 only.
    Two,
    /// Either, HTTP/2 rather.
    Both,
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        let names: &[&[u8]] = match self {
            Self::One => &[b"http/1.1"],
            Self::Two => &[b"h2"],
            Self::Both => &[b"h2", b"http/1.1"],
        };
        names.iter().map(|name| name.to_vec()).collect()
    }
}

/// A TLS configuration of this sandbox, and the rule and offer it is for.
type Prepared = ((usize, Alpn), Arc<ClientConfig>);

/// A connection to an origin.
pub(crate) struct Dialled {
    pub stream: Stream,
    /// Whether HTTP/2 was agreed on.
    pub two: bool,
    /// The version of TLS, where it is one over TLS.
    pub tls: Option<&'static str>,
}

/// One sandbox's way to connections.
pub(crate) struct Dialer {
    settings: Arc<EgressSettings>,
    /// Made when first needed; at most three for each rule of the operator's.
    tls: Mutex<Vec<Prepared>>,
    /// A look-up occupies a thread until the system's resolver gives up, longer than we wait for
    /// it: the thread keeps its share, so that one sandbox can't use up everybody's.
    look_ups: Arc<Semaphore>,
}

impl Dialer {
    pub fn new(settings: Arc<EgressSettings>) -> Self {
        Self {
            settings,
            tls: Mutex::default(),
            look_ups: Arc::new(Semaphore::new(LOOK_UPS_MAX)),
        }
    }

    pub fn settings(&self) -> &EgressSettings {
        &self.settings
    }

    /// A TCP connection to `host`.
    pub async fn connect(&self, host: &Host, port: u16) -> Result<TcpStream, Refusal> {
        let addresses = self.resolve(host, port).await?;
        let attempt = async {
            let mut failure = Refusal::Unreachable;
            for address in addresses {
                match timeout(ATTEMPT_TIMEOUT, TcpStream::connect(address)).await {
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(error)) => tracing::debug!(%host, %address, %error, "not reached"),
                    Err(_) => {
                        failure = Refusal::ConnectTimeout;
                        tracing::debug!(%host, %address, "not reached in time");
                    }
                }
            }
            Err(failure)
        };
        let stream = timeout(CONNECT_TIMEOUT, attempt).await;
        let stream = stream.unwrap_or(Err(Refusal::ConnectTimeout))?;
        // Without it small requests wait for acknowledgements; a socket that can't still works.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    /// A connection to `origin`, verified for its name when it is one over TLS.
    pub async fn open(&self, origin: &Origin, alpn: Alpn) -> Result<Dialled, Refusal> {
        match (&origin.host, origin.tls) {
            (host, true) => {
                let stream = self.connect_tls(host, origin.port, alpn).await?;
                let session = stream.get_ref().1;
                Ok(Dialled {
                    two: session.alpn_protocol() == Some(b"h2"),
                    tls: tls_version(session),
                    stream: Box::new(stream),
                })
            }
            (host, false) => Ok(Dialled {
                stream: Box::new(self.connect(host, origin.port).await?),
                two: false,
                tls: None,
            }),
        }
    }

    /// A TLS connection to `host` whose certificate was verified for that name or address.
    async fn connect_tls(
        &self,
        host: &Host,
        port: u16,
        alpn: Alpn,
    ) -> Result<TlsStream<Gulp<TcpStream>>, Refusal> {
        let (rule, server) = match host {
            Host::Name(name) => {
                let server = ServerName::try_from(name.to_string());
                let server = server.map_err(|_| Refusal::HostName)?;
                (self.settings.tls_rule(name), server)
            }
            Host::Address(ip) => (0, ServerName::from(ip.to_canonical())),
        };
        let config = self.client_tls(rule, alpn)?;
        let stream = self.connect(host, port).await?;
        let connector = TlsConnector::from(config);
        let handshake = connector.connect_with(server, Gulp::new(stream), |session| {
            session.set_buffer_limit(Some(TLS_BUFFER_BYTES_MAX));
        });
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => {
                tracing::debug!(%host, %error, "TLS with the host failed");
                match no_common_protocol(&error) {
                    true => Err(Refusal::NoCommonProtocol),
                    false => Err(Refusal::UpstreamTls),
                }
            }
            Err(_) => Err(Refusal::ConnectTimeout),
        }
    }

    fn client_tls(&self, rule: usize, alpn: Alpn) -> Result<Arc<ClientConfig>, Refusal> {
        let mut prepared = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, config)) = prepared.iter().find(|(key, _)| *key == (rule, alpn)) {
            return Ok(config.clone());
        }
        let mut config = ClientConfig::clone(&*self.settings.client_tls(rule)?);
        config.alpn_protocols = alpn.protocols();
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        let config = Arc::new(config);
        prepared.push(((rule, alpn), config.clone()));
        Ok(config)
    }

    async fn resolve(&self, host: &Host, port: u16) -> Result<Vec<SocketAddr>, Refusal> {
        let settings = &self.settings;
        let name = match host {
            Host::Name(name) => name,
            Host::Address(ip) if settings.allow_private.iter().any(|net| net.contains(ip)) => {
                let address = SocketAddr::new(*ip, port);
                return match settings.is_own(address) {
                    true => Err(Refusal::OwnAddress),
                    false => Ok(vec![address]),
                };
            }
            Host::Address(_) => return Err(Refusal::AddressLiteral),
        };
        let mut addresses = match settings.pinned.get(name.as_str()) {
            Some(ip) => vec![*ip],
            None => self.look_up(name).await?,
        };
        check(&addresses, settings)?;
        addresses.truncate(ADDRESSES_MAX);
        let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, port));
        let addresses: Vec<_> = addresses.collect();
        match addresses.iter().any(|address| settings.is_own(*address)) {
            true => Err(Refusal::OwnAddress),
            false => Ok(addresses),
        }
    }

    async fn look_up(&self, name: &CanonicalName) -> Result<Vec<IpAddr>, Refusal> {
        // The trailing dot keeps the resolver from trying this machine's own search domains (and
        // its hosts file: what an operator wants sandboxes to find goes into `pinned`).
        let absolute = format!("{name}.");
        let look_ups = self.look_ups.clone();
        let answer = async move {
            let share = look_ups.acquire_owned().await.ok()?;
            let found = spawn_blocking(move || {
                let _share = share;
                (absolute.as_str(), 0).to_socket_addrs()
            });
            found.await.ok()?.ok()
        };
        let found = timeout(RESOLVE_TIMEOUT, answer).await.ok().flatten();
        let found = found.ok_or(Refusal::NotFound)?;
        let mut addresses: Vec<_> = found.map(|address| address.ip()).collect();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(Refusal::NotFound);
        }
        Ok(addresses)
    }
}

/// Whether the host refused what was offered by ALPN, which it does before it shows a certificate.
fn no_common_protocol(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(
        inner,
        Some(rustls::Error::AlertReceived(
            AlertDescription::NoApplicationProtocol
        ))
    )
}

/// All addresses of a set, or the first that is forbidden.
fn check(addresses: &[IpAddr], settings: &EgressSettings) -> Result<(), Refusal> {
    for &address in addresses {
        if let Some(range) = forbidden_range(address, &settings.allow_private) {
            return Err(Refusal::SpecialAddress { address, range });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialer(pinned: &[(&str, &str)], allow: &[&str]) -> Dialer {
        let pinned = pinned
            .iter()
            .map(|(name, ip)| ((*name).into(), ip.parse().unwrap()));
        Dialer::new(Arc::new(EgressSettings {
            pinned: pinned.collect(),
            allow_private: allow.iter().map(|net| net.parse().unwrap()).collect(),
            ..EgressSettings::default()
        }))
    }

    async fn resolved(dialer: &Dialer, host: &str) -> Result<String, &'static str> {
        let addresses = dialer.resolve(&host.parse().unwrap(), 443).await;
        addresses
            .map(|all| all[0].to_string())
            .map_err(|refusal| refusal.rule())
    }

    #[tokio::test]
    async fn names_that_lead_inside_are_refused_unless_listed() {
        let inside = dialer(&[("a.test", "127.0.0.1"), ("b.test", "9.9.9.9")], &[]);
        assert_eq!(resolved(&inside, "a.test").await, Err("special_address"));
        assert_eq!(resolved(&inside, "b.test").await, Ok("9.9.9.9:443".into()));
        assert_eq!(resolved(&inside, "9.9.9.9").await, Err("address_literal"));
        let listed = dialer(&[("a.test", "127.0.0.1")], &["127.0.0.0/8"]);
        assert_eq!(
            resolved(&listed, "a.test").await,
            Ok("127.0.0.1:443".into())
        );
        assert_eq!(
            resolved(&listed, "127.0.0.9").await,
            Ok("127.0.0.9:443".into())
        );
    }

    /// The platform's own API is out of reach, whatever the operator lists and however its
    /// address is written.
    #[tokio::test]
    async fn the_servers_own_address_is_refused_even_when_listed() {
        for (own, refused, passed) in [
            ("127.0.0.1:443", "127.0.0.1", "127.0.0.2"),
            ("0.0.0.0:443", "127.0.0.2", "9.9.9.9"),
        ] {
            let names = [("refused.test", refused), ("passed.test", passed)];
            let pinned = names.map(|(name, ip)| (name.to_owned(), ip.parse().unwrap()));
            let dialer = Dialer::new(Arc::new(EgressSettings {
                pinned: pinned.into(),
                allow_private: vec!["127.0.0.0/8".parse().unwrap()],
                own: vec![own.parse().unwrap()],
                ..EgressSettings::default()
            }));
            for host in ["refused.test", refused] {
                assert_eq!(
                    resolved(&dialer, host).await,
                    Err("own_address"),
                    "{own} {host}"
                );
            }
            assert!(resolved(&dialer, "passed.test").await.is_ok(), "{own}");
        }
    }

    /// A rebinding answer mixes public and private addresses: none of them may be used.
    #[test]
    fn one_forbidden_address_spoils_the_set() {
        let settings = EgressSettings::default();
        let set = ["9.9.9.9".parse().unwrap(), "10.0.0.1".parse().unwrap()];
        assert!(check(&set, &settings).is_err());
        assert!(check(&set[..1], &settings).is_ok());
    }
}
