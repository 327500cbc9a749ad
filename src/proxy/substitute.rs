//! Tokens to values, as a stream.
//!
//! Invariants: the output does not depend on how the input was cut. At most one byte less than a
//! token is held back, and only bytes that may be the beginning of one. However much longer than
//! its token a value is, one step's output stays in the order of a mebibyte.

use std::iter::once;
use std::sync::{Arc, LazyLock};

use http::header::HeaderName;
use memchr::memmem::Finder;
use zeroize::Zeroizing;

use super::body::{STEP_BYTES_MAX, StreamError, Transform};
use super::escape::{Place, express};
use super::placement::Why;
use super::policy::{Binding, HostRules, Lookup};
use super::refusal::Refusal;
use super::tally::{Tally, UNKNOWN_TOKEN};
use super::token::{PREFIX, SealedToken, TOKEN_BYTES};

/// Bytes that one step may bring out, about.
const OUTPUT_BYTES_AIM: usize = 1024 * 1024;
/// Most bytes of one field of a head with its values in place: the longest value and then some.
const FIELD_BYTES_MAX: usize = 128 * 1024;

/// Looks for where a token begins; made once, since most of what it looks at is short.
static BEGINNING: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(PREFIX));

/// Replaces the tokens a host may receive; others pass as they are and are recorded, or are
/// refused when the rules are strict.
pub(crate) struct Substituter {
    rules: Arc<HostRules>,
    tally: Arc<Tally>,
    place: Place,
    field: Option<HeaderName>,
    /// Tokens of what hosts handed out are replaced too.
    grants: bool,
    held: Vec<u8>,
    step_bytes_max: usize,
}

impl Substituter {
    pub fn new(rules: Arc<HostRules>, place: Place, tally: Arc<Tally>) -> Self {
        let token_becomes = rules.longest_value() * place.growth_max();
        // So much of nothing but tokens becomes a mebibyte, or a single token what it becomes.
        let step = OUTPUT_BYTES_AIM * TOKEN_BYTES / token_becomes.max(1);
        Self {
            rules,
            tally,
            place,
            field: None,
            grants: false,
            held: Vec::new(),
            step_bytes_max: step.clamp(TOKEN_BYTES, STEP_BYTES_MAX),
        }
    }

    /// Replaces the tokens of what hosts handed out too: the caller is a field, a form or JSON.
    pub fn with_grants(mut self) -> Self {
        self.grants = true;
        self
    }

    /// Copies `bytes` to `out` with the tokens in it replaced; returns where the tail begins
    /// that may be an unfinished token. Refuses what would make `out` longer than `limit`.
    fn scan(&self, bytes: &[u8], out: &mut Vec<u8>, limit: usize) -> Result<usize, Refusal> {
        let mut copied = 0;
        let mut from = 0;
        while let Some(at) = BEGINNING.find(&bytes[from..]).map(|found| from + found) {
            let Some(token) = SealedToken::at(&bytes[at..]) else {
                if SealedToken::may_begin_with(&bytes[at..]) {
                    from = at;
                    break;
                }
                from = at + 1;
                continue;
            };
            let end = at + TOKEN_BYTES;
            if let Some(value) = self.look_up(token)? {
                out.extend_from_slice(&bytes[copied..at]);
                if out.len() + value.len() > limit {
                    return Err(Refusal::Framing(
                        "the head is too long with values in place",
                    ));
                }
                out.extend_from_slice(&value);
                copied = end;
            }
            from = end;
        }
        let earliest = from.max(bytes.len().saturating_sub(TOKEN_BYTES - 1));
        let tail = (earliest..bytes.len())
            .find(|&start| SealedToken::may_begin_with(&bytes[start..]))
            .unwrap_or(bytes.len());
        out.extend_from_slice(&bytes[copied..tail]);
        Ok(tail)
    }

    fn look_up(&self, token: SealedToken) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal> {
        match self.rules.look_up(&token, self.field.as_ref()) {
            Lookup::Bound(binding) => self.replace(once((token, &*binding.name)), binding),
            Lookup::Granted(grant) if self.grants => {
                let parents = grant.parents.iter();
                let parents = parents.map(|parent| (parent.token, &*parent.name));
                self.replace(parents, &grant.binding)
            }
            Lookup::Granted(grant) => self.pass(&grant.binding.name, Some(Why::Place)),
            Lookup::Unbound(binding, why) => self.pass(&binding.name, Some(why)),
            Lookup::Revoked(name) => self.pass(&name, Some(Why::Revoked)),
            Lookup::Unknown => self.pass(UNKNOWN_TOKEN, None),
        }
    }

