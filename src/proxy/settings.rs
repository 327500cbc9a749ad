//! What the operator decides for every sandbox of a server.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

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

/// Trust in upstream hosts, shared by all sandboxes of a server.
#[derive(Default)]
pub struct UpstreamTls(OnceLock<Option<Arc<ClientConfig>>>);

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

    /// TLS towards hosts: verified certificates, HTTP/1.1.
    pub(crate) fn client_tls(&self) -> Result<Arc<ClientConfig>, Refusal> {
        let config = self.tls.0.get_or_init(|| {
            let roots = trusted_roots(&self.extra_roots);
            let mut config = ClientConfig::builder_with_provider(crypto())
                .with_safe_default_protocol_versions()
                .inspect_err(|error| tracing::error!(%error, "no TLS versions"))
                .ok()?
                .with_root_certificates(roots)
                .with_no_client_auth();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Some(Arc::new(config))
        });
        config.clone().ok_or(Refusal::Internal)
    }
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
    for root in extra {
        if let Err(error) = roots.add(root.clone()) {
            tracing::warn!(%error, "an extra root certificate can't be used and is left out");
        }
    }
    roots
}

/// The one cryptography provider, on both sides.
pub(crate) fn crypto() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(aws_lc_rs::default_provider()))
        .clone()
}
