//! Who calls. Credentials are looked at in a fixed order (Bearer, `X-API-Key`, `token`, `api_key`)
//! and the first one that is present decides.
//!
//! Keys are found by their SHA-256, so that no comparison depends on the key's text; tokens are
//! HS256 JWTs for one sandbox. Organization scope is decided here and nowhere else.

use std::future::{Ready, ready};
use std::net::IpAddr;

use actix_web::http::StatusCode;
use actix_web::http::header::{AUTHORIZATION, HOST, ORIGIN};
use actix_web::http::uri::Authority;
use actix_web::{FromRequest, HttpRequest, dev::Payload, web};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};

use super::Api;
use super::error::ApiError;
use crate::actors::{Asleep, Caller, InUse, key_hash};
use crate::ids::{OrgId, SandboxId};

/// Lifetime of a sandbox token, seconds (24 hours).
const TOKEN_SEC: i64 = 24 * 3600;
const ISSUER: &str = "opensandbox";
/// On a call that would rather be refused than wait for a sandbox to wake.
const ASYNC_WAKE: &str = "X-OSB-Async-Wake";

/// A caller with an API key: every route of its organization.
pub struct WithKey(pub Caller);

/// A caller of one sandbox's data plane: an API key, or that sandbox's own token.
pub struct WithSandbox {
    /// Who.
    pub caller: Caller,
    /// Which sandbox; that it exists is not known yet.
    pub id: SandboxId,
    /// What the caller wants when the sandbox sleeps.
    asleep: Asleep,
}

impl WithSandbox {
    /// The running sandbox that is meant, in use until what this gives is dropped; one that sleeps is
    /// woken.
    pub async fn live(&self, api: &Api) -> Result<InUse, ApiError> {
        let found = api
            .platform
            .live_sandbox_or(&self.caller, &self.id, self.asleep);
        Ok(found.await?)
    }
}

/// Claims of a sandbox token.
#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    iat: i64,
    exp: i64,
    org_id: OrgId,
    sandbox_id: SandboxId,
    worker_id: String,
}

/// Makes and checks sandbox tokens.
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl Tokens {
    /// Tokens under `key`.
    pub fn new(key: &[u8; 32]) -> Self {
        Self {
            encoding: EncodingKey::from_secret(key),
            decoding: DecodingKey::from_secret(key),
        }
    }

    /// A new token for one sandbox.
    pub fn issue(&self, org: &OrgId, sandbox: &SandboxId) -> Result<String, ApiError> {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: org.to_string(),
            iat: now,
            exp: now + TOKEN_SEC,
            org_id: *org,
            sandbox_id: sandbox.clone(),
            worker_id: super::WORKER.to_owned(),
        };
        encode(&Header::new(Algorithm::HS256), &claims, &self.encoding).map_err(ApiError::internal)
    }

    fn check(&self, token: &str) -> Option<Claims> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        decode::<Claims>(token, &self.decoding, &validation)
            .ok()
            .map(|data| data.claims)
    }
}

/// What a request's credential turns out to be.
enum Known {
    Key(Caller),
    Token(Claims),
}

fn refused(text: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, text)
}

fn identify(request: &HttpRequest) -> Result<Known, ApiError> {
    let api = request
        .app_data::<web::Data<Api>>()
        .ok_or_else(|| ApiError::internal("no state"))?;
    let Some(credential) = credential(request) else {
        return match api.no_auth {
            Some(org) => without_key(request, &api.public_url, org),
            None => Err(refused("missing API key")),
        };
    };
    // A token has two dots and a key has none.
    if credential.bytes().filter(|b| *b == b'.').count() == 2 {
        let claims = api.tokens.check(&credential);
        return claims
            .map(Known::Token)
            .ok_or_else(|| refused("invalid API key"));
    }
    match api.platform.catalog().key(&key_hash(&credential)) {
        Some((org, key)) => Ok(Known::Key(Caller {
            org,
            key: Some(key),
        })),
        None => match api.no_auth {
            // Clients that can't do without a key send any.
            Some(org) => without_key(request, &api.public_url, org),
            None => Err(refused("invalid API key")),
        },
    }
}

/// A server that asks for no key listens on a loopback address, but a web page that is open on the
/// same machine reaches it too, and may even reach it under its own name (DNS rebinding). Requests
/// from foreign origins and to foreign names are refused.
fn without_key(request: &HttpRequest, public_url: &str, org: OrgId) -> Result<Known, ApiError> {
    let header = |name| Some(request.headers().get(name)?.to_str().unwrap_or("?"));
    let host = header(HOST).or(request.uri().authority().map(|host| host.as_str()));
    let own = |origin: &str| is_local(origin) || authority(origin) == authority(public_url);
    match host.is_none_or(own) && header(ORIGIN).is_none_or(own) {
        true => Ok(Known::Key(Caller { org, key: None })),
        false => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "a server without keys serves no web pages of other origins",
        )),
    }
}

