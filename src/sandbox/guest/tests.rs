//! The client against the real guest program, run as an ordinary process of this machine.

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};

use super::*;

/// A guest of its own for one test; killed and cleaned up on drop.
struct Fixture {
    client: GuestClient,
    child: Child,
    folder: tempfile::TempDir,
}

impl Fixture {
    async fn start() -> Self {
        Self::start_in("").await
    }

    async fn start_in(below: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Sessions run as uid 1000 and must be able to enter.
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
        let home = folder.path().join(below);
        std::fs::create_dir_all(&home).unwrap();
        // Bound by a short name; the client must manage the long one.
        let short = folder.path().join("s");
        let listener = UnixListener::bind(&short).unwrap();
        let socket = home.join("guest.sock");
        std::fs::rename(&short, &socket).unwrap();
        let fd = listener.as_raw_fd();
        let mut command = Command::new(env!("OC_GUEST_BINARY"));
        command.stdin(Stdio::null());
        // SAFETY: dup2 is async-signal-safe; descriptor 3 may be the listener itself.
        unsafe {
            command.pre_exec(move || {
                let moved = libc::dup2(fd, 100);
                if moved < 0 || libc::dup2(100, 3) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                libc::close(100);
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let client = GuestClient::connect(&socket).await.unwrap();
        client.hello(Duration::from_secs(10)).await.unwrap();
        Self {
            client,
            child,
            folder,
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn shell(id: u32, cmd: &str) -> StartSession {
    let env = [
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("GREETING", "sealed hello"),
    ];
    StartSession {
        session_id: format!("{id:08x}"),
        cmd: cmd.into(),
        env: env.map(|(name, value)| (name.into(), value.into())).into(),
        cwd: "/".into(),
        ..Default::default()
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Reads to the exit; answers stdout, whether the replay ended before it, and the code.
async fn to_exit(attachment: &mut Attachment) -> (Vec<u8>, bool, i32) {
    let (mut stdout, mut replayed) = (Vec::new(), false);
    loop {
        match attachment.next().await.unwrap() {
            Some(SessionOutput::Stdout(data)) => stdout.extend_from_slice(&data),
            Some(SessionOutput::Stderr(_)) => {}
            Some(SessionOutput::ReplayEnd) => replayed = true,
            Some(SessionOutput::Exit { code, .. }) => {
                assert_eq!(attachment.next().await.unwrap(), None);
                return (stdout, replayed, code);
            }
            None => panic!("the output ended without an exit"),
        }
    }
}

/// Goal: separate streams, exact environment, user, exit code.
#[tokio::test]
async fn runs_a_command_to_its_end() {
    let guest = Fixture::start().await;
    let cmd = "echo \"$GREETING\"; env | wc -l; id -u; echo oops >&2; exit 7";
    let output = guest.client.run(shell(1, cmd), 1024).await.unwrap();
    let uid = if rustix::process::geteuid().is_root() {
        "1000"
    } else {
        ""
    };
    let stdout = text(&output.stdout);
    assert!(stdout.starts_with("sealed hello\n"), "{stdout:?}");
    assert!(stdout.contains(uid), "{stdout:?}");
    assert_eq!((text(&output.stderr), output.exit_code), ("oops\n", 7));
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

async fn content(guest: &Fixture, path: &str) -> Result<Vec<u8>, GuestError> {
    let (size, content) = guest.client.read_file(path).await?;
    let parts: Vec<Bytes> = content.try_collect().await?;
    let content = parts.concat();
    assert_eq!(size, content.len() as u64);
    Ok(content)
}

fn whole(data: &[u8]) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + use<> {
    let pieces: Vec<_> = data
        .chunks(100_000)
        .map(|c| Ok(Bytes::copy_from_slice(c)))
        .collect();
    stream::iter(pieces)
}

/// Goal: what is written is read back, under any name, with the right owner and mode.
#[tokio::test]
async fn files_are_written_and_read() {
    let guest = Fixture::start().await;
    let large: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 >> 3) as u8).collect();
    for (name, data) in [
        ("empty", &b""[..]),
        ("odd name\nü 'x'", b"odd"),
        ("made/of/parents", b"deep"),
        ("large", &large),
    ] {
        let path = guest.path(name);
        let written = guest.client.write_file(&path, whole(data)).await.unwrap();
        assert_eq!(written, data.len() as u64);
        assert!(content(&guest, &path).await.unwrap() == data, "{name:?}");
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, 0o644);
        if rustix::process::geteuid().is_root() {
            assert_eq!(std::os::unix::fs::MetadataExt::uid(&found), 1000);
        }
    }
    // An existing file keeps its mode, a link stays a link.
    let script = guest.path("script");
    std::fs::write(&script, "old").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("script", guest.path("link")).unwrap();
    guest
        .client
        .write_file(&guest.path("link"), whole(b"new"))
        .await
        .unwrap();
    assert_eq!(std::fs::read(&script).unwrap(), b"new");
    assert_eq!(
        std::fs::metadata(&script).unwrap().permissions().mode() & 0o777,
        0o755
    );
    assert!(
        std::fs::symlink_metadata(guest.path("link"))
            .unwrap()
            .is_symlink()
    );
    // Files whose size the kernel does not tell.
    assert!(!content(&guest, "/proc/version").await.unwrap().is_empty());
}

/// Goal: a broken upload leaves the old content and no other trace.
#[tokio::test]
async fn a_broken_upload_changes_nothing() {
    let guest = Fixture::start().await;
    let path = guest.path("kept/file");
    guest.client.write_file(&path, whole(b"old")).await.unwrap();
    let broken = stream::iter([Ok(Bytes::from_static(b"half")), Err("the client left")]);
    let error = guest.client.write_file(&path, broken).await.unwrap_err();
    assert_eq!(error, GuestError::Upload("the client left".into()));
    // Given up by the caller, with no end at all.
    let endless = whole(b"half").chain(stream::pending());
    let write = guest.client.write_file(&path, endless);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), write)
            .await
            .is_err()
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(content(&guest, &path).await.unwrap(), b"old");
    assert_eq!(
        guest
            .client
            .list_dir(&guest.path("kept"))
            .await
            .unwrap()
            .len(),
        1
    );
}

/// Goal: what can't be read or written is refused by its own name, and nothing hangs.
#[tokio::test]
async fn unusable_paths_are_refused() {
    let guest = Fixture::start().await;
    let (dir, file, pipe) = (guest.path("dir"), guest.path("file"), guest.path("pipe"));
    guest.client.make_dir(&dir).await.unwrap();
    guest.client.make_dir(&dir).await.unwrap();
    guest.client.write_file(&file, whole(b"x")).await.unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let below = format!("{file}/below");
    for (path, read, write) in [
        (dir.as_str(), "Invalid", "Invalid"),
        (pipe.as_str(), "Invalid", "Invalid"),
        ("/dev/zero", "Invalid", "Invalid"),
        ("/no/such/file", "NotFound", ""),
        ("", "Invalid", "Invalid"),
        ("a\0b", "Invalid", "Invalid"),
        (below.as_str(), "Precondition", "Precondition"),
    ] {
        let error = format!("{:?}", content(&guest, path).await.unwrap_err());
        assert!(error.starts_with(read), "reading {path:?}: {error}");
        if !write.is_empty() {
            let written = guest.client.write_file(path, whole(b"x")).await;
            let error = format!("{:?}", written.unwrap_err());
            assert!(error.starts_with(write), "writing {path:?}: {error}");
        }
    }
    let made = guest.client.make_dir(&below).await;
    assert!(matches!(made, Err(GuestError::Precondition(_))));
    let listed = guest.client.list_dir(&file).await;
    assert!(matches!(listed, Err(GuestError::NotFound(_))));
    for root in ["/", "//", "/..", "/dev/.."] {
        assert!(
            matches!(guest.client.remove(root).await, Err(GuestError::Invalid(_))),
            "{root}"
        );
    }
}

/// Goal: lists are sorted and whole; removing follows no link and minds no missing path.
#[tokio::test]
async fn directories_are_listed_and_removed() {
    let guest = Fixture::start().await;
    for i in (0..1200).rev() {
        let name = guest.path(&format!("tree/{i:04}"));
        std::fs::create_dir_all(guest.path("tree")).unwrap();
        std::fs::write(name, "x".repeat(i % 7)).unwrap();
    }
    std::fs::create_dir(guest.path("tree/.hidden")).unwrap();
    let list = guest.client.list_dir(&guest.path("tree/")).await.unwrap();
    assert_eq!(list.len(), 1201);
    assert!(list.is_sorted_by(|a, b| a.name < b.name));
    assert_eq!((list[0].name.as_str(), list[0].is_dir), (".hidden", true));
    let six = DirEntry {
        name: "0006".into(),
        is_dir: false,
        size: 6,
        path: guest.path("tree/0006"),
    };
    assert_eq!(list[7], six);
    let kept = guest.path("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::write(guest.path("kept/file"), "x").unwrap();
    std::os::unix::fs::symlink(&kept, guest.path("tree/link")).unwrap();
    for _ in 0..2 {
        guest.client.remove(&guest.path("tree")).await.unwrap();
        assert!(!PathBuf::from(guest.path("tree")).exists());
    }
    assert_eq!(guest.client.list_dir(&kept).await.unwrap().len(), 1);
}

/// Goal: paths longer than a socket address still connect; a dead guest is `Gone`.
#[tokio::test]
async fn long_paths_and_dead_guests() {
    let mut guest = Fixture::start_in(&"long-name/".repeat(15)).await;
    guest.client.hello(Duration::from_secs(5)).await.unwrap();
    guest.child.kill().unwrap();
    guest.child.wait().unwrap();
    assert!(matches!(
        guest.client.sessions().await,
        Err(GuestError::Gone(_))
    ));
    let hello = guest.client.hello(Duration::from_millis(50)).await;
    assert!(matches!(hello, Err(GuestError::Gone(_))));
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
