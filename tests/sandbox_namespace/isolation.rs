//! What can be seen and done from inside.

use crate::support::{Sandbox, World, root_or_skip, spec, text};

/// Goal: files of the host are not there to be read, not even for root inside.
#[tokio::test]
async fn host_files_are_not_visible() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let secret = world.dir.path().join("secret");
    std::fs::write(&secret, "canary").unwrap();
    let sandbox = world.start(&spec()).await;
    let data = world.dir.path().display();
    for path in [
        "/etc/shadow",
        "/etc/ssl/private",
        "/root/.bashrc",
        "/var/lib/dpkg",
        "/boot",
        "/work",
    ] {
        let found = sandbox.run_as_root(&format!("ls -a {path}")).await;
        assert_ne!(found.exit_code, 0, "{path}: {}", text(&found));
    }
    let found = sandbox
        .run_as_root(&format!("cat {}; ls {data}", secret.display()))
        .await;
    assert_ne!(found.exit_code, 0, "{}", text(&found));
    assert!(!text(&found).contains("canary"));
    assert_eq!(sandbox.output("ls /home").await, "sandbox");
    assert_eq!(
        sandbox
            .output("ls -A /home/sandbox /workspace /tmp | grep -v : | tr -d '\\n'")
            .await,
        ""
    );
    // The mount table names nothing of the host's folders.
    let mounts = sandbox.output("cat /proc/self/mountinfo").await;
    assert!(!mounts.contains(&data.to_string()), "{mounts}");
}

#[tokio::test]
async fn only_the_sandboxs_own_processes_are_visible() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let sandbox = world.start(&spec()).await;
    let processes = sandbox
        .output("cat /proc/[0-9]*/comm | sort -u | tr '\\n' ' '")
        .await;
    for word in processes.split_ascii_whitespace() {
        assert!(
            ["cat", "sh", "sort", "tr", "oc-guest", "guest"].contains(&word),
            "{processes}"
        );
    }
    // PID 1 can't be looked into, its environment and memory least of all, and not be killed.
    for line in [
        "cat /proc/1/environ",
        "cat /proc/1/mem",
        "ls -l /proc/1/fd",
        "readlink /proc/1/root",
    ] {
        let output = sandbox.run_as_root(line).await;
        assert_ne!(output.exit_code, 0, "{line}: {}", text(&output));
    }
    sandbox.run_as_root("kill -9 1; kill -9 -1").await;
    assert_eq!(sandbox.output("echo alive").await, "alive");
}

#[tokio::test]
async fn identities_capabilities_and_names_are_the_sandboxs_own() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let spec = spec();
    let sandbox = world.start(&spec).await;
    let map = sandbox.output("cat /proc/self/uid_map").await;
    let map: Vec<u32> = map
        .split_ascii_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    let [0, root_outside, 65_536] = map[..] else {
        panic!("{map:?}");
    };
    assert!((0x4000_0000..0x6000_0000).contains(&root_outside));
    assert_eq!(
        sandbox.output("id").await,
        "uid=1000(sandbox) gid=1000(sandbox) groups=1000(sandbox)"
    );
    assert_eq!(sandbox.output("hostname").await, spec.id.as_str());
    assert_eq!(
        sandbox.output("grep CapEff /proc/self/status").await,
        "CapEff:\t0000000000000000"
    );
    let root = text(
        &sandbox
            .run_as_root("grep -E 'Cap(Bnd|Eff|Prm)' /proc/self/status; id -u")
            .await,
    );
    assert_eq!(
        root,
        "CapPrm:\t00000000000004fb\nCapEff:\t00000000000004fb\nCapBnd:\t00000000000004fb\n0\n"
    );
    let status = sandbox
        .output("grep -E 'NoNewPrivs|Seccomp:' /proc/self/status")
        .await;
    assert_eq!(status, "NoNewPrivs:\t1\nSeccomp:\t2");
    assert_eq!(
        sandbox
            .output("cut -d: -f3 /proc/self/cgroup | sort -u")
            .await,
        "/"
    );
    // On the host a file made by root inside belongs to an unprivileged user.
    sandbox.run_as_root("echo x > /made-by-root").await;
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        std::fs::metadata(sandbox.upper(&world).join("made-by-root"))
            .unwrap()
            .uid(),
        root_outside
    );
}

