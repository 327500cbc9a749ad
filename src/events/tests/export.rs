//! The export, checked by our own verifier and by a stranger: the Python program beside the
//! fixtures. Both must find every kind of tampering, and name it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::support::{command, event, fill, open, stream};
use crate::events::chain::{chain_hash, content_hash_of_texts, genesis};
use crate::events::{Actor, Audience, EventLog, ExportReport, Known, check_export};
use crate::ids::{KeyId, OrgId};

/// What a Python program of ours says; `None` when this machine has no Python.
pub fn python(program: &str, args: &[&str]) -> Option<Result<String, String>> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join(program);
    let output = match Command::new("python3").arg(program).args(args).output() {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: python3 can't be started: {error}");
            return None;
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Some(Ok(text(&output.stdout))),
        false => Some(Err(text(&output.stderr))),
    }
}

/// An export with all fields set and text of several alphabets: 5 events in 4 commits.
struct Exported {
    dir: TempDir,
    text: String,
    known: Known,
}

async fn exported() -> Exported {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(&dir.path().join("log"));
    fill(&log, "plain", 3).await;
    let mut full = command(
        &[],
        vec![
            event("mixed", "Grüße, 世界 \u{1F980} \"quoted\" \\ \u{7f}"),
            event("plain", 1.5e300),
        ],
    );
    full.actor = Actor::api(OrgId::generate(), Some(KeyId::generate()));
    full.causation = Some(full.command);
    log.append(full).await.expect("appended");
    let (bytes, head) = log.export_jsonl(Vec::new()).await.expect("exported");
    let known = Known {
        log: Some(log.id()),
        commit: head.commit,
        chain: head.chain,
    };
    log.close().await;
    Exported {
        dir,
        text: String::from_utf8(bytes).expect("UTF-8"),
        known,
    }
}

/// What our verifier and the stranger say of `text`; the latter `None` without Python.
type Verdicts = (Result<ExportReport, String>, Option<Result<String, String>>);

fn judge(dir: &Path, text: &str, known: &[Known]) -> Verdicts {
    let ours = check_export(text.as_bytes(), known, None).map_err(|fault| fault.to_string());
    let path = dir.join("export.jsonl");
    std::fs::write(&path, text).expect("written");
    let mut args = vec![path.to_str().expect("UTF-8").to_owned()];
    args.extend(
        known
            .iter()
            .map(|known| format!("{}:{}", known.commit, hex::encode(known.chain))),
    );
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    (ours, python("fixtures/verify_chain.py", &args))
}

fn assert_caught(name: &str, verdicts: Verdicts, ours: &str, theirs: &str) {
    let said = verdicts.0.expect_err(name);
    assert!(said.contains(ours), "{name}: {said}");
    if let Some(stranger) = verdicts.1 {
        let said = stranger.expect_err(name);
        assert!(said.contains(theirs), "{name}: {said}");
    }
}

