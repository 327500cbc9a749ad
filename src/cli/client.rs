//! The HTTP client of the commands.
//!
//! Invariants: one credential in one header on every call, marked sensitive; path segments are encoded
//! one by one, so an id with a slash stays one segment; replies are read up to a limit; a server
//! on loopback is called directly, whatever the proxy variables say.

use std::error::Error as _;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use zeroize::Zeroizing;

use super::address::{base_url, is_loopback};
use super::error::CliError;
use super::settings::ApiKey;

/// Largest reply read, in bytes: two captured streams of 16 MiB, escaped in JSON.
const REPLY_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Largest error reply to a download that is read, in bytes.
const REFUSAL_BYTES_MAX: usize = 1024 * 1024;
/// How long a connection may take to be made; replies have no limit (commands may run for hours).
const CONNECT_MS_MAX: u64 = 10_000;
/// How much of a reply that is no error envelope is quoted, in characters.
const QUOTE_CHARS_MAX: usize = 200;

/// The name of the header that carries the key.
const KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// A server, and the key it is called with.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    base: Url,
    /// An API key in its own header, or a sandbox's token.
    key: Option<HeaderValue>,
    key_header: HeaderName,
    shown: String,
    /// The folder of a local server's socket: its address names the descriptor.
    _dir: Option<Arc<File>>,
}

impl Api {
    /// A client for the server at `url`, with or without a trailing `/api`.
    pub fn new(url: &str, key: Option<&ApiKey>) -> Result<Self, CliError> {
        let base = base_url(url)?;
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("oc/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_millis(CONNECT_MS_MAX))
            // A redirect would carry the key to wherever it points.
            .redirect(reqwest::redirect::Policy::none());
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        let http = builder
            .build()
            .map_err(|error| CliError::Usage(format!("cannot set up the HTTP client: {error}")))?;
        let key = key.map(|key| key_header(key.expose())).transpose()?;
        Ok(Self {
            http,
            base,
            key,
            key_header: KEY_HEADER,
            shown: url.trim_end_matches('/').to_owned(),
            _dir: None,
        })
    }

    /// A client for the routes at a server's origin, which are not below `/api`.
    pub fn at_origin(origin: &str, key: &ApiKey) -> Result<Self, CliError> {
        let mut api = Self::new(origin, Some(key))?;
        api.base.set_path("");
        Ok(api)
    }

    /// A client for the server on this machine, by its socket; whoever reaches that needs no key.
    pub fn local(socket: &Path) -> Result<Self, CliError> {
        let unusable = |error: &dyn std::fmt::Display| {
            let socket = socket.display();
            CliError::Usage(format!(
                "cannot use {socket}: {error}; is the server running?"
            ))
        };
        let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Err(unusable(&"not the path of a socket"));
        };
        // The address of a socket has room for some 100 bytes; this one is short whatever the path.
        let dir = File::open(dir).map_err(|error| unusable(&error))?;
        let path = Path::new("/proc/self/fd")
            .join(dir.as_raw_fd().to_string())
            .join(name);
        path.try_exists()
            .ok()
            .filter(|there| *there)
            .ok_or_else(|| unusable(&"no such socket"))?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .unix_socket(path)
            .build()
            .map_err(|error| unusable(&error))?;
        let base = Url::parse("http://localhost").map_err(|error| unusable(&error))?;
        Ok(Self {
            http,
            base,
            key: None,
            key_header: KEY_HEADER,
            shown: socket.display().to_string(),
            _dir: Some(Arc::new(dir)),
        })
    }

