//! Patches of checkpoints in the sandboxes made from them: scripts that run as root, in order, each
//! until it succeeded once.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::checkpoint::Checkpoint;
use super::entity::Failure;
use super::exec::Captured;
use super::live::LiveSandbox;
use super::platform::Platform;
use super::sandbox::{Sandbox, SandboxCommand};
use crate::events::Actor as Who;
use crate::events::families::PatchAdded;
use crate::ids::SandboxId;
use crate::sandbox::StartSession;

/// Longest one script may run.
const SCRIPT_TIME_MAX: Duration = Duration::from_secs(300);
/// What is kept of a script's output, in bytes of each stream.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// What is told of the output of one that failed, in characters.
const TOLD_CHARS_MAX: usize = 2000;
const HOME: &str = "/home/sandbox";

impl Platform {
    /// Runs the patches of the checkpoint that a running sandbox was made from which have not run in
    /// it; the state after, or `None` when there was nothing to run. A patch that fails ends the
    /// series and is tried again at the next wake.
    pub(super) async fn apply_patches(
        self: &Arc<Self>,
        id: &SandboxId,
        who: &Who,
    ) -> Result<Option<Arc<Sandbox>>, Failure> {
        let stream = Sandbox::stream(id);
        let mut state = self.sandboxes.inspect(&stream).await?;
        let origin = state
            .details
            .as_ref()
            .and_then(|details| details.origin.clone());
        let Some(origin) = origin else {
            return Ok(None);
        };
        let checkpoint = Checkpoint::stream(&origin.checkpoint_id);
        let checkpoint = self.checkpoints.inspect(&checkpoint).await?;
        let last = state.patched.sequence;
        let pending = checkpoint.patches.iter().filter(|one| one.sequence > last);
        let mut any = false;
        for patch in pending {
            let Some(live) = self.find_live(id) else {
                break;
            };
            let error = run(&live, patch).await.err();
            let stop = error.is_some();
            let command = SandboxCommand::Patched {
                sequence: patch.sequence,
                error,
                at: OffsetDateTime::now_utc(),
            };
            let done = self.execute(&self.sandboxes, &stream, command, who).await?;
            (state, any) = (done.state, true);
            if stop {
                break;
            }
        }
        Ok(any.then_some(state))
    }
}

/// Runs one script; what went wrong, in words that hold the end of its output.
async fn run(live: &LiveSandbox, patch: &PatchAdded) -> Result<(), String> {
    let mut env = live.environment(&Default::default());
    env.insert("HOME".to_owned(), HOME.to_owned());
    let session = StartSession {
        session_id: hex::encode(rand::random::<[u8; 4]>()),
        cmd: "bash".to_owned(),
        args: vec!["-c".to_owned(), patch.script.clone()],
        direct: true,
        env,
        cwd: HOME.to_owned(),
        timeout: Some(SCRIPT_TIME_MAX),
        as_root: true,
        stdin_closed: true,
        ..StartSession::default()
    };
    let mut captured = Captured::default();
    let ran = live
        .guest
        .run_with(session, |output| captured.push(output, OUTPUT_BYTES_MAX))
        .await;
    if let Err(error) = ran {
        return Err(format!(
            "patch {} could not be run: {error}",
            patch.sequence
        ));
    }
    match captured.exit_code {
        Some(0) => Ok(()),
        code => {
            let said = [captured.stdout, captured.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            let tail: Vec<char> = said.trim().chars().rev().take(TOLD_CHARS_MAX).collect();
            let tail: String = tail.into_iter().rev().collect();
            let code = code.unwrap_or(-1);
            Err(format!(
                "patch {} failed with exit code {code}: {tail}",
                patch.sequence
            ))
        }
    }
}
