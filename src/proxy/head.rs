//! Heads of requests and responses: what is refused, what is dropped, what is rewritten.
//!
//! hyper parses strictly (no obs-fold, one framing, no NUL) and writes one canonical form, so two
//! parsers can't read a request differently; what it accepts and we do not is refused here.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Uri, Version, request};
use zeroize::Zeroizing;

use super::escape::Place;
use super::name::Host;
use super::policy::HostRules;
use super::refusal::Refusal;
use super::reseal::{Patterns, reseal_all};
use super::substitute::{substitute_all, substitute_field};
use super::tally::Tally;

/// Most bytes of all fields of a head that hold a value.
const SUBSTITUTED_BYTES_MAX: usize = 256 * 1024;

/// Where requests on a connection go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub host: Host,
    pub port: u16,
    pub tls: bool,
}

impl Origin {
    fn default_port(&self) -> u16 {
        if self.tls { 443 } else { 80 }
    }

    /// Whether `authority` (a `Host` value or the authority of a target) is this origin. Without
    /// a port it is: programs leave it out on odd ports too.
    fn is(&self, authority: &[u8]) -> bool {
        let Ok(authority) = Authority::try_from(authority) else {
            return false;
        };
        let port_fits = match authority.port() {
            Some(port) => port.as_u16() == self.port,
            // Nothing where a port could stand: not even one that is no number.
            None => authority.as_str() == authority.host(),
        };
        let plain = !authority.as_str().contains('@');
        plain
            && port_fits
            && authority
                .host()
                .parse::<Host>()
                .is_ok_and(|host| host == self.host)
    }

    /// The `Host` value sent upstream.
    fn authority(&self) -> Result<HeaderValue, Refusal> {
        let host = match &self.host {
            Host::Address(std::net::IpAddr::V6(ip)) => format!("[{ip}]"),
            host => host.to_string(),
        };
        let text = match self.port {
            port if port == self.default_port() => host,
            port => format!("{host}:{port}"),
        };
        HeaderValue::try_from(text).map_err(|_| Refusal::Internal)
    }
}

/// Refuses what names another host, is framed oddly or wants to leave HTTP.
pub(crate) fn check_request(parts: &request::Parts, origin: &Origin) -> Result<(), Refusal> {
    if !matches!(parts.version, Version::HTTP_10 | Version::HTTP_11) {
        return Err(Refusal::Framing("HTTP/1.0 or HTTP/1.1 is needed"));
    }
    if parts.method == Method::CONNECT {
        return Err(Refusal::ConnectInside);
    }
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Refusal::HostCount);
    };
    if !origin.is(host.as_bytes()) {
        return Err(Refusal::HostMismatch);
    }
    if let Some(authority) = parts.uri.authority() {
        let scheme = if origin.tls {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        };
        if !origin.is(authority.as_str().as_bytes()) || parts.uri.scheme() != Some(&scheme) {
            return Err(Refusal::HostMismatch);
        }
    }
    check_framing(&parts.headers)?;
    if parts.headers.contains_key(header::UPGRADE) || names_upgrade(&parts.headers) {
        return Err(Refusal::Upgrade);
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

fn names_upgrade(headers: &HeaderMap) -> bool {
    connection_options(headers).any(|option| option.eq_ignore_ascii_case(b"upgrade"))
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(header::CONNECTION).iter();
    values
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .map(<[u8]>::trim_ascii)
}

/// Removes what is about this connection, not about the message (RFC 9110, section 7.6.1), and
/// the framing, which is written anew.
fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = connection_options(headers)
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect();
    for name in named.iter().filter(|&name| name != header::HOST) {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHORIZATION,
        header::PROXY_AUTHENTICATE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        HeaderName::from_static("http2-settings"),
    ] {
        headers.remove(name);
    }
}

