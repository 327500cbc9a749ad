//! The trust store of Java, which reads no PEM: the bundle's certificates once more, as a "JKS" file.
//!
//! ```text
//! FE ED FE ED | version u32 = 2 | entries u32
//! each: kind u32 = 2 | alias UTF | time u64 | "X.509" UTF | length u32 | certificate in DER
//! SHA-1 of (password in UTF-16 | "Mighty Aphrodite" | all of the above)
//! ```
//!
//! Numbers are big-endian, a UTF is its length as u16 and its bytes. The password is the one every
//! Java uses for this file; it protects nothing, it only finds damage.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha1::{Digest, Sha1};

/// Where Debian's Java looks for public roots, below `/`.
pub const TRUST_STORE: &str = "etc/ssl/certs/java/cacerts";
const MAGIC: u32 = 0xfeed_feed;
const VERSION: u32 = 2;
const TRUSTED_CERTIFICATE: u32 = 2;
const CERTIFICATE_TYPE: &str = "X.509";
const PASSWORD: &str = "changeit";
const SALT: &[u8] = b"Mighty Aphrodite";

/// A trust store of the certificates of a PEM bundle. What is no certificate is left out.
pub fn trust_store(bundle: &[u8]) -> Vec<u8> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(bundle).flatten().collect();
    let mut store = Vec::with_capacity(bundle.len());
    number(&mut store, MAGIC);
    number(&mut store, VERSION);
    number(&mut store, certificates.len() as u32);
    for (place, certificate) in certificates.iter().enumerate() {
        number(&mut store, TRUSTED_CERTIFICATE);
        text(&mut store, &format!("root-{place}"));
        // When it was added: equal bundles give equal files.
        store.extend_from_slice(&0u64.to_be_bytes());
        text(&mut store, CERTIFICATE_TYPE);
        number(&mut store, certificate.len() as u32);
        store.extend_from_slice(certificate);
    }
    let password: Vec<u8> = PASSWORD.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let mut digest = Sha1::new();
    for part in [&password, SALT, &store] {
        digest.update(part);
    }
    store.extend_from_slice(&digest.finalize());
    store
}

fn number(store: &mut Vec<u8>, number: u32) {
    store.extend_from_slice(&number.to_be_bytes());
}

/// `text` is one of ours: a few bytes.
fn text(store: &mut Vec<u8>, text: &str) {
    store.extend_from_slice(&(text.len() as u16).to_be_bytes());
    store.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the bytes are those that Java's own `keytool -list` reads, digest and all; here for
    /// a bundle without certificates, whose file was made with keytool.
    #[test]
    fn a_store_without_certificates_is_what_keytool_makes() {
        // keytool -genkeypair -storetype JKS ..., then keytool -delete.
        let expected = "feedfeed0000000200000000e2686e45fb43dfa4d992dd41ceb6b21c6330d792";
        assert_eq!(hex::encode(trust_store(b"no certificate")), expected);
    }
}
