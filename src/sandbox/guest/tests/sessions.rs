//! Sessions: streams, clients, limits, ends.

use super::*;

/// Goal: separate streams, exact environment, user, exit code.
#[tokio::test]
async fn runs_a_command_to_its_end() {
    let guest = Fixture::start().await;
    let output = guest
        .client
        .run(shell(1, "id -u; echo oops >&2; exit 7"), 1024)
        .await
        .unwrap();
    let own = rustix::process::geteuid();
    let uid = if own.is_root() { 1000 } else { own.as_raw() };
    assert_eq!(text(&output.stdout), format!("{uid}\n"));
    assert_eq!((text(&output.stderr), output.exit_code), ("oops\n", 7));
    let direct = StartSession {
        direct: true,
        ..shell(2, "env")
    };
    let expected = direct
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let mut expected: Vec<String> = expected.collect();
    let output = guest.client.run(direct, 1024).await.unwrap();
    let mut env: Vec<&str> = text(&output.stdout).lines().collect();
    env.sort_unstable();
    expected.sort_unstable();
    assert_eq!(env, expected);
    assert!(
        guest.client.sessions().await.unwrap().is_empty(),
        "a run leaves no session"
    );
}

/// Goal: how failures to start and ends by signal look to callers.
#[tokio::test]
async fn failures_are_told_apart() {
    let guest = Fixture::start().await;
    let missing = StartSession {
        direct: true,
        ..shell(1, "no-such-program")
    };
    let error = guest.client.start(missing).await.unwrap_err();
    assert_eq!(
        error,
        GuestError::CommandNotFound("command not found: no-such-program".into())
    );
    let data = StartSession {
        direct: true,
        ..shell(1, "/etc/passwd")
    };
    assert!(matches!(
        guest.client.start(data).await,
        Err(GuestError::Refused(_))
    ));
    let nowhere = StartSession {
        cwd: "/no/such/place".into(),
        ..shell(1, "true")
    };
    let error = guest.client.start(nowhere).await.unwrap_err();
    let reason = "working directory does not exist: /no/such/place";
    assert_eq!(error, GuestError::Invalid(reason.into()));
    for bad in ["", "XYZ", "0123456G", "123456789"] {
        let bad = StartSession {
            session_id: bad.into(),
            ..shell(1, "true")
        };
        assert!(matches!(
            guest.client.start(bad).await,
            Err(GuestError::Invalid(_))
        ));
    }
    let killed = guest
        .client
        .run(shell(2, "kill -TERM $$"), 10)
        .await
        .unwrap();
    assert_eq!(killed.exit_code, 128 + 15);
    let absent = guest.client.attach("ffffffff").await;
    assert!(matches!(absent, Err(GuestError::NotFound(_))));
    assert!(matches!(
        guest.client.signal("ffffffff", 9).await,
        Err(GuestError::NotFound(_))
    ));
}

/// Goal: everything a command writes before and after the attach arrives; capture is bounded.
#[tokio::test]
async fn a_run_loses_no_output_and_bounds_it() {
    let guest = Fixture::start().await;
    let cmd = "head -c 10000000 /dev/zero | tr '\\0' x";
    let output = guest.client.run(shell(1, cmd), 20_000_000).await.unwrap();
    assert_eq!((output.stdout.len(), output.truncated), (10_000_000, false));
    assert!(output.stdout.iter().all(|b| *b == b'x'));
    let output = guest.client.run(shell(2, cmd), 1000).await.unwrap();
    assert_eq!(
        (output.stdout.len(), output.truncated, output.exit_code),
        (1000, true, 0)
    );
}

