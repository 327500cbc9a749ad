//! Building an image: step by step, each from the result of the one before, in a sandbox that nobody
//! else sees.
//!
//! A step whose result is there is not carried out again; one that another build is at work on is
//! waited for, and its output told as if it were ours. The sandbox is made when the first step has to
//! be carried out, from the result before it, and is gone when the build ends, however it ends.

use std::sync::Arc;

use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;

use super::builds::{Build, StepTurn};
use super::defaults::ImageDefaults;
use super::feed::{Ended, Feed};
use super::image::{Image, ImageCommand, ImagePhase};
use super::manifest::{Manifest, Step, Vars};
use super::steps::Bench;
use crate::actors::create::CreateSandbox;
use crate::actors::entity::Failure;
use crate::actors::platform::Platform;
use crate::actors::sealing::internal;
use crate::events::families::{ImageFailed, ImageReady};
use crate::ids::{CheckpointId, SandboxId};

/// Memory of a build that asks for none, and the least, MiB.
const BUILDER_MEMORY_MB: u32 = 4096;
const BUILDER_MEMORY_MB_MIN: u32 = 512;
/// Least memory of an image's sandboxes, MiB.
const RUNTIME_MEMORY_MB_MIN: u32 = 1024;
const BUILDER_CPUS: i64 = 2;
/// Shorter values of variables than this are no secrets, and stand in any output.
const HIDDEN_BYTES_MIN: usize = 6;

/// Why a build has no result.
#[derive(Debug)]
enum Stopped {
    /// A step failed: told as it is.
    Step(String),
    /// Something else did.
    Failure(Failure),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// The sandbox of a build.
struct Workshop {
    sandbox: SandboxId,
    /// The result that its disk is the same as.
    at: Option<CheckpointId>,
    _place: OwnedSemaphorePermit,
}

impl Platform {
    /// Builds an image and records the outcome.
    pub(super) async fn build_image(self: Arc<Self>, build: Arc<Build>, manifest: Manifest) {
        let mut workshop = None;
        let built = tokio::select! {
            built = self.build_steps(&build, &manifest, &mut workshop) => built,
            () = build.cancelled.cancelled() => Err(Stopped::Step("it was deleted".to_owned())),
        };
        self.close_workshop(&build, &mut workshop).await;
        let at = OffsetDateTime::now_utc();
        let (command, ended) = match built {
            Ok(()) => (ImageCommand::Ready(ImageReady { at }), Ended::Done),
            Err(stopped) => {
                let reason = without_values(told(&build, stopped), &manifest);
                let failed = ImageFailed {
                    reason: reason.clone(),
                    at,
                };
                (ImageCommand::Fail(failed), Ended::Failed(reason))
            }
        };
        let stream = Image::stream(&build.image);
        let who = build.caller.who();
        let ended = match self.execute(&self.images, &stream, command, &who).await {
            Ok(done) if done.state.phase == ImagePhase::Deleted => {
                Ended::Failed("it was deleted".to_owned())
            }
            Ok(_) => ended,
            Err(error) => {
                tracing::error!(%error, image = %build.image, "a build's outcome is not recorded");
                Ended::Failed("the outcome could not be recorded: try again".to_owned())
            }
        };
        self.builds.finish(&build);
        build.feed.end(ended);
        self.forget_surplus_images(&build.caller).await;
        self.sweep_layers().await;
    }

    async fn build_steps(
        self: &Arc<Self>,
        build: &Arc<Build>,
        manifest: &Manifest,
        workshop: &mut Option<Workshop>,
    ) -> Result<(), Stopped> {
        let keys = manifest.layer_keys();
        // An image without steps is the bare base.
        let steps: Vec<Option<&Step>> = match manifest.steps.is_empty() {
            true => vec![None],
            false => manifest.steps.iter().map(Some).collect(),
        };
        let mut last: Option<CheckpointId> = None;
        let mut before = ImageDefaults::default();
        for ((number, key), step) in (1u32..).zip(&keys).zip(steps) {
            let after = before.clone().of(step);
            let task = Task {
                number,
                key,
                step,
                kind: step.map_or("build", Step::kind),
                before: &before,
                after: &after,
            };
            let made = self
                .make_layer(build, manifest, &task, last, workshop)
                .await?;
            last = Some(made);
            before = after;
        }
        let Some(last) = last else {
            return Err(Failure::Internal("an image without any result".to_owned()).into());
        };
        build.feed.say(0, "checkpoint", "keeping the image");
        let memory_mb =
            size(manifest.runtime_memory_mb, RUNTIME_MEMORY_MB_MIN).min(self.limits.memory_mb_max);
        Ok(self.keep_image(build, &last, before, memory_mb).await?)
    }

