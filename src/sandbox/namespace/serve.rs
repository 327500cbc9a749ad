//! A supervisor's running part: one thread that answers names, hands connections out and obeys.
//!
//! Invariants: at most one server is attached; while none is, every connection is reset at once.
//! What a sandbox can make this process hold is bounded: [`super::names::NAMES_MAX`] names, one
//! connection at a time on its way to the server, one query at a time.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::net::SocketFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::cgroup::Group;
use super::control::{Egress, Info, PROTOCOL, Reply, Request, Want};
use super::dns::{self, QUERY_BYTES_MAX, RateLimit};
use super::launch::Launched;
use super::names::NameTable;
use super::packet::{self, PacketSocket, registered};
use super::sys;

/// How long a server may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may wait for room in the server's queue.
const HAND_OUT_TIMEOUT: Duration = Duration::from_secs(2);
/// Servers heard at once.
const SERVERS_MAX: usize = 16;
/// Pause after the system refused a connection or packet, so that an error never spins.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

struct Shared {
    names: RefCell<NameTable>,
    /// The attached server, with the number of its attachment.
    attached: RefCell<Option<(u64, Rc<PacketSocket>)>>,
    attachments: Cell<u64>,
    /// Told when another server attaches.
    superseded: Notify,
    /// Told when a server asked for the end.
    killed: Notify,
    heard: Cell<usize>,
    info: Info,
}

/// Everything a supervisor serves.
pub struct Service<'a> {
    shared: Rc<Shared>,
    control: PacketSocket,
    init: AsyncFd<OwnedFd>,
    egress: Option<(AsyncFd<OwnedFd>, tokio::net::UdpSocket)>,
    group: &'a Group,
}

impl<'a> Service<'a> {
    /// Takes the sockets over; needs the runtime.
    pub fn new(launched: &'a Launched, control: OwnedFd) -> io::Result<Self> {
        let egress = match &launched.sockets {
            None => None,
            Some(sockets) => {
                let names = std::net::UdpSocket::from(sockets.names.try_clone()?);
                let names = tokio::net::UdpSocket::from_std(names)?;
                Some((
                    registered(sockets.listener.try_clone()?, Interest::READABLE)?,
                    names,
                ))
            }
        };
        let info = Info {
            protocol: PROTOCOL,
            limits: launched.limits,
            started_unix_ms: sys::unix_ms(),
        };
        let shared = Shared {
            names: RefCell::default(),
            attached: RefCell::new(None),
            attachments: Cell::new(0),
            superseded: Notify::new(),
            killed: Notify::new(),
            heard: Cell::new(0),
            info,
        };
        Ok(Self {
            shared: Rc::new(shared),
            control: PacketSocket::new(control)?,
            init: registered(launched.init.pidfd.try_clone()?, Interest::READABLE)?,
            egress,
            group: &launched.group,
        })
    }

    /// Serves until the sandbox's first process ends (`false`) or a server asks for the end
    /// (`true`).
    pub async fn run(self) -> bool {
        let shared = &*self.shared;
        let outward = async {
            match &self.egress {
                None => std::future::pending().await,
                Some((listener, names)) => {
                    tokio::join!(hand_out(shared, listener), answer_names(shared, names))
                }
            }
        };
        tokio::select! {
            _ = self.init.readable() => false,
            () = shared.killed.notified() => true,
            _ = self.listen() => false,
            _ = outward => false,
        }
    }

    async fn listen(&self) {
        loop {
            let Ok(server) = self.control.accept().await else {
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            };
            let ours = packet::peer_is_ours(&server).unwrap_or(false);
            if !ours || self.shared.heard.get() >= SERVERS_MAX {
                continue;
            }
            self.shared.heard.set(self.shared.heard.get() + 1);
            let (shared, group) = (Rc::clone(&self.shared), self.group.clone());
            tokio::task::spawn_local(async move {
                // A server that breaks off is no news; the next one starts afresh.
                let _ = hear(&shared, server, &group).await;
                shared.heard.set(shared.heard.get() - 1);
            });
        }
    }
}

