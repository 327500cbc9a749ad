//! Recorded logs of every version, in `fixtures/events/`, read by the program of today.
//!
//! A recording is an export (SPECIFICATION.md, section 8) of a log that was written by the
//! aggregates of that version, with every kind of event in it. It is never changed afterwards: what
//! it adds up to has to stay the same, whatever becomes of the code. `record_this_version` makes the
//! one of the version in Cargo.toml, until that version is released:
//!
//! ```text
//! cargo test --lib record_this_version -- --ignored
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use time::OffsetDateTime;
use ulid::Ulid;

use super::world::{
    Act, ObjectAct, OrgAct, World, checkpoint_lives, image_lives, sandbox_lives, with_log,
};
use super::{id, org};
use crate::actors::entity::Failure;
use crate::actors::history::Past;
use crate::actors::project::ProjectCommand;
use crate::events::EventData;
use crate::events::chain;
use crate::events::families::{
    CheckpointEvent, DecodeError, EgressAnnounced, EgressDecided, EgressEvent, Family,
    IdempotencyEvent, IdempotencyRecorded, IdempotencyReleased, ImageEvent, KINDS, NameEvent,
    OomKilled, OrgEvent, ProjectEvent, ResourceEvent, SandboxEvent, StoreEvent,
};
use crate::events::{
    Actor, Append, BRANCH_KIND, Branched, EventLog, NewEvent, READ_EVENTS_MAX, Recorded, StreamId,
};
use crate::ids::{ProjectId, SandboxId};
use crate::proxy::{Decision, Outcome, Protocol, Sending};

/// Largest recording, in bytes.
const RECORDING_BYTES_MAX: u64 = 200 * 1024;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/events")
}

/// The recordings, oldest version first.
fn recordings() -> Vec<(String, PathBuf)> {
    let files = std::fs::read_dir(folder())
        .expect("the recordings")
        .flatten();
    let paths = files.map(|file| file.path());
    let logs = paths.filter(|path| path.extension().is_some_and(|end| end == "jsonl"));
    let mut named: Vec<_> = logs
        .map(|path| {
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let version = stem.expect("a version").to_owned();
            let numbers: Vec<u32> = version
                .split('.')
                .map(|part| part.parse().expect("a number"))
                .collect();
            (numbers, version, path)
        })
        .collect();
    named.sort();
    named
        .into_iter()
        .map(|(_, version, path)| (version, path))
        .collect()
}

/// A life in which everything happens that can be recorded.
async fn live_through_everything(log: &EventLog) {
    use ObjectAct as O;
    let mut world = World::new(log.clone());
    let both = |make: fn(usize, ObjectAct) -> Act| {
        [
            (0, O::Create(0)),
            (0, O::Rename(1)),
            (0, O::Resize(2)),
            (0, O::Set(0)),
            (0, O::Unset(0)),
            (0, O::Set(1)),
            (0, O::Revoke(1)),
            (0, O::Set(1)),
            (0, O::Delete),
            (1, O::Create(1)),
            (1, O::Set(0)),
            (1, O::Set(0)),
            (1, O::Set(2)),
        ]
        .map(|(slot, act)| make(slot, act))
    };
    let acts = [
        OrgAct::Create,
        OrgAct::Key(0),
        OrgAct::Key(1),
        OrgAct::Revoke(1),
    ]
    .map(Act::Org)
    .into_iter()
    .chain(both(Act::Project))
    .chain(both(Act::Store))
    .chain(sandbox_lives().map(|(slot, act)| Act::Sandbox(slot, act)))
    .chain(checkpoint_lives().map(|(slot, act)| Act::Checkpoint(slot, act)))
    .chain(image_lives().map(|(slot, act)| Act::Image(slot, act)));
    for act in acts {
        world.act(&act, false).await;
    }
    for append in [egress(), announced(), oom(), key(), branch(log).await] {
        log.append(append).await.expect("appended");
    }
}

/// Decisions come from the proxy, not from a command.
fn egress() -> Append {
    let sandbox: SandboxId = id("sb-01m806v6r12w1bmtyq39z8xdwq");
    let names = || vec!["A".to_owned()];
    // Spelt out, so that a new field of a decision can't be forgotten here.
    let decision = Decision {
        at: super::at(6),
        host: "a.test".to_owned(),
        port: 443,
        protocol: Protocol::Https,
        method: Some("GET".to_owned()),
        outcome: Outcome::Refused,
        reason: "egress_allowlist".to_owned(),
        secrets: names(),
        unbound: names(),
        unbound_why: [("A".to_owned(), "place")].into(),
        resealed: names(),
        status: Some(403),
        latency_ms: Some(4),
        bytes_up: 1,
        bytes_down: 2,
        client_tls: Some("1.3"),
        client_http: Some("1.1"),
        host_tls: Some("1.2"),
        host_http: Some("2"),
        announced: Some("01K0000000000000000000000A".to_owned()),
        times: 3,
    };
    let decided = EgressDecided {
        sandbox_id: sandbox.clone(),
        org_id: org(),
        decisions: vec![serde_json::to_value(decision).expect("JSON")],
    };
    let stream = StreamId::of("egress", &sandbox);
    by_the_platform(&stream, &[EgressEvent::Decided(decided)])
}