/// Host and port of an origin, or of a `Host` header.
fn authority(origin: &str) -> &str {
    let rest = origin.split_once("://").map_or(origin, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// Whether an origin can only be on this machine.
fn is_local(origin: &str) -> bool {
    let host = match authority(origin).parse::<Authority>() {
        Ok(authority) => authority.host().to_ascii_lowercase(),
        Err(_) => return false,
    };
    let ip = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host.ends_with(".localhost")
        || ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn credential(request: &HttpRequest) -> Option<String> {
    let header = |name: &str| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let bearer = header(AUTHORIZATION.as_str())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim().to_owned());
    let query = || {
        let query = web::Query::<Vec<(String, String)>>::from_query(request.query_string()).ok()?;
        let find = |name| {
            query
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.clone())
        };
        find("token").or_else(|| find("api_key"))
    };
    bearer
        .or_else(|| header("X-API-Key").map(str::to_owned))
        .or_else(query)
        .filter(|credential| !credential.is_empty())
}

impl FromRequest for WithKey {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(identify(request).and_then(|known| match known {
            Known::Key(caller) => Ok(Self(caller)),
            Known::Token(_) => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "token not valid for this route",
            )),
        }))
    }
}

impl FromRequest for WithSandbox {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        // The credential first: who has none learns nothing about ids.
        ready(identify(request).and_then(|known| {
            let id = request
                .match_info()
                .get("id")
                .unwrap_or_default()
                .parse::<SandboxId>();
            let refuse = request.headers().get(ASYNC_WAKE).is_some_and(|v| v == "1");
            let asleep = match refuse {
                true => Asleep::Refuse,
                false => Asleep::Wait,
            };
            match known {
                Known::Key(caller) => {
                    let id = id.map_err(|_| ApiError::not_found("sandbox"))?;
                    Ok(Self { caller, id, asleep })
                }
                Known::Token(claims) if id.as_ref() == Ok(&claims.sandbox_id) => Ok(Self {
                    caller: Caller {
                        org: claims.org_id,
                        key: None,
                    },
                    id: claims.sandbox_id,
                    asleep,
                }),
                Known::Token(_) => Err(ApiError::new(
                    StatusCode::FORBIDDEN,
                    "token not valid for this sandbox",
                )),
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: only what is on this machine for certain passes as local.
    #[test]
    fn a_foreign_origin_never_looks_local() {
        for local in [
            "http://localhost:3000",
            "http://127.0.0.1",
            "127.0.0.1:7600",
            "http://[::1]:7600",
            "LOCALHOST:1",
            "app.localhost",
        ] {
            assert!(is_local(local), "{local}");
        }
        for foreign in [
            "https://evil.test",
            "http://localhost.evil.test",
            "http://127.0.0.1.evil.test:80",
            "http://192.168.1.2",
            "http://localhost@evil.test",
            "null",
            "",
            "?",
        ] {
            assert!(!is_local(foreign), "{foreign}");
        }
    }

    /// Goal: a token is good for its own key, until its end, and for nothing else.
    #[test]
    fn only_own_tokens_in_their_time_are_taken() {
        let (ours, theirs) = (Tokens::new(&[1; 32]), Tokens::new(&[2; 32]));
        let (org, sandbox) = (OrgId::generate(), SandboxId::generate());
        let token = ours.issue(&org, &sandbox).unwrap();
        let claims = ours.check(&token).unwrap();
        assert_eq!((claims.org_id, claims.sandbox_id), (org, sandbox));
        assert!(theirs.check(&token).is_none());
        let unsigned = format!("{}.", &token[..token.rfind('.').unwrap()]);
        assert!(ours.check(&unsigned).is_none());
        let old = Claims {
            iat: 0,
            exp: 1,
            ..ours.check(&token).unwrap()
        };
        let old = encode(&Header::new(Algorithm::HS256), &old, &ours.encoding).unwrap();
        assert!(ours.check(&old).is_none());
        let longer = encode(
            &Header::new(Algorithm::HS512),
            &ours.check(&token).unwrap(),
            &ours.encoding,
        );
        assert!(ours.check(&longer.unwrap()).is_none());
    }
}
