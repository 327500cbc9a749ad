//! Heads of requests and responses: what is refused, what is dropped, what is rewritten.
//!
//! `framing` lets only lines through that have one reading, hyper parses strictly (no obs-fold, no
//! NUL) and writes one canonical form, so two parsers can't read a request differently; what it
//! accepts and we do not is refused here.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Uri, Version, request};
use http_body::Body;
use zeroize::Zeroizing;

use super::connection::HEAD_FIELDS_MAX;
use super::content::limit_codings;
use super::escape::Place;
use super::origin::Origin;
use super::policy::HostRules;
use super::refusal::Refusal;
use super::reseal::{Patterns, reseal_all};
use super::substitute::{substitute_all, substitute_field};
use super::tally::Tally;

/// Most bytes of all fields of a head that hold a value.
const SUBSTITUTED_BYTES_MAX: usize = 256 * 1024;

/// Refuses what names another host or is framed oddly. Who wants to leave HTTP is told apart by
/// `websocket::Handshake`, which refuses every other way to.
pub(crate) fn check_request(parts: &request::Parts, origin: &Origin) -> Result<(), Refusal> {
    if parts.method == Method::CONNECT {
        // Extended CONNECT (RFC 8441) too.
        return Err(Refusal::ConnectInside);
    }
    origin.check(parts)?;
    match parts.version {
        Version::HTTP_10 | Version::HTTP_11 => {}
        Version::HTTP_2 => check_two(&parts.headers)?,
        _ => return Err(Refusal::Framing("HTTP/1.0, HTTP/1.1 or HTTP/2 is needed")),
    }
    check_framing(&parts.headers)
}

/// Refuses in HTTP/2 what is framing in HTTP/1.1 (RFC 9113, section 8.2.2) and could be taken for
/// it once written down there. hyper resets such streams itself; nothing here relies on that.
fn check_two(headers: &HeaderMap) -> Result<(), Refusal> {
    const FORBIDDEN: [HeaderName; 5] = [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    if FORBIDDEN.iter().any(|name| headers.contains_key(name)) {
        return Err(Refusal::Framing("connection fields in HTTP/2"));
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if lengths.any(|length| !length.as_bytes().iter().all(u8::is_ascii_digit)) {
        return Err(Refusal::Framing("Content-Length is not a number"));
    }
    // Cookies come one by one and go out as one.
    let crumbs = headers.get_all(header::COOKIE).iter().count();
    if headers.len() - crumbs > HEAD_FIELDS_MAX {
        return Err(Refusal::Framing("too many fields"));
    }
    Ok(())
}

fn check_framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => {}
        (Some(_), _) if headers.contains_key(header::CONTENT_LENGTH) => {
            return Err(Refusal::Framing("Content-Length beside Transfer-Encoding"));
        }
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"chunked") => {}
        _ => return Err(Refusal::Framing("Transfer-Encoding other than chunked")),
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return Err(Refusal::Framing("more than one Content-Length"));
    }
    Ok(())
}

/// Refuses a response whose body is coded beneath its framing, where no scrubber would look.
pub(crate) fn check_response_framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Refusal::ResponseCoding),
    }
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(header::CONNECTION).iter();
    values
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .map(<[u8]>::trim_ascii)
}

/// Removes what is about this connection, not about the message (RFC 9110, section 7.6.1), and
/// the framing, which is written anew.
pub(crate) fn drop_hop_by_hop(headers: &mut HeaderMap) {
    static HOP_BY_HOP: [HeaderName; 9] = [
        header::CONNECTION,
        header::PROXY_AUTHORIZATION,
        header::PROXY_AUTHENTICATE,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        HeaderName::from_static("http2-settings"),
    ];
    let named: Vec<HeaderName> = connection_options(headers)
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect();
    for name in named.iter().filter(|&name| name != header::HOST) {
        headers.remove(name);
    }
    drop_fields(headers, &HOP_BY_HOP);
}

