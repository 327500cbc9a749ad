//! A stand-in server on loopback that records what the commands send and answers as the test
//! says, and a runner for the real `oc` program.

use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, rt, web};
use actix_ws::Message;
use futures_util::StreamExt;
use serde_json::Value;

/// The key the tests use; it must never be printed.
pub const KEY: &str = "osb_00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// One request as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// `GET /api/projects?x=y`
    pub line: String,
    /// The decoded body; null without one.
    pub body: Value,
    /// The `X-API-Key` header.
    pub key: Option<String>,
}

type Answer = dyn Fn(&Seen) -> (u16, Value) + Send + Sync;

/// The server; it stops when dropped.
pub struct StandIn {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    handle: actix_web::dev::ServerHandle,
    home: tempfile::TempDir,
}

impl StandIn {
    /// Starts a server that answers every plain request by `answer`. A WebSocket plays the role
    /// named by its last path segment (see `play`).
    pub fn start(answer: impl Fn(&Seen) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (recorded, answer): (_, Arc<Answer>) = (seen.clone(), Arc::new(answer));
        let (started, address) = std::sync::mpsc::channel();
        thread::spawn(move || {
            rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    let (recorded, answer) = (recorded.clone(), answer.clone());
                    App::new()
                        .app_data(web::PayloadConfig::new(1 << 20))
                        .default_service(web::to(
                            move |request: HttpRequest, payload: web::Payload| {
                                handle(request, payload, recorded.clone(), answer.clone())
                            },
                        ))
                })
                .workers(1)
                .disable_signals()
                .bind("127.0.0.1:0")
                .expect("loopback has a free port");
                let address = server.addrs()[0];
                let running = server.run();
                started
                    .send((address, running.handle()))
                    .expect("the test waits for the address");
                running
                    .await
                    .expect("the stand-in serves until it is stopped");
            });
        });
        let (address, handle) = address.recv().expect("the stand-in starts");
        let home = tempfile::tempdir().expect("a temporary home");
        Self {
            url: format!("http://{address}"),
            seen,
            handle,
            home,
        }
    }

    /// A server that answers everything with the same reply.
    pub fn always(status: u16, reply: Value) -> Self {
        Self::start(move |_| (status, reply.clone()))
    }

    /// What arrived since the last call.
    pub fn taken(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    /// `oc` with this server and key, an empty home, and the given arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oc"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.home.path())
            .env("OPENCOMPUTER_API_URL", &self.url)
            .env("OPENCOMPUTER_API_KEY", KEY)
            .stdin(Stdio::null());
        command
    }

    /// Runs `oc` to its end.
    pub fn oc(&self, arguments: &[&str]) -> Ran {
        Ran::new(self.command(arguments).output().expect("oc starts"))
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // Dropping the future sends the stop message; nobody needs to wait for it.
        drop(self.handle.stop(false));
    }
}

/// What a run of `oc` left.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Reads the output, and asserts what holds for every command: the key is not in it.
    pub fn new(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        assert!(
            !stdout.contains(KEY) && !stderr.contains(KEY),
            "the API key was printed"
        );
        let code = output.status.code().expect("oc ends by itself");
        Self {
            code,
            stdout,
            stderr,
        }
    }
}

async fn handle(
    request: HttpRequest,
    mut payload: web::Payload,
    recorded: Arc<Mutex<Vec<Seen>>>,
    answer: Arc<Answer>,
) -> actix_web::Result<HttpResponse> {
    let key = request
        .headers()
        .get("x-api-key")
        .and_then(|key| key.to_str().ok());
    let mut seen = Seen {
        line: format!("{} {}", request.method(), request.uri()),
        body: Value::Null,
        key: key.map(str::to_owned),
    };
    if request.headers().contains_key("upgrade") {
        recorded.lock().unwrap().push(seen);
        let role = request
            .path()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        if role == "missing" {
            let body = serde_json::json!({ "error": "session not found" });
            return Ok(HttpResponse::NotFound().json(body));
        }
        let (response, session, messages) = actix_ws::handle(&request, payload)?;
        rt::spawn(play(role, session, messages, recorded));
        return Ok(response);
    }
    let mut body = Vec::new();
    while let Some(chunk) = payload.next().await {
        body.extend_from_slice(&chunk?);
    }
    if !body.is_empty() {
        seen.body = serde_json::from_slice(&body)?;
    }
    let (status, reply) = answer(&seen);
    recorded.lock().unwrap().push(seen);
    let status = StatusCode::from_u16(status).expect("the test names a real status");
    let mut response = HttpResponse::build(status);
    Ok(if reply.is_null() {
        response.finish()
    } else {
        response.json(reply)
    })
}

/// The sessions a test can attach to, by their id.
async fn play(
    role: String,
    mut session: actix_ws::Session,
    mut messages: actix_ws::MessageStream,
    recorded: Arc<Mutex<Vec<Seen>>>,
) {
    let frame = |kind: u8, payload: &[u8]| [&[kind], payload].concat();
    let exit = |code: i32| frame(3, &code.to_be_bytes());
    let frames: Vec<Vec<u8>> = match role.as_str() {
        // A process that has ended: replay, mark, exit.
        "ended" => vec![
            frame(1, b"out"),
            frame(2, b"err"),
            vec![4],
            frame(1, b"put\n"),
            exit(7),
        ],
        // The server goes away before the process ends.
        "lost" => vec![frame(1, b"partial"), vec![4]],
        // 8 MiB of numbered blocks.
        "flood" => {
            let block = |number: u32| frame(1, &number.to_be_bytes().repeat(8 * 1024));
            (0..256).map(block).chain([exit(0)]).collect()
        }
        _ => vec![vec![4]],
    };
    for frame in frames {
        if session.binary(frame).await.is_err() {
            return;
        }
    }
    match role.as_str() {
        // `cat`: echoes input, ends with it.
        "cat" => {
            while let Some(Ok(message)) = messages.next().await {
                let Message::Binary(bytes) = message else {
                    continue;
                };
                let reply = if bytes.len() == 1 {
                    exit(0)
                } else {
                    frame(1, &bytes[1..])
                };
                if session.binary(reply).await.is_err() {
                    return;
                }
            }
        }
        // Runs until a signal arrives by the kill route; "deaf" ignores it.
        "sleep" | "deaf" => loop {
            rt::time::sleep(Duration::from_millis(10)).await;
            let killed = recorded
                .lock()
                .unwrap()
                .iter()
                .any(|seen| seen.line.ends_with("/kill"));
            if killed && role == "sleep" {
                let _ = session.binary(exit(130)).await;
                break;
            }
            if session.ping(b"").await.is_err() {
                break;
            }
        },
        _ => {}
    }
    let _ = session.close(None).await;
}
