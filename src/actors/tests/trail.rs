//! The audit trail: pages either way, searches and feeds, and who may see what.

use std::sync::Arc;

use serde_json::json;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use ulid::Ulid;

use super::world::with_log;
use super::{org, other_org};
use crate::actors::trail::{self, Cursor, Filter, Follow, Wanted, at, find, page};
use crate::events::{Actor, Append, EventLog, NewEvent, Recorded, StreamId};
use crate::ids::{KeyId, OrgId};

async fn note(log: &EventLog, org: Option<OrgId>, stream: &str, kind: &str, key: Option<KeyId>) {
    let mut append = note_of(org, stream, kind);
    append.actor.key = key;
    append.actor.kind = if key.is_some() { "api" } else { "system" }.into();
    log.append(append).await.expect("appended");
}

fn note_of(org: Option<OrgId>, stream: &str, kind: &str) -> Append {
    Append {
        command: Ulid::generate(),
        expected: Vec::new(),
        events: vec![NewEvent {
            id: Ulid::generate(),
            stream: StreamId::new(stream).expect("a stream"),
            kind: kind.to_owned().into(),
            data: json!({ "sealed": { "ciphertext": "c2VjcmV0", "nonce": "x" }, "list": [1] }),
        }],
        actor: Actor {
            org,
            key: None,
            kind: "system".into(),
        },
        correlation: None,
        causation: None,
    }
}

