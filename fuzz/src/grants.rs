//! What hosts hand out: members that are sealed, and grants that are taken out of answers.

use std::iter::once;
use std::sync::Arc;

use super::{TOKEN, controls, pieces, run};
use crate::proxy::grants::{FieldSealer, Grants, Parent, Sweeper, Syntax};
use crate::proxy::token::{PREFIX, SealedToken, TOKEN_BYTES};

/// Two grants that each end as the other begins, and one that begins as it ends.
const GRANTED: [&str; 3] = [
    "abcabcXabc-0123-abcab",
    "-0123-abcabcXabc-456",
    "abcab-789-XYZ-abcab",
];

/// `data` with members and parts of grants where certain bytes stand.
fn expand(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() * 2);
    for &byte in data {
        match byte {
            0xe0 => out.extend(b"\"access_token\":\""),
            0xe1 => out.extend(b"\"refresh\\u005ftoken\" : \""),
            0xe2 => out.extend(b"&access_token="),
            0xe3 => out.extend(TOKEN.bytes()),
            0xf0..=0xf2 => out.extend(GRANTED[usize::from(byte - 0xf0)].bytes()),
            0xf3..=0xf5 => out.extend(GRANTED[usize::from(byte - 0xf3)].bytes().take(9)),
            0xf6..=0xf8 => out.extend(GRANTED[usize::from(byte - 0xf6)].bytes().skip(9)),
            other => out.push(other),
        }
    }
    out
}

/// The same with all tokens alike: those of one pass may be forgotten in the next.
fn alike(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut from = 0;
    while let Some(at) = memchr::memmem::find(&bytes[from..], PREFIX) {
        let at = from + at;
        from = at + 1;
        if SealedToken::at(&bytes[at..]).is_some() {
            bytes[at + PREFIX.len()..at + TOKEN_BYTES].fill(b'0');
            from = at + TOKEN_BYTES;
        }
    }
    bytes
}

/// What is sealed and what is taken out does not depend on how an answer is cut, and no grant is left.
pub fn grants(data: &[u8]) {
    let Some((control, sizes, rest)) = controls(data) else {
        return;
    };
    let text = expand(rest);
    let parents: Arc<[Parent]> = Arc::new([Parent {
        token: TOKEN.parse().expect("a token"),
        name: "KEY".to_owned(),
    }]);
    let syntax = match control & 1 {
        0 => Syntax::Json,
        _ => Syntax::Form,
    };
    let handed_out = Arc::<Grants>::default();
    let sealer = || FieldSealer::new(handed_out.clone(), parents.clone(), Arc::default(), syntax);
    let pauses = control & 128 != 0;
    let whole = run(Box::new(sealer()), once(text.as_slice()), false).ok();
    let cut = run(Box::new(sealer()), pieces(&text, sizes), pauses).ok();
    assert_eq!(whole.map(alike), cut.map(alike));

    // What overlaps ends an answer, and too many of those end all that come after.
    let sweeper = || {
        let granted = Arc::<Grants>::default();
        for value in GRANTED {
            let sealed = granted.seal(value.to_owned().into(), &parents);
            sealed.expect("grants that can be told from text");
        }
        Box::new(Sweeper::new(granted, Arc::default()))
    };
    let whole = run(sweeper(), once(text.as_slice()), false).map(alike).ok();
    let cut = run(sweeper(), pieces(&text, sizes), pauses).map(alike).ok();
    // One that pauses within too many beginnings is taken for guesses.
    if cut.is_some() || !pauses {
        assert_eq!(whole, cut);
    }
    let Some(whole) = whole else {
        return;
    };
    for value in GRANTED {
        assert!(memchr::memmem::find(&whole, value.as_bytes()).is_none());
    }
}
