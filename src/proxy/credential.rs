//! Whether a request brings a credential of its own to a host whose secret is to be the only one.
//!
//! Known places only: the fields and query parameters that common APIs read credentials from. A
//! key inside a body or in a field nobody knows is not found; SECURITY.md says so.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request;
use percent_encoding::percent_decode;

use super::head::basic_credentials;
use super::token::{SealedToken, TOKEN_BYTES};

/// Fields that hold a credential and nothing else.
const FIELDS: [&str; 16] = [
    "api-key",
    "apikey",
    "authentication",
    "job-token",
    "ocp-apim-subscription-key",
    "private-token",
    "x-access-token",
    "x-amz-security-token",
    "x-api-key",
    "x-api-token",
    "x-apikey",
    "x-auth-key",
    "x-auth-token",
    "x-goog-api-key",
    "x-token",
    "x-vault-token",
];
/// Query parameters that hold one.
const PARAMETERS: [&str; 16] = [
    "access_key",
    "access_token",
    "api-key",
    "api_key",
    "api_token",
    "apikey",
    "auth_token",
    "job_token",
    "key",
    "private_token",
    "sig",
    "signature",
    "subscription-key",
    "x-amz-credential",
    "x-amz-signature",
    "x-goog-signature",
];
/// Longest name of a WebSocket's subprotocol; what is longer is taken for a key.
const PROTOCOL_BYTES_MAX: usize = 24;
/// Names that stand beside a token in Basic credentials and are no credential themselves.
const NO_CREDENTIAL: [&[u8]; 8] = [
    b"",
    b"api",
    b"git",
    b"oauth2",
    b"token",
    b"x-access-token",
    b"x-oauth-basic",
    b"x-token-auth",
];

/// The name of the place where `parts` has a credential that is not one of ours.
pub(crate) fn foreign_credential(
    parts: &request::Parts,
    is_ours: impl Fn(&SealedToken) -> bool,
) -> Option<&'static str> {
    if let Some(name) = foreign_field(&parts.headers, &is_ours) {
        return Some(name);
    }
    let query = parts.uri.query().unwrap_or_default();
    query.split(['&', ';']).find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = percent_decode(name.as_bytes()).collect::<Vec<u8>>();
        let known = PARAMETERS
            .into_iter()
            .find(|known| name.eq_ignore_ascii_case(known.as_bytes()))?;
        (!is_token(value.as_bytes(), &is_ours)).then_some(known)
    })
}

/// The name of the field that has such a credential.
pub(crate) fn foreign_field(
    headers: &HeaderMap,
    is_ours: impl Fn(&SealedToken) -> bool,
) -> Option<&'static str> {
    let ours = |bytes: &[u8]| is_token(bytes, &is_ours);
    for value in headers.get_all(header::AUTHORIZATION) {
        if !is_our_authorization(value, &ours) {
            return Some("authorization");
        }
    }
    for value in headers.get_all(header::COOKIE) {
        let mut cookies = value.as_bytes().split(|&b| b == b';');
        let ours = |cookie: &[u8]| {
            let value = cookie.splitn(2, |&b| b == b'=').last().unwrap_or_default();
            ours(value.trim_ascii())
        };
        if !cookies.all(ours) {
            return Some("cookie");
        }
    }
    for value in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
        // Browsers can set no other field on a WebSocket, so keys are put behind a prefix here.
        let mut names = value
            .as_bytes()
            .split(|&b| b == b',')
            .map(<[u8]>::trim_ascii);
        let last = |name: &[u8]| ours(&name[name.len().saturating_sub(TOKEN_BYTES)..]);
        if !names.all(|name| name.len() <= PROTOCOL_BYTES_MAX || last(name)) {
            return Some("sec-websocket-protocol");
        }
    }
    FIELDS.into_iter().find(|name| {
        let mut values = headers.get_all(HeaderName::from_static(name)).iter();
        !values.all(|value| ours(value.as_bytes().trim_ascii()))
    })
}

