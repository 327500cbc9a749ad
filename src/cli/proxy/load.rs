//! From the policy file to what the engine works with: values, roots, authority.
//!
//! Invariants: everything is read before anything is used, so that a policy applies whole or not
//! at all; a value that is missing or empty is an error.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;

use super::authority::{self, PEM_BYTES_MAX};
use super::policy_error::{Place, PolicyError};
use super::policy_file::{self, POLICY_BYTES_MAX, PolicyFile, SecretTable};
use super::watch::Watch;
use crate::proxy::{
    Binding, EgressSettings, HostPattern, Placement, Policy, RESEAL_VALUE_BYTES_MIN, SandboxCa,
    SealedToken, reseal_possible,
};
use crate::secret::{SECRET_VALUE_BYTES_MAX, SecretValue};

/// Tokens by the names of their secrets: what was made once stays as long as the process.
pub type Tokens = HashMap<String, SealedToken>;

/// A policy file with everything it names.
pub struct Loaded {
    /// Secrets and hosts.
    pub policy: Policy,
    /// Ways out.
    pub egress: Egress,
    /// What clients trust.
    pub ca: SandboxCa,
    /// Where its certificate is.
    pub ca_path: PathBuf,
    /// What is told to the user of each secret.
    pub secrets: Vec<Shown>,
    /// Tokens of this and earlier readings.
    pub tokens: Tokens,
    /// Watches the files all this came from, as they were when they were read.
    pub watch: Watch,
    /// What is allowed and still worth saying.
    pub warnings: Vec<String>,
}

/// The part of a policy that an engine keeps for life.
#[derive(PartialEq, Clone)]
pub struct Egress {
    allow_private: Vec<IpNet>,
    pinned: HashMap<String, IpAddr>,
    roots: Vec<CertificateDer<'static>>,
    strict: bool,
    inspect_all: bool,
}

impl Egress {
    /// As the engine takes it; `own` is where this process listens.
    pub fn settings(&self, own: SocketAddr) -> EgressSettings {
        EgressSettings {
            allow_private: self.allow_private.clone(),
            pinned: self.pinned.clone(),
            extra_roots: self.roots.clone(),
            own: vec![own],
            inspect_all: self.inspect_all,
            strict_tokens: self.strict,
            ..EgressSettings::default()
        }
    }
}

/// A secret as it may be shown.
#[derive(Serialize)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// What clients hold.
    pub token: String,
    /// Who receives the value.
    pub hosts: Vec<String>,
}

/// Files to read, with the folder they are relative to.
struct Reading<'a> {
    place: Place<'a>,
    folder: &'a Path,
    watch: Watch,
}

