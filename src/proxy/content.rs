//! What happens to the content of a message: which transform a body goes through, told by the
//! fields of its head.
//!
//! Invariant: towards and from a host that holds a secret, a body passes unchanged only where
//! nothing could be in it; what can't be looked into is refused.

use std::sync::Arc;

use http::HeaderMap;

use super::body::{Coding, Transform};
use super::head::place_of_body;
use super::policy::HostRules;
use super::refusal::Refusal;
use super::reseal::{Patterns, Resealer};
use super::substitute::Substituter;
use super::tally::Tally;

/// A body's transform and what it promises.
pub(crate) struct ContentChange {
    pub transform: Box<dyn Transform>,
    /// The output is as long as the input, since the content is only looked at.
    pub keeps_length: bool,
}

/// What a request body with this head goes through; `None` when it passes as it is.
pub(crate) fn of_request(
    headers: &HeaderMap,
    rules: &Arc<HostRules>,
    tally: &Arc<Tally>,
) -> Result<Option<ContentChange>, Refusal> {
    if !rules.watches_tokens() {
        return Ok(None);
    }
    let changes = rules.substitutes() || rules.strict();
    let coding = match Coding::of(headers) {
        Some(Coding::Gzip) | None if !changes => return Ok(None),
        coding => coding.ok_or(Refusal::RequestCoding)?,
    };
    let substituter = Substituter::new(rules.clone(), place_of_body(headers), tally.clone());
    Ok(Some(ContentChange {
        transform: coding.within(substituter),
        keeps_length: !changes,
    }))
}

/// What a response body with this head goes through, from a host whose values are `patterns`.
pub(crate) fn of_response(
    headers: &HeaderMap,
    patterns: &Arc<Patterns>,
    tally: &Arc<Tally>,
) -> Result<ContentChange, Refusal> {
    let coding = Coding::of(headers).ok_or(Refusal::ResponseCoding)?;
    let resealer = Resealer::new(patterns.clone(), tally.clone());
    Ok(ContentChange {
        transform: coding.within(resealer),
        keeps_length: false,
    })
}
