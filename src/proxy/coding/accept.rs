//! What a client is willing to receive, cut down to what we can open (RFC 9110, section 12.5.3).

use std::fmt::Write;

use http::{HeaderMap, HeaderName};

use super::{ALL, Coding, split};

/// Thousandths of a weight: `q=1`.
const WHOLE: u16 = 1000;

/// The codings a field offers, each with its weight in thousandths, in the order of the field.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    named: Vec<(Option<Coding>, u16)>,
    others: Option<u16>,
}

/// Reads an `Accept-Encoding` (or a field like it); a part that can't be read offers nothing.
pub(crate) fn offered(headers: &HeaderMap, field: &HeaderName) -> Offer {
    let mut offer = Offer::default();
    let fields = headers.get_all(field);
    for element in fields.iter().flat_map(|value| split(value.as_bytes())) {
        let mut words = element.split(|&b| b == b';').map(<[u8]>::trim_ascii);
        let name = words.next().unwrap_or_default();
        let Some(weight) = weight(words) else {
            continue;
        };
        let coding = Coding::named(name);
        if name == b"*" {
            offer.others.get_or_insert(weight);
        } else if coding.is_some() || name.eq_ignore_ascii_case(b"identity") {
            // Said twice, the first counts.
            if offer.named.iter().all(|(known, _)| *known != coding) {
                offer.named.push((coding, weight));
            }
        }
    }
    offer
}

fn weight<'a>(words: impl Iterator<Item = &'a [u8]>) -> Option<u16> {
    let mut found = WHOLE;
    for word in words {
        let (b'q' | b'Q', rest) = word.split_first()? else {
            return None;
        };
        found = thousandths(rest.trim_ascii_start().strip_prefix(b"=")?.trim_ascii())?;
    }
    Some(found)
}

/// `0.5` and the like: at most one digit before and three after the point, at most one.
fn thousandths(text: &[u8]) -> Option<u16> {
    let (whole, fraction) = match text {
        [whole] => (whole, &b""[..]),
        [whole, b'.', fraction @ ..] if fraction.len() <= 3 => (whole, fraction),
        _ => return None,
    };
    let digit = |byte: u8| byte.is_ascii_digit().then(|| u16::from(byte - b'0'));
    let mut value = digit(*whole)? * WHOLE;
    for (&byte, place) in fraction.iter().zip([100, 10, 1]) {
        value += digit(byte)? * place;
    }
    (value <= WHOLE).then_some(value)
}

impl Offer {
    /// The value to send: what was offered of those `wanted`; what the client takes beside it,
    /// `identity` if nothing.
    pub fn limited_to(&self, wanted: impl Fn(Coding) -> bool) -> String {
        let mut field = String::new();
        let mut add = |name: &str, weight: u16| {
            if !field.is_empty() {
                field.push_str(", ");
            }
            field.push_str(name);
            if weight < WHOLE {
                let digits = format!("{weight:03}");
                let digits = digits.trim_end_matches('0');
                let _ = match digits {
                    "" => write!(field, ";q=0"),
                    digits => write!(field, ";q=0.{digits}"),
                };
            }
        };
        for (coding, weight) in &self.named {
            match coding {
                Some(coding) if *weight > 0 && wanted(*coding) => add(coding.name(), *weight),
                // Kept when it is unwanted too: a host may then answer 406 instead.
                None => add("identity", *weight),
                Some(_) => {}
            }
        }
        let unnamed = |coding: &Coding| self.named.iter().all(|(known, _)| *known != Some(*coding));
        if let Some(weight) = self.others {
            let rest = ALL.into_iter().filter(unnamed).filter(|&one| wanted(one));
            rest.filter(|_| weight > 0)
                .for_each(|coding| add(coding.name(), weight));
            if self.named.iter().all(|(known, _)| known.is_some()) {
                add("identity", weight);
            }
        }
        if field.is_empty() {
            field.push_str("identity");
        }
        field
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, header::ACCEPT_ENCODING};

    fn limited(fields: &[&'static str]) -> String {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(ACCEPT_ENCODING, HeaderValue::from_static(field));
        }
        offered(&headers, &ACCEPT_ENCODING).limited_to(|_| true)
    }

    /// Only what was offered and can be opened is asked for, with its weight.
    #[test]
    fn an_offer_is_cut_down_to_what_we_open() {
        for (fields, expected) in [
            (&[][..], "identity"),
            (&[""], "identity"),
            (&["gzip, deflate, br, zstd"], "gzip, deflate, br, zstd"),
            (&["gzip;q=1.0, compress, dcb, br;q=0.50"], "gzip, br;q=0.5"),
            (&["BR ; Q=0.123", "x-gzip;q=0"], "br;q=0.123"),
            (&["gzip;q=0, br;q=0.0, identity"], "identity"),
            (&["identity;q=0, gzip"], "identity;q=0, gzip"),
            (&["gzip;q=2"], "identity"),
            (&["gzip;q=0.1234"], "identity"),
            (&["gzip;level=9"], "identity"),
            (&["gzip;q=-1, br;q=, zstd;q"], "identity"),
            (&["gzip, gzip;q=0"], "gzip"),
            (&["*"], "gzip, deflate, br, zstd, identity"),
            (
                &["br;q=0, *;q=0.5"],
                "gzip;q=0.5, deflate;q=0.5, zstd;q=0.5, identity;q=0.5",
            ),
            (&["gzip, *;q=0"], "gzip, identity;q=0"),
        ] {
            assert_eq!(limited(fields), expected, "{fields:?}");
        }
    }
}
