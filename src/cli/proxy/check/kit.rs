//! The kit: what the proxy under test and the attacks must agree on, as files.
//!
//! Invariants: values are random for each kit and mean nothing anywhere; they and the key of the
//! hosts' authority are in files with mode 0600; a kit is written into a folder without one.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::authority::{self, Authority};
use super::kit_text::{policy, readme};
use crate::cli::proxy::authority::write_new;
use crate::proxy::SealedToken;
use crate::secret::SecretValue;

/// The host of most attacks; the secrets `primary`, `quote` and `crlf` are for it alone.
pub const API: &str = "api.oc-check.localhost";
/// The host of the secret `other`.
pub const OTHER: &str = "other.oc-check.localhost";
/// The secret `wild` is for every name below this one, and not for itself.
pub const WILD: &str = "wild.oc-check.localhost";
/// A host that may be spoken to and has no secret.
pub const PLAIN: &str = "plain.oc-check.localhost";
/// Names that look like the host and are not; no secret is for them.
pub const LOOKALIKES: [&str; 4] = [
    "xapi.oc-check.localhost",
    "sub.api.oc-check.localhost",
    "api.oc-check.localhost.oc-check.localhost",
    "xwild.oc-check.localhost",
];
/// A name that leads to [`INSIDE_ADDRESS`].
pub const INSIDE: &str = "inside.oc-check.localhost";
/// An address of this machine that the proxy may not reach.
pub const INSIDE_ADDRESS: &str = "127.0.0.2";
/// A name the policy does not allow.
pub const OUTSIDE: &str = "api.oc-outside.localhost";
/// A name below [`WILD`].
pub const BELOW_WILD: &str = "a.wild.oc-check.localhost";

/// Secrets of a kit, and for which host.
pub const ROLES: [(&str, &str); 5] = [
    ("primary", API),
    ("quote", API),
    ("crlf", API),
    ("other", OTHER),
    ("wild", "*.wild.oc-check.localhost"),
];

/// The list of secrets in a kit.
const FACTS: &str = "kit.json";
/// Nobody but the owner.
const PRIVATE: u32 = 0o600;
/// Everybody may read.
const PUBLIC: u32 = 0o644;

#[derive(Serialize, Deserialize)]
struct Fact {
    role: String,
    host: String,
    token: String,
    value_file: String,
}

/// One secret as both sides know it.
pub struct Sealed {
    /// What the client sends.
    pub token: String,
    /// What only its host may see.
    pub value: SecretValue,
}

impl Sealed {
    /// The value's bytes, to be looked for.
    pub fn real(&self) -> &[u8] {
        self.value.expose()
    }
}

/// A kit that was read.
pub struct Kit {
    /// The host of the primary secret.
    pub api: String,
    /// For [`Self::api`].
    pub primary: Sealed,
    /// For [`Self::api`]; its value has quotes and other marks.
    pub quote: Sealed,
    /// For [`Self::api`]; its value has a line break.
    pub crlf: Sealed,
    /// For [`OTHER`].
    pub other: Sealed,
    /// For names below [`WILD`].
    pub wild: Sealed,
    /// Signs the hosts.
    pub authority: Authority,
}

/// Writes a new kit into `folder`.
pub fn prepare(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    if folder.join(FACTS).exists() {
        return Err(format!("{} holds a kit already", folder.display()));
    }
    let mut facts = Vec::new();
    for (role, host) in ROLES {
        let value = value(role);
        let value_file = format!("{role}.value");
        write_new(&folder.join(&value_file), value.expose(), PRIVATE)?;
        facts.push(Fact {
            role: role.to_owned(),
            host: host.to_owned(),
            token: SealedToken::generate().to_string(),
            value_file,
        });
    }
    let (cert, key) = authority::make().map_err(|error| error.to_string())?;
    write_new(&folder.join("upstream-ca.pem"), cert.as_bytes(), PUBLIC)?;
    write_new(&folder.join("upstream-ca.key"), key.as_bytes(), PRIVATE)?;
    let rows: Vec<_> = facts
        .iter()
        .map(|fact| (fact.role.as_str(), fact.host.as_str(), fact.token.as_str()))
        .collect();
    write_new(
        &folder.join("policy.toml"),
        policy(&rows).as_bytes(),
        PUBLIC,
    )?;
    write_new(&folder.join("README.md"), readme(&rows).as_bytes(), PUBLIC)?;
    let text = serde_json::to_vec_pretty(&facts).map_err(|error| error.to_string())?;
    // Last: a folder with it is a whole kit.
    write_new(&folder.join(FACTS), &text, PUBLIC)
}

/// Long and odd enough to be found wherever it leaks, in any spelling.
fn value(role: &str) -> SecretValue {
    let random = hex::encode(rand::random::<[u8; 12]>());
    let (head, tail) = random.split_at(16);
    SecretValue::from(match role {
        "quote" => format!("occ{head}\"\\&=<%+#;'{tail}"),
        "crlf" => format!("occ{head}\r\nx-injected: {tail}"),
        _ => format!("occ{head}/+=~{tail}"),
    })
}

/// Reads the kit in `folder`.
pub fn read(folder: &Path) -> Result<Kit, String> {
    let at = |name: &str| {
        let path = folder.join(name).display().to_string();
        move |error: io::Error| format!("{path}: {error}")
    };
    let text = |name: &str| fs::read_to_string(folder.join(name)).map_err(at(name));
    let facts: Vec<Fact> = serde_json::from_str(&text(FACTS)?)
        .map_err(|error| format!("{}: {error}", folder.join(FACTS).display()))?;
    let secret = |role: &str| {
        let fact = facts.iter().find(|fact| fact.role == role);
        let fact = fact.ok_or_else(|| format!("the kit has no secret `{role}`"))?;
        Ok::<_, String>(Sealed {
            token: fact.token.clone(),
            value: read_value(&folder.join(&fact.value_file))?,
        })
    };
    Ok(Kit {
        api: API.to_owned(),
        primary: secret("primary")?,
        quote: secret("quote")?,
        crlf: secret("crlf")?,
        other: secret("other")?,
        wild: secret("wild")?,
        authority: Authority::read(&text("upstream-ca.pem")?, &text("upstream-ca.key")?)?,
    })
}

/// Reads a value, whole.
pub fn read_value(path: &Path) -> Result<SecretValue, String> {
    let value = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    if value.is_empty() {
        return Err(format!("{}: the value is empty", path.display()));
    }
    Ok(SecretValue::new(value))
}

impl Kit {
    /// Every name a hostile host may have to prove.
    pub fn names(&self) -> Vec<String> {
        let names = [OTHER, WILD, PLAIN, INSIDE, OUTSIDE, BELOW_WILD];
        let names = names.into_iter().chain(LOOKALIKES).map(str::to_owned);
        names.chain([self.api.clone()]).collect()
    }

    /// Every secret with its role.
    pub fn secrets(&self) -> [(&'static str, &Sealed); 5] {
        [
            ("primary", &self.primary),
            ("quote", &self.quote),
            ("crlf", &self.crlf),
            ("other", &self.other),
            ("wild", &self.wild),
        ]
    }
}
