//! Making, finding again, and removing without a trace.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use opencomputer::sandbox::Driver;

use crate::support::{Sandbox, World, program, root_or_skip, spec, traces};

#[tokio::test]
async fn creating_twice_is_recognised_and_destroying_twice_is_fine() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let spec = spec();
    let first = world.start(&spec).await;
    let second = world.start(&spec).await;
    assert_eq!(first.running.supervisor_pid, second.running.supervisor_pid);
    assert!(world.driver.list().await.unwrap().contains(&spec.id));
    world.driver.destroy(&spec.id).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), first.running.exited())
        .await
        .unwrap();
    world.driver.destroy(&spec.id).await.unwrap();
    assert!(world.driver.attach(&spec.id).await.unwrap().is_none());
    assert!(!world.driver.list().await.unwrap().contains(&spec.id));
}

#[tokio::test]
async fn concurrent_creates_make_one_sandbox() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let spec = spec();
    let (a, b) = tokio::join!(world.driver.create(&spec), world.driver.create(&spec));
    assert_eq!(a.unwrap().supervisor_pid, b.unwrap().supervisor_pid);
}

/// Goal: what was written survives a supervisor that was killed, and the dead one is noticed.
#[tokio::test]
async fn a_killed_supervisor_takes_its_sandbox_along_and_the_disk_stays() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let spec = spec();
    let sandbox = world.start(&spec).await;
    sandbox.output("echo kept > /workspace/file && sync").await;
    let pid = rustix::process::Pid::from_raw(sandbox.running.supervisor_pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    tokio::time::timeout(Duration::from_secs(5), sandbox.running.exited())
        .await
        .unwrap();
    assert!(world.driver.attach(&spec.id).await.unwrap().is_none());
    let again = world.start(&spec).await;
    assert_eq!(again.output("cat /workspace/file").await, "kept");
}

/// Goal: the death of the process that made a sandbox is not the sandbox's. The maker here is
/// this test program itself, run once more and killed.
#[tokio::test]
async fn a_sandbox_outlives_its_maker() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let spec = spec();
    let mut maker = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "lifecycle::maker_that_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env("OC_TEST_DATA", world.dir.path().join("sandboxes"))
        .env("OC_TEST_SPEC", serde_json::to_string(&spec).unwrap())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let made = world.dir.path().join("made");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !made.exists() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let before = std::fs::read_to_string(&made).unwrap();
    maker.kill().unwrap();
    maker.wait().unwrap();
    let running = world.driver.attach(&spec.id).await.unwrap().unwrap();
    assert_eq!(running.supervisor_pid.to_string(), before);
    let sandbox = Sandbox::of(running).await;
    assert_eq!(sandbox.output("cat /tmp/state").await, "held");
}

#[tokio::test]
#[ignore = "started by a_sandbox_outlives_its_maker"]
async fn maker_that_is_killed() {
    let data = std::path::PathBuf::from(std::env::var_os("OC_TEST_DATA").unwrap());
    let spec = serde_json::from_str(&std::env::var("OC_TEST_SPEC").unwrap()).unwrap();
    let driver = opencomputer::sandbox::NamespaceDriver::with_program(&data, program()).unwrap();
    let sandbox = Sandbox::of(driver.create(&spec).await.unwrap()).await;
    sandbox.output("echo held > /tmp/state").await;
    let draft = data.with_file_name("draft");
    std::fs::write(&draft, sandbox.running.supervisor_pid.to_string()).unwrap();
    std::fs::rename(draft, data.with_file_name("made")).unwrap();
    std::future::pending().await
}