/// Events of two organizations and of none, some in the same millisecond, some not.
async fn filled(log: &EventLog, count: usize) {
    for number in 0..count {
        let org = [Some(org()), Some(other_org()), Some(org()), None][number % 4];
        let (stream, kind) = [
            ("project-1", "project.created.v1"),
            ("sandbox-2", "sandbox.created.v1"),
            ("egress-1", "egress.decided.v1"),
        ][number % 3];
        let key = (number % 2 == 0).then(|| super::id("00000000-0000-7000-8000-0000000000f1"));
        note(log, org, stream, kind, key).await;
        if number % 10 == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
}

fn positions(events: &[Arc<Recorded>]) -> Vec<u64> {
    events.iter().map(|event| event.position).collect()
}

/// All pages of a filter, joined.
async fn joined(log: &EventLog, filter: &Filter, mut cursor: Cursor, limit: usize) -> Vec<u64> {
    let mut all = Vec::new();
    loop {
        let page = page(log, filter, cursor, limit).await.expect("read");
        assert!(page.events.len() <= limit);
        all.extend(positions(&page.events));
        cursor = match (cursor, page.next) {
            (_, None) => return all,
            (Cursor::Before(_), Some(next)) => Cursor::Before(Some(next)),
            (Cursor::After(_), Some(next)) => Cursor::After(next),
        };
    }
}

/// Goal: pages of any size, either way, join to exactly the events that the filter takes, and no
/// filter shows an event of another organization. Method: against the plain reading of the log.
#[test]
fn pages_join_to_what_the_filter_takes() {
    with_log(async |log| {
        filled(&log, 60).await;
        let events = log.read_all(1, 100).await.expect("read");
        let (first, last) = (events[20].recorded_at, events[40].recorded_at);
        let scopes = [Some(org()), Some(other_org()), None];
        let with = |change: fn(&mut Filter)| {
            move |org| {
                let mut filter = Filter::of(org);
                change(&mut filter);
                filter
            }
        };
        let mut filters: Vec<Filter> = Vec::new();
        for change in [
            with(|_| {}),
            with(|filter| filter.entity = Some("1".to_owned())),
            with(|filter| filter.entity = Some("sandbox-2".to_owned())),
            with(|filter| filter.kind = Some("egress.decided".to_owned())),
            with(|filter| filter.kind = Some("egress.decided.v1".to_owned())),
            with(|filter| filter.kind = Some("project.".to_owned())),
            with(|filter| filter.kind = Some("project".to_owned())),
            with(|filter| filter.actor = Some("system".to_owned())),
            with(|filter| filter.actor = Some("00000000-0000-7000-8000-0000000000f1".to_owned())),
        ] {
            filters.extend(scopes.map(change));
        }
        for (from, to) in [
            (Some(first), None),
            (None, Some(last)),
            (Some(first), Some(last)),
        ] {
            filters.extend(scopes.map(|org| Filter {
                from,
                to,
                ..Filter::of(org)
            }));
        }
        for filter in &filters {
            filter.check().expect("well-formed");
            let taken = events.iter().filter(|event| filter.takes(event));
            let expected: Vec<u64> = taken.map(|event| event.position).collect();
            let backwards: Vec<u64> = expected.iter().rev().copied().collect();
            for limit in [1, 7, 500] {
                let down = joined(&log, filter, Cursor::Before(None), limit).await;
                assert_eq!(down, backwards, "{filter:?} by {limit}");
                let up = joined(&log, filter, Cursor::After(0), limit).await;
                assert_eq!(up, expected, "{filter:?} by {limit}");
            }
            if let Some(org) = filter.org {
                let own = |position: &u64| events[*position as usize - 1].actor.org == Some(org);
                assert!(expected.iter().all(own));
            }
        }
        assert!(
            joined(&log, &filters[0], Cursor::After(999), 5)
                .await
                .is_empty()
        );
    });
}

#[test]
fn malformed_filters_are_named() {
    let check = |change: fn(&mut Filter)| {
        let mut filter = Filter::of(None);
        change(&mut filter);
        filter.check().map_err(|bad| bad.to_string())
    };
    let refused = |field: &str, outcome: Result<(), String>| {
        let text = outcome.expect_err("refused");
        assert!(text.starts_with(&format!("{field} must")), "{text}");
    };
    refused(
        "entity",
        check(|filter| filter.entity = Some(String::new())),
    );
    refused(
        "entity",
        check(|filter| filter.entity = Some("a b".to_owned())),
    );
    refused(
        "type",
        check(|filter| filter.kind = Some("Project".to_owned())),
    );
    refused(
        "actor",
        check(|filter| filter.actor = Some("a/b".to_owned())),
    );
    refused(
        "from",
        check(|filter| {
            filter.from = Some(super::at(1));
            filter.to = Some(super::at(0));
        }),
    );
}

/// Goal: one event is found by position and by id, by its own organization only; no ciphertext is
/// shown, and the hashes that are shown are the chain's.
#[test]
fn one_event_is_shown_to_its_own_organization() {
    with_log(async |log| {
        filled(&log, 40).await;
        let events = log.read_all(1, 100).await.expect("read");
        for event in &events {
            for scope in [None, Some(org()), Some(other_org())] {
                let filter = Filter::of(scope);
                let seen = scope.is_none() || event.actor.org == scope;
                let by_position = at(&log, &filter, event.position).await.expect("read");
                let by_id = find(&log, &filter, event.id).await.expect("read");
                let expected = seen.then_some(event.position);
                assert_eq!(by_position.map(|found| found.position), expected);
                assert_eq!(by_id.map(|found| found.position), expected);
            }
            let link = log
                .commit_link(event.position)
                .await
                .expect("read")
                .expect("there");
            let whole = trail::render_whole(event, &link);
            assert_eq!(whole["data"], json!({ "sealed": "(sealed)", "list": [1] }));
            let chain =
                crate::events::chain::chain_hash(event.commit, &link.previous, &link.events);
            assert_eq!(whole["chain"]["hash"], hex::encode(chain));
            assert_eq!(whole["chain"]["events"], json!([whole["contentHash"]]));
        }
        let nobody = Filter::of(None);
        for position in [0, 41, u64::MAX] {
            assert!(at(&log, &nobody, position).await.expect("read").is_none());
            assert!(log.commit_link(position).await.expect("read").is_none());
        }
        for unknown in [Ulid::generate(), Ulid::nil(), Ulid::from(u128::MAX)] {
            assert!(find(&log, &nobody, unknown).await.expect("read").is_none());
        }
    });
}

/// Goal: a time leads to the last event recorded by then, also where several share a millisecond.
#[test]
fn a_time_leads_to_the_last_event_by_then() {
    with_log(async |log| {
        let now = time::OffsetDateTime::now_utc();
        assert_eq!(log.position_at(now).await.expect("read"), 0);
        filled(&log, 50).await;
        let events = log.read_all(1, 100).await.expect("read");
        let check = async |time: time::OffsetDateTime| {
            let by_then = events.iter().filter(|event| event.recorded_at <= time);
            let found = log.position_at(time).await.expect("read");
            assert_eq!(found, by_then.count() as u64);
        };
        for event in &events {
            for nudge in [-1, 0, 1] {
                check(event.recorded_at + Duration::nanoseconds(nudge)).await;
            }
        }
        check(now - Duration::days(9)).await;
        check(now + Duration::days(9)).await;
    });
}

/// Goal: a feed gives what was there and what comes, each event once, only its own organization's,
/// from wherever it is taken up again.
#[test]
fn a_feed_has_no_gap_and_no_double() {
    with_log(async |log| {
        filled(&log, 30).await;
        let filter = Filter::of(Some(org()));
        let mut feed = Follow::new(&log, filter.clone(), Some(0));
        let mut late = Follow::new(&log, filter.clone(), None);
        let (writer, end) = (log.clone(), 60);
        let writing = actix_rt::spawn(async move { filled(&writer, 30).await });
        let mut seen = Vec::new();
        // Every second event is the organization's.
        let expected: Vec<u64> = (1..=end).step_by(2).collect();
        while seen.len() < expected.len() {
            // Cut off now and then, and taken up behind the last one that was had.
            if seen.len() % 5 == 4 {
                feed = Follow::new(&log, filter.clone(), seen.last().copied());
            }
            seen.push(feed.next().await.expect("an event").position);
        }
        assert_eq!(seen, expected);
        writing.await.expect("written");
        let first = late.next().await.expect("an event").position;
        assert_eq!(
            Some(&first),
            expected.iter().find(|position| **position > 30)
        );
    });
}

/// Goal: what was announced and never decided is told as announced and not as sent, once, whichever
/// way and however it is paged; what was decided, be it long after, is told as it was decided, and an
/// old announcement that names no request is not told at all.
#[test]
fn announcements_without_a_decision_are_told() {
    with_log(async |log| {
        let requests: Vec<_> = (0..3).map(|_| Ulid::generate().to_string()).collect();
        let at = OffsetDateTime::UNIX_EPOCH.format(&Rfc3339).expect("a time");
        let entry = |more: serde_json::Value| {
            let mut entry = json!({ "at": at, "host": "a.test", "port": 443, "secrets": ["KEY"] });
            let fields = entry.as_object_mut().expect("an object");
            fields.extend(more.as_object().expect("an object").clone());
            entry
        };
        let put = async |kind: &'static str, list: &str, entries: Vec<serde_json::Value>| {
            let mut append = note_of(Some(org()), "egress-sb-1", kind);
            append.events[0].data = json!({ "sandboxId": "sb-1", list: entries });
            log.append(append).await.expect("appended");
        };
        let sending = |request: &String| entry(json!({ "request": request }));
        let mut announced: Vec<_> = requests.iter().map(sending).collect();
        announced.push(entry(json!({})));
        put("egress.announced.v1", "sending", announced).await;
        let decision = |request: &String| {
            entry(json!({ "outcome": "allowed", "announced": request, "times": 1 }))
        };
        put(
            "egress.decided.v1",
            "decisions",
            vec![decision(&requests[0])],
        )
        .await;
        for _ in 0..80 {
            put("egress.decided.v1", "decisions", Vec::new()).await;
        }
        put(
            "egress.decided.v1",
            "decisions",
            vec![decision(&requests[2])],
        )
        .await;
        let wanted = Wanted {
            org: Some(org()),
            ..Wanted::default()
        };
        for limit in [1, 500] {
            for mut cursor in [Cursor::Before(None), Cursor::After(0)] {
                let mut told = Vec::new();
                loop {
                    let page = trail::uses(&log, &wanted, cursor, limit).await;
                    let page = page.expect("read");
                    told.extend(page.uses);
                    let Some(next) = page.next else { break };
                    cursor = match cursor {
                        Cursor::Before(_) => Cursor::Before(Some(next)),
                        Cursor::After(_) => Cursor::After(next),
                    };
                }
                let fates = told
                    .iter()
                    .map(|one| (one["outcome"].as_str(), one["sent"].as_bool()));
                let mut fates: Vec<_> = fates.collect();
                fates.sort_unstable();
                let allowed = (Some("allowed"), Some(true));
                let expected = [allowed, allowed, (Some("announced"), Some(false))];
                assert_eq!(fates, expected, "{limit} {cursor:?}");
            }
        }
    });
}
