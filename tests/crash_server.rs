//! `kill -9` of the server under load.
//!
//! Fault model: the process ends at any instruction, the machine goes on (what the kernel was given
//! reaches the disk). Held: what was acknowledged is there with its content; what was not is there
//! as a whole or not at all; the proof holds; no half-made sandbox stays.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::offline::Offline;
use common::{Api, Server, world};
use opencomputer::events::families::{Family, ProjectDeleted, ProjectEvent, SecretSet, StoreEvent};
use opencomputer::events::{Recorded, SealContext, StreamId};
use opencomputer::ids::{OrgId, ProjectId};
use opencomputer::secret::SecretValue;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

const ROUNDS: u32 = 10;
const WRITERS: usize = 40;
/// Create a project, update it, set its secret, create a store, set its entry.
const WRITES_EACH: usize = 5;

/// What an object's content may be after the crash.
#[derive(Clone, Debug)]
struct Object {
    /// The last content that was acknowledged; `None`: it was deleted, or nothing was.
    acknowledged: Option<Value>,
    /// The content of a write whose reply never came.
    in_flight: Option<Value>,
}

/// What one round's writers were told, by collection and name.
#[derive(Default)]
struct Ledger {
    objects: Mutex<BTreeMap<(&'static str, String), Object>>,
    /// Streams whose secret was sent, and whether that was acknowledged.
    secrets: Mutex<BTreeMap<String, bool>>,
    acknowledged: AtomicUsize,
}

impl Ledger {
    /// Sends a write of an object and notes what is known of it then. False: the server is gone.
    async fn write(
        &self,
        api: &Api,
        (at, name): (&'static str, &str),
        (method, path): (&str, &str),
        body: &Value,
    ) -> Option<Value> {
        let key = (at, name.to_owned());
        let mut expected = self.object(&key).acknowledged.unwrap_or_else(|| json!({}));
        for (field, value) in body.as_object().expect("an object") {
            expected[field] = value.clone();
        }
        self.note(&key, |object| object.in_flight = Some(expected));
        let reply = api
            .send(method, path, Some(body.to_string().into_bytes()))
            .await
            .ok()?;
        assert!(
            matches!(reply.status, 200 | 201 | 503),
            "{method} {path}: {}",
            reply.text
        );
        if reply.status == 503 {
            return None;
        }
        let found = reply.json();
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
        self.note(&key, |object| {
            *object = Object {
                acknowledged: Some(found.clone()),
                in_flight: None,
            };
        });
        Some(found)
    }

    /// Sets the one secret of a project or store.
    async fn secret(&self, api: &Api, stream: String, path: &str) -> Option<()> {
        let body = json!({ "value": value_of(&stream) })
            .to_string()
            .into_bytes();
        let told = |acknowledged: bool| {
            let mut secrets = self.secrets.lock().expect("not poisoned");
            secrets.insert(stream.clone(), acknowledged);
        };
        told(false);
        let reply = api
            .send("PUT", &format!("{path}/secrets/TOKEN"), Some(body))
            .await
            .ok()?;
        (reply.status == 200).then_some(())?;
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
        told(true);
        Some(())
    }

    fn object(&self, key: &(&'static str, String)) -> Object {
        let objects = self.objects.lock().expect("not poisoned");
        objects.get(key).cloned().unwrap_or(Object {
            acknowledged: None,
            in_flight: None,
        })
    }

    fn note(&self, key: &(&'static str, String), change: impl FnOnce(&mut Object)) {
        let mut objects = self.objects.lock().expect("not poisoned");
        let fresh = || Object {
            acknowledged: None,
            in_flight: None,
        };
        change(objects.entry(key.clone()).or_insert_with(fresh));
    }

    /// Compares what lists and reads say now with what was told before the crash.
    async fn check(&self, api: &Api) {
        let mut rows: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for at in ["/api/projects", "/api/secret-stores"] {
            let list = api.get(at).await.ok(200).json();
            rows.insert(at, list.as_array().expect("a list").clone());
        }
        let objects = self.objects.lock().expect("not poisoned").clone();
        for ((at, name), object) in objects {
            let mut named = rows[at].iter().filter(|row| row["name"] == name.as_str());
            let found = named.next();
            assert!(named.next().is_none(), "{at} {name} is there twice");
            let whole = |wanted: &Value| {
                let mut fields = wanted.as_object().expect("an object").iter();
                let same = |(field, value): (&String, &Value)| {
                    field == "updatedAt" || found.is_some_and(|found| found[field] == *value)
                };
                fields.all(same)
            };
            let fine = match (&object.acknowledged, &object.in_flight) {
                (Some(told), None) => whole(told),
                (Some(told), Some(maybe)) => whole(told) || whole(maybe),
                (None, Some(maybe)) => found.is_none() || whole(maybe),
                (None, None) => found.is_none(),
            };
            assert!(fine, "{at} {name}: told {object:?}, found {found:?}");
        }
    }
}

/// The value that belongs to this stream and no other.
fn value_of(stream: &str) -> String {
    format!("value of {stream}")
}

/// One writer: its writes follow one another, those of 40 writers go side by side.
async fn writer(api: Api, ledger: Arc<Ledger>, round: u32, number: usize) -> Option<()> {
    let name = format!("r{round}-w{number}");
    let project = ledger
        .write(
            &api,
            ("/api/projects", &name),
            ("POST", "/api/projects"),
            &json!({
                "name": name, "cpuCount": 2, "egressAllowlist": ["a.test"],
            }),
        )
        .await?;
    let id = project["id"].as_str()?;
    let path = format!("/api/projects/{id}");
    let update = json!({ "memoryMB": 2048, "egressAllowlist": [format!("{name}.test")] });
    ledger
        .write(&api, ("/api/projects", &name), ("PUT", &path), &update)
        .await?;
    ledger.secret(&api, format!("project-{id}"), &path).await?;
    let stores = "/api/secret-stores";
    let store = json!({ "name": name, "egressAllowlist": [] });
    let store = ledger
        .write(&api, (stores, &name), ("POST", stores), &store)
        .await?;
    let id = store["id"].as_str()?;
    ledger
        .secret(&api, format!("store-{id}"), &format!("{stores}/{id}"))
        .await
}

/// Goal: ten times over, a server killed amid 200 writes keeps every acknowledged one, and shows
/// none in half. At the end every acknowledged secret opens to its value.
#[actix_rt::test]
async fn acknowledged_writes_survive_kill_9() {
    let mut server = Server::start();
    let mut ledgers: Vec<Arc<Ledger>> = Vec::new();
    let given = std::env::var("OC_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(rand::random);
    println!("again with OC_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..ROUNDS {
        let (api, ledger) = (server.api(), Arc::new(Ledger::default()));
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| actix_rt::spawn(writer(api.clone(), ledger.clone(), round, number)))
            .collect();
        // After a random number of replies, and then a random moment that no reply marks.
        let until = random.random_range(0..WRITERS * WRITES_EACH);
        while ledger.acknowledged.load(Ordering::SeqCst) < until {
            assert!(!server.has_ended(), "the server ended by itself");
            actix_rt::time::sleep(Duration::from_micros(200)).await;
        }
        actix_rt::time::sleep(Duration::from_micros(random.random_range(0..4000))).await;
        server.kill();
        for writer in writers {
            writer.await.expect("no writer panicked");
        }
        server.restart();
        ledgers.push(ledger);
        for ledger in &ledgers {
            ledger.check(&server.api()).await;
        }
        server.api().verified_positions().await;
    }
    let acknowledged: usize = ledgers
        .iter()
        .map(|ledger| ledger.acknowledged.load(Ordering::SeqCst))
        .sum();
    println!(
        "{acknowledged} of {} writes acknowledged",
        ROUNDS as usize * WRITERS * WRITES_EACH
    );
    assert!(acknowledged > 0, "nothing was tested");
    assert!(server.stop().success());
    let data = server.data().to_owned();
    std::thread::spawn(move || check_secrets(&data, &ledgers))
        .join()
        .expect("secrets checked");
}

/// Opens the last recorded value of each secret that was set.
fn check_secrets(data: &std::path::Path, ledgers: &[Arc<Ledger>]) {
    let offline = Offline::open(data);
    let mut recorded: BTreeMap<String, (Arc<Recorded>, SecretSet)> = BTreeMap::new();
    for event in offline.events() {
        let set = match &*event.kind {
            "project.secret_set.v1" => match ProjectEvent::decode(&event.kind, &event.data) {
                Ok(ProjectEvent::SecretSet(set)) => set,
                other => panic!("not a secret: {other:?}"),
            },
            "store.secret_set.v1" => match StoreEvent::decode(&event.kind, &event.data) {
                Ok(StoreEvent::SecretSet(set)) => set,
                other => panic!("not a secret: {other:?}"),
            },
            _ => continue,
        };
        recorded.insert(event.stream.to_string(), (event, set));
    }
    let mut opened = 0;
    for ledger in ledgers {
        for (stream, acknowledged) in ledger.secrets.lock().expect("not poisoned").iter() {
            match recorded.get(stream) {
                Some((event, set)) => {
                    let found = offline.unseal(event, &set.name, &set.sealed);
                    assert_eq!(found, value_of(stream).as_bytes(), "{stream}");
                    opened += 1;
                }
                None => assert!(!acknowledged, "{stream}: acknowledged and gone"),
            }
        }
    }
    println!("{opened} secrets opened");
    assert!(opened > 0, "nothing was tested");
}

/// Goal: a delete whose server died between the event and the destruction of the data key is
/// finished by the next server: the value can't be opened any more.
#[actix_rt::test]
async fn a_delete_cut_short_still_destroys_the_key() {
    let mut server = Server::start();
    let api = server.api();
    let id = api.project(&json!({ "name": "p" })).await;
    let path = format!("/api/projects/{id}");
    api.put(&format!("{path}/secrets/TOKEN"), &json!({ "value": "v" }))
        .await
        .ok(200);
    let org: OrgId = api.get("/api/whoami").await.json()["org_id"]
        .as_str()
        .and_then(|id| id.parse().ok())
        .expect("an organization");
    server.kill();
    let stream = StreamId::of("project", id.parse::<ProjectId>().expect("an id"));
    let context = SealContext {
        event_kind: "project.secret_set.v1",
        name: "TOKEN",
    };
    let seals = |data: std::path::PathBuf, delete: bool| {
        let stream = stream.clone();
        let work = move || {
            let offline = Offline::open(&data);
            let value = SecretValue::new(b"v".to_vec());
            let seals = offline.keyring().seal(&stream, &context, &value).is_ok();
            if delete {
                let deleted = ProjectDeleted {
                    at: time::OffsetDateTime::now_utc(),
                };
                offline.append(&stream, Some(org), &[ProjectEvent::Deleted(deleted)]);
            }
            seals
        };
        std::thread::spawn(work)
            .join()
            .expect("the keyring answers")
    };
    let data = server.data().to_owned();
    assert!(seals(data.clone(), true), "the key is there before");
    server.restart();
    server
        .api()
        .get(&path)
        .await
        .refused(404, "project not found");
    server.stop();
    assert!(!seals(data, false), "the key outlived its project");
}

/// Goal: sandboxes made and deleted while the server is killed end up either whole (listed, with a
/// living process) or gone without a trace: no folder, process or control group.
#[actix_rt::test]
async fn no_half_made_sandbox_survives_kill_9() {
    let mut server = Server::start();
    let probe = server.api().post("/api/sandboxes", &json!({})).await;
    if !rustix::process::geteuid().is_root() && probe.status != 201 {
        println!("skipped: sandboxes need root here: {}", probe.text);
        return;
    }
    let kept = probe.ok(201).json()["sandboxID"]
        .as_str()
        .expect("an id")
        .to_owned();
    let guest_start = first_process_start(&server.api(), &kept).await;
    let mut ever = BTreeSet::from([kept.clone()]);
    for round in 0..2 {
        let api = server.api();
        let told = Arc::new(Mutex::new((BTreeSet::new(), BTreeSet::new())));
        let makers: Vec<_> = (0..6)
            .map(|number| actix_rt::spawn(make_and_delete(api.clone(), told.clone(), number)))
            .collect();
        let until = 1 + round * 2;
        for _ in 0..3000 {
            if told.lock().expect("not poisoned").0.len() >= until {
                break;
            }
            actix_rt::time::sleep(Duration::from_millis(5)).await;
        }
        ever.extend(world::folders(server.data()));
        server.kill();
        for maker in makers {
            maker.await.expect("no maker panicked");
        }
        ever.extend(world::folders(server.data()));
        server.restart();
        assert!(ever.len() > 1, "nothing was tested");
        let (made, deleted) = told.lock().expect("not poisoned").clone();
        let list = server
            .api()
            .get("/api/sandboxes?limit=200")
            .await
            .ok(200)
            .json();
        let listed: BTreeSet<String> = list
            .as_array()
            .expect("a list")
            .iter()
            .map(|row| row["sandboxID"].as_str().expect("an id").to_owned())
            .collect();
        assert!(
            listed.contains(&kept),
            "the sandbox from before is still there"
        );
        for id in made.difference(&deleted) {
            assert!(listed.contains(id), "{id} was acknowledged and is gone");
        }
        for id in &deleted {
            assert!(!listed.contains(id), "{id} was deleted and is back");
        }
        // The very same sandbox: the server's death stopped nothing in it.
        assert_eq!(first_process_start(&server.api(), &kept).await, guest_start);
        let traces = world::traces(server.data(), &ever);
        assert_eq!(
            traces.folders, listed,
            "folders are those of the listed sandboxes"
        );
        assert!(traces.groups.is_subset(&listed), "{:?}", traces.groups);
        for id in &listed {
            let run = json!({ "cmd": "echo", "args": ["alive"] });
            let path = format!("/api/sandboxes/{id}/exec/run");
            let reply = server.api().post(&path, &run).await.ok(200).json();
            assert_eq!(reply["stdout"], "alive\n", "{reply}");
        }
    }
    for row in server
        .api()
        .get("/api/sandboxes")
        .await
        .json()
        .as_array()
        .expect("a list")
    {
        let id = row["sandboxID"].as_str().expect("an id");
        server
            .api()
            .delete(&format!("/api/sandboxes/{id}"))
            .await
            .ok(204);
    }
    assert_eq!(
        world::traces(server.data(), &ever),
        world::Traces::default()
    );
}

/// When a sandbox's first process was started, in ticks since boot.
async fn first_process_start(api: &Api, id: &str) -> String {
    let body = json!({ "cmd": "sh", "args": ["-c", "cut -d' ' -f22 /proc/1/stat"] });
    let reply = api
        .post(&format!("/api/sandboxes/{id}/exec/run"), &body)
        .await
        .ok(200)
        .json();
    assert_eq!(reply["exitCode"], 0, "{reply}");
    reply["stdout"].as_str().expect("output").to_owned()
}

type Told = Arc<Mutex<(BTreeSet<String>, BTreeSet<String>)>>;

/// Makes sandboxes, and deletes every second one, until the server is gone.
async fn make_and_delete(api: Api, told: Told, number: usize) -> Option<()> {
    loop {
        let body = json!({ "memoryMB": 128, "alias": format!("maker-{number}") });
        let made = api.send(
            "POST",
            "/api/sandboxes",
            Some(body.to_string().into_bytes()),
        );
        let made = made.await.ok()?;
        (made.status == 201).then_some(())?;
        let id = made.json()["sandboxID"].as_str()?.to_owned();
        told.lock().expect("not poisoned").0.insert(id.clone());
        if number.is_multiple_of(2) {
            // Without a reply it may be either; so it is no longer known as made.
            told.lock().expect("not poisoned").0.remove(&id);
            let gone = api
                .send("DELETE", &format!("/api/sandboxes/{id}"), None)
                .await
                .ok()?;
            (gone.status == 204).then_some(())?;
            let mut told = told.lock().expect("not poisoned");
            told.0.insert(id.clone());
            told.1.insert(id);
        }
    }
}
