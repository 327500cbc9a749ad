//! Sequenced-packet Unix sockets that carry small JSON messages and file descriptors.
//!
//! Invariants: one message is one packet of at most [`PACKET_BYTES_MAX`] bytes with at most
//! [`PACKET_FDS_MAX`] descriptors; a longer one is an error, never cut silently; every descriptor
//! that arrives is close-on-exec and owned.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sys::fd_path;

/// Largest message, in bytes.
pub const PACKET_BYTES_MAX: usize = 8 * 1024;
/// Most descriptors in one message.
pub const PACKET_FDS_MAX: usize = 4;

/// A connected pair of blocking packet sockets.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one message with its descriptors.
pub fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > PACKET_BYTES_MAX || fds.len() > PACKET_FDS_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "message over the packet limit",
        ));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "descriptors over the packet limit",
        ));
    }
    // Without NOSIGNAL a peer that went away would kill this process.
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one message; `None` when the peer has closed.
pub fn recv<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = [0u8; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.bytes == 0 && fds.is_empty() {
        return Ok(None);
    }
    if got
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "message over the packet limit",
        ));
    }
    let bytes = bytes.get(..got.bytes).unwrap_or_default();
    Ok(Some((serde_json::from_slice(bytes)?, fds)))
}

/// The folder of `path` opened, and an address for its last part that fits a socket address
/// whatever the length of the whole (107 bytes is the kernel's limit).
fn address(path: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let dir = path.parent().ok_or_else(invalid)?;
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .ok_or_else(invalid)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("{}/{name}", fd_path(&dir)))?;
    Ok((dir, address))
}

/// A socket of `kind` that listens at `path`, replacing a stale one. The folder guards it.
pub fn listen(path: &Path, kind: SocketType, backlog: i32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    let (_dir, address) = address(path)?;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Connects a packet socket to `path`; non-blocking from then on.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let (_dir, address) = address(path)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Whether the peer runs as this process' user, or as root.
pub fn peer_is_ours(socket: impl AsFd) -> io::Result<bool> {
    let peer = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

/// A non-blocking packet socket in a tokio runtime.
#[derive(Debug)]
pub struct PacketSocket(AsyncFd<OwnedFd>);

impl PacketSocket {
    /// Takes over a socket that is already non-blocking.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self(registered(
            socket,
            Interest::READABLE | Interest::WRITABLE,
        )?))
    }

    /// Sends one message with its descriptors, waiting while the peer's queue is full.
    pub async fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(done) = ready.try_io(|fd| send(fd.get_ref(), message, fds)) {
                return done;
            }
        }
    }

    /// Receives one message; `None` when the peer has closed. Safe to cancel.
    pub async fn recv<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(done) = ready.try_io(|fd| recv(fd.get_ref())) {
                return done;
            }
        }
    }

    /// Takes one connection of a listening socket.
    pub async fn accept(&self) -> io::Result<PacketSocket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        loop {
            let mut ready = self.0.readable().await?;
            let taken = ready.try_io(|fd| {
                rustix::net::accept_with(fd.get_ref(), flags).map_err(io::Error::from)
            });
            if let Ok(done) = taken {
                return PacketSocket::new(done?);
            }
        }
    }
}

/// A descriptor in a tokio runtime. A pidfd is readable from the end of its process on.
pub fn registered(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what it is registered with, so that it stays open and
    // the same until it is deregistered.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_and_its_descriptor_arrive_together_and_bounds_hold() {
        let (a, b) = pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(&a, &"hello", &[file.as_fd()]).unwrap();
        let (text, fds) = recv::<String>(&b).unwrap().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("hello", 1));
        assert!(send(&a, &"x".repeat(PACKET_BYTES_MAX), &[]).is_err());
        drop(a);
        assert!(recv::<String>(&b).unwrap().is_none());
    }

    /// Goal: paths past the 107 bytes of a socket address work on both sides.
    #[tokio::test]
    async fn long_paths_bind_and_connect() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("control.sock");
        let listener = listen(&path, SocketType::SEQPACKET, 4).unwrap();
        let listener = PacketSocket::new(listener).unwrap();
        let client = PacketSocket::new(connect(&path).unwrap()).unwrap();
        let served = listener.accept().await.unwrap();
        assert!(peer_is_ours(&served).unwrap());
        served.send(&7u32, &[]).await.unwrap();
        assert_eq!(client.recv::<u32>().await.unwrap().unwrap().0, 7);
        // A second bind replaces a stale socket file.
        drop(listener);
        listen(&path, SocketType::SEQPACKET, 4).unwrap();
    }
}
