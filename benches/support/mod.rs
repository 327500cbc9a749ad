//! What the benchmarks of loading and restarting share: made-up histories, and appending them.

use opencomputer::events::families::{
    EgressDecided, EgressEvent, Family, KeyCreated, Layer, LayerKind, OrgCreated, OrgEvent,
    ProjectCreated, ProjectEvent, ProjectUpdated, SandboxCreated, SandboxEvent, SandboxSealed,
    Scope, SealedEntry, SecretRotated, SecretSet, StartRequested, Started, StopReason,
    StopRequested, Stopped, StoreCreated, StoreEvent, TimeoutSet,
};
use opencomputer::events::{
    Actor, Append, COMMIT_EVENTS_MAX, EventLog, NewEvent, Sealed, StreamId,
};
use opencomputer::ids::{KeyId, OrgId, ProjectId, SandboxId, SecretId, StoreId};
use serde_json::json;
use time::OffsetDateTime;
use ulid::Ulid;

pub fn at() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH
}

/// Stands for a ciphertext of a usual length.
pub fn sealed() -> Sealed {
    Sealed {
        key_version: 1,
        nonce: "bm9uY2Vub25jZQ==".to_owned(),
        ciphertext: "c2VhbGVk".repeat(12),
    }
}

pub fn new_event(stream: &StreamId, event: &impl Family) -> NewEvent {
    NewEvent {
        id: Ulid::generate(),
        stream: stream.clone(),
        kind: event.kind().into(),
        data: event.data().expect("event data"),
    }
}

/// One command with all of `events`.
pub fn append_of(events: Vec<NewEvent>) -> Append {
    Append {
        command: Ulid::generate(),
        expected: Vec::new(),
        events,
        actor: Actor::system(),
        correlation: None,
        causation: None,
    }
}

/// Collects events and appends them in commits as large as may be, one while the next is made up.
pub struct Filler {
    log: EventLog,
    events: Vec<NewEvent>,
    under_way: Option<tokio::task::JoinHandle<()>>,
    pub appended: usize,
}

impl Filler {
    pub fn new(log: EventLog) -> Self {
        Self {
            log,
            events: Vec::new(),
            under_way: None,
            appended: 0,
        }
    }

    pub async fn add(&mut self, stream: &StreamId, event: &impl Family) {
        self.events.push(new_event(stream, event));
        self.appended += 1;
        if self.events.len() == COMMIT_EVENTS_MAX {
            self.flush().await;
        }
    }

    async fn flush(&mut self) {
        if let Some(before) = self.under_way.take() {
            before.await.expect("appended");
        }
        let events = std::mem::take(&mut self.events);
        if !events.is_empty() {
            let log = self.log.clone();
            self.under_way = Some(tokio::spawn(async move {
                log.append(append_of(events)).await.expect("appended");
            }));
        }
    }

    /// Waits until all of it is in the log.
    pub async fn finish(mut self) {
        self.flush().await;
        self.flush().await;
    }
}

#[allow(dead_code)]
pub fn organization(org: OrgId) -> Vec<OrgEvent> {
    vec![
        OrgEvent::Created(OrgCreated {
            org_id: org,
            name: "bench".to_owned(),
            at: at(),
        }),
        OrgEvent::KeyCreated(KeyCreated {
            key_id: KeyId::generate(),
            name: "first".to_owned(),
            prefix: "osb_00000000".to_owned(),
            sha256: "ab".repeat(32),
            scope: Scope::Admin,
            target: None,
            expires_at: None,
            rate: None,
            at: at(),
        }),
    ]
}

/// A project of `events` events: made, then secrets set over and over, resized now and then.
pub fn project(org: OrgId, id: ProjectId, events: usize) -> Vec<ProjectEvent> {
    let created = ProjectEvent::Created(ProjectCreated {
        project_id: id,
        org_id: org,
        name: format!("project {id}"),
        template: "base".to_owned(),
        cpu_count: 1,
        memory_mb: 1024,
        timeout_sec: 300,
        egress_allowlist: vec!["*.example.com".to_owned()],
        at: at(),
    });
    let change = |number: usize| match number % 8 {
        0 => ProjectEvent::Updated(ProjectUpdated {
            name: None,
            template: None,
            cpu_count: Some(2),
            memory_mb: None,
            timeout_sec: Some(600),
            egress_allowlist: None,
            at: at(),
        }),
        _ => ProjectEvent::SecretSet(secret(number)),
    };
    std::iter::once(created)
        .chain((1..events).map(change))
        .collect()
}

