//! A server that is in doubt does not start, says why and what to do, and changes nothing.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Server, world};
use serde_json::json;

/// A stopped server whose log has some events and whose keyring has a key.
async fn stopped_server() -> Server {
    let mut server = Server::start();
    let id = server.api().project(&json!({ "name": "p" })).await;
    let path = format!("/api/projects/{id}/secrets/A");
    server
        .api()
        .put(&path, &json!({ "value": "v" }))
        .await
        .ok(200);
    assert!(server.stop().success());
    server
}

fn check(server: &Server, wanted: &[&str]) {
    let said = server.refusal(|_| {});
    for part in wanted {
        assert!(said.contains(part), "wanted {part:?} in: {said}");
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("readable");
    let byte = bytes.get_mut(at).expect("long enough");
    *byte ^= 0x10;
    fs::write(path, bytes).expect("writable");
}

/// Goal: two servers never write one log; the second says who has it.
#[actix_rt::test]
async fn a_second_server_on_the_same_folder_is_refused() {
    let server = Server::start();
    let holder = fs::read_to_string(server.data().join("log/lock")).expect("a lock file");
    let said = server.refusal(|_| {});
    assert!(said.contains("is in use by another server"), "{said}");
    assert!(
        said.contains(&format!("process {}", holder.trim())),
        "{said}"
    );
    // The first one is not disturbed, and is still the one that is announced.
    server.api().get("/api/projects").await.ok(200);
    let announced = fs::read_to_string(server.data().join("endpoint.json")).expect("an endpoint");
    assert!(announced.contains(server.url()), "{announced}");
}

/// Goal: a master key that others may have read, that is another's or that is gone is no key.
#[actix_rt::test]
async fn a_doubtful_master_key_is_refused() {
    let mut server = stopped_server().await;
    let (key, keys) = (
        server.data().join("master.key"),
        server.data().join("keys.db"),
    );
    let right = fs::read(&key).expect("readable");

    fs::set_permissions(&key, Permissions::from_mode(0o644)).expect("chmod");
    check(&server, &["master.key has mode 0644", "chmod 600"]);
    fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("chmod");

    fs::write(&key, format!("{}\n", "7".repeat(64))).expect("writable");
    check(
        &server,
        &[
            "keys.db does not open with this master key",
            "put back the one",
        ],
    );
    fs::write(&key, "not a key").expect("writable");
    check(&server, &["is not a master key", "64 hexadecimal digits"]);

    fs::remove_file(&key).expect("removable");
    println!("{}", server.refusal(|_| {}));
    check(&server, &["master.key", "is missing"]);
    // A key made now would only hide that the right one is missing.
    assert!(!key.exists(), "a refused start made a new master key");

    fs::write(&key, &right).expect("writable");
    fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("chmod");
    let aside = server.data().join("keys.aside");
    fs::rename(&keys, &aside).expect("renamed");
    check(
        &server,
        &["keys.db is missing or empty", "restore it from a backup"],
    );
    let _ = fs::remove_file(&keys);
    fs::rename(&aside, &keys).expect("renamed");
    server.restart();
    server.api().verified_positions().await;
}

/// Goal: a log that lost or changed bytes, or lost its witness, is not served.
#[actix_rt::test]
async fn a_damaged_log_is_refused() {
    let mut server = stopped_server().await;
    let log = server.data().join("log");
    let kept = server.root().join("kept");
    copy(&log, &kept);
    let db = log.join("log.db");
    let length = fs::metadata(&db).expect("a log").len();

    let half = fs::File::options().write(true).open(&db).expect("writable");
    half.set_len(length / 2 / 4096 * 4096).expect("cut");
    check(&server, &["event log", "restore the folder from a backup"]);
    copy(&kept, &log);

    fs::write(&db, b"").expect("writable");
    check(
        &server,
        &["ends at position 0", "acknowledged events are missing"],
    );
    copy(&kept, &log);

    // In the middle of an event's text, where no page structure would notice.
    let bytes = fs::read(&db).expect("readable");
    let needle = b"\"timeoutSec\":300";
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle)
        .expect("an event");
    flip(&db, at + needle.len() - 1);
    check(&server, &["is damaged"]);
    copy(&kept, &log);

    let witness = log.join("head.witness");
    fs::remove_file(&witness).expect("removable");
    check(&server, &["head.witness is missing", "accept-head"]);
    fs::write(&witness, vec![0; 100]).expect("writable");
    check(&server, &["head.witness is unreadable"]);
    copy(&kept, &log);

    server.restart();
    server.api().verified_positions().await;
}

