//! What tests read and write in the data folder of a server that does not run, through the library.

use std::path::Path;
use std::sync::Arc;

use opencomputer::events::families::{Family, KeyCreated, OrgCreated, OrgEvent, Scope};
use opencomputer::events::{
    Actor, Append, EventLog, Expected, Keyring, LogOptions, NewEvent, Recorded, SealContext,
    Sealed, StreamId, open_keyring,
};
use opencomputer::ids::{KeyId, OrgId};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use ulid::Ulid;

/// The log and the keys of a stopped server.
pub struct Offline {
    runtime: tokio::runtime::Runtime,
    log: Option<EventLog>,
    keyring: Keyring,
}

impl Offline {
    /// Opens both; the server must not run.
    pub fn open(data: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let log = EventLog::open(LogOptions {
            dir: data.join("log"),
        });
        let keyring = open_keyring(&data.join("master.key"), &data.join("keys.db"), true);
        Self {
            runtime: runtime.expect("a runtime"),
            log: Some(log.unwrap_or_else(|error| panic!("the log opens: {error}"))),
            keyring: keyring
                .unwrap_or_else(|error| panic!("the keyring opens: {error}"))
                .0,
        }
    }

    fn log(&self) -> &EventLog {
        self.log.as_ref().expect("open until dropped")
    }

    /// Every event of the log.
    pub fn events(&self) -> Vec<Arc<Recorded>> {
        self.runtime.block_on(async {
            let mut all = Vec::new();
            loop {
                let page = self
                    .log()
                    .read_all(all.len() as u64 + 1, 1000)
                    .await
                    .expect("read");
                if page.is_empty() {
                    return all;
                }
                all.extend(page);
            }
        })
    }

    /// Appends events of one family to one stream, as one commit.
    pub fn append<F: Family>(&self, stream: &StreamId, org: Option<OrgId>, events: &[F]) {
        let record = |event: &F| NewEvent {
            id: Ulid::generate(),
            stream: stream.clone(),
            kind: event.kind().into(),
            data: event.data().expect("event data"),
        };
        let append = Append {
            command: Ulid::generate(),
            expected: vec![(stream.clone(), Expected::Any)],
            events: events.iter().map(record).collect(),
            actor: Actor {
                org,
                ..Actor::system()
            },
            correlation: None,
            causation: None,
        };
        self.runtime
            .block_on(self.log().append(append))
            .expect("appended");
    }

    /// The keys.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Opens a sealed value of an event.
    pub fn unseal(&self, event: &Recorded, name: &str, sealed: &Sealed) -> Vec<u8> {
        let context = SealContext {
            event_kind: &event.kind,
            name,
        };
        let value = self.keyring.unseal(&event.stream, &context, sealed);
        value
            .unwrap_or_else(|error| panic!("{name} opens: {error}"))
            .expose()
            .to_vec()
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        if let Some(log) = self.log.take() {
            // The folder is free for the next server only after this.
            self.runtime.block_on(log.close());
        }
    }
}

/// Puts an organization with one key into the log.
///
/// On a thread of its own: tests may call this inside their own runtime.
pub fn add_org(data: &Path, name: &str, key: &str) {
    let add = || {
        let (org_id, at) = (OrgId::generate(), OffsetDateTime::now_utc());
        let created = OrgCreated {
            org_id,
            name: name.to_owned(),
            at,
        };
        let key = KeyCreated {
            key_id: KeyId::generate(),
            name: "first".to_owned(),
            prefix: key.chars().take(12).collect(),
            sha256: hex::encode(Sha256::digest(key.as_bytes())),
            scope: Scope::Admin,
            target: None,
            expires_at: None,
            rate: None,
            at,
        };
        let events = [OrgEvent::Created(created), OrgEvent::KeyCreated(key)];
        Offline::open(data).append(&StreamId::of("org", org_id), Some(org_id), &events);
    };
    std::thread::scope(|scope| scope.spawn(add).join().expect("the organization is added"));
}
