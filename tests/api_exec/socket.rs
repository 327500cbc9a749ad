//! A client of one session's WebSocket.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::common::{KEY, Sandbox, Server};

/// Longest wait for one message; builds may run beside the test.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest message that the server may send (the contract's 64 KiB).
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The end of the replay has come.
    replayed: bool,
}

/// A message of the server.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Exit(i32),
    ReplayEnd,
    /// The code it closed with.
    Closed(u16),
}

/// Everything from the first message to the close.
#[derive(Debug, Default)]
pub struct Ended {
    /// Bytes before the end of the replay.
    pub replayed: usize,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Option<i32>,
    pub closed: u16,
}

/// Starts a session and gives its id.
pub async fn start(sandbox: &Sandbox, body: &Value) -> String {
    let made = sandbox.api.post(&sandbox.path("/exec"), body).await;
    let made = made.ok(201).json();
    made["sessionID"].as_str().expect("an id").to_owned()
}

/// A session that runs a shell script.
pub async fn script(sandbox: &Sandbox, script: &str) -> String {
    start(sandbox, &json!({ "cmd": "sh", "args": ["-c", script] })).await
}

/// The session as it is listed now.
pub async fn listed(sandbox: &Sandbox, session: &str) -> Option<Value> {
    let rows = sandbox.api.get(&sandbox.path("/exec")).await.ok(200).json();
    let mut rows = rows.as_array().expect("a list").iter();
    rows.find(|row| row["sessionID"] == session).cloned()
}

impl Socket {
    pub async fn attach(server: &Server, sandbox: &Sandbox, session: &str) -> Self {
        let path = sandbox.path(&format!("/exec/{session}?api_key={KEY}"));
        let url = format!("{}{path}", server.url().replace("http://", "ws://"));
        let (socket, _) = connect_async(url).await.expect("an upgrade");
        Self {
            stream: socket,
            replayed: false,
        }
    }

    /// Sends input; nothing closes it.
    pub async fn send(&mut self, input: &[u8]) {
        let message = [&[0], input].concat();
        self.message(Message::Binary(message.into())).await;
    }

    pub async fn message(&mut self, message: Message) {
        self.stream.send(message).await.expect("the server reads");
    }

    /// Its connection is gone, without a word and without waiting for what is on its way to it.
    pub fn lose(self, reset: bool) {
        let MaybeTlsStream::Plain(stream) = self.stream.get_ref() else {
            panic!("no TLS here")
        };
        if reset {
            let at_once = Some(Duration::ZERO);
            rustix::net::sockopt::set_socket_linger(stream, at_once).expect("a socket");
        }
    }

    /// Waits for the answer to a ping, passing over everything else.
    pub async fn pong(&mut self, payload: &[u8]) {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.stream.next()).await;
            let message = next
                .expect("an answer in time")
                .expect("a close before the end");
            if matches!(message.expect("a message"), Message::Pong(bytes) if bytes == payload) {
                return;
            }
        }
    }

    pub async fn next(&mut self) -> Frame {
        let next = tokio::time::timeout(PATIENCE, self.any()).await;
        next.expect("a message in time")
    }

    /// The next message that is no ping.
    async fn any(&mut self) -> Frame {
        loop {
            let message = self.stream.next().await.expect("a close before the end");
            match message.expect("a message") {
                Message::Binary(bytes) => {
                    assert!(bytes.len() <= MESSAGE_BYTES_MAX, "{} bytes", bytes.len());
                    let payload = bytes[1..].to_vec();
                    return match bytes[0] {
                        1 => Frame::Stdout(payload),
                        2 => Frame::Stderr(payload),
                        3 => Frame::Exit(i32::from_be_bytes(payload.try_into().expect("4 bytes"))),
                        4 if payload.is_empty() => {
                            assert!(!self.replayed, "one end of the replay");
                            self.replayed = true;
                            Frame::ReplayEnd
                        }
                        other => panic!("a frame of type {other}"),
                    };
                }
                Message::Close(reason) => {
                    return Frame::Closed(reason.map_or(1005, |reason| reason.code.into()));
                }
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("not a message of this protocol: {other:?}"),
            }
        }
    }

    /// Reads until standard output ends so; gives what came on it.
    pub async fn until(&mut self, end: &str) -> String {
        let mut seen = Vec::new();
        while !seen.ends_with(end.as_bytes()) {
            match self.next().await {
                Frame::Stdout(bytes) => seen.extend(bytes),
                Frame::Stderr(_) | Frame::ReplayEnd => {}
                frame => panic!("{frame:?} before {end:?}, after {seen:?}"),
            }
        }
        String::from_utf8(seen).expect("text")
    }

    /// Reads to the close, and checks the order on the way.
    pub async fn until_end(mut self) -> Ended {
        let mut ended = Ended::default();
        loop {
            match self.next().await {
                Frame::Stdout(bytes) => ended.stdout.extend(bytes),
                Frame::Stderr(bytes) => ended.stderr.extend(bytes),
                Frame::ReplayEnd => {
                    ended.replayed = ended.stdout.len() + ended.stderr.len();
                }
                Frame::Exit(code) => {
                    assert!(self.replayed, "the replay ends before the exit");
                    ended.exit = Some(code);
                    assert!(matches!(self.next().await, Frame::Closed(1000)));
                    ended.closed = 1000;
                    return ended;
                }
                Frame::Closed(code) => {
                    ended.closed = code;
                    return ended;
                }
            }
        }
    }
}