/// Goal: settings that would open the server to everybody, or that are not what they should be,
/// are refused before anything is made.
#[actix_rt::test]
async fn unsafe_settings_are_refused() {
    let server = Server::prepare();
    let said = server.refusal(|command| {
        command.arg("--no-auth").env("OC_LISTEN", "0.0.0.0:0");
    });
    assert!(said.contains("--no-auth with 0.0.0.0:0"), "{said}");
    assert!(said.contains("loopback"), "{said}");
    for bad in [
        "osb_short",
        "plain",
        &"a".repeat(68),
        &format!("osb_{}", "A".repeat(64)),
    ] {
        let said = server.refusal(|command| {
            command.env("OPENCOMPUTER_BOOTSTRAP_KEY", bad);
        });
        assert!(
            said.contains("OPENCOMPUTER_BOOTSTRAP_KEY must be `osb_` followed by"),
            "{said}"
        );
        assert!(!said.contains(bad), "the bad key is repeated: {said}");
    }
    // The corrected start works on the same folder, and the key is the one given.
    let mut server = server;
    server.restart();
    server.api().get("/api/whoami").await.ok(200);
}

/// Goal: on a full disk writes fail with an envelope, the server says why, and with space again
/// everything acknowledged is there.
#[actix_rt::test]
async fn a_full_disk_loses_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting a small file system needs root");
        return;
    }
    let root = tempfile::Builder::new()
        .prefix("oc-test-")
        .tempdir()
        .expect("a folder");
    let disk = Disk::mount(&root.path().join("disk"));
    let data = disk.0.join("data");
    let mut server = Server::prepare_in(root, data);
    server.restart();
    let api = server.api();
    let mut names = vec!["before".to_owned()];
    api.project(&json!({ "name": "before" })).await;
    let filler = disk.0.join("filler");
    fill(&filler);
    let mut refused = None;
    for number in 0..2000 {
        let name = format!("p{number}");
        let body = json!({ "name": name, "egressAllowlist": vec![format!("{}.test", "a".repeat(60)); 200] });
        let reply = api.post("/api/projects", &body).await;
        match reply.status {
            201 => names.push(name),
            _ => {
                refused = Some(reply);
                break;
            }
        }
    }
    let refused = refused.expect("a write that found the disk full");
    let error = refused.json()["error"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    println!("{} after {} writes: {error}", refused.status, names.len());
    assert!((500..600).contains(&refused.status), "{refused:?}");
    assert!(error.contains("full") || error.contains("space"), "{error}");
    assert!(
        server.log().contains("full") || server.log().contains("space"),
        "{}",
        server.log()
    );

    fs::remove_file(&filler).expect("removable");
    match server.has_ended() {
        true => assert!(
            !server.wait_end().success(),
            "ending on a full disk is no success"
        ),
        // A server that goes on takes writes again.
        false => {
            api.project(&json!({ "name": "after" })).await;
            names.push("after".to_owned());
            server.stop();
        }
    }
    server.restart();
    let listed = server.api().get("/api/projects").await.ok(200).json();
    let mut listed: Vec<_> = listed
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| row["name"].as_str().expect("a name").to_owned())
        .collect();
    listed.sort();
    names.sort();
    assert_eq!(listed, names);
    server.api().verified_positions().await;
    server.kill();
    world::sweep(server.data());
    drop(disk);
}

/// A small file system in memory, unmounted when dropped.
struct Disk(std::path::PathBuf);

impl Disk {
    fn mount(point: &Path) -> Self {
        use rustix::mount::{MountFlags, mount};
        fs::create_dir_all(point).expect("a mount point");
        let options = c"size=16m,mode=0700";
        mount("none", point, "tmpfs", MountFlags::empty(), options).expect("a tmpfs");
        Self(point.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        use rustix::mount::{UnmountFlags, unmount};
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// Takes all the space but a little.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).expect("a file");
    while file.write_all(&[0; 64 * 1024]).is_ok() {}
    let length = file.metadata().expect("its size").len();
    file.set_len(length.saturating_sub(512 * 1024))
        .expect("some space is left");
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).expect("a folder");
    fs::set_permissions(to, Permissions::from_mode(0o700)).expect("chmod");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}
