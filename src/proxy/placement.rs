//! Where in a request a secret may stand: what its owner narrowed beyond its hosts.
//!
//! Invariants:
//! - Narrowing only takes away: a token that does not fit passes as the inert text it is (or is
//!   refused, in strict mode), and is never replaced by a guess.
//! - A path is judged only in canonical form. What a server could read as another path than the
//!   one compared (dot segments, encoded or doubled slashes, backslashes, parameters) fits no
//!   prefix, and the path that was judged is the one that is forwarded.
//! - A request that asks to be read as another one (`X-HTTP-Method-Override`, `X-Original-URL`)
//!   fits no method and no prefix.

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, request};
use percent_encoding::percent_decode;

use super::credential::{foreign_credential, foreign_field};
use super::grants::Grants;
use super::path::{is_below, is_canonical};
use super::policy::Binding;
use super::token::SealedToken;

/// Most entries of one list of a placement.
pub const PLACEMENT_ENTRIES_MAX: usize = 16;
/// Longest path prefix, in bytes.
pub const PATH_PREFIX_BYTES_MAX: usize = 1024;
/// Largest bound on replacements in one request.
pub const REPLACEMENTS_MAX: u32 = 1_000_000;

/// Fields that are about the connection or its framing, where no secret may stand.
const NO_PLACE: [&str; 14] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Fields by which frameworks let a request name another method.
const METHOD_OVERRIDES: [&str; 3] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
];
/// Fields by which servers let a request name another path.
const PATH_OVERRIDES: [&str; 4] = [
    "x-original-url",
    "x-rewrite-url",
    "x-original-uri",
    "x-forwarded-uri",
];
/// A placement that can't be used. The text names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPlacement(String);

/// A placement as its owner writes it; what is absent restricts nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlacementText<'a> {
    /// The only header fields the token is replaced in; with it never in path, query or body.
    pub headers: Option<&'a [String]>,
    /// The only methods it is replaced for.
    pub methods: Option<&'a [String]>,
    /// The only part of the host's paths it is replaced for.
    pub path_prefix: Option<&'a str>,
    /// How often it is replaced in one request at most.
    pub max_per_request: Option<u32>,
    /// Refuse requests to its hosts that bring another credential.
    pub exclusive: bool,
    /// Keep cookies of its hosts from the sandbox.
    pub keep_cookies: bool,
    /// Seal the access and refresh tokens that its hosts hand out.
    pub seal_tokens: bool,
    /// Refuse requests to its hosts with other methods and outside of the path.
    pub confine: bool,
}

/// Where a secret may stand; the default is anywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    headers: Vec<HeaderName>,
    methods: Vec<Method>,
    path_prefix: Option<String>,
    max_per_request: Option<u32>,
    exclusive: bool,
    keep_cookies: bool,
    seal_tokens: bool,
    confine: bool,
}

/// Why a token that names a secret of this sandbox was not replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The secret is for other hosts.
    Host,
    /// The same, and this host is one of another secret: a key of one provider on its way to
    /// another.
    HostOfAnother,
    /// The connection is not TLS.
    Plain,
    /// Not in this place of the request.
    Place,
    /// Not with this method.
    Method,
    /// Not on this path, or on one with no canonical form.
    Path,
    /// Replaced as often as it may be already.
    Count,
    /// It was revoked.
    Revoked,
}

impl Why {
    /// The reason in the audit trail.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::HostOfAnother => "host_of_another_secret",
            Self::Plain => "plain_http",
            Self::Place => "place",
            Self::Method => "method",
            Self::Path => "path",
            Self::Count => "count",
            Self::Revoked => "revoked",
        }
    }
}

impl Placement {
    /// Reads a placement; refuses what could not be meant or not be held.
    pub fn new(text: &PlacementText<'_>) -> Result<Self, BadPlacement> {
        let max = text.max_per_request;
        if max.is_some_and(|max| !(1..=REPLACEMENTS_MAX).contains(&max)) {
            return bad(format!(
                "placement.maxPerRequest must be between 1 and {REPLACEMENTS_MAX}"
            ));
        }
        if text.confine && text.methods.is_none() && text.path_prefix.is_none() {
            return bad("placement.confine needs placement.methods or placement.pathPrefix".into());
        }
        Ok(Self {
            headers: list("headers", text.headers, field_name)?,
            methods: list("methods", text.methods, method)?,
            path_prefix: text.path_prefix.map(prefix).transpose()?,
            max_per_request: max,
            exclusive: text.exclusive,
            keep_cookies: text.keep_cookies,
            seal_tokens: text.seal_tokens,
            confine: text.confine,
        })
    }

