//! Where requests of a connection go, and whether a request says the same.
//!
//! Invariant: an [`Origin`] is the host a connection was opened to (and, with TLS, the one named
//! by SNI). Every name in a request must be this one; another is refused, never followed.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Uri, Version, request};

use super::name::Host;
use super::refusal::Refusal;

/// Where requests on a connection go.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub host: Host,
    pub port: u16,
    pub tls: bool,
    /// `Host` and `:authority` as sent upstream: without the port when it is the usual one.
    authority: Authority,
    field: HeaderValue,
}

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        (self.port, self.tls) == (other.port, other.tls) && self.host == other.host
    }
}

impl Eq for Origin {}

impl Hash for Origin {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.host.hash(state);
        (self.port, self.tls).hash(state);
    }
}

impl Origin {
    pub fn new(host: Host, port: u16, tls: bool) -> Result<Self, Refusal> {
        let name = match &host {
            Host::Address(IpAddr::V6(ip)) => format!("[{ip}]"),
            host => host.to_string(),
        };
        let usual = if tls { 443 } else { 80 };
        let text = match port {
            port if port == usual => name,
            port => format!("{name}:{port}"),
        };
        let text = Bytes::from(text);
        let authority = Authority::from_maybe_shared(text.clone());
        let field = HeaderValue::from_maybe_shared(text);
        Ok(Self {
            host,
            port,
            tls,
            authority: authority.map_err(|_| Refusal::HostName)?,
            field: field.map_err(|_| Refusal::HostName)?,
        })
    }

    fn scheme(&self) -> Scheme {
        if self.tls {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        }
    }

