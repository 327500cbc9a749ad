//! Sandboxes that take all they can get: the others and the server go on, the owner of the greedy one
//! can still run a command in it, and it can be deleted.

use std::time::{Duration, Instant};

use opencomputer::sandbox::{Driver, Enforcement, SandboxSpec};

use crate::support::{Sandbox, World, root_or_skip, run_by, spec, text};

/// Longest a command of a well-behaved sandbox may take beside a greedy one; generous, because
/// other tests run beside these.
const PATIENCE: Duration = Duration::from_secs(20);

/// Memory for as many processes as there may be, so that nothing but what is meant runs out.
fn roomy() -> SandboxSpec {
    SandboxSpec {
        memory_mb: 1024,
        ..spec()
    }
}

/// Asserts that a command of the sandbox answers, and in time.
async fn answers(sandbox: &Sandbox, what: &str) {
    let begin = Instant::now();
    assert_eq!(sandbox.output("echo alive").await, "alive", "{what}");
    assert!(begin.elapsed() < PATIENCE, "{what}: {:?}", begin.elapsed());
}

/// Starts something that goes on in the background.
async fn begin(sandbox: &Sandbox, line: &str) {
    let line = format!("({line}) > /dev/null 2>&1 &");
    assert_eq!(sandbox.run(&line).await.exit_code, 0);
    tokio::time::sleep(Duration::from_millis(1500)).await;
}

/// Goal: for each way to be greedy the neighbour answers meanwhile, the owner's next command runs
/// (and may put an end to it), and the sandbox can be deleted quickly.
#[tokio::test]
async fn greedy_sandboxes_starve_nobody() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let modest = world.start(&spec()).await;
    let forks = "python3 -c \"import os, time\nwhile True:\n try: os.fork()\n except OSError: time.sleep(0.01)\"";
    let root_forks = format!("sudo {forks}");
    let threads = "python3 -c \"import threading, time\nwhile True:\n try: threading.Thread(target=time.sleep, args=(99,)).start()\n except RuntimeError: time.sleep(0.01)\"";
    let memory = "while :; do python3 -c 'x = bytearray(1 << 30)'; done";
    let processor = "for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait";
    let descriptors = "for i in 1 2 3 4; do python3 -c \"import os, time\ntry:\n  while True: os.dup(0)\nexcept OSError: time.sleep(99)\" & done; wait";
    let shared = "head -c 1G /dev/zero > /dev/shm/x; python3 -c \"import os\nwhile True: os.posix_fallocate(os.memfd_create('x'), 0, 8 << 20)\"";
    for (what, line) in [
        ("forks", forks),
        ("forks as root", root_forks.as_str()),
        ("threads", threads),
        ("memory", memory),
        ("processor", processor),
        ("descriptors", descriptors),
        ("shared memory", shared),
    ] {
        let spec = match what {
            "memory" | "shared memory" => spec(),
            _ => roomy(),
        };
        let greedy = world.start(&spec).await;
        begin(&greedy, line).await;
        answers(&modest, what).await;
        answers(&greedy, what).await;
        let deleting = Instant::now();
        world.driver.destroy(&greedy.running.id).await.unwrap();
        assert!(
            deleting.elapsed() < PATIENCE,
            "{what}: {:?}",
            deleting.elapsed()
        );
    }
    assert!(std::fs::File::open("/dev/null").is_ok());
}

