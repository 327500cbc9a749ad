//! What a sandbox is said to use.

use std::time::{Duration, Instant};

use opencomputer::sandbox::{Driver, Enforcement};

use crate::support::{World, root_or_skip, spec};

/// Goal: the figures are those of this sandbox and move with what it does; of one that does not
/// run there are none.
#[tokio::test]
async fn figures_follow_what_a_sandbox_does() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let spec = spec();
    assert_eq!(world.driver.stats(&spec.id).await.unwrap(), None);
    let sandbox = world.start(&spec).await;
    let limits = sandbox.running.limits;
    let read = || async { world.driver.stats(&spec.id).await.unwrap().unwrap() };
    let before = read().await;
    if limits.memory != Enforcement::Sandbox || limits.pids != Enforcement::Sandbox {
        println!("skipped: no control groups hold a sandbox here");
        return;
    }
    assert_eq!(before.memory_limit_bytes, Some(256 << 20));
    assert_eq!(before.oom_kills, Some(0));
    // The hog holds 100 MiB and three processes until it is told to end.
    let hog = "x = b\"x\" * (100 << 20); import os, time\n\
               kids = [os.fork() or time.sleep(60) for _ in range(3)]\n\
               end = time.process_time() + 0.3\n\
               while time.process_time() < end: pass\n\
               open(\"/tmp/there\", \"w\").close(); time.sleep(60)";
    let line = format!(
        "python3 -c '{hog}' > /dev/null 2>&1 & for i in $(seq 100); do \
                        [ -e /tmp/there ] && exit; sleep 0.1; done; exit 1"
    );
    sandbox.output(&line).await;
    let during = read().await;
    assert!(during.memory_bytes.unwrap() > 100 << 20, "{during:?}");
    assert!(during.memory_bytes <= during.memory_peak_bytes.or(during.memory_bytes));
    assert!(
        during.tasks.unwrap() >= before.tasks.unwrap() + 4,
        "{during:?}"
    );
    assert!(during.tasks <= during.tasks_max, "{during:?}");
    let used = during
        .cpu_us
        .zip(before.cpu_us)
        .map(|(now, then)| now - then);
    assert!(used.is_none_or(|us| us > 250_000), "{before:?} {during:?}");
    sandbox.run("kill -9 -1").await;
    // The kernel takes a killed process' memory back in its own time.
    let mut after = read().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while after.memory_bytes.unwrap() >= 100 << 20 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
        after = read().await;
    }
    assert!(after.memory_bytes.unwrap() < 100 << 20, "{after:?}");
    assert_eq!(sandbox.running.gauges.read().tasks, after.tasks);
    world.driver.destroy(&spec.id).await.unwrap();
    assert_eq!(world.driver.stats(&spec.id).await.unwrap(), None);
}
