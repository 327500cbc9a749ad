//! One table of hostile attempts, each by the real system call, as root inside and as the sandbox's
//! user. What is not in the table's column of errors is a hole.

use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use crate::support::{World, root_or_skip, spec, text};

/// Tries everything and prints what became of it.
const ATTEMPTS: &str = include_str!("hostile.py");

/// The errors that an attempt may end in; the first row whose name begins the attempt's counts.
/// `EPERM` from the system call filter or for want of a capability, `ENOENT` where there is no such
/// thing inside, `EROFS` and `EACCES` from masked parts of `/proc` and `/sys`.
const EXPECTED: &[(&str, &str)] = &[
    ("clone3", "ENOSYS"),
    ("x32", "ENOSYS"),
    // A process may not signal init of its namespace to death.
    ("kill_pid_1", "survived EPERM"),
    // Root inside sees which numbers are open, and nothing of what is behind them.
    ("proc_1_fd", "allowed EACCES EPERM"),
    ("proc_1_oom", "EROFS EACCES"),
    ("proc_1_", "EACCES EPERM"),
    ("process_vm_readv_", "EPERM"),
    // The process itself may look what it is; the value is a query.
    ("personality", "allowed"),
    ("proc_kmsg", "empty EPERM EACCES ENOENT"),
    ("proc_k", "empty ENOENT"),
    ("dmesg", "ENOENT"),
    ("userfaultfd_device", "ENOENT"),
    ("sysctl_", "EROFS EACCES ENOENT"),
    ("sysrq_trigger", "EROFS EACCES ENOENT"),
    ("sys_", "EROFS EACCES"),
    ("cgroup_", "ENOENT"),
    ("release_agent", "ENOENT"),
    ("oom_below_the_guest", "EACCES"),
    ("nice_below_zero", "EACCES EPERM"),
    ("dev_", "ENOENT"),
    ("socket_ping", "EACCES EPERM"),
    ("host_abstract_socket", "ECONNREFUSED"),
    ("host_path", "ENOENT"),
    ("link_down", "EPERM"),
    ("setuid_root", "EPERM root"),
    ("", "EPERM"),
];

#[tokio::test]
async fn hostile_attempts_fail() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let sandbox = world.start(&spec()).await;
    // What the host has and a sandbox must not reach.
    let name = format!("oc-hostile-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
    let _host = UnixListener::bind_addr(&abstract_name).unwrap();
    let path = sandbox.running.guest_socket.display().to_string();
    sandbox
        .output(&format!("cat > /tmp/hostile.py <<'END'\n{ATTEMPTS}\nEND"))
        .await;
    for as_root in [true, false] {
        // A process of the other of the two.
        let line = "sleep 1000 > /dev/null 2>&1 & echo $!";
        let other = match as_root {
            true => sandbox.run(line).await,
            false => sandbox.run_as_root(line).await,
        };
        let other = text(&other);
        let line = format!("python3 /tmp/hostile.py {name} {path} {}", other.trim());
        let output = match as_root {
            true => sandbox.run_as_root(&line).await,
            false => sandbox.run(&line).await,
        };
        let said = text(&output);
        assert_eq!(output.exit_code, 0, "{said}");
        let attempts: BTreeMap<&str, &str> = said
            .lines()
            .filter_map(|line| line.split_once(' '))
            .collect();
        assert!(attempts.len() > 130, "{} attempts: {said}", attempts.len());
        let holes: Vec<_> = attempts
            .iter()
            .filter(|(name, end)| {
                let row = EXPECTED.iter().find(|(row, _)| name.starts_with(row));
                let (_, wanted) = row.expect("the last row takes all");
                !wanted.split(' ').any(|one| one == **end)
            })
            .collect();
        assert!(holes.is_empty(), "as root: {as_root}: {holes:?}");
    }
    // Bits that give rights give none, on either overlay and in shared memory.
    for place in ["/usr/local/bin", "/tmp", "/dev/shm"] {
        let id = format!("{place}/id");
        let line = format!("cp /usr/bin/id {id} && chmod 6755 {id}");
        assert_eq!(sandbox.run_as_root(&line).await.exit_code, 0, "{place}");
        assert_eq!(sandbox.output(&format!("{id} -u")).await, "1000", "{place}");
    }
    assert_eq!(sandbox.output("echo alive").await, "alive");
}

/// Goal: the table can fail. Method: the same attempts without a sandbox.
#[tokio::test]
async fn the_table_of_attempts_can_fail() {
    if !root_or_skip() {
        return;
    }
    let harmless = "attempt(\"mount\", lambda: None)";
    let first = ATTEMPTS.split("# mounts and roots").next().unwrap();
    let output = std::process::Command::new("python3")
        .args(["-c", &format!("{first}\n{harmless}"), "x", "/", "1"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "mount allowed\n");
}