    /// The result of one step, made now or found.
    async fn make_layer(
        self: &Arc<Self>,
        build: &Arc<Build>,
        manifest: &Manifest,
        task: &Task<'_>,
        from: Option<CheckpointId>,
        workshop: &mut Option<Workshop>,
    ) -> Result<CheckpointId, Stopped> {
        loop {
            match self.builds.step(build.caller.org, task.key) {
                StepTurn::Mine(turn) => {
                    if let Some(found) = self.adopt_layer(build, task.key).await? {
                        turn.end(Ended::Done);
                        let text = format!("{} is cached", task.describe());
                        build.feed.say(task.number, "cache_hit", text);
                        return Ok(found);
                    }
                    let feeds = [build.feed.as_ref(), turn.feed.as_ref()];
                    let made = self
                        .work(build, manifest, task, from, workshop, feeds)
                        .await;
                    turn.end(match &made {
                        Ok(_) => Ended::Done,
                        Err(Stopped::Step(reason)) => Ended::Failed(reason.clone()),
                        Err(Stopped::Failure(_)) => Ended::Abandoned,
                    });
                    return made;
                }
                StepTurn::Theirs(feed) => {
                    // Our sandbox is behind from here on, and its place is free for whoever waits.
                    self.close_workshop(build, workshop).await;
                    let mut theirs = feed.follow();
                    let ended = loop {
                        match theirs.next().await {
                            Ok(line) => {
                                build.feed.say(task.number, line.kind, line.message.clone())
                            }
                            Err(ended) => break ended,
                        }
                    };
                    if let Ended::Failed(reason) = ended {
                        return Err(Stopped::Step(reason));
                    }
                }
            }
        }
    }

    /// Carries a step out and keeps its result.
    async fn work(
        self: &Arc<Self>,
        build: &Arc<Build>,
        manifest: &Manifest,
        task: &Task<'_>,
        from: Option<CheckpointId>,
        workshop: &mut Option<Workshop>,
        feeds: [&Feed; 2],
    ) -> Result<CheckpointId, Stopped> {
        let say = |line: String| {
            for feed in feeds {
                feed.say(task.number, task.kind, line.clone());
            }
        };
        say(task.describe());
        if workshop.as_ref().is_some_and(|there| there.at != from) {
            self.close_workshop(build, workshop).await;
        }
        let there = match workshop.take() {
            Some(there) => workshop.insert(there),
            None => {
                let opened = self.open_workshop(build, manifest, from).await?;
                workshop.insert(opened)
            }
        };
        if let Some(step) = task.step {
            let live = self
                .find_live(&there.sandbox)
                .ok_or_else(|| Failure::Internal("the sandbox that builds went away".to_owned()))?;
            let bench = Bench {
                live: &live,
                before: task.before,
                after: task.after,
                settings: &self.image_settings,
            };
            // What a step left half done is nobody's result.
            there.at = None;
            if let Err(why) = bench.carry_out(step, &say).await {
                let (number, kind) = (task.number, task.kind);
                return Err(Stopped::Step(format!("step {number} ({kind}) {why}")));
            }
        }
        let made = self.keep_layer(build, &there.sandbox, task.key).await?;
        there.at = Some(made);
        Ok(made)
    }

