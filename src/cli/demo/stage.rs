//! Everything one run of the demo made, and how it is taken away again.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::timeout;

use super::canary::Canary;
use super::narrator::Narrator;
use super::processes::{detach_mounts, end_strays};
use super::upstream::Upstream;
use crate::cli::client::{Api, decode};
use crate::cli::error::CliError;
use crate::cli::private_server::{PrivateServer, Scratch, ServerError};

/// How long the server may take to delete what the demo made.
const DELETE_MS_MAX: u64 = 10_000;

/// What exists so far; filled step by step, so that a broken run knows what to take away.
pub struct Stage {
    /// The folder of the run.
    pub folder: Scratch,
    /// The stand-in API.
    pub upstream: Option<Upstream>,
    /// The private server.
    pub server: Option<PrivateServer>,
    /// The project's id.
    pub project: Option<String>,
    /// Every value that was ever a secret in this run.
    pub canaries: Vec<Canary>,
    /// What the sandbox sees in its place.
    pub token: String,
}

impl Stage {
    /// An empty stage in a new folder.
    pub fn new() -> Result<Self, ServerError> {
        Ok(Self {
            folder: Scratch::create("oc-demo")?,
            upstream: None,
            server: None,
            project: None,
            canaries: Vec::new(),
            token: String::new(),
        })
    }

    /// The end of the server's log, when there is one.
    pub fn log_tail(&self) -> String {
        self.server
            .as_ref()
            .map(PrivateServer::log_tail)
            .unwrap_or_default()
    }

    /// Deletes sandbox and project, stops the server, and checks that nothing is left: no process,
    /// no mount, no file (unless the folder is to be kept).
    pub async fn clean_up(mut self, story: &mut Narrator, keep: bool) {
        if let Some(server) = &mut self.server {
            let api = server.api.clone();
            let deleted = delete_all(&api, self.project.take());
            let deleted = timeout(Duration::from_millis(DELETE_MS_MAX), deleted).await;
            let problem: Option<String> = match deleted {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some(format!("no answer within {DELETE_MS_MAX} ms")),
            };
            let claim = "sandbox and project are deleted";
            story.check(
                problem.is_none(),
                claim,
                problem.as_deref().unwrap_or_default(),
            );
            story.check(server.stop().await, "the server ends when asked", "");
        }
        let program = Path::new("/proc/self/exe");
        let strays = end_strays(self.folder.path(), program);
        let mounts = detach_mounts(self.folder.path());
        let seen = format!("{strays:?} {mounts:?}");
        let clean = strays.is_empty() && mounts.is_empty();
        let seen = if clean { "" } else { &seen };
        story.check(clean, "no process and no mount of this run is left", seen);
        if keep {
            story.note(&format!("kept: {}", self.folder.keep().display()));
            return;
        }
        let removed = self.folder.remove();
        let seen = removed
            .as_ref()
            .err()
            .map(ToString::to_string)
            .unwrap_or_default();
        story.check(removed.is_ok(), "its folder is removed", &seen);
    }
}

/// Every sandbox of the server, which is ours alone: one may exist though its create was broken
/// off before it answered.
async fn delete_all(api: &Api, project: Option<String>) -> Result<(), CliError> {
    #[derive(Deserialize)]
    struct Listed {
        #[serde(rename = "sandboxID")]
        id: String,
    }
    let sandboxes: Vec<Listed> = decode(api.get(&["sandboxes"]).await?)?;
    for sandbox in sandboxes {
        api.delete(&["sandboxes", &sandbox.id], &[]).await?;
    }
    match project {
        Some(project) => api.delete(&["projects", &project], &[]).await,
        None => Ok(()),
    }
}
