//! Properties that must hold for any bytes, for the targets under `fuzz/`; compiled there only.
//!
//! Each function takes what the fuzzer made up and panics when its property is broken. A few byte
//! values stand for tokens and values, which the fuzzer would never find by itself.

mod bodies;
mod grants;
mod heads;

use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;

use super::body::{StreamError, Transform};
use super::escape::Place;
use super::name::{CanonicalName, Host};
use super::placement::Placement;
use super::policy::{Binding, HostRules, Policy};
use super::reseal::Resealer;
use super::substitute::Substituter;
use super::token::SealedToken;
use super::websocket::{self, Way};
use crate::secret::SecretValue;

pub use bodies::{codings, grpc, multipart};
pub use grants::grants;
pub use heads::{framing, heads};

const TOKEN: &str = "osb_sealed_00112233445566778899aabbccddeeff";
const ELSEWHERE: &str = "osb_sealed_ffeeddccbbaa99887766554433221100";
const VALUE: &str = "s3cr/et+\"<v>&é'\\ ~x";
const HOST: &str = "api.example";

/// Rules for one host, made once: the automaton over the spellings takes long to build.
fn rules() -> Arc<HostRules> {
    static RULES: OnceLock<Arc<HostRules>> = OnceLock::new();
    let binding = |name: &str, token: &str, value: &str, host: &str| Binding {
        name: name.to_owned(),
        token: token.parse::<SealedToken>().expect("a token"),
        value: SecretValue::from(value.to_owned()),
        hosts: vec![host.parse().expect("a pattern")],
        placement: Placement::default(),
    };
    let make = || {
        let bindings = vec![
            binding("HERE", TOKEN, VALUE, HOST),
            binding(
                "ELSEWHERE",
                ELSEWHERE,
                "other-value-0002",
                "elsewhere.example",
            ),
        ];
        let policy = Policy::new(Vec::new(), bindings, true, true);
        policy.rules_for(&HOST.parse().expect("a host"), true, false)
    };
    let rules = RULES.get_or_init(make).clone();
    // Each input is a program of its own: what those before it guessed does not count.
    if let Some(patterns) = rules.patterns() {
        patterns.forget_guesses();
    }
    rules
}

/// `data` with tokens and spellings of the value where certain bytes stand.
fn expand(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() * 2);
    for &byte in data {
        match byte {
            0xf0 => out.extend(TOKEN.bytes()),
            0xf1 => out.extend(&TOKEN.as_bytes()[..20]),
            0xf2 => out.extend(&TOKEN.as_bytes()[20..]),
            0xf3 => out.extend(ELSEWHERE.bytes()),
            0xf4 => out.extend(VALUE.bytes()),
            0xf5 => out.extend(&VALUE.as_bytes()[..9]),
            0xf6 => out.extend(&VALUE.as_bytes()[9..]),
            0xf7 => out.extend(STANDARD.encode(VALUE).bytes()),
            0xf8 => out.extend(STANDARD.encode(format!("a{VALUE}bc")).bytes()),
            0xf9 => out.extend(hex::encode(VALUE).bytes()),
            0xfa => out.extend(serde_json::to_vec(VALUE).expect("text")),
            other => out.push(other),
        }
    }
    out
}

/// Cuts `bytes` into pieces whose sizes `sizes` tells, again and again.
fn pieces<'a>(mut bytes: &'a [u8], sizes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut sizes = sizes.iter().cycle();
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let size = sizes
            .next()
            .map_or(bytes.len(), |size| usize::from(*size) + 1);
        let (piece, rest) = bytes.split_at(size.min(bytes.len()));
        bytes = rest;
        Some(piece)
    })
}

