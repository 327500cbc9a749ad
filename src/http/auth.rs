//! Who calls. Credentials are looked at in a fixed order (Bearer, `X-API-Key`, `token`, `api_key`)
//! and the first one that is present decides.
//!
//! Keys are found by their SHA-256, so that no comparison depends on the key's text; tokens are
//! HS256 JWTs for one sandbox, good as long as the key they were given to. What a credential is good
//! for is decided here and nowhere else.
//!
//! | A key | May |
//! |---|---|
//! | `read` | `GET` and `HEAD`, but open no socket; looking into a sandbox that sleeps wakes it |
//! | `write` | all but the keys |
//! | `admin` | all |
//! | of one sandbox or project | the same, in the data plane of that sandbox or those of that project alone |

use std::future::{Ready, ready};
use std::net::IpAddr;
use std::sync::Arc;

use actix_web::http::Method;
use actix_web::http::StatusCode;
use actix_web::http::header::{AUTHORIZATION, HOST, ORIGIN, UPGRADE};
use actix_web::http::uri::Authority;
use actix_web::{FromRequest, HttpRequest, dev::Payload, web};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Api;
use super::error::ApiError;
use crate::actors::{Asleep, Caller, Grant, InUse, key_hash};
use crate::events::families::{KeyTarget, Scope};
use crate::ids::{KeyId, OrgId, SandboxId};

/// Lifetime of a sandbox token, seconds (24 hours).
const TOKEN_SEC: i64 = 24 * 3600;
const ISSUER: &str = "opensandbox";
/// On a call that would rather be refused than wait for a sandbox to wake.
const ASYNC_WAKE: &str = "X-OSB-Async-Wake";

/// A caller with an API key: every route of its organization.
pub struct WithKey(pub Caller);

/// A caller who may manage the organization's keys.
pub struct WithAdmin(pub Caller);

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
    /// The key it was given to; `None` on a server without keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_id: Option<KeyId>,
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

    /// A new token for one sandbox, which `caller` may see.
    pub fn issue(&self, caller: &Caller, sandbox: &SandboxId) -> Result<String, ApiError> {
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            sub: caller.org.to_string(),
            iat: now,
            exp: now + TOKEN_SEC,
            org_id: caller.org,
            sandbox_id: sandbox.clone(),
            worker_id: super::WORKER.to_owned(),
            key_id: caller.key,
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
    Key(Caller, Option<Arc<Grant>>),
    Token(Claims, Option<Arc<Grant>>),
}

impl Known {
    /// The key behind it; none on a server without keys.
    fn grant(&self) -> Option<&Grant> {
        match self {
            Self::Key(_, grant) | Self::Token(_, grant) => grant.as_deref(),
        }
    }
}

impl Api {
    /// Whether the key a caller came with is still valid: for what goes on after it was let in.
    pub(super) fn still_valid(&self, caller: &Caller) -> bool {
        let now = OffsetDateTime::now_utc();
        caller.key.is_none_or(|key| {
            let grant = self.platform.catalog().key_by_id(&key);
            grant.is_some_and(|grant| grant.made.expires_at.is_none_or(|at| at > now))
        })
    }
}

fn refused(text: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, text)
}

fn forbidden(text: &str) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, text)
}

/// Who calls, once it is clear that the key may be used for this request at all.
fn identify(request: &HttpRequest) -> Result<Known, ApiError> {
    let api = request
        .app_data::<web::Data<Api>>()
        .ok_or_else(|| ApiError::internal("no state"))?;
    let known = known(api, request)?;
    let Some(grant) = known.grant() else {
        return Ok(known);
    };
    let now = OffsetDateTime::now_utc();
    if grant.made.expires_at.is_some_and(|at| at <= now) {
        return Err(refused("API key expired"));
    }
    api.admission.pass(&grant.made, now)?;
    let looks = request.method() == Method::GET && !request.headers().contains_key(UPGRADE);
    match grant.made.scope {
        Scope::Read if !looks => Err(forbidden("this API key may only read")),
        _ => Ok(known),
    }
}

