//! What the benchmarks need of this room and nobody else: entities without a platform around them.
//! Not part of the interface.

use std::sync::Arc;

use time::OffsetDateTime;

use super::loading::Source;
use super::project::{Project, ProjectCommand, ProjectSettings};
use super::registry::{Arbiters, Registry};
use super::sandbox::Sandbox;
use super::{Failure, aggregate::Aggregate};
use crate::events::{Actor as Who, EventLog, Snapshots, StreamId};
use crate::ids::{OrgId, ProjectId};

/// Loads a state; also tells how many events were read for it. A state worth keeping is kept by
/// the time this returns.
pub async fn load_project(
    log: &EventLog,
    snapshots: &Snapshots,
    stream: &StreamId,
) -> Result<(Arc<Project>, u64), Failure> {
    load(log, snapshots, stream).await
}

/// The same of a sandbox.
pub async fn load_sandbox(
    log: &EventLog,
    snapshots: &Snapshots,
    stream: &StreamId,
) -> Result<(Arc<Sandbox>, u64), Failure> {
    load(log, snapshots, stream).await
}

async fn load<A: Aggregate>(
    log: &EventLog,
    snapshots: &Snapshots,
    stream: &StreamId,
) -> Result<(Arc<A>, u64), Failure> {
    let source = Source {
        log: log.clone(),
        snapshots: snapshots.clone(),
    };
    let mut loaded = source.load::<A>(stream).await?;
    source.keep(stream, &mut loaded);
    snapshots.settled().await;
    Ok((loaded.state, loaded.read))
}

/// The projects of a server.
pub struct Projects(Registry<Project>);

impl Projects {
    /// None of them is in memory; must run inside an actix system.
    pub fn new(log: EventLog, snapshots: Snapshots) -> Self {
        Self(Registry::with_snapshots(log, snapshots, Arbiters::start(2)))
    }

    /// A command from the door's view: decided, recorded, applied.
    pub async fn resize(&self, org: OrgId, id: ProjectId, cpu_count: i64) -> Result<(), Failure> {
        let command = ProjectCommand::Update {
            org,
            settings: ProjectSettings {
                cpu_count: Some(cpu_count),
                ..ProjectSettings::default()
            },
            memory_mb_max: 1024,
            at: OffsetDateTime::now_utc(),
        };
        let (stream, who) = (Project::stream(&id), Who::api(org, None));
        self.0.execute(&stream, command, &who).await.map(drop)
    }

    /// Reads an entity, which is in memory then.
    pub async fn touch(&self, stream: &StreamId) -> Result<(), Failure> {
        self.0.inspect(stream).await.map(drop)
    }

    /// How many are in memory.
    pub fn resident(&self) -> usize {
        self.0.resident()
    }
}
