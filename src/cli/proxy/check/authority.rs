//! The certificates of the hostile hosts: good ones, and those no proxy may accept.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

/// What is wrong with a host's certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// Nothing.
    None,
    /// It is for another name.
    WrongName,
    /// It ended yesterday.
    Expired,
    /// Nobody signed it.
    SelfSigned,
}

/// The authority that signs the hosts.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub root: CertificateDer<'static>,
}

/// A new authority: certificate and key as PEM.
pub fn make() -> Result<(String, Zeroizing<String>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), Zeroizing::new(key.serialize_pem())))
}

impl Authority {
    /// The authority from its files.
    pub fn read(cert: &str, key: &str) -> Result<Self, String> {
        use rustls::pki_types::pem::PemObject;
        let key = KeyPair::from_pem(key).map_err(|error| error.to_string())?;
        let issuer = Issuer::from_ca_cert_pem(cert, key).map_err(|error| error.to_string())?;
        let root = CertificateDer::from_pem_slice(cert.as_bytes());
        let root = root.map_err(|_| "not a certificate".to_owned())?;
        Ok(Self { issuer, root })
    }

    /// TLS of a host for `names`, offering `alpn`; also its certificate.
    pub fn server(
        &self,
        names: &[String],
        flaw: Flaw,
        alpn: &[&str],
    ) -> Result<(ServerConfig, CertificateDer<'static>), String> {
        let (leaf, key) = self.leaf(names, flaw).map_err(|error| error.to_string())?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()
            .map(|builder| builder.with_no_client_auth())
            .and_then(|builder| builder.with_single_cert(vec![leaf.clone()], key));
        let mut config = config.map_err(|error| error.to_string())?;
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Ok((config, leaf))
    }

    fn leaf(
        &self,
        names: &[String],
        flaw: Flaw,
    ) -> Result<(CertificateDer<'static>, KeyPair), rcgen::Error> {
        let names = match flaw {
            Flaw::WrongName => vec!["wrong.oc-check.invalid".to_owned()],
            _ => names.to_vec(),
        };
        let mut params = CertificateParams::new(names)?;
        let now = OffsetDateTime::now_utc();
        let (begin, end) = match flaw {
            Flaw::Expired => (-30, -1),
            _ => (-1, 30),
        };
        params.not_before = now + Duration::days(begin);
        params.not_after = now + Duration::days(end);
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let leaf = match flaw {
            Flaw::SelfSigned => params.self_signed(&key)?,
            _ => params.signed_by(&key, &self.issuer)?,
        };
        Ok((leaf.der().clone(), key))
    }
}

/// The cryptography of this suite.
pub fn crypto() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
