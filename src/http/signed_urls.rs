//! Signed URLs: one file of one sandbox can be read, or written, without a credential until a time
//! (contract section 9).
//!
//! ```text
//! signature = lower-case hex of HMAC-SHA256 over
//!     opensandbox-signed-url ␊ sandbox id ␊ path as given ␊ download|upload ␊ expiry, Unix seconds
//! ```
//!
//! Invariants: only the path can hold a line feed, and the lines around it can't, so no text belongs
//! to two requests; signatures are compared in constant time; a sandbox is not looked at before its
//! signature was found to be ours, so nobody learns which ones there are.

use actix_web::http::StatusCode;
use actix_web::http::header::{
    CONTENT_DISPOSITION, HeaderMap, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::uri::{Authority, Uri};
use actix_web::{HttpRequest, HttpResponse, web};
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::json;
use sha2::Sha256;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::Api;
use super::auth::WithSandbox;
use super::body::Json;
use super::error::{ApiError, ApiResult};
use super::files::{check, download, upload};
use super::projects::timestamp;
use crate::actors::Caller;
use crate::ids::SandboxId;

/// Life of a URL when the caller doesn't say, seconds.
const EXPIRES_SEC_DEFAULT: i64 = 3600;
/// Longest life of a URL, seconds (a day).
const EXPIRES_SEC_MAX: i64 = 86_400;
const PURPOSE: &str = "opensandbox-signed-url";
/// What stands unescaped in a query value.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'.')
    .remove(b'-')
    .remove(b'_');

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .service(web::resource("/files/download-url").route(web::post().to(download_url)))
        .service(web::resource("/files/upload-url").route(web::post().to(upload_url)))
        .service(web::resource("/files/download").route(web::get().to(signed_download)))
        .service(web::resource("/files/upload").route(web::put().to(signed_upload)));
}

/// What a signature permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Download,
    Upload,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Download => "download",
            Self::Upload => "upload",
        }
    }
}

/// What is signed.
struct Permit<'a> {
    sandbox: &'a SandboxId,
    path: &'a str,
    operation: Operation,
    /// Unix seconds.
    expires: i64,
}

/// Signs and checks.
pub struct UrlSigner(Hmac<Sha256>);

impl UrlSigner {
    /// Signatures under `key`.
    pub fn new(key: &[u8; 32]) -> Self {
        // A key shorter than the block is filled with zeros (RFC 2104).
        let mut block = Zeroizing::new([0; 64]);
        block[..key.len()].copy_from_slice(key);
        Self(Hmac::new((&*block).into()))
    }

    fn mac(&self, permit: &Permit<'_>) -> Hmac<Sha256> {
        let Permit {
            sandbox,
            path,
            operation,
            expires,
        } = permit;
        let operation = operation.name();
        let text = format!("{PURPOSE}\n{sandbox}\n{path}\n{operation}\n{expires}");
        self.0.clone().chain_update(text)
    }

    fn sign(&self, permit: &Permit<'_>) -> String {
        hex::encode(self.mac(permit).finalize().into_bytes())
    }