    /// The value of `binding`, which goes as the secrets `of` do.
    fn replace<'a>(
        &self,
        of: impl Iterator<Item = (SealedToken, &'a str)> + Clone,
        binding: &Binding,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal> {
        let name = &binding.name;
        let max = binding.placement.max_per_request();
        if max.is_some_and(|max| !self.tally.names().count(name, max)) {
            return self.pass(name, Some(Why::Count));
        }
        let value = express(binding.value.expose(), self.place);
        let value = value.ok_or_else(|| Refusal::Inexpressible {
            secret: name.clone(),
            place: self.place.describe(),
        })?;
        let names = of.clone().map(|(_, name)| name.to_owned());
        self.tally.names().substituted.extend(names);
        // Told first, asked then: either this sees that the secret was taken away, or whoever takes
        // it away sees that the request carries it and cuts it.
        let mut of = of;
        match of.find_map(|(token, name)| self.rules.withdrawn(&token, name)) {
            Some(refusal) => Err(refusal),
            None => Ok(Some(value)),
        }
    }

    /// Leaves a token as it is, or refuses the request when the rules are strict.
    fn pass(&self, name: &str, why: Option<Why>) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal> {
        let secret = || name.to_owned();
        self.tally.names().passed(name, why);
        match why {
            _ if !self.rules.strict() => Ok(None),
            None | Some(Why::Host | Why::HostOfAnother | Why::Plain) => {
                Err(Refusal::TokenUnbound { secret: secret() })
            }
            Some(Why::Revoked) => Err(Refusal::Revoked { secret: secret() }),
            Some(why) => Err(Refusal::Misplaced {
                secret: secret(),
                why: why.name(),
            }),
        }
    }
}

impl Transform for Substituter {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        let joined;
        let bytes = if self.held.is_empty() {
            input
        } else {
            joined = [&self.held, input].concat();
            &joined
        };
        let tail = self
            .scan(bytes, out, usize::MAX)
            .inspect_err(|refusal| self.tally.refuse(refusal.clone()))?;
        self.held = bytes[tail..].to_vec();
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        out.append(&mut self.held);
        Ok(())
    }

    fn passes(&mut self, input: &[u8]) -> usize {
        if !self.held.is_empty() {
            return 0;
        }
        if let Some(at) = BEGINNING.find(input) {
            return at;
        }
        let earliest = input.len().saturating_sub(PREFIX.len() - 1);
        (earliest..input.len())
            .find(|&start| SealedToken::may_begin_with(&input[start..]))
            .unwrap_or(input.len())
    }

    fn step_bytes_max(&self) -> usize {
        self.step_bytes_max
    }
}

/// `bytes`, a part of a head that is no field (its target), with the tokens replaced, or `None` when
/// there was nothing to replace.
pub(crate) fn substitute_all(
    rules: &Arc<HostRules>,
    place: Place,
    tally: &Arc<Tally>,
    bytes: &[u8],
) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal> {
    substitute_in(None, rules, place, tally, bytes)
}

/// The same for the value of a field of a head: the only place of secrets that are narrowed to it.
pub(crate) fn substitute_field(
    name: &HeaderName,
    rules: &Arc<HostRules>,
    place: Place,
    tally: &Arc<Tally>,
    bytes: &[u8],
) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal> {
    substitute_in(Some(name), rules, place, tally, bytes)
}

