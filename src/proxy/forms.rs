//! The spellings in which an upstream may echo a value, and what each is replaced by.
//!
//! A host that wants to betray a value can encode it in a way no list foresees; this list is for
//! what ordinary programs do with what they were sent: as it is, JSON in the styles of the common
//! encoders, percent-encoding, HTML, base64 (both alphabets, at all three alignments, unwrapped)
//! and hex. Up to six bits of a value stay at each end of a base64 run, where one character holds
//! bits of the value and of its neighbour.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use base64::Engine;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::escape::{Hex, Json, UNRESERVED, json, percent};
use super::policy::Binding;
use super::token::SealedToken;

/// Longest value whose every spelling is searched for; of longer ones only the common spellings,
/// which keeps the automaton of a usual key file under a mebibyte or two.
const THOROUGH_VALUE_BYTES_MAX: usize = 1024;
/// Bytes of all spellings for one set of hosts; the automaton takes some ten times as much.
const SPELLINGS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of all values of one set of hosts as they are; beyond it, its hosts are closed.
const VALUES_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Every character of ASCII that can be seen, or is the space, and is no letter and no digit.
const MARKS: [char; 33] = [
    ' ', '!', '"', '#', '$', '%', '&', '\'', '(', ')', '*', '+', ',', '-', '.', '/', ':', ';', '<',
    '=', '>', '?', '@', '[', '\\', ']', '^', '_', '`', '{', '|', '}', '~',
];

/// One spelling of a value: secret as the value is, and wiped like it.
#[derive(PartialEq, Eq)]
pub(crate) struct Spelling(Zeroizing<Vec<u8>>);

impl Spelling {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

impl Hash for Spelling {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_slice().hash(state);
    }
}

/// Spelling to replacement.
type Forms = HashMap<Spelling, Vec<u8>>;

/// Spelling to replacement, and the name of the secret.
pub(crate) type Spellings<'a> = HashMap<Spelling, (Vec<u8>, &'a str)>;

/// What is searched for on account of `bindings`; `None` when their values are too much for that.
///
/// All spellings together have a bound: the shortest values have all of theirs, the longest ones
/// fewer and fewer until they fit.
pub(crate) fn spellings(mut bindings: Vec<&Binding>) -> Option<Spellings<'_>> {
    bindings.sort_by_key(|binding| binding.value.expose().len());
    let lengths = bindings.iter().map(|binding| binding.value.expose().len());
    let plain: usize = lengths.sum();
    if plain > VALUES_BYTES_MAX {
        return None;
    }
    let mut all = Spellings::new();
    // As they are, all values have their place.
    let mut room = SPELLINGS_BYTES_MAX.saturating_sub(plain);
    for binding in bindings {
        let (forms, bytes) = forms_within(room, binding.value.expose(), &binding.token);
        room = room.saturating_sub(bytes);
        for (pattern, replacement) in forms {
            all.entry(pattern).or_insert((replacement, &binding.name));
        }
    }
    Some(all)
}

/// How many spellings of a value are searched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// All we know.
    All,
    /// As it is, in JSON, percent-encoded and in base64.
    Common,
    /// As it is.
    Plain,
}

/// As many spellings of `value` as take at most `room` bytes beside the value as it is, and how
/// many they take.
fn forms_within(room: usize, value: &[u8], token: &SealedToken) -> (Forms, usize) {
    // Base64 alone takes eight times the value, in both extents.
    let extents = [Extent::All, Extent::Common];
    let may_fit = value.len().saturating_mul(8) <= room;
    for extent in extents.into_iter().filter(|_| may_fit) {
        let forms = forms_to(extent, value, token);
        let lengths = forms.keys().map(|spelling| spelling.bytes().len());
        let bytes = lengths.sum::<usize>().saturating_sub(value.len());
        if bytes <= room {
            return (forms, bytes);
        }
    }
    (forms_to(Extent::Plain, value, token), 0)
}

/// The usual spellings of one value, each with what stands for it in the sandbox.
pub(crate) fn common_spellings(
    value: &[u8],
    token: &SealedToken,
) -> impl Iterator<Item = (Spelling, Vec<u8>)> {
    forms_to(Extent::Common, value, token).into_iter()
}