/// Makes the head of the request that goes upstream, with the values in place.
pub(crate) fn rewrite_request(
    parts: &mut request::Parts,
    origin: &Origin,
    rules: &Arc<HostRules>,
    tally: &Arc<Tally>,
) -> Result<(), Refusal> {
    parts.uri = rewrite_target(&parts.uri, rules, tally)?;
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    let headers = &mut parts.headers;
    drop_hop_by_hop(headers);
    headers.remove(header::CONTENT_LENGTH);
    // Answered by us: hyper sends 100 Continue when the body is first wanted.
    headers.remove(header::EXPECT);
    if rules.patterns().is_some() {
        // Pieces of an echo would each look harmless.
        headers.remove(header::RANGE);
        headers.remove(header::IF_RANGE);
        limit_codings(headers);
    }
    headers.insert(header::HOST, origin.authority()?);
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

/// Origin form, with tokens in path and query replaced by percent-encoded values.
fn rewrite_target(uri: &Uri, rules: &Arc<HostRules>, tally: &Arc<Tally>) -> Result<Uri, Refusal> {
    let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let target = if target.is_empty() { "/" } else { target };
    let changed = substitute_all(rules, Place::Url, tally, target.as_bytes())?;
    let bytes = changed.as_deref().map_or(target.as_bytes(), Vec::as_slice);
    let too_long = |_| Refusal::Framing("the request target is too long");
    let target = PathAndQuery::try_from(bytes).map_err(too_long)?;
    rules.check_target(target.path())?;
    Ok(target.into())
}

/// Only codings this proxy can open may come back.
fn limit_codings(headers: &mut HeaderMap) {
    let gzip = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .any(|value| {
            value.as_bytes().split(|&b| b == b',').any(|coding| {
                let mut words = coding.split(|&b| b == b';').map(<[u8]>::trim_ascii);
                let named = words
                    .next()
                    .is_some_and(|name| name.eq_ignore_ascii_case(b"gzip"));
                named
                    && !words.any(|word| matches!(word, b"q=0" | b"q=0.0" | b"q=0.00" | b"q=0.000"))
            })
        });
    let only = HeaderValue::from_static(if gzip { "gzip" } else { "identity" });
    headers.insert(header::ACCEPT_ENCODING, only);
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
    let Some(patterns) = patterns else {
        return Ok(());
    };
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

/// How a value is written in a body of this type.
pub(crate) fn place_of_body(headers: &HeaderMap) -> Place {
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Place::Raw;
    };
    let essence = value
        .as_bytes()
        .split(|&b| b == b';')
        .next()
        .unwrap_or_default();
    let essence = essence.trim_ascii().to_ascii_lowercase();
    match essence.as_slice() {
        b"application/x-www-form-urlencoded" => Place::Url,
        b"application/json" | b"text/json" | b"application/x-ndjson" => Place::Json,
        other if other.ends_with(b"+json") => Place::Json,
        _ => Place::Raw,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::policy::testing::fixture;

    fn origin() -> Origin {
        Origin {
            host: "api.example".parse().unwrap(),
            port: 443,
            tls: true,
        }
    }

    fn check(target: &str, headers: &[(&str, &str)]) -> Result<(), &'static str> {
        let mut request = http::Request::builder().method("POST").uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        check_request(&parts, &origin()).map_err(|refusal| refusal.rule())
    }

    /// Every way to name another host than the connection's is refused.
    #[test]
    fn the_request_must_name_the_host_connected_to() {
        for host in [
            "api.example",
            "API.example",
            "api.example:443",
            "api.example.",
        ] {
            assert_eq!(check("/", &[("host", host)]), Ok(()), "{host}");
        }
        for host in [
            "",
            "other.example",
            "api.example:80",
            "api.example:",
            "api.example:443:1",
            "api.example:99999999",
            "user@api.example",
            "api.example/",
            "api.example,other.example",
            "api.example other",
            "127.0.0.1",
            "api.example%00",
            "api.exa\tmple",
        ] {
            assert_eq!(
                check("/", &[("host", host)]),
                Err("host_mismatch"),
                "{host}"
            );
        }
        assert_eq!(check("/", &[]), Err("host_count"));
        let twice = [("host", "api.example"), ("host", "api.example")];
        assert_eq!(check("/", &twice), Err("host_count"));
        let host = ("host", "api.example");
        assert_eq!(check("https://api.example/x", &[host]), Ok(()));
        assert_eq!(
            check("https://other.example/x", &[host]),
            Err("host_mismatch")
        );
        assert_eq!(check("http://api.example/x", &[host]), Err("host_mismatch"));
        assert_eq!(
            check("https://u@api.example/x", &[host]),
            Err("host_mismatch")
        );
    }

    #[test]
    fn odd_framing_and_upgrades_are_refused() {
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
        assert_eq!(
            check("/", &[host, ("upgrade", "websocket")]),
            Err("upgrade_unsupported")
        );
        assert_eq!(
            check("/", &[host, ("connection", "x, Upgrade")]),
            Err("upgrade_unsupported")
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
            .header("expect", "100-continue");
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let tally = Arc::default();
        rewrite_request(&mut parts, &origin(), &fixture.rules, &tally).unwrap();
        assert_eq!(parts.uri, "/a/p%3Aw%20d%261234?q=p%3Aw%20d%261234&x=1");
        let expected = [
            ("accept-encoding", "gzip".to_owned()),
            (
                "authorization",
                format!("Basic {}", STANDARD.encode("user:p:w d&1234")),
            ),
            ("host", "api.example".to_owned()),
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
