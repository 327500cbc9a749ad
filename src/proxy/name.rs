//! Host names in one canonical spelling, and the patterns that match them.
//!
//! Invariant: filter and dialler see the same string. A name is made canonical once, on entry;
//! what has no canonical form (control characters, unicode, empty labels, spellings of IP
//! addresses) is not a name and is refused, so no two parsers can read it differently.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

/// Longest name accepted, in bytes, without the trailing dot (RFC 1035, section 2.3.4).
const NAME_BYTES_MAX: usize = 253;
/// Longest label of a name, in bytes.
const LABEL_BYTES_MAX: usize = 63;

/// Text that is not a canonical host name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a host name: labels of a-z, 0-9 and hyphens, not an IP address, at most 253 bytes")]
pub struct BadName;

/// A DNS host name: lower case, no trailing dot, letters, digits and hyphens, at most 253 bytes,
/// and no spelling of an IPv4 address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CanonicalName(Arc<str>);

impl CanonicalName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CanonicalName {
    type Err = BadName;

    /// Upper case is lowered and one trailing dot removed; everything else must be canonical.
    fn from_str(text: &str) -> Result<Self, BadName> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.split('.').all(label_is_valid) {
            return Err(BadName);
        }
        let last = text.rsplit('.').next().unwrap_or(text);
        if label_is_number(last) {
            return Err(BadName);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for CanonicalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn label_is_valid(label: &str) -> bool {
    !label.is_empty()
        && label.len() <= LABEL_BYTES_MAX
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Resolvers read a name whose last label is a number (decimal, octal or hex) as an IPv4
/// address, with fewer than four parts too; no top-level domain is one.
fn label_is_number(label: &str) -> bool {
    let hex = label
        .strip_prefix("0x")
        .or_else(|| label.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => label.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// What a connection goes to: a name, or an address that was given without one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A host name, canonical.
    Name(CanonicalName),
    /// An IP literal; refused unless the operator lists it.
    Address(IpAddr),
}

impl FromStr for Host {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(text);
        match bare.parse::<IpAddr>() {
            Ok(ip) => Ok(Self::Address(ip)),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Address(ip) => ip.fmt(f),
        }
    }
}

/// Text that is not a host pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host pattern: use a host name, `*.` and a host name, or `*`")]
pub struct BadPattern(String);

/// Which hosts a rule is about: a name, `*.suffix` (every sub-domain, not the suffix itself), or
/// `*`. Compared without case; a port in the text is ignored.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// Every host name.
    Any,
    /// Every name below this one, at whole labels.
    Below(CanonicalName),
    /// This name only.
    Exact(CanonicalName),
}

impl HostPattern {
    /// Whether the pattern covers `name`.
    pub fn matches(&self, name: &CanonicalName) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => exact == name,
            Self::Below(suffix) => name
                .as_str()
                .strip_suffix(suffix.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|label| !label.is_empty()),
        }
    }

    /// Whether the pattern says something about `name` in particular, which `*` does not.
    pub(crate) fn names(&self, name: &CanonicalName) -> bool {
        *self != Self::Any && self.matches(name)
    }
}

impl FromStr for HostPattern {
    type Err = BadPattern;
    fn from_str(text: &str) -> Result<Self, BadPattern> {
        let bad = |_| BadPattern(text.chars().take(NAME_BYTES_MAX).collect());
        let host = match text.rsplit_once(':') {
            Some((host, port)) if port.parse::<u16>().is_ok() => host,
            _ => text,
        };
        match host.strip_prefix("*.") {
            _ if host == "*" => Ok(Self::Any),
            Some(suffix) => suffix.parse().map(Self::Below).map_err(bad),
            None => host.parse().map(Self::Exact).map_err(bad),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(suffix) => write!(f, "*.{suffix}"),
            Self::Exact(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> CanonicalName {
        text.parse().unwrap()
    }

    /// Spellings that other parsers read differently must not become names at all.
    #[test]
    fn only_one_spelling_of_a_name_is_accepted() {
        for (text, canonical) in [
            ("EXAMPLE.com.", "example.com"),
            ("localhost", "localhost"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("1.2.3.4.example", "1.2.3.4.example"),
            ("0xexample.com", "0xexample.com"),
            ("a-b.c", "a-b.c"),
        ] {
            assert_eq!(name(text).as_str(), canonical);
        }
        let long = format!("{}.com", "a".repeat(64));
        let longer = ["abcdefgh"; 29].join(".");
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a.b..",
            "exa mple.com",
            "example.com\0",
            "a\0.com",
            "example.com\r\n",
            "a\tb",
            "ex%00ample.com",
            "bücher.example",
            "example。com",
            "ⓔxample.com",
            "-a.com",
            "a-.com",
            "a_b.com",
            "user@host",
            "host/path",
            "host:80",
            "[::1]",
            "::1",
            "fe80::1%eth0",
            "127.0.0.1",
            "127.1",
            "127.0.1",
            "2130706433",
            "017700000001",
            "0x7f000001",
            "0x7f.1",
            "0x7f.0.0.0x1",
            "0177.0.0.01",
            "1.2.3.4.",
            "0",
            "1.2.3.0x",
            "256.256.256.256",
            "example.1",
            &long,
            &longer,
        ] {
            assert!(bad.parse::<CanonicalName>().is_err(), "{bad:?}");
        }
    }

    /// Suffixes without the dot, apex against wildcard, case and port must not be confused.
    #[test]
    fn patterns_match_whole_labels_only() {
        let table = [
            ("example.com", "example.com", true),
            ("EXAMPLE.com.", "example.com", true),
            ("example.com:444", "example.com", true),
            ("example.com", "evilexample.com", false),
            ("example.com", "example.com.evil.com", false),
            ("example.com", "www.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", "a.example.com", true),
            ("*.Example.com:443", "a.b.example.com", true),
            ("*.example.com", "evilexample.com", false),
            ("*.example.com", "a.example.com.evil.com", false),
            ("*.example.com", "example.comx", false),
            ("*", "anything.example", true),
            ("*:443", "anything.example", true),
        ];
        for (pattern, host, expected) in table {
            let pattern: HostPattern = pattern.parse().unwrap();
            assert_eq!(
                pattern.matches(&name(host)),
                expected,
                "{pattern} and {host}"
            );
            assert_eq!(pattern.to_string().parse(), Ok(pattern));
        }
        for bad in [
            "",
            " ",
            "*.",
            "**",
            "*.*",
            "*foo.com",
            "a.*.com",
            "*.*.com",
            "https://a.com",
            "a.com/",
            "a.com:x",
            "a.com:99999",
            "a.com:",
            "10.0.0.1",
            "10.0.0.0/8",
            "[::1]:443",
            "^a",
            "*.1",
        ] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad:?}");
        }
        assert!(!HostPattern::Any.names(&name("a.com")));
    }
}
