//! The attack suite: our proxy withstands it, and one that only replaces tokens does not.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::naive::Naive;
use crate::program::{Proxy, oc};

/// Attacks that still work against our own proxy, and why. To be emptied.
const KNOWN: [(&str, &str); 0] = [];

fn prepare(folder: &Path) {
    let done = oc()
        .args(["proxy", "check", "--prepare"])
        .arg(folder)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn check(kit: &Path, target: &str, rows: &[&str]) -> Output {
    let mut command = oc();
    command
        .args(["proxy", "check", "--json", "--target", target, "--kit"])
        .arg(kit);
    for row in rows {
        command.args(["--only", row]);
    }
    command.output().unwrap()
}

/// Attacks by outcome, and the whole table for messages.
fn lines(done: &Output, outcome: &str) -> (BTreeSet<String>, String) {
    let text = String::from_utf8(done.stdout.clone()).unwrap();
    let lines: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text} {}", String::from_utf8_lossy(&done.stderr))
    });
    let of = lines.iter().filter(|line| line["outcome"] == outcome);
    (
        of.map(|line| line["name"].as_str().unwrap().to_owned())
            .collect(),
        text,
    )
}

/// No value of the kit is in what was written beside its files.
fn no_value_in(kit: &Path, text: &str) {
    for role in ["primary", "quote", "crlf", "other", "wild"] {
        let value = fs::read_to_string(kit.join(format!("{role}.value"))).unwrap();
        assert!(!text.contains(&value), "{role} is in the output");
    }
}

/// Goal: the whole suite against our own proxy: no attack works that is not known to, and none is
/// skipped. Decisions and log hold no value afterwards.
#[test]
fn our_own_proxy_withstands_the_attacks() {
    let folder = tempfile::tempdir().unwrap();
    let kit = folder.path();
    prepare(kit);
    let proxy = Proxy::start(kit);
    let done = check(kit, &proxy.address, &[]);
    let (failed, table) = lines(&done, "fail");
    let known: BTreeSet<String> = KNOWN.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert!(failed.is_subset(&known), "{failed:?} of {table}");
    let (skipped, _) = lines(&done, "skipped");
    assert!(skipped.is_empty(), "{skipped:?} of {table}");
    let (passed, _) = lines(&done, "pass");
    assert!(passed.len() > 75, "{table}");
    assert_eq!(done.status.code(), Some(i32::from(!failed.is_empty())));
    for file in ["audit.jsonl", "stderr"] {
        no_value_in(kit, &fs::read_to_string(kit.join(file)).unwrap());
    }
    no_value_in(kit, &table);
}

/// Goal: the suite can fail. Method: a proxy that replaces every token in every request to
/// anybody, verifies nobody and looks at no answer.
#[test]
fn a_proxy_that_only_replaces_tokens_fails() {
    let folder = tempfile::tempdir().unwrap();
    let kit = folder.path();
    prepare(kit);
    let naive = Naive::start(kit);
    let rows = [
        "1", "2", "3", "5", "6", "8", "12", "20", "28", "30", "31", "34",
    ];
    let done = check(kit, &naive.address, &rows);
    let (failed, table) = lines(&done, "fail");
    assert_eq!(done.status.code(), Some(1), "{table}");
    no_value_in(kit, &table);
    let missed: Vec<_> = MUST_FAIL
        .iter()
        .filter(|name| !failed.contains(**name))
        .collect();
    assert!(missed.is_empty(), "{missed:?} did not fail: {table}");
}

const MUST_FAIL: [&str; 32] = [
    "echo in a header",
    "echo in a body of known length",
    "echo in a chunked body, at every split",
    "echo in server-sent events, at every split",
    "echo in a trailer",
    "echo in an error answer",
    "echo in base64, three alignments",
    "echo in hex",
    "echo in percent-encoding",
    "echo in JSON",
    "echo in JSON, every mark as \\u",
    "echo in JSON, every character as \\u",
    "echo in gzip",
    "echo in deflate",
    "echo in br",
    "echo in zstd",
    "echo in gzip inside gzip",
    "echo in an unknown content encoding",
    "an echo asked for byte by byte with Range",
    "a part of an echo nobody asked for",
    "CONNECT, SNI and Host that differ",
    "a host outside the list",
    "the token in plain HTTP",
    "the name of an allowed host at an address of one's own",
    "an inner service by spellings of its address",
    "a name that leads to an inner address",
    "names that only look like the host",
    "tokens at hosts of other secrets",
    "an answer that switches protocols unasked",
    "a value with a line break in a header",
    "a host with an expired certificate",
    "a host with a certificate of another name",
];

/// Goal: what can't be attacked is not called safe: nobody listening, a proxy that replaces
/// nothing, and no kit each end with exit code 2 and a reason.
#[test]
fn what_can_not_be_attacked_is_not_called_safe() {
    let folder = tempfile::tempdir().unwrap();
    let kit = folder.path().join("kit");
    let done = check(&kit, "127.0.0.1:1", &[]);
    assert_eq!(done.status.code(), Some(2));
    prepare(&kit);
    let again = oc()
        .args(["proxy", "check", "--prepare"])
        .arg(&kit)
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(2));
    // Its secrets are for other hosts.
    let policy = fs::read_to_string(kit.join("policy.toml")).unwrap();
    let policy = policy.replace("hosts = [\"api.", "hosts = [\"not-api.");
    fs::write(kit.join("policy.toml"), policy).unwrap();
    let proxy = Proxy::start(&kit);
    let done = check(&kit, &proxy.address, &[]);
    assert_eq!(done.status.code(), Some(2));
    let error = String::from_utf8(done.stderr).unwrap();
    assert!(error.contains("does not do its work"), "{error}");
}
