//! From a request to a running session: what is checked, and how failures are named.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use oc_guest::v1::{StartSessionRequest, StartTerminalRequest};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tonic::Status;

use super::io::{Input, Source};
use super::output::{FIRST_READER_MAX, Output, READER_STALL_MAX};
use super::pump::Sources;
use super::{Kind, Limits, Session};
use crate::reaper::Reaper;
use crate::spawn::{Identity, Program, Rights, Spawned, spawn};
use crate::terminal::{Size, Terminal};

/// Scrollback when the request names none, in bytes: 1 MiB.
const SCROLLBACK_BYTES_DEFAULT: u32 = 1024 * 1024;
/// Smallest scrollback: room for two messages, or the pump would starve.
const SCROLLBACK_BYTES_MIN: u32 = 2 * oc_guest::OUTPUT_BYTES_MAX as u32;
/// Largest scrollback, in bytes: 16 MiB.
const SCROLLBACK_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// A terminal's shell as a session to start, and the terminal's size.
pub fn of_terminal(request: StartTerminalRequest) -> Result<(StartSessionRequest, Size), Status> {
    let size = size(request.size)?;
    let session = StartSessionRequest {
        session_id: request.terminal_id,
        cmd: request.shell,
        args: request.args,
        direct: true,
        env: request.env,
        cwd: request.cwd,
        scrollback_bytes_max: request.scrollback_bytes_max,
        kill_after_detach_ms: request.hang_up_when_alone_ms,
        ..StartSessionRequest::default()
    };
    Ok((session, size))
}

/// A size as a request gives it.
pub fn size(size: Option<oc_guest::v1::TerminalSize>) -> Result<Size, Status> {
    let size = Size::new(size);
    size.ok_or_else(|| Status::invalid_argument("a terminal has 1 to 65535 columns and rows"))
}

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

/// Starts the process, with a size on a terminal. The caller tracks it at once, waits until it runs,
/// and runs the session's tasks.
pub fn start(
    request: StartSessionRequest,
    size: Option<Size>,
    rights: Rights,
    reaper: &Arc<Reaper>,
) -> Result<(Arc<Session>, Sources, Spawned), Status> {
    let user = if request.as_root {
        None
    } else {
        rights.sandbox()
    };
    let channels = match size {
        Some(size) => Channels::terminal(size, user.as_ref()),
        None => Channels::pipes(request.stdin_closed),
    };
    let cmd = request.cmd.clone();
    let failed = |error| name_failure(&cmd, &error);
    let Channels {
        stdio,
        input,
        sources,
        terminal,
    } = channels.map_err(failed)?;
    let spawned = run(&request, stdio, terminal.is_some(), user).map_err(failed)?;
    let pid = spawned.pid;
    let scrollback = match request.scrollback_bytes_max {
        0 => SCROLLBACK_BYTES_DEFAULT,
        asked => asked.clamp(SCROLLBACK_BYTES_MIN, SCROLLBACK_BYTES_MAX),
    };
    let first_reader_max = match request.one_shot {
        true => READER_STALL_MAX,
        false => FIRST_READER_MAX,
    };
    let session = Session {
        id: request.session_id,
        kind: match terminal {
            Some(_) => Kind::Terminal,
            None => Kind::Command,
        },
        cmd: request.cmd,
        args: request.args,
        started: SystemTime::now(),
        one_shot: request.one_shot,
        pid,
        reaper: reaper.clone(),
        output: Arc::new(Output::new(scrollback, first_reader_max)),
        stdin: tokio::sync::Mutex::new(input),
        terminal: Mutex::new(terminal),
        attached: watch::Sender::new(0),
        ended: watch::Sender::new(None),
        left: AtomicBool::new(!request.one_shot),
    };
    Ok((Arc::new(session), sources, spawned))
}

/// The process's ends and ours.
struct Channels {
    stdio: [OwnedFd; 3],
    input: Option<Input>,
    sources: Sources,
    terminal: Option<Arc<Terminal>>,
}

impl Channels {
    fn pipes(stdin_closed: bool) -> io::Result<Self> {
        let (stdin, input) = if stdin_closed {
            (OwnedFd::from(File::open("/dev/null")?), None)
        } else {
            let (theirs, ours) = io::pipe()?;
            let ours = pipe::Sender::from_owned_fd(OwnedFd::from(ours))?;
            (theirs.into(), Some(Input::Pipe(ours)))
        };
        let source = |ours: io::PipeReader| -> io::Result<_> {
            Ok(Some(Source::Pipe(pipe::Receiver::from_owned_fd(
                ours.into(),
            )?)))
        };
        let (stdout_ours, stdout) = io::pipe()?;
        let (stderr_ours, stderr) = io::pipe()?;
        Ok(Self {
            stdio: [stdin, stdout.into(), stderr.into()],
            input,
            sources: Sources {
                stdout: source(stdout_ours)?,
                stderr: source(stderr_ours)?,
            },
            terminal: None,
        })
    }

    fn terminal(size: Size, user: Option<&Identity>) -> io::Result<Self> {
        let (terminal, inner) = Terminal::open(size, user)?;
        let terminal = Arc::new(terminal);
        Ok(Self {
            stdio: [inner.try_clone()?, inner.try_clone()?, inner],
            input: Some(Input::Terminal(terminal.clone())),
            sources: Sources {
                stdout: Some(Source::Terminal(terminal.clone())),
                stderr: None,
            },
            terminal: Some(terminal),
        })
    }
}

fn run(
    request: &StartSessionRequest,
    [stdin, stdout, stderr]: [OwnedFd; 3],
    on_terminal: bool,
    identity: Option<Identity>,
) -> io::Result<Spawned> {
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
    spawn(Program {
        program,
        args,
        env: env.collect(),
        cwd: Path::new(&request.cwd),
        identity,
        stdin,
        stdout,
        stderr,
        on_terminal,
    })
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