/// Goal: two clients get the same replay and live output, both can write, an ended session can be
/// attached to again.
#[tokio::test]
async fn clients_share_a_session() {
    let guest = Fixture::start().await;
    guest
        .client
        .start(shell(1, "echo early; cat"))
        .await
        .unwrap();
    let mut first = guest.client.attach("00000001").await.unwrap();
    assert_eq!(wait_for(&mut first, b"early\n").await, b"early\n");
    let mut second = guest.client.attach("00000001").await.unwrap();
    assert_eq!(wait_for(&mut second, b"early\n").await, b"early\n");
    assert_eq!(guest.client.sessions().await.unwrap()[0].attached, 2);
    first
        .stdin()
        .send(Bytes::from_static(b"one "))
        .await
        .unwrap();
    assert_eq!(wait_for(&mut second, b"one ").await, b"one ");
    second
        .stdin()
        .send(Bytes::from_static(b"two"))
        .await
        .unwrap();
    assert_eq!(wait_for(&mut first, b"two").await, b"one two");
    second.stdin().close().await.unwrap();
    assert_eq!(to_exit(&mut first).await.2, 0);
    assert_eq!(to_exit(&mut second).await, (b"two".to_vec(), false, 0));
    let mut late = guest.client.attach("00000001").await.unwrap();
    assert_eq!(
        to_exit(&mut late).await,
        (b"early\none two".to_vec(), true, 0)
    );
    let listed = &guest.client.sessions().await.unwrap()[0];
    assert_eq!(
        (listed.exit_code, listed.cmd.as_str()),
        (Some(0), "echo early; cat")
    );
}

