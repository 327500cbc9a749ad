//! What happens to the content of a message: which transform a body goes through, told by the
//! fields of its head.
//!
//! Invariant: towards and from a host that holds a secret, a body passes unchanged only where
//! nothing could be in it; what can't be looked into is refused.

use std::sync::Arc;

use http::header::{ACCEPT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, request};

use super::body::{Transform, Work};
use super::coding::{Coding, Series, offered};
use super::escape::Place;
use super::grants::{Chain, FieldSealer, NameGuard, Sweeper, Syntax};
use super::grpc;
use super::multipart::Multipart;
use super::policy::HostRules;
use super::refusal::Refusal;
use super::reseal::Resealer;
use super::substitute::Substituter;
use super::tally::Tally;

/// A body's transform and what it promises.
pub(crate) struct ContentChange {
    pub transform: Work,
    /// The output is as long as the input, since the content is only looked at.
    pub keeps_length: bool,
}

/// What a request body with this head goes through; `None` when it passes as it is.
pub(crate) fn of_request(
    headers: &HeaderMap,
    rules: &Arc<HostRules>,
    tally: &Arc<Tally>,
) -> Result<Option<ContentChange>, Refusal> {
    if !rules.watches_tokens() && !rules.strict() {
        return Ok(None);
    }
    let changes = rules.substitutes() || rules.strict();
    let codings = match Series::of(headers) {
        Some(codings) if changes || codings.is_identity() => codings,
        None if changes => return Err(Refusal::RequestCoding),
        _ => return Ok(None),
    };
    let substituter = |place| {
        let substituter = Substituter::new(rules.clone(), place, tally.clone());
        match place {
            Place::Json | Place::Url => substituter.with_grants(),
            _ => substituter,
        }
    };
    let essence = essence(headers);
    let plain: Box<dyn Transform> = if !changes {
        Box::new(substituter(Place::Raw))
    } else if grpc::is_grpc(&essence) {
        let coding = grpc::coding(headers).ok_or(Refusal::RequestCoding)?;
        Box::new(grpc::request(&essence, coding, rules, tally))
    } else if let Some(multipart) = Multipart::of(headers, rules, tally) {
        Box::new(multipart)
    } else {
        Box::new(substituter(place_of(&essence)))
    };
    Ok(Some(ContentChange {
        transform: work(codings, plain, tally)?,
        keeps_length: !changes,
    }))
}

/// Whether a request with this head asks for messages.
pub(crate) fn asks_for_messages(parts: &request::Parts) -> bool {
    parts.method == Method::POST && grpc::is_grpc(&essence(&parts.headers))
}

/// What a response body with this head goes through, from a host whose answers are looked into.
/// It is read as messages only where `messages` were asked for: a host that serves any text under
/// any type would else let a value be cut in two by the head of a message inside it.
pub(crate) fn of_response(
    headers: &HeaderMap,
    messages: bool,
    rules: &HostRules,
    tally: &Arc<Tally>,
) -> Result<ContentChange, Refusal> {
    let patterns = rules.patterns();
    if let Some(patterns) = patterns {
        patterns.check_guesses()?;
    }
    if let Some(grants) = rules.grants_sealed_here() {
        grants.check()?;
    }
    let codings = Series::of(headers).ok_or(Refusal::ResponseCoding)?;
    if headers.get_all(CONTENT_TYPE).iter().count() > 1 {
        return Err(Refusal::ResponseType);
    }
    let essence = essence(headers);
    let plain: Box<dyn Transform> = match patterns {
        Some(patterns) if messages && grpc::is_grpc(&essence) && !rules.seals_grants() => {
            let coding = grpc::coding(headers).ok_or(Refusal::ResponseCoding)?;
            Box::new(grpc::response(&essence, coding, patterns, tally))
        }
        _ => text_of_response(&essence, rules, tally),
    };
    Ok(ContentChange {
        transform: work(codings, plain, tally)?,
        keeps_length: false,
    })
}

