//! Every reason a connection or request is refused for, and how the sandboxed program reads it.

use std::net::IpAddr;

use http::{HeaderValue, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};

use super::body::OutBody;
use super::name::Host;

/// Why something was refused. The message is the `error` a program in the sandbox reads: it
/// never holds a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No policy is loaded (start, wake, restore, or the sandbox ends).
    #[error("this sandbox's network policy is not loaded; try again in a moment")]
    Closed,
    /// The sandbox was created without a network.
    #[error("this sandbox has no network access")]
    NetworkDisabled,
    /// The allowlist does not cover the host.
    #[error("this host is not on the sandbox's egress allowlist")]
    NotAllowed,
    /// An IP literal the operator does not list.
    #[error("connections to a bare IP address are not allowed; use a host name")]
    AddressLiteral,
    /// The host name has no canonical form.
    #[error("this is not a valid host name")]
    HostName,
    /// The name leads to an address range that is not public.
    #[error("this host resolves to {address}, a {range} address, which sandboxes may not reach")]
    SpecialAddress {
        /// The address that was refused.
        address: IpAddr,
        /// What it is for.
        range: &'static str,
    },
    /// The address is the one this server listens on.
    #[error("this address is the sandbox platform's own, which sandboxes may not reach")]
    OwnAddress,
    /// The name does not resolve.
    #[error("this host name could not be resolved")]
    NotFound,
    /// No address of the host accepts a connection in time.
    #[error("the host could not be reached")]
    Unreachable,
    /// No address of the host answered in time.
    #[error("the host did not accept a connection in time")]
    ConnectTimeout,
    /// The host takes part in TLS and speaks no version of HTTP that we do.
    #[error("the host speaks neither HTTP/1.1 nor HTTP/2")]
    NoCommonProtocol,
    /// The host took the request and sent no answer.
    #[error("the host did not answer in time")]
    ResponseTimeout,
    /// The host's certificate can't be verified; nothing was sent.
    #[error("the host's TLS certificate could not be verified; nothing was sent")]
    UpstreamTls,
    /// The ClientHello can't be read.
    #[error("the TLS handshake is malformed")]
    TlsMalformed,
    /// The ClientHello names no host.
    #[error("the TLS handshake names no host (no SNI)")]
    SniMissing,
    /// The ClientHello names another host than was resolved.
    #[error("the TLS handshake names another host than the one connected to")]
    SniMismatch,
    /// The sandbox's program broke the handshake off, as one that does not trust the CA does.
    #[error("the TLS handshake with the sandbox failed; does the program trust the sandbox's CA?")]
    SandboxTls,
    /// `Host` or the request target names another host than was connected to.
    #[error("the request names another host than the one connected to")]
    HostMismatch,
    /// There is not exactly one `Host`.
    #[error("the request must have exactly one Host header")]
    HostCount,
    /// The framing is ambiguous.
    #[error("the request's framing is not acceptable: {0}")]
    Framing(&'static str),
    /// CONNECT where there is no proxy.
    #[error("CONNECT is not allowed here")]
    ConnectInside,
    /// An upgrade to a protocol this proxy can't look into, or not a proper one.
    #[error("only upgrades from HTTP/1.1 to WebSocket (version 13) are allowed")]
    Upgrade,
    /// The host took up an upgrade in a way it may not.
    #[error("the host's answer to the WebSocket handshake is not acceptable")]
    UpgradeAnswer,
    /// WebSocket frames that are not to be passed on.
    #[error("the WebSocket was closed: {0}")]
    Frames(&'static str),
    /// Bytes that are neither TLS nor HTTP to a host that may not get them.
    #[error("only TLS and HTTP are allowed to this host")]
    Opaque,
    /// A program that waits for a host with secrets to speak first.
    #[error(
        "only TLS and HTTP are allowed to this host, and in them the program speaks first; nothing came \
         from it"
    )]
    ServerFirst,
    /// A token for another host, in strict mode.
    #[error("the sealed token of secret {secret} is not bound to this host")]
    TokenUnbound {
        /// Name of the secret.
        secret: String,
    },
    /// A token where its secret may not stand, in strict mode.
    #[error("the sealed token of secret {secret} may not stand there ({why})")]
    Misplaced {
        /// Name of the secret.
        secret: String,
        /// Which part of its placement it does not fit.
        why: &'static str,
    },
    /// Another credential, where a secret is to be the only one.
    #[error(
        "the request brings a credential of its own in `{place}`; only sealed tokens are accepted for \
         this host"
    )]
    ForeignCredential {
        /// The field or query parameter.
        place: &'static str,
    },
    /// A secret that was revoked.
    #[error("secret {secret} was revoked")]
    Revoked {
        /// Name of the secret.
        secret: String,
    },
    /// The value can't be written where its token stood.
    #[error("the value of secret {secret} can't be written in {place}")]
    Inexpressible {
        /// Name of the secret.
        secret: String,
        /// Where the token stood.
        place: &'static str,
    },
    /// A compressed request body we can't look into.
    #[error("request bodies to a host with secrets must be plain, gzip, deflate, br or zstd")]
    RequestCoding,
    /// A compressed response body we can't look into.
    #[error("the host answered with a content encoding that can't be inspected")]
    ResponseCoding,
    /// An answer of more than one content type, which readers would read differently.
    #[error("the host answered with more than one content type")]
    ResponseType,
    /// A part of the content from a host with secrets: ranges are not asked for there, and a value
    /// cut in two by them could not be recognised.
    #[error("the host answered with a part of the content that was not asked for")]
    ResponsePart,
    /// A token that was handed out in a way in which it can't be sealed: without its end, too long, too
    /// easy to guess, one too many, in another type of answer than JSON and forms, or overlapping another.
    #[error("the host handed out a token that can't be sealed")]
    ResponseGrant,
    /// gRPC or WebSocket with a host whose tokens are sealed.
    #[error(
        "the tokens that this host hands out are sealed; it is spoken to in plain HTTP only, not in gRPC \
         or WebSocket"
    )]
    GrantProtocol,
    /// A request outside of what a confined secret permits at its hosts.
    #[error(
        "requests to this host must have the method and be below the path of the secret `{secret}`"
    )]
    Confined {
        /// Its name.
        secret: String,
    },
    /// A compressed body that holds more than a thousand times its length.
    #[error("the compressed body grows more than a thousandfold")]
    Expansion,
    /// The bodies of the sandbox need more memory at once than there is for them.
    #[error("too many bodies of this sandbox are being opened at once")]
    BodyMemory,
    /// A token or value inside a gRPC message that is too long to repair the lengths in it.
    #[error("secrets can't be swapped in gRPC messages of more than 4 MiB")]
    MessageLength,
    /// A value that would change the structure of the multipart body it is put into.
    #[error("the value of a secret can't be written in this place of a multipart body")]
    MultipartValue,
    /// The rest of an upload that its host neither took nor refused after its answer.
    #[error("the host did not take the rest of the upload after its answer")]
    Overdue,
    /// The request body broke off or is damaged.
    #[error("the request body could not be read")]
    RequestBody,
    /// The exchange with the host failed.
    #[error("the host closed the connection or sent a malformed answer")]
    Upstream,
    /// Too many beginnings of a value came to nothing, as when a program guesses it.
    #[error(
        "answers of this host are closed to this sandbox: they paused too often within what looked like the beginning of a secret, as they would for one who guesses it; rotate the secret to go on"
    )]
    Guessing,
    /// The host switched protocols unasked.
    #[error("the host switched protocols without being asked")]
    UpstreamSwitched,
    /// Too many connections at once.
    #[error("too many connections from this sandbox at once")]
    ConnectionLimit,
    /// Too many requests at once.
    #[error("too many requests from this sandbox at once")]
    RequestLimit,
    /// Too many hosts asked for in a short time, each of which needs a certificate.
    #[error("too many different hosts from this sandbox at once; try again in a moment")]
    LeafLimit,
    /// The audit trail can't take another record.
    #[error("the audit trail is behind; try again in a moment")]
    AuditBacklog,
    /// A request that carries a secret, and whose record is not on disk.
    #[error("what is about to be sent could not be recorded, so it was not sent; try again")]
    AuditUnrecorded,
    /// A request the explicit proxy does not serve.
    #[error("this proxy serves CONNECT and absolute http:// requests only")]
    ProxyMethod,
    /// The metadata address.
    #[error("there is no metadata service in this sandbox")]
    NoMetadata,
    /// Our own fault.
    #[error("internal error of the sandbox's proxy")]
    Internal,
}

