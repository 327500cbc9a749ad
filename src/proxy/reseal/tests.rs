//! What the search for values promises, at every cut.

use super::*;
use crate::proxy::SealedToken;
use crate::secret::SecretValue;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

fn binding(name: &str, value: &str) -> Binding {
    Binding {
        name: name.to_owned(),
        token: SealedToken::generate(),
        value: SecretValue::from(value.to_owned()),
        hosts: Vec::new(),
        placement: crate::proxy::Placement::default(),
    }
}

fn run(patterns: &Arc<Patterns>, pieces: &[&[u8]]) -> Vec<u8> {
    let mut stream = Resealer::new(patterns.clone(), Arc::default());
    let mut out = Vec::new();
    for piece in pieces {
        stream.push(piece, &mut out).unwrap();
        assert!(stream.held.len() < patterns.longest);
    }
    stream.finish(&mut out).unwrap();
    out
}

/// All spellings of a value with every awkward character, cut everywhere: never a value,
/// always the same answer.
#[test]
fn every_spelling_is_resealed_at_every_cut() {
    let value = "s3cr/et+\"<v>&é'\\ ~x";
    let one = binding("ONE", value);
    let patterns = Patterns::new([&one].into_iter()).unwrap();
    let json = serde_json::to_string(value).unwrap();
    let full: String = value
        .encode_utf16()
        .map(|unit| format!("\\u{unit:04x}"))
        .collect();
    let marks = |escape: fn(u16) -> String| -> String {
        let plain = |unit: u16| char::from_u32(unit.into()).filter(char::is_ascii_alphanumeric);
        let one = |unit| plain(unit).map_or_else(|| escape(unit), String::from);
        value.encode_utf16().map(one).collect()
    };
    let form: String = "s3cr%2Fet%2B%22%3Cv%3E%26%C3%A9%27%5C+%7Ex".to_owned();
    let spellings = [
        value.to_owned(),
        json.trim_matches('"').to_owned(),
        json.trim_matches('"').replace('/', "\\/"),
        "s3cr/et+\\\"\\u003cv\\u003e\\u0026é'\\\\ ~x".to_owned(),
        "s3cr/et+\\\"<v>&\\u00e9'\\\\ ~x".to_owned(),
        // .NET and Gson.
        "s3cr/et\\u002B\\u0022\\u003Cv\\u003E\\u0026\\u00E9\\u0027\\\\ ~x".to_owned(),
        "s3cr/et+\\\"\\u003cv\\u003e\\u0026é\\u0027\\\\ ~x".to_owned(),
        // Everything but letters and digits.
        marks(|unit| format!("\\u{unit:04x}")),
        marks(|unit| format!("\\u{unit:04X}")),
        full,
        form.clone(),
        form.to_lowercase(),
        form.replace('+', "%20").replace("%7E", "~"),
        form.replace("%7E", "~"),
        form.replace("%2F", "/")
            .replace("%7E", "~")
            .replace('+', "%20"),
        "s3cr/et+&quot;&lt;v&gt;&amp;é&#39;\\ ~x".to_owned(),
        form.replace('+', "%20")
            .replace("%7E", "~")
            .replace('%', "%25"),
        "s3cr/et&#43;&#34;&lt;v&gt;&amp;é&#39;\\ ~x".to_owned(),
        "s3cr&#x2F;et+&quot;&lt;v&gt;&amp;é&#39;\\ ~x".to_owned(),
        hex::encode(value),
        hex::encode_upper(value),
        value.bytes().map(|b| format!("%{b:02X}")).collect(),
        STANDARD.encode(value),
        STANDARD.encode(format!("a{value}")),
        STANDARD.encode(format!("ab{value}cd")),
        URL_SAFE_NO_PAD.encode(format!("user:{value}")),
    ];
    for spelling in spellings {
        let text = format!("s3cr/{spelling}{spelling}s3cr/et");
        let bytes = text.as_bytes();
        let whole = run(&patterns, &[bytes]);
        let seen = String::from_utf8_lossy(&whole).into_owned();
        assert!(!seen.contains(&spelling), "{spelling} stayed in {seen}");
        for cut in 0..=bytes.len() {
            assert_eq!(
                run(&patterns, &[&bytes[..cut], &bytes[cut..]]),
                whole,
                "{spelling} {cut}"
            );
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(run(&patterns, &single), whole);
    }
}

/// UTF-16 comes back as UTF-16, so that what reads it reads the token.
#[test]
fn wide_text_is_resealed() {
    let one = binding("ONE", "Real-välue-0001");
    let patterns = Patterns::new([&one].into_iter()).unwrap();
    for order in [u16::to_le_bytes as fn(u16) -> [u8; 2], u16::to_be_bytes] {
        let wide = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(order).collect() };
        let (sent, expected) = ("<Real-välue-0001>", format!("<{}>", one.token));
        assert_eq!(run(&patterns, &[&wide(sent)]), wide(&expected));
    }
}