/// A stream of pieces through a transform, as a body drives it.
fn run<'a>(
    mut transform: Box<dyn Transform>,
    pieces: impl Iterator<Item = &'a [u8]>,
    pauses: bool,
) -> Result<Vec<u8>, StreamError> {
    let mut out = Vec::new();
    for piece in pieces {
        for step in piece.chunks(transform.step_bytes_max()) {
            transform.push(step, &mut out)?;
            while transform.has_more() {
                transform.push(&[], &mut out)?;
            }
        }
        if pauses {
            transform.flush(&mut out)?;
        }
    }
    transform.finish(&mut out)?;
    Ok(out)
}

/// Splits off a control byte and four sizes; `None` when there is too little.
fn controls(data: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&control, rest) = data.split_first()?;
    let (sizes, rest) = rest.split_at_checked(4)?;
    Some((control, sizes, rest))
}

fn holds(bytes: &[u8], text: &str) -> bool {
    memchr::memmem::find(bytes, text.as_bytes()).is_some()
}

/// What a body becomes does not depend on its cut, and no token of the host's own stays.
pub fn substitute(data: &[u8]) {
    let Some((control, sizes, rest)) = controls(data) else {
        return;
    };
    let place = [Place::Raw, Place::Json, Place::Url][usize::from(control % 3)];
    let new = || Box::new(Substituter::new(rules(), place, Arc::default()));
    let text = expand(rest);
    let whole = run(new(), std::iter::once(text.as_slice()), false).expect("can be written");
    let cut = run(new(), pieces(&text, sizes), control & 128 != 0).expect("can be written");
    assert_eq!(whole, cut);
    assert!(!holds(&whole, TOKEN));
}

/// What an answer becomes does not depend on its cut, and no value stays.
pub fn reseal(data: &[u8]) {
    let Some((control, sizes, rest)) = controls(data) else {
        return;
    };
    let rules = rules();
    let patterns = rules.patterns().expect("a value that can be recognised");
    let new = || Box::new(Resealer::new(patterns.clone(), Arc::default()));
    let text = expand(rest);
    let whole = run(new(), std::iter::once(text.as_slice()), false).expect("never refuses");
    let cut = run(new(), pieces(&text, sizes), control & 128 != 0).expect("never refuses");
    assert_eq!(whole, cut);
    for spelling in [VALUE.to_owned(), hex::encode(VALUE), STANDARD.encode(VALUE)] {
        assert!(!holds(&whole, &spelling));
    }
}

/// A name has one canonical form, which is its own, and no reader takes it for an address.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(host) = text.parse::<Host>() {
        assert_eq!(host.to_string().parse(), Ok(host.clone()));
        assert!(
            matches!(host, Host::Name(_))
                != text
                    .trim_matches(['[', ']'])
                    .parse::<std::net::IpAddr>()
                    .is_ok()
        );
    }
    if let Ok(name) = text.parse::<CanonicalName>() {
        let canonical = name.as_str();
        assert_eq!(canonical.parse(), Ok(name.clone()));
        let legal = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
        assert!(canonical.bytes().all(legal) && canonical.len() <= 253);
        assert!(!canonical.ends_with('.') && !canonical.contains(".."));
        assert!(canonical.parse::<std::net::IpAddr>().is_err());
    }
}

/// What frames become does not depend on how they were cut, and what comes out are frames.
pub fn websocket(data: &[u8]) {
    let Some((control, sizes, rest)) = controls(data) else {
        return;
    };
    let way = if control & 1 == 0 { Way::Up } else { Way::Down };
    let bytes = expand(rest);
    let run = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        websocket::fuzzing::run(way, control & 2 != 0, rules(), pieces)
    };
    let whole: Option<BytesMut> = run(&mut std::iter::once(bytes.as_slice()));
    let cut = run(&mut pieces(&bytes, sizes));
    assert_eq!(
        whole.as_ref().map(|out| out.len()),
        cut.as_ref().map(|out| out.len())
    );
    if way == Way::Down {
        // The other way is masked with random keys.
        assert_eq!(whole, cut);
    }
    if let Some(out) = whole {
        websocket::fuzzing::check_frames(way, &out);
    }
}
