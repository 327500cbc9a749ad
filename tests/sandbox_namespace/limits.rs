//! What a sandbox may use up.

use opencomputer::sandbox::Enforcement;

use crate::support::{World, root_or_skip, run_by, spec, text};

/// Goal: a program that eats memory dies inside; the sandbox and the host live on.
#[tokio::test]
async fn a_memory_hog_is_killed_inside() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let sandbox = world.start(&spec()).await;
    if sandbox.running.limits.memory != Enforcement::Sandbox {
        println!("skipped: memory is not limited for the whole sandbox here");
        return;
    }
    let hog = sandbox
        .run("python3 -c 'x = bytearray(1 << 30); print(len(x))'")
        .await;
    assert_ne!(hog.exit_code, 0, "{}", text(&hog));
    assert_eq!(sandbox.output("echo alive").await, "alive");
    // Shared memory counts too.
    let hog = sandbox
        .run("head -c 1G /dev/zero > /dev/shm/x; rm -f /dev/shm/x; exit 3")
        .await;
    assert_ne!(hog.exit_code, 0);
    assert_eq!(sandbox.output("echo alive").await, "alive");
}

#[tokio::test]
async fn a_fork_bomb_is_bounded() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let sandbox = world.start(&spec()).await;
    let bomb = r#"
import os, time
count = 0
try:
    while count < 5000:
        if os.fork() == 0:
            time.sleep(30); os._exit(0)
        count += 1
except OSError:
    pass
print(count)
"#;
    let output = sandbox
        .run(&format!("timeout 20 python3 -c '{bomb}'; kill -9 -1"))
        .await;
    let count: u32 = text(&output)
        .lines()
        .next()
        .unwrap_or_default()
        .parse()
        .unwrap_or(0);
    assert!(count < 1024, "{}", text(&output));
    assert_eq!(sandbox.output("echo alive").await, "alive");
}

#[tokio::test]
async fn cpu_and_open_files_are_bounded() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let sandbox = world.start(&spec()).await;
    assert!(sandbox.output("ulimit -Hn").await.parse::<u64>().unwrap() <= 65_536);
    assert_eq!(sandbox.output("ulimit -Hc").await, "0");
    if sandbox.running.limits.cpu != Enforcement::Sandbox {
        println!("skipped: CPU is not limited here");
        return;
    }
    // Two busy loops for a second of wall time may use little more than one CPU second.
    let busy = r#"
import os, time
if os.fork() == 0:
    end = time.time() + 1.5
    while time.time() < end: pass
    os._exit(0)
end = time.time() + 1.5
while time.time() < end: pass
os.wait()
t = os.times()
print(t.user + t.system + t.children_user + t.children_system)
"#;
    let used: f64 = sandbox
        .output(&format!("python3 -c '{busy}'"))
        .await
        .parse()
        .unwrap();
    assert!(used < 2.2, "{used}");
}

/// Goal: what the kernel counts by user (inotify, descriptors on their way through sockets) or
/// for the whole machine (terminals), one sandbox can't use up for another or for the host.
#[tokio::test]
async fn one_sandbox_uses_up_nothing_of_another() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let (greedy, modest) = (world.start(&spec()).await, world.start(&spec()).await);
    let take_all = r#"
import ctypes, os, pty, socket, time
libc, kept = ctypes.CDLL(None), []
while len(kept) < 20000 and libc.inotify_init1(0) >= 0: kept.append(None)
watches = len(kept)
try:
    while len(kept) < 20000: kept.append(pty.openpty())
except OSError: pass
terminals = len(kept) - watches
flying = 0
try:
    for _ in range(400):
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        pair[0].setblocking(False)
        kept.append(pair)
        try:
            while True:
                socket.send_fds(pair[0], [b"x"], [0] * 250)
                flying += 250
        except BlockingIOError: pass
except OSError: pass
print(watches, terminals, flying, flush=True)
open("/tmp/taken", "w").close()
time.sleep(40)
"#;
    let guest = greedy.guest.clone();
    let taking = tokio::spawn(async move {
        run_by(&guest, &format!("timeout 30 python3 -c '{take_all}'")).await
    });
    greedy
        .output("for i in $(seq 150); do [ -e /tmp/taken ] && exit; sleep 0.1; done; exit 1")
        .await;
    let take_one = r#"
import ctypes, pty, socket
assert ctypes.CDLL(None).inotify_init1(0) >= 0, "inotify"
pty.openpty()
a, b = socket.socketpair()
socket.send_fds(a, [b"x"], [0])
print("all there")
"#;
    assert_eq!(
        modest.output(&format!("python3 -c '{take_one}'")).await,
        "all there"
    );
    assert_eq!(modest.output("sudo id -u").await, "0");
    let watch = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC);
    assert!(watch.is_ok(), "the host has watches left");
    greedy.run_as_root("kill -9 -1").await;
    let taken = text(&taking.await.unwrap());
    let taken: Vec<u32> = taken
        .split_ascii_whitespace()
        .take(3)
        .map(|number| number.parse().unwrap())
        .collect();
    // It had really come to the ends of what there is.
    let [_, terminals, flying] = taken[..] else {
        panic!("{taken:?}");
    };
    assert!(terminals <= 256 && flying > 1000, "{taken:?}");
}
