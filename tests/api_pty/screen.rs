//! A sandbox, and one client at one of its terminals.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::common::{Api, KEY, Server};

/// Longest wait for one piece of text; generous, because builds may run beside it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running sandbox of a server of its own.
pub struct World {
    pub server: Server,
    pub api: Api,
    pub id: String,
    pub token: String,
}

impl World {
    /// `None` after saying why this machine has no sandboxes.
    pub async fn new(body: &Value) -> Option<Self> {
        let server = Server::start();
        let api = server.api();
        let (id, token) = sandbox(&api, body).await?;
        Some(Self {
            server,
            api,
            id,
            token,
        })
    }

    pub fn path(&self, rest: &str) -> String {
        format!("/api/sandboxes/{}{rest}", self.id)
    }

    /// Opens a terminal; answers its id.
    pub async fn open(&self, body: &Value) -> String {
        let reply = self.api.post(&self.path("/pty"), body).await.ok(201).json();
        let id = reply["sessionID"].as_str().expect("an id").to_owned();
        let only = json!({ "sessionID": id, "sandboxID": self.id });
        assert_eq!(reply, only, "nothing else is promised");
        assert!(id.len() == 8 && id.bytes().all(|b| b.is_ascii_hexdigit()));
        id
    }

    /// A client at a terminal.
    pub async fn attach(&self, terminal: &str) -> Screen {
        let path = self.path(&format!("/pty/{terminal}"));
        let screen = Screen::connect(self.server.url(), &path, &[("x-api-key", KEY)]).await;
        screen.unwrap_or_else(|refusal| panic!("{path}: {refusal:?}"))
    }

    /// A new terminal with a client at it, the prompt being there.
    pub async fn shell(&self, body: &Value) -> (String, Screen) {
        let id = self.open(body).await;
        let mut screen = self.attach(&id).await;
        screen.until("$ ").await;
        (id, screen)
    }

    /// What a shell line writes, run as a command.
    pub async fn run(&self, line: &str) -> String {
        let body = json!({ "cmd": "sh", "args": ["-c", line], "timeout": 30 });
        let reply = self.api.post(&self.path("/exec/run"), &body).await;
        let reply = reply.ok(200).json();
        reply["stdout"]
            .as_str()
            .expect("output")
            .trim_end()
            .to_owned()
    }
}

/// Makes a sandbox, or says why this machine has none; its id and token.
pub async fn sandbox(api: &Api, body: &Value) -> Option<(String, String)> {
    let reply = api.post("/api/sandboxes", body).await;
    if reply.status == 500 && !rustix::process::geteuid().is_root() {
        println!("skipped: no sandboxes without root here: {}", reply.text);
        return None;
    }
    let made = reply.ok(201).json();
    let field = |name: &str| made[name].as_str().expect("a text").to_owned();
    Some((field("sandboxID"), field("token")))
}

/// A client at a terminal, and what it has seen and not asked for yet.
pub struct Screen {
    socket: WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>,
    bytes: Vec<u8>,
    /// Length of the longest message so far.
    pub longest: usize,
}

impl Screen {
    /// Attaches; a refusal is its status and body.
    pub async fn connect(
        url: &str,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, (u16, String)> {
        let url = format!("{}{path}", url.replacen("http", "ws", 1));
        let mut request = url.into_client_request().expect("a request");
        for (name, value) in headers {
            let value = value.parse().expect("a header value");
            request.headers_mut().insert(*name, value);
        }
        match tokio_tungstenite::connect_async(request).await {
            Ok((socket, _)) => Ok(Self {
                socket,
                bytes: Vec::new(),
                longest: 0,
            }),
            Err(Error::Http(reply)) => {
                let body = reply.body().as_deref().unwrap_or_default();
                let text = String::from_utf8_lossy(body).into_owned();
                Err((reply.status().as_u16(), text))
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }

    /// Types, as bytes.
    pub async fn keys(&mut self, keys: &str) {
        self.send(Message::binary(keys.as_bytes().to_vec())).await;
    }

    pub async fn send(&mut self, message: Message) {
        self.socket.send(message).await.expect("the socket is open");
    }

    /// Types a command and waits until `answer` is on the screen behind its echo.
    pub async fn ask(&mut self, command: &str, answer: &str) -> String {
        self.keys(&format!("{command}\r")).await;
        self.until(answer).await
    }

    /// Waits until what came since the last call holds `text`; answers all of that.
    pub async fn until(&mut self, text: &str) -> String {
        self.until_within(text, PATIENCE).await
    }

    /// The same with another patience.
    pub async fn until_within(&mut self, text: &str, patience: Duration) -> String {
        let wait = async {
            let mut searched = 0;
            while !self.holds(text, searched) {
                searched = self.bytes.len();
                if let Some(code) = self.take().await {
                    panic!("closed with {code} before {text:?} in {:?}", self.text());
                }
            }
        };
        let waited = tokio::time::timeout(patience, wait).await;
        assert!(waited.is_ok(), "no {text:?} in {:?}", self.text());
        let seen = self.text();
        self.bytes.clear();
        seen
    }

    /// Everything until the server closes, and the code it closes with (0: without one).
    pub async fn end(&mut self) -> (String, u16) {
        let wait = async {
            loop {
                if let Some(code) = self.take().await {
                    return code;
                }
            }
        };
        let code = tokio::time::timeout(PATIENCE, wait).await.expect("an end");
        (self.text(), code)
    }

    /// Whether `text` is on the screen, of which the first `searched` bytes were looked at before.
    fn holds(&self, text: &str, searched: usize) -> bool {
        let bytes = self.bytes.get(searched.saturating_sub(text.len())..);
        memchr::memmem::find(bytes.unwrap_or_default(), text.as_bytes()).is_some()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// Takes one message; the code when it was the close.
    async fn take(&mut self) -> Option<u16> {
        match self.socket.next().await {
            Some(Ok(Message::Binary(bytes))) => {
                self.longest = self.longest.max(bytes.len());
                self.bytes.extend_from_slice(&bytes);
                None
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => None,
            Some(Ok(Message::Close(Some(close)))) => Some(close.code.into()),
            Some(Ok(Message::Close(None))) | Some(Err(_)) | None => Some(0),
            Some(Ok(other)) => panic!("the server sends bytes, not {other:?}"),
        }
    }

    /// Waits for the answer to a ping.
    pub async fn pong(&mut self) {
        self.send(Message::Ping("still there".into())).await;
        let wait = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Pong(bytes))) => {
                        return assert_eq!(&bytes[..], b"still there");
                    }
                    Some(Ok(Message::Binary(bytes))) => self.bytes.extend_from_slice(&bytes),
                    Some(Ok(_)) => {}
                    other => panic!("{other:?} instead of a pong"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("a pong");
    }

    /// Its connection is gone, without a word and without waiting for what is on its way to it.
    pub fn lose(self, reset: bool) {
        let MaybeTlsStream::Plain(stream) = self.socket.get_ref() else {
            panic!("no TLS here")
        };
        if reset {
            let at_once = Some(Duration::ZERO);
            rustix::net::sockopt::set_socket_linger(stream, at_once).expect("a socket");
        }
    }

    /// Closes from this side, in order.
    pub async fn close(mut self) {
        self.socket.close(None).await.expect("the socket is open");
        let answered = async { while let Some(Ok(_)) = self.socket.next().await {} };
        tokio::time::timeout(PATIENCE, answered)
            .await
            .expect("an answer to the close");
    }
}
