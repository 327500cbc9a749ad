//! From a name to a connection: resolve here, check every address, dial only what was checked.
//!
//! Invariant: the address that is dialled was checked in the same call, so an answer that changes
//! between check and use (rebinding) has no effect. A set of answers with one forbidden address
//! is refused whole: a name that leads inside and outside is never an honest one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::forbidden_range;
use super::name::{CanonicalName, Host};
use super::refusal::Refusal;
use super::settings::EgressSettings;

/// Time for a DNS answer.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a connection, over all addresses of a host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the TLS handshake with a host.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses of one host that are tried.
const ADDRESSES_MAX: usize = 8;

/// A TCP connection to `host`.
pub(crate) async fn connect(
    settings: &EgressSettings,
    host: &Host,
    port: u16,
) -> Result<TcpStream, Refusal> {
    let addresses = resolve(settings, host, port).await?;
    let attempt = async {
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return Some(stream),
                Err(error) => tracing::debug!(%host, %address, %error, "address not reached"),
            }
        }
        None
    };
    let stream = timeout(CONNECT_TIMEOUT, attempt).await.ok().flatten();
    let stream = stream.ok_or(Refusal::Unreachable)?;
    // Without it small requests wait for acknowledgements; a socket that can't still works.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// A TLS connection to `name` whose certificate was verified for that name.
pub(crate) async fn connect_tls(
    settings: &EgressSettings,
    name: &CanonicalName,
    port: u16,
) -> Result<TlsStream<TcpStream>, Refusal> {
    let config = settings.client_tls()?;
    let server = ServerName::try_from(name.to_string()).map_err(|_| Refusal::HostName)?;
    let stream = connect(settings, &Host::Name(name.clone()), port).await?;
    let handshake = TlsConnector::from(config).connect(server, stream);
    match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            tracing::debug!(%name, %error, "TLS with the host failed");
            Err(Refusal::UpstreamTls)
        }
        Err(_) => Err(Refusal::Unreachable),
    }
}

async fn resolve(
    settings: &EgressSettings,
    host: &Host,
    port: u16,
) -> Result<Vec<SocketAddr>, Refusal> {
    let name = match host {
        Host::Name(name) => name,
        Host::Address(ip) if settings.allow_private.iter().any(|net| net.contains(ip)) => {
            return Ok(vec![SocketAddr::new(*ip, port)]);
        }
        Host::Address(_) => return Err(Refusal::AddressLiteral),
    };
    let addresses = match settings.pinned.get(name.as_str()) {
        Some(ip) => vec![*ip],
        None => look_up(name, port).await?,
    };
    check(&addresses, settings)?;
    Ok(addresses
        .into_iter()
        .take(ADDRESSES_MAX)
        .map(|ip| SocketAddr::new(ip, port))
        .collect())
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

async fn look_up(name: &CanonicalName, port: u16) -> Result<Vec<IpAddr>, Refusal> {
    // The trailing dot keeps the resolver from trying this machine's own search domains (and its
    // hosts file: what an operator wants sandboxes to find goes into `pinned`).
    let absolute = format!("{name}.");
    let answer = timeout(
        RESOLVE_TIMEOUT,
        tokio::net::lookup_host((absolute.as_str(), port)),
    )
    .await;
    match answer {
        Ok(Ok(found)) => {
            let addresses: Vec<_> = found.map(|address| address.ip()).collect();
            if addresses.is_empty() {
                Err(Refusal::NotFound)
            } else {
                Ok(addresses)
            }
        }
        Ok(Err(_)) | Err(_) => Err(Refusal::NotFound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pinned: &[(&str, &str)], allow: &[&str]) -> EgressSettings {
        EgressSettings {
            pinned: pinned
                .iter()
                .map(|(n, ip)| ((*n).into(), ip.parse().unwrap()))
                .collect(),
            allow_private: allow.iter().map(|net| net.parse().unwrap()).collect(),
            ..EgressSettings::default()
        }
    }

    async fn rule(settings: &EgressSettings, host: &str) -> Result<Vec<SocketAddr>, &'static str> {
        resolve(settings, &host.parse().unwrap(), 443)
            .await
            .map_err(|refusal| refusal.rule())
    }

    #[tokio::test]
    async fn names_that_lead_inside_are_refused_unless_listed() {
        let inside = settings(&[("a.test", "127.0.0.1"), ("b.test", "9.9.9.9")], &[]);
        assert_eq!(rule(&inside, "a.test").await, Err("special_address"));
        assert_eq!(
            rule(&inside, "b.test").await,
            Ok(vec!["9.9.9.9:443".parse().unwrap()])
        );
        assert_eq!(rule(&inside, "9.9.9.9").await, Err("address_literal"));
        let listed = settings(&[("a.test", "127.0.0.1")], &["127.0.0.0/8"]);
        assert_eq!(
            rule(&listed, "a.test").await,
            Ok(vec!["127.0.0.1:443".parse().unwrap()])
        );
        assert_eq!(
            rule(&listed, "127.0.0.9").await,
            Ok(vec!["127.0.0.9:443".parse().unwrap()])
        );
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