/// Removes the fields of these names; looks at each field once where there is none of them, as in
/// most heads.
pub(crate) fn drop_fields(headers: &mut HeaderMap, names: &[HeaderName]) {
    while let Some(name) = headers.keys().find(|name| names.contains(name)) {
        let name = name.clone();
        headers.remove(name);
    }
}

/// Whether trailers may be sent back (RFC 9110, section 10.1.4).
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).iter();
    values
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// Makes the head of the request that goes upstream, with the values in place. Which host it
/// names is written by [`Origin::address`].
pub(crate) fn rewrite_request(
    parts: &mut request::Parts,
    rules: &Arc<HostRules>,
    tally: &Arc<Tally>,
) -> Result<(), Refusal> {
    parts.uri = rewrite_target(&parts.uri, rules, tally)?;
    parts.extensions.clear();
    let headers = &mut parts.headers;
    let trailers = takes_trailers(headers);
    drop_hop_by_hop(headers);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    join_cookies(headers)?;
    headers.remove(header::CONTENT_LENGTH);
    // Answered by us: hyper sends 100 Continue when the body is first wanted.
    headers.remove(header::EXPECT);
    if rules.looks_into_answers() {
        // Pieces of an echo would each look harmless.
        headers.remove(header::RANGE);
        headers.remove(header::IF_RANGE);
        limit_codings(headers, tally);
    }
    substitute_fields(headers, rules, tally)
}

/// Writes the framing of a request where hyper would leave it out. Hosts answer `411` to a POST in
/// HTTP/1.1 that does not say it is empty (RFC 9110, section 8.6), and hyper drops the body of a
/// GET whose length is unknown.
pub(crate) fn write_framing(parts: &mut request::Parts, body: &impl Body) {
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.headers.remove(header::CONTENT_LENGTH);
    if parts.version != Version::HTTP_11 {
        return;
    }
    let means_content = matches!(parts.method, Method::POST | Method::PUT | Method::PATCH);
    if body.is_end_stream() {
        if means_content {
            let none = HeaderValue::from_static("0");
            parts.headers.insert(header::CONTENT_LENGTH, none);
        }
    } else if body.size_hint().exact().is_none() {
        let chunked = HeaderValue::from_static("chunked");
        parts.headers.insert(header::TRANSFER_ENCODING, chunked);
    }
}

/// Puts the values in place in every field.
pub(crate) fn substitute_fields(
    headers: &mut HeaderMap,
    rules: &Arc<HostRules>,
    tally: &Arc<Tally>,
) -> Result<(), Refusal> {
    let mut length = 0;
    for (name, value) in headers.iter_mut() {
        if let Some(changed) = rewrite_value(name, value, rules, tally)? {
            length += changed.len();
            *value = changed;
        }
        if length > SUBSTITUTED_BYTES_MAX {
            return Err(Refusal::Framing(
                "the head is too long with values in place",
            ));
        }
    }
    Ok(())
}

/// One `Cookie` of the crumbs HTTP/2 may send it in (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) -> Result<(), Refusal> {
    let crumbs: Vec<_> = headers.get_all(header::COOKIE).iter().collect();
    if crumbs.len() < 2 {
        return Ok(());
    }
    let crumbs: Vec<_> = crumbs.into_iter().map(HeaderValue::as_bytes).collect();
    let cookie = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]));
    headers.insert(header::COOKIE, cookie.map_err(|_| Refusal::Internal)?);
    Ok(())
}

