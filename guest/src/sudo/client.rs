//! The program `sudo` inside the sandbox.
//!
//! The environment is kept, unlike elsewhere: proxy and certificate variables must reach what runs
//! as root, and there is no boundary for a cleaned one to guard.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use prost::Message;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::args::{Action, Run, parse};
use super::users::{self, User};
use super::{EXITED, FAILURE_BYTES_MAX, Request};

const USAGE: &str =
    "usage: sudo [-EHins] [-u user] [-D folder] [NAME=value] command [argument ...]";
/// Where administration programs are, for callers whose `PATH` lacks them.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// Signals the command gets in our place.
const FORWARDED: [i32; 7] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

/// Runs `sudo` with the arguments after its name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let done = parse(args).and_then(|action| match action {
        Action::Run(run) => request(run).and_then(|request| ask(&request)),
        Action::Validate => connect().map(|_| 0),
        Action::List => {
            println!("User sandbox may run the following commands:\n    (ALL) NOPASSWD: ALL");
            Ok(0)
        }
        Action::Version => {
            println!("sudo of OpenComputer {}", env!("CARGO_PKG_VERSION"));
            Ok(0)
        }
        Action::Help => Err(USAGE.to_owned()),
    });
    match done {
        Ok(code) => ExitCode::from(code),
        Err(reason) => {
            eprintln!("sudo: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Works out what to run.
fn request(run: Run) -> Result<Request, String> {
    let name = run
        .user
        .as_deref()
        .map_or("root".into(), OsStr::to_string_lossy);
    let user = users::find(&name).ok_or_else(|| format!("unknown user {name}"))?;
    let env = environment(&run, &user);
    let cwd = match &run.cwd {
        Some(cwd) => cwd.clone(),
        None if run.login => OsString::from(&user.home),
        // Removed under us: as good a place as any.
        None => std::env::current_dir().map_or("/".into(), |cwd| cwd.into_os_string()),
    };
    let command = command(run, &user, env.get(OsStr::new("SHELL")));
    let pair = |(name, value): (OsString, OsString)| [name, value].join(OsStr::new("=")).into_vec();
    Ok(Request {
        command: command.into_iter().map(OsString::into_vec).collect(),
        env: env.into_iter().map(pair).collect(),
        cwd: cwd.into_vec(),
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
    })
}

fn environment(run: &Run, user: &User) -> BTreeMap<OsString, OsString> {
    let mut env: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    if run.set_home || run.login || !run.preserve_env || !env.contains_key(OsStr::new("HOME")) {
        env.insert("HOME".into(), OsString::from(&user.home));
    }
    let caller = env
        .get(OsStr::new("USER"))
        .cloned()
        .unwrap_or_else(|| "sandbox".into());
    env.insert("SUDO_USER".into(), caller);
    env.insert(
        "SUDO_UID".into(),
        rustix::process::getuid().as_raw().to_string().into(),
    );
    env.insert(
        "SUDO_GID".into(),
        rustix::process::getgid().as_raw().to_string().into(),
    );
    env.insert("SUDO_COMMAND".into(), run.command.join(OsStr::new(" ")));
    for name in ["USER", "LOGNAME"] {
        env.insert(name.into(), OsString::from(&user.name));
    }
    if run.login {
        env.insert("SHELL".into(), OsString::from(&user.shell));
    }
    let path = env
        .remove(OsStr::new("PATH"))
        .unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    env.insert("PATH".into(), with_sbin(path));
    env.extend(run.assignments.iter().cloned());
    env
}

/// The search path with what is missing of [`SBIN`] at its end.
fn with_sbin(mut path: OsString) -> OsString {
    for sbin in SBIN {
        if !path
            .as_bytes()
            .split(|byte| *byte == b':')
            .any(|part| part == sbin.as_bytes())
        {
            path.push(":");
            path.push(sbin);
        }
    }
    path
}

fn command(run: Run, user: &User, shell: Option<&OsString>) -> Vec<OsString> {
    let mut command = match (run.login, run.shell) {
        (true, _) => vec![OsString::from(&user.shell), "-l".into()],
        (false, true) => vec![
            shell
                .cloned()
                .unwrap_or_else(|| OsString::from(&user.shell)),
        ],
        (false, false) => return run.command,
    };
    if !run.command.is_empty() {
        let words: Vec<OsString> = run.command.iter().map(|word| escape(word)).collect();
        command.extend(["-c".into(), words.join(OsStr::new(" "))]);
    }
    command
}

/// One word for a shell: everything but plain characters escaped, `$` left alone as sudo does.
fn escape(word: &OsStr) -> OsString {
    let mut escaped = Vec::with_capacity(word.len());
    for byte in word.as_bytes() {
        if byte.is_ascii_graphic() && !byte.is_ascii_alphanumeric() && !b"_-$".contains(byte)
            || byte.is_ascii_whitespace()
        {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    OsString::from_vec(escaped)
}

fn connect() -> Result<UnixStream, String> {
    UnixStream::connect(super::socket_path())
        .map_err(|error| format!("this sandbox can't run commands as another user: {error}"))
}

/// Has the command run; answers its exit code.
fn ask(request: &Request) -> Result<u8, String> {
    let server = connect()?;
    let broken = |error: io::Error| format!("the sandbox's init does not answer: {error}");
    // Before the command starts, so that no signal finds us unprepared.
    let signals = catch_signals().map_err(broken)?;
    send(&server, request).map_err(broken)?;
    wait(&server, &signals).map_err(broken)?
}

fn send(mut server: &UnixStream, request: &Request) -> io::Result<()> {
    let payload = request.encode_to_vec();
    let length = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let descriptors = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let header = length.to_le_bytes();
    let sent = rustix::net::sendmsg(
        server,
        &[IoSlice::new(&header)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    server.write_all(header.get(sent..).unwrap_or_default())?;
    server.write_all(&payload)
}

/// Blocks the signals to pass on and has a descriptor tell of them.
fn catch_signals() -> io::Result<std::fs::File> {
    // SAFETY: the set is initialised by sigemptyset; the new descriptor is ours alone.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        for signal in FORWARDED {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
        let fd = libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(std::fs::File::from(OwnedFd::from_raw_fd(fd)))
    }
}

/// Passes signals on until the answer comes.
fn wait(mut server: &UnixStream, mut signals: &std::fs::File) -> io::Result<Result<u8, String>> {
    loop {
        let mut ready = [
            PollFd::new(server, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let [answer, signal] = ready.map(|fd| !fd.revents().is_empty());
        if answer {
            return read_answer(server);
        }
        if signal {
            let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
            signals.read_exact(&mut info)?;
            // The signal's number is the first field, 4 bytes; it is below 65.
            server.write_all(info.get(..1).unwrap_or_default())?;
        }
    }
}

fn read_answer(mut server: &UnixStream) -> io::Result<Result<u8, String>> {
    let mut kind = [0];
    server.read_exact(&mut kind)?;
    if kind == [EXITED] {
        let mut code = [0; 4];
        server.read_exact(&mut code)?;
        return Ok(Ok(u8::try_from(i32::from_le_bytes(code)).unwrap_or(u8::MAX)));
    }
    let mut reason = Vec::new();
    server.take(FAILURE_BYTES_MAX).read_to_end(&mut reason)?;
    Ok(Err(String::from_utf8_lossy(&reason).into_owned()))
}