/// Every spelling of `value`, with what stands for it in the sandbox: the token, in the same
/// encoding for base64 and hex, so that what decodes it reads the token.
#[cfg(test)]
fn forms(value: &[u8], token: &SealedToken) -> Forms {
    forms_to(Extent::All, value, token)
}

/// The spellings of `value` to this extent, each with what stands for it.
fn forms_to(extent: Extent, value: &[u8], token: &SealedToken) -> Forms {
    let token = token.to_string().into_bytes();
    let thorough = extent == Extent::All && value.len() <= THOROUGH_VALUE_BYTES_MAX;
    let mut forms = Forms::new();
    let mut plain = |form: Zeroizing<Vec<u8>>| {
        forms.insert(Spelling(form), token.clone());
    };
    plain(Zeroizing::new(value.to_vec()));
    if extent == Extent::Plain {
        return forms;
    }
    percent_forms(value, thorough, &mut plain);
    if let Ok(text) = std::str::from_utf8(value) {
        json_forms(text, thorough, &mut plain);
        if extent == Extent::All {
            html_forms(text, &mut plain);
        }
        if thorough && extent == Extent::All {
            wide_forms(text, &token, &mut forms);
        }
    }
    for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        for alignment in 0..3 {
            let (pattern, replacement) = base64_form(engine, value, &token, alignment);
            forms.entry(Spelling(pattern)).or_insert(replacement);
        }
    }
    if extent == Extent::Common {
        return forms;
    }
    let digits = Zeroizing::new(hex::encode(value).into_bytes());
    let upper = Zeroizing::new(digits.to_ascii_uppercase());
    forms
        .entry(Spelling(digits))
        .or_insert_with(|| hex::encode(&token).into_bytes());
    forms
        .entry(Spelling(upper))
        .or_insert_with(|| hex::encode_upper(&token).into_bytes());
    forms
}

fn percent_forms(value: &[u8], thorough: bool, add: &mut impl FnMut(Zeroizing<Vec<u8>>)) {
    // RFC 3986; encodeURIComponent; encodeURI; forms of the WHATWG URL standard; Python's quote;
    // Go's PathEscape; JavaScript's escape.
    let kept: [&[u8]; 7] = [
        UNRESERVED,
        b"-._~!'()*",
        b"-._~!'()*;/?:@&=+$,#",
        b"*-._",
        b"-._~/",
        b"-._~$&+=:@",
        b"@*_+-./",
    ];
    for hex in [Hex::Upper, Hex::Lower] {
        for set in kept {
            add(percent(value, hex, |b| set.contains(&b)));
        }
        // Forms write a space as a plus.
        for set in [&b"*-._ "[..], b"-._~ "] {
            let spaced = percent(value, hex, |b| set.contains(&b));
            let plus = |&b: &u8| if b == b' ' { b'+' } else { b };
            add(Zeroizing::new(spaced.iter().map(plus).collect()));
        }
        if thorough {
            // A link inside a link, as in the return address of a login page.
            let once = percent(value, hex, |b| UNRESERVED.contains(&b));
            add(percent(&once, hex, |b| UNRESERVED.contains(&b)));
            let mut all = Zeroizing::new(Vec::with_capacity(value.len() * 3));
            for &byte in value {
                all.push(b'%');
                let digits = hex::encode([byte]);
                match hex {
                    Hex::Lower => all.extend(digits.bytes()),
                    Hex::Upper => all.extend(digits.bytes().map(|b| b.to_ascii_uppercase())),
                }
            }
            add(all);
        }
    }
}

