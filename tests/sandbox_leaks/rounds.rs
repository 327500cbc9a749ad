//! Many sandboxes one after the other, on the fast path.

use std::collections::BTreeSet;

use opencomputer::sandbox::Driver;

use crate::ALONE;
use crate::support::{World, loops, root_or_skip, spec, traces};

const ROUNDS: usize = 50;
const AT_ONCE: usize = 4;

/// Open files and mounts of this process.
fn held() -> (usize, usize) {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    (files, mounts.lines().count())
}

/// Goal: two hundred sandboxes leave no process, mount, control group, loop device or file, and
/// nothing open in the process that made them. A namespace lives as long as a process, a mount or an
/// open file holds it, so none is left either.
#[tokio::test]
async fn nothing_is_left_after_two_hundred_sandboxes() {
    if !root_or_skip() {
        return;
    }
    let _alone = ALONE.lock().await;
    let world = World::new();
    // What is opened once and kept (the runtime's own, blank disks) is there before the count.
    let first = world.start(&spec()).await;
    world.driver.destroy(&first.running.id).await.unwrap();
    drop(first);
    let before = held();
    let mut names = BTreeSet::new();
    for _ in 0..ROUNDS {
        let specs: [_; AT_ONCE] = std::array::from_fn(|_| spec());
        names.extend(specs.iter().map(|spec| spec.id.to_string()));
        let lives = specs.iter().map(|spec| async {
            let sandbox = world.start(spec).await;
            sandbox.output("echo x > ~/file").await;
            world.driver.destroy(&spec.id).await.unwrap();
        });
        futures_util::future::join_all(lives).await;
    }
    assert_eq!(names.len(), ROUNDS * AT_ONCE);
    assert_eq!(traces(&names), Vec::<String>::new());
    let data = world.dir.path().join("sandboxes");
    let attached = |path: &String| names.iter().any(|name| path.contains(name.as_str()));
    assert!(!loops().iter().any(attached), "{:?}", loops());
    let left: Vec<_> = std::fs::read_dir(&data)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(left, [".base"]);
    // Connections that were told to close do so in their own time.
    for _ in 0..100 {
        if held() == before {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(held(), before);
}
