//! Shells on terminals: what the shell is given, clients, sizes, ends.

use super::*;

/// bash without anybody's settings, with the prompt `> `.
pub(super) fn bash(id: u32) -> StartTerminal {
    let env = [
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
        ("HOME", "/nonexistent"),
        // The host's own settings set another one.
        ("PROMPT_COMMAND", "PS1='> '"),
        ("TERM", "xterm-256color"),
        ("LANG", "C.UTF-8"),
    ];
    StartTerminal {
        terminal_id: format!("{id:08x}"),
        shell: "/bin/bash".into(),
        env: env.map(|(name, value)| (name.into(), value.into())).into(),
        cwd: "/".into(),
        size: TerminalSize::new(80, 24).unwrap(),
        hang_up_when_alone: Duration::from_secs(600),
    }
}

/// One attached client and everything it has seen.
struct Screen {
    attachment: Attachment,
    seen: String,
}

impl Screen {
    async fn attach(guest: &Fixture, id: u32) -> Self {
        let attachment = guest.client.attach_terminal(&format!("{id:08x}")).await;
        Self {
            attachment: attachment.unwrap(),
            seen: String::new(),
        }
    }

    async fn keys(&self, keys: &str) {
        let keys = Bytes::copy_from_slice(keys.as_bytes());
        self.attachment.stdin().send(keys).await.unwrap();
    }

    /// Waits until what came since the last call holds `text`; answers all of that.
    async fn until(&mut self, text: &str) -> String {
        let wait = async {
            while !self.seen.contains(text) {
                match self.attachment.next().await.unwrap() {
                    Some(SessionOutput::Stdout(data)) => {
                        self.seen.push_str(&String::from_utf8_lossy(&data));
                    }
                    Some(SessionOutput::ReplayEnd) => {}
                    other => panic!("{other:?} while waiting for {text:?} after {:?}", self.seen),
                }
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), wait).await;
        assert!(waited.is_ok(), "no {text:?} in {:?}", self.seen);
        std::mem::take(&mut self.seen)
    }

    /// Reads to the exit; answers its code.
    async fn exit(&mut self) -> i32 {
        let exit = tokio::time::timeout(Duration::from_secs(20), to_exit(&mut self.attachment));
        exit.await.expect("it ends").2
    }
}

/// Types `command` and a question for the process id in `$variable`; answers it.
async fn pid(screen: &mut Screen, command: &str, variable: &str) -> String {
    screen
        .keys(&format!("{command}echo p''id=${variable} e''nd\r"))
        .await;
    let shown = screen.until(" end\r\n").await;
    let (_, rest) = shown.rsplit_once("pid=").unwrap();
    rest.split(' ').next().unwrap().to_owned()
}

/// Goal: the shell is the sandbox user's, leads a session on its own terminal, has job control and
/// no descriptor but its three; its prompt from before the attach is delivered.
#[tokio::test]
async fn a_shell_owns_its_terminal() {
    let guest = Fixture::start().await;
    let started = guest.client.start_terminal(bash(1)).await.unwrap();
    assert_eq!((started.exit_code, started.attached), (None, 0));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut screen = Screen::attach(&guest, 1).await;
    assert_eq!(screen.until("> ").await.replace("\u{1b}[?2004h", ""), "> ");
    let own = rustix::process::geteuid();
    let uid = if own.is_root() { 1000 } else { own.as_raw() };
    for (command, expected) in [
        ("echo u$(id -u)", format!("u{uid}\r\n")),
        ("ps -o tty= $$ | grep -c pts/", "1\r\n".into()),
        ("echo $(( $(ps -o sid= $$) == $$ ))s", "1s\r\n".into()),
        ("stat -c o%u $(tty)", format!("o{uid}\r\n")),
        (
            "exec 9>$(tty) && echo o''pened; exec 9>&-",
            "opened\r\n".into(),
        ),
        (
            "echo m$-n | grep -o m.*m >/dev/null && echo j''obs",
            "jobs\r\n".into(),
        ),
        ("ls -x /proc/self/fd | wc -w", "\r4\r\n".into()),
        ("stty size", "24 80\r\n".into()),
        ("echo $COLUMNS:$LINES", "80:24\r\n".into()),
    ] {
        screen.keys(&format!("{command}\r")).await;
        let shown = screen.until(&expected).await;
        assert!(shown.contains(command), "it is echoed: {shown:?}");
    }
    screen.keys("exit 7\r").await;
    assert_eq!(screen.exit().await, 7);
    // What it wrote can still be read.
    let mut again = Screen::attach(&guest, 1).await;
    again.until("24 80\r\n").await;
    assert_eq!(again.exit().await, 7);
}

