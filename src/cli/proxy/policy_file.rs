//! The policy file as it is written: TOML, every key known, every value of its type.
//!
//! ```toml
//! [[secret]]
//! name = "OPENAI_API_KEY"
//! token = "osb_sealed_…"         # made, and printed, when absent
//! value_env = "OPENAI_API_KEY"   # or value_file = "key.txt"
//! hosts = ["api.openai.com"]     # names, "*.suffix", or "*"
//! placement = { headers = ["authorization"], methods = ["POST"] }   # anywhere when absent
//!
//! [egress]
//! allow = ["*.openai.com"]       # hosts that may be spoken to; any public one when absent
//! allow_private = ["10.1.0.0/16"]
//! extra_roots = ["corporate.pem"]
//! resolve = { "api.internal" = "10.1.0.5" }
//! strict = false                 # refuse a token whose secret is not for the host
//! inspect_all = false            # decrypt traffic to hosts without secrets too
//!
//! [[egress.tls]]                 # the first whose pattern matches a host counts
//! hosts = "*.internal"
//! extra_roots = ["internal.pem"]
//! client_certificate = "us.pem"  # shown when such a host asks; with its key
//! client_key = "us.key"
//!
//! [ca]
//! cert = "ca.pem"                # made when absent, both, the key with mode 0600
//! key = "ca.key"
//! ```
//!
//! Paths are relative to the folder of the file. This module reads no other file; see `load`.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};
use toml::Spanned;

use super::policy_error::{Place, PolicyError};
use crate::proxy::{CanonicalName, HostPattern, Placement, PlacementText, SealedToken};

/// What a spanned value adds to its path.
const SPANNED: &str = ".$__serde_spanned_private_value";
/// Largest policy file, in bytes.
pub const POLICY_BYTES_MAX: u64 = 1024 * 1024;
/// Most secrets of one policy.
const SECRETS_MAX: usize = 256;
/// Longest name of a secret, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// `[[secret]]`
    #[serde(default)]
    pub secret: Vec<SecretTable>,
    /// `[egress]`
    #[serde(default)]
    pub egress: EgressTable,
    /// `[ca]`
    #[serde(default)]
    pub ca: CaTable,
}

/// One secret.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretTable {
    /// Its name in the audit lines.
    pub name: Spanned<String>,
    /// What clients hold.
    pub token: Option<Spanned<Read<SealedToken>>>,
    /// Variable of this process with the value.
    pub value_env: Option<Spanned<String>>,
    /// File with the value; one line end at its end is not part of it.
    pub value_file: Option<Spanned<PathBuf>>,
    /// Who may receive the value.
    pub hosts: Patterns,
    /// Where in requests it may stand.
    #[serde(default)]
    pub placement: Narrowed,
}

/// What may be reached and how.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct EgressTable {
    /// Hosts that may be spoken to.
    pub allow: Option<Patterns>,
    /// Ranges that may be reached although they are not public.
    #[serde(default)]
    pub allow_private: Vec<Read<IpNet>>,
    /// Certificates trusted for hosts beside the system's (PEM).
    #[serde(default)]
    pub extra_roots: Vec<Spanned<PathBuf>>,
    /// Addresses of names, used instead of DNS.
    #[serde(default)]
    pub resolve: HashMap<Read<CanonicalName>, Read<IpAddr>>,
    /// Refuse a token whose secret is not bound to the host.
    #[serde(default)]
    pub strict: bool,
    /// Look into TLS to hosts without secrets too.
    #[serde(default)]
    pub inspect_all: bool,
    /// What is different about TLS with some hosts.
    #[serde(default)]
    pub tls: Vec<TlsTable>,
}

/// TLS with some hosts.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsTable {
    /// Which hosts.
    pub hosts: Pattern,
    /// Certificates trusted for them too (PEM).
    #[serde(default)]
    pub extra_roots: Vec<Spanned<PathBuf>>,
    /// What this proxy shows them, with the chain behind it (PEM).
    pub client_certificate: Option<Spanned<PathBuf>>,
    /// Its key (PEM).
    pub client_key: Option<Spanned<PathBuf>>,
}

/// A placement as it is written; what is absent restricts nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlacementTable {
    headers: Option<Vec<String>>,
    methods: Option<Vec<String>>,
    path_prefix: Option<String>,
    max_per_request: Option<u32>,
    #[serde(default)]
    exclusive: bool,
    #[serde(default)]
    keep_cookies: bool,
    #[serde(default)]
    seal_tokens: bool,
    #[serde(default)]
    confine: bool,
}

/// Where a secret may stand; anywhere when nothing is said.
#[derive(Deserialize, Default)]
#[serde(try_from = "PlacementTable")]
pub struct Narrowed(pub Placement);

