//! One certificate authority per sandbox, and the leaf certificates it signs.
//!
//! Invariants: the CA's key never enters the sandbox (only the certificate does) and signs
//! nothing but leaves for hosts that sandbox asked for; another sandbox does not trust it. Leaves
//! live a week, are backdated an hour for clocks that differ, and are cached in bounded number.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ResolvesServerCertUsingSni;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use time::{Duration, OffsetDateTime};

use super::name::Host;
use super::settings::crypto;
use crate::secret::SecretValue;

/// Life of a CA: longer than any sandbox, since a checkpoint may be restored years later.
const CA_LIFE: Duration = Duration::days(20 * 365);
/// Life of a leaf.
const LEAF_LIFE: Duration = Duration::days(7);
/// A leaf this near its end is made anew.
const LEAF_RENEWAL: Duration = Duration::days(1);
/// How far certificates are dated back.
const BACKDATING: Duration = Duration::hours(1);
/// Leaves kept; the oldest goes first. Making one takes a fraction of a millisecond.
const LEAVES_MAX: usize = 128;

/// Leaves made at once.
const MINT_BURST_MAX: u32 = 64;
/// Time between two leaves after that: 20 a second cost half a percent of a processor.
const MINT_COST: std::time::Duration = std::time::Duration::from_millis(50);
/// Longest wait for a leaf; beyond it the connection is refused.
const MINT_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// A CA that can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Certificate or key are damaged or don't belong together.
    #[error("the sandbox's CA can't be used: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refuses them.
    #[error("the sandbox's CA can't serve TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The certificate is for another key.
    #[error("the sandbox's CA certificate and key don't belong together")]
    Mismatch,
}

/// A sandbox's certificate authority.
pub struct SandboxCa {
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    leaf_key: KeyPair,
    leaves: Mutex<Leaves>,
    /// What the configurations of all leaves share, made with the first.
    shared: OnceLock<Shared>,
    minting: Mutex<Minting>,
}

struct Shared {
    config: ServerConfig,
    signer: Arc<dyn SigningKey>,
}

/// How fast leaves are made.
struct Minting {
    /// When the burst will be whole again; in the past while it is.
    whole_at: Instant,
}

#[derive(Default)]
struct Leaves {
    by_host: HashMap<Host, (OffsetDateTime, Arc<ServerConfig>)>,
    order: VecDeque<Host>,
}

impl SandboxCa {
    /// A new CA; `label` (the sandbox's id) makes it recognisable in a trust store.
    pub fn generate(label: &str) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.not_before = now - BACKDATING;
        params.not_after = now + CA_LIFE;
        params.serial_number = Some(serial());
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("OpenComputer CA of {label}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Self::assemble(certificate.pem(), Issuer::new(params, key))
    }

