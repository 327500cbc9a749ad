//! Secret entries, the same in projects and stores. The value is only here as ciphertext.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::events::Sealed;
use crate::ids::SecretId;

/// Where in a request a secret may stand; what is absent restricts nothing. A field that this
/// program doesn't know is an error: a narrowing must not get lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SecretPlacement {
    /// The only header fields, lower case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<String>>,
    /// The only methods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// The only part of the host's paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_prefix: Option<String>,
    /// How often in one request at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_per_request: Option<u32>,
    /// Requests to its hosts that bring another credential are refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
    /// Cookies of its hosts are kept from sandboxes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep_cookies: bool,
    /// Access and refresh tokens that its hosts hand out reach sandboxes sealed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub seal_tokens: bool,
    /// Requests to its hosts with other methods and outside of the path are refused.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub confine: bool,
}

/// A secret was set, for the first time or anew.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretSet {
    /// The entry; it keeps its id when the value is replaced.
    pub secret_id: SecretId,
    /// The variable's name in sandboxes.
    pub name: String,
    /// Hosts that may receive the value; empty: any host.
    pub allowed_hosts: Vec<String>,
    /// Where in requests to them it may stand; absent: anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<SecretPlacement>,
    /// The value under the aggregate's data key.
    pub sealed: Sealed,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// A secret was deleted; sandboxes already running keep its value.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretDeleted {
    /// Its name.
    pub name: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// A secret was revoked: it is gone from here, and from every sandbox that was given an older value.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRevoked {
    /// Its name.
    pub name: String,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}
