//! Ways out of a policy: addresses, and with which certificates hosts and this proxy prove who
//! they are.
//!
//! Invariants: a certificate that can't be used is an error, never left out; two readings of the
//! same files are equal, so that connections are cut only when something changed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use toml::Spanned;
use zeroize::Zeroizing;

use super::authority::PEM_BYTES_MAX;
use super::load::{Reading, read};
use super::policy_error::PolicyError;
use super::policy_file::{PolicyFile, TlsTable};
use crate::proxy::{ClientIdentity, EgressSettings, HostPattern, HostTls};

/// The part of a policy that an engine keeps for life.
#[derive(PartialEq, Clone)]
pub struct Egress {
    allow_private: Vec<IpNet>,
    pinned: HashMap<String, IpAddr>,
    roots: Vec<CertificateDer<'static>>,
    tls: Vec<Tls>,
    strict: bool,
    inspect_all: bool,
}

/// TLS with some hosts.
#[derive(PartialEq, Clone)]
struct Tls {
    pattern: HostPattern,
    roots: Vec<CertificateDer<'static>>,
    identity: Option<Identity>,
}

/// A client certificate, and the text it was read from, by which it is compared.
#[derive(Clone)]
struct Identity {
    pair: ClientIdentity,
    chain: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key == other.key
    }
}

impl Egress {
    /// As the engine takes it; `own` is where this process listens.
    pub fn settings(&self, own: SocketAddr) -> EgressSettings {
        let host_tls = self.tls.iter().map(|tls| HostTls {
            pattern: tls.pattern.clone(),
            extra_roots: tls.roots.clone(),
            identity: tls.identity.as_ref().map(|identity| identity.pair.clone()),
        });
        EgressSettings {
            allow_private: self.allow_private.clone(),
            pinned: self.pinned.clone(),
            extra_roots: self.roots.clone(),
            host_tls: host_tls.collect(),
            own: vec![own],
            inspect_all: self.inspect_all,
            strict_tokens: self.strict,
            ..EgressSettings::default()
        }
    }
}

impl Reading<'_> {
    /// The ways out, with the files they name.
    pub(super) fn egress(&mut self, file: &PolicyFile) -> Result<Egress, PolicyError> {
        let table = &file.egress;
        let tls = table.tls.iter().enumerate();
        Ok(Egress {
            allow_private: table.allow_private.iter().map(|net| net.0).collect(),
            pinned: table
                .resolve
                .iter()
                .map(|(name, ip)| (name.0.to_string(), ip.0))
                .collect(),
            roots: self.roots("egress", &table.extra_roots)?,
            tls: tls
                .map(|(index, table)| self.tls(index, table))
                .collect::<Result<_, _>>()?,
            strict: table.strict,
            inspect_all: table.inspect_all,
        })
    }

    fn tls(&mut self, index: usize, table: &TlsTable) -> Result<Tls, PolicyError> {
        let at = format!("egress.tls[{index}]");
        let identity = match (&table.client_certificate, &table.client_key) {
            (Some(chain), Some(key)) => Some(self.identity(&at, chain, key)?),
            (None, None) => None,
            (Some(one), None) | (None, Some(one)) => {
                let reason = "`client_certificate` and `client_key` belong together";
                return Err(self.place.error(Some(one.span()), at, reason));
            }
        };
        Ok(Tls {
            pattern: table.hosts.0.clone(),
            roots: self.roots(&at, &table.extra_roots)?,
            identity,
        })
    }

    fn identity(
        &mut self,
        at: &str,
        chain: &Spanned<PathBuf>,
        key: &Spanned<PathBuf>,
    ) -> Result<Identity, PolicyError> {
        let chain_pem = self.pem(chain, format!("{at}.client_certificate"))?;
        let key_pem = Zeroizing::new(self.pem(key, format!("{at}.client_key"))?);
        let pair = ClientIdentity::from_pem(&chain_pem, &key_pem).map_err(|error| {
            let at = format!("{at}.client_certificate");
            self.place.error(Some(chain.span()), at, error.to_string())
        })?;
        Ok(Identity {
            pair,
            chain: chain_pem,
            key: key_pem,
        })
    }

    fn roots(
        &mut self,
        at: &str,
        paths: &[Spanned<PathBuf>],
    ) -> Result<Vec<CertificateDer<'static>>, PolicyError> {
        let mut roots = Vec::new();
        for (index, path) in paths.iter().enumerate() {
            let key = format!("{at}.extra_roots[{index}]");
            let pem = self.pem(path, key.clone())?;
            let error = |reason: &str| self.place.error(Some(path.span()), key.clone(), reason);
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            let found = found.map_err(|_| error("not PEM"))?;
            let mut store = rustls::RootCertStore::empty();
            if found.is_empty() || found.iter().any(|root| store.add(root.clone()).is_err()) {
                return Err(error("holds no certificate, or one that can't be used"));
            }
            roots.extend(found);
        }
        Ok(roots)
    }

    /// The bytes of a PEM file, which is watched from now on.
    fn pem(&mut self, path: &Spanned<PathBuf>, key: String) -> Result<Vec<u8>, PolicyError> {
        let full = self.path(path.get_ref());
        self.watch.add(full.clone());
        read(&full, PEM_BYTES_MAX)
            .map_err(|error| self.place.error(Some(path.span()), key, error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::load::{Tokens, load};
    use crate::proxy::SandboxCa;

    /// Goal: what is named as a certificate is one, and a key is its own, or the policy is refused
    /// with the place; a key that changed is a change.
    #[test]
    fn certificates_must_be_usable() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let policy = at("policy.toml");
        let read = |text: &str| {
            fs::write(&policy, text).unwrap();
            load(&policy, Tokens::new())
        };
        let error = |text: &str| read(text).err().unwrap().to_string();
        let everywhere = "[egress]\nextra_roots = [\"r.pem\"]\n";
        let one = "[[egress.tls]]\nhosts = \"a.test\"\nextra_roots = [\"r.pem\"]\n";
        for (text, place) in [
            (everywhere, ":2: egress.extra_roots[0]: "),
            (one, ":3: egress.tls[0].extra_roots[0]: "),
        ] {
            let _ = fs::remove_file(at("r.pem"));
            assert!(error(text).contains(place), "{}", error(text));
            fs::write(at("r.pem"), "nothing").unwrap();
            assert!(
                error(text).contains("holds no certificate"),
                "{}",
                error(text)
            );
            let ca = SandboxCa::generate("test").unwrap();
            fs::write(at("r.pem"), ca.certificate_pem()).unwrap();
            assert!(read(text).is_ok());
        }
        let half = "[[egress.tls]]\nhosts = \"a.test\"\nclient_certificate = \"c.pem\"\n";
        assert!(error(half).contains(":3: egress.tls[0]: `client_certificate` and"));
        let whole = format!("{half}client_key = \"k.pem\"\n");
        let write = || {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec!["client".to_owned()]).unwrap();
            fs::write(at("c.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
            fs::write(at("k.pem"), key.serialize_pem()).unwrap();
        };
        write();
        let first = read(&whole).unwrap().egress;
        assert!(read(&whole).unwrap().egress == first);
        write();
        assert!(read(&whole).unwrap().egress != first);
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
        fs::write(at("k.pem"), other).unwrap();
        let text = error(&whole);
        assert!(
            text.contains(":3: egress.tls[0].client_certificate: not a"),
            "{text}"
        );
    }
}
