//! `oc fsck` on the data folder of a real server; where this machine can't have sandboxes, the test
//! says so and stops.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::Server;
use common::checkpoints::{checkpoint, fsck, id_of, path_of, run, sandbox};
use common::offline::Offline;
use opencomputer::events::families::{DecodeError, Family, Upcast};
use opencomputer::events::{EventData, StreamId};
use serde_json::{Value, json};

/// What is wrong, by path, and whether it was put right.
fn faults(report: &Value, root: &Path) -> BTreeMap<String, (String, bool)> {
    let findings = report["findings"].as_array().expect("a list");
    findings
        .iter()
        .map(|finding| {
            let path = Path::new(finding["path"].as_str().expect("a path"));
            let path = path.strip_prefix(root).expect("below the folder");
            let fault = finding["fault"].as_str().expect("a word").to_owned();
            let repaired = finding["repaired"] == true;
            (path.display().to_string(), (fault, repaired))
        })
        .collect()
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, text).expect("written");
}

/// Goal: what a server leaves is found in order, also with sandboxes that run on; every kind of debris
/// of a crash is found, and removed with `--repair`, and nothing else is; what is missing or of a
/// wrong size is told and stays a fault; a server that runs is left alone.
#[actix_rt::test]
async fn disks_and_records_are_compared_and_put_right() {
    let mut server = Server::start();
    let api = server.api();
    let (code, report) = fsck(server.data(), &["--repair"]);
    assert_eq!((code, report), (1, Value::Null), "a server runs on it");
    let Some(path) = sandbox(&api, &json!({ "timeout": 0 })).await else {
        return;
    };
    run(&api, &path, "echo kept > ~/file").await;
    let kept = checkpoint(&api, &path, "kept").await;
    let spoilt = checkpoint(&api, &path, "spoilt").await;
    let lost = checkpoint(&api, &path, "lost").await;
    let gone = sandbox(&api, &json!({})).await.expect("a second one");
    api.delete(&gone).await.ok(204);
    server.stop();
    let (code, report) = fsck(server.data(), &[]);
    assert_eq!((code, &report["clean"]), (0, &json!(true)), "{report}");
    assert_eq!(
        (&report["sandboxes"], &report["checkpoints"]),
        (&json!(1), &json!(3))
    );
    assert!(report["sandboxesBytes"].as_u64() > Some(0), "{report}");
    // By another name of the folder: what is in use is known by its place.
    let link = server.root().join("link");
    std::os::unix::fs::symlink(server.data(), &link).expect("a link");
    let (code, report) = fsck(&link, &[]);
    assert_eq!((code, &report["clean"]), (0, &json!(true)), "{report}");

    let root = server.data().join("sandboxes");
    let living = path.rsplit('/').next().expect("an id");
    let stranger = "01890000-0000-7000-8000-000000000000";
    let copy = |id: &str| format!(".checkpoints/{id}");
    for file in [
        "sb-01arz3ndektsv4rrffq69g5fav/disk.img".to_owned(),
        format!("{}/disk.img", copy(stranger)),
        format!(".checkpoints/.draft-{stranger}/disk.img"),
        ".base/00000000000000000000000000000000/root/etc/passwd".to_owned(),
        ".base/.draft-1-00000000000000000000000000000000/root/x".to_owned(),
        ".base/.blank-77.draft-1".to_owned(),
        "strange".to_owned(),
        // Its sandbox runs: whoever holds it may be at work on it.
        format!("{living}/disk.new"),
    ] {
        write(&root.join(file), "debris");
    }
    let short = root.join(copy(id_of(&spoilt))).join("disk.img");
    let has_image = short.exists();
    if has_image {
        let file = fs::File::options()
            .write(true)
            .open(&short)
            .expect("the copy");
        file.set_len(1 << 20).expect("cut off");
    }
    fs::remove_dir_all(root.join(copy(id_of(&lost)))).expect("lost");

    let (code, report) = fsck(server.data(), &[]);
    assert_eq!(code, 2, "{report}");
    let found = faults(&report, &root);
    let mut wanted = BTreeMap::new();
    let mut want = |path: String, fault: &str| drop(wanted.insert(path, (fault.to_owned(), false)));
    want(
        "sb-01arz3ndektsv4rrffq69g5fav".to_owned(),
        "diskWithoutRecord",
    );
    want(copy(stranger), "copyWithoutRecord");
    want(format!(".checkpoints/.draft-{stranger}"), "halfMade");
    want(
        ".base/.draft-1-00000000000000000000000000000000".to_owned(),
        "halfMade",
    );
    want(".base/.blank-77.draft-1".to_owned(), "halfMade");
    want(copy(id_of(&lost)), "recordWithoutCopy");
    if has_image {
        want(copy(id_of(&spoilt)), "size");
    }
    assert_eq!(
        found, wanted,
        "a plan is missing, so every template counts as used"
    );
    let notes = report["notes"].to_string();
    assert!(notes.contains("strange"), "{notes}");

    let (code, report) = fsck(server.data(), &["--repair"]);
    assert_eq!(code, 2, "what is missing stays missing: {report}");
    let (code, report) = fsck(server.data(), &["--repair"]);
    assert_eq!(code, 2, "{report}");
    let found = faults(&report, &root);
    let template = ".base/00000000000000000000000000000000".to_owned();
    assert_eq!(
        found.get(&template),
        Some(&("unusedTemplate".to_owned(), true))
    );
    assert_eq!(found.len(), if has_image { 3 } else { 2 }, "{found:?}");
    assert!(
        root.join("strange").exists(),
        "what is not known is left alone"
    );

    // The records are put right by the server; what was whole is untouched.
    server.restart();
    let api = server.api();
    assert_eq!(run(&api, &path, "cat ~/file").await, "kept");
    for one in [&lost, &spoilt] {
        let gone = format!("{path}/checkpoints/{}", id_of(one));
        api.delete(&gone).await.ok(204);
    }
    let from = format!("/api/sandboxes/from-checkpoint/{}", id_of(&kept));
    let forked = path_of(&api.post(&from, &json!({})).await.ok(201).json());
    assert_eq!(run(&api, &forked, "cat ~/file").await, "kept");
    api.delete(&path).await.ok(204);
    server.stop();
    let (code, report) = fsck(server.data(), &[]);
    assert_eq!((code, &report["clean"]), (0, &json!(true)), "{report}");
}

