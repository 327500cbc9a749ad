use proptest::prelude::*;

use super::*;
use crate::proxy::policy::testing::{Fixture, fixture};

fn new(fixture: &Fixture, content_type: &str) -> Option<Multipart> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
    Multipart::of(&headers, &fixture.rules, &Arc::default())
}

fn push<'a>(
    fixture: &Fixture,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, StreamError> {
    let mut body = new(fixture, "multipart/form-data; boundary=\"b+X\"").unwrap();
    let mut out = Vec::new();
    for piece in pieces {
        body.push(piece, &mut out)?;
    }
    body.finish(&mut out)?;
    Ok(out)
}

/// What becomes of `body`, in which `$` is the token, at every size of piece.
fn run(value: &str, body: &str) -> Result<String, String> {
    let fixture = fixture("api.example", value);
    let body = body.replace('$', &fixture.token.to_string());
    let whole = push(&fixture, [body.as_bytes()]).map_err(|error| error.to_string());
    for size in [1, 2, 3, 5, 7, 11, 43, 100] {
        let cut = push(&fixture, body.as_bytes().chunks(size)).map_err(|error| error.to_string());
        assert_eq!(cut, whole, "{size}");
    }
    whole.map(|out| String::from_utf8(out).unwrap())
}

const ODD: &str = "q\"u&o te\r\n-value";

#[test]
fn values_are_written_as_their_part_needs_them() {
    let body = |raw: &str, json: &str, form: &str| {
        format!(
            "preamble {raw}\r\n--b+X\r\n\r\nbare {raw}\r\n--b+X \t\r\n\
             Content-Disposition: form-data; name=\"a\"\r\n\r\nplain {raw}\r\n--b+X\r\n\
             content-TYPE: Application/JSON; charset=utf-8\r\n\r\n{{\"k\":\"{json}\"}}\r\n--b+X\n\
             Content-Type: application/x-www-form-urlencoded\n\nk={form}\n--b+X\r\n\
             Content-Type: application/problem+json\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\
             \"{json}\"\r\n--b+XY {raw}\r\n--b+X--\r\nepilogue {raw}"
        )
    };
    // A line that only begins like a boundary is text of its part, escaped as it.
    let sealed = body("$", "$", "$");
    let (json, form) = ("q\\\"u&o te\\r\\n-value", "q%22u%26o%20te%0D%0A-value");
    let expected = body(ODD, json, form);
    let expected = expected.replace(&format!("--b+XY {ODD}"), &format!("--b+XY {json}"));
    assert_eq!(run(ODD, &sealed).unwrap(), expected);
}

#[test]
fn a_value_in_the_fields_of_a_part_keeps_to_their_grammar() {
    let body = "--b+X\r\nContent-Disposition: form-data; name=\"$\"; filename=\"a\\\"b\"\r\n\r\nx\r\n--b+X--";
    assert_eq!(run("a b;c=d", body).unwrap(), body.replace('$', "a b;c=d"));
    for value in ["quo\"te", "back\\slash"] {
        assert!(
            run(value, body).unwrap_err().contains("multipart"),
            "{value}"
        );
    }
    let refused = run("line\r\nbreak", body).unwrap_err();
    assert!(
        refused.contains("can't be written in a header"),
        "{refused}"
    );
}

/// Goal: no value ends its part, alone, with the text around it, or with another value; not even
/// in a body that is broken.
#[test]
fn a_value_that_makes_a_boundary_is_refused() {
    let part = "--b+X\r\n\r\n";
    for (value, text) in [
        ("x\r\n--b+X\r\ny", "$"),
        ("x\n--b+X--", "$"),
        ("--b+X--", "$"),
        ("--b+X--", "text\r\n$"),
        ("--b+", "text\r\n$X"),
        ("b+X-----", "text\r\n--$"),
        ("\r\n-value", "$-b+X"),
        ("\n-----", "$-b+X"),
        ("-b+X\r\n-", "$$"),
    ] {
        let body = format!("{part}{text}\r\n--b+X--\r\n");
        let refused = run(value, &body);
        let made =
            body.replace('$', value).matches("\n--b+X").count() > body.matches("\n--b+X").count();
        assert_eq!(refused.is_err(), made, "{value:?} in {text:?}: {refused:?}");
    }
    for body in [
        "no boundary $ at all",
        "--b+X\r\nunfinished: head $",
        "--b+X--\r\nepilogue $",
        "--b+X $\r\n\r\ntext $",
    ] {
        assert!(run("harmless-value", body).is_ok(), "{body}");
        assert!(run("x\r\n--b+X\r\n", body).is_err(), "{body}");
    }
}

