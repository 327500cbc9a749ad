//! The present against the past: live read models, replays, histories and entities must agree, on
//! everything they hold.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::Value;

use super::world::{Act, World, any_act, with_log};
use super::{org, other_org};
use crate::actors::catalog::Catalog;
use crate::actors::history::{History, Moment, Past};
use crate::actors::model::Model;
use crate::actors::secrets::Secrets;
use crate::events::{EventLog, Recorded, StreamId};
use crate::ids::OrgId;

/// Acts between two looks at the live model.
const LOOK_EVERY: usize = 5;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Goal: after any commands of two organizations, at every point the live model was looked at,
    /// a replay up to that point gives the same model, and so does what a start fills its models with; the history has what the entities have; an
    /// organization's history is its part of the whole and shows no ciphertext.
    #[test]
    fn live_feed_replay_history_and_entities_agree(
        acts in prop::collection::vec(any_act(), 1..70)
    ) {
        with_log(|log| play(log, acts));
    }
}

async fn play(log: EventLog, acts: Vec<(Act, bool)>) {
    let live = Arc::new(Catalog::default());
    let (following, followed) = (live.clone(), log.clone());
    actix_rt::spawn(async move { following.follow(followed).await });
    let mut world = World::new(log.clone());
    let mut looks = Vec::new();
    for (index, (act, theirs)) in acts.iter().enumerate() {
        world.act(act, *theirs).await;
        if index % LOOK_EVERY == 0 || index + 1 == acts.len() {
            let head = log.head().position;
            assert!(live.caught_up(head).await && live.position() == head);
            looks.push((head, live.look(dump)));
        }
    }
    let events = everything(&log).await;
    replays_agree(&events, &looks);
    fills_agree(&log, &live).await;
    histories_agree(&log, &events, &looks).await;

    let mut past = Past::new(None);
    events.iter().for_each(|event| past.take(event));
    live.look(|live| rows_agree(live, &past.model));
    entities_agree(&world, &events, &past.model).await;
    names_are_unique(&live);
}

/// The whole model as text: every field of every row, in order.
fn dump(model: &Model) -> String {
    format!("{model:#?}")
}

async fn everything(log: &EventLog) -> Vec<Arc<Recorded>> {
    let mut events: Vec<Arc<Recorded>> = Vec::new();
    loop {
        let from = events.last().map_or(1, |event| event.position + 1);
        // An odd size, so that pages end anywhere.
        let page = log.read_all(from, 7).await.expect("read");
        if page.is_empty() {
            return events;
        }
        events.extend(page);
    }
}

/// A replay into empty models passes through the states the live model was in.
fn replays_agree(events: &[Arc<Recorded>], looks: &[(u64, String)]) {
    let rebuilt = Catalog::default();
    let mut looks = looks.iter().peekable();
    let mut check = |position: u64| {
        while let Some((_, seen)) = looks.next_if(|(at, _)| *at == position) {
            assert_eq!(&rebuilt.look(dump), seen, "at position {position}");
        }
    };
    check(0);
    for event in events {
        rebuilt.apply(event);
        check(event.position);
    }
    assert!(looks.next().is_none(), "every look was compared");
    assert_eq!(rebuilt.skipped(), 0);
}

/// What a server's start fills its models with is what the live model holds.
async fn fills_agree(log: &EventLog, live: &Catalog) {
    let filled = Arc::new(Catalog::default());
    filled.replay(log).await.expect("the log proves itself");
    assert_eq!(filled.look(dump), live.look(dump));
    assert_eq!(filled.position(), live.position());
}

/// What the history tells of a point is what the events up to there add up to; whichever way it is
/// asked.
async fn histories_agree(log: &EventLog, events: &[Arc<Recorded>], looks: &[(u64, String)]) {
    let history = History::new(log.clone());
    let ask = async |org: Option<OrgId>, at: Moment, entity: Option<&str>| {
        let state = history.state(org, at, entity).await;
        state.expect("the log is there")
    };
    for (position, _) in looks {
        let mut past = Past::new(None);
        let until = |event: &&Arc<Recorded>| event.position <= *position;
        events
            .iter()
            .take_while(until)
            .for_each(|event| past.take(event));
        let whole = ask(None, Moment::Position(*position), None).await;
        assert_eq!(whole, past.render());
        let text = whole.to_string();
        assert!(
            !text.contains("CIPHERTEXT") && !text.contains("sha256"),
            "{text}"
        );
        let last = events.iter().rfind(until);
        if let Some(last) = last {
            // Events of one commit have one time, and a look is always after a whole commit; others
            // may have come in the same millisecond.
            let by_time = ask(None, Moment::Time(last.recorded_at), None).await;
            let later = events
                .iter()
                .rfind(|event| event.recorded_at <= last.recorded_at);
            assert_eq!(by_time["position"], later.map_or(0, |event| event.position));
        }
        for org in [org(), other_org()] {
            let own = ask(Some(org), Moment::Position(*position), None).await;
            for list in ["organizations", "projects", "secretStores", "sandboxes"] {
                assert_eq!(own[list], part_of(&whole[list], list, &org), "{list}");
                for row in own[list].as_array().into_iter().flatten() {
                    let id = row["id"].as_str().expect("an id");
                    let one = ask(Some(org), Moment::Position(*position), Some(id)).await;
                    assert_eq!(one[list], serde_json::json!([row]), "{id} alone");
                }
            }
        }
    }
}

