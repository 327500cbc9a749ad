//! Bodies through everything that is done to them, as their heads tell it: for any split, any series
//! of content codings and any placement of the secret, the stream becomes what the whole buffer does.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::proxy::SealedToken;
use crate::proxy::coding::tests::{FLAVOURS, Flavour};
use crate::proxy::escape::express;
use crate::proxy::placement::{Placement, PlacementText};
use crate::proxy::policy::testing::secret;
use crate::proxy::policy::{Binding, Policy};

const VALUE: &str = "k7Q!z R/w\"x9+&jP=4<é";
const HOST: &str = "api.example";
/// Pauses of a peer in one body: more of them inside a value would be taken for guesses.
const PAUSES_MAX: usize = 6;

const TYPES: [&str; 7] = [
    "text/plain",
    "application/json",
    "application/vnd.api+json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=b+X",
    "application/grpc",
    "",
];

/// Where the secret may stand, and how often it does in a body of a `POST /v1/x` then.
#[derive(Debug, Clone, Copy)]
enum Where {
    Anywhere,
    InAField,
    InThisMethod,
    InAnotherMethod,
    BelowThisPath,
    BelowAnotherPath,
    Twice,
}

const PLACES: [Where; 7] = [
    Where::Anywhere,
    Where::InAField,
    Where::InThisMethod,
    Where::InAnotherMethod,
    Where::BelowThisPath,
    Where::BelowAnotherPath,
    Where::Twice,
];

impl Where {
    fn placement(self) -> Placement {
        let one = |text: &str| Some(vec![text.to_owned()]);
        let (mut headers, mut methods, mut path_prefix, mut max_per_request) =
            (None, None, None, None);
        match self {
            Self::Anywhere => {}
            Self::InAField => headers = one("x-key"),
            Self::InThisMethod => methods = one("POST"),
            Self::InAnotherMethod => methods = one("GET"),
            Self::BelowThisPath => path_prefix = Some("/v1/"),
            Self::BelowAnotherPath => path_prefix = Some("/v2/"),
            Self::Twice => max_per_request = Some(2),
        }
        Placement::new(&PlacementText {
            headers: headers.as_deref(),
            methods: methods.as_deref(),
            path_prefix,
            max_per_request,
            ..PlacementText::default()
        })
        .unwrap()
    }

    fn times(self) -> usize {
        match self {
            Self::Anywhere | Self::InThisMethod | Self::BelowThisPath => usize::MAX,
            Self::InAField | Self::InAnotherMethod | Self::BelowAnotherPath => 0,
            Self::Twice => 2,
        }
    }
}

/// The rules for a request to the host, anew: what was learned of one body is not held against
/// the next.
fn rules(token: SealedToken, placement: Placement) -> Arc<HostRules> {
    let binding = Binding {
        placement,
        ..secret(token, VALUE, HOST)
    };
    let elsewhere = secret(
        SealedToken::generate(),
        "elsewhere-value-1",
        "other.example",
    );
    let policy = Policy::new(Vec::new(), vec![binding, elsewhere], true, true);
    let rules = policy.rules_for(&HOST.parse().unwrap(), true, false);
    let request = http::Request::post("/v1/x").body(()).unwrap();
    rules.for_request(&request.into_parts().0).unwrap()
}

fn head(content_type: &'static str, codings: &[Flavour]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if !content_type.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    for flavour in codings {
        let name = HeaderValue::from_static(flavour.name());
        headers.append(CONTENT_ENCODING, name);
    }
    headers
}

fn packed(text: &[u8], codings: &[Flavour]) -> Vec<u8> {
    let pack = |text: Vec<u8>, flavour: &Flavour| flavour.pack(&text);
    codings.iter().fold(text.to_vec(), pack)
}

fn opened(bytes: Vec<u8>, codings: &[Flavour]) -> Vec<u8> {
    let unpack = |bytes: Vec<u8>, flavour: &Flavour| flavour.unpack(&bytes);
    codings.iter().rev().fold(bytes, unpack)
}

/// A body in pieces through a transform, with pauses of its peer behind some.
fn run(change: ContentChange, body: &[u8], cuts: &[(Index, bool)]) -> Option<Vec<u8>> {
    let mut transform = change.transform.transform;
    let mut cuts: Vec<(usize, bool)> = cuts
        .iter()
        .map(|(at, pause)| (at.index(body.len() + 1), *pause))
        .collect();
    cuts.push((body.len(), false));
    cuts.sort_unstable();
    let (mut out, mut from, mut pauses) = (Vec::new(), 0, 0);
    for (to, pause) in cuts {
        for step in body[from..to].chunks(transform.step_bytes_max()) {
            transform.push(step, &mut out).ok()?;
            while transform.has_more() {
                transform.push(&[], &mut out).ok()?;
            }
        }
        if pause && pauses < PAUSES_MAX {
            pauses += 1;
            transform.flush(&mut out).ok()?;
        }
        from = to;
    }
    transform.finish(&mut out).ok()?;
    Some(out)
}

