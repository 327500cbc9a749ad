//! Addresses of servers, as users write them.

use std::net::IpAddr;

use reqwest::Url;

use super::error::CliError;

/// The base of the API at `url`, with or without a trailing `/api`.
pub fn base_url(url: &str) -> Result<Url, CliError> {
    let trimmed = url.trim_end_matches('/');
    let full = if trimmed.ends_with("/api") {
        trimmed.to_owned()
    } else {
        format!("{trimmed}/api")
    };
    let bad = |reason: &str| {
        CliError::Usage(format!(
            "`{url}` is not an API URL ({reason}); use http://… or https://…"
        ))
    };
    // The text as given first: what is left of `http://` without its slashes would name a host.
    let parsed = Url::parse(url)
        .and_then(|_| Url::parse(&full))
        .map_err(|error| bad(&error.to_string()))?;
    match parsed.scheme() {
        "http" | "https" => Ok(parsed),
        _ => Err(bad("unknown scheme")),
    }
}

/// Whether the host of `url` is certainly this machine.
pub fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let address = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}
