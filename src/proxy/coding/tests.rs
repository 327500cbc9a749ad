use std::io::{Read, Write};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::proxy::body::StreamError;
use crate::proxy::escape::Place;
use crate::proxy::policy::testing::fixture;
use crate::proxy::reseal::Resealer;
use crate::proxy::substitute::Substituter;

/// Upper-cases, holding nothing: enough to see that text went through.
struct Shout;
impl Transform for Shout {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        out.extend(input.to_ascii_uppercase());
        Ok(())
    }
    fn finish(&mut self, _out: &mut Vec<u8>) -> Result<(), StreamError> {
        Ok(())
    }
}

/// A flavour as a peer may send it; made by libraries, not by what is tested.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Flavour {
    Gzip,
    Zlib,
    Raw,
    Brotli,
    Zstd,
}

pub(crate) const FLAVOURS: [Flavour; 5] = [
    Flavour::Gzip,
    Flavour::Zlib,
    Flavour::Raw,
    Flavour::Brotli,
    Flavour::Zstd,
];

impl Flavour {
    /// As fields name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zlib | Self::Raw => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    fn coding(self) -> Coding {
        match self {
            Self::Gzip => Coding::Gzip,
            Self::Zlib | Self::Raw => Coding::Deflate,
            Self::Brotli => Coding::Brotli,
            Self::Zstd => Coding::Zstd,
        }
    }

    pub fn pack(self, text: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::default();
        match self {
            Self::Gzip => {
                // Every optional field, as few senders write them.
                let builder = flate2::GzBuilder::new().extra(b"extra".to_vec());
                let builder = builder.filename("name").comment("comment");
                let mut encoder = builder.write(Vec::new(), level);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            Self::Zlib => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            Self::Raw => {
                let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            Self::Brotli => {
                let mut writer = ::brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
                writer.write_all(text).unwrap();
                writer.into_inner()
            }
            Self::Zstd => ::zstd::encode_all(text, 3).unwrap(),
        }
    }

    /// The text of the first bytes of a stream, as far as they go.
    fn open(self, packed: &[u8], length: usize) -> Vec<u8> {
        let mut reader: Box<dyn Read> = match self {
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(packed)),
            Self::Zlib => Box::new(flate2::read::ZlibDecoder::new(packed)),
            Self::Raw => Box::new(flate2::read::DeflateDecoder::new(packed)),
            Self::Brotli => Box::new(::brotli::Decompressor::new(packed, 4096)),
            Self::Zstd => Box::new(::zstd::Decoder::new(packed).unwrap()),
        };
        let mut text = vec![0; length];
        reader.read_exact(&mut text).unwrap();
        text
    }

    pub fn unpack(self, packed: &[u8]) -> Vec<u8> {
        let mut reader: Box<dyn Read> = match self {
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(packed)),
            Self::Zlib => Box::new(flate2::read::ZlibDecoder::new(packed)),
            Self::Raw => Box::new(flate2::read::DeflateDecoder::new(packed)),
            Self::Brotli => Box::new(::brotli::Decompressor::new(packed, 4096)),
            Self::Zstd => Box::new(::zstd::Decoder::new(packed).unwrap()),
        };
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        text
    }
}

/// Drives a transform as a body does, with a pause after each piece when `pause`.
fn run<'a>(
    transform: &mut dyn Transform,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    pause: bool,
) -> Result<Vec<u8>, StreamError> {
    let mut out = Vec::new();
    for piece in pieces {
        for part in piece.chunks(transform.step_bytes_max()) {
            transform.push(part, &mut out)?;
            while transform.has_more() {
                transform.push(&[], &mut out)?;
            }
        }
        if pause {
            transform.flush(&mut out)?;
        }
    }
    transform.finish(&mut out)?;
    Ok(out)
}

fn shout(flavour: Flavour, input: &[u8], size: usize) -> Result<Vec<u8>, StreamError> {
    run(
        &mut *flavour.coding().within(Shout),
        input.chunks(size),
        true,
    )
}

#[test]
fn the_text_inside_is_changed_however_the_stream_is_cut() {
    for flavour in FLAVOURS {
        let packed = flavour.pack(b"hello world, hello world");
        for size in 1..=packed.len() {
            let out = shout(flavour, &packed, size).unwrap();
            assert_eq!(
                flavour.unpack(&out),
                b"HELLO WORLD, HELLO WORLD",
                "{flavour:?} {size}"
            );
        }
        // An empty text is not an empty body.
        let empty = shout(flavour, &flavour.pack(b""), 1).unwrap();
        assert!(flavour.unpack(&empty).is_empty() && !empty.is_empty());
        assert!(shout(flavour, b"", 1).unwrap().is_empty());
    }
}