/// Reads the policy in `path` and all it names; secrets without a token of their own keep that of
/// `tokens`, or get a new one.
pub fn load(path: &Path, mut tokens: Tokens) -> Result<Loaded, PolicyError> {
    let whole = |reason: String| PolicyError {
        file: path.to_owned(),
        line: None,
        key: String::new(),
        reason,
    };
    let mut watch = Watch::default();
    watch.add(path.to_owned());
    let text = read(path, POLICY_BYTES_MAX).map_err(|error| whole(error.to_string()))?;
    let text = String::from_utf8(text).map_err(|_| whole("not UTF-8".to_owned()))?;
    let place = Place {
        file: path,
        text: &text,
    };
    let file = policy_file::parse(place)?;
    let mut reading = Reading {
        place,
        folder: path.parent().unwrap_or(Path::new("")),
        watch,
    };
    let egress = reading.egress(&file)?;
    let (mut bindings, mut secrets, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    for (index, table) in file.secret.iter().enumerate() {
        let binding = reading.binding(index, table, &mut tokens)?;
        if !reseal_possible(binding.value.expose()) {
            warnings.push(format!(
                "secret {}: the value is too short (under {RESEAL_VALUE_BYTES_MIN} bytes) or too easy to \
                 guess to be searched for in answers; a host that repeats it shows it to clients",
                binding.name
            ));
        }
        secrets.push(Shown {
            name: binding.name.clone(),
            token: binding.token.to_string(),
            hosts: binding.hosts.iter().map(HostPattern::to_string).collect(),
        });
        bindings.push(binding);
    }
    let ca_path = reading.path(file.ca.cert.as_deref().unwrap_or(Path::new("ca.pem")));
    let key_path = reading.path(file.ca.key.as_deref().unwrap_or(Path::new("ca.key")));
    let ca = authority::load_or_make(&ca_path, &key_path)
        .map_err(|reason| place.error(None, "ca", reason))?;
    // After they are there: making them is no change to follow.
    reading.watch.add(ca_path.clone());
    reading.watch.add(key_path);
    let allow = file.egress.allow.map(|allow| allow.0);
    Ok(Loaded {
        policy: Policy::new(allow.unwrap_or_default(), bindings, true, true),
        egress,
        ca,
        ca_path,
        secrets,
        tokens,
        watch: reading.watch,
        warnings,
    })
}

impl Reading<'_> {
    fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    fn egress(&mut self, file: &PolicyFile) -> Result<Egress, PolicyError> {
        let table = &file.egress;
        let mut roots = Vec::new();
        for (index, path) in table.extra_roots.iter().enumerate() {
            let error = |reason: String| {
                let key = format!("egress.extra_roots[{index}]");
                self.place.error(Some(path.span()), key, reason)
            };
            let full = self.path(path.get_ref());
            self.watch.add(full.clone());
            let pem = read(&full, PEM_BYTES_MAX).map_err(|e| error(e.to_string()))?;
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            let found = found.map_err(|_| error("not PEM".to_owned()))?;
            let mut store = rustls::RootCertStore::empty();
            if found.is_empty() || found.iter().any(|root| store.add(root.clone()).is_err()) {
                return Err(error(
                    "holds no certificate, or one that can't be used".to_owned(),
                ));
            }
            roots.extend(found);
        }
        let pinned = table.resolve.iter();
        Ok(Egress {
            allow_private: table.allow_private.iter().map(|net| net.0).collect(),
            pinned: pinned
                .map(|(name, ip)| (name.0.to_string(), ip.0))
                .collect(),
            roots,
            strict: table.strict,
            inspect_all: table.inspect_all,
        })
    }

    fn binding(
        &mut self,
        index: usize,
        table: &SecretTable,
        tokens: &mut Tokens,
    ) -> Result<Binding, PolicyError> {
        let name = table.name.get_ref();
        let token = match &table.token {
            Some(token) => token.get_ref().0,
            None => *tokens
                .entry(name.clone())
                .or_insert_with(SealedToken::generate),
        };

        Ok(Binding {
            name: name.clone(),
            token,
            value: self.value(index, table)?,
            hosts: table.hosts.0.clone(),
            placement: Placement::default(),
        })
    }

    /// The value of a secret; where it was looked for is not part of an error, since it may be the
    /// value itself, written into the wrong place.
    fn value(&mut self, index: usize, table: &SecretTable) -> Result<SecretValue, PolicyError> {
        let error = |span: Range<usize>, key: &str, reason: &str| {
            let key = format!("secret[{index}].{key}");
            self.place.error(Some(span), key, reason)
        };
        let (span, key, value) = match (&table.value_env, &table.value_file) {
            (Some(variable), _) => {
                let value = match variable.get_ref().as_str() {
                    // The standard library panics on names no variable can have.
                    name if name.is_empty() || name.contains(['=', '\0']) => None,
                    name => std::env::var_os(name),
                };
                let value = value.ok_or_else(|| {
                    error(variable.span(), "value_env", "this variable is not set")
                })?;
                (
                    variable.span(),
                    "value_env",
                    SecretValue::new(value.into_vec()),
                )
            }
            (None, Some(path)) => {
                let full = self.path(path.get_ref());
                self.watch.add(full.clone());
                let bytes = read(&full, SECRET_VALUE_BYTES_MAX as u64 + 2).map_err(|e| {
                    error(
                        path.span(),
                        "value_file",
                        &format!("can't be read: {}", e.kind()),
                    )
                })?;
                (path.span(), "value_file", without_line_end(bytes))
            }
            (None, None) => return Err(error(table.name.span(), "name", "has no value")),
        };
        match value.expose().len() {
            0 => Err(error(span, key, "the value is empty")),
            size if size > SECRET_VALUE_BYTES_MAX => Err(error(span, key, "longer than 64 KiB")),
            _ => Ok(value),
        }
    }
}