impl TryFrom<PlacementTable> for Narrowed {
    type Error = String;

    fn try_from(table: PlacementTable) -> Result<Self, String> {
        let text = PlacementText {
            headers: table.headers.as_deref(),
            methods: table.methods.as_deref(),
            path_prefix: table.path_prefix.as_deref(),
            max_per_request: table.max_per_request,
            exclusive: table.exclusive,
            keep_cookies: table.keep_cookies,
            seal_tokens: table.seal_tokens,
            confine: table.confine,
        };
        // Elsewhere these keys are spelled as JSON has them.
        let respelled = |reason: String| {
            reason
                .replace("placement.", "")
                .replace("pathPrefix", "path_prefix")
                .replace("maxPerRequest", "max_per_request")
        };
        let placement = Placement::new(&text).map_err(|error| respelled(error.to_string()))?;
        Ok(Self(placement))
    }
}

/// The authority clients trust.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct CaTable {
    /// Certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Key (PEM, PKCS #8).
    pub key: Option<PathBuf>,
}

/// A value read from text by its own rules.
#[derive(PartialEq, Eq, Hash)]
pub struct Read<T>(pub T);

impl<'de, T: FromStr<Err: std::fmt::Display>> Deserialize<'de> for Read<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(de::Error::custom)
    }
}

/// Host patterns, at least one.
pub struct Patterns(pub Vec<HostPattern>);

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let patterns = Vec::<Pattern>::deserialize(deserializer)?;
        if patterns.is_empty() {
            // The engine reads no pattern as every host, and a person as none.
            return Err(de::Error::custom(
                "an empty list; name hosts, or `*` for any",
            ));
        }
        Ok(Self(
            patterns.into_iter().map(|pattern| pattern.0).collect(),
        ))
    }
}

/// A host pattern. Elsewhere a port in it is ignored; here it would promise what is not kept.
pub struct Pattern(pub HostPattern);

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.contains(':') {
            let reason = "a pattern is a host name, `*.` and a host name, or `*`, without a port";
            return Err(de::Error::custom(reason));
        }
        text.parse().map(Self).map_err(de::Error::custom)
    }
}

/// Reads and checks the text of a policy file.
pub fn parse(place: Place<'_>) -> Result<PolicyFile, PolicyError> {
    let source = toml::Deserializer::parse(place.text)
        .map_err(|error| place.error(error.span(), "", error.message()))?;
    let file: PolicyFile = serde_path_to_error::deserialize(source).map_err(|error| {
        let key = error.path().to_string().replace(SPANNED, "");
        place.error(error.inner().span(), key, error.inner().message())
    })?;
    check(&file, place)?;
    Ok(file)
}

fn check(file: &PolicyFile, place: Place<'_>) -> Result<(), PolicyError> {
    if file.secret.len() > SECRETS_MAX {
        let reason = format!("more than {SECRETS_MAX} secrets");
        return Err(place.error(None, "secret", reason));
    }
    let mut names = HashMap::new();
    let mut tokens = HashMap::new();
    for (index, secret) in file.secret.iter().enumerate() {
        let error = |span, key: &str, reason: &str| {
            Err(place.error(Some(span), format!("secret[{index}].{key}"), reason))
        };
        let name = &secret.name;
        if !name_is_valid(name.get_ref()) {
            let reason = "a name is 1 to 128 of A-Z, a-z, 0-9, `_`, `-` and `.`";
            return error(name.span(), "name", reason);
        }
        if is_second(&mut names, name.get_ref()) {
            return error(name.span(), "name", "another secret has this name");
        }
        if let Some(token) = &secret.token
            && is_second(&mut tokens, &token.get_ref().0)
        {
            return error(token.span(), "token", "another secret has this token");
        }
        match (&secret.value_env, &secret.value_file) {
            (Some(_), None) | (None, Some(_)) => {}
            _ => {
                let reason = "needs `value_env` or `value_file`, and not both";
                return Err(place.error(Some(name.span()), format!("secret[{index}]"), reason));
            }
        }
    }
    Ok(())
}

