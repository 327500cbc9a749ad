//! What the operator decides for every sandbox of a server.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CipherSuite, ClientConfig, RootCertStore};

use super::name::{CanonicalName, HostPattern};
use super::refusal::Refusal;

/// The operator's egress settings; one per server. The default is the strictest address policy
/// with inert tokens let through.
#[derive(Default)]
pub struct EgressSettings {
    /// Ranges sandboxes may reach although they are not public.
    pub allow_private: Vec<IpNet>,
    /// Addresses of names (lower case, no trailing dot), used instead of DNS. The address rules
    /// hold for them too.
    pub pinned: HashMap<String, IpAddr>,
    /// Certificates trusted for upstream hosts beside the system's.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// What is different about TLS with some hosts; the first entry whose pattern matches counts.
    pub host_tls: Vec<HostTls>,
    /// Where this server itself listens: never dialled for a sandbox, not even when
    /// `allow_private` covers it.
    pub own: Vec<SocketAddr>,
    /// Look into TLS to hosts without secrets too, instead of tunnelling it.
    pub inspect_all: bool,
    /// Refuse a token whose secret is not bound to the host, instead of passing it inert.
    pub strict_tokens: bool,
    /// A request that carries a secret waits until a record of it is durable; one that can't be
    /// recorded is refused.
    pub strict_audit: bool,
    /// The TLS side towards hosts, made on first use from `extra_roots`; leave at its default.
    pub tls: UpstreamTls,
}

/// TLS with the hosts of a pattern.
pub struct HostTls {
    /// Which hosts.
    pub pattern: HostPattern,
    /// Certificates trusted for them beside those trusted for every host.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// How this server shows who it is, when such a host asks. Every sandbox that may speak to the
    /// host speaks to it as this.
    pub identity: Option<ClientIdentity>,
}

/// A client certificate and its key.
#[derive(Clone)]
pub struct ClientIdentity(Arc<CertifiedKey>);

/// PEM that is no client certificate and key.
#[derive(Debug, thiserror::Error)]
#[error("not a client certificate and its private key in PEM: {0}")]
pub struct BadIdentity(String);

impl ClientIdentity {
    /// Reads a certificate, its chain behind it, and its private key.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, BadIdentity> {
        // The reasons name what is missing or of which kind it is, never what is in it.
        let bad = |error: &dyn std::fmt::Display| BadIdentity(error.to_string());
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let chain = chain.map_err(|error| bad(&error))?;
        if chain.is_empty() {
            return Err(bad(&"no certificate"));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| bad(&error))?;
        let pair = CertifiedKey::from_der(chain, key, &crypto()).map_err(|error| bad(&error))?;
        Ok(Self(Arc::new(pair)))
    }
}

/// Trust in upstream hosts, shared by all sandboxes of a server: for every host, and then for each
/// entry of [`EgressSettings::host_tls`].
#[derive(Default)]
pub struct UpstreamTls(OnceLock<Vec<Option<Arc<ClientConfig>>>>);

impl EgressSettings {
    /// Whether dialling `address` would reach this server. One that listens on every address is
    /// reached by each address of this machine, which is told by being able to bind it.
    pub(crate) fn is_own(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let local = || std::net::UdpSocket::bind((ip, 0)).is_ok();
        self.own.iter().any(|own| {
            let own_ip = own.ip().to_canonical();
            own.port() == address.port() && (own_ip == ip || own_ip.is_unspecified() && local())
        })
    }

    /// Which TLS settings are for `name`: 0 the usual, else one more than the entry's place.
    pub(crate) fn tls_rule(&self, name: &CanonicalName) -> usize {
        let found = self
            .host_tls
            .iter()
            .position(|rule| rule.pattern.matches(name));
        found.map_or(0, |place| place + 1)
    }

    /// TLS towards hosts under a [`tls_rule`](Self::tls_rule): verified certificates, no ALPN yet.
    pub(crate) fn client_tls(&self, rule: usize) -> Result<Arc<ClientConfig>, Refusal> {
        let configs = self.tls.0.get_or_init(|| {
            let roots = trusted_roots(&self.extra_roots);
            let usual = client_config(roots.clone(), None);
            let special = self.host_tls.iter().map(|rule| {
                let mut roots = roots.clone();
                add_roots(&mut roots, &rule.extra_roots);
                client_config(roots, rule.identity.as_ref())
            });
            std::iter::once(usual).chain(special).collect()
        });
        configs
            .get(rule)
            .cloned()
            .flatten()
            .ok_or(Refusal::Internal)
    }
}

fn client_config(
    roots: RootCertStore,
    identity: Option<&ClientIdentity>,
) -> Option<Arc<ClientConfig>> {
    let config = ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()
        .inspect_err(|error| tracing::error!(%error, "no TLS versions"))
        .ok()?
        .with_root_certificates(roots);
    Some(Arc::new(match identity {
        Some(ClientIdentity(pair)) => {
            config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair.clone())))
        }
        None => config.with_no_client_auth(),
    }))
}

/// The system's roots, or Mozilla's where the system has none, and the operator's.
fn trusted_roots(extra: &[CertificateDer<'static>]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    let (added, ignored) = roots.add_parsable_certificates(native.certs);
    tracing::debug!(added, ignored, "system trust store loaded");
    if added == 0 {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    add_roots(&mut roots, extra);
    roots
}

fn add_roots(roots: &mut RootCertStore, extra: &[CertificateDer<'static>]) {
    for root in extra {
        if let Err(error) = roots.add(root.clone()) {
            tracing::warn!(%error, "an extra root certificate can't be used and is left out");
        }
    }
}

/// The one cryptography provider, on both sides.
pub(crate) fn crypto() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            let mut provider = aws_lc_rs::default_provider();
            // AES-128 with SHA-256 first: as strong as the key exchange beside it, and a handshake
            // hashes with the processor's own instructions.
            provider
                .cipher_suites
                .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
            Arc::new(provider)
        })
        .clone()
}
