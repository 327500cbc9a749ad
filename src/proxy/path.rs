//! Paths that every server reads alike, and what is below which.
//!
//! Invariant: a canonical path has one reading. Whatever some server, framework or file system
//! might fold into another path (dot segments, encoded or doubled slashes, backslashes,
//! parameters, double encoding, look-alikes of dots and slashes) makes it none.

use percent_encoding::percent_decode;

/// Characters that compatibility normalisation turns into a dot, a slash, a backslash or a
/// semicolon.
const LOOKALIKES: [char; 9] = [
    '\u{2024}', '\u{2025}', '\u{2026}', '\u{fe52}', '\u{fe54}', '\u{fe68}', '\u{ff0e}', '\u{ff0f}',
    '\u{ff3c}',
];

/// Whether `path` is `prefix` or something below it: whole segments are compared.
pub(crate) fn is_below(path: &str, prefix: &str) -> bool {
    let rest = path.strip_prefix(prefix);
    rest.is_some_and(|rest| prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'))
}

/// Whether every server reads `path` as the same one.
pub(crate) fn is_canonical(path: &str) -> bool {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'\\' | b';' | b'?' | b'#');
    if !path.starts_with('/') || path.contains("//") || !path.bytes().all(plain) {
        return false;
    }
    let mut escapes = path.split('%').skip(1);
    if !escapes.all(|rest| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    }) {
        return false;
    }
    path.split('/').all(|segment| {
        let Ok(text) = percent_decode(segment.as_bytes()).decode_utf8() else {
            return false;
        };
        let strange = |c: char| {
            c.is_control() || matches!(c, '/' | '\\' | ';' | '%') || LOOKALIKES.contains(&c)
        };
        // Trailing dots and blanks are dropped by some file systems: `.. ` and `...` too.
        let dots = !text.is_empty() && text.chars().all(|c| matches!(c, '.' | ' '));
        !dots && !text.contains(strange)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: no spelling of a path outside the prefix passes for one inside (threat row 19).
    #[test]
    fn only_canonical_paths_fit_a_prefix() {
        let fits = |path: &str| is_canonical(path) && is_below(path, "/v1/mail");
        for inside in [
            "/v1/mail",
            "/v1/mail/",
            "/v1/mail/a%20b/c.d",
            "/v1/mail/caf%C3%A9/a.b...c",
        ] {
            assert!(fits(inside), "{inside}");
        }
        for outside in [
            "/",
            "/v1/mailbox",
            "/v1",
            "/V1/mail",
            "//v1/mail",
            "/v1//mail",
            "/v1/mail/../admin",
            "/v1/mail/./x",
            "/v1/mail/..",
            "/v1/mail/%2e%2e/admin",
            "/v1/mail/%2E./admin",
            "/v1/mail/.%2e/admin",
            "/v1/mail/..%2fadmin",
            "/v1/mail%2f..%2fadmin",
            "/v1/mail/%2Fadmin",
            "/v1/mail/..%5cadmin",
            "/v1/mail/%5c..",
            "/v1/mail/%252e%252e/admin",
            "/v1/mail/;/../admin",
            "/v1/mail/..;/admin",
            "/v1/mail/%3b",
            "/v1/mail/%00",
            "/v1/mail/%0d%0a",
            "/v1/mail//admin",
            "/v1/mail/...",
            "/v1/mail/%20./admin",
            "/v1/mail/..%20/admin",
            "/v1/mail/%c0%ae%c0%ae/admin",
            "/v1/mail/%ef%bc%8e%ef%bc%8e/admin",
            "/v1/mail/%ef%bc%8fadmin",
            "/v1/mail/%zz",
            "/v1/mail/%2",
            "/%76%31/mail",
            "*",
        ] {
            assert!(!fits(outside), "{outside}");
        }
        for raw in [
            "/v1/mail/\\..",
            "/v1/mail/a#b",
            "/v1/mail/\u{e9}",
            "/v1/mail/ x",
        ] {
            assert!(!is_canonical(raw), "{raw}");
        }
    }
}