/// Reads stdout until it ends with `end`, through a replay's end.
async fn wait_for(attachment: &mut Attachment, end: &[u8]) -> Vec<u8> {
    let mut seen = Vec::new();
    while !seen.ends_with(end) {
        match attachment.next().await.unwrap() {
            Some(SessionOutput::Stdout(data)) => seen.extend_from_slice(&data),
            Some(SessionOutput::ReplayEnd | SessionOutput::Stderr(_)) => {}
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    seen
}

/// Goal: the time limit ends the whole group, and says so.
#[tokio::test]
async fn the_time_limit_kills_grandchildren() {
    let guest = Fixture::start().await;
    let note = guest.path("note");
    let cmd = format!("(sleep 1.5; echo late > {note}) & sleep 60");
    let timeout = Some(Duration::from_millis(300));
    let started = Instant::now();
    let output = guest
        .client
        .run(
            StartSession {
                timeout,
                ..shell(1, &cmd)
            },
            10,
        )
        .await
        .unwrap();
    assert_eq!((output.exit_code, output.timed_out), (-1, true));
    assert!(started.elapsed() < Duration::from_secs(1));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(
        !PathBuf::from(note).exists(),
        "the grandchild was not killed"
    );
}

/// Goal: a background process that keeps the pipes neither delays the exit nor dies of them.
#[tokio::test]
async fn a_background_process_outlives_its_session() {
    let guest = Fixture::start().await;
    let note = guest.path("note");
    let cmd = format!("(sleep 0.6; echo more; echo late > {note}) & echo now");
    let started = Instant::now();
    let output = guest.client.run(shell(1, &cmd), 100).await.unwrap();
    assert_eq!((text(&output.stdout), output.exit_code), ("now\n", 0));
    assert!(
        started.elapsed() < Duration::from_millis(550),
        "{:?}",
        started.elapsed()
    );
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(std::fs::read_to_string(note).unwrap(), "late\n");
}

/// Goal: a session's name reaches what its command left running, whatever group that is in, for every
/// signal; who left the session is left alone, and so is everybody else.
#[tokio::test]
async fn a_signal_reaches_what_the_command_left() {
    let guest = Fixture::start().await;
    // The second one is a job with a group of its own, the third in a session of its own.
    let cmd = "trap '' HUP; sleep 300.1 & echo $!; set -m; sleep 300.2 & echo $!; set +m; \
               setsid sleep 5.3 & sleep 0.2; echo $!";
    let bash = |id| StartSession {
        direct: true,
        args: vec!["-c".into(), cmd.into()],
        ..shell(id, "bash")
    };
    guest.client.start(shell(9, "sleep 300.9")).await.unwrap();
    for (id, signal) in [(1, libc::SIGTERM), (2, libc::SIGKILL), (3, libc::SIGUSR1)] {
        guest.client.start(bash(id)).await.unwrap();
        let name = format!("{id:08x}");
        let mut client = guest.client.attach(&name).await.unwrap();
        let (stdout, _, code) = to_exit(&mut client).await;
        assert_eq!(code, 0);
        let pids: Vec<&str> = text(&stdout).lines().collect();
        let [own, job, away] = pids[..] else {
            panic!("{pids:?}")
        };
        for pid in &pids {
            assert!(runs(pid), "{pid} of {cmd} outlives it");
        }
        // Longer than the pause between two looks at what is left.
        tokio::time::sleep(Duration::from_millis(1300)).await;
        guest.client.signal(&name, signal).await.unwrap();
        assert!(gone(own).await && gone(job).await, "{signal}");
        assert!(runs(away), "who left the session is not signalled");
        // Once all are gone the number may be anybody's.
        tokio::time::sleep(Duration::from_millis(1300)).await;
        guest.client.signal(&name, signal).await.unwrap();
    }
    let sessions = guest.client.sessions().await.unwrap();
    assert!(sessions[0].exit_code.is_none(), "{:?}", sessions[0]);
}

/// Goal: a kill and a time limit end jobs that made groups of their own too.
#[tokio::test]
async fn an_end_by_force_ends_all_jobs() {
    let guest = Fixture::start().await;
    let cmd = "set -m; sleep 300.4 & echo $!; sleep 300.5 & echo $!; echo; wait";
    let jobs = |id, timeout| StartSession {
        direct: true,
        args: vec!["-c".into(), cmd.into()],
        timeout,
        ..shell(id, "bash")
    };
    for (id, timeout) in [(1, None), (2, Some(Duration::from_secs(1)))] {
        guest.client.start(jobs(id, timeout)).await.unwrap();
        let name = format!("{id:08x}");
        let mut client = guest.client.attach(&name).await.unwrap();
        let shown = wait_for(&mut client, b"\n\n").await;
        let pids: Vec<&str> = text(&shown).split_whitespace().collect();
        assert_eq!(pids.len(), 2);
        if timeout.is_none() {
            guest.client.signal(&name, libc::SIGTERM).await.unwrap();
            assert!(runs(pids[0]), "only the group is signalled");
            guest.client.signal(&name, libc::SIGKILL).await.unwrap();
        }
        to_exit(&mut client).await;
        assert!(gone(pids[0]).await && gone(pids[1]).await, "{timeout:?}");
    }
}

/// Goal: a client that reads nothing slows the process, takes no memory, and gets it all later.
#[tokio::test]
async fn a_slow_client_gets_every_byte() {
    let guest = Fixture::start().await;
    let cmd = "head -c 10000000 /dev/urandom > $F; cat $F".replace("$F", &guest.path("random"));
    guest
        .client
        .start(StartSession {
            scrollback_bytes_max: 1,
            ..shell(1, &cmd)
        })
        .await
        .unwrap();
    let mut slow = guest.client.attach("00000001").await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(guest.client.sessions().await.unwrap()[0].exit_code, None);
    let (stdout, _, code) = to_exit(&mut slow).await;
    assert_eq!(code, 0);
    assert!(stdout == std::fs::read(guest.path("random")).unwrap());
}

/// Goal: signals reach the group; a session left by its clients ends when told so.
#[tokio::test]
async fn signals_and_detach_limits() {
    let guest = Fixture::start().await;
    guest
        .client
        .start(shell(
            1,
            "trap 'echo got; exit 3' USR1; echo up; sleep 60 & wait",
        ))
        .await
        .unwrap();
    let mut client = guest.client.attach("00000001").await.unwrap();
    wait_for(&mut client, b"up\n").await;
    // The group includes `sleep`, which the signal ends: the pipe closes at once.
    guest
        .client
        .signal("00000001", libc::SIGUSR1)
        .await
        .unwrap();
    let (stdout, _, code) = to_exit(&mut client).await;
    assert_eq!((text(&stdout), code), ("got\n", 3));
    guest.client.signal("00000001", 9).await.unwrap();

    let kill_after_detach = Some(Duration::from_millis(100));
    let left = StartSession {
        kill_after_detach,
        ..shell(2, "sleep 60")
    };
    guest.client.start(left).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let exit = async || guest.client.sessions().await.unwrap()[1].exit_code;
    assert_eq!(exit().await, None, "the limit starts with the first detach");
    drop(guest.client.attach("00000002").await.unwrap());
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(exit().await, Some(137));
}

/// Goal: a dropped `run` leaves nothing behind.
#[tokio::test]
async fn a_dropped_run_kills_its_command() {
    let guest = Fixture::start().await;
    let note = guest.path("note");
    let cmd = format!("sleep 1; echo late > {note}");
    let run = guest.client.run(shell(1, &cmd), 10);
    assert!(
        tokio::time::timeout(Duration::from_millis(300), run)
            .await
            .is_err()
    );
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!PathBuf::from(note).exists());
}

/// Goal: three hundred runs in a row leave no session, descriptor or zombie.
#[tokio::test]
async fn runs_leave_nothing_behind() {
    let guest = Fixture::start().await;
    guest.client.run(shell(0, "true"), 10).await.unwrap();
    let open = || {
        std::fs::read_dir(format!("/proc/{}/fd", guest.child.id()))
            .unwrap()
            .count()
    };
    let before = open();
    for id in 1..=300 {
        let direct = StartSession {
            direct: true,
            ..shell(id, "true")
        };
        assert_eq!(guest.client.run(direct, 10).await.unwrap().exit_code, 0);
    }
    assert_eq!(open(), before);
    assert!(guest.client.sessions().await.unwrap().is_empty());
    let children = format!("/proc/{0}/task/{0}/children", guest.child.id());
    assert_eq!(std::fs::read_to_string(children).unwrap(), "");
}

/// Goal: where the guest can't change users, everything runs as the guest itself.
#[tokio::test]
async fn rootless_guests_run_everything_as_themselves() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become the users this needs");
        return;
    }
    for (command, uid) in [
        ("setpriv --reuid 1000 --regid 1000 --clear-groups", "1000\n"),
        ("setpriv --reuid 1234 --regid 1234 --clear-groups", "1234\n"),
        // One user, seen as root inside.
        (
            "setpriv --reuid 1234 --regid 1234 --clear-groups unshare --user --map-root-user",
            "0\n",
        ),
    ] {
        let mut words = command.split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg(env!("OC_GUEST_BINARY"));
        let guest = Fixture::start_as("", command).await;
        for (id, as_root) in [(1, false), (2, true)] {
            let session = StartSession {
                as_root,
                ..shell(id, "id -u")
            };
            let output = guest.client.run(session, 100).await.unwrap();
            assert_eq!(text(&output.stdout), uid);
        }
        let path = guest.path("made/file");
        let content = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"x"))]);
        guest.client.write_file(&path, content).await.unwrap();
        assert!(PathBuf::from(path).exists());
    }
}

/// Goal: a bound on running sessions, and ended ones make room.
#[tokio::test]
async fn sessions_are_bounded() {
    let Some(guest) = Fixture::start_as_init().await else {
        return;
    };
    for id in 0..256 {
        guest
            .client
            .start(shell(id, if id == 7 { "true" } else { "exec cat" }))
            .await
            .unwrap();
    }
    let mut seventh = guest.client.attach("00000007").await.unwrap();
    to_exit(&mut seventh).await;
    guest.client.start(shell(256, "exec cat")).await.unwrap();
    let error = guest.client.start(shell(257, "true")).await.unwrap_err();
    assert!(matches!(error, GuestError::Full(_)), "{error}");
    let again = guest.client.start(shell(1, "true")).await.unwrap_err();
    assert!(matches!(again, GuestError::Precondition(_)), "{again}");
    let sessions = guest.client.sessions().await.unwrap();
    assert_eq!(sessions.len(), 256);
    assert!(
        sessions
            .iter()
            .all(|session| session.session_id != "00000007")
    );
}
