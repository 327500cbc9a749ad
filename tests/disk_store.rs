//! Where disks can lie: the same tests for every store that works here, on a real server with real
//! sandboxes. What doesn't work here is said.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::checkpoints::{checkpoint, fork, fsck, id_of, path_of, run, sandbox};
use common::{Api, Server};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const STORES: [&str; 3] = ["files", "pool-xfs", "pool-btrfs"];
/// Written on a disk that is then copied, in MiB: far more than anything else that is written meanwhile.
const BIG_MIB: u64 = 192;

/// Whether this machine can have such a store, by its own words; says what is missing.
fn works(store: &str) -> bool {
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_oc"))
        .args(["doctor", "--json", "--data-dir"])
        .arg(folder.path())
        .env_clear()
        .output()
        .expect("oc runs");
    let checks: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rows = checks.as_array().expect("a list");
    let named = |name: &str| rows.iter().find(|row| row["name"] == name);
    assert!(named("disk store").is_some(), "{checks}");
    let Some(kind) = store.strip_prefix("pool-") else {
        return true;
    };
    let has = |path: &str| Path::new(path).exists();
    let disks = named("disk limit").is_some_and(|row| row["ok"] == true);
    let made = has(&format!("/usr/sbin/mkfs.{kind}")) || has(&format!("/sbin/mkfs.{kind}"));
    let types = fs::read_to_string("/proc/filesystems").expect("readable");
    let known = types.lines().any(|line| line.trim() == kind);
    let works = disks && made && known && rustix::process::geteuid().is_root();
    if !works {
        println!("skipped: {store}: disks {disks}, mkfs.{kind} {made}, kernel {known}");
    }
    works
}

/// What the files of all stores take of the host's disk.
fn taken(server: &Server) -> u64 {
    fn below(path: &Path) -> u64 {
        let Ok(meta) = fs::symlink_metadata(path) else {
            return 0;
        };
        let inner = fs::read_dir(path).into_iter().flatten().flatten();
        let inner: u64 = match meta.is_dir() {
            true => inner.map(|entry| below(&entry.path())).sum(),
            false => 0,
        };
        meta.blocks() * 512 + inner
    }
    rustix::fs::sync();
    below(&server.data().join("sandboxes"))
}

/// The folder in which new disks lie, as the server sees it.
fn root(server: &Server, store: &str) -> PathBuf {
    let own = server.data().canonicalize().expect("a folder");
    let seen = format!("/proc/{}/root{}", server.pid(), own.display());
    let root = PathBuf::from(seen).join("sandboxes");
    match store {
        "files" => root,
        _ => root.join(".pool"),
    }
}

async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn restore(api: &Api, path: &str, checkpoint: &Value) {
    let restore = format!("{path}/checkpoints/{}/restore", id_of(checkpoint));
    api.call("POST", &restore, None).await.ok(200);
}

