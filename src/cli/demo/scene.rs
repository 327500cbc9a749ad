//! The set stage: a sandbox, a tool inside it, and what a call from inside leads to.
//!
//! Invariant: what is printed here never holds a real value, also when one leaked.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::Broken;
use super::canary::Search;
use super::inside::{self, Reply, SECRET, Tool, Way, is_token};
use super::stage::Stage;
use super::steps::API_HOST;
use super::upstream::KEY_HEADER;
use crate::cli::client::Api;

/// A restarted server may need this long until a sandbox answers again.
const RECOVERY_MS_MAX: u64 = 5_000;
/// Time between two tries.
const RETRY_MS: u64 = 100;
/// How much of an output is shown, in characters.
const SHOWN_CHARS_MAX: usize = 1000;

/// The parts of the stage that exist once it is set.
pub struct Scene<'a> {
    /// What was made for it, and must be taken away.
    pub stage: &'a mut Stage,
    /// The server.
    pub api: Api,
    /// The sandbox's id.
    pub sandbox: String,
    /// What makes calls inside.
    pub tool: Tool,
}

/// What one call from inside led to.
pub struct Arrived {
    /// The API saw the current real value.
    pub is_real: bool,
    /// The reply inside held the token, in header and body, and no value.
    pub came_back_sealed: bool,
    /// What the API saw, fit to print.
    pub seen: String,
    /// What the sandbox saw.
    pub reply: String,
}

impl Scene<'_> {
    /// The search for every value of this run.
    pub fn search(&self) -> Result<Search, Broken> {
        Ok(Search::new(&self.stage.canaries)?)
    }

    /// As much of an output as tells what it is, fit to print.
    pub fn shown(&self, output: &str) -> Result<String, Broken> {
        if self.search()?.is_in(output) {
            return Ok("(holds the real value, not shown)".to_owned());
        }
        Ok(output.trim().chars().take(SHOWN_CHARS_MAX).collect())
    }

    /// What the secret's variable holds inside.
    pub async fn token(&self) -> Result<String, Broken> {
        self.shown(&self.run(&format!("echo \"${SECRET}\"")).await?)
    }

    /// Runs a shell command inside; both of its outputs.
    pub async fn run(&self, script: &str) -> Result<String, Broken> {
        let result = inside::run(&self.api, &self.sandbox, script).await?;
        Ok(result.stdout + &result.stderr)
    }

    /// As `run`, tried again while a restarted server finds its sandboxes.
    pub async fn patiently(&self, script: &str) -> Result<String, Broken> {
        let started = Instant::now();
        loop {
            match self.run(script).await {
                Err(_) if started.elapsed() < Duration::from_millis(RECOVERY_MS_MAX) => {
                    sleep(Duration::from_millis(RETRY_MS)).await;
                }
                result => return result,
            }
        }
    }

    /// Calls the API from inside with the token as key, and looks at both ends.
    pub async fn call(&self, path: &str, way: Way) -> Result<Arrived, Broken> {
        let upstream = self.stage.upstream.as_ref();
        let upstream = upstream.ok_or_else(|| Broken::Unexpected("the API is gone".to_owned()))?;
        drop(upstream.take_calls());
        let url = format!("https://{API_HOST}:{}{path}", upstream.port);
        let output = self.run(&self.tool.call(&url, way)).await?;
        let calls = upstream.take_calls();
        let value = self.stage.canaries.last();
        let key = calls
            .iter()
            .rfind(|call| call.path == path)
            .map(|call| &call.key);
        let is_real = value
            .zip(key)
            .is_some_and(|(value, key)| value.expose() == key.as_str());
        let reply = Reply::parse(&output);
        let token = &self.stage.token;
        let came_back_sealed = !self.search()?.is_in(&output)
            && reply.as_ref().is_some_and(|reply| {
                reply.status == 200
                    && reply.echo_header == *token
                    && reply.body.contains(token.as_str())
            });
        let seen = match (value, key) {
            (Some(value), Some(_)) if is_real => format!("{KEY_HEADER}: {}", value.masked()),
            (_, Some(key)) if is_token(key) => {
                format!("{KEY_HEADER}: {} (the token)", key.as_str())
            }
            (_, Some(_)) => format!("{KEY_HEADER}: another value"),
            (_, None) => format!("no call; the sandbox saw: {}", self.shown(&output)?),
        };
        let reply = reply.map(|reply| format!("x-echo: {}\n{}", reply.echo_header, reply.body));
        let reply = self.shown(reply.as_deref().unwrap_or(&output))?;
        Ok(Arrived {
            is_real,
            came_back_sealed,
            seen,
            reply,
        })
    }
}