/// Origin form, with tokens in path and query replaced by percent-encoded values.
fn rewrite_target(uri: &Uri, rules: &Arc<HostRules>, tally: &Arc<Tally>) -> Result<Uri, Refusal> {
    let Some(target) = uri.path_and_query() else {
        return Ok(Uri::default());
    };
    rules.check_target(target.path())?;
    let changed = substitute_all(rules, Place::Url, tally, target.as_str().as_bytes())?;
    let slash = !matches!(target.as_str().as_bytes(), [b'/' | b'*', ..]);
    if changed.is_none() && !slash {
        // Without a path (`https://host#x`) it reads as "/" and must be one: no authority can
        // stand before nothing.
        return Ok(match target.as_str() {
            "/" => Uri::default(),
            _ => Uri::from(target.clone()),
        });
    }
    let bytes = changed
        .as_deref()
        .map_or(target.as_str().as_bytes(), Vec::as_slice);
    let bytes = if slash {
        &[b"/", bytes].concat()
    } else {
        bytes
    };
    let too_long = |_| Refusal::Framing("the request target is too long");
    let target = PathAndQuery::try_from(bytes).map_err(too_long)?;
    rules.check_target(target.path())?;
    Ok(target.into())
}

fn rewrite_value(
    name: &HeaderName,
    value: &HeaderValue,
    rules: &Arc<HostRules>,
    tally: &Arc<Tally>,
) -> Result<Option<HeaderValue>, Refusal> {
    let changed = match basic_credentials(name, value) {
        Some(text) => {
            substitute_field(name, rules, Place::Credentials, tally, &text)?.map(|text| {
                let encoded = Zeroizing::new(STANDARD.encode(&*text));
                Zeroizing::new([b"Basic ", encoded.as_bytes()].concat())
            })
        }
        None => substitute_field(name, rules, Place::Header, tally, value.as_bytes())?,
    };
    let Some(changed) = changed else {
        return Ok(None);
    };
    let mut changed = HeaderValue::from_bytes(&changed).map_err(|_| Refusal::Internal)?;
    changed.set_sensitive(true);
    Ok(Some(changed))
}

/// The text inside Basic credentials (RFC 7617).
pub(crate) fn basic_credentials(
    name: &HeaderName,
    value: &HeaderValue,
) -> Option<Zeroizing<Vec<u8>>> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    if name != header::AUTHORIZATION {
        return None;
    }
    let (scheme, rest) = value.as_bytes().split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    LENIENT.decode(rest.trim_ascii()).ok().map(Zeroizing::new)
}

/// Makes the head of the response the sandbox gets: no value in it, framed anew.
pub(crate) fn rewrite_response(
    headers: &mut HeaderMap,
    patterns: Option<&Arc<Patterns>>,
    tally: &Arc<Tally>,
) -> Result<(), Refusal> {
    drop_hop_by_hop(headers);
    // Another way to the same host that would not come through here.
    headers.remove(header::ALT_SVC);
    match patterns {
        Some(patterns) => reseal_fields(headers, patterns, tally),
        None => Ok(()),
    }
}

