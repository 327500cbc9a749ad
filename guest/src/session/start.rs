//! From a request to a running session: what is checked, and how failures are named.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use oc_guest::v1::StartSessionRequest;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tonic::Status;

use super::output::Output;
use super::pump::Pipes;
use super::{Limits, Session};
use crate::reaper::Reaper;
use crate::spawn::{Program, Rights, Spawned, spawn};

/// Scrollback when the request names none, in bytes: 1 MiB.
const SCROLLBACK_BYTES_DEFAULT: u32 = 1024 * 1024;
/// Smallest scrollback: room for two messages, or the pump would starve.
const SCROLLBACK_BYTES_MIN: u32 = 2 * oc_guest::OUTPUT_BYTES_MAX as u32;
/// Largest scrollback, in bytes: 16 MiB.
const SCROLLBACK_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// Refuses what no process could be started from.
pub fn validate(request: &StartSessionRequest) -> Result<(), Status> {
    let id = &request.session_id;
    if id.len() != 8 || !id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Status::invalid_argument(
            "a session id has 8 lower-case hex digits",
        ));
    }
    if request.cmd.is_empty() {
        return Err(Status::invalid_argument("cmd is required"));
    }
    let mut texts = request.args.iter().chain([&request.cmd, &request.cwd]);
    if texts.any(|text| text.contains('\0')) {
        return Err(Status::invalid_argument(
            "cmd, args and cwd can't hold a NUL byte",
        ));
    }
    for (name, value) in &request.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Status::invalid_argument(format!(
                "not an environment variable: {name:?}"
            )));
        }
    }
    // Asked beforehand, since `chdir` and `exec` fail with the same error.
    if !std::fs::metadata(&request.cwd).is_ok_and(|cwd| cwd.is_dir()) {
        let cwd = &request.cwd;
        return Err(Status::invalid_argument(format!(
            "working directory does not exist: {cwd}"
        )));
    }
    Ok(())
}

/// The limits the request asks for; zero means none.
pub fn limits(request: &StartSessionRequest) -> Limits {
    let some = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms.min(MS_MAX)));
    Limits {
        timeout: some(request.timeout_ms),
        detached: some(request.kill_after_detach_ms),
    }
}

/// A year: longer limits could overflow the clock.
const MS_MAX: u64 = 365 * 24 * 3600 * 1000;

/// Starts the process. The caller tracks it at once, waits until it runs, and runs the session's
/// tasks.
pub fn start(
    request: StartSessionRequest,
    rights: Rights,
    reaper: &Arc<Reaper>,
) -> Result<(Arc<Session>, Pipes, Spawned), Status> {
    let cmd = request.cmd.clone();
    let (spawned, stdin, pipes) =
        run(&request, rights).map_err(|error| name_failure(&cmd, &error))?;
    let pid = spawned.pid;
    let scrollback = match request.scrollback_bytes_max {
        0 => SCROLLBACK_BYTES_DEFAULT,
        asked => asked.clamp(SCROLLBACK_BYTES_MIN, SCROLLBACK_BYTES_MAX),
    };
    let session = Session {
        id: request.session_id,
        cmd: request.cmd,
        args: request.args,
        started: SystemTime::now(),
        one_shot: request.one_shot,
        pid,
        reaper: reaper.clone(),
        output: Arc::new(Output::new(scrollback, request.one_shot)),
        stdin: tokio::sync::Mutex::new(stdin),
        attached: watch::Sender::new(0),
        ended: watch::Sender::new(None),
    };
    Ok((Arc::new(session), pipes, spawned))
}

type Started = (Spawned, Option<pipe::Sender>, Pipes);

fn run(request: &StartSessionRequest, rights: Rights) -> io::Result<Started> {
    let (stdin, stdin_ours) = if request.stdin_closed {
        (OwnedFd::from(File::open("/dev/null")?), None)
    } else {
        let (theirs, ours) = io::pipe()?;
        (
            theirs.into(),
            Some(pipe::Sender::from_owned_fd(OwnedFd::from(ours))?),
        )
    };
    let (stdout_ours, stdout) = io::pipe()?;
    let (stderr_ours, stderr) = io::pipe()?;
    let pipes = Pipes {
        stdout: Some(pipe::Receiver::from_owned_fd(stdout_ours.into())?),
        stderr: Some(pipe::Receiver::from_owned_fd(stderr_ours.into())?),
    };
    let (program, args) = if request.direct {
        (
            OsStr::new(&request.cmd),
            request.args.iter().map(OsStr::new).collect(),
        )
    } else {
        (
            OsStr::new("/bin/sh"),
            vec![OsStr::new("-c"), OsStr::new(&request.cmd)],
        )
    };
    let env = request
        .env
        .iter()
        .map(|(name, value)| (OsStr::new(name), OsStr::new(value)));
    let spawned = spawn(Program {
        program,
        args,
        env: env.collect(),
        cwd: Path::new(&request.cwd),
        identity: if request.as_root {
            None
        } else {
            rights.sandbox()
        },
        stdin,
        stdout: stdout.into(),
        stderr: stderr.into(),
    })?;
    Ok((spawned, stdin_ours, pipes))
}

/// `NotFound` and `PermissionDenied` are told apart from the rest: shells answer 127 and 126.
pub fn name_failure(cmd: &str, error: &io::Error) -> Status {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => {
            Status::not_found(format!("command not found: {cmd}"))
        }
        Some(libc::EACCES | libc::EPERM) => {
            Status::permission_denied(format!("permission denied: {cmd}"))
        }
        Some(libc::ENOEXEC) => Status::permission_denied(format!("not executable: {cmd}")),
        None if error.kind() == io::ErrorKind::TimedOut => Status::permission_denied(format!(
            "can't start {cmd}: another process in the sandbox holds its file"
        )),
        Some(libc::E2BIG) => {
            Status::invalid_argument(format!("arguments and environment too long: {cmd}"))
        }
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => {
            Status::resource_exhausted(format!("can't start {cmd}: {error}"))
        }
        _ => Status::internal(format!("can't start {cmd}: {error}")),
    }
}
