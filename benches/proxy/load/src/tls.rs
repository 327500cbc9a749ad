//! Certificates and TLS of both ends: P-256 leaves, X25519, no resumption in the client, so that
//! every new connection is a whole handshake.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::{HOST, Result};

fn crypto() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
}

fn authority(name: &str) -> Result<(String, String, Issuer<'static, KeyPair>)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.self_signed(&key)?.pem();
    let key_pem = key.serialize_pem();
    Ok((certificate, key_pem, Issuer::new(params, key)))
}

/// `root.pem` signs the host's `host.pem`; `ca.pem` is for a proxy that brings no authority.
pub fn write_certificates(directory: &Path) -> Result<()> {
    let (root, _, issuer) = authority("Bench root")?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![HOST.to_owned()])?;
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, &issuer)?;
    let (ca, ca_key, _) = authority("Bench proxy")?;
    for (name, text) in [
        ("root.pem", root),
        ("host.pem", leaf.pem()),
        ("host.key", key.serialize_pem()),
        ("ca.pem", ca),
        ("ca.key", ca_key),
    ] {
        fs::write(directory.join(name), text)?;
    }
    Ok(())
}

/// TLS of the upstream host, speaking one protocol.
pub fn server(directory: &Path, alpn: &[u8]) -> Result<Arc<ServerConfig>> {
    let leaf = CertificateDer::from_pem_file(directory.join("host.pem"))?;
    let key = PrivateKeyDer::from_pem_file(directory.join("host.key"))?;
    let mut config = ServerConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf], key)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(Arc::new(config))
}

/// TLS of the client, which trusts the authorities in `roots`.
pub fn client(roots: &[PathBuf], alpn: &[u8]) -> Result<Arc<ClientConfig>> {
    let mut store = RootCertStore::empty();
    for root in roots {
        for certificate in CertificateDer::pem_file_iter(root)? {
            store.add(certificate?)?;
        }
    }
    let mut config = ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
