//! The files of the certificate authority: read, or made once.
//!
//! Invariants: the key file is made with mode 0600 and refused when others may read it; a key
//! without its certificate, or the other way round, is an error and nothing is written over.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::proxy::SandboxCa;
use crate::secret::SecretValue;

/// Largest PEM file read, in bytes.
pub const PEM_BYTES_MAX: u64 = 1024 * 1024;
/// Characters in one line of PEM (RFC 7468, section 2).
const PEM_LINE_CHARS: usize = 64;
/// Nobody but the owner.
const KEY_MODE: u32 = 0o600;
/// Permissions of group and others.
const OTHERS: u32 = 0o077;

/// Reads the authority, or makes it when neither file is there. The error says what is wrong.
pub fn load_or_make(cert: &Path, key: &Path) -> Result<SandboxCa, String> {
    match (exists(cert)?, exists(key)?) {
        (true, true) => load(cert, key),
        (false, false) => make(cert, key),
        (true, false) => Err("the certificate is there and its key is not".to_owned()),
        (false, true) => Err("the key is there and its certificate is not".to_owned()),
    }
}

fn exists(path: &Path) -> Result<bool, String> {
    path.try_exists()
        .map_err(|error| format!("{}: {error}", path.display()))
}

fn load(cert: &Path, key: &Path) -> Result<SandboxCa, String> {
    let at = |path: &Path| {
        let path = path.display().to_string();
        move |reason: &str| format!("{path}: {reason}")
    };
    let certificate = open(cert)
        .and_then(|file| io::read_to_string(file.take(PEM_BYTES_MAX)))
        .map_err(|error| at(cert)(&error.to_string()))?;
    let mut file = open(key).map_err(|error| at(key)(&error.to_string()))?;
    let mode = file
        .metadata()
        .map_err(|error| at(key)(&error.to_string()))?
        .mode();
    if mode & OTHERS != 0 {
        return Err(at(key)(
            "others may read the key; make it yours with `chmod 600`",
        ));
    }
    let mut pem = Zeroizing::new(Vec::with_capacity(4096));
    Read::by_ref(&mut file)
        .take(PEM_BYTES_MAX)
        .read_to_end(&mut pem)
        .map_err(|error| at(key)(&error.to_string()))?;
    let der = match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(PrivateKeyDer::Pkcs8(der)) => SecretValue::new(der.secret_pkcs8_der().to_vec()),
        _ => return Err(at(key)("not a private key in PKCS #8 PEM")),
    };
    SandboxCa::load(&certificate, &der).map_err(|error| at(cert)(&error.to_string()))
}

/// Opens a file that a program of ours may have to wait for no longer than for a disk.
fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("not a file"))
    }
}

fn make(cert: &Path, key: &Path) -> Result<SandboxCa, String> {
    let ca = SandboxCa::generate("oc proxy").map_err(|error| error.to_string())?;
    let der = ca.key_to_secret();
    let base64 = Zeroizing::new(STANDARD.encode(der.expose()));
    let mut pem = Zeroizing::new(String::with_capacity(base64.len() * 2));
    pem.push_str("-----BEGIN PRIVATE KEY-----\n");
    // Base64 is ASCII, so that a line ends between characters.
    for line in base64.as_bytes().chunks(PEM_LINE_CHARS) {
        pem.push_str(std::str::from_utf8(line).unwrap_or_default());
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    // The key first: a certificate alone would be trusted by clients and be of no use.
    write_new(key, pem.as_bytes(), KEY_MODE)?;
    if let Err(error) = write_new(cert, ca.certificate_pem().as_bytes(), 0o644) {
        // Left alone it would stop the next start; it was made a moment ago and signed nothing.
        let _ = std::fs::remove_file(key);
        return Err(error);
    }
    Ok(ca)
}

/// Writes a file that was not there before.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), String> {
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error: io::Error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Goal: the authority is made once, with a key nobody else reads, and is the same afterwards.
    #[test]
    fn an_authority_is_made_once_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        let made = load_or_make(&cert, &key).unwrap();
        assert_eq!(fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
        let read = load_or_make(&cert, &key).unwrap();
        assert_eq!(read.certificate_pem(), made.certificate_pem());
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load_or_make(&cert, &key).err().unwrap();
        assert!(error.contains("others may read the key"), "{error}");
        fs::remove_file(&key).unwrap();
        let error = load_or_make(&cert, &key).err().unwrap();
        assert!(error.contains("its key is not"), "{error}");
        assert!(!key.exists());
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        load_or_make(&path("a.pem"), &path("a.key")).unwrap();
        load_or_make(&path("b.pem"), &path("b.key")).unwrap();
        assert!(load_or_make(&path("a.pem"), &path("b.key")).is_err());
        fs::write(path("a.key"), "-----BEGIN PRIVATE KEY-----\nAAAA\n").unwrap();
        assert!(load_or_make(&path("a.pem"), &path("a.key")).is_err());
    }
}