/// Goal: Ctrl-C, Ctrl-Z, fg and bg reach the process in the foreground.
#[tokio::test]
async fn keys_are_signals_and_jobs_are_controlled() {
    let guest = Fixture::start().await;
    guest.client.start_terminal(bash(1)).await.unwrap();
    let mut screen = Screen::attach(&guest, 1).await;
    screen.until("> ").await;
    screen.keys("sleep 300\r").await;
    screen.until("sleep 300").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    screen.keys("\u{1a}").await;
    screen.until("Stopped").await;
    screen.keys("bg\r").await;
    screen.until("sleep 300 &").await;
    screen.keys("jobs\r").await;
    screen.until("Running").await;
    screen.keys("fg\r").await;
    screen.until("sleep 300\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    screen.keys("\u{3}").await;
    screen.until("^C").await;
    screen.keys("echo code=$?\r").await;
    screen.until("code=130").await;
    // The end of input ends the shell, with the code of its last command.
    screen.keys("true\r").await;
    screen.until("> ").await;
    screen.keys("\u{4}").await;
    assert_eq!(screen.exit().await, 0);
}

/// Goal: a resize is seen by the shell, by what runs in the foreground, and by the next command.
#[tokio::test]
async fn a_resize_is_seen_inside() {
    let guest = Fixture::start().await;
    guest.client.start_terminal(bash(1)).await.unwrap();
    let mut screen = Screen::attach(&guest, 1).await;
    let script =
        "trap 'echo s''een $(stty size)' WINCH; echo r''eady; while sleep 0.05; do :; done";
    screen
        .keys(&format!("bash -c \"{}\"\r", script.replace('$', "\\$")))
        .await;
    screen.until("ready").await;
    let size = TerminalSize::new(132, 43).unwrap();
    guest
        .client
        .resize_terminal("00000001", size)
        .await
        .unwrap();
    screen.until("seen 43 132").await;
    screen.keys("\u{3}").await;
    screen.keys("echo now=$COLUMNS\r").await;
    screen.until("now=132").await;
    let unknown = guest.client.resize_terminal("00000002", size).await;
    assert!(matches!(unknown, Err(GuestError::NotFound(_))));
    screen.keys("exit\r").await;
    screen.exit().await;
    guest
        .client
        .resize_terminal("00000001", size)
        .await
        .unwrap();
}

/// Goal: terminals and sessions are not found by each other's calls; wrong requests are refused.
#[tokio::test]
async fn terminals_are_no_sessions() {
    let guest = Fixture::start().await;
    guest.client.start_terminal(bash(1)).await.unwrap();
    guest.client.start(shell(2, "exec cat")).await.unwrap();
    let ids = |list: Vec<SessionInfo>| -> Vec<String> {
        list.into_iter().map(|one| one.session_id).collect()
    };
    assert_eq!(ids(guest.client.terminals().await.unwrap()), ["00000001"]);
    assert_eq!(ids(guest.client.sessions().await.unwrap()), ["00000002"]);
    let size = TerminalSize::new(1, 1).unwrap();
    for refused in [
        guest.client.attach("00000001").await.map(drop),
        guest.client.signal("00000001", 9).await,
        guest.client.attach_terminal("00000002").await.map(drop),
        guest.client.resize_terminal("00000002", size).await,
        guest.client.hang_up_terminal("00000002").await,
    ] {
        assert!(
            matches!(refused, Err(GuestError::NotFound(_))),
            "{refused:?}"
        );
    }
    let taken = StartTerminal {
        terminal_id: "00000002".into(),
        ..bash(1)
    };
    let refused = guest.client.start_terminal(taken).await;
    assert!(matches!(refused, Err(GuestError::Precondition(_))));
    let absent = StartTerminal {
        shell: "/no/such/shell".into(),
        ..bash(3)
    };
    let refused = guest.client.start_terminal(absent).await;
    assert!(matches!(refused, Err(GuestError::CommandNotFound(_))));
    let nowhere = StartTerminal {
        cwd: "/no/such/place".into(),
        ..bash(3)
    };
    let refused = guest.client.start_terminal(nowhere).await;
    assert!(matches!(refused, Err(GuestError::Invalid(_))));
}

/// Goal: all clients see everything, all may type, and whoever comes later sees what was before.
#[tokio::test]
async fn clients_share_a_terminal() {
    let guest = Fixture::start().await;
    guest.client.start_terminal(bash(1)).await.unwrap();
    let mut first = Screen::attach(&guest, 1).await;
    first.keys("echo fir''st\r").await;
    first.until("first\r\n").await;
    let mut second = Screen::attach(&guest, 1).await;
    second.until("first\r\n").await;
    second.keys("echo sec''ond gr\u{fc}n\r").await;
    first.until("second gr\u{fc}n\r\n").await;
    second.until("second gr\u{fc}n\r\n").await;
    assert_eq!(guest.client.terminals().await.unwrap()[0].attached, 2);
    drop(first);
    // The end of one client's input is not the end of the shell's.
    second.attachment.stdin().close().await.unwrap();
    second.keys("echo al''ive\r").await;
    second.until("alive\r\n").await;
}

/// Goal: what a client sends before it leaves is read, however much the program says meanwhile; one
/// that reads nothing holds the leaving client for its time only.
#[tokio::test]
async fn what_was_sent_before_leaving_arrives() {
    let guest = Fixture::start().await;
    guest.client.start_terminal(bash(1)).await.unwrap();
    for round in 0..20 {
        let note = guest.path(&format!("typed-{round}"));
        let screen = Screen::attach(&guest, 1).await;
        screen
            .keys(&format!("seq 20000; echo d''one > {note}\r"))
            .await;
        let started = Instant::now();
        screen.attachment.leave().await;
        assert!(started.elapsed() < LEAVE_TIME_MAX, "the guest answers");
        until_written(&note, "done\n").await;
    }
    let input: String = (0..50_000).map(|number| format!("{number:09}\n")).collect();
    let note = guest.path("piped");
    let cat = format!("cat > {note}");
    guest.client.start(shell(2, &cat)).await.unwrap();
    let attachment = guest.client.attach("00000002").await.unwrap();
    let stdin = attachment.stdin();
    stdin.send(Bytes::from(input.clone())).await.unwrap();
    drop(stdin);
    attachment.leave().await;
    until_written(&note, &input).await;
    assert_eq!(guest.client.sessions().await.unwrap()[0].exit_code, None);

    guest.client.start(shell(3, "sleep 60")).await.unwrap();
    let attachment = guest.client.attach("00000003").await.unwrap();
    let input = Bytes::from(vec![b'x'; 100_000]);
    attachment.stdin().send(input).await.unwrap();
    let started = Instant::now();
    attachment.leave().await;
    assert!(started.elapsed() >= LEAVE_TIME_MAX);
    assert!(started.elapsed() < LEAVE_TIME_MAX * 4);
}

async fn until_written(path: &str, expected: &str) {
    let started = Instant::now();
    while !std::fs::read_to_string(path).is_ok_and(|text| text == expected) {
        assert!(started.elapsed() < Duration::from_secs(20), "{path}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Goal: much output comes through to a slow client whole and in order, and much input to a program
/// that reads it late.
#[tokio::test]
async fn floods_are_held_back_and_lose_nothing() {
    let guest = Fixture::start().await;
    guest.client.start_terminal(bash(1)).await.unwrap();
    let mut screen = Screen::attach(&guest, 1).await;
    screen
        .keys("stty -echo; echo; seq 400000; echo d''one\r")
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let shown = screen.until("done\r\n").await;
    let numbers = shown.lines().filter_map(|line| line.parse::<u32>().ok());
    assert!(numbers.eq(1..=400_000));

    screen
        .keys("stty raw; echo r''eady; sleep 1; head -c 1000000 | sha256sum; stty sane\r")
        .await;
    screen.until("ready").await;
    let input: String = (0..100_000).map(|number| format!("{number:010}")).collect();
    screen.keys(&input).await;
    use sha2::{Digest, Sha256};
    screen.until(&hex::encode(Sha256::digest(&input))).await;
}

/// Goal: a hang-up ends the shell, its jobs and the foreground, by force where they don't listen;
/// what was told to outlive the terminal does.
#[tokio::test]
async fn a_hang_up_ends_what_runs() {
    let guest = Fixture::start().await;
    for (id, foreground, patient) in [
        (1, "sleep 301", true),
        (
            2,
            "bash -c 'trap \"\" HUP; while :; do sleep 0.1; done'",
            false,
        ),
    ] {
        guest.client.start_terminal(bash(id)).await.unwrap();
        let mut screen = Screen::attach(&guest, id).await;
        let shell = pid(&mut screen, "", "$").await;
        let job = pid(&mut screen, "sleep 302 & ", "!").await;
        let command = "nohup sleep 5.03 >/dev/null 2>&1 & ";
        let kept = pid(&mut screen, command, "!").await;
        screen.keys(&format!("{foreground}\r")).await;
        let ahead = foreground.split(' ').next_back().unwrap();
        screen.until(ahead).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"));
        let children = children.unwrap();
        let front = children.split_whitespace().next_back().unwrap().to_owned();
        assert!(front != job && front != kept, "{children}");

        let started = Instant::now();
        let id = format!("{id:08x}");
        guest.client.hang_up_terminal(&id).await.unwrap();
        let took = started.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert_eq!(patient, took < Duration::from_millis(900), "{took:?}");
        for pid in [&shell, &job, &front] {
            assert!(gone(pid).await, "{pid} of {foreground}");
        }
        assert!(PathBuf::from(format!("/proc/{kept}")).exists(), "nohup");
        assert_ne!(screen.exit().await, 0);
        let again = guest.client.hang_up_terminal(&id).await;
        assert!(matches!(again, Err(GuestError::NotFound(_))));
        assert!(guest.client.attach_terminal(&id).await.is_err());
    }
}

/// Goal: with nobody attached for its time a terminal ends, also when nobody ever came; an attached
/// client keeps it.
#[tokio::test]
async fn a_terminal_left_alone_ends() {
    let guest = Fixture::start().await;
    let brief = |id| StartTerminal {
        hang_up_when_alone: Duration::from_millis(400),
        ..bash(id)
    };
    guest.client.start_terminal(brief(1)).await.unwrap();
    guest.client.start_terminal(brief(2)).await.unwrap();
    let mut kept = Screen::attach(&guest, 2).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let ended = async || -> Vec<bool> {
        let list = guest.client.terminals().await.unwrap();
        list.iter().map(|one| one.exit_code.is_some()).collect()
    };
    assert_eq!(ended().await, [true, false]);
    kept.keys("echo al''ive\r").await;
    kept.until("alive\r\n").await;
    drop(kept);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(ended().await, [true, true]);
}

/// Goal: as init: no zombie, no descriptor and no terminal is left of a hundred shells.
#[tokio::test]
async fn terminals_leave_nothing_behind() {
    let Some(guest) = Fixture::start_as_init().await else {
        return;
    };
    for id in 0..100 {
        guest.client.start_terminal(bash(id)).await.unwrap();
        let mut screen = Screen::attach(&guest, id).await;
        screen.until("> ").await;
        match id % 2 {
            0 => guest
                .client
                .hang_up_terminal(&format!("{id:08x}"))
                .await
                .unwrap(),
            _ => screen.keys("exit\r").await,
        }
        screen.exit().await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let cmd = "cat /proc/[0-9]*/stat | grep -c ') Z '; ls /proc/1/fd 2>/dev/null | wc -l";
    let session = StartSession {
        as_root: true,
        ..shell(1000, cmd)
    };
    let left = guest.client.run(session, 100).await.unwrap();
    let mut lines = text(&left.stdout).lines();
    assert_eq!(lines.next(), Some("0"), "zombies");
    let open: u32 = lines.next().unwrap().parse().unwrap();
    assert!(open < 40, "{open} descriptors");
}