    /// Makes the sandbox of a build, whose disk is that of `from`.
    async fn open_workshop(
        self: &Arc<Self>,
        build: &Build,
        manifest: &Manifest,
        from: Option<CheckpointId>,
    ) -> Result<Workshop, Failure> {
        let places = self.builds.places.clone();
        let place = match places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                build
                    .feed
                    .say(0, "build", "waiting for other builds to end");
                places.acquire_owned().await.map_err(internal)?
            }
        };
        let inherited = match from {
            Some(from) => Some(self.disk_of(&build.caller, &from).await?.0),
            None => None,
        };
        let memory = size(
            manifest
                .builder_memory_mb
                .or(Some(BUILDER_MEMORY_MB.into())),
            BUILDER_MEMORY_MB_MIN,
        );
        let request = CreateSandbox {
            template: Some(manifest.base.clone()),
            timeout: Some(0),
            cpu_count: Some(BUILDER_CPUS),
            memory_mb: Some(memory.min(self.limits.memory_mb_max).into()),
            egress_allowlist: self.image_settings.egress_allowlist.clone(),
            inherited,
            builds: Some(build.image),
            ..CreateSandbox::default()
        };
        // To its end even when nobody waits any more: what was begun has to be found by its record.
        let (platform, caller) = (self.clone(), build.caller);
        let make = async move { platform.create_sandbox(&caller, request, None).await };
        let made = tokio::spawn(make).await.map_err(internal)??;
        let details = made.state.details.as_ref();
        let sandbox = details.map(|details| details.sandbox_id.clone());
        Ok(Workshop {
            sandbox: sandbox
                .ok_or_else(|| Failure::Internal("no sandbox to build in".to_owned()))?,
            at: from,
            _place: place,
        })
    }

    async fn close_workshop(self: &Arc<Self>, build: &Build, workshop: &mut Option<Workshop>) {
        let Some(there) = workshop.take() else {
            return;
        };
        // The reconciler removes what can't be removed here.
        if let Err(error) = self
            .delete_sandbox(&build.caller, &there.sandbox, false)
            .await
        {
            tracing::error!(%error, sandbox = %there.sandbox, "a build's sandbox was not removed");
        }
    }
}

/// One step of a build.
struct Task<'a> {
    number: u32,
    key: &'a str,
    step: Option<&'a Step>,
    kind: &'static str,
    before: &'a ImageDefaults,
    after: &'a ImageDefaults,
}

impl Task<'_> {
    /// The step, in words for its log.
    fn describe(&self) -> String {
        const SHOWN_CHARS_MAX: usize = 200;
        let what = match self.step {
            None => "the bare base".to_owned(),
            Some(Step::AptInstall(packages) | Step::PipInstall(packages)) => packages.join(" "),
            Some(Step::Run(commands)) => commands.join(" && "),
            // Values may be nobody else's business, and a log is easily passed on.
            Some(Step::Env(vars)) => {
                let names: Vec<_> = vars.0.iter().map(|(name, _)| name.as_str()).collect();
                names.join(" ")
            }
            Some(Step::Workdir(path) | Step::AddFile { path, .. }) => path.clone(),
            Some(Step::AddDir { path, files }) => format!("{path} ({} files)", files.len()),
        };
        let what: String = what
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(SHOWN_CHARS_MAX)
            .collect();
        format!("step {} ({}): {what}", self.number, self.kind)
    }
}

/// A size in MiB that is at least `least`.
fn size(asked: Option<i64>, least: u32) -> u32 {
    let asked = asked.and_then(|mb| u32::try_from(mb).ok());
    asked.unwrap_or(least).max(least)
}

/// What the image's owner is told.
/// A reason that stays in the log: what a step printed may hold the values of its variables.
fn without_values(mut reason: String, manifest: &Manifest) -> String {
    for step in &manifest.steps {
        let Step::Env(Vars(vars)) = step else {
            continue;
        };
        for (name, value) in vars
            .iter()
            .filter(|(_, value)| value.len() >= HIDDEN_BYTES_MIN)
        {
            reason = reason.replace(value.as_str(), &format!("(value of {name})"));
        }
    }
    reason
}

fn told(build: &Build, stopped: Stopped) -> String {
    match stopped {
        Stopped::Step(reason) => reason,
        Stopped::Failure(Failure::Reject(reject)) => reject.to_string(),
        Stopped::Failure(error) => {
            tracing::error!(%error, image = %build.image, "an image could not be built");
            "the image could not be built; the server's log has the reason".to_owned()
        }
    }
}