/// HTTP has no upper case in the names of fields.
#[test]
fn a_value_is_seen_in_the_name_of_a_field() {
    let one = binding("ONE", "Ghp_AbCdEfGh0123");
    let patterns = Patterns::new([&one].into_iter()).unwrap();
    assert!(patterns.is_in_name("x-ghp_abcdefgh0123-y"));
    assert!(!patterns.is_in_name("x-ghp_abcdefgh012"));
}

/// A value inside another, and values that overlap, leave nothing of either.
#[test]
fn the_first_and_longest_find_wins() {
    let inner = binding("INNER", "bdfhjlnpr");
    let outer = binding("OUTER", "abdfhjlnprtv");
    let patterns = Patterns::new([&inner, &outer].into_iter()).unwrap();
    let text = b"-abdfhjlnprtv-abdfhjlnprt-bdfhjlnpr-abdfhjlnpabdfhjlnprtv";
    let (i, o) = (inner.token, outer.token);
    let expected = format!("-{o}-a{i}t-{i}-abdfhjlnp{o}");
    for size in 1..text.len() {
        let pieces: Vec<&[u8]> = text.chunks(size).collect();
        assert_eq!(
            String::from_utf8(run(&patterns, &pieces)).unwrap(),
            expected
        );
    }
}

/// An event stream must not wait for bytes that may never come.
#[test]
fn only_the_beginning_of_a_value_is_held_back() {
    let one = binding("ONE", "real-value-0001");
    let patterns = Patterns::new([&one].into_iter()).unwrap();
    let mut stream = Resealer::new(patterns, Arc::default());
    let mut out = Vec::new();
    stream.push(b"data: hello\n\n", &mut out).unwrap();
    assert_eq!(out, b"data: hello\n\n");
    stream.push(b"data: real-va", &mut out).unwrap();
    assert!(out.ends_with(b"data: "));
    stream.push(b"lid\n\n", &mut out).unwrap();
    assert!(out.ends_with(b"data: real-valid\n\n"));
}

/// A program that has a host echo its guesses and watches where the answer pauses is stopped
/// before it knows much; values that really come in pieces are not guesses.
#[test]
fn guesses_at_pauses_are_stopped() {
    let value = "k7Gq2xZpW9aB4nRt6mLsV3cD8fHj";
    let one = binding("ONE", value);
    let answer = |patterns: &Arc<Patterns>, pieces: &[&str]| {
        let mut stream = Resealer::new(patterns.clone(), Arc::default());
        let mut out = Vec::new();
        for piece in pieces {
            stream.push(piece.as_bytes(), &mut out)?;
            stream.flush(&mut out)?;
        }
        Ok::<_, StreamError>(out)
    };
    for broken_off in [false, true] {
        let patterns = Patterns::new([&one].into_iter()).unwrap();
        for cut in 1..value.len() {
            let whole = answer(&patterns, &[&value[..cut], &value[cut..], " "]).unwrap();
            assert!(whole.starts_with(b"osb_sealed_"));
        }
        assert!(patterns.check_guesses().is_ok());
        let known = (1..value.len()).find(|&cut| {
            let rest: &[&str] = if broken_off { &[] } else { &["-", " "] };
            answer(&patterns, &[&[&value[..cut]], rest].concat()).is_err()
                || patterns.check_guesses().is_err()
        });
        assert!(known.is_some_and(|cut| cut < 18), "{known:?}");
        assert!(answer(&patterns, &["harmless"]).is_err());
    }
}

#[test]
fn values_too_short_to_recognise_are_left_out() {
    let short = binding("SHORT", "1234567");
    assert!(Patterns::new([&short].into_iter()).is_none());
}
