//! The commands of `oc` against the real server, found without any configuration: the words of
//! the user documents, in their order.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

const VALUE: &str = "canary-b6e1a9f4-of-the-command-line-test";

/// A server in a home of its own; stopped in good order when dropped.
struct Server {
    home: tempfile::TempDir,
    child: Child,
}

impl Server {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let log = fs::File::create(home.path().join("log")).unwrap();
        let mut command = oc(
            home.path(),
            &["serve", "--listen", "127.0.0.1:0", "--data-dir"],
        );
        command
            .arg(home.path().join("data"))
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let server = Self {
            child: command.spawn().unwrap(),
            home,
        };
        let started = Instant::now();
        // The last thing a first start does is to leave the address and key for the commands.
        while !server.home.path().join(".oc/local.json").exists()
            || !server.home.path().join("data/endpoint.json").exists()
        {
            let log = || fs::read_to_string(server.home.path().join("log")).unwrap_or_default();
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "not ready: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// Runs a command; asserts its exit code, and that the value is not printed.
    fn run(&self, code: i32, words: &[&str]) -> String {
        let output = oc(self.home.path(), words).output().unwrap();
        let streams = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
        assert!(
            !streams.concat().contains(VALUE),
            "oc {words:?} printed the value"
        );
        assert_eq!(
            output.status.code(),
            Some(code),
            "oc {words:?}: {streams:?}"
        );
        streams[0].trim_end().to_owned()
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.run(0, &[&["--json"], words].concat())).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let sandboxes = oc(self.home.path(), &["--json", "ls"]).output();
        let listed = sandboxes
            .ok()
            .and_then(|output| serde_json::from_slice(&output.stdout).ok());
        for sandbox in listed
            .as_ref()
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let id = sandbox["sandboxID"].as_str().unwrap_or_default();
            let _ = oc(self.home.path(), &["sandbox", "kill", id]).status();
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
        let _ = self.child.wait();
    }
}

fn oc(home: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oc"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    command
        .args(words)
        .env_clear()
        .env("PATH", path)
        .env("HOME", home)
        .stdin(Stdio::null());
    command
}

#[test]
fn the_documented_workflow() {
    if !geteuid().is_root() {
        return println!("skipped: sandboxes with all their limits need root");
    }
    let server = Server::start();
    let run = |words: &[&str]| server.run(0, words);
    assert!(run(&["whoami"]).contains("Org ID:"));
    let create = [
        "project",
        "create",
        "--name",
        "my-agent",
        "--cpu",
        "2",
        "--timeout",
        "600",
    ];
    assert!(run(&create).starts_with("Created project my-agent (id: "));
    server.run(4, &create);
    server.run(
        3,
        &["project", "get", "01a20074-0000-7000-8000-000000000000"],
    );
    let project = server.json(&["project", "list"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    run(&["project", "update", &project, "--memory", "512"]);
    let table = run(&["project", "list"]);
    let row = table
        .lines()
        .nth(1)
        .unwrap()
        .split_whitespace()
        .collect::<Vec<_>>();
    assert_eq!(row, [&project, "my-agent", "default", "2", "512", "600"]);

    let set = run(&[
        "secret",
        "set",
        &project,
        "API_KEY",
        VALUE,
        "--allowed-hosts",
        "a.test",
    ]);
    assert_eq!(
        set,
        format!("Secret API_KEY set on project {project} (allowed hosts: a.test)")
    );
    assert_eq!(run(&["secret", "list", &project]), "API_KEY");
    run(&[
        "secret-store",
        "create",
        "--name",
        "store",
        "--egress-allowlist",
        "b.test",
    ]);
    let store = server.json(&["secret-store", "ls"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let set = run(&["secret", "set", &store, "OTHER_KEY", VALUE]);
    assert_eq!(set, format!("Secret OTHER_KEY set on store {store}"));
    assert!(run(&["secret", "list", &store]).ends_with("OTHER_KEY  (all)"));
    let done = format!("Secret GONE deleted from store {store}");
    assert_eq!(run(&["secret", "delete", &store, "GONE"]), done);

    let created = run(&[
        "create",
        "--project",
        "my-agent",
        "--secret-store",
        "store",
        "--env",
        "PLAIN=p",
    ]);
    assert!(created.ends_with("(status: running)"), "{created}");
    let sandbox = created.split(' ').nth(2).unwrap();
    let token = run(&["exec", sandbox, "--", "echo", "$API_KEY"]);
    assert!(
        token.starts_with("osb_sealed_") && token.len() == 43,
        "{token}"
    );
    assert_eq!(
        run(&["exec", sandbox, "--", "sh", "-c", "echo $API_KEY"]),
        token
    );
    assert_eq!(
        run(&["exec", sandbox, "--wait", "--", "echo", "$API_KEY/$PLAIN"]),
        format!("{token}/p")
    );
    server.run(7, &["exec", sandbox, "--", "sh", "-c", "exit 7"]);
    server.run(7, &["exec", sandbox, "--wait", "--", "sh", "-c", "exit 7"]);
    assert_eq!(
        run(&["exec", sandbox, "--cwd", "/tmp", "--", "pwd"]),
        "/tmp"
    );
    let hosts = run(&["sandbox", "allowed-hosts", sandbox]);
    assert!(
        hosts.contains("Secret store: store") && hosts.contains("  - API_KEY: a.test"),
        "{hosts}"
    );
    assert!(run(&["ls"]).contains(sandbox));
    let detached = run(&[
        "exec",
        sandbox,
        "--detach",
        "--",
        "sh",
        "-c",
        "echo ready; sleep 60",
    ]);
    let session = detached.split(' ').nth(1).unwrap();
    assert!(run(&["exec", "list", sandbox]).contains(&format!("  {session}  running  sh -c")));
    run(&["exec", "kill", sandbox, session]);
    let attached = oc(server.home.path(), &["exec", "attach", sandbox, session])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&attached.stdout), "ready\n");
    assert_ne!(attached.status.code(), Some(0));

    let log = run(&["audit", "log", "--entity", &project]);
    let kinds: Vec<&str> = log
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(2))
        .collect();
    assert_eq!(kinds.first(), Some(&"project.created.v1"), "{log}");
    assert!(kinds.contains(&"project.secret_set.v1"), "{log}");
    run(&["sandbox", "delete", sandbox]);
    assert_eq!(
        run(&["project", "delete", &project]),
        format!("Project {project} deleted.")
    );
    server.run(3, &["project", "get", &project]);
}