/// What the text of an answer goes through. Secrets come first: what a host hands out may be anything.
fn text_of_response(essence: &[u8], rules: &HostRules, tally: &Arc<Tally>) -> Box<dyn Transform> {
    let secrets = rules
        .patterns()
        .map(|patterns| Box::new(Resealer::new(patterns.clone(), tally.clone())));
    let Some(parents) = rules.handed_out_for() else {
        return match secrets {
            Some(secrets) => secrets,
            None => Box::new(Chain::new(Vec::new())),
        };
    };
    let grants = rules.grants();
    let sealer = |syntax| FieldSealer::new(grants.clone(), parents.clone(), tally.clone(), syntax);
    let mut links: Vec<Box<dyn Transform>> = Vec::new();
    if let Some(secrets) = secrets {
        links.push(secrets);
    }
    links.push(match place_of(essence) {
        Place::Url => Box::new(sealer(Syntax::Form)),
        // Lines of JSON may come for as long as they like.
        Place::Json if essence != b"application/x-ndjson" => Box::new(sealer(Syntax::Json)),
        _ => Box::new(NameGuard::new(tally.clone())),
    });
    links.push(Box::new(Sweeper::new(grants.clone(), tally.clone())));
    Box::new(Chain::new(links))
}

fn work(codings: Series, plain: Box<dyn Transform>, tally: &Arc<Tally>) -> Result<Work, Refusal> {
    Ok(Work {
        transform: codings.within(plain, tally)?,
        tally: tally.clone(),
    })
}

/// Lets only codings come back that this proxy can open and the client asked for; only the ones
/// that need little memory while there is little.
pub(crate) fn limit_codings(headers: &mut HeaderMap, tally: &Tally) {
    grpc::limit_codings(headers);
    if !headers.contains_key(ACCEPT_ENCODING) {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        return;
    }
    let short = tally.share().is_short_of_memory();
    let small = |coding| matches!(coding, Coding::Gzip | Coding::Deflate);
    let only = offered(headers, &ACCEPT_ENCODING).limited_to(|coding| !short || small(coding));
    // Names and digits of our own; if that should ever fail, nothing is asked for.
    let only = HeaderValue::try_from(only).unwrap_or(HeaderValue::from_static("identity"));
    headers.insert(ACCEPT_ENCODING, only);
}

/// The content type without its parameters, in lower case.
fn essence(headers: &HeaderMap) -> Vec<u8> {
    let value = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    essence_of(value.unwrap_or_default())
}

pub(crate) fn essence_of(content_type: &[u8]) -> Vec<u8> {
    let essence = content_type.split(|&b| b == b';').next();
    essence
        .unwrap_or_default()
        .trim_ascii()
        .to_ascii_lowercase()
}

/// How a value is written in text of this type.
pub(crate) fn place_of(essence: &[u8]) -> Place {
    match essence {
        b"application/x-www-form-urlencoded" => Place::Url,
        b"application/json" | b"text/json" | b"application/x-ndjson" => Place::Json,
        other if other.ends_with(b"+json") => Place::Json,
        _ => Place::Raw,
    }
}

#[cfg(test)]
mod joint_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::policy::Policy;

    /// Goal: in strict mode a sandbox without a secret sends no token in a body either.
    #[test]
    fn strict_rules_look_at_bodies_without_a_secret() {
        let policy = Policy::new(Vec::new(), Vec::new(), true, true);
        let host = "api.example".parse().unwrap();
        let body = |strict| {
            let rules = policy.rules_for(&host, true, strict);
            of_request(&HeaderMap::new(), &rules, &Arc::default()).unwrap()
        };
        assert!(body(false).is_none());
        let mut strict = body(true).expect("a look").transform.transform;
        let token = crate::proxy::SealedToken::generate().to_string();
        assert!(strict.push(token.as_bytes(), &mut Vec::new()).is_err());
    }
}
