//! Durable commands over HTTP: `PUT` of a secret by many clients, each on a connection and a project
//! of its own, each waiting for its answer. The client is a few lines over a socket, so that what is
//! measured is the server.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::cli::client::{Api, body};
use crate::cli::error::CliError;

/// Longest reply that is read, in bytes.
const REPLY_BYTES_MAX: usize = 64 * 1024;

/// Latencies of all commands in `seconds` by `clients` clients.
pub async fn run(api: &Api, clients: usize, seconds: u64) -> Result<Vec<Duration>, CliError> {
    let mut tasks = JoinSet::new();
    let mut ready = Vec::new();
    for client in 0..clients {
        let made = json!({ "name": format!("bench-{client}") });
        let project: Value = api
            .send(Method::POST, &["projects"], Some(body(&made)?))
            .await?;
        let id = project["id"].as_str().unwrap_or_default().to_owned();
        let request = api.socket_request(&["projects", &id, "secrets", "KEY"])?;
        ready.push(Client::connect(&request).await?);
    }
    let until = Instant::now() + Duration::from_secs(seconds);
    for mut client in ready {
        tasks.spawn(async move {
            let mut taken = Vec::new();
            while Instant::now() < until {
                let started = Instant::now();
                client.put(taken.len()).await?;
                taken.push(started.elapsed());
            }
            Ok::<_, CliError>(taken)
        });
    }
    let mut all = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        all.extend(ended.map_err(|error| CliError::Usage(error.to_string()))??);
    }
    all.sort_unstable();
    Ok(all)
}

struct Client {
    stream: BufReader<TcpStream>,
    head: String,
}

impl Client {
    async fn connect(request: &http::Request<()>) -> Result<Self, CliError> {
        let host = request.uri().authority().map_or("", |host| host.as_str());
        let mut head = format!("PUT {} HTTP/1.1\r\nhost: {host}\r\n", request.uri().path());
        if let Some(key) = request.headers().get("x-api-key") {
            let key = key.to_str().unwrap_or_default();
            head.push_str(&format!("x-api-key: {key}\r\n"));
        }
        head.push_str("content-type: application/json\r\n");
        let stream = TcpStream::connect(host).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(Self {
            stream: BufReader::new(stream),
            head,
        })
    }

    async fn put(&mut self, number: usize) -> Result<(), CliError> {
        let body = format!(r#"{{"value":"a-value-of-some-length-{number}"}}"#);
        let request = format!("{}content-length: {}\r\n\r\n{body}", self.head, body.len());
        self.stream
            .write_all(request.as_bytes())
            .await
            .map_err(failed)?;
        let (mut status, mut length, mut line) = (String::new(), 0, String::new());
        loop {
            line.clear();
            let read = self.stream.read_line(&mut line).await.map_err(failed)?;
            let text = line.trim_end();
            if read == 0 {
                return Err(CliError::BadReply("the connection was closed".into()));
            } else if text.is_empty() {
                break;
            } else if status.is_empty() {
                text.clone_into(&mut status);
            } else if let Some((name, value)) = text.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut reply = vec![0; length.min(REPLY_BYTES_MAX)];
        self.stream.read_exact(&mut reply).await.map_err(failed)?;
        match status.contains(" 200 ") {
            true => Ok(()),
            false => Err(CliError::BadReply(format!(
                "{status}: {}",
                String::from_utf8_lossy(&reply)
            ))),
        }
    }
}

fn failed(error: std::io::Error) -> CliError {
    CliError::Usage(format!("the server can't be reached: {error}"))
}
