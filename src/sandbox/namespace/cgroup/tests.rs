//! Control groups: where they are found, what is written, what is claimed.

use super::*;

const MOUNTS: &str = "\
30 25 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 /pod /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

#[test]
fn own_groups_are_found_in_every_layout() {
    let own = "3:cpu,cpuacct:/a\n4:memory:/a/b\n5:pids:/pod/x\n0::/u";
    let layout = Layout::parse(MOUNTS, own);
    let path = |p: &str| Some(PathBuf::from(p));
    assert_eq!(layout.cpu, path("/sys/fs/cgroup/cpu,cpuacct/a"));
    assert_eq!(layout.memory, path("/sys/fs/cgroup/memory/a/b"));
    assert_eq!(layout.pids, path("/sys/fs/cgroup/pids/x"));
    assert_eq!(layout.unified, path("/sys/fs/cgroup/unified/u"));
    assert_eq!(layout.freezer, None);
    assert_eq!(layout.kind(), "hybrid");
    assert_eq!(Layout::parse("", own).kind(), "none");
    assert_eq!(Layout::parse(MOUNTS, "").kind(), "none");
    // Outside of the shown part of a hierarchy there is nothing to write to.
    assert_eq!(Layout::parse(MOUNTS, "5:pids:/other").pids, None);
}

#[test]
fn no_groups_means_no_claims() {
    let limits = Layout::default().limits();
    assert_eq!(limits.memory, Enforcement::Process);
    assert_eq!(limits.cpu, Enforcement::None);
    assert!(!limits.freeze);
}

fn v2(base: PathBuf) -> Layout {
    Layout {
        tag: "test".into(),
        unified: Some(base),
        unified_limits: true,
        ..Layout::default()
    }
}

/// Goal: on v2 each limit goes to its file in the kernel's own form. Method: a plain folder in
/// place of the tree, since this says what is written, not that a kernel holds it.
#[test]
fn limits_are_written_in_the_form_of_v2() {
    let base = tempfile::tempdir().unwrap();
    let layout = v2(base.path().to_owned());
    assert_eq!(layout.kind(), "v2");
    let group = layout.group(&SandboxId::generate());
    assert_eq!(group.create(2, 512), layout.limits());
    for (file, value) in [
        ("memory.max", "536870912"),
        ("memory.swap.max", "0"),
        ("cpu.max", "200000 100000"),
        ("pids.max", "1024"),
    ] {
        let written = fs::read_to_string(base.path().join(&group.name).join(file)).unwrap();
        assert_eq!(written, value, "{file}");
    }
}

/// Goal: a limit that the kernel does not take is not claimed. Method: a real cgroup2 tree
/// whose controllers are all with v1, as hybrid machines have it.
#[test]
fn a_limit_that_is_not_taken_is_not_claimed() {
    let Some(base) = Layout::detect("test").unified else {
        println!("skipped: no cgroup2 tree is writable");
        return;
    };
    let offered = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
    if ["memory", "pids", "cpu"]
        .iter()
        .any(|c| offered.contains(c))
    {
        println!("skipped: this tree has controllers");
        return;
    }
    let group = v2(base).group(&SandboxId::generate());
    let limits = group.create(1, 128);
    group.remove().unwrap();
    assert_eq!(
        (limits.memory, limits.cpu, limits.pids),
        (Enforcement::Process, Enforcement::None, Enforcement::None)
    );
}

/// Goal: real groups are made, hold their limits, take a process and leave nothing.
#[test]
fn a_real_group_is_made_and_removed() {
    let layout = Layout::detect("test");
    if layout.kind() == "none" {
        println!("skipped: no cgroup of this process is writable");
        return;
    }
    let id = SandboxId::generate();
    let group = layout.group(&id);
    let mut limits = group.create(1, 128);
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .spawn()
        .unwrap();
    group.adopt(child.id(), false, &mut limits);
    assert_eq!(limits, layout.limits());
    assert!(layout.leftovers().contains(&id));
    if limits.freeze {
        group.freeze(true).unwrap();
        group.freeze(false).unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    group.remove().unwrap();
    assert!(!layout.leftovers().contains(&id));
}
