//! Offers and acceptance of permessage-deflate (RFC 7692, section 7.1; RFC 6455, section 9.1).
//!
//! The sandbox's offers are answered by this proxy, and the host gets an offer of this proxy's.
//! That one never lets the host limit our window, so the largest is always legal there; the
//! sandbox may limit it, since Python's clients do by default.

use http::HeaderMap;
use http::header::{HeaderValue, SEC_WEBSOCKET_EXTENSIONS};

use super::deflate::{Codec, WINDOW_BITS_MAX, WINDOW_BITS_MIN};

/// The one extension that can be looked into.
const DEFLATE: &str = "permessage-deflate";
/// Smallest window the standard knows.
const WINDOW_BITS_LEGAL_MIN: u8 = 8;

/// The parameters of one offer or answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Parameters {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    /// The inner is absent when the parameter has no value, as an offer may have it.
    client_max_window_bits: Option<Option<u8>>,
}

impl Parameters {
    /// `None` when a parameter is unknown, repeated or out of range.
    fn read<'a>(words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut read = Self::default();
        for word in words {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value.trim())),
                None => (word.trim(), None),
            };
            let repeated = match (name, value) {
                ("server_no_context_takeover", None) => {
                    std::mem::replace(&mut read.server_no_context_takeover, true)
                }
                ("client_no_context_takeover", None) => {
                    std::mem::replace(&mut read.client_no_context_takeover, true)
                }
                ("server_max_window_bits", Some(value)) => {
                    let bits = Some(window_bits(value)?);
                    std::mem::replace(&mut read.server_max_window_bits, bits).is_some()
                }
                ("client_max_window_bits", value) => {
                    let bits = value.map(window_bits);
                    let bits = Some(match bits {
                        Some(None) => return None,
                        Some(bits) => bits,
                        None => None,
                    });
                    std::mem::replace(&mut read.client_max_window_bits, bits).is_some()
                }
                _ => return None,
            };
            if repeated {
                return None;
            }
        }
        Some(read)
    }
}

/// Eight to fifteen, without leading zero, as a token or quoted.
fn window_bits(text: &str) -> Option<u8> {
    let quoted = text.strip_prefix('"').map(|rest| rest.strip_suffix('"'));
    let digits = match quoted {
        Some(inner) => inner?,
        None => text,
    };
    let bits = digits.parse().ok()?;
    let legal = (WINDOW_BITS_LEGAL_MIN..=WINDOW_BITS_MAX).contains(&bits);
    (legal && !digits.starts_with(['0', '+'])).then_some(bits)
}

/// The extensions named in the fields of a head, each with its parameters; `None` when they can't
/// be read.
fn extensions(headers: &HeaderMap) -> Option<Vec<(&str, Option<Parameters>)>> {
    let mut found = Vec::new();
    for value in headers.get_all(SEC_WEBSOCKET_EXTENSIONS) {
        // A comma or semicolon in quotes would be a parameter of something else than ours, which
        // read wrongly is at worst not accepted.
        for one in value.to_str().ok()?.split(',') {
            let mut words = one.split(';');
            let name = words.next()?.trim();
            if !name.is_empty() {
                found.push((name, Parameters::read(words.map(str::trim))));
            }
        }
    }
    Some(found)
}

/// What the sandbox offered that this proxy can follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer(Parameters);

/// What was agreed with both sides: none of them compresses, or both.
pub(super) struct Agreed {
    pub up: Codec,
    pub down: Codec,
    /// For the sandbox.
    pub answer: HeaderValue,
}

impl Offer {
    /// The first offer that can be followed.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        extensions(headers)?
            .into_iter()
            .filter(|(name, _)| *name == DEFLATE)
            .filter_map(|(_, parameters)| parameters)
            .find(|offer| {
                let window = offer.server_max_window_bits;
                window.is_none_or(|bits| bits >= WINDOW_BITS_MIN)
            })
            .map(Self)
    }

    /// The offer for the host.
    pub fn for_host(self) -> HeaderValue {
        let Parameters {
            server_no_context_takeover: server,
            client_no_context_takeover: client,
            ..
        } = self.0;
        HeaderValue::from_static(match (server, client) {
            (false, false) => DEFLATE,
            (true, false) => "permessage-deflate; server_no_context_takeover",
            (false, true) => "permessage-deflate; client_no_context_takeover",
            (true, true) => {
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
            }
        })
    }
}

