//! The HTTP/2 connection over a Unix socket.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Longest path a socket address holds, in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Bytes the guest may send ahead on one call; a stalled reader costs no more than this.
const CALL_WINDOW_BYTES: u32 = 256 * 1024;
/// The same for the connection: large, so that some hundred stalled calls do not stop the others.
const CONNECTION_WINDOW_BYTES: u32 = 128 * 1024 * 1024;

/// A channel that connects with the first call, and again when the connection broke.
pub(super) fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    Endpoint::from_static("http://guest")
        .initial_stream_window_size(CALL_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_with_connector_lazy(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { connect(socket).await.map(TokioIo::new) }
        }))
}

async fn connect(socket: PathBuf) -> io::Result<UnixStream> {
    if socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return UnixStream::connect(socket).await;
    }
    // The folder by descriptor: the address is then short whatever the data folder's path is.
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the socket's path has no name",
        ));
    };
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, rustix::fs::Mode::empty())?;
    let short = Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(name);
    UnixStream::connect(short).await
}
