//! What a crash, an older version or an operator may leave behind, planted and found again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use opencomputer::ids::SandboxId;
use opencomputer::sandbox::{Driver, NamespaceDriver, SandboxSpec};
use rustix::mount::{MountFlags, mount, mount_bind};
use serde_json::json;

use crate::common::Server;
use crate::support::{program, root_or_skip, spec, traces};

/// Groups of a sandbox of this machine, to be imitated.
fn groups_of(id: &str) -> Vec<PathBuf> {
    let names = BTreeSet::from([id.to_owned()]);
    let all = traces(&names).into_iter().map(PathBuf::from);
    all.filter(|path| path.starts_with("/sys/fs/cgroup"))
        .collect()
}

/// Makes for `id` every group that sandbox `like` has.
fn plant_groups(like: &str, id: &SandboxId) {
    for group in groups_of(like) {
        let name = group.file_name().unwrap().to_str().unwrap();
        let name = name.replace(like, id.as_str());
        fs::create_dir(group.with_file_name(name)).unwrap();
    }
}

/// Leaves a folder with the parts of a disk, a mount and a namespace in it.
fn plant_folder(sandboxes: &Path, id: &SandboxId) {
    let home = sandboxes.join(id.as_str());
    fs::create_dir_all(home.join("disk/root/upper/etc")).unwrap();
    fs::write(home.join("disk.draft"), "half made").unwrap();
    let at = home.join("disk/mounted");
    fs::create_dir(&at).unwrap();
    mount("none", &at, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(at.join("file"), "x").unwrap();
    fs::write(home.join("namespace"), "").unwrap();
    mount_bind("/proc/self/ns/uts", home.join("namespace")).unwrap();
}

/// Waits until nothing of `names` is left on this machine.
async fn gone(sandboxes: &Path, names: &BTreeSet<String>) {
    let left = || {
        let mut all = traces(names);
        let folders = names.iter().map(|name| sandboxes.join(name));
        all.extend(
            folders
                .filter(|path| path.exists())
                .map(|path| path.display().to_string()),
        );
        all
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !left().is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(left(), Vec::<String>::new());
}

/// Goal: a server clears what no record knows, at its start and in its rounds, and brings back what
/// its records know and the world has lost; what belongs to neither stays untouched.
#[actix_rt::test]
async fn planted_orphans_are_cleared_and_the_lost_is_brought_back() {
    if !root_or_skip() {
        return;
    }
    let _alone = crate::ALONE.lock().await;
    let mut server = Server::start();
    let api = server.api();
    let body = json!({ "memoryMB": 128, "timeout": 0 });
    let known = api.post("/api/sandboxes", &body).await.ok(201).json();
    let known = known["sandboxID"].as_str().expect("an id").to_owned();
    let run = |script: &str| json!({ "cmd": "sh", "args": ["-c", script] });
    let exec = format!("/api/sandboxes/{known}/exec/run");
    api.post(&exec, &run("echo kept > /workspace/file && sync"))
        .await
        .ok(200);
    server.stop();

    let sandboxes = server.data().canonicalize().unwrap().join("sandboxes");
    let driver = NamespaceDriver::with_program(&sandboxes, program()).unwrap();
    let [supervised, folder, group, later] = std::array::from_fn(|_| SandboxId::generate());
    let orphan = SandboxSpec {
        id: supervised.clone(),
        ..spec()
    };
    let orphan = driver.create(&orphan).await.unwrap();
    plant_folder(&sandboxes, &folder);
    plant_groups(&known, &group);
    // The record is left, its supervisor is not.
    let lost = driver
        .attach(&known.parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    let pid = rustix::process::Pid::from_raw(lost.supervisor_pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    lost.exited().await;
    let strange = sandboxes.join("not-a-sandbox");
    fs::write(&strange, "").unwrap();

    server.restart();
    let planted = [&supervised, &folder, &group].map(ToString::to_string);
    gone(&sandboxes, &planted.into()).await;
    orphan.exited().await;
    let api = server.api();
    let found = api
        .post(&exec, &run("cat /workspace/file"))
        .await
        .ok(200)
        .json();
    assert_eq!(found["stdout"], "kept\n", "{found}");
    assert!(strange.exists());

    // In a running server the next round finds it.
    plant_folder(&sandboxes, &later);
    plant_groups(&known, &later);
    gone(&sandboxes, &BTreeSet::from([later.to_string()])).await;
    api.delete(&format!("/api/sandboxes/{known}")).await.ok(204);
    gone(&sandboxes, &BTreeSet::from([known])).await;
}
