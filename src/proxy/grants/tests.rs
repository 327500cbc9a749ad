use proptest::prelude::*;

use super::*;
use crate::proxy::body::Transform;
use crate::proxy::refusal::Refusal;
use crate::proxy::tally::Tally;

fn parents() -> Arc<[Parent]> {
    Arc::new([Parent {
        token: SealedToken::generate(),
        name: "KEY".into(),
    }])
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
    parents: &Arc<[Parent]>,
    syntax: Syntax,
    pieces: &[&[u8]],
) -> Option<String> {
    let sealer = FieldSealer::new(grants.clone(), parents.clone(), Arc::default(), syntax);
    Some(String::from_utf8(run(sealer, pieces)?).unwrap())
}

fn value_of(grants: &Grants, token: &str) -> Vec<u8> {
    let grant = grants.find(&token.parse().unwrap()).expect("a grant");
    grant.binding.value.expose().to_vec()
}

/// Goal: whatever a member is called and wherever it is, its text is sealed, and nothing else is.
#[test]
fn members_that_hand_out_tokens_are_sealed() {
    let (grants, parents) = (Arc::<Grants>::default(), parents());
    let token = grants
        .seal("Q7/xW2v\"K9\u{e9}-Zt4".to_owned().into(), &parents)
        .unwrap()
        .to_string();
    let written = r#"Q7\/xW2v\"K9\u00e9-Zt4"#;
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
        ("{\"Token\":\"@\",\"x\":1}", true),
        ("{\"token\":\" word\",\"logprob\":-1}", false),
        ("{\"x\":\"no \\\"access_token\\\" was given\"}", false),
    ] {
        let expected = text.replace('@', if changed { &token } else { written });
        let text = text.replace('@', written);
        let whole = sealed(&grants, &parents, Syntax::Json, &[text.as_bytes()]);
        assert_eq!(whole.as_deref(), Some(&*expected), "{text}");
        for cut in 0..text.len() {
            let (left, right) = text.as_bytes().split_at(cut);
            let cut = sealed(&grants, &parents, Syntax::Json, &[left, right]);
            assert_eq!(cut.as_deref(), Some(&*expected), "{text}");
        }
    }
    // What is sealed already stays as it is.
    let again = format!("{{\"access_token\":\"{token}\"}}");
    assert_eq!(
        sealed(&grants, &parents, Syntax::Json, &[again.as_bytes()]),
        Some(again)
    );
    let form =
        "scope=a&access_token=gho%5F16+Zx%26q7Vw&token_type=bearer&refresh%5Ftoken=r1-Kp5TzYq8";
    let out = sealed(&grants, &parents, Syntax::Form, &[form.as_bytes()]).unwrap();
    let found: Vec<&str> = out.split(['=', '&']).collect();
    assert_eq!(value_of(&grants, found[3]), b"gho_16 Zx&q7Vw");
    assert_eq!(value_of(&grants, found[7]), b"r1-Kp5TzYq8");
    assert_eq!(
        out.replace(found[3], "1").replace(found[7], "2"),
        "scope=a&access_token=1&token_type=bearer&refresh%5Ftoken=2"
    );
    for cut in 0..form.len() {
        let (left, right) = form.as_bytes().split_at(cut);
        assert_eq!(
            sealed(&grants, &parents, Syntax::Form, &[left, right]).as_ref(),
            Some(&out)
        );
    }
}

