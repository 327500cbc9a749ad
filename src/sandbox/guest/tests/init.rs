//! The guest as PID 1, and `sudo` through it.

use super::*;

/// Installs the program as `sudo`; answers a shell session that finds it.
fn with_sudo(guest: &Fixture, id: u32, cmd: &str) -> StartSession {
    let bin = guest.folder.path().join("bin");
    if !bin.exists() {
        std::fs::create_dir(&bin).unwrap();
        let sudo = bin.join("sudo");
        std::fs::copy(env!("OC_GUEST_BINARY"), &sudo).unwrap();
        // A process that another test starts just now may hold the copy open for writing until it
        // runs its own program.
        let try_it = || {
            let mut sudo = std::process::Command::new(&sudo);
            sudo.arg("-V").stdin(std::process::Stdio::null()).output()
        };
        while let Err(error) = try_it() {
            assert_eq!(error.kind(), std::io::ErrorKind::ExecutableFileBusy);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
    let mut session = shell(id, cmd);
    let path = format!("{}:/usr/bin:/bin", bin.display());
    session.env.insert("PATH".into(), path);
    session.env.insert("HOME".into(), "/home/sandbox".into());
    session.env.insert("OC_RUN_DIR".into(), guest.path("run"));
    session
}

/// Goal: a process starts with three descriptors, no rights to gain, and nothing of ours to read.
#[tokio::test]
async fn a_process_is_given_nothing_of_the_guest() {
    let Some(guest) = Fixture::start_as_init().await else {
        return;
    };
    let cmd = "ls /proc/self/fd | wc -l; grep NoNewPrivs /proc/self/status; id -G; \
               cat /proc/self/oom_score_adj; cat /proc/1/environ 2>&1 | tail -c 18";
    let output = guest.client.run(shell(1, cmd), 1000).await.unwrap();
    // Three, and the one `ls` opens.
    let expected = "4\nNoNewPrivs:\t1\n1000\n500\nPermission denied\n";
    assert_eq!(text(&output.stdout), expected);
}

/// Goal: PID 1 reaps every orphan and still knows the exit of each session.
#[tokio::test]
async fn orphans_are_reaped_and_no_exit_is_lost() {
    let Some(guest) = Fixture::start_as_init().await else {
        return;
    };
    let runs = (0..60).map(|id| {
        let cmd = format!("for i in 1 2 3; do (setsid sh -c 'exit 9' &) ; done; exit {id}");
        let client = guest.client.clone();
        async move { client.run(shell(id, &cmd), 10).await.unwrap().exit_code }
    });
    let codes = futures_util::future::join_all(runs).await;
    assert_eq!(codes, (0..60).collect::<Vec<_>>());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let cmd = "cat /proc/[0-9]*/stat | grep -c ') Z '";
    let zombies = guest.client.run(shell(100, cmd), 100).await.unwrap();
    assert_eq!(text(&zombies.stdout), "0\n");
}

/// Goal: commands run as root with the caller's streams, folder and environment; ends are told.
#[tokio::test]
async fn sudo_runs_commands_as_root() {
    let Some(guest) = Fixture::start_as_init().await else {
        return;
    };
    for (id, (cmd, stdout, code)) in [
        (
            "id -u; sudo id -u; sudo -n -u '#33' id -u",
            "1000\n0\n33\n",
            0,
        ),
        ("sudo sh -c 'exit 5'", "", 5),
        ("sudo sh -c 'kill -TERM $$'", "", 143),
        ("echo in | sudo cat", "in\n", 0),
        (
            "cd /usr/lib; sudo A=b sh -c 'echo $A $GREETING $HOME $SUDO_USER; pwd'",
            "b sealed hello /root sandbox\n/usr/lib\n",
            0,
        ),
        ("sudo -E sh -c 'echo $HOME'", "/home/sandbox\n", 0),
        (
            "sudo -s 'echo a b' 2>/dev/null || sudo -s echo 'a  b'",
            "a  b\n",
            0,
        ),
        ("sudo sudo id -u", "0\n", 0),
        (
            "sudo -v && sudo -l | tail -1",
            "    (ALL) NOPASSWD: ALL\n",
            0,
        ),
        (
            "sudo no-such-program 2>&1",
            "sudo: no-such-program: command not found\n",
            1,
        ),
        (
            "sudo -u nobody-here id 2>&1",
            "sudo: unknown user nobody-here\n",
            1,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let session = with_sudo(&guest, id as u32, cmd);
        let output = guest.client.run(session, 1000).await.unwrap();
        let errors = text(&output.stderr);
        assert_eq!(
            (text(&output.stdout), output.exit_code),
            (stdout, code),
            "{cmd}: {errors}"
        );
    }
}

/// Goal: signals reach the command, and it ends with its client however that ends.
#[tokio::test]
async fn sudo_passes_signals_on() {
    let Some(guest) = Fixture::start_as_init().await else {
        return;
    };
    // `exec`: a shell in between would die of the signal and end the session before its child.
    let cmd = "exec sudo sh -c 'trap \"echo got; exit 4\" INT; echo up; sleep 40.25 & wait'";
    guest.client.start(with_sudo(&guest, 1, cmd)).await.unwrap();
    let mut client = guest.client.attach("00000001").await.unwrap();
    while client.next().await.unwrap() != Some(SessionOutput::Stdout("up\n".into())) {}
    guest.client.signal("00000001", libc::SIGINT).await.unwrap();
    let (stdout, _, _) = to_exit(&mut client).await;
    assert_eq!(text(&stdout), "got\n");

    let timeout = Some(Duration::from_millis(300));
    let limited = StartSession {
        timeout,
        ..with_sudo(&guest, 2, "sudo sleep 41.75")
    };
    assert!(guest.client.run(limited, 10).await.unwrap().timed_out);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let cmd = "grep -lz '41[.]75' /proc/[0-9]*/cmdline | grep -v self | wc -l";
    let alive = guest.client.run(shell(3, cmd), 100).await.unwrap();
    // The searching commands themselves name the number with brackets.
    assert_eq!(text(&alive.stdout), "0\n");
}