/// What is about to be sent comes from the proxy too.
fn announced() -> Append {
    let sandbox: SandboxId = id("sb-01m806v6r12w1bmtyq39z8xdwq");
    let sending = Sending {
        at: super::at(6),
        host: "a.test".to_owned(),
        port: 443,
        method: Some("GET".to_owned()),
        secrets: vec!["A".to_owned()],
        request: "01K0000000000000000000000A".to_owned(),
    };
    let announced = EgressAnnounced {
        sandbox_id: sandbox.clone(),
        org_id: org(),
        sending: vec![serde_json::to_value(sending).expect("JSON")],
    };
    let stream = StreamId::of("egress", &sandbox);
    by_the_platform(&stream, &[EgressEvent::Announced(announced)])
}

/// Kills are noticed by the server.
fn oom() -> Append {
    let sandbox: SandboxId = id("sb-01m806v6r12w1bmtyq39z8xdwq");
    let killed = OomKilled {
        sandbox_id: sandbox.clone(),
        org_id: org(),
        kills: 1,
        total: 2,
        limit_bytes: Some(1 << 30),
        at: super::at(6),
    };
    let stream = StreamId::of("resource", &sandbox);
    by_the_platform(&stream, &[ResourceEvent::OomKilled(killed)])
}

/// A key is taken beside what a request makes, and let go when nothing came of it.
fn key() -> Append {
    let hash = "ab".repeat(32);
    let stream = StreamId::of("idem", format_args!("{}-{hash}", org()));
    let recorded = IdempotencyRecorded {
        request_hash: hash.clone(),
        entity: "sandbox-sb-01m806v6r12w1bmtyq39z8xdwq".to_owned(),
        session: Some("0a1b2c3d".to_owned()),
    };
    let released = IdempotencyReleased { request_hash: hash };
    let events = [
        IdempotencyEvent::Recorded(recorded),
        IdempotencyEvent::Released(released),
    ];
    by_the_platform(&stream, &events)
}

/// A stream that continues the first project, before anything is in it.
async fn branch(log: &EventLog) -> Append {
    let events = log.read_all(1, READ_EVENTS_MAX).await.expect("read");
    let is_project = |event: &&Arc<Recorded>| event.kind == "project.updated.v1";
    let parent = events.iter().find(is_project).expect("a project");
    let child = StreamId::of("project", ProjectId::generate());
    let branched = log.branch_event(&child, &parent.stream, parent.revision);
    Append {
        events: vec![branched.await.expect("a branch")],
        ..egress()
    }
}

fn by_the_platform<F: Family>(stream: &StreamId, events: &[F]) -> Append {
    let record = |event: &F| NewEvent {
        id: Ulid::generate(),
        stream: stream.clone(),
        kind: event.kind().into(),
        data: event.data().expect("JSON"),
    };
    Append {
        command: Ulid::generate(),
        expected: Vec::new(),
        events: events.iter().map(record).collect(),
        actor: Actor {
            org: Some(org()),
            ..Actor::system()
        },
        correlation: None,
        causation: None,
    }
}

async fn export(log: EventLog) -> String {
    live_through_everything(&log).await;
    let (bytes, _) = log.export_jsonl(Vec::new()).await.expect("exported");
    String::from_utf8(bytes).expect("UTF-8")
}

#[test]
#[ignore = "started by whoever records a version: it writes fixtures/events/<version>.jsonl"]
fn record_this_version() {
    let path = folder().join(concat!(env!("CARGO_PKG_VERSION"), ".jsonl"));
    std::fs::create_dir_all(folder()).expect("a folder");
    std::fs::write(path, with_log(export)).expect("written");
}