    /// A client for the data plane of one sandbox at `url`, by its own token.
    pub fn with_token(url: &str, token: &str) -> Result<Self, CliError> {
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| CliError::BadReply("the sandbox's token can't be sent".to_owned()))?;
        bearer.set_sensitive(true);
        Ok(Self {
            key: Some(bearer),
            key_header: AUTHORIZATION,
            ..Self::new(url, None)?
        })
    }

    /// `GET`, decoded.
    pub async fn get(&self, path: &[&str]) -> Result<Value, CliError> {
        self.call(Method::GET, path, &[], None).await
    }

    /// `GET` of a body of any size, piece by piece as it comes.
    pub async fn download(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        mut take: impl FnMut(&[u8]) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        let sent = self.request(Method::GET, path, query)?.send().await;
        let mut response = sent.map_err(|error| self.transport(error))?;
        let status = response.status().as_u16();
        let mut words = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.transport(error))?
        {
            match status {
                200..=299 => take(&chunk)?,
                _ if words.len() + chunk.len() <= REFUSAL_BYTES_MAX => words.extend(chunk),
                _ => break,
            }
        }
        match status {
            200..=299 => Ok(()),
            _ => Err(refusal(status, &words)),
        }
    }

    /// `PUT` of a body that is made as it is sent.
    pub async fn upload(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        body: reqwest::Body,
    ) -> Result<(), CliError> {
        let sent = self
            .request(Method::PUT, path, query)?
            .body(body)
            .send()
            .await;
        let mut response = sent.map_err(|error| self.transport(error))?;
        let status = response.status().as_u16();
        let bytes = self.body_of(&mut response).await?;
        match status {
            200..=299 => Ok(()),
            _ => Err(refusal(status, &bytes)),
        }
    }

    /// `GET` with a query, decoded.
    pub async fn query(&self, path: &[&str], query: &[(&str, String)]) -> Result<Value, CliError> {
        self.call(Method::GET, path, query, None).await
    }

    /// `GET` of a feed of server-sent events, whose body is for the caller to read as it comes; with
    /// the id of the last event that was had, it goes on behind that one.
    pub async fn feed(
        &self,
        path: &[&str],
        query: &[(&str, String)],
        last: Option<u64>,
    ) -> Result<reqwest::Response, CliError> {
        let mut request = self.request(Method::GET, path, query)?;
        request = request.header(ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = request.send().await;
        let mut response = response.map_err(|error| self.transport(error))?;
        match response.status().as_u16() {
            200..=299 => Ok(response),
            status => Err(refusal(status, &self.body_of(&mut response).await?)),
        }
    }

    /// `POST` that asks for server-sent events.
    pub async fn post_for_events(
        &self,
        path: &[&str],
        body: Bytes,
    ) -> Result<reqwest::Response, CliError> {
        let request = self.request(Method::POST, path, &[])?;
        let request = request.header(ACCEPT, "text/event-stream");
        let request = request.header(CONTENT_TYPE, "application/json").body(body);
        let sent = request.send().await;
        let mut response = sent.map_err(|error| self.transport(error))?;
        match response.status().as_u16() {
            200..=299 => Ok(response),
            status => Err(refusal(status, &self.body_of(&mut response).await?)),
        }
    }

    /// A call with a JSON body, or none; an empty reply is `null`.
    pub async fn send(
        &self,
        method: Method,
        path: &[&str],
        body: Option<Bytes>,
    ) -> Result<Value, CliError> {
        self.call(method, path, &[], body).await
    }

    /// `DELETE` with a query.
    pub async fn delete(&self, path: &[&str], query: &[(&str, String)]) -> Result<(), CliError> {
        self.call(Method::DELETE, path, query, None).await.map(drop)
    }

    /// The upgrade request for a WebSocket at `path`.
    pub fn socket_request(&self, path: &[&str]) -> Result<http::Request<()>, CliError> {
        use tokio_tungstenite::tungstenite::client::IntoClientRequest;
        let mut url = self.url(path)?;
        let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
        // `set_scheme` refuses only changes between special and other schemes; these are special.
        let _ = url.set_scheme(scheme);
        let mut request = url
            .as_str()
            .into_client_request()
            .map_err(|error| CliError::Usage(format!("cannot use {}: {error}", self.shown)))?;
        if let Some(key) = &self.key {
            let headers = request.headers_mut();
            headers.insert(self.key_header.clone(), key.clone());
        }
        Ok(request)
    }

    /// An error of the transport below HTTP, with the address it happened at.
    pub fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> CliError {
        let mut cause = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        let refused = cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        CliError::Unreachable {
            url: self.shown.clone(),
            reason: cause.to_string(),
            refused,
        }
    }

    /// Any call, decoded; an empty reply is `null`.
    pub async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<Bytes>,
    ) -> Result<Value, CliError> {
        let mut request = self.request(method, path, query)?;
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        let response = request.send().await;
        let mut response = response.map_err(|error| self.transport(error))?;
        let status = response.status().as_u16();
        let bytes = self.body_of(&mut response).await?;
        match status {
            200..=299 if bytes.iter().all(u8::is_ascii_whitespace) => Ok(Value::Null),
            200..=299 => serde_json::from_slice(&bytes).map_err(|error| {
                let place = format!("line {}, column {}", error.line(), error.column());
                CliError::BadReply(format!("{} answered no valid JSON ({place})", self.shown))
            }),
            _ => Err(refusal(status, &bytes)),
        }
    }

    fn request(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<reqwest::RequestBuilder, CliError> {
        let mut request = self.http.request(method, self.url(path)?);
        if !query.is_empty() {
            request = request.query(query);
        }
        if let Some(key) = &self.key {
            request = request.header(self.key_header.clone(), key.clone());
        }
        Ok(request)
    }

    /// The whole body, up to the limit.
    async fn body_of(&self, response: &mut reqwest::Response) -> Result<Vec<u8>, CliError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.transport(error))?
        {
            if bytes.len() + chunk.len() > REPLY_BYTES_MAX {
                return Err(CliError::BadReply(format!(
                    "it exceeds {REPLY_BYTES_MAX} bytes"
                )));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// What broke below HTTP.
    pub fn transport(&self, error: reqwest::Error) -> CliError {
        // The outermost text holds the URL, query and all; the cause is what the user needs.
        error.source().map_or_else(
            || CliError::Unreachable {
                url: self.shown.clone(),
                reason: "the connection failed".to_owned(),
                refused: false,
            },
            |source| self.unreachable(source),
        )
    }

    fn url(&self, path: &[&str]) -> Result<Url, CliError> {
        let mut url = self.base.clone();
        if path
            .iter()
            .any(|segment| matches!(*segment, "" | "." | ".."))
        {
            return Err(CliError::Usage(
                "an id or name is empty, `.` or `..`".to_owned(),
            ));
        }
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(path),
            Err(()) => return Err(CliError::Usage(format!("{} is not a base URL", self.shown))),
        };
        Ok(url)
    }
}

