//! `oc shell` on a real terminal: one of a multiplexer that is this test's alone.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::common::KEY;
use crate::screen::World;

const PATIENCE: Duration = Duration::from_secs(30);
/// Where the shell of the test, outside any sandbox, says that it is at its prompt.
const PROMPT: &str = "local> ";

/// A multiplexer with one window of 100 by 30, in which a plain shell runs.
struct Window {
    socket: PathBuf,
}

impl Window {
    /// `None` after saying why there is none.
    fn open(world: &World) -> Option<Self> {
        let found = Command::new("tmux")
            .arg("-V")
            .stdout(Stdio::null())
            .status();
        if !found.is_ok_and(|status| status.success()) {
            println!("skipped: no tmux on this machine");
            return None;
        }
        let window = Self {
            socket: world.server.root().join("tmux"),
        };
        let mut start = window.tmux(&["-f", "/dev/null", "new-session", "-d", "-s", "t"]);
        start.args(["-x", "100", "-y", "30", "env", "-i"]);
        start.arg(format!("PS1={PROMPT}"));
        start.arg(format!(
            "HOME={}",
            world.server.root().join("home").display()
        ));
        start.arg(format!("OPENCOMPUTER_API_URL={}", world.server.url()));
        start.arg(format!("OPENCOMPUTER_API_KEY={KEY}"));
        start.args([
            "TERM=screen",
            "PATH=/usr/bin:/bin",
            "/bin/bash",
            "--norc",
            "--noprofile",
        ]);
        assert!(start.status().expect("tmux starts").success());
        window
            .tmux(&["set-option", "-g", "window-size", "manual"])
            .status()
            .expect("tmux");
        window.until(|screen| screen.trim_end().ends_with(PROMPT.trim_end()));
        Some(window)
    }

    fn tmux(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(&self.socket).arg("-u");
        command
            .args(arguments)
            .env_remove("TMUX")
            .stdin(Stdio::null());
        command
    }