/// Goal: who is out of processes is told so, and is not locked out: one more command runs, and can
/// end what is too much.
#[tokio::test]
async fn a_fork_bomb_leaves_room_for_its_end() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let sandbox = world.start(&roomy()).await;
    if sandbox.running.limits.pids != Enforcement::Sandbox {
        println!("skipped: the number of processes is not limited here");
        return;
    }
    let bomb = "python3 -c \"import os, time\nwhile True:\n try: os.fork()\n except OSError: time.sleep(0.05)\"";
    begin(&sandbox, bomb).await;
    let mut most = 0;
    for _ in 0..100 {
        let stats = sandbox.running.gauges.read();
        most = most.max(stats.tasks.unwrap());
        if most > 900 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!((900..1024).contains(&most), "{most}");
    for _ in 0..3 {
        answers(&sandbox, "at the limit").await;
    }
    assert_eq!(sandbox.run("kill -9 -1").await.exit_code, 0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while sandbox.running.gauges.read().tasks > Some(50) && Instant::now() < deadline {
        sandbox.run("kill -9 -1").await;
    }
    assert_eq!(
        sandbox.output("echo $(echo forks again)").await,
        "forks again"
    );
}

/// Goal: a flood of output is cut, or waits for its reader, and costs the host a bounded amount;
/// `/dev/full` is what it says.
#[tokio::test]
async fn a_flood_of_output_stalls_nobody() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let (greedy, modest) = (world.start(&spec()).await, world.start(&spec()).await);
    let guest = greedy.guest.clone();
    let flood = tokio::spawn(async move { run_by(&guest, "timeout 4 yes | cat; exit 5").await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    answers(&modest, "beside a flood").await;
    answers(&greedy, "under a flood").await;
    let flood = flood.await.unwrap();
    assert_eq!((flood.exit_code, flood.truncated), (5, true));
    assert_eq!(flood.stdout.len(), 1 << 20);
    let full = greedy.run("head -c 1 /dev/zero > /dev/full").await;
    assert!(text(&full).contains("No space left"), "{}", text(&full));
}

/// Goal: a program that nobody can execute, since another one holds a lease on its file, stalls
/// nothing but itself.
#[tokio::test]
async fn a_held_program_stalls_only_itself() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let sandbox = world.start(&spec()).await;
    let hold = "import fcntl, os, shutil, signal, time\n\
                signal.signal(signal.SIGIO, signal.SIG_IGN)\n\
                shutil.copy(\"/usr/bin/true\", \"/tmp/held\")\n\
                fd = os.open(\"/tmp/held\", os.O_RDONLY)\n\
                fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
                time.sleep(100)";
    begin(&sandbox, &format!("python3 -c '{hold}'")).await;
    let guest = sandbox.guest.clone();
    let held = tokio::spawn(async move { run_by(&guest, "exec /tmp/held").await });
    let direct = opencomputer::sandbox::StartSession {
        session_id: "0a0b0c0d".to_owned(),
        cmd: "/tmp/held".to_owned(),
        direct: true,
        cwd: "/".to_owned(),
        ..Default::default()
    };
    let guest = sandbox.guest.clone();
    let directly = tokio::spawn(async move { guest.start(direct).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!directly.is_finished(), "the lease holds nobody up");
    for _ in 0..3 {
        let begin = Instant::now();
        assert_eq!(sandbox.output("echo alive").await, "alive");
        assert!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
    }
    let refused = directly.await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("holds its file"), "{refused}");
    held.abort();
}

/// Goal: fifty at once fit into a bounded amount of memory, each answers, and all can be deleted.
#[tokio::test]
async fn fifty_sandboxes_fit() {
    const COUNT: usize = 50;
    /// Of the control groups: the guest, the shell, the page cache of what they wrote.
    const BYTES_MAX: u64 = 24 << 20;
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let mut all = Vec::new();
    for _ in 0..COUNT / 5 {
        let five: [_; 5] = std::array::from_fn(|_| spec());
        all.extend(futures_util::future::join_all(five.iter().map(|spec| world.start(spec))).await);
    }
    let answered = all.iter().map(|sandbox| sandbox.output("hostname"));
    let names = futures_util::future::join_all(answered).await;
    for (sandbox, name) in all.iter().zip(names) {
        assert_eq!(sandbox.running.id.as_str(), name);
    }
    let bytes: Vec<_> = all
        .iter()
        .filter_map(|s| s.running.gauges.read().memory_bytes)
        .collect();
    let total: u64 = bytes.iter().sum();
    println!("{} sandboxes hold {} MiB", all.len(), total >> 20);
    assert!(total <= BYTES_MAX * COUNT as u64, "{bytes:?}");
    for sandbox in &all {
        world.driver.destroy(&sandbox.running.id).await.unwrap();
    }
    assert_eq!(world.driver.list().await.unwrap(), []);
}