/// Checkpoint, fork, restore, a killed server, deletes: with one store.
async fn everything_works(store: &str) {
    println!("with {store}");
    let mut server = Server::prepare().args(&["--disk-store", store]);
    server.restart();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({ "timeout": 0 })).await else {
        return;
    };
    let id = path.rsplit('/').next().expect("an id").to_owned();
    assert!(
        root(&server, store).join(&id).is_dir(),
        "it lies in {store}"
    );
    let big = format!("head -c {} /dev/urandom > ~/big; sync", BIG_MIB << 20);
    run(&api, &path, &big).await;
    let sum = run(&api, &path, "echo one > ~/file; sha256sum < ~/big").await;
    let before = taken(&server);
    let first = checkpoint(&api, &path, "first").await;
    let forked = path_of(&fork(&api, &first, &json!({ "timeout": 0 })).await);
    let grown = taken(&server).saturating_sub(before);
    match store {
        "files" => println!("a checkpoint and a fork took {} MiB", grown >> 20),
        // Neither holds a second of the large file's blocks.
        _ => assert!(
            grown < BIG_MIB << 20,
            "{grown} bytes for a checkpoint and a fork"
        ),
    }
    let look = "cat ~/file; sha256sum < ~/big";
    assert_eq!(run(&api, &forked, look).await, format!("one\n{sum}"));
    run(&api, &forked, "echo fork > ~/file; echo x >> ~/big").await;
    run(&api, &path, "echo two > ~/file; rm ~/big").await;
    restore(&api, &path, &first).await;
    assert_eq!(run(&api, &path, look).await, format!("one\n{sum}"));

    // The sandboxes outlive their server, and a later one finds them and their disks.
    run(&api, &path, "echo three > ~/file").await;
    server.kill();
    server.restart();
    let api = server.api();
    assert_eq!(run(&api, &path, "cat ~/file").await, "three");
    assert_eq!(run(&api, &forked, "cat ~/file").await, "fork");
    let again = path_of(&fork(&api, &first, &json!({})).await);
    assert_eq!(run(&api, &again, look).await, format!("one\n{sum}"));
    // Without a living sandbox nobody holds the disks.
    for one in [&path, &forked, &again] {
        api.delete(one).await.ok(204);
    }
    server.stop();
    let (code, report) = fsck(server.data(), &[]);
    assert_eq!((code, &report["clean"]), (0, &json!(true)), "{report}");
    assert_eq!(
        (&report["sandboxes"], &report["checkpoints"]),
        (&json!(0), &json!(1))
    );
    server.restart();
    let api = server.api();
    let last = path_of(&fork(&api, &first, &json!({})).await);
    assert_eq!(run(&api, &last, look).await, format!("one\n{sum}"));
    api.delete(&last).await.ok(204);
    let gone = format!("{path}/checkpoints/{}", id_of(&first));
    api.delete(&gone).await.ok(204);
    let most = BIG_MIB << 20;
    wait_until("the room comes back", || taken(&server) < most).await;
    server.stop();
    let (code, report) = fsck(server.data(), &[]);
    assert_eq!((code, &report["notes"]), (0, &json!([])), "{report}");
}

/// Goal: checkpoints, forks and restores work alike wherever disks lie; with a pool they share blocks;
/// sandboxes and pool outlive a killed server; the room comes back; `oc fsck` finds all in order.
#[actix_rt::test]
async fn every_store_holds_checkpoints_and_forks() {
    for store in STORES.into_iter().filter(|store| works(store)) {
        everything_works(store).await;
    }
}

/// Goal: what was made with one setting is readable with every later one, running sandboxes included,
/// and new disks lie where the present setting says.
#[actix_rt::test]
async fn old_disks_stay_readable_after_switching() {
    let Some(pool) = STORES[1..].iter().find(|store| works(store)) else {
        return;
    };
    let mut server = Server::start();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({ "timeout": 0 })).await else {
        return;
    };
    run(&api, &path, "echo files > ~/file").await;
    let in_files = checkpoint(&api, &path, "in-files").await;
    server.stop();
    let mut server = server.args(&["--disk-store", pool]);
    server.restart();
    let api = server.api();
    assert_eq!(run(&api, &path, "cat ~/file").await, "files");
    let moved = path_of(&fork(&api, &in_files, &json!({ "timeout": 0 })).await);
    let id = moved.rsplit('/').next().expect("an id").to_owned();
    assert!(root(&server, pool).join(&id).is_dir(), "a new disk");
    run(&api, &moved, "cat ~/file; echo pool > ~/file").await;
    let in_pool = checkpoint(&api, &moved, "in-pool").await;
    restore(&api, &path, &in_files).await;
    assert_eq!(run(&api, &path, "cat ~/file").await, "files");
    server.kill();
    let mut server = server.args(&[]);
    server.restart();
    let api = server.api();
    for (one, text) in [(&path, "files"), (&moved, "pool")] {
        assert_eq!(run(&api, one, "cat ~/file").await, text);
    }
    let back = path_of(&fork(&api, &in_pool, &json!({})).await);
    let id = back.rsplit('/').next().expect("an id").to_owned();
    assert!(root(&server, "files").join(&id).is_dir(), "a new disk");
    assert_eq!(run(&api, &back, "cat ~/file").await, "pool");
    for one in [&path, &moved, &back] {
        api.delete(one).await.ok(204);
    }
    server.stop();
    let (code, report) = fsck(server.data(), &[]);
    assert_eq!((code, &report["checkpoints"]), (0, &json!(2)), "{report}");
}