    /// Whether it takes nothing away.
    pub fn is_anywhere(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a token may be replaced in this field of a head; `None` is every other place.
    pub(crate) fn takes_field(&self, field: Option<&HeaderName>) -> bool {
        self.headers.is_empty() || field.is_some_and(|field| self.headers.contains(field))
    }

    pub(crate) fn max_per_request(&self) -> Option<u32> {
        self.max_per_request
    }

    pub(crate) fn keeps_cookies(&self) -> bool {
        self.keep_cookies
    }

    pub(crate) fn seals_tokens(&self) -> bool {
        self.seal_tokens
    }

    /// Whether requests have to be judged before anything can be replaced in them.
    pub(crate) fn judges_requests(&self) -> bool {
        !self.methods.is_empty() || self.path_prefix.is_some()
    }

    /// Whether the secret may be in this request at all.
    fn judge(&self, parts: &request::Parts) -> Option<Why> {
        let names_another = |fields: &[&str]| {
            let mut fields = fields.iter();
            fields.any(|field| parts.headers.contains_key(*field))
        };
        if !self.methods.is_empty()
            && (!self.methods.contains(&parts.method)
                || names_another(&METHOD_OVERRIDES)
                || asks_for_another_method(parts.uri.query()))
        {
            return Some(Why::Method);
        }
        let prefix = self.path_prefix.as_deref()?;
        let path = parts.uri.path();
        let fits = is_canonical(path) && is_below(path, prefix) && !names_another(&PATH_OVERRIDES);
        (!fits).then_some(Why::Path)
    }
}

/// What the placements of a host's secrets say of one request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Judged {
    /// By index of the binding.
    misfits: Vec<Option<Why>>,
    /// The path has to be canonical with the values in place too.
    path_matters: bool,
}

impl Judged {
    /// Judges a request by `bindings`, of which those with `true` beside them are for this host.
    pub fn request<'a>(
        parts: &request::Parts,
        bindings: impl Iterator<Item = (&'a Binding, bool)>,
    ) -> Self {
        let mut judged = Self::default();
        for (binding, applies) in bindings {
            let misfit = applies.then(|| binding.placement.judge(parts)).flatten();
            let by_path = binding.placement.path_prefix.is_some();
            judged.path_matters |= applies && by_path && misfit.is_none();
            judged.misfits.push(misfit);
        }
        judged
    }

    pub fn misfit(&self, index: usize) -> Option<Why> {
        self.misfits.get(index).copied().flatten()
    }

    /// Whether the target with the values in place may go out: a value of one secret must not
    /// move the path that another one was judged by.
    pub fn takes_target(&self, path: &str) -> bool {
        !self.path_matters || is_canonical(path)
    }
}

/// The name of a secret that lets no request outside of its methods and path to its hosts, when
/// this is one; where there are several, one that fits is enough.
pub(crate) fn confining<'a>(
    parts: &request::Parts,
    bindings: impl Iterator<Item = &'a Binding>,
) -> Option<&'a str> {
    let mut outside = None;
    for binding in bindings.filter(|binding| binding.placement.confine) {
        binding.placement.judge(parts)?;
        outside = outside.or(Some(binding.name.as_str()));
    }
    outside
}

/// Whether a query has the parameter by which Rails, Laravel and others take another method.
fn asks_for_another_method(query: Option<&str>) -> bool {
    query.unwrap_or_default().split(['&', ';']).any(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        percent_decode(name.as_bytes()).eq(*b"_method")
    })
}

/// The name of a credential in a request that is not a token for this host, when one of the host's
/// secrets is to be the only credential there.
pub(crate) fn foreign<'a>(
    parts: &request::Parts,
    mut bindings: impl Iterator<Item = &'a Binding> + Clone,
    grants: &Grants,
) -> Option<&'static str> {
    let ours = bindings.clone();
    if !bindings.any(|binding| binding.placement.exclusive) {
        return None;
    }
    foreign_credential(parts, |token| is_ours(token, ours.clone(), grants))
}

/// The same of fields behind a body.
pub(crate) fn foreign_behind<'a>(
    trailers: &HeaderMap,
    mut bindings: impl Iterator<Item = &'a Binding> + Clone,
    grants: &Grants,
) -> Option<&'static str> {
    let ours = bindings.clone();
    if !bindings.any(|binding| binding.placement.exclusive) {
        return None;
    }
    foreign_field(trailers, |token| is_ours(token, ours.clone(), grants))
}

/// Whether a token is one of `bindings`, or of something that was handed out for one.
fn is_ours<'a>(
    token: &SealedToken,
    bindings: impl Iterator<Item = &'a Binding> + Clone,
    grants: &Grants,
) -> bool {
    let is_one = |token| bindings.clone().any(|binding| binding.token == token);
    match grants.find(token) {
        Some(grant) => grant.parents.iter().all(|parent| is_one(parent.token)),
        None => is_one(*token),
    }
}

/// Takes the cookies out of an answer.
pub(crate) fn drop_cookies(headers: &mut HeaderMap) {
    headers.remove(header::SET_COOKIE);
    headers.remove("set-cookie2");
}

fn bad<T>(text: String) -> Result<T, BadPlacement> {
    Err(BadPlacement(text))
}

fn list<T>(
    field: &str,
    texts: Option<&[String]>,
    read: fn(&str) -> Option<T>,
) -> Result<Vec<T>, BadPlacement> {
    let Some(texts) = texts else {
        return Ok(Vec::new());
    };
    if !(1..=PLACEMENT_ENTRIES_MAX).contains(&texts.len()) {
        return bad(format!(
            "placement.{field} must have between 1 and {PLACEMENT_ENTRIES_MAX} entries"
        ));
    }
    let read_one = |text: &String| {
        read(text).ok_or_else(|| {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
            BadPlacement(format!("placement.{field}: `{shown}` can't be used"))
        })
    };
    texts.iter().map(read_one).collect()
}