/// The rows of a list that are one organization's.
fn part_of(rows: &Value, list: &str, org: &OrgId) -> Value {
    let owner = if list == "organizations" {
        "id"
    } else {
        "orgId"
    };
    let rows = rows.as_array().into_iter().flatten();
    let own = rows.filter(|row| row[owner] == org.to_string());
    own.cloned().collect()
}

/// The live rows are the history's rows without secrets.
fn rows_agree(live: &Model, past: &Model) {
    let projects = past.projects.iter().map(|(id, row)| {
        let mut row = row.clone();
        row.secrets = Secrets::default();
        (id, row)
    });
    let stores = past.stores.iter().map(|(id, row)| {
        let mut row = row.clone();
        row.secrets = Secrets::default();
        (id, row)
    });
    let sandboxes = past.sandboxes.iter().map(|(id, row)| {
        let mut row = row.clone();
        row.sealed = None;
        row.revoked.clear();
        (id, row)
    });
    let text = |rows: Vec<String>| rows.join("\n");
    let pair =
        |row: (&dyn std::fmt::Debug, &dyn std::fmt::Debug)| format!("{:?} {:?}", row.0, row.1);
    assert_eq!(
        text(
            live.projects
                .iter()
                .map(|(id, row)| pair((id, row)))
                .collect()
        ),
        text(projects.map(|(id, row)| pair((id, &row))).collect())
    );
    assert_eq!(
        text(
            live.stores
                .iter()
                .map(|(id, row)| pair((id, row)))
                .collect()
        ),
        text(stores.map(|(id, row)| pair((id, &row))).collect())
    );
    assert_eq!(
        text(
            live.sandboxes
                .iter()
                .map(|(id, row)| pair((id, row)))
                .collect()
        ),
        text(sandboxes.map(|(id, row)| pair((id, &row))).collect())
    );
    assert_eq!(format!("{:?}", live.images), format!("{:?}", past.images));
    assert_eq!(format!("{:?}", live.orgs), format!("{:?}", past.orgs));
    assert_eq!(format!("{:?}", live.keys), format!("{:?}", past.keys));
    assert_eq!(
        format!("{:?}", live.versions),
        format!("{:?}", past.versions)
    );
    assert_eq!((live.skipped, past.skipped), (0, 0));
}

/// Each entity's own state is the history's row, but for the ciphertexts.
async fn entities_agree(world: &World, events: &[Arc<Recorded>], past: &Model) {
    let streams: BTreeSet<&StreamId> = events.iter().map(|event| &event.stream).collect();
    let mut compared = 0;
    for stream in streams {
        let Some(entity) = world.entity(stream).await else {
            continue;
        };
        let entity = entity
            .replace("CIPHERTEXT", "")
            .replace("bm9uY2U=", "")
            .replace("SCRIPT", "");
        let (family, id) = stream.parts().expect("a family");
        let row = match family {
            "org" => format!("{:#?}", past.orgs[&super::id(id)]),
            "project" => format!("{:#?}", past.projects[&super::id(id)]),
            "store" => format!("{:#?}", past.stores[&super::id(id)]),
            "checkpoint" => format!("{:#?}", past.checkpoints[&super::id(id)]),
            "image" => format!("{:#?}", past.images[&super::id(id)]),
            _ => format!("{:#?}", past.sandboxes[&super::id(id)]),
        };
        assert_eq!(row, entity, "{stream}");
        compared += 1;
    }
    let rows = past.orgs.len() + past.projects.len() + past.stores.len() + past.sandboxes.len();
    let rows = rows + past.checkpoints.len() + past.images.len();
    assert_eq!(compared, rows, "every row has its entity");
}

fn names_are_unique(live: &Catalog) {
    for org in [org(), other_org()] {
        let projects = live.projects(&org);
        let projects = projects.iter().filter_map(|row| row.visible_to(&org).ok());
        let names: Vec<_> = projects.map(|row| &row.name).collect();
        let stores = live.stores(&org);
        let stores = stores.iter().filter_map(|row| row.visible_to(&org).ok());
        let others: Vec<_> = stores.map(|row| &row.name).collect();
        for names in [names, others] {
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        }
    }
}