fn name_is_valid(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

fn is_second<K: Eq + Hash>(seen: &mut HashMap<K, ()>, key: K) -> bool {
    seen.insert(key, ()).is_some()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn error(text: &str) -> String {
        let file = Path::new("p.toml");
        match parse(Place { file, text }) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    const GOOD: &str = "[[secret]]\nname = \"K\"\nvalue_env = \"V\"\nhosts = [\"api.example\"]\n";

    /// Goal: whoever mistypes learns file, line and key, and nothing is silently ignored.
    #[test]
    fn mistakes_are_named_by_file_line_and_key() {
        assert_eq!(error(GOOD), "accepted");
        for (text, start) in [
            ("[[secret]\n", "p.toml:1: "),
            ("\n[egres]\n", "p.toml:2: egres: unknown field"),
            (
                "[egress]\n\nstrictly = true\n",
                "p.toml:3: egress.strictly: unknown field",
            ),
            (
                "[egress]\nstrict = 1\n",
                "p.toml:2: egress.strict: invalid type",
            ),
            (
                "[egress]\nallow = [\"a.b\",\n \"a_b\"]\n",
                "p.toml:2: egress.allow[1]: `a_b` is not",
            ),
            (
                "[egress]\nallow = []\n",
                "p.toml:2: egress.allow: an empty list",
            ),
            (
                "[egress]\nallow = [\"a.b:443\"]\n",
                "p.toml:2: egress.allow[0]: a pattern is",
            ),
            (
                "[egress]\nallow_private = [\"10.0.0.0/33\"]\n",
                "p.toml:2: egress.allow_private[0]: ",
            ),
            (
                "[egress]\nresolve = { \"a.b\" = \"1.2.3\" }\n",
                "p.toml:2: egress.resolve",
            ),
            (
                "[[egress.tls]]\nhosts = \"a.b\"\nkey = \"k\"\n",
                "p.toml:3: egress.tls[0].key: unknown field",
            ),
            (
                "[[egress.tls]]\nhosts = \"a.b:443\"\n",
                "p.toml:2: egress.tls[0].hosts: a pattern is",
            ),
            (
                "[[egress.tls]]\n",
                "p.toml:1: egress.tls[0]: missing field `hosts`",
            ),
            (
                "[egress]\nresolve = { \"127.1\" = \"1.2.3.4\" }\n",
                "p.toml:2: egress.resolve",
            ),
        ] {
            let found = error(text);
            assert!(found.starts_with(start), "{text:?}: {found}");
        }
        for (change, with, start) in [
            (
                "\"K\"",
                "\"K\"\nvalue = \"x\"",
                "p.toml:3: secret[0].value: unknown field",
            ),
            ("\"K\"", "\"\"", "p.toml:2: secret[0].name: a name is"),
            (
                "\"K\"",
                "\"K\"\nvalue_file = \"f\"",
                "p.toml:2: secret[0]: needs `value_env`",
            ),
            (
                "value_env = \"V\"\n",
                "",
                "p.toml:2: secret[0]: needs `value_env`",
            ),
            (
                "\"K\"",
                "\"K\"\ntoken = \"osb_sealed_1\"",
                "p.toml:3: secret[0].token: not a sealed",
            ),
            (
                "[\"api.example\"]",
                "[]",
                "p.toml:4: secret[0].hosts: an empty list",
            ),
            (
                "hosts = [\"api.example\"]\n",
                "",
                "p.toml:1: secret[0]: missing field `hosts`",
            ),
            (
                "value_env",
                "placement = { header = [\"x\"] }\nvalue_env",
                "p.toml:3: secret[0].placement.header: unknown field",
            ),
            (
                "value_env",
                "placement = { headers = [] }\nvalue_env",
                "p.toml:3: secret[0].placement: headers must have",
            ),
            (
                "value_env",
                "placement = { headers = [\"host\"] }\nvalue_env",
                "p.toml:3: secret[0].placement: headers: `host` can't be used",
            ),
            (
                "value_env",
                "placement = { methods = [\"post\"] }\nvalue_env",
                "p.toml:3: secret[0].placement: methods: `post` can't be used",
            ),
            (
                "value_env",
                "placement = { path_prefix = \"/a/../b\" }\nvalue_env",
                "p.toml:3: secret[0].placement: path_prefix must be a path",
            ),
            (
                "value_env",
                "placement = { max_per_request = 0 }\nvalue_env",
                "p.toml:3: secret[0].placement: max_per_request must be",
            ),
        ] {
            let found = error(&GOOD.replace(change, with));
            assert!(found.starts_with(start), "{with:?}: {found}");
        }
        let twice = format!("{GOOD}{GOOD}");
        assert_eq!(
            error(&twice),
            "p.toml:6: secret[1].name: another secret has this name"
        );
    }

    /// Goal: a value that was written into the file by mistake is not shown on a terminal.
    #[test]
    fn a_value_in_the_wrong_place_is_not_repeated() {
        let pasted = "sk-live-0123456789";
        for line in ["value", "token", "value_env\nvalue_env"] {
            let text = GOOD.replace("value_env", &format!("{line} = \"{pasted}\"\nvalue_env"));
            let found = error(&text);
            assert!(found != "accepted" && !found.contains(pasted), "{found}");
        }
    }
}
