use std::ops::Range;

use proptest::prelude::*;

use super::super::deflate::{WINDOW_BITS_MAX, WINDOW_BITS_MIN};
use super::*;
use crate::proxy::policy::testing::{Fixture, fixture};
use crate::proxy::refusal::Refusal;
use crate::proxy::tally::Tally;

const VALUE: &str = "real-válue-\"0001";

/// A message as one side sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: Data,
    text: Vec<u8>,
}

fn pump(way: Way, fixture: &Fixture, codec: Option<Codec>) -> (Pump, Arc<Tally>) {
    let tally = Arc::<Tally>::default();
    let seal = Arc::new(Seal::new(fixture.rules.clone(), tally.clone()));
    (Pump::new(way, seal, codec), tally)
}

/// Pushes `bytes` in pieces of `size`.
fn run(pump: &mut Pump, bytes: &[u8], size: usize) -> Result<BytesMut, Stop> {
    let mut out = BytesMut::new();
    for mut piece in bytes.chunks(size) {
        while pump.step(&mut piece, &mut out)? {}
        assert!(piece.is_empty());
    }
    Ok(out)
}

/// The frames of a message, cut at `cuts` (in thousandths of its payload).
fn frames(way: Way, seen: &Seen, cuts: &[usize], deflater: Option<&mut Deflater>) -> BytesMut {
    let (payload, compressed) = match deflater {
        Some(deflater) => {
            let mut packed = Vec::new();
            deflater.push(&seen.text, &mut packed).unwrap();
            deflater.end_message(false, &mut packed).unwrap();
            (packed, true)
        }
        None => (seen.text.clone(), false),
    };
    let mut ends: Vec<usize> = cuts.iter().map(|cut| payload.len() * cut / 1000).collect();
    ends.push(payload.len());
    ends.sort_unstable();
    let (mut out, mut begin) = (BytesMut::new(), 0);
    let count = ends.len();
    for (index, end) in ends.into_iter().enumerate() {
        let kind = if index == 0 {
            seen.kind
        } else {
            Data::Continue
        };
        let (last, first) = (index + 1 == count, index == 0);
        let piece = &payload[begin..end];
        frame::write(
            &mut out,
            way,
            OpCode::Data(kind),
            last,
            first && compressed,
            piece,
        )
        .unwrap();
        begin = end;
    }
    out
}

/// Frames back to messages, and the control frames between them.
fn read(way: Way, mut bytes: &[u8]) -> (Vec<Seen>, Vec<(Control, Vec<u8>)>) {
    let (mut messages, mut controls) = (Vec::new(), Vec::new());
    let mut inflater = Inflater::default();
    let mut open: Option<(Seen, bool)> = None;
    while let Some((head, size)) = Head::read(bytes, way).unwrap() {
        let mut payload = bytes[size..size + head.length as usize].to_vec();
        bytes = &bytes[size + payload.len()..];
        if let Some(mut mask) = head.mask {
            mask.apply(&mut payload);
        }
        match head.opcode {
            OpCode::Control(kind) => controls.push((kind, payload)),
            OpCode::Data(kind) => {
                if kind != Data::Continue {
                    let text = Vec::new();
                    assert!(
                        open.replace((Seen { kind, text }, head.compressed))
                            .is_none()
                    );
                }
                open.as_mut().unwrap().0.text.append(&mut payload);
            }
        }
        if head.last && matches!(head.opcode, OpCode::Data(_)) {
            let (mut seen, compressed) = open.take().unwrap();
            if compressed {
                seen.text = inflate(&mut inflater, &seen.text);
            }
            messages.push(seen);
        }
    }
    assert!(bytes.is_empty() && open.is_none());
    (messages, controls)
}

fn inflate(inflater: &mut Inflater, packed: &[u8]) -> Vec<u8> {
    let packed = [packed, &TAIL].concat();
    let (mut rest, mut text) = (packed.as_slice(), Vec::new());
    while !rest.is_empty() || inflater.unread() {
        let mut out = Vec::new();
        let taken = inflater.step(rest, &mut out).unwrap();
        rest = &rest[taken..];
        text.append(&mut out);
    }
    inflater.end_message(false);
    text
}