/// Goal: a token without an end, too long, too easy to guess or in a string in a string breaks the
/// answer off before any of it is given out.
#[test]
fn a_token_without_an_end_breaks_off() {
    let (grants, parents) = (Arc::<Grants>::default(), parents());
    let long = "x".repeat(70_000);
    for text in [
        "{\"access_token\":\"abcdef",
        "{\"access_token\":\"abc\\\"",
        &format!("{{\"id_token\":\"{long}\"}}"),
        "{\"id_token\":\"abcdef\"}",
        "{\"x\":\"{\\\"access_token\\\" :\\\"Q7xW2vK9-Zt4uP\\\"}\"}",
        &format!("{long}{long}{{\"access_token\":\"Q7xW2vK9-Zt4uP\"}}"),
    ] {
        let tally = Arc::<Tally>::default();
        let mut sealer =
            FieldSealer::new(grants.clone(), parents.clone(), tally.clone(), Syntax::Json);
        let mut out = Vec::new();
        let pushed = sealer.push(text.as_bytes(), &mut out);
        assert!(pushed.is_err() || sealer.finish(&mut out).is_err());
        assert_eq!(tally.refusal(), Some(&Refusal::ResponseGrant));
        assert!(
            !out.windows(3)
                .any(|three| three == b"abc" || three == b"Q7x")
        );
    }
    assert!(grants.sweep().unwrap().is_none());
}

/// Goal: what was handed out is remembered whatever comes after it; what is too much is refused.
#[test]
fn a_grant_too_many_is_refused() {
    let (grants, parents) = (Arc::<Grants>::default(), parents());
    let seal = |text: String| grants.seal(text.into(), &parents);
    let value = |n: usize| format!("Q7xW2vK9-{n:04}");
    let first = seal(value(0)).unwrap();
    for n in 1..GRANTS_MAX {
        seal(value(n)).unwrap();
    }
    assert_eq!(seal(value(GRANTS_MAX)), Err(Refusal::ResponseGrant));
    assert_eq!(seal(value(0)), Ok(first));
    assert!(grants.find(&first).is_some());
    let text = format!("<{}>", value(0));
    assert_eq!(swept(&grants, &[text.as_bytes()]), format!("<{first}>"));

    let grants = Arc::<Grants>::default();
    let long = |n: usize| format!("{n:04}{}", "Q7xW2vK9-Zt4uP/".repeat(1000));
    let refused = (0..GRANTS_MAX).find(|&n| grants.seal(long(n).into(), &parents).is_err());
    let refused = refused.expect("too many bytes to search for");
    for n in 0..refused {
        for text in [long(n), long(n).replace('/', "%2F")] {
            assert!(swept(&grants, &[text.as_bytes()]).starts_with("osb_sealed_"));
        }
    }
}

/// Goal: a program that tries guesses at where an echo pauses is stopped.
#[test]
fn guesses_at_grants_are_stopped() {
    const REAL: &str = "ya29.Real/Token+0001=";
    let grants = Arc::<Grants>::default();
    grants.seal(REAL.to_owned().into(), &parents()).unwrap();
    let stopped = (5..REAL.len()).position(|right| {
        let mut sweeper = Sweeper::new(grants.clone(), Arc::default());
        let mut out = Vec::new();
        let guess = format!("<{}", &REAL[..right]);
        let pushed = sweeper.push(guess.as_bytes(), &mut out);
        sweeper.flush(&mut out).unwrap();
        pushed.is_err() || sweeper.push(b"#", &mut out).is_err()
    });
    assert_eq!(stopped, Some(13));
}

fn swept(grants: &Arc<Grants>, pieces: &[&[u8]]) -> String {
    let sweeper = Sweeper::new(grants.clone(), Arc::default());
    String::from_utf8(run(sweeper, pieces).unwrap()).unwrap()
}

