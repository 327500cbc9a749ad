//! Control groups: where they are found, what is written, what is claimed.

use super::*;
use crate::sandbox::Stats;

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
    assert_eq!(group.create(200, 512), layout.limits());
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
    let limits = group.create(100, 128);
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
    let mut limits = group.create(100, 128);
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

/// Goal: what the kernel writes is understood, in every layout, and what it does not write is
/// unknown. Method: folders with files as kernels of each kind have them.
#[test]
fn figures_are_read_in_every_layout() {
    let base = tempfile::tempdir().unwrap();
    let id = SandboxId::generate();
    let put = |tree: &str, files: &[(&str, &str)]| {
        let tree = base.path().join(tree);
        let dir = tree.join(format!("oc-test-{id}"));
        fs::create_dir_all(&dir).unwrap();
        for (file, text) in files {
            fs::write(dir.join(file), text).unwrap();
        }
        Some(tree)
    };
    let v1 = Layout {
        tag: "test".into(),
        memory: put(
            "memory",
            &[
                ("memory.usage_in_bytes", "7000\n"),
                ("memory.max_usage_in_bytes", "9000\n"),
                ("memory.limit_in_bytes", "268435456\n"),
                (
                    "memory.oom_control",
                    "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
                ),
                (
                    "memory.stat",
                    "cache 1\nrss 2\ntotal_cache 4096\ntotal_rss 2\n",
                ),
            ],
        ),
        pids: put("pids", &[("pids.current", "5\n"), ("pids.max", "1024\n")]),
        cpu: put("cpu,cpuacct", &[("cpuacct.usage", "1500000\n")]),
        ..Layout::default()
    };
    let all = Stats {
        cpu_us: Some(1500),
        memory_bytes: Some(7000),
        memory_cache_bytes: Some(4096),
        memory_peak_bytes: Some(9000),
        memory_limit_bytes: Some(268_435_456),
        oom_kills: Some(3),
        tasks: Some(5),
        tasks_max: Some(1024),
        ..Stats::default()
    };
    assert_eq!(v1.group(&id).stats(), all);
    // A hybrid machine whose cpu hierarchy does not count, as where cpuacct is one of its own.
    let hybrid = Layout {
        cpu: put("cpu", &[("cpu.stat", "nr_periods 0\n")]),
        unified: put(
            "unified",
            &[(
                "cpu.stat",
                "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n",
            )],
        ),
        ..v1.clone()
    };
    assert_eq!(hybrid.group(&id).stats(), all);
    let v2 = Layout {
        tag: "test".into(),
        unified: put(
            "v2",
            &[
                (
                    "cpu.stat",
                    "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n",
                ),
                ("memory.current", "7000\n"),
                ("memory.peak", "9000\n"),
                ("memory.max", "268435456\n"),
                (
                    "memory.events",
                    "low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n",
                ),
                ("memory.stat", "anon 2\nfile 4096\nfile_mapped 1\n"),
                ("pids.current", "5\n"),
                ("pids.max", "1024\n"),
            ],
        ),
        unified_limits: true,
        ..Layout::default()
    };
    assert_eq!(v2.group(&id).stats(), all);
    assert_eq!(Layout::default().group(&id).stats(), Stats::default());
    // No limit is unknown, not a huge one; an older v2 does not know the most.
    put("v2", &[("memory.max", "max\n"), ("pids.max", "max\n")]);
    put(
        "memory",
        &[("memory.limit_in_bytes", "9223372036854771712\n")],
    );
    fs::remove_file(base.path().join(format!("v2/oc-test-{id}/memory.peak"))).unwrap();
    let stats = v2.group(&id).stats();
    assert_eq!(stats.memory_limit_bytes, None);
    assert_eq!((stats.tasks_max, stats.memory_peak_bytes), (None, None));
    assert_eq!(v1.group(&id).stats().memory_limit_bytes, None);
}