/// Editors and `echo` end a file with a line end that is not meant.
fn without_line_end(mut bytes: Vec<u8>) -> SecretValue {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    SecretValue::new(bytes)
}

/// A file of at most `limit` bytes, read into one buffer that does not move.
fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let about = file.metadata()?;
    if !about.is_file() || about.len() > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("not a file of at most {limit} bytes"),
        ));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(limit.min(about.len() + 1)).unwrap_or(0));
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(policy: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        fs::write(&path, policy).unwrap();
        (folder, path)
    }

    const SECRET: &str = "[[secret]]\nname = \"K\"\nvalue_file = \"v\"\nhosts = [\"a.test\"]\n";

    /// Goal: values come without the line end of their file, tokens stay over readings, and a
    /// value that answers can't be searched for is warned of.
    #[test]
    fn a_policy_is_read_with_what_it_names() {
        let (folder, path) = folder(SECRET);
        fs::write(folder.path().join("v"), "short\r\n").unwrap();
        let first = load(&path, Tokens::new()).unwrap();
        assert_eq!(first.warnings.len(), 1);
        assert!(first.warnings[0].starts_with("secret K: "));
        assert_eq!(first.secrets[0].hosts, ["a.test"]);
        fs::write(folder.path().join("v"), "a long value\n").unwrap();
        let token = first.secrets[0].token.clone();
        let second = load(&path, first.tokens).unwrap();
        assert!(second.warnings.is_empty());
        assert_eq!(second.secrets[0].token, token);
        assert_eq!(second.ca.certificate_pem(), first.ca.certificate_pem());
        assert!(second.egress == first.egress);
    }

    /// Goal: a value that is not there is an error that names the place and not its text.
    #[test]
    fn a_missing_value_is_an_error_and_never_an_empty_secret() {
        let (folder, path) = folder(SECRET);
        let error = || load(&path, Tokens::new()).err().unwrap().to_string();
        assert!(
            error()
                .ends_with("policy.toml:3: secret[0].value_file: can't be read: entity not found")
        );
        for empty in ["", "\n", "\r\n"] {
            fs::write(folder.path().join("v"), empty).unwrap();
            assert!(
                error().ends_with("secret[0].value_file: the value is empty"),
                "{}",
                error()
            );
        }
        fs::write(
            folder.path().join("v"),
            vec![b'x'; SECRET_VALUE_BYTES_MAX + 1],
        )
        .unwrap();
        assert!(error().ends_with("longer than 64 KiB"), "{}", error());
        for variable in ["OC_TEST_NO_SUCH_VARIABLE", "", "a=b"] {
            let text = SECRET.replace("value_file = \"v\"", &format!("value_env = \"{variable}\""));
            fs::write(&path, text).unwrap();
            assert!(error().ends_with(":3: secret[0].value_env: this variable is not set"));
        }
    }

    #[test]
    fn roots_must_be_certificates() {
        let (folder, path) = folder("[egress]\nextra_roots = [\"r.pem\"]\n");
        let error = || load(&path, Tokens::new()).err().unwrap().to_string();
        assert!(
            error().contains(":2: egress.extra_roots[0]: "),
            "{}",
            error()
        );
        fs::write(folder.path().join("r.pem"), "nothing").unwrap();
        assert!(error().contains("holds no certificate"), "{}", error());
        let ca = SandboxCa::generate("test").unwrap();
        fs::write(folder.path().join("r.pem"), ca.certificate_pem()).unwrap();
        assert!(load(&path, Tokens::new()).is_ok());
    }
}
