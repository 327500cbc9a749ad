use proptest::prelude::*;

use super::*;
use crate::proxy::body::Transform;
use crate::proxy::refusal::Refusal;
use crate::proxy::tally::Tally;

fn parent() -> Parent {
    Parent {
        token: SealedToken::generate(),
        name: "KEY".into(),
    }
}

/// Runs `pieces` through a transform as one stream.
fn run(mut transform: impl Transform, pieces: &[&[u8]]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for piece in pieces {
        transform.push(piece, &mut out).ok()?;
    }
    transform.finish(&mut out).ok()?;
    Some(out)
}

fn sealed(
    grants: &Arc<Grants>,
    parent: &Parent,
    syntax: Syntax,
    pieces: &[&[u8]],
) -> Option<String> {
    let sealer = FieldSealer::new(grants.clone(), parent.clone(), Arc::default(), syntax);
    Some(String::from_utf8(run(sealer, pieces)?).unwrap())
}

fn value_of(grants: &Grants, token: &str) -> Vec<u8> {
    let grant = grants.find(&token.parse().unwrap()).expect("a grant");
    grant.binding.value.expose().to_vec()
}

/// Goal: whatever a member is called and wherever it is, its text is sealed, and nothing else is.
#[test]
fn members_that_hand_out_tokens_are_sealed() {
    let (grants, parent) = (Arc::<Grants>::default(), parent());
    let token = grants
        .seal("A/b\"c\u{e9}".to_owned().into(), &parent)
        .to_string();
    let written = r#"A\/b\"c\u00e9"#;
    for (text, changed) in [
        ("{\"access_token\":\"@\"}", true),
        (
            "{ \"a\": [1, {\"Refresh-Token\"  \n:\t \"@\" }], \"b\":\"c\"}",
            true,
        ),
        ("{\"idToken\":\"@\",\"x\":\"\\\"\"}", true),
        ("{\"\\u0061ccess\\u005ftoken\":\"@\"}", true),
        ("it's a \"quote: {\"access_token\":\"@\"}", true),
        ("\"access_token\",\"access_token\":\"@\"", true),
        (
            "{\"access_token_type\":\"@\",\"scope\":\"@\",\"tokens\":\"@\"}",
            false,
        ),
        (
            "{\"access_token\":null,\"refresh_token\":\"\",\"expires_in\":3600,\"id_token\":7}",
            false,
        ),
    ] {
        let expected = text.replace('@', if changed { &token } else { written });
        let text = text.replace('@', written);
        let whole = sealed(&grants, &parent, Syntax::Json, &[text.as_bytes()]);
        assert_eq!(whole.as_deref(), Some(&*expected), "{text}");
        for cut in 0..text.len() {
            let (left, right) = text.as_bytes().split_at(cut);
            let cut = sealed(&grants, &parent, Syntax::Json, &[left, right]);
            assert_eq!(cut.as_deref(), Some(&*expected), "{text}");
        }
    }
    // What is sealed already stays as it is.
    let again = format!("{{\"access_token\":\"{token}\"}}");
    assert_eq!(
        sealed(&grants, &parent, Syntax::Json, &[again.as_bytes()]),
        Some(again)
    );
    let form = "scope=a&access_token=gho%5F16+x%26&token_type=bearer&refresh%5Ftoken=r1";
    let out = sealed(&grants, &parent, Syntax::Form, &[form.as_bytes()]).unwrap();
    let found: Vec<&str> = out.split(['=', '&']).collect();
    assert_eq!(value_of(&grants, found[3]), b"gho_16 x&");
    assert_eq!(value_of(&grants, found[7]), b"r1");
    assert_eq!(
        out.replace(found[3], "1").replace(found[7], "2"),
        "scope=a&access_token=1&token_type=bearer&refresh%5Ftoken=2"
    );
    for cut in 0..form.len() {
        let (left, right) = form.as_bytes().split_at(cut);
        assert_eq!(
            sealed(&grants, &parent, Syntax::Form, &[left, right]).as_ref(),
            Some(&out)
        );
    }
}

