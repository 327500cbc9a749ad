//! The export, checked by a stranger: the Python program beside the fixtures.

use std::path::Path;
use std::process::Command;

use super::support::{command, event, fill, open};
use crate::events::Actor;
use crate::ids::{KeyId, OrgId};

/// What the stranger says of an export; `None` when this machine has no Python.
fn stranger(export: &Path, chain: Option<&str>) -> Option<Result<String, String>> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/verify_chain.py");
    let output = match Command::new("python3")
        .arg(program)
        .arg(export)
        .args(chain)
        .output()
    {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: python3 can't be started: {error}");
            return None;
        }
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = if output.status.success() {
        Ok(&output.stdout)
    } else {
        Err(&output.stderr)
    };
    Some(said.map(|out| text(out)).map_err(|err| text(err)))
}

/// Goal: thirty lines of another language agree with the log on its head, and find every kind of
/// tampering. Method: an export with all fields set and text of several alphabets, then altered.
#[tokio::test]
async fn a_stranger_can_verify_an_export_and_finds_tampering() {
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
    log.close().await;
    let text = String::from_utf8(bytes).expect("UTF-8");

    let path = dir.path().join("export.jsonl");
    let check = |text: &str, chain: Option<&str>| {
        std::fs::write(&path, text).expect("written");
        stranger(&path, chain)
    };
    let chain = hex::encode(head.chain);
    let Some(said) = check(&text, Some(&chain)) else {
        return;
    };
    assert_eq!(said, Ok(format!("ok 5 events, 4 commits, chain {chain}\n")));

    let lines: Vec<&str> = text.lines().collect();
    let joined = |lines: &[&str]| lines.join("\n") + "\n";
    let swapped = [lines[0], lines[2], lines[1], lines[3], lines[4], lines[5]];
    let tampered = [
        (
            "content",
            text.replacen("\\\"value\\\":1", "\\\"value\\\":7", 1),
        ),
        (
            "content",
            text.replacen("\"stream\":\"plain\"", "\"stream\":\"plane\"", 1),
        ),
        (
            "content",
            text.replacen("\"actor\":\"api\"", "\"actor\":\"system\"", 1),
        ),
        ("is missing", joined(&[&lines[..1], &lines[2..]].concat())),
        ("is missing", joined(&swapped)),
        (
            "chain at commit 1",
            text.replacen(&text_hash(lines[1]), &"0".repeat(64), 1),
        ),
        ("not a whole export", joined(&lines[..5])),
        ("ends early", joined(&[&lines[..4], &lines[5..]].concat())),
        (
            "chain at commit 1",
            text.replacen(&log_id(lines[0]), "00000000000000000000000000", 1),
        ),
    ];
    for (index, (fault, altered)) in tampered.iter().enumerate() {
        assert_ne!(altered, &text, "case {index} alters nothing");
        let said = check(altered, None).expect("Python was there a moment ago");
        assert!(
            said.as_ref().is_err_and(|m| m.contains(fault)),
            "case {index}: {said:?}"
        );
    }
    let other = check(&text, Some(&"0".repeat(64))).expect("Python was there a moment ago");
    assert!(other.is_err_and(|message| message.contains("not the one expected")));
}

/// The chain hash in a commit's line.
fn text_hash(line: &str) -> String {
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    line["chain"].as_str().expect("a hash").to_owned()
}

fn log_id(line: &str) -> String {
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    line["log"].as_str().expect("an id").to_owned()
}
