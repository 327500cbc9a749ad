use futures_util::future::join_all;
use time::OffsetDateTime;
use ulid::Ulid;

use super::*;
use crate::actors::project::{ProjectCommand, ProjectSettings};
use crate::actors::registry::{Arbiters, Registry};
use crate::events::families::{
    SandboxEvent, StartCause, StartFailed, StartRequested, Started, StopReason, StopRequested,
};
use crate::events::{Actor, LogOptions};
use crate::ids::{OrgId, ProjectId, SandboxId};

const AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn claim(expected: Expected) -> Claim {
    Claim {
        stream: StreamId::new("idem-x").unwrap(),
        expected,
        request_hash: "abc".to_owned(),
    }
}

/// Goal: a key is taken where it was seen free and given back where it was taken.
#[test]
fn a_key_is_taken_and_given_back_where_it_stands() {
    let entity = StreamId::new("sandbox-x").unwrap();
    for (seen, taken) in [
        (Expected::NoStream, Expected::Revision(0)),
        (Expected::Revision(3), Expected::Revision(4)),
    ] {
        let claim = claim(seen);
        let take = claim.take(&entity, Some("00ff")).unwrap();
        assert_eq!(take.expected, seen);
        assert_eq!(take.event.kind, "idempotency.recorded.v1");
        assert_eq!(
            take.event.data,
            serde_json::json!({ "requestHash": "abc", "entity": "sandbox-x", "session": "00ff" })
        );
        let release = claim.release().unwrap();
        assert_eq!(release.expected, taken);
        assert_eq!(release.event.kind, "idempotency.released.v1");
        assert_eq!(
            release.event.data,
            serde_json::json!({ "requestHash": "abc" })
        );
        assert_eq!(release.event.stream, take.event.stream);
    }
}

/// Goal: a sandbox counts as made from the moment it ran, whatever came later, and as failed only
/// when it never did.
#[test]
fn only_a_sandbox_that_never_ran_gives_its_key_back() {
    let intent = Ulid::from(1);
    let requested = SandboxEvent::StartRequested(StartRequested {
        intent,
        cause: StartCause::Created,
        checkpoint: None,
        at: AT,
    });
    let started = SandboxEvent::Started(Started {
        intent,
        limits: serde_json::Value::Null,
        at: AT,
    });
    let failed = SandboxEvent::StartFailed(StartFailed {
        intent,
        reason: String::new(),
        at: AT,
    });
    let stop = SandboxEvent::StopRequested(StopRequested {
        intent,
        reason: StopReason::UserRequested,
        at: AT,
    });
    let after = |events: &[&SandboxEvent]| {
        let mut sandbox = Sandbox::default();
        for (event, revision) in events.iter().zip(0..) {
            sandbox.apply(event, revision);
        }
        sandbox.creation()
    };
    assert_eq!(after(&[]), Creation::Open);
    assert_eq!(after(&[&requested]), Creation::Open);
    assert_eq!(after(&[&requested, &started]), Creation::Made);
    assert_eq!(after(&[&requested, &started, &stop]), Creation::Made);
    let again = [&requested, &started, &requested, &failed];
    assert_eq!(after(&again), Creation::Made);
    assert_eq!(after(&[&requested, &failed]), Creation::Failed);
    assert_eq!(after(&[&requested, &stop]), Creation::Failed);
}

/// Goal: the stream of a key and the hash of a request tell nothing without the server's key, and
/// differ wherever organization, sandbox, key or request do.
#[test]
fn hashes_are_keyed_and_stand_for_one_request_of_one_organization() {
    let (ours, theirs) = (OrgId::generate(), OrgId::generate());
    let (ours, theirs) = (ours.to_string(), theirs.to_string());
    let inside = SandboxId::generate().to_string();
    let of = |server: u8, scope: &String, key: &str, request: u8| {
        let keyed = Keyed::new(key, [request; 32]).unwrap();
        hashes(&[server; 32], scope, &keyed).unwrap()
    };
    let one = of(1, &ours, "k", 1);
    assert_eq!(one, of(1, &ours, "k", 1));
    let (stream, request) = &one;
    assert_eq!(of(1, &ours, "k", 2).0, *stream, "a key has one stream");
    for (server, org, key, body) in [
        (2, &ours, "k", 1),
        (1, &theirs, "k", 1),
        (1, &inside, "k", 1),
        (1, &ours, "l", 1),
    ] {
        let other = of(server, org, key, body);
        assert_ne!(other.0, *stream);
        assert_ne!(other.1, *request);
    }
    assert_ne!(of(1, &ours, "k", 2).1, *request);
}

#[test]
fn keys_are_printable_and_bounded() {
    for good in ["a", "~", "{\"a\": 1}", &"k".repeat(KEY_CHARS_MAX)] {
        assert!(Keyed::new(good, [0; 32]).is_some(), "{good}");
    }
    for bad in [
        "",
        "a\tb",
        "a\0",
        "\u{7f}",
        "é",
        &"k".repeat(KEY_CHARS_MAX + 1),
    ] {
        assert!(Keyed::new(bad, [0; 32]).is_none(), "{bad:?}");
    }
}

/// Goal: of many commands that take one key at once, exactly one is recorded, and with it its own
/// entity and nothing of the others.
#[actix_rt::test]
async fn a_key_is_taken_in_the_commit_of_what_it_makes() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions {
        dir: dir.path().to_owned(),
    };
    let log = EventLog::open(options).unwrap();
    let projects: Registry<Project> = Registry::new(log.clone(), Arbiters::start(1));
    let (org, who) = (OrgId::generate(), Actor::system());
    let create = |number: usize| {
        let id = ProjectId::generate();
        let command = ProjectCommand::Create {
            id,
            org,
            settings: ProjectSettings {
                name: Some(format!("p{number}")),
                ..ProjectSettings::default()
            },
            memory_mb_max: 1024,
            at: AT,
        };
        let stream = Project::stream(&id);
        let beside = claim(Expected::NoStream).take(&stream, None).unwrap();
        let (projects, who) = (&projects, &who);
        async move {
            projects
                .execute_beside(&stream, command, who, vec![beside])
                .await
        }
    };
    let outcomes = join_all((0..16).map(create)).await;
    let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let lost = outcomes.iter().filter(|outcome| {
        matches!(outcome, Err(Failure::Append(AppendError::Conflict { stream, .. }))
            if stream.as_str() == "idem-x")
    });
    assert_eq!((won, lost.count()), (1, 15));
    let events = log.read_all(1, 100).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|event| &*event.kind).collect();
    assert_eq!(
        kinds,
        [
            "project.created.v1",
            "name.claimed.v1",
            "idempotency.recorded.v1"
        ]
    );
    assert!(events.iter().all(|event| event.commit == 1));
    log.close().await;
}