/// Goal: a token without an end, or too long, breaks the answer off before any of it is given out.
#[test]
fn a_token_without_an_end_breaks_off() {
    let (grants, parent) = (Arc::<Grants>::default(), parent());
    let long = "x".repeat(70_000);
    for text in [
        "{\"access_token\":\"abcdef",
        "{\"access_token\":\"abc\\\"",
        &format!("{{\"id_token\":\"{long}\"}}"),
    ] {
        let tally = Arc::<Tally>::default();
        let mut sealer =
            FieldSealer::new(grants.clone(), parent.clone(), tally.clone(), Syntax::Json);
        let mut out = Vec::new();
        let pushed = sealer.push(text.as_bytes(), &mut out);
        assert!(pushed.is_err() || sealer.finish(&mut out).is_err());
        assert_eq!(tally.refusal(), Some(&Refusal::ResponseGrant));
        assert!(out.ends_with(b":\""), "{}", String::from_utf8_lossy(&out));
    }
    assert!(grants.sweep().is_none());
}

/// Goal: grants are bounded, and what is used stays.
#[test]
fn the_grant_unused_the_longest_is_forgotten() {
    let (grants, parent) = (Grants::default(), parent());
    let seal = |n: usize| grants.seal(format!("value-{n}").into(), &parent);
    let first = seal(0);
    let second = seal(1);
    for n in 2..GRANTS_MAX {
        seal(n);
    }
    assert!(grants.find(&first).is_some());
    seal(GRANTS_MAX);
    assert!(grants.find(&second).is_none());
    assert_eq!(seal(0), first);
}

/// Goal: a program that tries guesses at where an echo pauses is stopped.
#[test]
fn guesses_at_grants_are_stopped() {
    const REAL: &str = "ya29.Real/Token+0001=";
    let grants = Grants::default();
    grants.seal(REAL.to_owned().into(), &parent());
    let stopped = (5..REAL.len()).position(|right| {
        let sweep = grants.sweep().unwrap();
        let mut sweeper = Sweeper::new(sweep, Arc::default());
        let mut out = Vec::new();
        let guess = format!("<{}", &REAL[..right]);
        let pushed = sweeper.push(guess.as_bytes(), &mut out);
        sweeper.flush(&mut out).unwrap();
        pushed.is_err() || sweeper.push(b"#", &mut out).is_err()
    });
    assert_eq!(stopped, Some(13));
}

fn swept(grants: &Grants, pieces: &[&[u8]]) -> String {
    let sweeper = Sweeper::new(
        grants.sweep().expect("grants to search for"),
        Arc::default(),
    );
    String::from_utf8(run(sweeper, pieces).unwrap()).unwrap()
}

/// Goal: who has a host hand out text that overlaps a real grant is left no part of that, whichever
/// came first; and every usual spelling is found.
#[test]
fn grants_that_overlap_are_taken_out_together() {
    const REAL: &str = "ya29.Real/Token+0001=";
    for order in [[0, 1], [1, 0]] {
        let (grants, parent) = (Grants::default(), parent());
        let values = [REAL, "qwertyuiop-12ya29"];
        let tokens = order.map(|at| (at, grants.seal(values[at].to_owned().into(), &parent)));
        let token = |at| {
            tokens
                .iter()
                .find(|(one, _)| *one == at)
                .unwrap()
                .1
                .to_string()
        };
        let out = swept(&grants, &[format!("<qwertyuiop-12{REAL}>").as_bytes()]);
        assert_eq!(out, format!("<{}>", token(1)));
        let out = swept(&grants, &[format!("<{REAL}{REAL}>").as_bytes()]);
        assert_eq!(out, format!("<{}{}>", token(0), token(0)));
        let percent = "ya29.Real%2FToken%2B0001%3D";
        assert_eq!(swept(&grants, &[percent.as_bytes()]), token(0));
    }
}

proptest! {
    /// Goal: what is taken out does not depend on how a stream is cut. Method: texts of pieces of
    /// grants that overlap each other, cut anywhere.
    #[test]
    fn any_cut_of_any_sweep_equals_the_whole(
        picks in prop::collection::vec((0..3_usize, 0..22_usize, 0..22_usize), 0..12),
        cuts in prop::collection::vec(0..200_usize, 0..8),
    ) {
        let values = ["abcabcXabc-0123-abcab", "-0123-abcabcXabc-456", "abcab-789-XYZ-abcabcX"];
        let (grants, parent) = (Grants::default(), parent());
        for value in values {
            grants.seal(value.to_owned().into(), &parent);
        }
        let mut text = Vec::new();
        for (which, from, to) in picks {
            let value = values[which].as_bytes();
            let (from, to) = (from.min(value.len()), to.min(value.len()));
            text.extend_from_slice(&value[from.min(to)..from.max(to)]);
        }
        let whole = swept(&grants, &[&text]);
        prop_assert!(values.iter().all(|value| !whole.contains(value)));
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
        prop_assert_eq!(swept(&grants, &pieces), whole);
    }
}