/// Text with `TOKEN` or `VALUE` in it here and there, perhaps a JSON document.
fn texts() -> impl Strategy<Value = (Data, String)> {
    let part = prop_oneof![
        Just("SECRET".to_owned()),
        Just("osb_sealed_0".to_owned()),
        Just("real-v".to_owned()),
        "[ -~é€]{0,9}",
        "[ab]{100,300}",
    ];
    let text = prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat());
    (
        any::<bool>(),
        prop_oneof![Just(""), Just(" \n["), Just("{")],
        text,
    )
        .prop_map(|(binary, begin, text)| {
            let kind = if binary { Data::Binary } else { Data::Text };
            (kind, format!("{begin}{text}"))
        })
}

const SIZES: Range<usize> = 1..200;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any fragments, cut anywhere, masked and compressed in any agreed way, arrive as the same
    /// messages with the values in place (escaped in JSON) on the way up and with the token in
    /// place on the way down.
    #[test]
    fn messages_arrive_sealed_however_they_are_cut(
        up: bool,
        texts in prop::collection::vec(texts(), 1..5),
        cuts in prop::collection::vec(0..1000usize, 0..5),
        size in SIZES,
        bits in prop::option::of(WINDOW_BITS_MIN..=WINDOW_BITS_MAX),
        fresh_out: bool,
    ) {
        let fixture = fixture("api.example", VALUE);
        let token = fixture.token.to_string();
        let json_value = VALUE.replace('"', "\\\"");
        let way = if up { Way::Up } else { Way::Down };
        let codec = bits.map(|window_bits_out| Codec { fresh_in: false, fresh_out, window_bits_out });
        let (mut pump, _) = pump(way, &fixture, codec);
        let mut deflater = Deflater::new(WINDOW_BITS_MAX);
        let (mut sent, mut expected) = (BytesMut::new(), Vec::new());
        for (kind, text) in texts {
            let json = text.trim_start().starts_with(['{', '[']);
            let value = if json { &json_value } else { VALUE };
            let secret = if up { &token } else { value };
            let message = Seen { kind, text: text.replace("SECRET", secret).into_bytes() };
            let deflater = bits.map(|_| &mut deflater);
            sent.extend_from_slice(&frames(way, &message, &cuts, deflater));
            let secret = if up { value } else { &token };
            expected.push(Seen { kind, text: text.replace("SECRET", secret).into_bytes() });
        }
        let out = run(&mut pump, &sent, size).unwrap();
        let (seen, controls) = read(way, &out);
        prop_assert_eq!(seen, expected);
        prop_assert!(controls.is_empty());
    }

    /// Nothing that can be sent makes it panic, and the verdict is the same wherever it is cut.
    #[test]
    fn any_bytes_have_one_verdict(
        up: bool,
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0x81), Just(0x80)], 0..60),
        size in 1..8usize,
    ) {
        let fixture = fixture("api.example", VALUE);
        let way = if up { Way::Up } else { Way::Down };
        let codec = Codec { fresh_in: true, fresh_out: false, window_bits_out: WINDOW_BITS_MAX };
        let verdict = |size| {
            let (mut pump, _) = pump(way, &fixture, Some(codec));
            // Of two faults either may be seen first.
            run(&mut pump, &bytes, size).map(|out| out.len()).ok()
        };
        prop_assert_eq!(verdict(bytes.len().max(1)), verdict(size));
    }
}