    /// Whether `authority` (a `Host` value or the authority of a target) is this origin. Without
    /// a port it is: programs leave it out on odd ports too.
    fn is(&self, authority: &[u8]) -> bool {
        if authority.eq_ignore_ascii_case(self.field.as_bytes()) {
            return true;
        }
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

    /// Refuses a request that names another host than this, anywhere it can name one.
    pub fn check(&self, parts: &request::Parts) -> Result<(), Refusal> {
        let mut hosts = parts.headers.get_all(header::HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(Refusal::HostCount);
        }
        if host.is_some_and(|host| !self.is(host.as_bytes())) {
            return Err(Refusal::HostMismatch);
        }
        let authority = parts.uri.authority();
        // `:authority` takes the place of `Host` in HTTP/2 (RFC 9113, section 8.3.1); beside an
        // absolute target HTTP/1.1 still needs it (RFC 9112, section 3.2.2).
        if host.is_none() && (authority.is_none() || parts.version != Version::HTTP_2) {
            return Err(Refusal::HostCount);
        }
        if let Some(authority) = authority {
            let scheme = parts.uri.scheme() == Some(&self.scheme());
            if !scheme || !self.is(authority.as_str().as_bytes()) {
                return Err(Refusal::HostMismatch);
            }
        }
        check_path(&parts.method, &parts.uri)
    }

    /// Names this origin in a request in the way of the version it is sent in, and says in that
    /// way that `TE` is for the next hop. May be repeated for another version.
    pub fn address(&self, uri: &mut Uri, headers: &mut HeaderMap, version: Version) {
        let mut parts = std::mem::take(uri).into_parts();
        if version == Version::HTTP_2 {
            headers.remove(header::HOST);
            headers.remove(header::CONNECTION);
            parts.scheme = Some(self.scheme());
            parts.authority = Some(self.authority.clone());
        } else {
            headers.insert(header::HOST, self.field.clone());
            if headers.contains_key(header::TE) {
                headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
            }
            parts.scheme = None;
            parts.authority = None;
        }
        // A path is there: whatever the parts were, these three fit together.
        *uri = Uri::from_parts(parts).unwrap_or_default();
    }
}

/// One way to write a path: `*` is for OPTIONS only, and everything else begins with a slash, so
/// that nothing can be read as an authority by what comes behind.
fn check_path(method: &Method, uri: &Uri) -> Result<(), Refusal> {
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let asterisk = path == "*" && *method == Method::OPTIONS;
    if path.is_empty() || path.starts_with('/') || path.starts_with('?') || asterisk {
        Ok(())
    } else {
        Err(Refusal::Framing("the request target is not a path"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin::new("api.example".parse().unwrap(), 443, true).unwrap()
    }

    fn check(version: Version, target: &str, hosts: &[&str]) -> Result<(), &'static str> {
        let mut request = http::Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header("host", *host);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        origin().check(&parts).map_err(|refusal| refusal.rule())
    }

    /// Every way to name another host than the connection's is refused.
    #[test]
    fn the_request_must_name_the_host_connected_to() {
        let http1 = |target: &str, hosts: &[&str]| check(Version::HTTP_11, target, hosts);
        for host in [
            "api.example",
            "API.example",
            "api.example:443",
            "api.example.",
        ] {
            assert_eq!(http1("/", &[host]), Ok(()), "{host}");
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
            assert_eq!(http1("/", &[host]), Err("host_mismatch"), "{host}");
        }
        let host = "api.example";
        assert_eq!(http1("/", &[]), Err("host_count"));
        assert_eq!(http1("/", &[host, host]), Err("host_count"));
        assert_eq!(http1("https://api.example/x", &[]), Err("host_count"));
        assert_eq!(http1("https://api.example/x", &[host]), Ok(()));
        for target in [
            "https://other.example/x",
            "http://api.example/x",
            "https://u@api.example/x",
        ] {
            assert_eq!(http1(target, &[host]), Err("host_mismatch"), "{target}");
        }
    }

    /// The same over HTTP/2, where `:authority` stands in for `Host`.
    #[test]
    fn an_authority_must_be_the_host_connected_to() {
        let http2 = |target: &str, hosts: &[&str]| check(Version::HTTP_2, target, hosts);
        let own = "https://api.example/x";
        assert_eq!(http2(own, &[]), Ok(()));
        assert_eq!(http2(own, &["api.example"]), Ok(()));
        assert_eq!(http2("/x", &["api.example"]), Ok(()));
        assert_eq!(http2("/x", &[]), Err("host_count"));
        assert_eq!(http2(own, &["other.example"]), Err("host_mismatch"));
        assert_eq!(
            http2("https://other.example/", &["api.example"]),
            Err("host_mismatch")
        );
        assert_eq!(http2("http://api.example/", &[]), Err("host_mismatch"));
        assert_eq!(http2("https://u@api.example/", &[]), Err("host_mismatch"));
        assert_eq!(http2("https://api.example:80/", &[]), Err("host_mismatch"));
    }

    #[test]
    fn a_path_is_a_path() {
        let path = |method: Method, text: &str| {
            let parts = {
                let mut parts = http::uri::Parts::default();
                parts.path_and_query = Some(text.parse().unwrap());
                parts
            };
            check_path(&method, &Uri::from_parts(parts).unwrap()).is_ok()
        };
        assert!(path(Method::GET, "/x") && path(Method::OPTIONS, "*"));
        assert!(!path(Method::GET, "*"));
    }

    /// Goal: what is sent names the origin once, in the way of each version, however often.
    #[test]
    fn a_request_is_addressed_for_its_version() {
        let mut uri: Uri = "https://api.example:443/x?y".parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("API.example:443"));
        for _ in 0..2 {
            origin().address(&mut uri, &mut headers, Version::HTTP_11);
            assert_eq!(
                (uri.to_string().as_str(), &headers["host"]),
                ("/x?y", &HeaderValue::from_static("api.example"))
            );
            origin().address(&mut uri, &mut headers, Version::HTTP_2);
            assert_eq!(uri, "https://api.example/x?y");
            assert!(headers.is_empty());
        }
        let odd = Origin::new("::1".parse().unwrap(), 8443, true).unwrap();
        odd.address(&mut uri, &mut headers, Version::HTTP_11);
        assert_eq!(headers["host"], "[::1]:8443");
    }
}