    /// The CA made earlier, from [`certificate_pem`](Self::certificate_pem) and
    /// [`key_to_secret`](Self::key_to_secret).
    pub fn load(certificate_pem: &str, key: &SecretValue) -> Result<Self, CaError> {
        let der = PrivatePkcs8KeyDer::from(key.expose());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key)?;
        let ca = Self::assemble(certificate_pem.to_owned(), issuer)?;
        ca.verify_own_leaf()?;
        Ok(ca)
    }

    fn assemble(
        certificate_pem: String,
        issuer: Issuer<'static, KeyPair>,
    ) -> Result<Self, CaError> {
        let leaf_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(Self {
            certificate_pem,
            issuer,
            leaf_key,
            leaves: Mutex::default(),
            shared: OnceLock::new(),
            minting: Mutex::new(Minting {
                whole_at: Instant::now(),
            }),
        })
    }

    /// The certificate, for the sandbox's trust store.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key (PKCS #8, DER), to be stored encrypted and never shown to the sandbox.
    pub fn key_to_secret(&self) -> SecretValue {
        SecretValue::new(self.issuer.key().serialize_der())
    }

    /// The TLS side towards the sandbox for `host`, when there is a leaf for it already.
    pub(crate) fn known_config(&self, host: &Host) -> Option<Arc<ServerConfig>> {
        let now = OffsetDateTime::now_utc();
        let leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        let (end, config) = leaves.by_host.get(host)?;
        (*end - now > LEAF_RENEWAL).then(|| config.clone())
    }

    /// How long to wait before a new leaf may be made, which counts as done; `None` when so many
    /// wait already that it would be longer than [`MINT_WAIT_MAX`].
    pub(crate) fn mint_turn(&self) -> Option<std::time::Duration> {
        let mut minting = self.minting.lock().unwrap_or_else(PoisonError::into_inner);
        minting.turn(Instant::now())
    }

    /// The TLS side towards the sandbox for `host`; makes a leaf when there is none.
    pub(crate) fn server_config(&self, host: &Host) -> Result<Arc<ServerConfig>, CaError> {
        if let Some(config) = self.known_config(host) {
            return Ok(config);
        }
        let now = OffsetDateTime::now_utc();
        let config = Arc::new(self.mint(host, now)?);
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = (now + LEAF_LIFE, config.clone());
        if leaves.by_host.insert(host.clone(), entry).is_none() {
            leaves.order.push_back(host.clone());
        }
        if leaves.order.len() > LEAVES_MAX
            && let Some(oldest) = leaves.order.pop_front()
        {
            leaves.by_host.remove(&oldest);
        }
        Ok(config)
    }

    fn mint(&self, host: &Host, now: OffsetDateTime) -> Result<ServerConfig, CaError> {
        let mut params = CertificateParams::default();
        params.not_before = now - BACKDATING;
        params.not_after = now + LEAF_LIFE;
        // Random: two leaves of one issuer with the same serial number upset NSS.
        params.serial_number = Some(serial());
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![match host {
            Host::Name(name) => SanType::DnsName(name.as_str().try_into()?),
            Host::Address(ip) => SanType::IpAddress(IpAddr::to_canonical(ip)),
        }];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&self.leaf_key, &self.issuer)?;
        let shared = match self.shared.get() {
            Some(shared) => shared,
            None => {
                let made = self.shared()?;
                self.shared.get_or_init(|| made)
            }
        };
        let pair = CertifiedKey::new(vec![leaf.der().clone()], shared.signer.clone());
        let mut config = shared.config.clone();
        config.cert_resolver = Arc::new(SingleCertAndKey::from(pair));
        Ok(config)
    }

    fn shared(&self) -> Result<Shared, CaError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            // Takes the place of a resolver until a leaf does: it has no certificate for anybody.
            .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ignore_client_order = true;
        // A session is resumed by a ticket that only this sandbox's proxy can open, for the name it
        // was given for; a cache per host and sandbox would cost memory.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.ticketer = Ticketer::new()?;
        config.send_tls13_tickets = 1;
        let signer = crypto().key_provider.load_private_key(key)?;
        Ok(Shared { config, signer })
    }

    /// Certificate and key can disagree only after a fault in storage; found here rather than by
    /// every program in the sandbox.
    fn verify_own_leaf(&self) -> Result<(), CaError> {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let certificate = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())
            .map_err(|_| CaError::Mismatch)?;
        let own = self.issuer.key().public_key_raw();
        let found = certificate.windows(own.len()).any(|window| window == own);
        if found {
            Ok(())
        } else {
            Err(CaError::Mismatch)
        }
    }
}

impl Minting {
    fn turn(&mut self, now: Instant) -> Option<std::time::Duration> {
        let whole_at = self.whole_at.max(now) + MINT_COST;
        let turn = whole_at
            .checked_sub(MINT_COST * MINT_BURST_MAX)
            .map_or(std::time::Duration::ZERO, |at| {
                at.saturating_duration_since(now)
            });
        if turn > MINT_WAIT_MAX {
            return None;
        }
        self.whole_at = whole_at;
        Some(turn)
    }
}

fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    // Positive and without a leading zero (RFC 5280, section 4.1.2.2).
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_ca_loads_and_a_foreign_key_does_not() {
        let ca = SandboxCa::generate("sb-test").unwrap();
        let loaded = SandboxCa::load(ca.certificate_pem(), &ca.key_to_secret()).unwrap();
        assert_eq!(loaded.certificate_pem(), ca.certificate_pem());
        let other = SandboxCa::generate("sb-test").unwrap();
        let mixed = SandboxCa::load(ca.certificate_pem(), &other.key_to_secret());
        assert!(matches!(mixed, Err(CaError::Mismatch)));
    }

    /// A flood of names must not grow memory.
    #[test]
    fn the_leaf_cache_is_bounded() {
        let ca = SandboxCa::generate("sb-test").unwrap();
        for i in 0..LEAVES_MAX + 5 {
            ca.server_config(&format!("h{i}.example").parse().unwrap())
                .unwrap();
        }
        let leaves = ca.leaves.lock().unwrap();
        assert_eq!(
            (leaves.by_host.len(), leaves.order.len()),
            (LEAVES_MAX, LEAVES_MAX)
        );
    }

    /// Goal: a burst of new hosts is served at once, a flood is slowed to a steady pace and then
    /// refused, and the burst comes back with time.
    #[test]
    fn leaves_are_made_at_a_bounded_pace() {
        let now = Instant::now();
        let mut minting = Minting { whole_at: now };
        let turns: Vec<_> = (0..1000).map_while(|_| minting.turn(now)).collect();
        let waiting = MINT_WAIT_MAX.as_millis() / MINT_COST.as_millis();
        assert_eq!(turns.len() as u128, u128::from(MINT_BURST_MAX) + waiting);
        let at_once = turns.iter().filter(|turn| turn.is_zero()).count();
        assert_eq!(at_once, MINT_BURST_MAX as usize);
        let later = now + std::time::Duration::from_secs(60);
        assert_eq!(minting.turn(later), Some(std::time::Duration::ZERO));
    }
}