impl Refusal {
    /// The rule's name, stable, for programs and the audit trail.
    pub fn rule(&self) -> &'static str {
        self.row().0
    }

    /// The status a program in the sandbox sees.
    pub fn status(&self) -> StatusCode {
        self.row().1
    }

    fn row(&self) -> (&'static str, StatusCode) {
        use StatusCode as S;
        match self {
            Self::Closed => ("policy_missing", S::SERVICE_UNAVAILABLE),
            Self::NetworkDisabled => ("network_disabled", S::FORBIDDEN),
            Self::NotAllowed => ("egress_allowlist", S::FORBIDDEN),
            Self::AddressLiteral => ("address_literal", S::FORBIDDEN),
            Self::HostName => ("host_name", S::FORBIDDEN),
            Self::SpecialAddress { .. } => ("special_address", S::FORBIDDEN),
            Self::OwnAddress => ("own_address", S::FORBIDDEN),
            Self::NotFound => ("host_not_found", S::BAD_GATEWAY),
            Self::Unreachable => ("host_unreachable", S::BAD_GATEWAY),
            Self::ConnectTimeout => ("host_timeout", S::GATEWAY_TIMEOUT),
            Self::NoCommonProtocol => ("upstream_protocol", S::BAD_GATEWAY),
            Self::ResponseTimeout => ("upstream_timeout", S::GATEWAY_TIMEOUT),
            Self::UpstreamTls => ("upstream_certificate", S::BAD_GATEWAY),
            Self::TlsMalformed => ("tls_malformed", S::BAD_REQUEST),
            Self::SniMissing => ("sni_missing", S::FORBIDDEN),
            Self::SniMismatch => ("sni_mismatch", S::FORBIDDEN),
            Self::SandboxTls => ("sandbox_tls", S::BAD_REQUEST),
            Self::HostMismatch => ("host_mismatch", S::FORBIDDEN),
            Self::HostCount => ("host_count", S::BAD_REQUEST),
            Self::Framing(_) => ("framing", S::BAD_REQUEST),
            Self::ConnectInside => ("connect_inside", S::METHOD_NOT_ALLOWED),
            Self::Upgrade => ("upgrade_unsupported", S::FORBIDDEN),
            Self::UpgradeAnswer => ("upgrade_answer", S::BAD_GATEWAY),
            Self::Frames(_) => ("websocket_frames", S::BAD_GATEWAY),
            Self::Opaque => ("opaque_protocol", S::FORBIDDEN),
            Self::ServerFirst => ("server_speaks_first", S::FORBIDDEN),
            Self::TokenUnbound { .. } => ("secret_not_bound_to_host", S::FORBIDDEN),
            Self::Misplaced { .. } => ("secret_misplaced", S::FORBIDDEN),
            Self::ForeignCredential { .. } => ("foreign_credential", S::FORBIDDEN),
            Self::Revoked { .. } => ("secret_revoked", S::FORBIDDEN),
            Self::Inexpressible { .. } => ("secret_inexpressible", S::FORBIDDEN),
            Self::RequestCoding => ("request_encoding", S::UNSUPPORTED_MEDIA_TYPE),
            Self::ResponseCoding => ("response_encoding", S::BAD_GATEWAY),
            Self::ResponseType => ("response_type", S::BAD_GATEWAY),
            Self::ResponsePart => ("response_part", S::BAD_GATEWAY),
            Self::ResponseGrant => ("response_token", S::BAD_GATEWAY),
            Self::GrantProtocol => ("token_protocol", S::FORBIDDEN),
            Self::Confined { .. } => ("secret_confined", S::FORBIDDEN),
            Self::Expansion => ("compression_ratio", S::PAYLOAD_TOO_LARGE),
            Self::BodyMemory => ("body_memory", S::TOO_MANY_REQUESTS),
            Self::MessageLength => ("grpc_message_length", S::PAYLOAD_TOO_LARGE),
            Self::MultipartValue => ("multipart_value", S::FORBIDDEN),
            Self::Overdue => ("upload_overdue", S::GATEWAY_TIMEOUT),
            Self::RequestBody => ("request_body", S::BAD_REQUEST),
            Self::Upstream => ("upstream_failed", S::BAD_GATEWAY),
            Self::Guessing => ("secret_guessing", S::FORBIDDEN),
            Self::UpstreamSwitched => ("upstream_switched", S::BAD_GATEWAY),
            Self::ConnectionLimit => ("connection_limit", S::TOO_MANY_REQUESTS),
            Self::RequestLimit => ("request_limit", S::TOO_MANY_REQUESTS),
            Self::LeafLimit => ("leaf_limit", S::TOO_MANY_REQUESTS),
            Self::AuditBacklog => ("audit_backlog", S::SERVICE_UNAVAILABLE),
            Self::AuditUnrecorded => ("audit_unrecorded", S::SERVICE_UNAVAILABLE),
            Self::ProxyMethod => ("proxy_method", S::METHOD_NOT_ALLOWED),
            Self::NoMetadata => ("no_metadata", S::NOT_FOUND),
            Self::Internal => ("internal", S::INTERNAL_SERVER_ERROR),
        }
    }

    /// The answer to a request of this version: the API's error envelope with the rule and the
    /// host.
    pub(crate) fn response(&self, host: &Host, version: Version) -> Response<OutBody> {
        let text = serde_json::json!({
            "error": self.to_string(),
            "rule": self.rule(),
            "host": host.to_string(),
        });
        let mut response = Response::new(full(text.to_string()));
        *response.status_mut() = self.status();
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        let store = HeaderValue::from_static("no-store");
        response.headers_mut().insert(header::CACHE_CONTROL, store);
        if self.status() == StatusCode::BAD_REQUEST && version != Version::HTTP_2 {
            // Where this request ends is in doubt, and so is what would follow it.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }
}

/// A body that is at hand whole.
pub(crate) fn full(bytes: impl Into<bytes::Bytes>) -> OutBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}