/// What is no proper multipart is plain bytes, all of it, with every token replaced.
#[test]
fn malformed_bodies_are_plain_bytes() {
    for body in [
        "",
        "-",
        "--b+",
        "--b+X",
        "--b+X-",
        "--b+X--",
        "--b+X\r\n",
        "--b+X\r\nno: end $",
        "$ --b+X in the middle $",
        "--b+X--\r\n--b+X\r\ncontent-type: application/json\r\n\r\n\"$\"",
    ] {
        let expected = body.replace('$', "\"quoted\"");
        assert_eq!(run("\"quoted\"", body).unwrap(), expected, "{body}");
    }
    let long = format!("--b+X\r\nx: {}$\r\n\r\n$", "y".repeat(HEAD_BYTES_MAX));
    let fixture = fixture("api.example", "\"quoted\"");
    let token = fixture.token.to_string();
    let sealed = long.replace('$', &token);
    let mut body = new(&fixture, "multipart/mixed; boundary=b+X").unwrap();
    let mut out = Vec::new();
    for piece in sealed.as_bytes().chunks(10_000) {
        body.push(piece, &mut out).unwrap();
        assert!(body.held.len() <= HEAD_BYTES_MAX + 10_000);
    }
    body.finish(&mut out).unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        long.replace('$', "\"quoted\"")
    );
}

/// A value can't be written into an encoded part; without one the part passes.
#[test]
fn encoded_parts_are_refused_when_a_token_is_in_them() {
    let body = "--b+X\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\na=3D$\r\n--b+X--";
    assert!(run("some-value", body).is_err());
    let plain = body.replace('$', "b");
    assert_eq!(run("some-value", &plain).unwrap(), plain);
}

#[test]
fn the_boundary_is_read_from_the_type() {
    let fixture = fixture("api.example", "some-value");
    let mark = |content_type: &str| {
        new(&fixture, content_type).map(|body| String::from_utf8(body.mark).unwrap())
    };
    for (content_type, boundary) in [
        ("multipart/form-data; boundary=abc", "abc"),
        ("Multipart/Mixed;charset=x; BOUNDARY=\"a;b\"", "a;b"),
        (
            "multipart/related; type=\"a;boundary=no\"; boundary=yes ;x",
            "yes",
        ),
        ("multipart/related; flag; boundary=\"a\\\"b\"", "a\"b"),
    ] {
        assert_eq!(mark(content_type), Some(format!("\n--{boundary}")));
    }
    let token = format!("multipart/mixed; boundary={}", fixture.token);
    for none in [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\"open",
        "text/plain; boundary=x",
        &token,
    ] {
        assert_eq!(mark(none), None, "{none}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Any pile of pieces of a multipart body, proper or not, gives the same in any cut.
    #[test]
    fn any_cut_of_any_body_equals_the_whole(
        words in prop::collection::vec(0usize..12, 0..30),
        sizes in prop::collection::vec(1usize..60, 1..6),
    ) {
        const WORDS: [&str; 11] = [
            "\r\n--b+X\r\n", "\r\n--b+X--", "\r\n", "\n", "-", "--b+X", "Content-Type: application/json\r\n\r\n",
            "text", "osb_sealed_", "\r", "\r\n\r\n",
        ];
        let fixture = fixture("api.example", "a \"value\" b+X");
        let token = fixture.token.to_string();
        let body: String = words.iter().map(|word| WORDS.get(*word).copied().unwrap_or(&token)).collect();
        let whole = push(&fixture, [body.as_bytes()]).map_err(|error| error.to_string());
        let (mut pieces, mut rest) = (Vec::new(), body.as_bytes());
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, left) = rest.split_at((*size).min(rest.len()));
            pieces.push(piece);
            rest = left;
        }
        prop_assert_eq!(push(&fixture, pieces).map_err(|error| error.to_string()), whole);
    }
}
