//! `Idempotency-Key` on requests that create: the header, the fingerprint of the request, and the
//! mark on an answer that was given before.
//!
//! A request is the same when method, path and body mean the same: spacing, escapes and the order of
//! members in the body don't count, nor do the query (it may carry a credential) or the spelling
//! of a path with or without `/api`. On requests that create or start nothing the header is ignored.

use std::fmt;

use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{FromRequest, HttpRequest, HttpResponse, dev::Payload};
use futures_util::future::LocalBoxFuture;
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::body;
use super::error::ApiError;
use crate::actors::{KEY_CHARS_MAX, Keyed};

/// The caller's key.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// On an answer that repeats an earlier one.
pub(super) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// A request that creates or starts something: its JSON body (absent reads as `{}`), and its key if it has one.
pub(super) struct Create<T> {
    pub(super) body: T,
    pub(super) keyed: Option<Keyed>,
}

impl<T: DeserializeOwned + 'static> FromRequest for Create<T> {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let key = key_of(request);
        let (method, path) = (request.method().to_string(), request.path().to_owned());
        let bytes = body::read(request, payload);
        Box::pin(async move {
            let key = key?;
            let bytes = bytes.await?;
            let parsed = body::parse(&bytes);
            let keyed = key.map(|key| Keyed::new(&key, fingerprint(&method, &path, &bytes)));
            body::wipe(bytes);
            Ok(Self {
                body: parsed?,
                keyed: match keyed {
                    Some(None) => return Err(bad_key()),
                    Some(keyed) => keyed,
                    None => None,
                },
            })
        })
    }
}

/// 201 with `object`, marked when an earlier request made it.
pub(super) fn created(object: &Value, replayed: bool) -> HttpResponse {
    marked(HttpResponse::Created().json(object), replayed)
}

/// The reply, marked when it is that of an earlier request.
pub(super) fn marked(mut reply: HttpResponse, replayed: bool) -> HttpResponse {
    if replayed {
        let headers = reply.headers_mut();
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    reply
}

fn bad_key() -> ApiError {
    ApiError::bad_request(format!(
        "Idempotency-Key must be 1 to {KEY_CHARS_MAX} printable ASCII characters"
    ))
}

fn key_of(request: &HttpRequest) -> Result<Option<String>, ApiError> {
    let mut given = request.headers().get_all(IDEMPOTENCY_KEY);
    let key = match (given.next(), given.next()) {
        (None, _) => return Ok(None),
        (Some(key), None) => key.to_str().map_err(|_| bad_key())?,
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request("Idempotency-Key is there twice"));
        }
    };
    Ok(Some(key.to_owned()))
}

/// Stands for everything the request asks for.
fn fingerprint(method: &str, path: &str, body: &[u8]) -> [u8; 32] {
    let path = path.strip_prefix("/api").unwrap_or(path);
    let body = match body.trim_ascii() {
        b"" => b"{}",
        body => body,
    };
    // What can't be read as JSON here was refused before, or is nested too deep: its bytes count.
    let body = serde_json::from_slice(body).map_or_else(|_| hash(b'r', &[body]), |Meaning(m)| m);
    hash(b'q', &[method.as_bytes(), path.as_bytes(), &body])
}

/// SHA-256 of a kind and fields, each with its length before it.
fn hash(kind: u8, fields: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix([kind]);
    for field in fields {
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field);
    }
    hash.finalize().into()
}

/// A hash of what a JSON value means. Nothing of the value itself is kept on the way: it may hold
/// secrets.
struct Meaning([u8; 32]);

impl<'de> Deserialize<'de> for Meaning {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader).map(Self)
    }
}

struct Reader;

impl<'de> de::Visitor<'de> for Reader {
    type Value = [u8; 32];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<[u8; 32], E> {
        Ok(hash(b'n', &[]))
    }

    fn visit_bool<E>(self, value: bool) -> Result<[u8; 32], E> {
        Ok(hash(b'b', &[&[value.into()]]))
    }

    fn visit_u64<E>(self, value: u64) -> Result<[u8; 32], E> {
        Ok(hash(b'i', &[&i128::from(value).to_be_bytes()]))
    }

    fn visit_i64<E>(self, value: i64) -> Result<[u8; 32], E> {
        Ok(hash(b'i', &[&i128::from(value).to_be_bytes()]))
    }

    fn visit_f64<E>(self, value: f64) -> Result<[u8; 32], E> {
        Ok(hash(b'f', &[&value.to_bits().to_be_bytes()]))
    }

    fn visit_str<E>(self, value: &str) -> Result<[u8; 32], E> {
        Ok(hash(b's', &[value.as_bytes()]))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut items: A) -> Result<[u8; 32], A::Error> {
        let mut hash = Sha256::new_with_prefix(b"a");
        while let Some(Meaning(item)) = items.next_element()? {
            hash.update(item);
        }
        Ok(hash.finalize().into())
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut members: A) -> Result<[u8; 32], A::Error> {
        let mut hashes = Vec::with_capacity(members.size_hint().unwrap_or(0));
        while let Some((Meaning(name), Meaning(value))) = members.next_entry()? {
            hashes.push([name, value]);
        }
        hashes.sort_unstable();
        let mut hash = Sha256::new_with_prefix(b"o");
        for half in hashes.iter().flatten() {
            hash.update(half);
        }
        Ok(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(body: &str) -> [u8; 32] {
        fingerprint("POST", "/api/projects", body.as_bytes())
    }

    /// Goal: spelling doesn't count, meaning does.
    #[test]
    fn a_fingerprint_stands_for_what_a_body_means() {
        for (one, same) in [
            ("", "{}"),
            (" \n", "{}"),
            (r#"{"a":1,"b":"x"}"#, "{ \"b\" : \"\\u0078\",\n\"a\":1 }"),
            (
                r#"{"a":{"c":[1,2],"d":null}}"#,
                r#"{"a":{"d":null,"c":[1,2]}}"#,
            ),
        ] {
            assert_eq!(of(one), of(same), "{one} {same}");
        }
        let different = [
            "{}",
            "[]",
            "null",
            "false",
            "0",
            "0.0",
            "-1",
            r#""""#,
            "[[]]",
            "[{}]",
            "[1,2]",
            "[2,1]",
            "[12]",
            r#"["1","2"]"#,
            r#"["12",""]"#,
            r#"{"a":null}"#,
            r#"{"a":"b"}"#,
            r#"{"b":"a"}"#,
            r#"{"a":1}"#,
            r#"{"a":"1"}"#,
            r#"{"a":1,"b":2}"#,
            r#"{"a":2,"b":1}"#,
            r#"{"a":{"b":1}}"#,
            r#"{"a":[{"b":1}]}"#,
        ];
        let seen: std::collections::HashSet<_> = different.iter().map(|body| of(body)).collect();
        assert_eq!(seen.len(), different.len());
        let deep = |bracket: &str| format!("{{\"x\":{}", bracket.repeat(10_000));
        assert_ne!(of(&deep("[")), of(&deep("{\"a\":")), "too deep to be read");
    }

    /// Goal: the same body elsewhere is another request; the two spellings of a path are one.
    #[test]
    fn method_and_path_belong_to_a_request() {
        let at = |method, path| fingerprint(method, path, b"{}");
        let one = at("POST", "/api/sandboxes/x/exec");
        assert_eq!(one, at("POST", "/sandboxes/x/exec"));
        assert_ne!(one, at("PUT", "/api/sandboxes/x/exec"));
        assert_ne!(one, at("POST", "/api/sandboxes/y/exec"));
    }
}
