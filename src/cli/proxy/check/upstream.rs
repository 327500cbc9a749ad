//! The hostile hosts: they record what reaches them and answer by a script.
//!
//! Invariants: they listen on loopback only and end when dropped; what they keep is bounded.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::frames::{self, Shape};
use super::h2_host;
use super::message::{Io, Message, Reader, SILENCE, has};

/// Pause between the pieces of an answer, so that they travel apart.
const PIECE_PAUSE: Duration = Duration::from_micros(300);
/// Messages kept by one host.
const MESSAGES_MAX: usize = 512;
/// Connections of one host at once.
const CONNECTIONS_MAX: usize = 128;

/// What a host answers.
#[derive(Default)]
pub struct Reply {
    /// Raw bytes, sent one after the other.
    pub pieces: Vec<Vec<u8>>,
    /// Close after that.
    pub close: bool,
    /// After a switch of protocols: say messages back in this shape.
    pub frames: Option<Shape>,
}

impl Reply {
    /// One piece.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            pieces: vec![bytes.into()],
            ..Self::default()
        }
    }

    /// A 200 with `fields` (each ending in CR LF) and a body of known length.
    pub fn ok(fields: &str, body: &[u8]) -> Self {
        let length = body.len();
        let head = format!("HTTP/1.1 200 OK\r\n{fields}content-length: {length}\r\n\r\n");
        Self::raw([head.as_bytes(), body].concat())
    }

    /// A 200 with a chunk for each part, each sent on its own.
    pub fn chunked(fields: &str, parts: &[Vec<u8>], trailers: &str) -> Self {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}transfer-encoding: chunked\r\n\r\n");
        let mut pieces = vec![head.into_bytes()];
        for part in parts.iter().filter(|part| !part.is_empty()) {
            let size = format!("{:x}\r\n", part.len());
            pieces.push([size.as_bytes(), part, b"\r\n"].concat());
        }
        pieces.push(format!("0\r\n{trailers}\r\n").into_bytes());
        Self {
            pieces,
            ..Self::default()
        }
    }
}

/// Makes the answer to a request.
pub type Script = Arc<dyn Fn(&Message) -> Reply + Send + Sync>;

/// What reached a host.
#[derive(Default)]
pub struct Tap {
    /// Requests as they were understood.
    pub requests: Vec<Message>,
    /// Bytes that were not part of a request: what came after an upgrade, or was not HTTP.
    pub rest: Vec<u8>,
    /// Connections.
    pub connections: usize,
    /// Whether somebody spoke HTTP/2.
    pub h2: bool,
}

/// A running host.
pub struct Upstream {
    /// Its port.
    pub port: u16,
    tap: Arc<Mutex<Tap>>,
    _accept: AbortOnDropHandle<()>,
}

impl Upstream {
    /// Listens on `ip` and serves, with TLS when given.
    pub async fn start(
        ip: IpAddr,
        tls: Option<ServerConfig>,
        script: Script,
    ) -> std::io::Result<Self> {
        Self::serve(TcpListener::bind((ip, 0)).await?, tls, script)
    }

    /// Serves on an open listener.
    pub fn serve(
        listener: TcpListener,
        tls: Option<ServerConfig>,
        script: Script,
    ) -> std::io::Result<Self> {
        let port = listener.local_addr()?.port();
        let tap = Arc::new(Mutex::new(Tap::default()));
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let accept = tokio::spawn(accept(listener, tls, script, tap.clone()));
        Ok(Self {
            port,
            tap,
            _accept: AbortOnDropHandle::new(accept),
        })
    }

    /// On 127.0.0.1 without TLS.
    pub async fn plain(script: Script) -> std::io::Result<Self> {
        Self::start(Ipv4Addr::LOCALHOST.into(), None, script).await
    }

    /// Looks at what reached it.
    pub fn look<T>(&self, look: impl FnOnce(&Tap) -> T) -> T {
        look(&self.tap.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether `needle` reached it, in a request or beside one.
    pub fn got(&self, needle: &[u8]) -> bool {
        self.look(|tap| {
            has(&tap.rest, needle) || tap.requests.iter().any(|one| has(&one.raw, needle))
        })
    }

    /// Requests that reached it.
    pub fn count(&self) -> usize {
        self.look(|tap| tap.requests.len())
    }

    /// The last request that reached it.
    pub fn last(&self) -> Option<Message> {
        self.look(|tap| tap.requests.last().cloned())
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    script: Script,
    tap: Arc<Mutex<Tap>>,
) {
    // Connections end with the host, since the set ends with this task.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PIECE_PAUSE).await;
            continue;
        };
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        let _ = stream.set_nodelay(true);
        note(&tap, |tap| tap.connections += 1);
        let (tls, script, tap) = (tls.clone(), script.clone(), tap.clone());
        connections.spawn(async move {
            let Some(tls) = tls else {
                return serve(Box::new(stream), &script, &tap).await;
            };
            let Ok(Ok(stream)) = timeout(SILENCE, tls.accept(stream)).await else {
                return;
            };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                note(&tap, |tap| tap.h2 = true);
                return h2_host::serve(stream, tap).await;
            }
            serve(Box::new(stream), &script, &tap).await;
        });
    }
}

/// Changes what was noted, under the lock.
pub fn note(tap: &Mutex<Tap>, change: impl FnOnce(&mut Tap)) {
    change(&mut tap.lock().unwrap_or_else(PoisonError::into_inner));
}

async fn serve(mut io: Io, script: &Script, tap: &Mutex<Tap>) {
    let mut reader = Reader::new();
    while let Some(message) = reader.message(&mut io).await {
        let whole = message.whole;
        let reply = script(&message);
        note(tap, |tap| {
            if tap.requests.len() < MESSAGES_MAX {
                tap.requests.push(message);
            }
        });
        if !whole {
            return;
        }
        let switched = reply
            .pieces
            .iter()
            .any(|piece| piece.starts_with(b"HTTP/1.1 101"));
        for piece in reply.pieces {
            if io.write_all(&piece).await.is_err() || io.flush().await.is_err() {
                return;
            }
            sleep(PIECE_PAUSE).await;
        }
        if let Some(shape) = reply.frames {
            return frames::echo(io, reader.ahead().to_vec(), shape, tap).await;
        }
        if switched {
            return overhear(io, reader, tap).await;
        }
        if reply.close {
            let _ = io.shutdown().await;
            return;
        }
    }
}

/// Records what is said after an upgrade.
async fn overhear(mut io: Io, reader: Reader, tap: &Mutex<Tap>) {
    use tokio::io::AsyncReadExt;
    let mut bytes = reader.ahead().to_vec();
    loop {
        note(tap, |tap| tap.rest.append(&mut bytes));
        match timeout(SILENCE, io.read_buf(&mut bytes)).await {
            Ok(Ok(1..)) => {}
            _ => return,
        }
    }
}