/// Goal: no descriptor of the server, the supervisor or the launcher leaks in.
#[tokio::test]
async fn no_descriptor_leaks_in() {
    if !root_or_skip() {
        return;
    }
    let _noise: Vec<_> = (0..20)
        .map(|_| std::fs::File::open("/etc/hostname").unwrap())
        .collect();
    let world = World::new();
    let sandbox = world.start(&spec()).await;
    let fds = sandbox.output("ls /proc/self/fd | tr '\\n' ' '").await;
    // 3 is the folder `ls` itself reads.
    assert_eq!(fds, "0 1 2 3", "{fds}");
    let environment = sandbox
        .output("env | cut -d= -f1 | sort | tr '\\n' ' '")
        .await;
    for name in environment.split_ascii_whitespace() {
        assert!(
            ["HOME", "PATH", "PWD", "SHLVL", "_", "OLDPWD"].contains(&name),
            "{environment}"
        );
    }
}

/// A Python program that prints the error number of each system call it is asked to try.
const TRY: &str = r#"
import ctypes, sys, os
libc = ctypes.CDLL(None, use_errno=True)
for call in sys.argv[1:]:
    number, *rest = [int(x, 0) for x in call.split(",")]
    ctypes.set_errno(0)
    result = libc.syscall(number, *[ctypes.c_long(x) for x in rest])
    print(ctypes.get_errno() if result == -1 else 0)
"#;

async fn errno(sandbox: &Sandbox, call: &str) -> i32 {
    let output = sandbox
        .run_as_root(&format!("python3 -c '{TRY}' {call}"))
        .await;
    text(&output)
        .trim()
        .parse()
        .unwrap_or_else(|_| panic!("{call}: {}", text(&output)))
}

/// Goal: what the filter denies is denied to root inside too, and what programs need is not.
#[tokio::test]
async fn dangerous_system_calls_are_denied() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let sandbox = world.start(&spec()).await;
    let denied = [
        ("mount", libc::SYS_mount, "0,0,0,0,0"),
        ("umount2", libc::SYS_umount2, "0,2"),
        ("pivot_root", libc::SYS_pivot_root, "0,0"),
        ("chroot", libc::SYS_chroot, "0"),
        ("open_tree", libc::SYS_open_tree, "-100,0,1"),
        ("fsopen", libc::SYS_fsopen, "0,0"),
        ("setns", libc::SYS_setns, "0,0"),
        ("unshare user", libc::SYS_unshare, "0x10000000"),
        ("unshare net and files", libc::SYS_unshare, "0x40000400"),
        ("clone user", libc::SYS_clone, "0x10000011,0,0,0,0"),
        ("bpf", libc::SYS_bpf, "0,0,0"),
        ("perf_event_open", libc::SYS_perf_event_open, "0,0,0,0,0"),
        ("userfaultfd", libc::SYS_userfaultfd, "0"),
        ("io_uring_setup", libc::SYS_io_uring_setup, "1,0"),
        ("keyctl", libc::SYS_keyctl, "0,0"),
        ("add_key", libc::SYS_add_key, "0,0,0,0,0"),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, "0,0,0"),
        ("reboot", libc::SYS_reboot, "0,0,0,0"),
        ("kexec_load", libc::SYS_kexec_load, "0,0,0,0"),
        ("init_module", libc::SYS_init_module, "0,0,0"),
        ("settimeofday", libc::SYS_settimeofday, "0,0"),
        ("syslog", libc::SYS_syslog, "3,0,0"),
        ("vsock", libc::SYS_socket, "40,1,0"),
        ("packet", libc::SYS_socket, "17,3,0"),
        ("nfnetlink", libc::SYS_socket, "16,3,12"),
        ("alg", libc::SYS_socket, "38,5,0"),
        ("raw", libc::SYS_socket, "2,3,1"),
        ("TIOCSTI", libc::SYS_ioctl, "0,0x5412,0"),
    ];
    for (name, number, arguments) in denied {
        let got = errno(&sandbox, &format!("{number},{arguments}")).await;
        assert_eq!(got, libc::EPERM, "{name}");
    }
    let clone3 = errno(&sandbox, &format!("{},0,0", libc::SYS_clone3)).await;
    assert_eq!(clone3, libc::ENOSYS);
    let x32 = errno(&sandbox, &format!("{}", 0x4000_0000 + libc::SYS_getpid)).await;
    assert_eq!(x32, libc::ENOSYS);
    for (name, call) in [
        ("inet", format!("{},2,1,0", libc::SYS_socket)),
        ("route netlink", format!("{},16,3,0", libc::SYS_socket)),
        ("unshare files", format!("{},0x400", libc::SYS_unshare)),
    ] {
        assert_eq!(errno(&sandbox, &call).await, 0, "{name}");
    }
}