fn json_forms(text: &str, thorough: bool, add: &mut impl FnMut(Zeroizing<Vec<u8>>)) {
    let both = [false, true];
    let all: &[bool] = if thorough { &both } else { &both[..1] };
    for &all in all {
        for (slash, html) in [(false, false), (false, true), (true, false), (true, true)] {
            for (ascii, upper) in [(false, false), (false, true), (true, false), (true, true)] {
                add(json(
                    text,
                    Json {
                        slash,
                        html,
                        also: &[],
                        ascii,
                        all,
                        upper,
                    },
                ));
            }
        }
    }
    // The default encoders of .NET (System.Text.Json) and of Gson go further, and the strictest
    // escape all but letters and digits.
    for (also, ascii, upper) in [
        (&['"', '\'', '+', '`'][..], true, true),
        (&['\'', '='], false, false),
        (&MARKS, true, false),
        (&MARKS, true, true),
    ] {
        let style = Json {
            html: true,
            also,
            ascii,
            upper,
            ..Json::default()
        };
        add(json(text, style));
    }
}

/// UTF-16 in both byte orders, which some hosts write when they are asked for it.
fn wide_forms(text: &str, token: &[u8], forms: &mut Forms) {
    let spread = |bytes: [u8; 2], byte: u8| if bytes[0] == 0 { [0, byte] } else { [byte, 0] };
    for order in [u16::to_le_bytes as fn(u16) -> [u8; 2], u16::to_be_bytes] {
        let wide: Vec<u8> = text.encode_utf16().flat_map(order).collect();
        let replacement = token.iter().flat_map(|&byte| spread(order(1), byte));
        let replacement = replacement.collect();
        forms
            .entry(Spelling(Zeroizing::new(wide)))
            .or_insert(replacement);
    }
}

