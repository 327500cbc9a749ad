//! The last two steps of the demo: the audit trail, and the search for the value in everything
//! that was written or is held in memory.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::Broken;
use super::canary::{Findings, Search};
use super::inside::SECRET;
use super::narrator::Narrator;
use super::processes;
use super::scene::Scene;
use super::steps::{API_HOST, BLOCKED_HOST};
use crate::cli::audit::{self, Event};
use crate::cli::client::{body, decode};

/// Decisions of the proxy are recorded in batches; they must be there within this time.
const AUDIT_MS_MAX: u64 = 5_000;
/// Time between two looks.
const RETRY_MS: u64 = 100;
/// Events looked at.
const EVENTS_MAX: u64 = 500;
/// How long the marked command inside runs, in seconds: longer than the search.
const MARKED_S: u32 = 300;

/// One line of the trail: what to look for, and how to know it.
struct Trace {
    claim: &'static str,
    kind: [&'static str; 2],
    data: [&'static str; 2],
}

/// What the story so far must have left.
const TRAIL: [Trace; 5] = [
    Trace {
        claim: "project created",
        kind: ["project.", "created"],
        data: ["", ""],
    },
    Trace {
        claim: "secret set, by name only",
        kind: ["project.", "secret"],
        data: [SECRET, ""],
    },
    Trace {
        claim: "sandbox started",
        kind: ["sandbox.", "started"],
        data: ["", ""],
    },
    Trace {
        claim: "call allowed, with which secret",
        kind: ["egress", ""],
        data: [API_HOST, SECRET],
    },
    Trace {
        claim: "call refused",
        kind: ["egress", ""],
        data: [BLOCKED_HOST, ""],
    },
];

impl Trace {
    fn is(&self, event: &Event) -> bool {
        let data = event.data.to_string();
        self.kind.iter().all(|part| event.kind.contains(part))
            && self.data.iter().all(|part| data.contains(part))
    }

    /// The event on one line; of a batch of decisions, the one that was looked for.
    fn line(&self, event: &Event) -> String {
        let decisions = event.data.get("decisions").and_then(Value::as_array);
        let decision = decisions.into_iter().flatten().find(|decision| {
            let text = decision.to_string();
            self.data.iter().all(|part| text.contains(part))
        });
        let detail = match decision {
            Some(decision) => audit::detail(&json!({ "decisions": [decision] })),
            None => audit::detail(&event.data),
        };
        format!(
            "{}  {}  {}\n{detail}",
            event.position, event.kind, event.stream
        )
    }
}

#[derive(Deserialize)]
struct Verified {
    ok: bool,
    commits: u64,
    positions: u64,
}

/// The newest events, once all that the story must have left is among them, or the time is over.
/// Decisions are recorded in batches: a server that is killed before loses those on their way.
pub async fn recorded(scene: &Scene<'_>) -> Result<Vec<Event>, Broken> {
    let started = Instant::now();
    loop {
        let events = audit::newest(&scene.api, EVENTS_MAX).await?;
        let complete = TRAIL
            .iter()
            .all(|trace| events.iter().any(|event| trace.is(event)));
        if complete || started.elapsed() > Duration::from_millis(AUDIT_MS_MAX) {
            return Ok(events);
        }
        sleep(Duration::from_millis(RETRY_MS)).await;
    }
}

/// Shows the trail and has the whole log verified.
pub async fn audit(scene: &Scene<'_>, story: &mut Narrator) -> Result<(), Broken> {
    story.step("Everything that happened is in the audit log");
    let events = recorded(scene).await?;
    let search = scene.search()?;
    for trace in &TRAIL {
        let found = events.iter().find(|event| trace.is(event));
        let seen = found
            .map(|event| trace.line(event))
            .filter(|line| !search.is_in(line));
        let kinds = || {
            events
                .iter()
                .map(|event| event.kind.as_str())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let seen = seen.unwrap_or_else(|| format!("{} events: {}", events.len(), kinds()));
        story.check(found.is_some(), trace.claim, &seen);
    }
    let text = events
        .iter()
        .map(|event| event.data.to_string())
        .collect::<String>();
    story.check(!search.is_in(&text), "no event holds a value", "");
    let reply = scene
        .api
        .send(Method::POST, &["audit", "verify"], None)
        .await?;
    let verified: Verified = decode(reply)?;
    let seen = format!(
        "{} commits, {} events",
        verified.commits, verified.positions
    );
    let holds = verified.ok && verified.positions >= events.len() as u64;
    story.check(holds, "the log's hash chain is whole", &seen);
    Ok(())
}

/// Searches everything the run wrote, and the sandbox's processes from outside.
pub async fn nowhere_else(scene: &Scene<'_>, story: &mut Narrator) -> Result<(), Broken> {
    story.step("The value is nowhere: not on disk, not in the sandbox's memory");
    let mark = format!("oc-demo-{}", ulid::Ulid::generate());
    let marked = json!({
        "cmd": "sleep", "args": [MARKED_S.to_string()], "envs": { "OC_DEMO_MARK": mark },
    });
    let path = ["sandboxes", &scene.sandbox, "exec"];
    let _session: Value = scene
        .api
        .send(Method::POST, &path, Some(body(&marked)?))
        .await?;
    let (search, folder) = (scene.search()?, scene.stage.folder.path().to_owned());
    let searched = tokio::task::spawn_blocking(move || {
        let pids = processes::of_sandbox(&mark);
        let own = search.processes(&[std::process::id()]);
        (
            search.files(&folder),
            search.processes(&pids),
            pids,
            own,
            search,
        )
    });
    let Ok((files, memory, pids, own, _)): Result<(_, _, _, _, Search), _> = searched.await else {
        return Err(Broken::Unexpected("the search was broken off".to_owned()));
    };
    let claim = "data folder, event log, server log, sandbox disk: not a trace";
    story.check(
        files.hits.is_empty() && files.unread.is_empty() && files.things > 0,
        claim,
        &told(&files, "files"),
    );
    let claim = "environment and memory of the sandbox's processes: not a trace";
    // Supervisor, guest and the marked command at least: a search of nothing proves nothing. The
    // guest is closed to every other process but root's, so an ordinary user sees it named below.
    let readable = match rustix::process::geteuid().is_root() {
        true => 3,
        false => 2,
    };
    let whole = pids.len() >= 3 && memory.things >= readable && memory.bytes > 0;
    story.check(
        whole && memory.hits.is_empty(),
        claim,
        &told(&memory, "processes"),
    );
    let claim = "(the same search does find it in this program, which made it)";
    story.check(
        !own.hits.is_empty(),
        claim,
        &format!("{} MB read", own.bytes / 1_000_000),
    );
    Ok(())
}

fn told(findings: &Findings, things: &str) -> String {
    let mut lines = vec![format!(
        "{} {things}, {} MB",
        findings.things,
        findings.bytes / 1_000_000
    )];
    lines.extend(findings.hits.iter().map(|hit| format!("FOUND in {hit}")));
    lines.extend(
        findings
            .unread
            .iter()
            .map(|what| format!("not read: {what}")),
    );
    lines.join("\n")
}