fn substitute_in(
    field: Option<&HeaderName>,
    rules: &Arc<HostRules>,
    place: Place,
    tally: &Arc<Tally>,
    bytes: &[u8],
) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal> {
    if BEGINNING.find(bytes).is_none() {
        return Ok(None);
    }
    let mut substituter = Substituter::new(rules.clone(), place, tally.clone());
    substituter.field = field.cloned();
    substituter.grants = field.is_some();
    let mut out = Zeroizing::new(Vec::with_capacity(bytes.len()));
    let tail = substituter.scan(bytes, &mut out, FIELD_BYTES_MAX)?;
    out.extend_from_slice(&bytes[tail..]);
    Ok((out.as_slice() != bytes).then_some(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::policy::testing::{Fixture, fixture};

    /// Runs `pieces` through a substituter as one stream.
    fn run(fixture: &Fixture, place: Place, pieces: &[&[u8]]) -> Result<Vec<u8>, Refusal> {
        let tally = Arc::<Tally>::default();
        let mut stream = Substituter::new(fixture.rules.clone(), place, tally.clone());
        let mut out = Vec::new();
        for piece in pieces {
            if stream.push(piece, &mut out).is_err() {
                return Err(tally.refusal().unwrap().clone());
            }
            assert!(stream.held.len() < TOKEN_BYTES);
        }
        stream.finish(&mut out).unwrap();
        Ok(out)
    }

    /// Goal: a long value behind every token of a body or a head costs a bounded amount of memory,
    /// in plain and inside gzip, which makes kilobytes of tokens out of bytes.
    #[test]
    fn a_flood_of_tokens_for_a_long_value_stays_small() {
        let fixture = fixture("api.example", &"\u{1}".repeat(64 * 1024));
        let tokens = fixture.token.to_string().repeat(20_000);
        let new = |place| Substituter::new(fixture.rules.clone(), place, Arc::default());
        let plain: Box<dyn Transform> = Box::new(new(Place::Raw));
        let packed = super::super::coding::Coding::Gzip.within(new(Place::Raw));
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, tokens.as_bytes()).unwrap();
        let gzip = encoder.finish().unwrap();
        for (mut transform, body) in [(plain, tokens.as_bytes()), (packed, gzip.as_slice())] {
            for piece in body.chunks(transform.step_bytes_max()).take(200) {
                let mut out = Vec::new();
                transform.push(piece, &mut out).unwrap();
                assert!(out.capacity() < 16 * 1024 * 1024, "{}", out.capacity());
            }
        }
        let head = tokens.get(..TOKEN_BYTES * 1500).unwrap();
        let refused = substitute_all(&fixture.rules, Place::Url, &Arc::default(), head.as_bytes());
        assert!(matches!(refused, Err(Refusal::Framing(_))));
    }

    /// Cutting the stream at every pair of places must not change what comes out.
    #[test]
    fn a_stream_is_substituted_the_same_however_it_is_cut() {
        let fixture = fixture("api.example", "real-value-0001");
        let token = fixture.token.to_string();
        let cut = &token[..30];
        let body = format!("{token}{token} osb_osb_sealed_{cut}{token}\u{e9}{cut}-{token}0 {cut}");
        let expected = body.replace(&token, "real-value-0001");
        let bytes = body.as_bytes();
        for first in 0..=bytes.len() {
            for second in (first..=bytes.len()).step_by(7) {
                let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
                let out = run(&fixture, Place::Raw, &pieces).unwrap();
                assert_eq!(out, expected.as_bytes(), "{first} {second}");
            }
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(
            run(&fixture, Place::Raw, &single).unwrap(),
            expected.as_bytes()
        );
    }

    /// A value is escaped for its place, and refused where it has no spelling.
    #[test]
    fn values_are_escaped_for_their_place() {
        let fixture = fixture("api.example", "a\"b&c\r\nd");
        let text = format!("<{}>", fixture.token);
        for (place, expected) in [
            (Place::Json, "<a\\\"b&c\\r\\nd>"),
            (Place::Url, "<a%22b%26c%0D%0Ad>"),
            (Place::Raw, "<a\"b&c\r\nd>"),
        ] {
            let out = run(&fixture, place, &[text.as_bytes()]).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        let refused = run(&fixture, Place::Header, &[text.as_bytes()]).unwrap_err();
        assert_eq!(refused.rule(), "secret_inexpressible");
        assert!(!refused.to_string().contains("b&c"));
    }

    /// Tokens for other hosts, of other sandboxes, or misspelled stay the inert text they are.
    #[test]
    fn a_token_without_a_binding_for_the_host_passes_inert() {
        let fixture = fixture("api.example", "real-value-0001");
        let tally = Arc::<Tally>::default();
        let other = SealedToken::generate();
        let text = format!(
            "{} {other} {}",
            fixture.elsewhere,
            fixture.token.to_string().to_uppercase()
        );
        let rules = &fixture.rules;
        let out = substitute_all(rules, Place::Raw, &tally, text.as_bytes()).unwrap();
        assert!(out.is_none());
        let unbound: Vec<_> = tally.names().unbound.iter().cloned().collect();
        assert_eq!(unbound, [UNKNOWN_TOKEN, "ELSEWHERE"]);
        let strict = substitute_all(&fixture.strict, Place::Raw, &tally, text.as_bytes());
        assert_eq!(strict.unwrap_err().rule(), "secret_not_bound_to_host");
    }
}