    fn holds(&self, permit: &Permit<'_>, signature: &str) -> bool {
        let plain = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        signature.bytes().all(plain)
            && hex::decode(signature)
                .is_ok_and(|bytes| self.mac(permit).verify_slice(&bytes).is_ok())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UrlBody {
    path: Option<String>,
    expires_in: Option<i64>,
}

async fn download_url(
    api: web::Data<Api>,
    who: WithSandbox,
    request: HttpRequest,
    Json(body): Json<UrlBody>,
) -> ApiResult {
    sign(&api, &who, request.headers(), body, Operation::Download).await
}

async fn upload_url(
    api: web::Data<Api>,
    who: WithSandbox,
    request: HttpRequest,
    Json(body): Json<UrlBody>,
) -> ApiResult {
    sign(&api, &who, request.headers(), body, Operation::Upload).await
}

async fn sign(
    api: &Api,
    who: &WithSandbox,
    headers: &HeaderMap,
    body: UrlBody,
    operation: Operation,
) -> ApiResult {
    let path = match body.path {
        Some(path) if !path.is_empty() => check(path)?,
        _ => return Err(ApiError::bad_request("path is required")),
    };
    let life = match body.expires_in {
        None | Some(..=0) => EXPIRES_SEC_DEFAULT,
        Some(seconds @ ..=EXPIRES_SEC_MAX) => seconds,
        Some(_) => {
            let text = format!("expiresIn must not exceed {EXPIRES_SEC_MAX}");
            return Err(ApiError::bad_request(text));
        }
    };
    // It may sleep, and sleeps on: only the use of the URL needs it.
    api.platform.usable_sandbox(&who.caller, &who.id).await?;
    let key = who.caller.key;
    let key = key.and_then(|key| api.platform.catalog().key_by_id(&key));
    let key_ends = key.and_then(|key| key.made.expires_at);
    let expires = OffsetDateTime::now_utc().unix_timestamp() + life;
    // No longer than the key that signs.
    let expires = key_ends.map_or(expires, |at| expires.min(at.unix_timestamp()));
    let signature = api.url_signer.sign(&Permit {
        sandbox: &who.id,
        path: &path,
        operation,
        expires,
    });
    let (origin, id, name) = (origin(&api.public_url, headers), &who.id, operation.name());
    let path = utf8_percent_encode(&path, PLAIN);
    let url = format!(
        "{origin}/api/sandboxes/{id}/files/{name}?path={path}&expires={expires}&signature={signature}"
    );
    let expires_at = timestamp(OffsetDateTime::from_unix_timestamp(expires).ok());
    Ok(HttpResponse::Ok().json(json!({ "url": url, "expiresAt": expires_at })))
}

/// The origin under which the caller reached us: what a proxy in front says, else the server's own.
/// The headers are the caller's word, and only the caller gets the URL.
fn origin(public_url: &str, headers: &HeaderMap) -> String {
    let first = |name| {
        let value = headers.get(name)?.to_str().ok()?;
        value.split(',').next().map(str::trim)
    };
    let own = public_url.parse::<Uri>().unwrap_or_default();
    let scheme = first("x-forwarded-proto")
        .filter(|scheme| ["http", "https"].contains(scheme))
        .or(own.scheme_str())
        .unwrap_or("http");
    let host = first("x-forwarded-host")
        .filter(|host| !host.contains('@') && host.parse::<Authority>().is_ok())
        .or(own.authority().map(Authority::as_str))
        .unwrap_or("localhost");
    let base = own.path().trim_end_matches('/');
    format!("{scheme}://{host}{base}")
}

#[derive(Deserialize)]
struct SignedQuery {
    path: Option<String>,
    expires: Option<String>,
    signature: Option<String>,
}

/// The sandbox and the path of a request with a signature that holds.
async fn permitted(
    api: &Api,
    id: &str,
    query: SignedQuery,
    operation: Operation,
) -> ApiResult<(Caller, SandboxId, String)> {
    let given = |value: Option<String>, name: &str| {
        let text = || ApiError::bad_request(format!("{name} query parameter is required"));
        value.filter(|value| !value.is_empty()).ok_or_else(text)
    };
    let path = check(given(query.path, "path")?)?;
    let expires = given(query.expires, "expires")?;
    let signature = given(query.signature, "signature")?;
    let not_seconds = |_| ApiError::bad_request("expires must be a time in Unix seconds");
    let expires: i64 = expires.parse().map_err(not_seconds)?;
    let refused = |text| ApiError::new(StatusCode::FORBIDDEN, text);
    if expires <= OffsetDateTime::now_utc().unix_timestamp() {
        return Err(refused("signed URL expired"));
    }
    let id: SandboxId = id.parse().map_err(|_| refused("invalid signature"))?;
    let permit = Permit {
        sandbox: &id,
        path: &path,
        operation,
        expires,
    };
    if !api.url_signer.holds(&permit, &signature) {
        return Err(refused("invalid signature"));
    }
    let owner = api.platform.owner_of(&id).await?;
    Ok((owner, id, path))
}

async fn signed_download(
    api: web::Data<Api>,
    id: web::Path<String>,
    query: web::Query<SignedQuery>,
) -> ApiResult {
    let (owner, id, path) = permitted(&api, &id, query.into_inner(), Operation::Download).await?;
    let mut reply = download(api.platform.live_sandbox(&owner, &id).await?, &path).await?;
    // A browser that opens the URL saves the file: nothing made in a sandbox is shown as a page of
    // this server.
    let name = path.rsplit('/').next().unwrap_or_default();
    let name = utf8_percent_encode(name, NON_ALPHANUMERIC);
    let saved = HeaderValue::try_from(format!("attachment; filename*=UTF-8''{name}"));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_DISPOSITION, saved.map_err(ApiError::internal)?);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(reply)
}

async fn signed_upload(
    api: web::Data<Api>,
    id: web::Path<String>,
    query: web::Query<SignedQuery>,
    request: HttpRequest,
    payload: web::Payload,
) -> ApiResult {
    let (owner, id, path) = permitted(&api, &id, query.into_inner(), Operation::Upload).await?;
    let live = api.platform.live_sandbox(&owner, &id).await?;
    upload(&api, live, path, request.headers(), payload).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permit<'a>(sandbox: &'a SandboxId, path: &'a str) -> Permit<'a> {
        Permit {
            sandbox,
            path,
            operation: Operation::Download,
            expires: 2_000_000_000,
        }
    }

    /// Goal: the signature is the contract's, computed here from its words.
    #[test]
    fn a_signature_is_what_the_contract_says() {
        let (signer, id) = (UrlSigner::new(&[7; 32]), SandboxId::generate());
        let text = format!("opensandbox-signed-url\n{id}\n/a b\ndownload\n2000000000");
        let mac = Hmac::<Sha256>::new_from_slice(&[7; 32]).unwrap();
        let wanted = hex::encode(mac.chain_update(text).finalize().into_bytes());
        let signature = signer.sign(&permit(&id, "/a b"));
        assert_eq!(signature, wanted);
        assert!(signer.holds(&permit(&id, "/a b"), &signature));
    }

    /// Goal: a signature is good for its own request and key, in its one spelling, and nothing else;
    /// a path that imitates the lines behind it is only a path.
    #[test]
    fn a_signature_is_for_one_request() {
        let (ours, theirs) = (UrlSigner::new(&[1; 32]), UrlSigner::new(&[2; 32]));
        let (id, other) = (SandboxId::generate(), SandboxId::generate());
        let signature = ours.sign(&permit(&id, "/a"));
        assert!(ours.holds(&permit(&id, "/a"), &signature));
        assert!(!theirs.holds(&permit(&id, "/a"), &signature));
        let upload = Permit {
            operation: Operation::Upload,
            ..permit(&id, "/a")
        };
        let later = Permit {
            expires: 2_000_000_001,
            ..permit(&id, "/a")
        };
        let imitation = permit(&id, "/a\ndownload\n2000000000");
        for wrong in [
            permit(&other, "/a"),
            permit(&id, "/a/"),
            upload,
            later,
            imitation,
        ] {
            assert!(!ours.holds(&wrong, &signature));
        }
        for wrong in ["", "zz", &signature[..62], &signature.to_uppercase()] {
            assert!(!ours.holds(&permit(&id, "/a"), wrong), "{wrong}");
        }
    }

    /// Goal: what a proxy in front says wins, when it is an origin; else the public address does.
    #[test]
    fn urls_begin_with_the_origin_the_caller_used() {
        let origin = |given: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in given {
                headers.insert(
                    name.parse().expect("a name"),
                    HeaderValue::from_static(value),
                );
            }
            super::origin("https://oc.example:8443/base", &headers)
        };
        let (proto, host) = ("x-forwarded-proto", "x-forwarded-host");
        for (given, wanted) in [
            (&[][..], "https://oc.example:8443/base"),
            (&[(proto, "http"), (host, "a.test")], "http://a.test/base"),
            (&[(host, "a.test:1, b.test")], "https://a.test:1/base"),
            (&[(proto, "http")], "http://oc.example:8443/base"),
            (
                &[(proto, "javascript"), (host, "x@y")],
                "https://oc.example:8443/base",
            ),
            (&[(host, "a/b")], "https://oc.example:8443/base"),
            (&[(host, "")], "https://oc.example:8443/base"),
        ] {
            assert_eq!(origin(given), wanted, "{given:?}");
        }
    }
}
