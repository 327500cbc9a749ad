//! The side of `sudo` that is PID 1.

use std::ffi::OsStr;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::{EXITED, FAILED, REQUEST_BYTES_MAX, Request};
use crate::reaper::{Ended, Reaper};
use crate::spawn::{Identity, Program, Rights, SANDBOX_ID, Spawned, spawn};

/// Most commands at once.
const COMMANDS_MAX: usize = 64;
/// How long a client may take to say what it wants.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a command may live on after its client is gone and it was asked to end.
const ORPHAN_TIME_MAX: Duration = Duration::from_secs(2);
/// Where `sudo` is found before any other of its name.
const SUDO: &str = "/usr/local/bin/sudo";

/// Serves `sudo` if the launcher made the folder for it. A sandbox without sudo still works, so
/// failures are left to the client to tell.
pub fn start(rights: Rights, reaper: &Arc<Reaper>) {
    let folder = super::run_dir();
    if !folder.is_dir() {
        return;
    }
    install(&folder.join("guest"));
    let socket = super::socket_path();
    // Left over from the sandbox this disk was copied from.
    let _ = std::fs::remove_file(&socket);
    let Ok(listener) = UnixListener::bind(&socket) else {
        return;
    };
    let anybody = std::fs::Permissions::from_mode(0o666);
    let _ = std::fs::set_permissions(&socket, anybody);
    tokio::spawn(accept(listener, rights, reaper.clone()));
}

/// Makes `sudo` a name of this program. Only as init of a sandbox: elsewhere the file system is not
/// ours.
fn install(guest: &Path) {
    if rustix::process::getpid() == Pid::INIT && guest.exists() {
        // An existing one, the user's own or ours from before, stays.
        let _ = symlink(guest, SUDO);
    }
}

async fn accept(listener: UnixListener, rights: Rights, reaper: Arc<Reaper>) {
    let places = Arc::new(Semaphore::new(COMMANDS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((client, _)) => {
                let reaper = reaper.clone();
                tokio::spawn(async move {
                    // A client that breaks off has nobody to tell.
                    let _ = serve(client, rights, &reaper).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve(mut client: UnixStream, rights: Rights, reaper: &Reaper) -> io::Result<()> {
    let uid = client.peer_cred()?.uid();
    if ![0, SANDBOX_ID, rustix::process::geteuid().as_raw()].contains(&uid) {
        return fail(&mut client, "only the sandbox user and root may use sudo").await;
    }
    let received = timeout(REQUEST_TIME_MAX, receive(&mut client)).await??;
    let (request, descriptors) = received;
    // No await between `run` and `track`: see the reaper.
    let started = match run(&request, descriptors, rights) {
        Ok(spawned) => {
            let (pid, ended) = (spawned.pid, reaper.track(spawned.pid));
            spawned.running().await.map(|()| (pid, ended))
        }
        Err(error) => Err(error),
    };
    match started {
        Ok((pid, ended)) => wait(client, pid, ended, reaper).await,
        Err(error) => fail(&mut client, &name_failure(&request, &error)).await,
    }
}

async fn fail(client: &mut UnixStream, reason: &str) -> io::Result<()> {
    client.write_all(&[FAILED]).await?;
    client.write_all(reason.as_bytes()).await
}

async fn receive(client: &mut UnixStream) -> io::Result<(Request, [OwnedFd; 3])> {
    let mut header = [0; 4];
    let (read, descriptors) = loop {
        client.readable().await?;
        match client.try_io(Interest::READABLE, || receive_header(client, &mut header)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => break received?,
        }
    };
    let descriptors = descriptors.try_into();
    let descriptors = descriptors.map_err(|_| io::Error::other("not three descriptors"))?;
    client
        .read_exact(header.get_mut(read..).unwrap_or_default())
        .await?;
    let length = u32::from_le_bytes(header) as usize;
    if length > REQUEST_BYTES_MAX {
        return Err(io::Error::other("the request is too large"));
    }
    let mut payload = vec![0; length];
    client.read_exact(&mut payload).await?;
    let request = Request::decode(payload.as_slice()).map_err(io::Error::other)?;
    Ok((request, descriptors))
}

/// The first bytes and the descriptors that came with them; more than three are closed by the
/// kernel.
fn receive_header(client: &UnixStream, header: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let mut bytes = [IoSliceMut::new(header)];
    let received = rustix::net::recvmsg(client.as_fd(), &mut bytes, &mut control, flags)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok((received.bytes, descriptors))
}

fn run(request: &Request, descriptors: [OwnedFd; 3], rights: Rights) -> io::Result<Spawned> {
    let mut words = request.command.iter().map(|word| OsStr::from_bytes(word));
    let program = words.next().ok_or(io::ErrorKind::InvalidInput)?;
    let pair = |variable: &Vec<u8>| variable.iter().position(|byte| *byte == b'=');
    let env = request.env.iter().filter_map(|variable| {
        let (name, value) = variable.split_at_checked(pair(variable)?)?;
        Some((OsStr::from_bytes(name), OsStr::from_bytes(value.get(1..)?)))
    });
    let Request {
        uid, gid, groups, ..
    } = request.clone();
    let [stdin, stdout, stderr] = descriptors;
    spawn(Program {
        program,
        args: words.collect(),
        env: env.collect(),
        cwd: Path::new(OsStr::from_bytes(&request.cwd)),
        identity: rights.of(Identity { uid, gid, groups }),
        stdin,
        stdout,
        stderr,
        on_terminal: false,
    })
}

fn name_failure(request: &Request, error: &io::Error) -> String {
    let command = request
        .command
        .first()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let command = String::from_utf8_lossy(command.get(..256).unwrap_or(command));
    match error.kind() {
        io::ErrorKind::NotFound => format!("{command}: command not found"),
        _ => format!("{command}: {error}"),
    }
}

/// Waits for the command and passes signals to it; ends it when the client is gone.
async fn wait(
    mut client: UnixStream,
    pid: Pid,
    mut ended: oneshot::Receiver<Ended>,
    reaper: &Reaper,
) -> io::Result<()> {
    let mut signal = [0];
    let ended = loop {
        tokio::select! {
            ended = &mut ended => break ended,
            read = client.read(&mut signal) => match read {
                Ok(1) => drop(reaper.signal_group(pid, i32::from(signal[0].min(64)))),
                _ => {
                    // SIGCONT, since a stopped command would not see the others.
                    for signal in [libc::SIGHUP, libc::SIGTERM, libc::SIGCONT] {
                        reaper.signal_group(pid, signal);
                    }
                    if timeout(ORPHAN_TIME_MAX, &mut ended).await.is_err() {
                        reaper.signal_group(pid, libc::SIGKILL);
                    }
                    return Ok(());
                }
            },
        }
    };
    let code = match ended {
        Ok(Ended { code, signal: 0 }) => code,
        Ok(Ended { signal, .. }) => 128 + signal,
        Err(_) => 1,
    };
    client.write_all(&[EXITED]).await?;
    client.write_all(&code.to_le_bytes()).await
}