/// How the common template engines write `"`, `'` and what else they escape beyond `&<>`: many
/// none of it, Go `+`, Handlebars `=`, Mustache `=` and `/`.
fn html_forms(text: &str, add: &mut impl FnMut(Zeroizing<Vec<u8>>)) {
    let others: [&[(char, &str)]; 4] = [
        &[],
        &[('+', "&#43;")],
        &[('=', "&#x3D;"), ('`', "&#x60;")],
        &[('=', "&#x3D;"), ('`', "&#x60;"), ('/', "&#x2F;")],
    ];
    for (double, single, others) in [
        ("&quot;", "&#39;", others[0]),
        ("&quot;", "&#x27;", others[0]),
        ("&#34;", "&#39;", others[0]),
        ("\"", "'", others[0]),
        ("&#34;", "&#39;", others[1]),
        ("&quot;", "&#x27;", others[2]),
        ("&quot;", "&#39;", others[3]),
    ] {
        let mut out = Zeroizing::new(Vec::with_capacity(text.len() * 6));
        for c in text.chars() {
            match c {
                '&' => out.extend(b"&amp;"),
                '<' => out.extend(b"&lt;"),
                '>' => out.extend(b"&gt;"),
                '"' => out.extend(double.as_bytes()),
                '\'' => out.extend(single.as_bytes()),
                _ if let Some((_, other)) = others.iter().find(|(from, _)| *from == c) => {
                    out.extend(other.as_bytes());
                }
                _ => out.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        add(out);
    }
}

/// The characters that `value` alone decides when it stands `alignment` bytes after a multiple of
/// three, and a run of the same length modulo four that decodes to the token. Where the run does
/// not begin or end on a byte the token is set off by a dot, because that byte is shared with the
/// characters around it.
fn base64_form(
    engine: &GeneralPurpose,
    value: &[u8],
    token: &[u8],
    alignment: usize,
) -> (Zeroizing<Vec<u8>>, Vec<u8>) {
    let total = alignment + value.len();
    let mut before = Zeroizing::new(vec![0; alignment]);
    before.reserve_exact(value.len());
    before.extend_from_slice(value);
    let mut after = vec![0; alignment];
    if alignment > 0 {
        after.push(b'.');
    }
    after.extend_from_slice(token);
    if !total.is_multiple_of(3) {
        after.push(b'.');
    }
    while after.len() % 3 != total % 3 {
        after.push(b'.');
    }
    (
        whole_characters(engine, &before, alignment),
        whole_characters(engine, &after, alignment).to_vec(),
    )
}

/// The base64 of `bytes` without the characters that hold bits of the first `alignment` bytes or
/// of what follows.
fn whole_characters(engine: &GeneralPurpose, bytes: &[u8], alignment: usize) -> Zeroizing<Vec<u8>> {
    let text = Zeroizing::new(engine.encode(bytes).into_bytes());
    let start = (alignment * 8).div_ceil(6);
    let end = bytes.len() * 8 / 6;
    Zeroizing::new(text[start..end].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::placement::Placement;
    use crate::proxy::policy::Policy;
    use crate::proxy::refusal::Refusal;
    use crate::secret::SecretValue;
    use base64::engine::general_purpose::STANDARD;

    /// Goal: a host whose values can't be searched for is sent nothing.
    #[tokio::test]
    async fn values_that_cant_be_searched_for_close_their_host() {
        let binding = |n: usize| Binding {
            name: format!("KEY{n}"),
            token: SealedToken::generate(),
            value: SecretValue::from(format!("{n:05}-k7Gq2xZp").repeat(5_000)),
            hosts: Vec::new(),
            placement: Placement::default(),
        };
        let bindings = (0..300).map(binding).collect();
        let policy = Policy::new(Vec::new(), bindings, true, true);
        let rules = policy.rules_for(&"api.example".parse().unwrap(), true, false);
        assert_eq!(rules.prepare().await, Err(Refusal::Internal));
        assert_eq!(rules.check_searchable(), Err(Refusal::Internal));
    }

    /// Goal: however many and long the values of a host are, what is searched for has a bound, and
    /// each value is in it at least as it is.
    #[test]
    fn spellings_take_no_more_room_than_there_is() {
        let token = SealedToken::generate();
        let value = b"k7Gq2xZp \"+/".repeat(100);
        let size = |forms: &Forms| forms.keys().map(|one| one.bytes().len()).sum::<usize>();
        let all = forms(&value, &token);
        let common = forms_to(Extent::Common, &value, &token);
        assert!(size(&common) < size(&all) && common.len() > 6);
        for (room, expected) in [
            (usize::MAX, &all),
            (size(&all) - value.len(), &all),
            (size(&all) - value.len() - 1, &common),
            (size(&common) - value.len(), &common),
        ] {
            let (forms, bytes) = forms_within(room, &value, &token);
            assert_eq!(forms.len(), expected.len(), "{room}");
            assert_eq!(bytes + value.len(), size(expected));
        }
        for room in [0, 100, size(&common) - value.len() - 1] {
            let (forms, bytes) = forms_within(room, &value, &token);
            assert_eq!((forms.len(), bytes), (1, 0), "{room}");
            assert!(forms.keys().all(|one| one.bytes() == value));
        }
    }

    /// At every alignment and length the run is found in real base64 and its replacement decodes
    /// to text with the token, with the neighbours unharmed.
    #[test]
    fn base64_is_recognised_and_replaced_at_every_alignment() {
        let token = SealedToken::generate();
        for length in 8..14 {
            let value: Vec<u8> = (0..length).map(|i| b'A' + i).collect();
            let forms = forms(&value, &token);
            for before in 0..6usize {
                for after in 0..4usize {
                    let text = [vec![b'<'; before], value.clone(), vec![b'>'; after]].concat();
                    let mut encoded = STANDARD.encode(&text);
                    let (pattern, replacement) = forms
                        .iter()
                        .find(|(pattern, _)| {
                            encoded.contains(std::str::from_utf8(pattern.bytes()).unwrap())
                        })
                        .unwrap();
                    let pattern = std::str::from_utf8(pattern.bytes()).unwrap();
                    encoded = encoded.replace(pattern, std::str::from_utf8(replacement).unwrap());
                    let lenient = base64::engine::GeneralPurpose::new(
                        &base64::alphabet::STANDARD,
                        base64::engine::GeneralPurposeConfig::new()
                            .with_decode_allow_trailing_bits(true),
                    );
                    let decoded = lenient.decode(&encoded).unwrap();
                    let decoded = String::from_utf8_lossy(&decoded).into_owned();
                    assert!(
                        decoded.contains(&token.to_string()),
                        "{before} {after} {decoded}"
                    );
                    assert!(decoded.starts_with(&"<".repeat(before)), "{decoded}");
                    assert!(decoded.ends_with(&">".repeat(after)), "{decoded}");
                }
            }
        }
    }
}
