use proptest::prelude::*;

use super::*;
use crate::proxy::coding::{ALL, Packer};
use crate::proxy::policy::testing::{Fixture, fixture};

const VALUE: &str = "real-value-0001, and long enough to make a length of one byte two: 0123456789012345678901234567890123456789";

/// What a message is made of.
#[derive(Debug, Clone)]
enum Field {
    Number(u64),
    Fixed(u64),
    Text(String),
    Packed(Vec<u8>),
    Message(Vec<Field>),
    Group(Vec<Field>),
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The message on the wire, with `secret` wherever a text has `$`.
fn encode(fields: &[Field], secret: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, field) in (1u64..).map(|number| number * 7).zip(fields) {
        let mut bytes = |bytes: &[u8]| {
            varint(&mut out, number << 3 | 2);
            varint(&mut out, bytes.len() as u64);
            out.extend_from_slice(bytes);
        };
        match field {
            Field::Text(text) => bytes(text.replace('$', secret).as_bytes()),
            Field::Packed(packed) => bytes(packed),
            Field::Message(fields) => bytes(&encode(fields, secret)),
            Field::Number(value) => {
                varint(&mut out, number << 3);
                varint(&mut out, *value);
            }
            Field::Fixed(value) => {
                varint(&mut out, number << 3 | 1);
                out.extend(value.to_le_bytes());
            }
            Field::Group(fields) => {
                varint(&mut out, number << 3 | 3);
                out.extend(encode(fields, secret));
                varint(&mut out, number << 3 | 4);
            }
        }
    }
    out
}

