//! The size of a sandbox's disk.

use std::os::unix::fs::MetadataExt;

use opencomputer::sandbox::{Driver, Enforcement};

use crate::support::{Sandbox, World, loops, root_or_skip, spec, text};

/// Whether the sandbox's disk has a size; says so when not.
fn sized_or_skip(sandbox: &Sandbox) -> bool {
    let sized = sandbox.running.limits.disk == Enforcement::Sandbox;
    if !sized {
        println!("skipped: the size of a disk is not enforced here");
    }
    sized
}

/// Goal: who fills their disk is told that it is full, and nobody else notices; what was written
/// is there after a restart, and room that is given back can be used again.
#[tokio::test]
async fn a_full_disk_is_the_sandboxs_alone() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let mut greedy = spec();
    greedy.disk_mb = 128;
    let sandbox = world.start(&greedy).await;
    if !sized_or_skip(&sandbox) {
        return;
    }
    assert_eq!(
        world.driver.capabilities().limits.disk,
        Enforcement::Sandbox
    );
    let modest = world.start(&spec()).await;
    let fill = sandbox
        .run("cd /workspace && echo kept > kept && sync && head -c 1G /dev/zero > big; ls -s --block-size=1M big")
        .await;
    assert!(
        text(&fill).contains("No space left on device"),
        "{}",
        text(&fill)
    );
    // Many small files, root inside, and the other overlay meet the same end.
    for line in [
        "mkdir -p /root/many && cd /root/many && for i in $(seq 20000); do echo x > $i || exit 7; done",
        "head -c 64M /dev/zero > /usr/local/share/big",
        "python3 -c \"import os; os.posix_fallocate(os.open('/opt/x', os.O_CREAT | os.O_RDWR), 0, 64 << 20)\"",
    ] {
        let output = sandbox.run_as_root(line).await;
        assert_ne!(output.exit_code, 0, "{line}");
        let said = text(&output);
        assert!(
            said.contains("No space") || said.contains("Errno 28"),
            "{line}: {said}"
        );
    }
    let stats = world.driver.stats(&greedy.id).await.unwrap().unwrap();
    let (used, size) = (stats.disk_bytes.unwrap(), stats.disk_limit_bytes.unwrap());
    assert!(size <= 128 << 20 && used > size * 9 / 10, "{stats:?}");
    let image = world
        .dir
        .path()
        .join("sandboxes")
        .join(greedy.id.as_str())
        .join("disk.img");
    assert!(std::fs::metadata(&image).unwrap().blocks() * 512 <= 130 << 20);
    // The guest serves, the neighbour and the host write.
    assert_eq!(sandbox.output("echo alive").await, "alive");
    assert_eq!(
        modest
            .output("head -c 8M /dev/zero > ~/x && wc -c < ~/x")
            .await,
        "8388608"
    );
    std::fs::write(world.dir.path().join("host"), vec![0; 1 << 20]).unwrap();

    sandbox.run("rm /workspace/big").await;
    assert_eq!(
        sandbox
            .output("head -c 20M /dev/zero > ~/again && wc -c < ~/again")
            .await,
        "20971520"
    );
    world.driver.stop(&greedy.id).await.unwrap();
    assert!(!loops().iter().any(|path| path.contains(greedy.id.as_str())));
    let again = world.start(&greedy).await;
    assert_eq!(again.output("cat /workspace/kept").await, "kept");
    assert!(sized_or_skip(&again));
    // A disk that is on its way out is not written out first.
    again.run("head -c 60M /dev/zero > ~/late").await;
    world.driver.destroy(&greedy.id).await.unwrap();
    assert!(!loops().iter().any(|path| path.contains(greedy.id.as_str())));
    assert!(!image.exists());
}

/// Goal: a disk is never attached twice, however its last holder ended. Method: the supervisor is
/// killed in the middle of writing and the sandbox started again at once, many times.
#[tokio::test]
async fn a_disk_survives_the_death_of_its_holder() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let mut spec = spec();
    spec.disk_mb = 128;
    let mut written = 0;
    for round in 0..6 {
        let sandbox = world.start(&spec).await;
        if !sized_or_skip(&sandbox) {
            return;
        }
        let lines: usize = sandbox
            .output("cat ~/log 2>/dev/null | wc -l")
            .await
            .parse()
            .unwrap();
        assert!(lines >= written, "{lines} of {written}");
        sandbox.output(&format!("echo {round} >> ~/log; sync ~/log; \
            (while :; do head -c 100k /dev/urandom > ~/x$((i = (i + 1) % 50)); done) > /dev/null 2>&1 &")).await;
        written = lines + 1;
        let attached = loops()
            .iter()
            .filter(|path| path.contains(spec.id.as_str()))
            .count();
        assert_eq!(attached, 1);
        let pid = rustix::process::Pid::from_raw(sandbox.running.supervisor_pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        sandbox.running.exited().await;
    }
    let kernel = world.start(&spec).await;
    assert_eq!(kernel.output("touch ~/fine && echo fine").await, "fine");
}
