//! The client against the real guest program, run as an ordinary process of this machine.

mod files;
mod hostile;
mod init;
mod sessions;
mod terminals;

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
        Self::start_as("", Command::new(env!("OC_GUEST_BINARY"))).await
    }

    /// As PID 1 of a pid namespace of its own; `None` without the rights to make one.
    async fn start_as_init() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can make a pid namespace here");
            return None;
        }
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
        command.arg(env!("OC_GUEST_BINARY"));
        Some(Self::start_as("", command).await)
    }

    /// Starts `command` with its socket in the folder `below` the fixture's own.
    async fn start_as(below: &str, mut command: Command) -> Self {
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
        let run = folder.path().join("run");
        std::fs::create_dir(&run).unwrap();
        command.stdin(Stdio::null()).env("OC_RUN_DIR", run);
        // SAFETY: dup2 is async-signal-safe; descriptor 3 may be the listener itself.
        unsafe {
            command.pre_exec(move || {
                let moved = libc::dup2(fd, 100);
                if moved < 0 || libc::dup2(100, 3) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                libc::close(100);
                // As below a server that a shell started in the background.
                libc::signal(libc::SIGINT, libc::SIG_IGN);
                libc::signal(libc::SIGQUIT, libc::SIG_IGN);
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

/// Whether a process is there; a zombie is as good as gone, its parent has other things to do.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}

async fn gone(pid: &str) -> bool {
    let started = Instant::now();
    while runs(pid) {
        if started.elapsed() > Duration::from_secs(5) {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

/// Reads to the exit; answers stdout, whether the replay ended before it, and the code.
async fn to_exit(attachment: &mut Attachment) -> (Vec<u8>, bool, i32) {
    let (mut stdout, mut replayed) = (Vec::new(), false);
    loop {
        match attachment.next().await.unwrap() {
            Some(SessionOutput::Stdout(data)) => stdout.extend_from_slice(&data),
            Some(SessionOutput::Stderr(_) | SessionOutput::Position(_)) => {}
            Some(SessionOutput::ReplayEnd) => replayed = true,
            Some(SessionOutput::Exit { code, .. }) => {
                assert_eq!(attachment.next().await.unwrap(), None);
                return (stdout, replayed, code);
            }
            None => panic!("the output ended without an exit"),
        }
    }
}

/// Goal: paths longer than a socket address still connect; a dead guest is `Gone`.
#[tokio::test]
async fn long_paths_and_dead_guests() {
    let mut guest = {
        let guest = Command::new(env!("OC_GUEST_BINARY"));
        Fixture::start_as(&"long-name/".repeat(15), guest).await
    };
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