fn framed(flags: u8, message: &[u8]) -> Vec<u8> {
    let mut out = vec![flags];
    out.extend((message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    out
}

fn up(fixture: &Fixture, coding: Option<Coding>) -> Messages {
    request(b"application/grpc", coding, &fixture.rules, &Arc::default())
}

fn down(fixture: &Fixture, coding: Option<Coding>) -> Messages {
    let patterns = fixture.rules.patterns().unwrap();
    response(b"application/grpc", coding, patterns, &Arc::default())
}

fn run(mut messages: Messages, body: &[u8], size: usize) -> Result<Vec<u8>, StreamError> {
    let mut out = Vec::new();
    for piece in body.chunks(size.min(messages.step_bytes_max())) {
        messages.push(piece, &mut out)?;
        while messages.has_more() {
            messages.push(&[], &mut out)?;
        }
        messages.flush(&mut out)?;
    }
    messages.finish(&mut out)?;
    Ok(out)
}

/// Goal: a text deep inside changes its length, and so does every message around it, also where
/// the length takes another byte; what is beside it stays.
#[test]
fn every_length_around_a_change_is_repaired() {
    let fixture = fixture("api.example", VALUE);
    let token = fixture.token.to_string();
    let mut fields = vec![Field::Number(300), Field::Text("Bearer $".to_owned())];
    for level in 0..20 {
        fields = vec![
            Field::Fixed(u64::MAX - level),
            Field::Message(fields),
            Field::Packed(vec![0xff, 1, 0x80]),
        ];
    }
    let (sealed, real) = (encode(&fields, &token), encode(&fields, VALUE));
    let body = [framed(0, &sealed), framed(0, b""), framed(0, &sealed)].concat();
    let expected = [framed(0, &real), framed(0, b""), framed(0, &real)].concat();
    for size in [1, 4, 5, 6, 100, 10_000] {
        assert_eq!(run(up(&fixture, None), &body, size).unwrap(), expected);
        assert_eq!(run(down(&fixture, None), &expected, size).unwrap(), body);
    }
}

/// Compressed messages are opened and closed again; untouched ones stay as they were packed.
#[test]
fn compressed_messages_are_changed_inside() {
    let fixture = fixture("api.example", VALUE);
    let token = fixture.token.to_string();
    let fields = [Field::Message(vec![Field::Text("<$>".to_owned())])];
    for coding in ALL {
        let packer = Packer::of(coding);
        let other = packer.pack(b"nothing in here").unwrap();
        let sealed = packer.pack(&encode(&fields, &token)).unwrap();
        let body = [framed(1, &other), framed(1, &sealed)].concat();
        let out = run(up(&fixture, Some(coding)), &body, 9).unwrap();
        let rest = out.strip_prefix(framed(1, &other).as_slice()).unwrap();
        assert_eq!((rest[0], rest[1..5].len()), (1, 4));
        let (text, _) = unpack(coding, &rest[5..], 9999).unwrap().unwrap();
        assert_eq!(text, encode(&fields, VALUE), "{coding:?}");
    }
}

/// JSON over gRPC is escaped as JSON, and the trailers of gRPC-Web are text.
#[test]
fn messages_that_are_text_are_changed_as_text() {
    let fixture = fixture("api.example", "quo\"ted-value-0001");
    let tally = Arc::default();
    let json = request(b"application/grpc+json", None, &fixture.rules, &tally);
    let body = framed(0, format!("{{\"k\":\"{}\"}}", fixture.token).as_bytes());
    let out = run(json, &body, 3).unwrap();
    assert_eq!(out, framed(0, br#"{"k":"quo\"ted-value-0001"}"#));

    let trailers = b"grpc-status: 3\r\ngrpc-message: quo\"ted-value-0001?\r\n";
    let out = run(down(&fixture, None), &framed(0x80, trailers), 3).unwrap();
    let expected = format!("grpc-status: 3\r\ngrpc-message: {}?\r\n", fixture.token);
    assert_eq!(out, framed(0x80, expected.as_bytes()));
}

/// A message beyond the bound passes while there is nothing in it, however large, and is broken
/// off at the first token or value.
#[test]
fn long_messages_stream_until_something_would_be_swapped() {
    let fixture = fixture("api.example", VALUE);
    let token = fixture.token.to_string();
    let padding = "x".repeat(MESSAGE_BYTES_MAX);
    let plain = [
        framed(0, padding.repeat(2).as_bytes()),
        framed(0, b"\x0a\x01y"),
    ]
    .concat();
    assert_eq!(run(up(&fixture, None), &plain, 65_536).unwrap(), plain);
    assert_eq!(run(down(&fixture, None), &plain, 65_536).unwrap(), plain);
    for (messages, secret) in [
        (
            up as fn(&Fixture, Option<Coding>) -> Messages,
            token.as_str(),
        ),
        (down, VALUE),
    ] {
        let text = format!("{padding}{secret}{padding}");
        for size in [1000, 65_536] {
            let mut stream = messages(&fixture, None);
            let mut out = Vec::new();
            let body = framed(0, text.as_bytes());
            let broken = body
                .chunks(size)
                .try_for_each(|piece| stream.push(piece, &mut out));
            let refused = matches!(broken, Err(StreamError::Refused(Refusal::MessageLength)));
            assert!(refused && out.len() <= padding.len() + 5);
            assert!(!out.ends_with(b"real") && !out.ends_with(b"0123"));
        }
    }
    // Inside compression its length is not known before, so it is bounded as well.
    let bomb = Packer::of(Coding::Zstd)
        .pack(padding.repeat(2).as_bytes())
        .unwrap();
    let refused = run(up(&fixture, Some(Coding::Zstd)), &framed(1, &bomb), 999);
    assert!(matches!(
        refused,
        Err(StreamError::Refused(Refusal::MessageLength))
    ));
}

/// Goal: a message that is large and deep is changed like any other; so is one with values in it
/// that fill most of it.
#[test]
fn large_messages_are_changed_at_any_depth() {
    let fixture = fixture("api.example", VALUE);
    let token = fixture.token.to_string();
    let padding = Field::Text("y".repeat(3 * 1024 * 1024 + 512 * 1024));
    let mut fields = vec![Field::Text("<$>".to_owned()), padding];
    for _ in 0..50 {
        fields = vec![Field::Message(fields)];
    }
    let (sealed, real) = (encode(&fields, &token), encode(&fields, VALUE));
    let (sealed, real) = (framed(0, &sealed), framed(0, &real));
    assert_eq!(run(up(&fixture, None), &sealed, 65_536).unwrap(), real);
    assert_eq!(run(down(&fixture, None), &real, 65_536).unwrap(), sealed);

    let fields: Vec<_> = (0..8_000).map(|_| Field::Text("$".to_owned())).collect();
    let (sealed, real) = (encode(&fields, &token), encode(&fields, VALUE));
    let (sealed, real) = (framed(0, &sealed), framed(0, &real));
    assert_eq!(run(up(&fixture, None), &sealed, 65_536).unwrap(), real);
    assert_eq!(run(down(&fixture, None), &real, 65_536).unwrap(), sealed);
}

/// Goal: no message makes the proxy hold more than it may, however much longer its values are.
#[test]
fn a_message_of_tokens_does_not_grow_without_bound() {
    let fixture = fixture("api.example", &"k7Gq2xZp".repeat(1000));
    let token = fixture.token.to_string();
    let fields: Vec<_> = (0..5_000).map(|_| Field::Text("$".to_owned())).collect();
    let body = framed(0, &encode(&fields, &token));
    let refused = run(up(&fixture, None), &body, 65_536);
    assert!(matches!(
        refused,
        Err(StreamError::Refused(Refusal::MessageLength))
    ));
}

/// Goal: one push that holds many messages, each of which opens to a long text, is worked off a
/// message at a time; and all of them together expand no more than any body may.
#[test]
fn a_push_of_many_messages_takes_many_steps() {
    let fixture = fixture("api.example", VALUE);
    let text = encode(&[Field::Text("z".repeat(200_000))], "");
    let packed = framed(1, &Packer::of(Coding::Gzip).pack(&text).unwrap());
    let body = packed.repeat(60_000 / packed.len());
    let mut messages = up(&fixture, Some(Coding::Gzip));
    let (mut out, mut steps) = (Vec::new(), 1);
    messages.push(&body, &mut out).unwrap();
    while messages.has_more() {
        assert_eq!(out.len(), steps * packed.len(), "one message a step");
        messages.push(&[], &mut out).unwrap();
        steps += 1;
    }
    assert_eq!((out, steps), (body, 60_000 / packed.len()));

    let text = vec![b'z'; MESSAGE_BYTES_MAX];
    let packed = Packer::of(Coding::Zstd).pack(&text).unwrap();
    assert!(packed.len() < text.len() / 2000, "{}", packed.len());
    let refused = run(up(&fixture, Some(Coding::Zstd)), &framed(1, &packed), 99);
    assert!(matches!(
        refused,
        Err(StreamError::Refused(Refusal::Expansion))
    ));
}

/// Goal: what a compressed form carries beside its text tells no value either.
#[test]
fn a_value_beside_a_compressed_text_is_refused() {
    let fixture = fixture("api.example", VALUE);
    // A gzip member whose header has a file's name (RFC 1952, section 2.3).
    let plain = Packer::of(Coding::Gzip).pack(b"nothing in here").unwrap();
    let mut named = plain[..10].to_vec();
    named[3] |= 8;
    named.extend(format!("{VALUE}\0").bytes());
    named.extend(&plain[10..]);
    let refused = run(down(&fixture, Some(Coding::Gzip)), &framed(1, &named), 99);
    assert!(matches!(
        refused,
        Err(StreamError::Refused(Refusal::ResponseCoding))
    ));
    // A skippable frame before the one with the text (RFC 8878, section 3.1.2).
    let mut skipped = vec![0x50, 0x2a, 0x4d, 0x18];
    skipped.extend((VALUE.len() as u32).to_le_bytes());
    skipped.extend(VALUE.bytes());
    skipped.extend(Packer::of(Coding::Zstd).pack(b"nothing in here").unwrap());
    assert!(run(down(&fixture, Some(Coding::Zstd)), &framed(1, &skipped), 99).is_err());
}

/// What can't be read as messages ends the stream; nothing of it passes unread.
#[test]
fn odd_framing_is_refused() {
    let fixture = fixture("api.example", VALUE);
    let whole = framed(0, b"abc");
    for end in 1..whole.len() {
        assert!(
            run(down(&fixture, None), &whole[..end], 2).is_err(),
            "{end}"
        );
    }
    for flags in [2, 4, 0x40, 0x82] {
        assert!(run(down(&fixture, None), &framed(flags, b"abc"), 2).is_err());
    }
    assert!(run(down(&fixture, None), &framed(1, b"abc"), 2).is_err());
    assert!(run(down(&fixture, Some(Coding::Gzip)), &framed(1, b"abc"), 2).is_err());
    assert!(run(down(&fixture, None), b"", 2).unwrap().is_empty());
}

/// Goal: a value that no field holds as a whole is still not given out.
#[test]
fn a_value_across_fields_is_resealed() {
    let fixture = fixture("api.example", "k7Q!zR\x12\x03wX9jP4");
    let message = [&b"\x0a\x06k7Q!zR\x12\x03wX9"[..], b"\x18j"].concat();
    assert!(wire::reads(&message));
    let text = [&message[..2], b"k7Q!zR\x12\x03wX9jP4"].concat();
    let out = run(down(&fixture, None), &framed(0, &text), 4).unwrap();
    let expected = [&message[..2], fixture.token.to_string().as_bytes()].concat();
    assert_eq!(out, framed(0, &expected));
}

#[test]
fn the_head_says_what_is_grpc_and_how_it_is_packed() {
    for (essence, expected) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc-web", true),
        ("application/grpc-web+proto", true),
        ("application/grpc-web-text", false),
        ("application/grpcx", false),
        ("application/json", false),
    ] {
        assert_eq!(is_grpc(essence.as_bytes()), expected, "{essence}");
    }
    let mut headers = HeaderMap::new();
    assert_eq!(coding(&headers), Some(None));
    for (name, expected) in [
        ("identity", Some(None)),
        ("gzip", Some(Some(Coding::Gzip))),
        ("snappy", None),
    ] {
        headers.insert(ENCODING, HeaderValue::from_static(name));
        assert_eq!(coding(&headers), expected, "{name}");
    }
    limit_codings(&mut headers);
    assert!(!headers.contains_key(&ACCEPT_ENCODING));
    for (offered, expected) in [
        ("identity, deflate, gzip, snappy", "identity,deflate,gzip"),
        ("snappy", "identity"),
    ] {
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(offered));
        limit_codings(&mut headers);
        assert_eq!(headers[&ACCEPT_ENCODING], expected);
    }
}

/// Messages being gathered count against their sandbox.
#[test]
fn gathered_messages_are_counted() {
    let fixture = fixture("api.example", VALUE);
    let tally = Arc::new(Tally::of(Share::new()));
    let mut open = Vec::new();
    let part = framed(0, &vec![b'x'; MESSAGE_BYTES_MAX]);
    let part = &part[..part.len() - 1];
    let refused = loop {
        let mut stream = request(b"application/grpc", None, &fixture.rules, &tally);
        match stream.push(part, &mut Vec::new()) {
            Ok(()) => open.push(stream),
            Err(error) => break error,
        }
        assert!(open.len() < 200);
    };
    assert!(matches!(refused, StreamError::Refused(Refusal::BodyMemory)));
    assert!(open.len() > 100);
    drop(open);
    let mut stream = request(b"application/grpc", None, &fixture.rules, &tally);
    stream.push(part, &mut Vec::new()).unwrap();
}

fn message() -> impl Strategy<Value = Vec<Field>> {
    let text = prop::sample::select(vec![
        "$",
        "Bearer $",
        "{\"key\": \"$\", \"other\": [1, 2]}",
        "",
        "plain",
        "é $ $",
    ]);
    let leaf = prop_oneof![
        any::<u64>().prop_map(Field::Number),
        any::<u64>().prop_map(Field::Fixed),
        text.prop_map(|text| Field::Text(text.to_owned())),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(Field::Packed),
    ];
    let fields = leaf.prop_recursive(6, 64, 5, |inner| {
        let fields = prop::collection::vec(inner, 0..5);
        prop_oneof![
            fields.clone().prop_map(Field::Message),
            fields.prop_map(Field::Group),
        ]
    });
    prop::collection::vec(fields, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Any message, cut anywhere, compressed or not: the other side reads the same message with
    /// the secrets swapped.
    #[test]
    fn any_message_is_swapped_the_same_however_it_is_cut(
        messages in prop::collection::vec((message(), any::<bool>()), 1..4),
        size in 1usize..400,
        coding in prop::option::of(0usize..4),
    ) {
        let fixture = fixture("api.example", VALUE);
        let token = fixture.token.to_string();
        let coding = coding.map(|at| ALL[at]);
        let body = |secret: &str| messages.iter().map(|(fields, packed)| {
            let message = encode(fields, secret);
            match coding.filter(|_| *packed) {
                Some(coding) => framed(1, &Packer::of(coding).pack(&message).unwrap()),
                None => framed(0, &message),
            }
        }).collect::<Vec<_>>().concat();
        let read = |mut body: &[u8]| {
            let mut all = Vec::new();
            while let Some((head, rest)) = body.split_at_checked(5) {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                let (message, rest) = rest.split_at(length);
                all.push(match coding.filter(|_| head[0] == 1) {
                    Some(coding) => unpack(coding, message, 1 << 20).unwrap().unwrap().0,
                    None => message.to_vec(),
                });
                body = rest;
            }
            all
        };
        let sent = run(up(&fixture, coding), &body(&token), size).unwrap();
        prop_assert_eq!(read(&sent), read(&body(VALUE)));
        let seen = run(down(&fixture, coding), &body(VALUE), size).unwrap();
        prop_assert_eq!(read(&seen), read(&body(&token)));
    }

    /// Whatever the bytes are: where nothing is to be swapped, they pass as they are.
    #[test]
    fn odd_messages_pass_untouched(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..5),
        size in 1usize..99,
    ) {
        let fixture = fixture("api.example", VALUE);
        let body: Vec<u8> = messages.iter().flat_map(|message| framed(0, message)).collect();
        prop_assert_eq!(&run(up(&fixture, None), &body, size).unwrap(), &body);
        prop_assert_eq!(&run(down(&fixture, None), &body, size).unwrap(), &body);
    }
}