/// The events of an export whose every hash and number was made again.
fn read(export: &str) -> Vec<Recorded> {
    let lines: Vec<Value> = export
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let [head, commits @ .., end] = lines.as_slice() else {
        panic!("an export has a first and a last line");
    };
    let mut link = chain::genesis(parsed(&head["log"]));
    let mut events: Vec<Recorded> = Vec::new();
    for (number, commit) in (1..).zip(commits) {
        let own = commit["events"].as_array().expect("events");
        let own: Vec<Recorded> = own.iter().map(recorded).collect();
        let hashes: Vec<_> = own.iter().map(chain::content_hash).collect();
        for (event, hash) in own.iter().zip(&hashes) {
            assert_eq!(event.content_hash, *hash, "event {}", event.position);
        }
        link = chain::chain_hash(number, &link, &hashes);
        assert_eq!(commit["chain"], hex::encode(link), "commit {number}");
        events.extend(own);
    }
    assert_eq!(end["end"]["chain"], hex::encode(link));
    for (position, event) in (1..).zip(&events) {
        assert_eq!(event.position, position);
    }
    events
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug>>(value: &Value) -> T {
    text(value).parse().expect("well-formed")
}

fn optional<T: std::str::FromStr<Err: std::fmt::Debug>>(value: &Value) -> Option<T> {
    (!text(value).is_empty()).then(|| parsed(value))
}

fn recorded(line: &Value) -> Recorded {
    let number = |name: &str| line[name].as_u64().expect("a number");
    let ms = i128::from(line["recorded_at_ms"].as_i64().expect("a time"));
    let hash = hex::decode(text(&line["content_hash"])).expect("hex");
    Recorded {
        id: parsed(&line["id"]),
        stream: parsed(&line["stream"]),
        revision: number("revision"),
        position: number("position"),
        commit: number("commit"),
        kind: text(&line["kind"]).to_owned().into(),
        recorded_at: OffsetDateTime::from_unix_timestamp_nanos(ms * 1_000_000).expect("a time"),
        actor: Actor {
            org: optional(&line["org"]),
            key: optional(&line["key"]),
            kind: text(&line["actor"]).to_owned().into(),
        },
        command: parsed(&line["command"]),
        correlation: optional(&line["correlation"]),
        causation: optional(&line["causation"]),
        data: EventData::stored(text(&line["data"])),
        content_hash: hash.try_into().expect("32 bytes"),
    }
}

/// What the program of today makes of an event: its present kind and data.
fn decode(event: &Recorded) -> Result<(&'static str, Value), DecodeError> {
    fn as_family<F: Family>(event: &Recorded) -> Result<(&'static str, Value), DecodeError> {
        let read = F::decode(&event.kind, &event.data)?;
        Ok((read.kind(), read.data().expect("JSON")))
    }
    if let Some(branched) = Branched::read(&event.kind, &event.data) {
        let branched = branched.expect("where the stream branches off");
        return Ok((BRANCH_KIND, serde_json::to_value(branched).expect("JSON")));
    }
    match event.stream.parts().map(|(family, _)| family) {
        Some("checkpoint") => as_family::<CheckpointEvent>(event),
        Some("egress") => as_family::<EgressEvent>(event),
        Some("idem") => as_family::<IdempotencyEvent>(event),
        Some("image") => as_family::<ImageEvent>(event),
        Some("name") => as_family::<NameEvent>(event),
        Some("org") => as_family::<OrgEvent>(event),
        Some("project") => as_family::<ProjectEvent>(event),
        Some("resource") => as_family::<ResourceEvent>(event),
        Some("store") => as_family::<StoreEvent>(event),
        Some("sandbox") => as_family::<SandboxEvent>(event),
        _ => panic!("{} is of no family known here", event.stream),
    }
}

/// Goal: a log of any version is whole, is understood to the last event, and adds up to what it
/// always added up to.
#[test]
fn every_recorded_version_is_still_understood() {
    let recordings = recordings();
    assert!(!recordings.is_empty(), "nothing is recorded");
    for (version, path) in recordings {
        let size = std::fs::metadata(&path).expect("a file").len();
        assert!(size <= RECORDING_BYTES_MAX, "{version} has {size} bytes");
        let events = read(&std::fs::read_to_string(&path).expect("UTF-8"));
        let mut past = Past::new(None);
        for event in &events {
            let (kind, data) = decode(event)
                .unwrap_or_else(|error| panic!("event {} of {version}: {error}", event.position));
            let same = kind == event.kind;
            let stored: Value = serde_json::from_str(event.data.get()).expect("JSON");
            assert!(
                !same || data == stored,
                "{kind} of {version} reads as something else: {data} instead of {stored}"
            );
            past.take(event);
        }
        insta::with_settings!({
            snapshot_path => folder(),
            prepend_module_to_snapshot => false,
            description => "what the recording beside this file adds up to",
            omit_expression => true,
        }, {
            insta::assert_json_snapshot!(version, past.render());
        });
    }
}

/// Every kind, with the paths and types of its data. Lists and what they hold are one path.
fn shapes(events: &[Recorded]) -> BTreeMap<String, BTreeSet<String>> {
    fn walk(path: &str, value: &Value, found: &mut BTreeSet<String>) {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "text",
            Value::Array(items) => {
                items
                    .iter()
                    .for_each(|item| walk(&format!("{path}[]"), item, found));
                "list"
            }
            Value::Object(fields) => {
                for (name, value) in fields {
                    walk(&format!("{path}.{name}"), value, found);
                }
                "object"
            }
        };
        found.insert(format!("{path}: {kind}"));
    }
    let mut shapes: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for event in events {
        let data = serde_json::from_str(event.data.get()).expect("JSON");
        walk("", &data, shapes.entry(event.kind.to_string()).or_default());
    }
    shapes
}

