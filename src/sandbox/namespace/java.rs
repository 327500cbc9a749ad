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

/// The entries of a PEM bundle's certificates, with their number (`u32`) before them: most of a
/// trust store, and the same for every sandbox of a template. What is no certificate is left out.
pub fn entries(bundle: &[u8]) -> Vec<u8> {
    let mut made = Vec::with_capacity(bundle.len());
    number(&mut made, 0);
    more(made, bundle)
}

/// A trust store of the `roots` that [`entries`] made and the certificates of another bundle.
pub fn trust_store(roots: &[u8], own: &[u8]) -> Vec<u8> {
    let entries = more(roots.to_vec(), own);
    let mut store = Vec::with_capacity(entries.len() + 64);
    number(&mut store, MAGIC);
    number(&mut store, VERSION);
    store.extend_from_slice(&entries);
    let password: Vec<u8> = PASSWORD.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let mut digest = Sha1::new();
    for part in [&password, SALT, &store] {
        digest.update(part);
    }
    store.extend_from_slice(&digest.finalize());
    store
}

/// Adds the certificates of `bundle` to `entries`, and to the number at their front.
fn more(mut entries: Vec<u8>, bundle: &[u8]) -> Vec<u8> {
    let mut count = entries
        .first_chunk()
        .map_or(0, |count| u32::from_be_bytes(*count));
    for certificate in CertificateDer::pem_slice_iter(bundle).flatten() {
        number(&mut entries, TRUSTED_CERTIFICATE);
        text(&mut entries, &format!("root-{count}"));
        // When it was added: equal bundles give equal files.
        entries.extend_from_slice(&0u64.to_be_bytes());
        text(&mut entries, CERTIFICATE_TYPE);
        number(&mut entries, certificate.len() as u32);
        entries.extend_from_slice(&certificate);
        count += 1;
    }
    if let Some(front) = entries.first_chunk_mut() {
        *front = count.to_be_bytes();
    }
    entries
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
        let store = trust_store(&entries(b"no certificate"), b"");
        assert_eq!(hex::encode(store), expected);
    }

    /// Goal: what is made beforehand changes nothing about the file.
    #[test]
    fn a_store_in_two_parts_is_the_same() {
        let pem = include_bytes!("../../../tests/sandbox_namespace/ca.pem").as_slice();
        let twice = [pem, b"\n", pem].concat();
        let whole = trust_store(&entries(&twice), b"");
        assert_eq!(trust_store(&entries(pem), pem), whole);
        assert_eq!(whole.get(8..12), Some(&[0, 0, 0, 2][..]));
    }
}