/// Goal: the process that supervisors are forked from is no part of a sandbox: its death ends none
/// and keeps none from being started, and it does not outlive its driver, which sandboxes do.
#[tokio::test]
async fn sandboxes_do_without_the_spawner() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let (one, other) = (world.start(&spec()).await, spec());
    let signal = |pid: u32, signal| {
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, signal)
    };
    let first = world.driver.spawner_pid().unwrap();
    signal(first, rustix::process::Signal::KILL).unwrap();
    let other = world.start(&other).await;
    for sandbox in [&one, &other] {
        assert_eq!(sandbox.output("echo here").await, "here");
    }
    assert_ne!(world.driver.spawner_pid(), Some(first));

    let data = world.dir.path().join("sandboxes");
    let driver = opencomputer::sandbox::NamespaceDriver::with_program(&data, program()).unwrap();
    let third = spec();
    let running = driver.create(&third).await.unwrap();
    let spawner = driver.spawner_pid().unwrap();
    assert_ne!(spawner, running.supervisor_pid);
    drop(driver);
    assert!(!std::path::Path::new(&format!("/proc/{spawner}")).exists());
    let sandbox = Sandbox::of(world.driver.attach(&third.id).await.unwrap().unwrap()).await;
    assert_eq!(sandbox.output("echo here").await, "here");
}

/// Goal: a frozen sandbox does nothing at all, and runs on when its freezer is gone.
#[tokio::test]
async fn a_frozen_sandbox_stands_still_until_it_is_let_go() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let spec = spec();
    let sandbox = world.start(&spec).await;
    if !sandbox.running.limits.freeze {
        println!("skipped: no control group can freeze here");
        return;
    }
    sandbox
        .output("(while :; do echo x >> /tmp/ticks; sleep 0.005; done) > /dev/null 2>&1 &")
        .await;
    let upper = sandbox.upper(&world);
    let ticks = || std::fs::metadata(upper.join("tmp/ticks")).map_or(0, |meta| meta.len());
    let later = || tokio::time::sleep(Duration::from_millis(200));
    later().await;
    let frozen = world.driver.freeze(&spec.id).await.unwrap().unwrap();
    let stopped = ticks();
    later().await;
    assert!(stopped > 0);
    assert_eq!(ticks(), stopped);
    drop(frozen);
    later().await;
    assert!(ticks() > stopped);
    world.driver.destroy(&spec.id).await.unwrap();
    assert!(world.driver.freeze(&spec.id).await.unwrap().is_none());
}

#[tokio::test]
async fn how_a_sandbox_ended_is_kept() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let spec = spec();
    let sandbox = world.start(&spec).await;
    assert!(world.driver.last_exit(&spec.id).is_none());
    // The guest, as the host sees it: the only child of the supervisor.
    let children = format!(
        "/proc/{0}/task/{0}/children",
        sandbox.running.supervisor_pid
    );
    let init = std::fs::read_to_string(children).unwrap();
    let init = rustix::process::Pid::from_raw(init.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
    tokio::time::timeout(Duration::from_secs(5), sandbox.running.exited())
        .await
        .unwrap();
    let exit = world.driver.last_exit(&spec.id).unwrap();
    assert_eq!((exit.status, exit.asked), (128 + 9, false));
}

/// Goal: twenty sandboxes that did what agents do leave no mount, group, process or file.
#[tokio::test]
async fn nothing_is_left_after_twenty_rounds() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let data = world.dir.path().join("sandboxes");
    let mut names = BTreeSet::new();
    let mut times = Vec::new();
    for round in 0..20 {
        let spec = spec();
        names.insert(spec.id.to_string());
        let begin = Instant::now();
        let running = world.driver.create(&spec).await.unwrap();
        let created = begin.elapsed();
        let sandbox = Sandbox::of(running).await;
        sandbox.output("true").await;
        times.push((begin.elapsed(), created));
        sandbox
            .output(
                "mkdir -p a/b; sleep 1000 & setsid sleep 1000 & mkdir -p /tmp/x/y; chmod 0 /tmp/x",
            )
            .await;
        if round % 4 == 3 {
            let pid =
                rustix::process::Pid::from_raw(sandbox.running.supervisor_pid as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        world.driver.destroy(&spec.id).await.unwrap();
    }
    times.sort();
    println!(
        "create to first command: median {:?}, worst {:?}",
        times[10], times[19]
    );
    assert_eq!(traces(&names), Vec::<String>::new());
    let left: Vec<_> = std::fs::read_dir(&data)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(left, [".base"]);
}
