//! From a fresh process to a serving guest.
//!
//! Descriptor 3 is a listening Unix socket; each connection on it is HTTP/2 with the service.
//! Nothing slow may happen here: a sandbox's start waits for the first answer.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use oc_guest::v1::guest_server::GuestServer;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::files::Files;
use crate::reaper::Reaper;
use crate::service::Service;
use crate::session::table::Table;
use crate::spawn::Rights;
use crate::sudo;

/// The listening socket the launcher leaves open.
const LISTENER_FD: i32 = 3;
/// Most host connections at once.
const CONNECTIONS_MAX: usize = 64;
/// Most calls at once on one connection: every session attached once, and as many others.
const CALLS_MAX: u32 = 512;
/// Bytes a call may send ahead of what we have read; a stalled call costs no more than this.
const CALL_WINDOW_BYTES: u32 = 256 * 1024;
/// The same for a connection: large, so that stalled calls do not stop the others.
const CONNECTION_WINDOW_BYTES: u32 = 64 * 1024 * 1024;
/// Threads for file operations. Each may be stuck in one slow system call.
const FILE_THREADS_MAX: usize = 16;
/// Stack of such a thread, in bytes: 4 MiB.
const FILE_THREAD_STACK_BYTES: usize = 4 * 1024 * 1024;

/// Why the guest could not start.
#[derive(Debug)]
pub struct StartError {
    doing: &'static str,
    error: io::Error,
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "can't {}: {}", self.doing, self.error)
    }
}

fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |error| StartError { doing, error }
}

/// Serves until the process is killed.
pub fn run() -> Result<(), StartError> {
    protect().map_err(doing("protect this process"))?;
    ignore_nothing();
    // SAFETY: the launcher gives descriptor 3 to this process, and nothing else uses it.
    let listener = StdListener::from(unsafe { OwnedFd::from_raw_fd(LISTENER_FD) });
    listener
        .set_nonblocking(true)
        .map_err(doing("listen on descriptor 3"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(FILE_THREADS_MAX)
        // Removing a tree recurses; untouched stack costs nothing.
        .thread_stack_size(FILE_THREAD_STACK_BYTES)
        .build()
        .map_err(doing("start the runtime"))?;
    runtime.block_on(async {
        let listener = UnixListener::from_std(listener).map_err(doing("listen on descriptor 3"))?;
        let reaper = Reaper::start().map_err(doing("wait for processes"))?;
        let rights = Rights::find();
        sudo::start(rights, &reaper);
        let table = Arc::new(Table::new(rights, reaper));
        let service = Service::new(table, Files::new(rights));
        accept(listener, service).await;
        Ok(())
    })
}

/// Takes back what whoever started us chose to ignore: programs would inherit it, and never learn of
/// those signals. `SIGPIPE` is the runtime's own, which sets it right for each program.
fn ignore_nothing() {
    /// The kernel's `sigaction` is 32 bytes at most; all zero it is the default.
    const DEFAULT: [u64; 4] = [0; 4];
    const SIGNAL_MAX: libc::c_int = 64;
    for signal in (1..=SIGNAL_MAX).filter(|signal| *signal != libc::SIGPIPE) {
        let mut present = [0u64; 4];
        // SAFETY: both pointers are valid for the size of the kernel's structure; the C library's
        // own call would refuse the signals it uses itself. `handler` is the first word.
        unsafe {
            let none = std::ptr::null::<u64>();
            let asked = present.as_mut_ptr();
            libc::syscall(libc::SYS_rt_sigaction, signal, none, asked, 8);
            if present.first() == Some(&(libc::SIG_IGN as u64)) {
                let none = std::ptr::null_mut::<u64>();
                libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), none, 8);
            }
        }
    }
}

/// No core dump, no look into our memory through /proc, no descriptor for children.
fn protect() -> io::Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // SAFETY: both calls set a flag on our own descriptors and nothing else.
    let marked = unsafe {
        let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
        match libc::close_range(LISTENER_FD as libc::c_uint, libc::c_uint::MAX, flags) {
            // Kernels before 5.11: the one descriptor the launcher is known to leave.
            -1 => libc::fcntl(LISTENER_FD, libc::F_SETFD, libc::FD_CLOEXEC),
            done => done,
        }
    };
    if marked < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

async fn accept(listener: UnixListener, service: Service) {
    let service = GuestServer::new(service)
        .max_decoding_message_size(oc_guest::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(oc_guest::MESSAGE_BYTES_MAX);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Never closed, so a place always comes.
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = service.clone();
                tokio::spawn(async move {
                    serve_connection(stream, service).await;
                    drop(place);
                });
            }
            // Out of descriptors or memory: it passes, and PID 1 must not end.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve_connection(stream: UnixStream, service: GuestServer<Service>) {
    // A broken connection is the host's to notice; there is nobody here to tell.
    let _ = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(CALLS_MAX)
        .initial_stream_window_size(CALL_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(CALL_WINDOW_BYTES as usize)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .await;
}