    fn does(&self, arguments: &[&str]) -> String {
        let output = self.tmux(arguments).output().expect("tmux runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn keys(&self, keys: &[&str]) {
        self.does(&[&["send-keys", "-t", "t"], keys].concat());
    }

    /// Types a line.
    fn line(&self, text: &str) {
        self.does(&["send-keys", "-t", "t", "-l", text]);
        self.keys(&["Enter"]);
    }

    /// Waits until the screen is as it should be; answers it.
    fn until(&self, fits: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let screen = self.does(&["capture-pane", "-p", "-t", "t"]);
            if fits(&screen) {
                return screen;
            }
            assert!(started.elapsed() < PATIENCE, "the screen stays:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn shows(&self, text: &str) -> String {
        self.until(|screen| screen.contains(text))
    }

    /// Begins `oc shell` and waits for the sandbox's prompt.
    fn shell(&self, arguments: &str) {
        self.does(&["send-keys", "-t", "t", "-l", "clear; "]);
        self.line(&format!(
            "{} shell {arguments}; echo left=$?",
            env!("CARGO_BIN_EXE_oc")
        ));
        // A screen is told without the blanks at its end.
        self.until(|screen| screen.trim_end().ends_with('$'));
    }

    /// The local shell is back, with that exit code, on a terminal that works as before.
    fn is_sane(&self, code: u8) {
        self.shows(&format!("left={code}\n"));
        let flags = "icanon|isig|echo|opost|icrnl";
        self.line(&format!(
            "clear; stty -a | tr -s ' ;' '\\n' | grep -cxE '{flags}'; cat"
        ));
        self.shows("5\n");
        // Typed lines are echoed once by the terminal and once by `cat`; Ctrl-C ends it.
        self.line("typed");
        self.shows("typed\ntyped\n");
        self.keys(&["C-c"]);
        self.shows("^C");
        self.line("clear");
        self.until(|screen| screen.trim_end().ends_with(PROMPT.trim_end()));
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // Ends that server, its shell and whatever runs in it.
        let _ = self.tmux(&["kill-server"]).status();
    }
}

/// How many terminals' shells run in the sandbox.
async fn shells(world: &World) -> String {
    world
        .run("ls /proc/[0-9]*/exe -l 2>/dev/null | grep -c 'bash$'")
        .await
}

async fn no_shell_is_left(world: &World) {
    let started = Instant::now();
    while shells(world).await != "0" {
        assert!(started.elapsed() < PATIENCE, "a shell is left");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Goal: prompt, keys, resize, Ctrl-C, Ctrl-Z; Ctrl-D ends with 0 and leaves the terminal as it was
/// and no shell inside.
#[actix_rt::test]
async fn a_shell_on_a_real_terminal() {
    let Some(world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    let Some(window) = Window::open(&world) else {
        return;
    };
    window.shell(&world.id);
    window.line("stty size; id -un");
    window.shows("30 100\nsandbox\n");
    window.line("echo gr\u{fc}n; tty");
    window.shows("gr\u{fc}n\n/dev/pts/");
    window.does(&["resize-window", "-t", "t", "-x", "77", "-y", "21"]);
    window.line("clear; sleep 0.5; stty size");
    window.shows("21 77\n");
    window.line("sleep 300");
    std::thread::sleep(Duration::from_millis(700));
    window.keys(&["C-z"]);
    window.shows("Stopped");
    window.line("fg");
    std::thread::sleep(Duration::from_millis(700));
    window.keys(&["C-c"]);
    window.line("echo code=$?");
    window.shows("code=130\n");
    window.keys(&["C-d"]);
    window.is_sane(0);
    no_shell_is_left(&world).await;

    window.shell(&format!("{} --shell /bin/sh", world.id));
    window.line("echo $0; exit 5");
    window.shows("/bin/sh\n");
    // The shell's own code is not told by a terminal.
    window.is_sane(0);
}

/// Goal: whatever ends `oc shell`, the terminal is as it was, the reason is told, and the shell
/// inside ends too.
#[actix_rt::test]
async fn every_way_out_leaves_a_sane_terminal() {
    let Some(mut world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    let Some(window) = Window::open(&world) else {
        return;
    };
    for (signal, code) in [("TERM", 143), ("HUP", 129), ("INT", 130), ("QUIT", 131)] {
        window.shell(&world.id);
        let pid = oc_of(&world);
        let pid = rustix::process::Pid::from_raw(pid).expect("a process");
        let number = match signal {
            "TERM" => rustix::process::Signal::TERM,
            "HUP" => rustix::process::Signal::HUP,
            "INT" => rustix::process::Signal::INT,
            _ => rustix::process::Signal::QUIT,
        };
        rustix::process::kill_process(pid, number).expect("it runs");
        window.is_sane(code);
        no_shell_is_left(&world).await;
    }
    // Cut off in a full screen, with the mouse and a hidden cursor.
    window.shell(&world.id);
    window.line("printf '\\033[?1049h\\033[?1000h\\033[?25l\\033[31mfu''ll'; sleep 300");
    window.shows("full");
    let flags = "#{alternate_on} #{cursor_flag} #{mouse_standard_flag}";
    let flags = || window.does(&["display-message", "-p", "-t", "t", flags]);
    assert_eq!(flags(), "1 0 1\n");
    world.server.kill();
    window.shows("broke off");
    assert_eq!(flags(), "0 1 0\n");
    window.is_sane(1);
    world.server.restart();
    world.api = world.server.api();
    // Its URL has another port now.
    window.line(&format!(
        "export OPENCOMPUTER_API_URL={}",
        world.server.url()
    ));
    window.shell(&world.id);
    world.api.delete(&world.path("")).await.ok(204);
    window.shows("broke off");
    window.is_sane(1);
}

/// The process of the `oc shell` that talks to this world's server.
fn oc_of(world: &World) -> i32 {
    let wanted = format!("\0shell\0{}", world.id);
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let found = pids.find(|pid| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
        line.is_ok_and(|line| line.starts_with(env!("CARGO_BIN_EXE_oc")) && line.contains(&wanted))
    });
    found.expect("an `oc shell`")
}

/// Goal: without a terminal, with a wrong id, for a sandbox that is not there: told at once.
#[actix_rt::test]
async fn a_shell_that_can_not_be_is_refused() {
    let Some(world) = World::new(&json!({ "memoryMB": 128 })).await else {
        return;
    };
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oc"));
        command.arg("shell").args(arguments).env_clear();
        command.env("HOME", world.server.root().join("home"));
        command.env("OPENCOMPUTER_API_URL", world.server.url());
        command.env("OPENCOMPUTER_API_KEY", KEY);
        let output = command.stdin(Stdio::null()).output().expect("oc runs");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), errors)
    };
    let (code, errors) = run(&["my-sandbox"]);
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("`my-sandbox` is not a sandbox id"),
        "{errors}"
    );
    let (code, errors) = run(&[&world.id]);
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("needs a terminal") && errors.contains("oc exec"),
        "{errors}"
    );
    let Some(window) = Window::open(&world) else {
        return;
    };
    let program = env!("CARGO_BIN_EXE_oc");
    for (arguments, error, code) in [
        ("sb-01m806v6r12w1bmtyq39z8xdwq", "sandbox not found", 3),
        (
            &format!("{} --shell /no/such", world.id),
            "command not found: /no/such",
            3,
        ),
    ] {
        window.line(&format!("clear; {program} shell {arguments}; echo left=$?"));
        window.shows(error);
        window.is_sane(code);
    }
}