/// The file with each line changed by `change`, its commits hashed and chained anew, and an end
/// line to match: what somebody makes who knows the format as well as we do.
fn forged(text: &str, change: impl Fn(&mut Vec<Value>)) -> String {
    let mut lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    lines.pop();
    change(&mut lines);
    let log = lines[0]["log"].as_str().expect("a log").parse();
    let (mut chain, mut position) = (genesis(log.expect("a ULID")), 0);
    for (number, line) in lines.iter_mut().enumerate().skip(1) {
        line["commit"] = number.into();
        let mut hashes = Vec::new();
        for event in line["events"].as_array_mut().expect("events") {
            position += 1;
            event["commit"] = number.into();
            event["position"] = position.into();
            let fields = "id stream revision position commit recorded_at_ms kind actor org key \
                          command correlation causation data";
            let texts: Vec<String> = fields
                .split_whitespace()
                .map(|field| match &event[field] {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                })
                .collect();
            let hash = content_hash_of_texts(texts.iter().map(String::as_str));
            event["content_hash"] = hex::encode(hash).into();
            hashes.push(hash);
        }
        chain = chain_hash(number as u64, &chain, &hashes);
        line["chain"] = hex::encode(chain).into();
    }
    let end = serde_json::json!({ "end": {
        "position": position, "commit": lines.len() - 1, "chain": hex::encode(chain),
    } });
    let lines = lines.iter().chain([&end]).map(Value::to_string);
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// Goal: our verifier and fifty lines of another language agree with the log on its head, and
/// both find and name every kind of tampering.
#[tokio::test]
async fn a_stranger_can_verify_an_export_and_finds_tampering() {
    let Exported { dir, text, known } = exported().await;
    let chain = hex::encode(known.chain);
    let (ours, theirs) = judge(dir.path(), &text, &[known]);
    let report = ours.expect("whole");
    assert_eq!((report.events, report.streams, report.withheld), (5, 2, 0));
    assert_eq!(report.head.chain, known.chain);
    if let Some(said) = theirs {
        let wanted = format!("ok 5 events (0 withheld), 4 commits, chain {chain}\n");
        assert_eq!(said, Ok(wanted));
    }

    let lines: Vec<&str> = text.lines().collect();
    let joined = |order: &[usize]| {
        let chosen: Vec<&str> = order.iter().map(|&index| lines[index]).collect();
        chosen.join("\n") + "\n"
    };
    let replaced = |from: &str, to: &str| text.replacen(from, to, 1);
    let json = |line: usize| serde_json::from_str::<Value>(lines[line]).expect("JSON");
    let with_events = |change: fn(&mut Vec<Value>)| {
        let mut commit = json(4);
        change(commit["events"].as_array_mut().expect("events"));
        let commit = commit.to_string();
        [lines[0], lines[1], lines[2], lines[3], &commit, lines[5]].join("\n") + "\n"
    };
    let (first, log) = (json(1)["chain"].clone(), json(0)["log"].clone());
    let half = lines[..4].join("\n") + "\n" + &lines[4][..100];
    let cases = [
        (
            "altered data",
            replaced("\\\"value\\\":1", "\\\"value\\\":7"),
            "event 2 (commit 2) was altered",
            "content of event 2",
        ),
        (
            "altered stream",
            replaced("\"stream\":\"plain\"", "\"stream\":\"plane\""),
            "event 1 (commit 1) was altered",
            "content of event 1",
        ),
        (
            "altered actor",
            replaced("\"actor\":\"api\"", "\"actor\":\"system\""),
            "event 4 (commit 4) was altered",
            "content of event 4",
        ),
        (
            "dropped commit",
            joined(&[0, 1, 3, 4, 5]),
            "commit 2 is missing: dropped",
            "commit 2 is not in its place",
        ),
        (
            "dropped commits",
            joined(&[0, 3, 4, 5]),
            "commits 1 to 2 are missing: dropped",
            "commit 1 is not in its place",
        ),
        (
            "reordered commits",
            joined(&[0, 1, 3, 2, 4, 5]),
            "commit 2 stands in line 4",
            "commit 2 is not in its place",
        ),
        (
            "inserted commit",
            joined(&[0, 1, 2, 2, 3, 4, 5]),
            "line 4 has a commit 2 once more",
            "commit 3 is not in its place",
        ),
        (
            "dropped event",
            with_events(|events| drop(events.remove(0))),
            "commit 4 has an event dropped at position 4",
            "event 4 is not in its place",
        ),
        (
            "dropped last event",
            with_events(|events| drop(events.pop())),
            "the chain breaks at commit 4",
            "chain at commit 4",
        ),
        (
            "reordered events",
            with_events(|events| events.swap(0, 1)),
            "its events reordered at position 4",
            "event 4 is not in its place",
        ),
        (
            "inserted event",
            with_events(|events| events.insert(1, events[0].clone())),
            "an event inserted at position 5",
            "event 5 is not in its place",
        ),
        (
            "hidden event",
            with_events(|events| events[1] = serde_json::json!({ "content_hash": "0".repeat(64) })),
            "the chain breaks at commit 4",
            "chain at commit 4",
        ),
        (
            "altered chain",
            replaced(first.as_str().expect("a hash"), &"0".repeat(64)),
            "the chain breaks at commit 1",
            "chain at commit 1",
        ),
        (
            "another log's",
            replaced(log.as_str().expect("an id"), "00000000000000000000000000"),
            "the chain breaks at commit 1",
            "chain at commit 1",
        ),
        (
            "truncated",
            joined(&[0, 1, 2, 3, 4]),
            "cut off behind commit 4: its last line is missing",
            "cut off",
        ),
        ("truncated within a line", half, "it is cut off", ""),
        (
            "end before its time",
            joined(&[0, 1, 2, 3, 5]),
            "cut off behind commit 3",
            "cut off",
        ),
        (
            "text behind the end",
            joined(&[0, 1, 2, 3, 4, 5, 1]),
            "line 7 stands behind the export's end",
            "behind the end",
        ),
        (
            "a foreign field",
            replaced("\"commit\":2,", "\"commit\":2,\"note\":\"x\","),
            "unknown field",
            "unknown field",
        ),
        (
            "a foreign field of the first line",
            replaced("\"log\":", "\"note\":\"x\",\"log\":"),
            "unknown field",
            "unknown field",
        ),
        (
            "a foreign field of an event",
            replaced("\"kind\":", "\"note\":\"x\",\"kind\":"),
            "unknown field",
            "unknown field",
        ),
        (
            "a foreign field of the end",
            replaced("{\"end\":{", "{\"end\":{\"note\":\"x\","),
            "unknown field",
            "unknown field",
        ),
        (
            "a field twice",
            replaced("\"commit\":2,", "\"commit\":7,\"commit\":2,"),
            "duplicate field",
            "a field stands twice",
        ),
        (
            "a field of an event twice",
            replaced("\"kind\":", "\"kind\":\"test.forged.v1\",\"kind\":"),
            "duplicate field",
            "a field stands twice",
        ),
    ];
    for (name, altered, ours, theirs) in cases {
        assert_ne!(altered, text, "{name} alters nothing");
        let verdicts = judge(dir.path(), &altered, &[]);
        assert_caught(name, verdicts, ours, theirs);
    }
}

/// Goal: there is no byte in an export that could be changed unnoticed. Method: each byte is, in
/// three ways.
#[tokio::test]
async fn no_flipped_bit_in_an_export_goes_unnoticed() {
    let Exported { text, .. } = exported().await;
    let mut bytes = text.into_bytes();
    for at in 0..bytes.len() {
        for mask in [0x01, 0x20, 0x80] {
            bytes[at] ^= mask;
            let verdict = check_export(bytes.as_slice(), &[], None);
            assert!(verdict.is_err(), "byte {at} ^ {mask:#x}");
            bytes[at] ^= mask;
        }
    }
    assert!(check_export(bytes.as_slice(), &[], None).is_ok());
}

/// Goal: a history that was rewritten and chained anew from its first commit on is whole in itself,
/// and shows against one chain hash known from elsewhere; so does an end that was cut off neatly.
#[tokio::test]
async fn a_rewritten_history_shows_against_a_known_chain_hash() {
    let Exported { dir, text, known } = exported().await;
    let check = |text: &str, known: &[Known]| judge(dir.path(), text, known);
    let same = forged(&text, |_| {});
    assert_eq!(
        check(&same, &[known]).0.map(|report| report.head.chain),
        Ok(known.chain)
    );

    let altered = forged(&text, |lines| {
        let event = &mut lines[2]["events"][0];
        let data = event["data"].as_str().expect("text").replace(":1", ":7");
        event["data"] = data.into();
    });
    let cut = forged(&text, |lines| drop(lines.pop()));
    for whole in [&altered, &cut] {
        let (ours, theirs) = check(whole, &[]);
        assert!(
            ours.is_ok() && theirs.is_none_or(|said| said.is_ok()),
            "the forgery is bad"
        );
    }
    let theirs = "commit 4 is not the one known";
    assert_caught(
        "rewritten",
        check(&altered, &[known]),
        "history was rewritten: at commit 4",
        theirs,
    );
    assert_caught(
        "cut off",
        check(&cut, &[known]),
        "the export ends at commit 3, but commit 4",
        theirs,
    );
    let other = Known {
        log: Some(ulid::Ulid::nil()),
        ..known
    };
    let said = check_export(text.as_bytes(), &[other], None).expect_err("another log");
    assert!(
        said.to_string().contains("the checkpoint of log 00000000"),
        "{said}"
    );
    // Before the first commit there is a chain hash too.
    let empty = Known { commit: 0, ..known };
    assert!(check_export(text.as_bytes(), &[empty], None).is_err());
}

/// Events for `org` and for another organization, in shared commits and streams.
async fn two_tenants(log: &EventLog, org: OrgId) {
    let append = async |who: OrgId, names: &[&str]| {
        let events = names.iter().map(|name| event(name, who)).collect();
        let mut append = command(&[], events);
        append.actor = Actor::api(who, None);
        log.append(append).await.expect("appended");
    };
    let other = OrgId::generate();
    append(org, &["mine", "shared"]).await;
    append(other, &["theirs", "shared"]).await;
    append(org, &["mine", "shared"]).await;
    append(other, &["theirs"]).await;
    fill(log, "system", 1).await;
}

/// Goal: an organization's export has its own events in full and nothing of the others but content
/// hashes; both verifiers still follow the chain to the same head, and still find tampering.
#[tokio::test]
async fn an_organizations_export_withholds_the_others_and_still_verifies() {
    let dir = tempfile::tempdir().expect("a folder");
    let log = open(&dir.path().join("log"));
    let org = OrgId::generate();
    two_tenants(&log, org).await;
    let mut export = log.export(Audience::Org(org));
    let mut bytes = Vec::new();
    while let Some(piece) = export.next_piece().await.expect("a piece") {
        bytes.extend(piece);
    }
    let head = log.head();
    log.close().await;
    let text = String::from_utf8(bytes).expect("UTF-8");
    assert!(
        !text.contains("theirs") && !text.contains("system"),
        "{text}"
    );

    let report = check_export(text.as_bytes(), &[], Some(&stream("shared"))).expect("whole");
    assert_eq!((report.events, report.withheld, report.head), (4, 4, head));
    let shared = report.stream.expect("a stream");
    assert_eq!((shared.events, shared.last_revision), (2, 2));
    let path = dir.path().join("export.jsonl");
    std::fs::write(&path, &text).expect("written");
    let path = path.to_str().expect("UTF-8");
    if let Some(said) = python("fixtures/verify_chain.py", &[path, "shared"]) {
        let said = said.expect("whole");
        assert!(
            said.contains("stream shared: 2 events, last revision 2"),
            "{said}"
        );
        assert!(
            said.contains("ok 8 events (4 withheld), 5 commits"),
            "{said}"
        );
    }
    let unknown = check_export(text.as_bytes(), &[], Some(&stream("theirs")));
    assert!(
        unknown
            .expect_err("not in full")
            .to_string()
            .contains("no event of stream theirs")
    );

    // An own event that is hidden afterwards leaves a gap nothing accounts for only if the chain
    // is made anew; the revision check does not rest on the chain alone.
    let lines: Vec<&str> = text.lines().collect();
    let hidden = lines[2].rfind("\"content_hash\":\"").expect("a hash") + 16;
    let mut altered = lines[2].to_owned();
    altered.replace_range(
        hidden..hidden + 1,
        if &altered[hidden..=hidden] == "0" {
            "1"
        } else {
            "0"
        },
    );
    let altered = text.replacen(lines[2], &altered, 1);
    let verdicts = judge(dir.path(), &altered, &[]);
    assert_caught(
        "another's hash",
        verdicts,
        "the chain breaks at commit 2",
        "chain at commit 2",
    );
}
