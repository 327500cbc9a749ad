//! The bounds of a comparison, on plain folders.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::walk::{DEPTH_MAX, NAMES_MAX, compare};
use super::{Folder, Layer, Side};

fn side(root: &Path) -> Side {
    Side {
        root: Folder(vec![Layer::open(root).unwrap()]),
        usr: Folder::default(),
        first: 0,
    }
}

fn lines(from: &Path, to: &Path, time: Duration) -> Vec<Value> {
    let mut out = Vec::new();
    compare(&side(from), &side(to), time, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let line = |line| serde_json::from_str(line).unwrap();
    text.lines().map(line).collect()
}

/// Goal: every name of a folder that has more of them than are held is told once, also when the folder
/// is only on one side; what is mounted over is not looked at.
#[test]
fn folders_of_any_size_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("many")).unwrap();
    fs::create_dir_all(to.join("proc/1")).unwrap();
    let count = NAMES_MAX * 2 + 7;
    for number in 0..count {
        fs::write(from.join(format!("many/{number}")), "x").unwrap();
    }
    let mut told = lines(&from, &to, Duration::from_secs(60));
    let summary = told.pop().unwrap();
    assert_eq!(summary["summary"]["removed"], count + 1);
    assert_eq!(summary["summary"]["added"], 0);
    let names: std::collections::BTreeSet<_> =
        told.iter().map(|line| line["path"].to_string()).collect();
    assert_eq!((names.len(), told.len()), (count + 1, count + 1));
}

/// Goal: what is too deep to be entered is told as not compared, and takes no more of the stack.
#[test]
fn too_deep_folders_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir_all(to.join(["d"; DEPTH_MAX + 3].join("/"))).unwrap();
    let told = lines(&from, &to, Duration::from_secs(60));
    let summary = &told[told.len() - 1]["summary"];
    assert_eq!(summary["unknown"], 1);
    assert_eq!(summary["added"], DEPTH_MAX + 1);
    let deepest = &told[told.len() - 2];
    assert_eq!(deepest["change"], "unknown", "{deepest}");
}

/// Goal: a comparison without time says that it is not complete.
#[test]
fn an_unfinished_comparison_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    for folder in [&from, &to] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("file"), "same").unwrap();
    }
    let told = lines(&from, &to, Duration::ZERO);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["summary"]["complete"], false);
    let told = lines(&from, &to, Duration::from_secs(60));
    let whole = json!({ "added": 0, "removed": 0, "changed": 0, "unknown": 0, "complete": true });
    assert_eq!(told, [json!({ "summary": whole })]);
}