/// Goal: who has a host hand out text that overlaps a real grant, or lies in one, is shown no part of
/// an echo of that, and after a few attempts nothing any more; and every usual spelling is found.
#[test]
fn grants_that_overlap_end_the_answer() {
    const REAL: &str = "ya29.Real/Token+0001=";
    for (guess, echo) in [
        ("qwertyuiop-12ya29", format!("<qwertyuiop-12{REAL}>")),
        ("0001=-12qwertyuiop", format!("<{REAL}-12qwertyuiop>")),
        ("Real/Token+00", format!("<{REAL}>")),
        ("Token+0001=", format!("<{REAL}>")),
        ("ya29.Real/Tok", format!("<{REAL}>")),
    ] {
        for order in [[REAL, guess], [guess, REAL]] {
            let (grants, parents) = (Arc::<Grants>::default(), parents());
            for value in order {
                grants.seal(value.to_owned().into(), &parents).unwrap();
            }
            let token = grants.seal(REAL.to_owned().into(), &parents).unwrap();
            for attempt in 0..OVERLAPS_MAX {
                assert!(grants.check().is_ok());
                let mut out = Vec::new();
                let mut sweeper = Sweeper::new(grants.clone(), Arc::default());
                let cut = attempt as usize * 9;
                let (left, right) = echo.as_bytes().split_at(cut);
                let ended = sweeper.push(left, &mut out);
                let ended = ended.and_then(|()| sweeper.push(right, &mut out));
                assert!(ended.is_err(), "{guess}");
                let out = String::from_utf8(out).unwrap();
                assert!(!out.contains("ya29") && !out.contains("Real"), "{out}");
            }
            assert_eq!(grants.check(), Err(Refusal::Guessing));
            assert!(
                grants
                    .seal("Q7xW2vK9-Zt4uP".to_owned().into(), &parents)
                    .is_err()
            );
            let mut fields = http::HeaderMap::new();
            fields.insert("x", token.to_string().parse().unwrap());
            assert!(sweep_fields(&mut fields, &grants, &Arc::default()).is_err());
        }
    }
    let grants = Arc::<Grants>::default();
    let token = grants.seal(REAL.to_owned().into(), &parents()).unwrap();
    let out = swept(&grants, &[format!("<{REAL}{REAL}>").as_bytes()]);
    assert_eq!(out, format!("<{token}{token}>"));
    let percent = "ya29.Real%2FToken%2B0001%3D";
    assert_eq!(swept(&grants, &[percent.as_bytes()]), token.to_string());
}

/// Goal: an answer under way is searched for what is handed out meanwhile, from its next byte on, and
/// ends where a find is half told.
#[test]
fn an_answer_under_way_learns_of_new_grants() {
    const VALUES: [&str; 2] = ["ya29.Real/Token+0001=", "abcabcX-0123456-abcabc"];
    let (grants, parents) = (Arc::<Grants>::default(), parents());
    let mut sweeper = Sweeper::new(grants.clone(), Arc::default());
    let mut out = Vec::new();
    sweeper.push(b"before ", &mut out).unwrap();
    let first = grants.seal(VALUES[0].to_owned().into(), &parents).unwrap();
    sweeper
        .push(format!("<{}> ya29.R", VALUES[0]).as_bytes(), &mut out)
        .unwrap();
    let second = grants.seal(VALUES[1].to_owned().into(), &parents).unwrap();
    sweeper
        .push(format!("x {}", VALUES[1]).as_bytes(), &mut out)
        .unwrap();
    let text = String::from_utf8(out.clone()).unwrap();
    assert_eq!(text, format!("before <{first}> ya29.Rx {second}"));
    // Its last bytes may begin it anew.
    grants
        .seal("Q7xW2vK9-Zt4uP".to_owned().into(), &parents)
        .unwrap();
    assert!(sweeper.push(b"X-0123456-abcabc", &mut out).is_err());
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
        let (grants, parents) = (Arc::<Grants>::default(), parents());
        for value in values {
            grants.seal(value.to_owned().into(), &parents).unwrap();
        }
        let mut text = Vec::new();
        for (which, from, to) in picks {
            let value = values[which].as_bytes();
            let (from, to) = (from.min(value.len()), to.min(value.len()));
            text.extend_from_slice(&value[from.min(to)..from.max(to)]);
        }
        let sweep = |pieces: &[&[u8]]| run(Sweeper::new(grants.clone(), Arc::default()), pieces);
        let whole = sweep(&[&text]);
        if let Some(whole) = &whole {
            let whole = String::from_utf8_lossy(whole);
            prop_assert!(values.iter().all(|value| !whole.contains(value)));
        }
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &text[cut[0]..cut[1]]).collect();
        prop_assert_eq!(sweep(&pieces), whole);
    }
}