fn known(api: &Api, request: &HttpRequest) -> Result<Known, ApiError> {
    let Some(credential) = credential(request) else {
        return match api.no_auth {
            Some(org) => without_key(request, &api.public_url, org),
            None => Err(refused("missing API key")),
        };
    };
    // A token has two dots and a key has none.
    if credential.bytes().filter(|b| *b == b'.').count() == 2 {
        let invalid = || refused("invalid API key");
        let claims = api.tokens.check(&credential).ok_or_else(invalid)?;
        let grant = match claims.key_id {
            Some(key) => Some(api.platform.catalog().key_by_id(&key).ok_or_else(invalid)?),
            // Given out when the server asked for no key: nothing could end it.
            None if api.no_auth.is_none() => return Err(invalid()),
            None => None,
        };
        return Ok(Known::Token(claims, grant));
    }
    match api.platform.catalog().key(&key_hash(&credential)) {
        Some(grant) => {
            let (org, key) = (grant.org, Some(grant.made.key_id));
            Ok(Known::Key(Caller { org, key }, Some(grant)))
        }
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
        true => Ok(Known::Key(Caller { org, key: None }, None)),
        false => Err(forbidden(
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
        ready(identify(request).and_then(|known| {
            let bound = known.grant().and_then(|grant| grant.made.target.as_ref());
            match (&known, bound) {
                (Known::Key(caller, _), None) => Ok(Self(*caller)),
                (Known::Key(..), Some(KeyTarget::Sandbox(_))) => {
                    Err(forbidden("this API key is good for one sandbox alone"))
                }
                (Known::Key(..), Some(KeyTarget::Project(_))) => Err(forbidden(
                    "this API key is good for the sandboxes of one project alone",
                )),
                (Known::Token(..), _) => Err(forbidden("token not valid for this route")),
            }
        }))
    }
}

impl FromRequest for WithAdmin {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let WithKey(caller) = match WithKey::from_request(request, payload).into_inner() {
            Ok(with) => with,
            Err(error) => return ready(Err(error)),
        };
        let grant = request.app_data::<web::Data<Api>>().zip(caller.key);
        let grant = grant.and_then(|(api, key)| api.platform.catalog().key_by_id(&key));
        ready(match (caller.key, grant) {
            // A server without keys trusts who reaches it.
            (None, _) => Ok(Self(caller)),
            (Some(_), Some(grant)) if grant.made.scope == Scope::Admin => Ok(Self(caller)),
            _ => Err(forbidden("this API key may not manage keys")),
        })
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
                Known::Key(caller, grant) => {
                    let id = id.map_err(|_| ApiError::not_found("sandbox"))?;
                    let target = grant.as_ref().and_then(|grant| grant.made.target.as_ref());
                    match target.is_none_or(|target| covers(request, target, &id)) {
                        true => Ok(Self { caller, id, asleep }),
                        // It learns nothing about others.
                        false => Err(ApiError::not_found("sandbox")),
                    }
                }
                Known::Token(claims, _) if id.as_ref() == Ok(&claims.sandbox_id) => Ok(Self {
                    caller: Caller {
                        org: claims.org_id,
                        key: claims.key_id,
                    },
                    id: claims.sandbox_id,
                    asleep,
                }),
                Known::Token(..) => Err(forbidden("token not valid for this sandbox")),
            }
        }))
    }
}

fn covers(request: &HttpRequest, target: &KeyTarget, id: &SandboxId) -> bool {
    match target {
        KeyTarget::Sandbox(only) => only == id,
        KeyTarget::Project(project) => request
            .app_data::<web::Data<Api>>()
            .is_some_and(|api| api.platform.catalog().is_of_project(id, project)),
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
        let token = ours.issue(&Caller { org, key: None }, &sandbox).unwrap();
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