/// An event of a version to come.
#[derive(Clone)]
struct Newer;

impl Family for Newer {
    const KINDS: &'static [&'static str] = &["sandbox.moved.v9"];
    const UPCASTS: &'static [Upcast] = &[];
    fn kind(&self) -> &'static str {
        "sandbox.moved.v9"
    }
    fn data(&self) -> Result<Value, serde_json::Error> {
        Ok(json!({}))
    }
    fn decode(kind: &str, _: &EventData) -> Result<Self, DecodeError> {
        Err(DecodeError::UnknownKind(kind.to_owned()))
    }
}

/// Goal: nothing is removed on the word of records that are not understood. Method: debris, and an
/// event of a version to come.
#[test]
fn nothing_is_removed_when_records_are_not_understood() {
    let mut server = Server::start();
    server.stop();
    let debris = server
        .data()
        .join("sandboxes/sb-01arz3ndektsv4rrffq69g5fav/disk.img");
    write(&debris, "debris");
    let stream = StreamId::of("sandbox", "sb-01arz3ndektsv4rrffq69g5fav");
    Offline::open(server.data()).append(&stream, None, &[Newer]);
    let (code, report) = fsck(server.data(), &["--repair"]);
    assert_eq!((code, report), (1, Value::Null));
    assert!(debris.exists());
    let (code, report) = fsck(server.data(), &[]);
    assert_eq!(code, 2, "looking is allowed: {report}");
}