/// Obeys one server.
async fn hear(shared: &Shared, server: PacketSocket, group: &Group) -> io::Result<()> {
    let request = tokio::time::timeout(REQUEST_TIMEOUT, server.recv::<Request>()).await??;
    let Some((request, _)) = request else {
        return Ok(());
    };
    if request.protocol != PROTOCOL {
        let why = format!(
            "this supervisor speaks protocol {PROTOCOL}, not {}",
            request.protocol
        );
        return server.send(&Reply::Refused(why), &[]).await;
    }
    let done = Reply::Done(shared.info.clone());
    match request.want {
        Want::Kill => {
            let sent = server.send(&done, &[]).await;
            shared.killed.notify_one();
            sent
        }
        Want::Attach => {
            server.send(&done, &[]).await?;
            attach(shared, server).await;
            Ok(())
        }
        Want::Freeze => {
            let reply = match group.freeze(true) {
                Ok(()) => done,
                Err(error) => Reply::Refused(format!("freeze: {error}")),
            };
            let sent = server.send(&reply, &[]).await;
            // Frozen as long as the server holds on: its death must not leave a frozen sandbox.
            let _ = server.recv::<Request>().await;
            sent.and(group.freeze(false))
        }
    }
}

/// Keeps `server` attached until it goes or another one comes.
async fn attach(shared: &Shared, server: PacketSocket) {
    let number = shared.attachments.get() + 1;
    shared.attachments.set(number);
    let server = Rc::new(server);
    *shared.attached.borrow_mut() = Some((number, Rc::clone(&server)));
    shared.superseded.notify_waiters();
    loop {
        tokio::select! {
            // An attached server has nothing more to say: a message is as good as its end.
            _ = server.recv::<Request>() => break,
            () = shared.superseded.notified() => {
                if shared.attachments.get() != number {
                    return;
                }
            }
        }
    }
    shared
        .attached
        .borrow_mut()
        .take_if(|(current, _)| *current == number);
}

/// Accepts what leaves the sandbox and hands it to the attached server.
async fn hand_out(shared: &Shared, listener: &AsyncFd<OwnedFd>) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    loop {
        let Ok(mut ready) = listener.readable().await else {
            return;
        };
        let accepted = ready
            .try_io(|fd| rustix::net::accept_with(fd.get_ref(), flags).map_err(io::Error::from));
        match accepted {
            Err(_would_block) => continue,
            Ok(Err(_)) => tokio::time::sleep(ERROR_PAUSE).await,
            Ok(Ok(socket)) => {
                if !handed_out(shared, &socket).await {
                    // A reset, not a polite end: the program shall see that nobody is there.
                    let _ = rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
                }
            }
        }
    }
}

async fn handed_out(shared: &Shared, socket: &OwnedFd) -> bool {
    let Ok(target) = rustix::net::sockopt::ip_original_dst(socket) else {
        return false;
    };
    // A connection made straight to the listener's own port was meant for nobody outside.
    if target.ip().is_loopback() {
        return false;
    }
    let Some(server) = shared
        .attached
        .borrow()
        .as_ref()
        .map(|(_, server)| Rc::clone(server))
    else {
        return false;
    };
    let name = shared.names.borrow_mut().name(*target.ip());
    let message = Egress {
        name,
        ip: *target.ip(),
        port: target.port(),
    };
    let fds = [socket.as_fd()];
    let sending = server.send(&message, &fds);
    matches!(
        tokio::time::timeout(HAND_OUT_TIMEOUT, sending).await,
        Ok(Ok(()))
    )
}

/// Answers name queries, at a bounded rate; those above it are dropped.
async fn answer_names(shared: &Shared, socket: &tokio::net::UdpSocket) {
    let mut limit = RateLimit::new(Instant::now());
    // One byte more than allowed, so that a longer query is seen to be longer.
    let mut query = [0; QUERY_BYTES_MAX + 1];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut query).await else {
            tokio::time::sleep(ERROR_PAUSE).await;
            continue;
        };
        let Some(query) = query.get(..length).filter(|q| q.len() <= QUERY_BYTES_MAX) else {
            continue;
        };
        if !limit.admit(Instant::now()) {
            continue;
        }
        let reply = dns::answer(query, &mut shared.names.borrow_mut());
        if let Some(reply) = reply {
            let _ = socket.try_send_to(&reply, from);
        }
    }
}
