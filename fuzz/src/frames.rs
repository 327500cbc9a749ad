//! One way of a relay without its ends, for the properties in `proxy::fuzzing`.

use std::sync::Arc;

use bytes::BytesMut;

use super::Way;
use super::deflate::{Codec, WINDOW_BITS_MAX};
use super::frame::Head;
use super::pump::Pump;
use super::seal::Seal;
use crate::proxy::policy::HostRules;

/// What `pieces` become; `None` when they end the relay.
pub(crate) fn run(
    way: Way,
    compressed: bool,
    rules: Arc<HostRules>,
    pieces: &mut dyn Iterator<Item = &[u8]>,
) -> Option<BytesMut> {
    let codec = Codec {
        fresh_in: false,
        fresh_out: false,
        window_bits_out: WINDOW_BITS_MAX,
    };
    let seal = Seal::new(rules, Arc::default());
    let mut pump = Pump::new(way, Arc::new(seal), compressed.then_some(codec));
    let mut out = BytesMut::new();
    for mut piece in pieces {
        while pump.step(&mut piece, &mut out).ok()? {}
    }
    Some(out)
}

/// Panics unless `bytes` are whole frames.
pub(crate) fn check_frames(way: Way, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (head, size) = Head::read(bytes, way)
            .expect("a legal head")
            .expect("a whole head");
        bytes = &bytes[size + head.length as usize..];
    }
}