/// The body of a type, around a text.
fn framed(content_type: &str, text: &[u8]) -> Vec<u8> {
    match content_type {
        "application/grpc" => {
            // One message with one string of up to 16 KiB (field 1).
            let length = text.len();
            let mut message = vec![0x0a, (length & 0x7f) as u8 | 0x80, (length >> 7) as u8];
            message.extend_from_slice(text);
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            [&[0], &length[..], &message].concat()
        }
        other if other.starts_with("multipart") => [
            b"--b+X\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n",
            text,
            b"\r\n--b+X\r\nContent-Type: application/json\r\n\r\n\"",
            text,
            b"\"\r\n--b+X--\r\n",
        ]
        .concat(),
        _ => text.to_vec(),
    }
}

/// Words of a body; `0` stands for the token, `1` for half of it, and so on.
fn text(words: &[(u8, String)], token: &SealedToken) -> Vec<u8> {
    let token = token.to_string();
    let (first, last) = token.split_at(token.len() / 2);
    let mut out = Vec::new();
    for (kind, word) in words {
        match kind {
            0 | 1 => out.extend(token.bytes()),
            2 => out.extend(first.bytes()),
            3 => out.extend(last.bytes()),
            4 => out.extend(SealedToken::generate().to_string().bytes()),
            5 => out.extend(VALUE.bytes()),
            6 => out.extend(VALUE.bytes().take(9)),
            7 => out.extend(VALUE.bytes().skip(9)),
            8 => out.extend(serde_json::to_string(VALUE).unwrap().bytes()),
            9 => out.extend(STANDARD.encode(format!("a{VALUE}bc")).bytes()),
            10 => out.extend(hex::encode(VALUE).bytes()),
            11 => out.extend(b"\"access_token\": \"ya29."),
            _ => out.extend(word.bytes()),
        }
    }
    out
}

fn words() -> impl Strategy<Value = Vec<(u8, String)>> {
    prop::collection::vec((0..16_u8, "[ -~é]{0,12}"), 0..24)
}

fn codings() -> impl Strategy<Value = Vec<Flavour>> {
    prop::collection::vec(select(&FLAVOURS[..]), 0..=2)
}

fn cuts() -> impl Strategy<Value = Vec<(Index, bool)>> {
    prop::collection::vec((any::<Index>(), any::<bool>()), 0..12)
}

/// What the text of a request becomes, told without any stream.
fn expected(text: &[u8], token: &SealedToken, place: Place, times: usize) -> Vec<u8> {
    let (text, token) = (std::str::from_utf8(text).unwrap(), token.to_string());
    let value = express(VALUE.as_bytes(), place).unwrap();
    let value = std::str::from_utf8(&value).unwrap();
    text.replacen(&token, value, times.min(1_000_000))
        .into_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Goal: what a request becomes depends on its text alone. Method: any text of tokens and parts of
    /// tokens, in any type, packed by other libraries than ours, cut and paused anywhere, for any
    /// placement; against the plain body in one piece, and against a plain replacement of text.
    #[test]
    fn any_request_becomes_what_its_whole_does(
        words in words(),
        content_type in select(&TYPES[..]),
        codings in codings(),
        place in select(&PLACES[..]),
        cuts in cuts(),
    ) {
        let token = SealedToken::generate();
        let rules = rules(token, place.placement());
        let change = |codings: &[Flavour]| {
            of_request(&head(content_type, codings), &rules, &Arc::default()).unwrap().unwrap()
        };
        let text = text(&words, &token);
        let body = framed(content_type, &text);
        // gRPC has codings of its own.
        let codings = if content_type == "application/grpc" { Vec::new() } else { codings };
        let whole = run(change(&[]), &body, &[]);
        let cut = run(change(&codings), &packed(&body, &codings), &cuts);
        let cut = cut.map(|cut| opened(cut, &codings));
        prop_assert_eq!(&whole, &cut);
        if framed(content_type, b"").is_empty() {
            let place_of_text = place_of(&essence_of(content_type.as_bytes()));
            let expected = expected(&text, &token, place_of_text, place.times());
            prop_assert_eq!(whole, Some(expected));
        }
    }

    /// Goal: the same of answers, sealed or not also in what they hand out; and no value is in them.
    #[test]
    fn any_answer_becomes_what_its_whole_does(
        words in words(),
        content_type in select(&TYPES[..]),
        codings in codings(),
        seal_tokens in any::<bool>(),
        cuts in cuts(),
    ) {
        let token = SealedToken::generate();
        let placement = Placement::new(&PlacementText {
            seal_tokens,
            ..PlacementText::default()
        });
        let rules = rules(token, placement.unwrap());
        let change = |codings: &[Flavour]| {
            of_response(&head(content_type, codings), true, &rules, &Arc::default()).unwrap()
        };
        let body = framed(content_type, &text(&words, &token));
        let codings = if content_type == "application/grpc" { Vec::new() } else { codings };
        // What is handed out in it is known from then on.
        run(change(&[]), &body, &[]);
        let whole = run(change(&[]), &body, &[]);
        let cut = run(change(&codings), &packed(&body, &codings), &cuts);
        let cut = cut.map(|cut| opened(cut, &codings));
        prop_assert_eq!(&whole, &cut);
        if let Some(whole) = whole {
            for value in [VALUE.to_owned(), hex::encode(VALUE)] {
                prop_assert!(memchr::memmem::find(&whole, value.as_bytes()).is_none());
            }
        }
    }
}