/// A JSON body whose buffer is wiped when the request is done with it.
pub fn body<T: Serialize>(value: &T) -> Result<Bytes, CliError> {
    body_with_capacity(value, 1024)
}

/// As [`body`], with room for `capacity` bytes, so that a secret is not left behind by growth.
pub fn body_with_capacity<T: Serialize>(value: &T, capacity: usize) -> Result<Bytes, CliError> {
    let mut buffer = Zeroizing::new(Vec::with_capacity(capacity));
    serde_json::to_writer(&mut *buffer, value)
        .map_err(|_| CliError::Usage("the request can't be written as JSON".to_owned()))?;
    Ok(Bytes::from_owner(buffer))
}

/// The reply as the type a command needs.
pub fn decode<T: DeserializeOwned>(reply: Value) -> Result<T, CliError> {
    serde_json::from_value(reply).map_err(|error| CliError::BadReply(error.to_string()))
}

/// The error a non-2xx reply stands for: the server's own words where it has some.
pub fn refusal(status: u16, body: &[u8]) -> CliError {
    let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = parsed.get("error");
    let words = error.and_then(Value::as_str).or_else(|| {
        error
            .and_then(|error| error.get("message"))
            .and_then(Value::as_str)
    });
    let message = words.map(str::to_owned).unwrap_or_else(|| {
        let text = String::from_utf8_lossy(body);
        let quote: String = text.trim().chars().take(QUOTE_CHARS_MAX).collect();
        let dash = if quote.is_empty() { "" } else { ": " };
        format!("the server answered HTTP {status}{dash}{quote}")
    });
    CliError::Refused { status, message }
}

fn key_header(key: &str) -> Result<HeaderValue, CliError> {
    let mut value = HeaderValue::from_str(key).map_err(|_| {
        CliError::Usage("the API key has characters that no key has; set it again".to_owned())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(url: &str) -> Api {
        Api::new(url, Some(&ApiKey::from("osb_x".to_owned()))).expect("a valid URL")
    }

    #[test]
    fn the_base_path_is_added_once() {
        for url in [
            "http://h:1",
            "http://h:1/",
            "http://h:1/api",
            "http://h:1/api/",
        ] {
            let url = api(url).url(&["sandboxes"]).unwrap();
            assert_eq!(url.as_str(), "http://h:1/api/sandboxes");
        }
        for bad in ["h:1", "ftp://h", "", "http://"] {
            assert!(Api::new(bad, None).is_err(), "{bad}");
        }
    }

    /// Goal: an argument can't name another route.
    #[test]
    fn segments_stay_segments() {
        let url = api("http://h").url(&["projects", "a/../b?c#d"]).unwrap();
        assert_eq!(url.as_str(), "http://h/api/projects/a%2F..%2Fb%3Fc%23d");
        for bad in ["..", ".", ""] {
            assert!(
                api("http://h").url(&["projects", bad, "secrets"]).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn error_replies_speak_with_the_servers_words() {
        let check = |body: &str, expected: &str| {
            assert_eq!(refusal(400, body.as_bytes()).to_string(), expected);
        };
        check(r#"{"error":"name is required"}"#, "name is required");
        check(r#"{"error":{"type":"x","message":"no"}}"#, "no");
        check("<html>", "the server answered HTTP 400: <html>");
        check("", "the server answered HTTP 400");
    }

    #[test]
    fn the_key_is_sensitive_and_goes_to_sockets_too() {
        let api = api("https://h");
        assert!(api.key.as_ref().is_some_and(HeaderValue::is_sensitive));
        let request = api.socket_request(&["sandboxes", "sb-1"]).unwrap();
        assert_eq!(request.uri(), "wss://h/api/sandboxes/sb-1");
        assert_eq!(request.headers()[KEY_HEADER], "osb_x");
    }

    #[test]
    fn a_token_goes_where_tokens_go_and_nowhere_else() {
        let api = Api::with_token("http://h:1/api", "a.b.c").unwrap();
        assert!(api.key.as_ref().is_some_and(HeaderValue::is_sensitive));
        let request = api.socket_request(&["sandboxes", "sb-1"]).unwrap();
        assert_eq!(request.uri(), "ws://h:1/api/sandboxes/sb-1");
        assert_eq!(request.headers()[AUTHORIZATION], "Bearer a.b.c");
        assert!(request.headers().get(KEY_HEADER).is_none());
        assert!(Api::with_token("http://h:1/api", "a\nb").is_err());
    }

    #[test]
    fn loopback_is_recognised_in_all_spellings() {
        let check = |url: &str| is_loopback(&Url::parse(url).unwrap());
        assert!(
            ["http://127.0.0.1:1", "http://localhost", "http://[::1]:2"]
                .map(check)
                .iter()
                .all(|is| *is)
        );
        assert!(!check("http://10.0.0.1") && !check("https://app.opencomputer.dev"));
    }
}