/// What the host's answer to `offer` means for both sides; `Err` when it is not one it may give.
pub(super) fn agree(offer: Option<Offer>, answer: &HeaderMap) -> Result<Option<Agreed>, ()> {
    let found = extensions(answer).ok_or(())?;
    let far = match found.as_slice() {
        [] => return Ok(None),
        [(DEFLATE, Some(parameters))] => *parameters,
        _ => return Err(()),
    };
    let Offer(near) = offer.ok_or(())?;
    // We did not say that we can be limited; what we asked for must be granted.
    if far.client_max_window_bits.is_some()
        || near.server_no_context_takeover && !far.server_no_context_takeover
    {
        return Err(());
    }
    let client_forgets = near.client_no_context_takeover && far.client_no_context_takeover;
    let mut text = DEFLATE.to_owned();
    if near.server_no_context_takeover {
        text.push_str("; server_no_context_takeover");
    }
    if client_forgets {
        text.push_str("; client_no_context_takeover");
    }
    if let Some(bits) = near.server_max_window_bits {
        text.push_str(&format!("; server_max_window_bits={bits}"));
    }
    Ok(Some(Agreed {
        up: Codec {
            fresh_in: client_forgets,
            fresh_out: far.client_no_context_takeover,
            window_bits_out: WINDOW_BITS_MAX,
        },
        down: Codec {
            fresh_in: far.server_no_context_takeover,
            fresh_out: near.server_no_context_takeover,
            window_bits_out: near.server_max_window_bits.unwrap_or(WINDOW_BITS_MAX),
        },
        answer: HeaderValue::try_from(text).map_err(|_| ())?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(values: &[&str]) -> HeaderMap {
        let values = values.iter().map(|value| value.parse().unwrap());
        values
            .map(|value| (SEC_WEBSOCKET_EXTENSIONS, value))
            .collect()
    }

    /// What goes to the host for what the sandbox offers: never what can't be followed.
    #[test]
    fn only_offers_that_can_be_followed_go_to_the_host() {
        let sent = |values: &[&str]| {
            Offer::of(&fields(values)).map(|offer| offer.for_host().to_str().unwrap().to_owned())
        };
        let plain = Some(DEFLATE.to_owned());
        assert_eq!(sent(&["permessage-deflate; client_max_window_bits"]), plain);
        let python = "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12";
        assert_eq!(sent(&[python]), plain);
        assert_eq!(sent(&["x-webkit-deflate-frame, permessage-deflate"]), plain);
        let both = "permessage-deflate; client_no_context_takeover; server_no_context_takeover";
        assert_eq!(
            sent(&["permessage-deflate; server_max_window_bits=9", both]),
            Some(format!(
                "{DEFLATE}; server_no_context_takeover; client_no_context_takeover"
            ))
        );
        for none in [
            "permessage-bzip2",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=010",
            "permessage-deflate; server_max_window_bits=\"10",
            "permessage-deflate; client_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; unknown",
            "",
        ] {
            assert_eq!(sent(&[none]), None, "{none}");
        }
    }

    #[test]
    fn the_hosts_answer_must_fit_the_offer() {
        let verdict = |offer: &str, answer: &[&str]| {
            let agreed = agree(Offer::of(&fields(&[offer])), &fields(answer));
            agreed.map(|agreed| agreed.map(|agreed| agreed.answer.to_str().unwrap().to_owned()))
        };
        assert_eq!(verdict(DEFLATE, &[]), Ok(None));
        assert_eq!(verdict(DEFLATE, &[DEFLATE]), Ok(Some(DEFLATE.into())));
        let limited = "permessage-deflate; server_max_window_bits=10";
        assert_eq!(verdict(DEFLATE, &[limited]), Ok(Some(DEFLATE.into())));
        assert_eq!(verdict(limited, &[DEFLATE]), Ok(Some(limited.into())));
        let forgetful = "permessage-deflate; server_no_context_takeover";
        assert_eq!(verdict(DEFLATE, &[forgetful]), Ok(Some(DEFLATE.into())));
        assert_eq!(verdict(forgetful, &[forgetful]), Ok(Some(forgetful.into())));
        for (offer, answer) in [
            ("", &[DEFLATE][..]),
            (DEFLATE, &["permessage-deflate, permessage-deflate"]),
            (DEFLATE, &[DEFLATE, DEFLATE]),
            (DEFLATE, &["permessage-bzip2"]),
            (DEFLATE, &["permessage-deflate; client_max_window_bits=10"]),
            (DEFLATE, &["permessage-deflate; server_max_window_bits=7"]),
            (DEFLATE, &["permessage-deflate; x"]),
            (forgetful, &[DEFLATE]),
        ] {
            assert_eq!(verdict(offer, answer), Err(()), "{offer} {answer:?}");
        }
    }
}