#[tokio::test]
async fn kernel_interfaces_are_masked_or_read_only() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let sandbox = world.start(&spec()).await;
    for line in [
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo x > /proc/sys/kernel/hostname",
        "echo 1 > /proc/sys/vm/drop_caches",
        "echo b > /proc/sysrq-trigger",
        "touch /sys/x",
        "mkdir /sys/fs/cgroup",
        "echo x > /run/oc/guest",
        "mknod /tmp/disk b 254 0",
        "hostname other",
        "ip link set eth0 down || python3 -c 'raise SystemExit(1)'",
        "head -c1 /proc/kcore | grep .",
        "head -c1 /dev/kmsg",
        "ls /dev/vda",
    ] {
        let output = sandbox.run_as_root(line).await;
        assert_ne!(output.exit_code, 0, "{line}: {}", text(&output));
    }
    assert_eq!(
        sandbox.output("ls /dev | tr '\\n' ' '").await,
        "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
}

/// Goal: the programs agents use work on the zero-download template.
#[tokio::test]
async fn the_hosts_programs_run() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let mut spec = spec();
    spec.memory_mb = 1024;
    let sandbox = world.start(&spec).await;
    for (line, wanted) in [
        ("python3 -c 'import ssl, json, sqlite3; print(6*7)'", "42"),
        ("node -e 'console.log(6*7)'", "42"),
        ("curl --version | cut -c1-4 | head -1", "curl"),
        (
            "cd /workspace && git init -q r && cd r && git config user.email a@b && git config user.name n \
          && echo x > f && git add f && git commit -qm m && git log --oneline | wc -l",
            "1",
        ),
        ("echo x > /usr/local/f 2>/dev/null || echo denied", "denied"),
        (
            "python3 -c 'import os,pty; print(pty.openpty()[0] > 2)'",
            "True",
        ),
        (
            "python3 -c 'import multiprocessing as m; print(m.Semaphore(1).acquire())'",
            "True",
        ),
        ("getent hosts localhost | cut -d\" \" -f1", "127.0.0.1"),
        ("cat /sys/devices/system/cpu/online", "0-0"),
    ] {
        assert_eq!(sandbox.output(line).await, wanted, "{line}");
    }
    assert_eq!(
        sandbox
            .output("sudo id -u; sudo sh -c 'echo x > /etc/by-root' && cat /etc/by-root")
            .await,
        "0\nx"
    );
    let installed = sandbox
        .run_as_root("echo x > /usr/local/bin/tool && rm /usr/bin/python3")
        .await;
    assert_eq!(installed.exit_code, 0, "{}", text(&installed));
    assert!(
        std::path::Path::new("/usr/bin/python3").exists(),
        "the host's own is untouched"
    );
    assert!(!std::path::Path::new("/usr/local/bin/tool").exists());
}