/// Members and frames one after another are one text.
#[test]
fn several_members_are_one_text() {
    for flavour in [Flavour::Gzip, Flavour::Zstd] {
        let packed = [
            flavour.pack(b"one "),
            flavour.pack(b""),
            flavour.pack(b"two"),
        ]
        .concat();
        for size in 1..=packed.len() {
            let out = shout(flavour, &packed, size).unwrap();
            assert_eq!(flavour.unpack(&out), b"ONE TWO", "{flavour:?} {size}");
        }
    }
}

/// What was cut short, has something behind its end or is not what it says breaks the stream.
#[test]
fn damaged_streams_are_errors() {
    for flavour in FLAVOURS {
        let whole = flavour.pack(b"hello hello hello, how do you do?");
        for end in 1..whole.len() {
            assert!(
                shout(flavour, &whole[..end], 7).is_err(),
                "{flavour:?} {end}"
            );
        }
        for size in [1, 7, 1000] {
            let more = [&whole, &b"\0more"[..]].concat();
            assert!(shout(flavour, &more, size).is_err(), "{flavour:?} {size}");
            let text = b"plain text, whatever the header says";
            assert!(shout(flavour, text, size).is_err(), "{flavour:?} {size}");
        }
    }
    let mut wrong = Flavour::Gzip.pack(b"hello");
    let sum = wrong.len() - 8;
    wrong[sum] ^= 1;
    assert!(shout(Flavour::Gzip, &wrong, 7).is_err());
}

/// Text that has arrived is readable before the stream ends, as an event stream needs it.
#[test]
fn a_pause_of_the_peer_delivers_what_it_sent() {
    for flavour in FLAVOURS {
        let mut encoder = Packer::of(flavour.coding()).0.encoder().unwrap();
        let mut transform = flavour.coding().within(Shout);
        let (mut sent, mut out) = (Vec::new(), Vec::new());
        for (seen, event) in [(9, b"event one"), (18, b"event two")] {
            encoder.write(event, &mut sent).unwrap();
            encoder.flush(&mut sent).unwrap();
            transform
                .push(&std::mem::take(&mut sent), &mut out)
                .unwrap();
            while transform.has_more() {
                transform.push(&[], &mut out).unwrap();
            }
            transform.flush(&mut out).unwrap();
            let kind = match flavour {
                Flavour::Raw => Flavour::Zlib,
                other => other,
            };
            assert_eq!(
                kind.open(&out, seen),
                b"EVENT ONEEVENT TWO"[..seen],
                "{flavour:?}"
            );
        }
    }
}

/// Raw deflate is answered with raw deflate: who sends it may read nothing else.
#[test]
fn raw_deflate_is_answered_in_kind() {
    let out = shout(Flavour::Raw, &Flavour::Raw.pack(b"hello"), 3).unwrap();
    assert_eq!(Flavour::Raw.unpack(&out), b"HELLO");
}

/// Goal: kilobytes that hold gigabytes are given up early, whichever way they are packed, and no
/// step on the way there is large.
#[test]
fn bombs_are_refused_after_a_thousandfold() {
    let zeros = vec![0; 64 * 1024 * 1024];
    for flavour in FLAVOURS {
        let packed = flavour.pack(&zeros);
        let twice = Flavour::Gzip.pack(&packed);
        let series = [
            (vec![flavour.coding()], packed),
            (vec![flavour.coding(), Coding::Gzip], twice),
        ];
        for (codings, body) in series {
            let mut transform = Series(codings.clone())
                .within(Box::new(Shout), &Tally::default())
                .unwrap();
            let mut out = Vec::new();
            let mut text = 0;
            let result = body.chunks(INPUT).try_for_each(|piece| {
                transform.push(piece, &mut out)?;
                while transform.has_more() {
                    let before = out.len();
                    transform.push(&[], &mut out)?;
                    text += 1;
                    assert!(out.len() - before < 256 * 1024);
                }
                Ok::<(), StreamError>(())
            });
            let refused = matches!(&result, Err(StreamError::Refused(Refusal::Expansion)));
            assert!(refused, "{codings:?} {result:?} after {text} steps");
        }
    }
    // Deflate at its best is below that for the first megabytes, as real files are.
    let body = Flavour::Gzip.pack(&zeros[..8 * 1024 * 1024]);
    assert!(shout(Flavour::Gzip, &body, INPUT).is_ok());
}

const INPUT: usize = 16 * 1024;

/// Goal: the memory a peer can make us take for a window is bounded by the coding's own rules.
#[test]
fn windows_beyond_the_rules_are_refused() {
    let text: Vec<u8> = (0..40_000u32).flat_map(u32::to_le_bytes).collect();
    for (log, fits) in [(20, true), (23, true), (24, false), (27, false)] {
        let mut encoder = ::zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(&text).unwrap();
        let packed = encoder.finish().unwrap();
        assert_eq!(
            shout(Flavour::Zstd, &packed, 999).is_ok(),
            fits,
            "window of 2^{log}"
        );
    }
    // The first byte of a stream with a large window, and its size.
    for size in [25, 30] {
        let packed = [&[0x11, size], &b"\x03"[..]].concat();
        assert!(shout(Flavour::Brotli, &packed, 1).is_err());
    }
}