/// Goal: frames that are short leave as they came, so that peers see no fragments nobody sent.
#[test]
fn a_short_frame_stays_one_frame() {
    let fixture = fixture("api.example", VALUE);
    let (mut pump, tally) = pump(Way::Down, &fixture, None);
    let text = format!("<{VALUE}> and real-v");
    let seen = Seen {
        kind: Data::Text,
        text: text.into_bytes(),
    };
    for cuts in [&[][..], &[500]] {
        let sent = frames(Way::Down, &seen, cuts, None);
        let out = run(&mut pump, &sent, 3).unwrap();
        let (mut rest, mut heads) = (&out[..], 0);
        while let Some((head, size)) = Head::read(rest, Way::Down).unwrap() {
            rest = &rest[size + head.length as usize..];
            heads += 1;
        }
        assert_eq!(heads, cuts.len() + 1);
        let expected = format!("<{}> and real-v", fixture.token);
        assert_eq!(read(Way::Down, &out).0[0].text, expected.as_bytes());
    }
    assert!(tally.names().resealed.contains("HERE"));
}

/// Goal: a message without an end passes in pieces, and what it takes stays the same.
#[test]
fn a_message_of_any_length_takes_constant_memory() {
    let fixture = fixture("api.example", VALUE);
    let length: u64 = 1 << 40;
    for (way, text) in [
        (Way::Up, fixture.token.to_string()),
        (Way::Down, VALUE.to_owned()),
    ] {
        let (mut pump, _) = pump(way, &fixture, None);
        let masked: u8 = if way == Way::Up { 0x80 } else { 0 };
        let head = [&[0x82, 127 | masked][..], &length.to_be_bytes()].concat();
        let head = if way == Way::Up {
            [&head[..], &[0; 4]].concat()
        } else {
            head
        };
        let mut out = BytesMut::new();
        let body = text.repeat(300);
        let (mut first, mut passed) = (true, 0);
        for _ in 0..1000 {
            let mut piece = body.as_bytes();
            let begun = [&head, piece].concat();
            if std::mem::take(&mut first) {
                piece = &begun;
            }
            while pump.step(&mut piece, &mut out).unwrap() {
                assert!(out.len() < 4 * FRAGMENT_BYTES_AIM, "{}", out.len());
                passed += out.len();
                out.clear();
            }
            let message = pump.message.as_ref().unwrap();
            let held = message.ready.capacity() + pump.raw.bytes.capacity();
            assert!(
                held + pump.plain.bytes.capacity() < 4 * FRAGMENT_BYTES_AIM,
                "{held}"
            );
        }
        assert!(passed > body.len() * 300);
    }
}

#[test]
fn control_frames_pass_sealed_between_fragments() {
    let fixture = fixture("api.example", VALUE);
    let token = fixture.token.to_string();
    let sent = |way, frames: &[(OpCode, bool, &[u8])]| {
        let mut bytes = BytesMut::new();
        for (opcode, last, payload) in frames {
            frame::write(&mut bytes, way, *opcode, *last, false, payload).unwrap();
        }
        let out = run(&mut pump(way, &fixture, None).0, &bytes, 5).unwrap();
        read(way, &out)
    };
    let control = OpCode::Control;
    let (head, tail) = token.as_bytes().split_at(20);
    let (messages, controls) = sent(
        Way::Up,
        &[
            (OpCode::Data(Data::Text), false, head),
            (control(Control::Ping), true, token.as_bytes()),
            (OpCode::Data(Data::Continue), false, b""),
            (control(Control::Pong), true, b""),
            (OpCode::Data(Data::Continue), true, tail),
            (
                control(Control::Close),
                true,
                format!("\x0c\x20{token}").as_bytes(),
            ),
            (control(Control::Ping), true, b"after the close frame"),
        ],
    );
    assert_eq!(messages[0].text, VALUE.as_bytes());
    assert_eq!(
        controls,
        [
            (Control::Ping, VALUE.as_bytes().to_vec()),
            (Control::Pong, Vec::new()),
            (Control::Close, format!("\x0c\x20{VALUE}").into_bytes()),
        ]
    );
    // Five values are 85 bytes, five tokens 215.
    let many = VALUE.repeat(5);
    let reason = [b"\x03\xe8", many.as_bytes()].concat();
    let (_, controls) = sent(
        Way::Down,
        &[
            (control(Control::Ping), true, many.as_bytes()),
            (control(Control::Pong), true, VALUE.as_bytes()),
            (control(Control::Close), true, &reason),
        ],
    );
    assert_eq!(
        controls,
        [
            (Control::Ping, Vec::new()),
            (Control::Pong, token.into_bytes()),
            (Control::Close, b"\x03\xe8".to_vec()),
        ]
    );
}