fn field_name(text: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok()?;
    (!NO_PLACE.contains(&name.as_str())).then_some(name)
}

/// Methods are told apart by case (RFC 9110, section 9.1), and all in use are upper case.
fn method(text: &str) -> Option<Method> {
    let upper = text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
    let method = Method::from_bytes(text.as_bytes()).ok()?;
    (upper && text.len() <= 32 && method != Method::CONNECT).then_some(method)
}

fn prefix(text: &str) -> Result<String, BadPlacement> {
    if !text.starts_with('/') || text.len() > PATH_PREFIX_BYTES_MAX || !is_canonical(text) {
        return bad(format!(
            "placement.pathPrefix must be a path from `/` on, of at most {PATH_PREFIX_BYTES_MAX} \
             bytes, without dot segments, doubled slashes, `;`, `?` or `#`"
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: &str, target: &str, fields: &[(&str, &str)]) -> request::Parts {
        let mut request = http::Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    /// Goal: a path is the one the server acts by.
    #[test]
    fn paths_are_not_overridden() {
        let placement = Placement::new(&PlacementText {
            path_prefix: Some("/v1/mail"),
            ..PlacementText::default()
        })
        .unwrap();
        let judge = |target: &str| placement.judge(&parts("GET", target, &[]));
        assert_eq!(judge("https://api.test/v1/mail/1?x=/../.."), None);
        for outside in ["/v1/mailbox", "/v1/mail/%2e%2e/admin", "*"] {
            assert_eq!(judge(outside), Some(Why::Path), "{outside}");
        }
        for field in PATH_OVERRIDES {
            let moved = parts("GET", "/v1/mail", &[(field, "/admin")]);
            assert_eq!(placement.judge(&moved), Some(Why::Path), "{field}");
        }
    }

    /// Goal: a method is the one the server acts by.
    #[test]
    fn methods_are_exact_and_not_overridden() {
        let placement = Placement::new(&PlacementText {
            methods: Some(&["GET".to_owned()]),
            ..PlacementText::default()
        })
        .unwrap();
        assert_eq!(placement.judge(&parts("GET", "/", &[])), None);
        for method in ["POST", "get", "HEAD", "GETS"] {
            let judged = placement.judge(&parts(method, "/", &[]));
            assert_eq!(judged, Some(Why::Method), "{method}");
        }
        for target in ["/?_method=DELETE", "/?a&%5Fmethod=PUT", "/?_method"] {
            let other = parts("GET", target, &[]);
            assert_eq!(placement.judge(&other), Some(Why::Method), "{target}");
        }
        for field in METHOD_OVERRIDES {
            let other = parts("GET", "/", &[(field, "DELETE")]);
            assert_eq!(placement.judge(&other), Some(Why::Method), "{field}");
        }
    }

    /// Goal: what can't be held is refused when it is set, by the name of its field.
    #[test]
    fn a_placement_that_could_not_be_held_is_refused() {
        let one = |text: &str| [text.to_owned()];
        let text = PlacementText::default;
        let refused = |text: &PlacementText<'_>, field: &str| {
            let told = Placement::new(text).unwrap_err().to_string();
            assert!(told.contains(field), "{told}");
        };
        for name in [
            "",
            "a b",
            "Host",
            "content-length",
            "transfer-encoding",
            "\r\n",
        ] {
            let headers = one(name);
            refused(
                &PlacementText {
                    headers: Some(&headers),
                    ..text()
                },
                "headers",
            );
        }
        refused(
            &PlacementText {
                headers: Some(&[]),
                ..text()
            },
            "headers",
        );
        for name in ["", "get", "CONNECT", "A B"] {
            let methods = one(name);
            refused(
                &PlacementText {
                    methods: Some(&methods),
                    ..text()
                },
                "methods",
            );
        }
        let many = vec!["GET".to_owned(); PLACEMENT_ENTRIES_MAX + 1];
        refused(
            &PlacementText {
                methods: Some(&many),
                ..text()
            },
            "methods",
        );
        for path in [
            "", "v1/", "/v1/../x", "/a//b", "/a?b", "/a;b", "/%2e%2e/", "/a b",
        ] {
            refused(
                &PlacementText {
                    path_prefix: Some(path),
                    ..text()
                },
                "pathPrefix",
            );
        }
        for max in [0, REPLACEMENTS_MAX + 1] {
            refused(
                &PlacementText {
                    max_per_request: Some(max),
                    ..text()
                },
                "maxPerRequest",
            );
        }
        assert!(Placement::new(&text()).unwrap().is_anywhere());
        let headers = one("Authorization");
        let only = Placement::new(&PlacementText {
            headers: Some(&headers),
            ..text()
        })
        .unwrap();
        assert!(only.takes_field(Some(&header::AUTHORIZATION)));
        assert!(!only.takes_field(Some(&header::COOKIE)) && !only.takes_field(None));
    }
}
