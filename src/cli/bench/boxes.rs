//! One sandbox of the measurement, and what is done with it. Each call returns when the server's
//! whole answer is there.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::client::{Api, body, decode};
use crate::cli::error::CliError;
use crate::cli::exec::RunResult;

/// Piece of a streamed file, in bytes.
const PIECE_BYTES: usize = 256 * 1024;
/// Where files are written inside.
const FILE: &str = "/home/sandbox/bench";

/// A sandbox that was made for the measurement.
pub struct Box<'a> {
    api: &'a Api,
    /// Its id.
    pub id: String,
}

#[derive(Deserialize)]
struct Created {
    #[serde(rename = "sandboxID")]
    id: String,
}

impl<'a> Box<'a> {
    /// Makes one; it never times out by itself.
    pub async fn create(api: &'a Api) -> Result<Self, CliError> {
        let asked = Some(body(&json!({ "timeout": 0 }))?);
        let reply = api.send(Method::POST, &["sandboxes"], asked).await?;
        let Created { id } = decode(reply)?;
        Ok(Self { api, id })
    }

    /// Makes one from a checkpoint; it never times out by itself.
    pub async fn fork(api: &'a Api, checkpoint: &str) -> Result<Self, CliError> {
        let asked = Some(body(&json!({ "timeout": 0 }))?);
        let path = ["sandboxes", "from-checkpoint", checkpoint];
        let Created { id } = decode(api.send(Method::POST, &path, asked).await?)?;
        Ok(Self { api, id })
    }

    /// Runs `cmd`, which must succeed.
    pub async fn run(&self, cmd: &str) -> Result<(), CliError> {
        self.run_asked(cmd, &json!({ "cmd": cmd })).await
    }

    /// Runs `cmd`, which must succeed within `time`.
    pub async fn run_long(&self, cmd: &str, time: Duration) -> Result<(), CliError> {
        let asked = json!({ "cmd": cmd, "timeout": time.as_secs() });
        self.run_asked(cmd, &asked).await
    }

    async fn run_asked(&self, cmd: &str, asked: &Value) -> Result<(), CliError> {
        let request = Some(body(asked)?);
        let reply = self.call(Method::POST, &["exec", "run"], request).await?;
        let result: RunResult = decode(reply)?;
        match result.exit_code {
            0 => Ok(()),
            code => Err(CliError::BadReply(format!(
                "`{cmd}` ended with {code}: {}",
                result.stderr
            ))),
        }
    }

    /// Writes a file of `bytes` bytes (whole pieces, when it is more than one).
    pub async fn write(&self, bytes: usize) -> Result<(), CliError> {
        let piece = Bytes::from(vec![b'x'; bytes.min(PIECE_BYTES)]);
        let pieces = bytes.div_ceil(PIECE_BYTES);
        let stream = futures_util::stream::iter((0..pieces).map(move |_| {
            let piece = piece.clone();
            Ok::<_, std::io::Error>(piece)
        }));
        let path = ["sandboxes", &self.id, "files"];
        let query = [("path", FILE.to_owned())];
        self.api
            .upload(&path, &query, reqwest::Body::wrap_stream(stream))
            .await
    }

    /// Reads it back; it must be `bytes` long.
    pub async fn read(&self, bytes: usize) -> Result<(), CliError> {
        let path = ["sandboxes", &self.id, "files"];
        let mut seen = 0;
        let query = [("path", FILE.to_owned())];
        self.api
            .download(&path, &query, |piece| {
                seen += piece.len();
                Ok(())
            })
            .await?;
        match seen == bytes {
            true => Ok(()),
            false => Err(CliError::BadReply(format!("{seen} bytes of {bytes} came"))),
        }
    }

    /// Puts it to sleep, or wakes it.
    pub async fn asleep(&self, asleep: bool) -> Result<(), CliError> {
        let (verb, asked) = match asleep {
            true => ("hibernate", None),
            false => ("wake", Some(body(&json!({}))?)),
        };
        self.call(Method::POST, &[verb], asked).await.map(drop)
    }

    /// Takes it away for good.
    pub async fn delete(self) -> Result<(), CliError> {
        self.api.delete(&["sandboxes", &self.id], &[]).await
    }

    async fn call(
        &self,
        method: Method,
        below: &[&str],
        asked: Option<Bytes>,
    ) -> Result<Value, CliError> {
        let mut path = vec!["sandboxes", self.id.as_str()];
        path.extend_from_slice(below);
        self.api.send(method, &path, asked).await
    }
}

/// How long `work` took, unless it failed.
pub async fn timed<T>(
    work: impl Future<Output = Result<T, CliError>>,
) -> Result<(T, Duration), CliError> {
    let started = Instant::now();
    let done = work.await?;
    Ok((done, started.elapsed()))
}