#[test]
fn what_is_no_websocket_ends_the_relay() {
    let fixture = fixture("api.example", VALUE);
    let verdict = |bytes: &[u8]| run(&mut pump(Way::Down, &fixture, None).0, bytes, 1).unwrap_err();
    for bytes in [
        &[0x80, 0][..],
        &[0x00, 0],
        &[0x01, 0, 0x01],
        &[0x01, 0, 0x02, 0],
        &[0xc1, 0],
        &[0x01, 0, 0xc0, 0],
        &[0x09, 0],
        &[0x88, 1, 3],
        &[0x88, 2, 0, 0],
        &[0x88, 2, 0x03, 0xed],
        &[0x88, 2, 0x13, 0x88],
    ] {
        let bytes = [bytes, &[0; 1]].concat();
        assert!(matches!(verdict(&bytes), Stop::Protocol(_)), "{bytes:x?}");
    }
    for bytes in [
        &[0x81, 1, 0xff][..],
        &[0x81, 2, b'a', 0xc3],
        &[0x88, 3, 3, 0xe8, 0xff],
    ] {
        assert_eq!(verdict(bytes), Stop::NotUtf8, "{bytes:x?}");
    }
    // Cut between frames, a character is whole again.
    let cut = [0x01, 1, 0xc3, 0x80, 1, 0xa9];
    assert!(run(&mut pump(Way::Down, &fixture, None).0, &cut, 1).is_ok());
}

/// Goal: a rule that forbids a message ends the relay, and the value does not go out.
#[test]
fn a_forbidden_token_ends_the_relay() {
    let fixture = fixture("api.example", VALUE);
    let seal = Seal::new(fixture.strict.clone(), Arc::default());
    let mut pump = Pump::new(Way::Up, Arc::new(seal), None);
    let text = format!("{} {}", fixture.token, fixture.elsewhere).into_bytes();
    let sent = frames(
        Way::Up,
        &Seen {
            kind: Data::Text,
            text,
        },
        &[],
        None,
    );
    let mut out = BytesMut::new();
    let mut input = &sent[..];
    let stop = loop {
        match pump.step(&mut input, &mut out) {
            Ok(more) => assert!(more),
            Err(stop) => break stop,
        }
    };
    assert!(matches!(stop, Stop::Refused(Refusal::TokenUnbound { .. })));
    assert!(out.is_empty());
}

/// Goal: after a rotation the former value, which the host was told, is still found in answers.
#[test]
fn former_values_are_resealed_after_a_rotation() {
    let (old, new) = (
        fixture("api.example", "former-value-1"),
        fixture("api.example", VALUE),
    );
    let tally = Arc::<Tally>::default();
    let seal = Arc::new(Seal::new(old.rules.clone(), tally.clone()));
    let mut up = Pump::new(Way::Up, seal.clone(), None);
    let text = old.token.to_string().into_bytes();
    let sent = frames(
        Way::Up,
        &Seen {
            kind: Data::Text,
            text,
        },
        &[],
        None,
    );
    run(&mut up, &sent, 7).unwrap();
    seal.renew(new.rules.clone()).unwrap();
    let mut down = Pump::new(Way::Down, seal.clone(), None);
    let echo = Seen {
        kind: Data::Text,
        text: format!("former-value-1 {VALUE} former-value-").into_bytes(),
    };
    let out = run(&mut down, &frames(Way::Down, &echo, &[300], None), 3).unwrap();
    let expected = format!("{} {} former-value-", old.token, new.token);
    assert_eq!(read(Way::Down, &out).0[0].text, expected.as_bytes());
    for _ in 0..2 {
        seal.renew(fixture("api.example", VALUE).rules).unwrap();
    }
    assert_eq!(
        seal.renew(fixture("api.example", VALUE).rules),
        Err(Stop::Renewed)
    );
}