/// Leaves no value in any field.
pub(crate) fn reseal_fields(
    headers: &mut HeaderMap,
    patterns: &Arc<Patterns>,
    tally: &Arc<Tally>,
) -> Result<(), Refusal> {
    // A name can be an echo as well, in lower case; nothing of use has a value for its name.
    let echoes: Vec<HeaderName> = headers
        .keys()
        .filter(|name| patterns.is_in_name(name.as_str()))
        .cloned()
        .collect();
    for name in echoes {
        headers.remove(name);
    }
    for value in headers.values_mut() {
        if let Some(clean) = reseal_all(patterns, tally, value.as_bytes()) {
            *value = HeaderValue::from_bytes(&clean).map_err(|_| Refusal::Internal)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::policy::testing::fixture;

    fn origin() -> Origin {
        Origin::new("api.example".parse().unwrap(), 443, true).unwrap()
    }

    fn check(target: &str, headers: &[(&str, &str)]) -> Result<(), &'static str> {
        let mut request = http::Request::builder().method("POST").uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        check_request(&parts, &origin()).map_err(|refusal| refusal.rule())
    }

    /// A target without a path still names the host to one that speaks HTTP/2.
    #[test]
    fn a_target_without_a_path_has_one_when_it_is_sent() {
        let fixture = fixture("api.example", "real-value-0001");
        for target in ["https://api.example#x", "https://api.example", "/"] {
            let request = http::Request::get(target).version(Version::HTTP_2);
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            rewrite_request(&mut parts, &fixture.rules, &Arc::default()).unwrap();
            for version in [Version::HTTP_11, Version::HTTP_2] {
                origin().address(&mut parts.uri, &mut parts.headers, version);
                assert_eq!(parts.uri.path(), "/", "{target}");
            }
            assert_eq!(parts.uri, "https://api.example/", "{target}");
        }
    }

    #[test]
    fn odd_framing_is_refused() {
        let host = ("host", "api.example");
        for value in [
            "gzip, chunked",
            "identity",
            "xchunked",
            "chunked, chunked",
            "chunked;a=b",
        ] {
            assert_eq!(
                check("/", &[host, ("transfer-encoding", value)]),
                Err("framing"),
                "{value}"
            );
        }
        let chunked = ("transfer-encoding", "chunked");
        assert_eq!(check("/", &[host, chunked]), Ok(()));
        assert_eq!(check("/", &[host, chunked, chunked]), Err("framing"));
        assert_eq!(
            check("/", &[host, chunked, ("content-length", "3")]),
            Err("framing")
        );
    }

    #[test]
    fn the_request_goes_out_with_values_and_without_hop_by_hop_fields() {
        let fixture = fixture("api.example", "p:w d&1234");
        let token = fixture.token;
        let basic = format!("basic {}", STANDARD.encode(format!("user:{token}")));
        let request = http::Request::builder()
            .uri(format!("/a/{token}?q={token}&x=1"))
            .header("host", "API.example")
            .header("authorization", basic)
            .header("x-key", format!("Bearer {token}"))
            .header("connection", "close, x-hop, host")
            .header("x-hop", "1")
            .header("range", "bytes=0-1")
            .header("accept-encoding", "br, GZIP;q=0.5")
            .header("cookie", "a=1")
            .header("cookie", format!("b={token}"))
            .header("te", "gzip, trailers")
            .header("expect", "100-continue");
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let tally = Arc::default();
        rewrite_request(&mut parts, &fixture.rules, &tally).unwrap();
        origin().address(&mut parts.uri, &mut parts.headers, Version::HTTP_11);
        assert_eq!(parts.uri, "/a/p%3Aw%20d%261234?q=p%3Aw%20d%261234&x=1");
        let expected = [
            ("accept-encoding", "br, gzip;q=0.5".to_owned()),
            (
                "authorization",
                format!("Basic {}", STANDARD.encode("user:p:w d&1234")),
            ),
            ("connection", "te".to_owned()),
            ("cookie", "a=1; b=p:w d&1234".to_owned()),
            ("host", "api.example".to_owned()),
            ("te", "trailers".to_owned()),
            ("x-key", "Bearer p:w d&1234".to_owned()),
        ];
        let mut sent: Vec<_> = parts
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap().to_owned()))
            .collect();
        sent.sort();
        assert_eq!(sent, expected);
    }

    #[test]
    fn the_response_head_holds_no_value() {
        let fixture = fixture("api.example", "real-value-0001");
        let patterns = fixture.rules.patterns().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("x-echo", HeaderValue::from_static("<real-value-0001>"));
        headers.insert("x-real-value-0001", HeaderValue::from_static("1"));
        headers.insert("alt-svc", HeaderValue::from_static("h3=\":443\""));
        headers.insert("location", HeaderValue::from_static("/?k=real-value-0001"));
        rewrite_response(&mut headers, Some(patterns), &Arc::default()).unwrap();
        assert_eq!(headers.len(), 2);
        assert_eq!(headers["x-echo"], format!("<{}>", fixture.token));
        assert_eq!(headers["location"], format!("/?k={}", fixture.token));
    }
}