/// One sandbox can't make us hold a window for each of any number of bodies.
#[test]
fn windows_are_counted() {
    let tally = Tally::of(Share::new());
    let mut open = Vec::new();
    let refused = loop {
        match Series(vec![Coding::Brotli]).within(Box::new(Shout), &tally) {
            Ok(transform) => open.push(transform),
            Err(refusal) => break refusal,
        }
        assert!(open.len() < 100);
    };
    assert_eq!(refused, Refusal::BodyMemory);
    assert!(open.len() > 20 && tally.share().is_short_of_memory());
    open.truncate(4);
    assert!(!tally.share().is_short_of_memory());
    assert!(
        Series(vec![Coding::Brotli])
            .within(Box::new(Shout), &tally)
            .is_ok()
    );
}

#[test]
fn a_series_is_read_or_refused() {
    let of = |fields: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for field in fields {
            let value = http::HeaderValue::from_static(field);
            headers.append(http::header::CONTENT_ENCODING, value);
        }
        Series::of(&headers).map(|series| series.0)
    };
    for (fields, expected) in [
        (&[][..], Some(vec![])),
        (&["identity", ""], Some(vec![])),
        (&["X-Gzip"], Some(vec![Coding::Gzip])),
        (
            &["gzip, identity", "br"],
            Some(vec![Coding::Gzip, Coding::Brotli]),
        ),
        (&["deflate,zstd"], Some(vec![Coding::Deflate, Coding::Zstd])),
        (&["gzip, gzip, gzip"], None),
        (&["compress"], None),
        (&["gzip;q=1"], None),
        (&["dcb"], None),
        (&["gzip br"], None),
    ] {
        assert_eq!(of(fields), expected, "{fields:?}");
    }
}

fn cut<'a>(bytes: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut places: Vec<usize> = places
        .iter()
        .map(|place| place.index(bytes.len() + 1))
        .collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places
        .windows(2)
        .map(|pair| &bytes[pair[0]..pair[1]])
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Any cut × any coding × any place: the host and the sandbox read what the whole buffer gives.
    #[test]
    fn any_cut_of_any_coding_equals_the_whole(
        words in prop::collection::vec(0u8..8, 0..40),
        layers in prop::collection::vec(0usize..5, 0..3),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        place in 0u8..3,
        pause in any::<bool>(),
    ) {
        let value = "re\"al&vä lue-0001";
        let fixture = fixture("api.example", value);
        let (token, place) = (fixture.token.to_string(), [Place::Raw, Place::Json, Place::Url][usize::from(place)]);
        let spelled = String::from_utf8(crate::proxy::escape::express(value.as_bytes(), place).unwrap().to_vec()).unwrap();
        let text = |secret: &str| words.iter().map(|word| match word {
            0..=2 => secret,
            3 => "osb_sealed_0123",
            4 => "re\"al&v",
            5 => "o",
            _ => "lorem ipsum ",
        }).collect::<String>();
        let (sealed, real) = (text(&token), text(&spelled));
        let layers: Vec<Flavour> = layers.into_iter().map(|at| FLAVOURS[at]).collect();
        let series = || Series(layers.iter().map(|layer| layer.coding()).collect());
        let pack = |text: &str| layers.iter().fold(text.as_bytes().to_vec(), |text, layer| layer.pack(&text));
        let open = |packed: Vec<u8>| layers.iter().rev().fold(packed, |packed, layer| match packed.is_empty() {
            true => packed,
            false => layer.unpack(&packed),
        });
        let tally = Arc::<Tally>::default();

        let up = Substituter::new(fixture.rules.clone(), place, tally.clone());
        let mut up = series().within(Box::new(up), &tally).unwrap();
        let body = pack(&sealed);
        let sent = run(&mut *up, cut(&body, &places), pause).unwrap();
        prop_assert_eq!(String::from_utf8(open(sent)).unwrap(), real.clone());

        let down = Resealer::new(fixture.rules.patterns().unwrap().clone(), tally.clone());
        let mut down = series().within(Box::new(down), &tally).unwrap();
        let body = pack(&real);
        let seen = run(&mut *down, cut(&body, &places), pause).unwrap();
        let seen = String::from_utf8(open(seen)).unwrap();
        let whole = crate::proxy::reseal::reseal_all(fixture.rules.patterns().unwrap(), &tally, real.as_bytes());
        prop_assert!(!seen.contains(&spelled));
        prop_assert_eq!(seen, String::from_utf8(whole.unwrap_or(real.into_bytes())).unwrap());
    }
}