/// A scheme and one of our tokens, or Basic credentials of nothing else.
fn is_our_authorization(value: &HeaderValue, ours: &impl Fn(&[u8]) -> bool) -> bool {
    if let Some(text) = basic_credentials(&header::AUTHORIZATION, value) {
        let Some(colon) = text.iter().position(|&b| b == b':') else {
            return ours(&text);
        };
        let (user, password) = (&text[..colon], &text[colon + 1..]);
        let none = |part: &[u8]| NO_CREDENTIAL.contains(&part);
        let either = ours(user) || ours(password);
        return either
            && [user, password]
                .into_iter()
                .all(|part| ours(part) || none(part));
    }
    let value = value.as_bytes().trim_ascii();
    let credential = match value.iter().position(|&b| b == b' ') {
        Some(blank) => value[blank..].trim_ascii(),
        None => value,
    };
    ours(credential)
}

fn is_token(bytes: &[u8], is_ours: &impl Fn(&SealedToken) -> bool) -> bool {
    bytes.len() == TOKEN_BYTES && SealedToken::at(bytes).is_some_and(|token| is_ours(&token))
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// Goal: each known place is found with a stranger's key in it, and takes our token.
    #[test]
    fn a_credential_is_ours_or_foreign() {
        let (ours, other) = (SealedToken::generate(), SealedToken::generate());
        let found = |target: &str, fields: &[(&str, String)]| {
            let mut request = http::Request::builder().uri(target);
            for (name, value) in fields {
                request = request.header(*name, value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            foreign_credential(&parts, |token| *token == ours)
        };
        let basic = |text: String| format!("Basic {}", STANDARD.encode(text));
        assert_eq!(found("/?page=2&keys=1", &[("x-note", "k".into())]), None);
        for value in [
            format!("Bearer {ours}"),
            format!("{ours}"),
            basic(format!("{ours}:")),
            basic(format!("x-access-token:{ours}")),
            basic(format!("{ours}:x-oauth-basic")),
        ] {
            assert_eq!(
                found("/", &[("authorization", value.clone())]),
                None,
                "{value}"
            );
        }
        for value in [
            "Bearer sk-attacker".to_owned(),
            format!("Bearer {other}"),
            format!("Bearer {ours}x"),
            format!("Bearer {ours} sk-attacker"),
            basic(format!("sk-attacker:{ours}")),
            basic("x-access-token:".to_owned()),
            basic("oauth2:sk-attacker".to_owned()),
            format!("AWS4-HMAC-SHA256 Credential={ours}"),
        ] {
            let place = found("/", &[("authorization", value.clone())]);
            assert_eq!(place, Some("authorization"), "{value}");
        }
        // Ours in front does not excuse a second one.
        let both = [
            ("authorization", format!("Bearer {ours}")),
            ("x-api-key", "sk-attacker".to_owned()),
        ];
        assert_eq!(found("/", &both), Some("x-api-key"));
        for name in FIELDS {
            assert_eq!(found("/", &[(name, ours.to_string())]), None);
            assert_eq!(found("/", &[(name, "sk-attacker".into())]), Some(name));
        }
        for name in PARAMETERS {
            assert_eq!(found(&format!("/?a=1&{name}={ours}"), &[]), None);
            assert_eq!(found(&format!("/?a=1;{name}=sk"), &[]), Some(name));
        }
        for (names, place) in [
            ("graphql-transport-ws, v5.channel.k8s.io".to_owned(), None),
            (format!("realtime, openai-insecure-api-key.{ours}"), None),
            (
                "realtime, openai-insecure-api-key.sk-attacker".to_owned(),
                Some("sec-websocket-protocol"),
            ),
        ] {
            let fields = [("sec-websocket-protocol", names)];
            assert_eq!(found("/", &fields), place, "{fields:?}");
        }
        assert_eq!(found("/?%4bey=sk", &[]), Some("key"));
        assert_eq!(
            found("/", &[("cookie", format!("a={ours}; b={ours}"))]),
            None
        );
        let cookie = format!("a={ours}; session=theirs");
        assert_eq!(found("/", &[("cookie", cookie)]), Some("cookie"));
    }
}