fn secret(number: usize) -> SecretSet {
    SecretSet {
        secret_id: SecretId::generate(),
        name: format!("SECRET_{}", number % 12),
        allowed_hosts: vec!["api.example.com".to_owned()],
        sealed: sealed(),
        at: at(),
        placement: None,
    }
}

#[allow(dead_code)]
pub fn store(org: OrgId, id: StoreId, events: usize) -> Vec<StoreEvent> {
    let created = StoreEvent::Created(StoreCreated {
        store_id: id,
        org_id: org,
        name: format!("store {id}"),
        egress_allowlist: Vec::new(),
        at: at(),
    });
    let sets = (1..events).map(|number| StoreEvent::SecretSet(secret(number)));
    std::iter::once(created).chain(sets).collect()
}

pub fn timeout(seconds: u32) -> SandboxEvent {
    SandboxEvent::TimeoutSet(TimeoutSet {
        timeout_sec: seconds,
        at: at(),
    })
}

fn entry(number: usize, version: u64) -> SealedEntry {
    SealedEntry {
        name: format!("SECRET_{number}"),
        token: format!("osb_sealed_{number:032x}"),
        allowed_hosts: vec!["api.example.com".to_owned()],
        layer_id: "00000000-0000-7000-8000-000000000001".to_owned(),
        version,
        sealed: sealed(),
        placement: None,
    }
}

/// A sandbox of `events` events: made, started, given new values and restarted, perhaps stopped.
pub fn sandbox(org: OrgId, id: &SandboxId, events: usize, stops: bool) -> Vec<SandboxEvent> {
    let intent = Ulid::generate();
    let start = SandboxEvent::StartRequested(StartRequested {
        intent,
        cause: opencomputer::events::families::StartCause::Created,
        checkpoint: None,
        at: at(),
    });
    let started = SandboxEvent::Started(Started {
        intent,
        limits: json!({ "memory": "enforced", "cpu": "enforced", "disk": "not enforced" }),
        at: at(),
    });
    let mut life = vec![
        SandboxEvent::Created(SandboxCreated {
            sandbox_id: id.clone(),
            org_id: org,
            template: "base".to_owned(),
            cpu_count: 1,
            memory_mb: 1024,
            disk_mb: 20480,
            timeout_sec: 300,
            port: 80,
            network_enabled: true,
            alias: None,
            metadata: [("team".to_owned(), "agents".to_owned())].into(),
            layers: vec![Layer {
                kind: LayerKind::Project,
                id: "00000000-0000-7000-8000-000000000001".to_owned(),
                name: "api".to_owned(),
            }],
            egress_allowlist: vec!["*.example.com".to_owned()],
            own_allowlist: None,
            origin: None,
            builds: None,
            at: at(),
        }),
        SandboxEvent::Sealed(SandboxSealed {
            secrets: (0..6).map(|number| entry(number, 1)).collect(),
            ca_certificate: "-----BEGIN CERTIFICATE-----\n".repeat(16),
            ca_key: sealed(),
            envs: sealed(),
            image: None,
        }),
        start.clone(),
        started.clone(),
    ];
    let end = events.saturating_sub(if stops { 2 } else { 0 });
    while life.len() < end {
        life.push(match life.len() % 10 {
            8 => start.clone(),
            9 => started.clone(),
            0..4 => timeout(600),
            number => SandboxEvent::SecretRotated(SecretRotated {
                entry: entry(number % 6, life.len() as u64),
                at: at(),
            }),
        });
    }
    if stops {
        life.push(SandboxEvent::StopRequested(StopRequested {
            intent,
            reason: StopReason::UserRequested,
            at: at(),
        }));
        life.push(SandboxEvent::Stopped(Stopped { intent, at: at() }));
    }
    life
}

#[allow(dead_code)]
pub fn egress(org: OrgId, id: &SandboxId) -> EgressEvent {
    let decision = json!({ "host": "api.example.com", "port": 443, "method": "POST",
        "secrets": ["SECRET_1"], "decision": "allowed", "bytes": 1234 });
    EgressEvent::Decided(EgressDecided {
        sandbox_id: id.clone(),
        org_id: org,
        decisions: vec![decision; 2],
    })
}
