//! The server's end of a supervisor.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};
use tokio::io::unix::AsyncFd;

use super::control::{Egress, Info, PROTOCOL, Reply, Request, Want};
use super::packet::{self, PacketSocket};

/// How long a supervisor may take to answer.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// One TCP connection a sandbox tried to make.
#[derive(Debug)]
pub struct EgressConnection {
    /// The sandbox's side of it, already accepted.
    pub stream: tokio::net::TcpStream,
    /// The name it asked for, lower case and without a trailing dot; `None` when the program
    /// chose the address itself.
    pub name: Option<String>,
    /// The address it connected to: a synthetic one that means nothing outside when `name` is
    /// given, else the literal.
    pub ip: Ipv4Addr,
    /// The port it connected to.
    pub port: u16,
}

/// Receives what leaves one sandbox. Dropping it closes the way out.
#[derive(Debug)]
pub struct EgressAttachment(PacketSocket);

impl EgressAttachment {
    /// The next connection; `None` when the sandbox is gone or another server has attached.
    /// Safe to cancel.
    pub async fn accept(&mut self) -> Option<EgressConnection> {
        loop {
            // An unreadable message is the end too: the supervisor is of another kind than we.
            let (Egress { name, ip, port }, mut fds) = self.0.recv().await.ok().flatten()?;
            let Some(socket) = fds.pop() else { continue };
            let stream = std::net::TcpStream::from(socket);
            let prepared = stream.set_nonblocking(true);
            // One socket that can't be used is not the end of the sandbox.
            if let Ok(stream) = prepared.and_then(|()| tokio::net::TcpStream::from_std(stream)) {
                return Some(EgressConnection {
                    stream,
                    name,
                    ip,
                    port,
                });
            }
        }
    }
}

/// Knows when a supervisor is gone. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ExitWatch(Arc<AsyncFd<OwnedFd>>);

impl ExitWatch {
    /// Resolves when the supervisor, and with it every process of the sandbox, is gone.
    pub async fn wait(&self) {
        // The descriptor stays readable from then on; an error means no runtime is left to wait.
        let _ = self.0.readable().await;
    }
}

/// A supervisor that answered.
#[derive(Debug)]
pub struct Supervisor {
    /// The connection, kept open.
    pub socket: PacketSocket,
    /// What it says of itself.
    pub info: Info,
    /// Its process id.
    pub pid: u32,
    /// When it is gone.
    pub exit: ExitWatch,
}

impl Supervisor {
    /// Asks the supervisor behind `path` for `want`; `None` when none lives there.
    pub async fn ask(path: &Path, want: Want) -> io::Result<Option<Self>> {
        let socket = match packet::connect(path) {
            Ok(socket) => PacketSocket::new(socket)?,
            Err(e) if gone(&e) => return Ok(None),
            Err(e) => return Err(e),
        };
        if !packet::peer_is_ours(&socket)? {
            return Err(io::Error::other("another user serves the control socket"));
        }
        let request = Request {
            protocol: PROTOCOL,
            want,
        };
        let exchange = async {
            socket.send(&request, &[]).await?;
            socket.recv::<Reply>().await
        };
        let reply = match tokio::time::timeout(REPLY_TIMEOUT, exchange).await {
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            // It ended between our connecting and its reading.
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(e)) if gone(&e) => return Ok(None),
            Ok(Err(e)) => return Err(e),
            Ok(Ok(Some((reply, _)))) => reply,
        };
        let info = match reply {
            Reply::Done(info) => info,
            Reply::Refused(why) => return Err(io::Error::other(why)),
        };
        let pid = rustix::net::sockopt::socket_peercred(&socket)?.pid;
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let exit = ExitWatch(Arc::new(packet::registered(
            pidfd,
            tokio::io::Interest::READABLE,
        )?));
        Ok(Some(Self {
            socket,
            info,
            pid: Pid::as_raw(Some(pid)) as u32,
            exit,
        }))
    }

    /// The attachment, when that was asked for.
    pub fn into_egress(self) -> EgressAttachment {
        EgressAttachment(self.socket)
    }
}

fn gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(
        error.kind(),
        NotFound | ConnectionRefused | ConnectionReset | BrokenPipe
    )
}
