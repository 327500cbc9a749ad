//! The driver as an ordinary user. Run as root, the test gives itself up: it starts itself once
//! more as a user without any right, since one process can't be both.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use opencomputer::sandbox::{
    Driver, Enforcement, NamespaceDriver, SessionOutput, StartTerminal, TerminalSize, doctor_by,
};

use crate::support::{Sandbox, World, program, root_or_skip, run_by, spec, text};

/// No account needs to have it.
const TEST_UID: u32 = 61_234;

/// Goal: a sandbox of a user without rights works, isolates, and says what it can't limit.
#[test]
fn an_ordinary_user_gets_a_sandbox() {
    if !root_or_skip() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let home = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    chown(&home, Some(TEST_UID), Some(TEST_UID)).unwrap();
    // Copies, since the build folder may lie where that user can't go.
    let copies = [
        ("test", std::env::current_exe().unwrap()),
        ("oc", program().to_owned()),
    ];
    for (name, from) in copies {
        std::fs::copy(from, dir.path().join(name)).unwrap();
    }
    let output = Command::new(dir.path().join("test"))
        .args([
            "--exact",
            "rootless::as_an_ordinary_user",
            "--ignored",
            "--nocapture",
        ])
        .env("OC_TEST_HOME", &home)
        .env("OC_TEST_PROGRAM", dir.path().join("oc"))
        .env("TMPDIR", &home)
        .current_dir("/")
        .uid(TEST_UID)
        .gid(TEST_UID)
        .output()
        .unwrap();
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    assert!(
        output.status.success() && words.contains("1 passed"),
        "{words}"
    );
    // The user itself could remove everything its sandbox left, work folders included.
    let left: Vec<_> = std::fs::read_dir(home.join("sandboxes"))
        .unwrap()
        .flatten()
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[tokio::test]
#[ignore = "started by an_ordinary_user_gets_a_sandbox"]
async fn as_an_ordinary_user() {
    let home = std::path::PathBuf::from(std::env::var_os("OC_TEST_HOME").unwrap());
    let program = std::path::PathBuf::from(std::env::var_os("OC_TEST_PROGRAM").unwrap());
    let checks = doctor_by(&program);
    for name in ["namespaces", "root file system", "network"] {
        let check = checks.iter().find(|check| check.name == name).unwrap();
        assert!(check.ok, "{check:?}");
    }
    assert!(
        checks
            .iter()
            .any(|check| check.name == "user" && !check.ok && check.fix.is_some())
    );

    let driver = NamespaceDriver::with_program(&home.join("sandboxes"), &program).unwrap();
    // Destroys what is left even when an assertion below fails.
    let world = World {
        driver,
        dir: tempfile::tempdir_in(&home).unwrap(),
    };
    let driver = &world.driver;
    assert!(!driver.capabilities().root_inside);
    let spec = spec();
    let mut sandbox = Sandbox::of(driver.create(&spec).await.unwrap()).await;
    let limits = sandbox.running.limits;
    assert_eq!(limits, driver.capabilities().limits);
    assert_eq!(
        (limits.memory, limits.cpu),
        (Enforcement::Process, Enforcement::None)
    );

    assert_eq!(
        sandbox.output("id -u; id -un; hostname").await,
        format!("1000\nsandbox\n{}", spec.id)
    );
    let caps = sandbox
        .output("grep -E 'Cap(Bnd|Eff|Prm)' /proc/self/status | cut -f2 | sort -u")
        .await;
    assert!(caps.starts_with("0000000000000000"), "{caps}");
    for line in [
        format!("ls {}", home.display()),
        "ls /var/lib/dpkg".to_owned(),
        "echo x > /proc/sys/kernel/hostname".to_owned(),
        "cat /proc/1/environ".to_owned(),
        "unshare -U true".to_owned(),
        "head -c 1G /dev/zero | tail -c 1G | wc -c | grep 1073741824".to_owned(),
    ] {
        let output = sandbox.run(&line).await;
        assert_ne!(output.exit_code, 0, "{line}: {}", text(&output));
    }
    assert_eq!(
        sandbox
            .output("echo kept > /workspace/f; cat /workspace/f")
            .await,
        "kept"
    );
    assert_eq!(
        sandbox
            .output("git --version | cut -d' ' -f1; python3 -c 'print(1)'")
            .await,
        "git\n1"
    );
    let python = "import socket; socket.create_connection((\"api.example.test\", 443), 5)";
    let line = format!("python3 -c '{python}'");
    let guest = sandbox.guest.clone();
    let (output, connection) = tokio::join!(run_by(&guest, &line), sandbox.running.egress.accept());
    assert_eq!(output.exit_code, 0, "{}", text(&output));
    assert_eq!(
        connection.unwrap().name.as_deref(),
        Some("api.example.test")
    );

    a_terminal_works(&sandbox).await;

    sandbox
        .output("mkdir -p /tmp/a/b && echo x > /tmp/a/b/c && chmod 0 /tmp/a/b")
        .await;
    driver.destroy(&spec.id).await.unwrap();
    assert_eq!(driver.list().await.unwrap(), []);
}

/// A shell with job control, on a terminal that it may open by its name.
async fn a_terminal_works(sandbox: &Sandbox) {
    let terminal = StartTerminal {
        terminal_id: "0a0b0c0d".to_owned(),
        shell: "/bin/bash".to_owned(),
        env: [("TERM", "xterm-256color"), ("PATH", "/usr/bin:/bin")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        cwd: "/home/sandbox".to_owned(),
        size: TerminalSize::new(91, 17).unwrap(),
        hang_up_when_alone: Duration::from_secs(60),
    };
    let guest = &sandbox.guest;
    guest.start_terminal(terminal).await.unwrap();
    let mut attached = guest.attach_terminal("0a0b0c0d").await.unwrap();
    let script =
        "set -m; sleep 0.1 & jobs; wait; echo by name > $(tty); stty size; id -u; exit 3\r";
    attached.stdin().send(script.into()).await.unwrap();
    let mut seen = String::new();
    let read = async {
        loop {
            match attached.next().await.unwrap() {
                Some(SessionOutput::Stdout(data)) => seen.push_str(&String::from_utf8_lossy(&data)),
                Some(SessionOutput::Exit { code, .. }) => return code,
                _ => {}
            }
        }
    };
    let code = tokio::time::timeout(Duration::from_secs(30), read).await;
    assert_eq!(code, Ok(3), "{seen}");
    for expected in ["Running", "by name\r\n", "17 91\r\n", "\r\n1000\r\n"] {
        assert!(seen.contains(expected), "no {expected:?} in {seen:?}");
    }
    guest.hang_up_terminal("0a0b0c0d").await.unwrap();
}