/// Goal: no kind is written that no recording has, and none changes its stored form under its old
/// name. Method: everything is lived through anew and compared with the newest recording.
#[test]
fn what_is_written_today_is_what_the_newest_recording_has() {
    let (version, path) = recordings().pop().expect("a recording");
    let recorded = shapes(&read(&std::fs::read_to_string(path).expect("UTF-8")));
    let today = shapes(&read(&with_log(export)));
    let way_out = format!(
        "a kind that is new, or has another form than in {version}: a released kind's form never \
         changes, so give the change a new version (`….v2`) and an upcaster beside its family; then \
         have `live_through_everything` do it and record (see the top of this file)"
    );
    let kinds = KINDS.concat().into_iter().chain([BRANCH_KIND]);
    let known: BTreeSet<String> = kinds.map(str::to_owned).collect();
    let written: BTreeSet<String> = recorded.keys().cloned().collect();
    let missing: Vec<_> = known.difference(&written).collect();
    assert!(missing.is_empty(), "not recorded: {missing:?}; {way_out}");
    for (kind, shape) in &today {
        assert_eq!(recorded.get(kind), Some(shape), "{kind}: {way_out}");
    }
}

/// Goal: an event of the future, or one that was damaged into another form, changes nothing in read
/// models and is counted there.
#[test]
fn unknown_events_are_counted_by_read_models() {
    let (_, path) = recordings().pop().expect("a recording");
    let events = read(&std::fs::read_to_string(path).expect("UTF-8"));
    let (mut past, mut expected) = (Past::new(None), 0);
    for event in &events {
        past.take(event);
        let before = format!("{:?}", past.model.projects);
        for (kind, data) in UNKNOWN {
            let unknown = Recorded {
                stream: StreamId::of("project", "00000000-0000-7000-8000-000000000001"),
                kind: kind.into(),
                data: EventData::stored(data),
                ..event.clone()
            };
            past.take(&unknown);
            expected += 1;
        }
        assert_eq!(format!("{:?}", past.model.projects), before);
    }
    assert_eq!(past.render()["skipped"], expected);
}

/// What no project's code knows: kind and data.
const UNKNOWN: [(&str, &str); 2] = [
    ("project.created.v999", "{}"),
    ("project.created.v1", r#"{"name":7}"#),
];

/// Goal: whoever decides by an object's events decides nothing when one of them is not understood.
#[test]
fn unknown_events_stop_reducers() {
    with_log(async |log| {
        for (round, (kind, data)) in (0..).zip(UNKNOWN) {
            let mut world = World::new(log.clone());
            let at = log.head().position + 1;
            world
                .act(&Act::Project(0, ObjectAct::Create(round)), false)
                .await;
            let made = log.read_all(at, 1).await.expect("read");
            let stream = made.first().expect("the project").stream.clone();
            let unknown = NewEvent {
                id: Ulid::generate(),
                stream: stream.clone(),
                kind: kind.into(),
                data: serde_json::from_str(data).expect("JSON"),
            };
            let append = Append {
                events: vec![unknown],
                ..egress()
            };
            log.append(append).await.expect("appended");
            let head = log.head();
            let anew = World::new(log.clone());
            let refused = anew.projects.inspect(&stream).await.expect_err("refused");
            assert!(matches!(refused, Failure::Decode(_)), "{refused}");
            let delete = ProjectCommand::Delete(org(), super::at(9));
            let who = Actor::api(org(), None);
            let refused = anew.projects.execute(&stream, delete, &who).await;
            assert!(matches!(refused.map(drop), Err(Failure::Decode(_))));
            assert_eq!(log.head(), head, "nothing was recorded");
        }
    });
}
