//! How things were: an organization's objects at any point of the log, rebuilt from the events up
//! to there.
//!
//! The rows are those of the live read models, made by the same step ([`Model`]). Invariants: only
//! events of the asked organization go in (whatever is done to an object is done for the one it
//! belongs to, also by the system itself), and only its rows come out; no ciphertext and no hash of
//! a key is shown; what is gone at that point is not there. A replay of the whole log holds one
//! organization's rows in memory and one page of events, and one runs at a time.

use std::str::FromStr;
use std::time::Duration;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Semaphore;

use super::checkpoint::Checkpoint;
use super::images::Image;
use super::model::{Keep, Model};
use super::org::{Org, OrgKey};
use super::project::Project;
use super::sandbox::{Phase, Sandbox};
use super::secret_store::SecretStore;
use super::secrets::Secrets;
use super::trail::Filter;
use crate::events::families::{KeyTarget, PatchAdded, SecretPlacement};
use crate::events::{EventLog, READ_EVENTS_MAX, ReadError, Recorded, StreamId};
use crate::ids::OrgId;

/// Longest a replay of the whole log waits for the one before it.
const TURN_WAIT_MAX: Duration = match cfg!(test) {
    true => Duration::from_millis(50),
    false => Duration::from_secs(10),
};
/// Families of streams that have a state.
const FAMILIES: [&str; 6] = ["project", "store", "sandbox", "checkpoint", "image", "org"];

/// Text that is no point of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("at must be a position or an RFC 3339 time")]
pub struct BadMoment;

/// A point of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// After the event at this position; beyond the end means the end.
    Position(u64),
    /// After everything that was recorded at this time or earlier.
    Time(OffsetDateTime),
}

impl FromStr for Moment {
    type Err = BadMoment;
    fn from_str(text: &str) -> Result<Self, BadMoment> {
        match text.bytes().all(|byte| byte.is_ascii_digit()) {
            // Also an empty text, which is no number.
            true => text.parse().map(Self::Position).map_err(|_| BadMoment),
            false => OffsetDateTime::parse(text, &Rfc3339)
                .map(Self::Time)
                .map_err(|_| BadMoment),
        }
    }
}

/// Why a past state can't be told.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The organization has no such object and never had.
    #[error("entity not found")]
    NotFound,
    /// Other replays come first.
    #[error("another replay of the log is running; try again")]
    Busy,
    /// The log can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Tells past states from a log.
pub struct History {
    log: EventLog,
    /// The right to replay the whole log.
    turn: Semaphore,
}

impl History {
    /// The history in `log`.
    pub fn new(log: EventLog) -> Self {
        Self {
            log,
            turn: Semaphore::new(1),
        }
    }

    /// The objects of `org` (`None`: of all) as they were at `at`; with `entity`, a stream or the id
    /// of an object, that one only, which reads no more than its stream.
    ///
    /// The reply's `position` and `time` are those of the last event that went in.
    pub async fn state(
        &self,
        org: Option<OrgId>,
        at: Moment,
        entity: Option<&str>,
    ) -> Result<Value, HistoryError> {
        let head = self.log.head().position;
        let until = match at {
            Moment::Position(position) => position.min(head),
            Moment::Time(time) => self.log.position_at(time).await?,
        };
        let mut past = Past::new(org);
        match entity {
            Some(entity) => {
                let stream = self.stream_of(org, entity).await?;
                past.replay_stream(&self.log, &stream, until).await?;
            }
            None => {
                let turn = tokio::time::timeout(TURN_WAIT_MAX, self.turn.acquire()).await;
                let _turn = turn.map_err(|_| HistoryError::Busy)?;
                past.replay(&self.log, until).await?;
            }
        }
        Ok(past.render())
    }

    /// The stream that is meant, if it is the organization's. Whose it is, its first event says.
    async fn stream_of(&self, org: Option<OrgId>, entity: &str) -> Result<StreamId, HistoryError> {
        let scope = Filter::of(org);
        let named = entity.split_once('-');
        let is_stream = named.is_some_and(|(family, _)| FAMILIES.contains(&family));
        let names: Vec<String> = match is_stream {
            true => vec![entity.to_owned()],
            false => FAMILIES.map(|family| format!("{family}-{entity}")).into(),
        };
        for name in names {
            let stream = StreamId::new(name).map_err(|_| HistoryError::NotFound)?;
            let first = self.log.read_stream(&stream, 0, 1).await?;
            if first.first().is_some_and(|event| scope.sees(event)) {
                return Ok(stream);
            }
        }
        Err(HistoryError::NotFound)
    }
}

/// The rows of one organization, or of all, at one point.
pub(super) struct Past {
    scope: Filter,
    pub(super) model: Model,
    last: Option<(u64, OffsetDateTime)>,
}

impl Past {
    /// Before the first event.
    pub(super) fn new(org: Option<OrgId>) -> Self {
        Self {
            scope: Filter::of(org),
            model: Model::new(Keep::Names),
            last: None,
        }
    }

    /// Takes the next event; those of others leave no trace.
    pub(super) fn take(&mut self, event: &Recorded) {
        if !self.scope.sees(event) {
            return;
        }
        self.last = Some((event.position, event.recorded_at));
        if let Err(error) = self.model.apply(event) {
            tracing::warn!(%error, position = event.position, "event skipped by a replay");
        }
    }

    async fn replay(&mut self, log: &EventLog, until: u64) -> Result<(), ReadError> {
        let mut next = 1;
        while next <= until {
            let page = log.read_all(next, READ_EVENTS_MAX).await?;
            let Some(last) = page.last() else { break };
            next = last.position + 1;
            page.iter()
                .take_while(|event| event.position <= until)
                .for_each(|event| self.take(event));
        }
        Ok(())
    }

    async fn replay_stream(
        &mut self,
        log: &EventLog,
        stream: &StreamId,
        until: u64,
    ) -> Result<(), ReadError> {
        let mut revision = 0;
        loop {
            let page = log.read_stream(stream, revision, READ_EVENTS_MAX).await?;
            let Some(last) = page.last() else { break };
            revision = last.revision + 1;
            let done = last.position > until;
            page.iter()
                .take_while(|event| event.position <= until)
                .for_each(|event| self.take(event));
            if done {
                break;
            }
        }
        Ok(())
    }

    /// The rows that are there, as JSON with the API's own names.
    pub(super) fn render(&self) -> Value {
        let owned = |org: &OrgId| self.scope.org.is_none_or(|scope| scope == *org);
        let mut orgs = self.model.orgs.values().filter_map(org);
        let mut projects = self.model.projects.values().filter_map(project);
        let mut stores = self.model.stores.values().filter_map(store);
        let mut sandboxes = self.model.sandboxes.values().filter_map(sandbox);
        let mut checkpoints = self.model.checkpoints.values().filter_map(checkpoint);
        let mut images = self.model.images.values().filter_map(image);
        let list = |rows: &mut dyn Iterator<Item = (OrgId, Value)>| -> Vec<Value> {
            let own = rows.filter(|(org, _)| owned(org));
            own.map(|(_, row)| row).collect()
        };
        json!({
            "position": self.last.map_or(0, |(position, _)| position),
            "time": self.last.and_then(|(_, time)| timestamp(time)),
            "organizations": list(&mut orgs),
            "projects": list(&mut projects),
            "secretStores": list(&mut stores),
            "sandboxes": list(&mut sandboxes),
            "checkpoints": list(&mut checkpoints),
            "images": list(&mut images),
            "skipped": self.model.skipped,
        })
    }
}

fn timestamp(at: OffsetDateTime) -> Option<String> {
    at.format(&Rfc3339).ok()
}

fn org(row: &Org) -> Option<(OrgId, Value)> {
    let details = row.details.as_ref()?;
    let keys = row.keys.iter().map(org_key);
    let shown = json!({
        "id": details.org_id,
        "name": details.name,
        "keys": keys.collect::<Vec<_>>(),
        "createdAt": timestamp(details.at),
    });
    Some((details.org_id, shown))
}

/// A key as it is shown: never its hash.
pub fn org_key(key: &OrgKey) -> Value {
    let made = &key.made;
    let mut shown = json!({
        "id": made.key_id,
        "name": made.name,
        "prefix": made.prefix,
        "scope": made.scope,
        "createdAt": timestamp(made.at),
    });
    match &made.target {
        Some(KeyTarget::Sandbox(id)) => shown["sandboxId"] = json!(id),
        Some(KeyTarget::Project(id)) => shown["projectId"] = json!(id),
        None => {}
    }
    if let Some(at) = made.expires_at {
        shown["expiresAt"] = json!(timestamp(at));
    }
    if let Some(rate) = made.rate {
        shown["requestsPerSec"] = json!(rate);
    }
    if let Some(at) = key.revoked_at {
        shown["revokedAt"] = json!(timestamp(at));
    }
    shown
}

fn project(row: &Project) -> Option<(OrgId, Value)> {
    let details = row.details.as_ref().filter(|_| !row.is_deleted())?;
    let shown = json!({
        "id": details.project_id,
        "orgId": details.org_id,
        "name": details.name,
        "template": details.template,
        "cpuCount": details.cpu_count,
        "memoryMB": details.memory_mb,
        "timeoutSec": details.timeout_sec,
        "egressAllowlist": details.egress_allowlist,
        "secrets": secrets(&row.secrets),
        "createdAt": timestamp(details.at),
        "updatedAt": row.updated_at.and_then(timestamp),
    });
    Some((details.org_id, shown))
}

fn store(row: &SecretStore) -> Option<(OrgId, Value)> {
    let details = row.details.as_ref().filter(|_| !row.is_deleted())?;
    let shown = json!({
        "id": details.store_id,
        "orgId": details.org_id,
        "name": details.name,
        "egressAllowlist": details.egress_allowlist,
        "secrets": secrets(&row.secrets),
        "createdAt": timestamp(details.at),
        "updatedAt": row.updated_at.and_then(timestamp),
    });
    Some((details.org_id, shown))
}

fn secrets(secrets: &Secrets) -> Vec<Value> {
    let row = |(name, secret): (&String, &super::secrets::Secret)| {
        let shown = json!({
            "id": secret.id,
            "name": name,
            "allowedHosts": secret.allowed_hosts,
            "version": secret.version,
            "createdAt": timestamp(secret.created_at),
            "updatedAt": timestamp(secret.updated_at),
        });
        with_placement(shown, secret.placement.as_ref())
    };
    secrets.iter().map(row).collect()
}

/// A secret as it is shown, with its placement when it has one.
fn with_placement(mut shown: Value, placement: Option<&SecretPlacement>) -> Value {
    if let Some(placement) = placement {
        shown["placement"] = json!(placement);
    }
    shown
}

fn checkpoint(row: &Checkpoint) -> Option<(OrgId, Value)> {
    let details = row.details.as_ref().filter(|_| row.is_there())?;
    let patch = |patch: &PatchAdded| {
        json!({
            "id": patch.patch_id,
            "sequence": patch.sequence,
            "description": patch.description,
            "createdAt": timestamp(patch.at),
        })
    };
    let shown = json!({
        "id": details.checkpoint_id,
        "orgId": details.org_id,
        "sandboxId": details.config.sandbox_id,
        "name": details.name,
        "kind": details.kind,
        "status": row.status(),
        "sizeBytes": row.size_bytes,
        "isPublic": row.public,
        "revision": details.revision,
        "patches": row.patches.iter().map(patch).collect::<Vec<_>>(),
        "createdAt": timestamp(details.at),
    });
    Some((details.org_id, shown))
}

fn image(row: &Image) -> Option<(OrgId, Value)> {
    let details = row.details.as_ref().filter(|_| row.is_there())?;
    let layers = row.layers.iter().map(|layer| layer.checkpoint_id);
    let shown = json!({
        "id": details.image_id,
        "orgId": details.org_id,
        "name": details.name,
        "status": row.status(),
        "contentHash": details.content_hash,
        "checkpointId": details.checkpoint_id,
        "layers": layers.collect::<Vec<_>>(),
        "createdAt": timestamp(details.at),
        "lastUsedAt": row.last_used().and_then(timestamp),
    });
    Some((details.org_id, shown))
}

fn sandbox(row: &Sandbox) -> Option<(OrgId, Value)> {
    let (phase, reason) = match &row.phase {
        Phase::Absent | Phase::Stopped | Phase::NeverStarted => return None,
        Phase::Starting(_) => ("starting", None),
        Phase::Running => ("running", None),
        Phase::Hibernating(_) => ("hibernating", None),
        Phase::Hibernated => ("hibernated", None),
        Phase::Failed(reason) => ("failed", Some(reason)),
        Phase::Stopping(_) => ("stopping", None),
    };
    let details = row.details.as_ref()?;
    let entries = row.sealed.iter().flat_map(|sealed| &sealed.secrets);
    let secrets = entries.map(|entry| {
        let shown = json!({
            "name": entry.name,
            "allowedHosts": entry.allowed_hosts,
            "layerId": entry.layer_id,
            "version": entry.version,
        });
        with_placement(shown, entry.placement.as_ref())
    });
    let revoked: Vec<_> = row.revoked.iter().map(|dead| &dead.name).collect();
    let mut shown = Map::new();
    let fields = json!({
        "id": details.sandbox_id,
        "orgId": details.org_id,
        "status": row.phase.status(),
        "phase": phase,
        "template": details.template,
        "cpuCount": details.cpu_count,
        "memoryMB": details.memory_mb,
        "diskMB": details.disk_mb,
        "timeout": details.timeout_sec,
        "port": details.port,
        "networkEnabled": details.network_enabled,
        "alias": details.alias,
        "metadata": details.metadata,
        "layers": details.layers,
        "egressAllowlist": details.egress_allowlist,
        "secrets": secrets.collect::<Vec<_>>(),
        "revokedSecrets": (!revoked.is_empty()).then_some(revoked),
        "cpuPercent": row.scaling.cpu_percent,
        "scalingLocked": row.scaling.locked.then_some(true),
        "autoscale": row.scaling.autoscale,
        "tags": (!row.tags.all.is_empty()).then_some(&row.tags.all),
        "hibernatedAt": row.slept.as_ref().and_then(|slept| timestamp(slept.at)),
        "kept": row.slept.as_ref().map(|slept| slept.kept),
        "origin": details.origin,
        "builds": details.builds,
        "patchError": row.patched.error,
        "createdAt": timestamp(details.at),
        "startedAt": row.started_at.and_then(timestamp),
        "reason": reason,
    });
    // What isn't set is left out, as in the API's own objects.
    if let Value::Object(fields) = fields {
        shown.extend(fields.into_iter().filter(|(_, value)| !value.is_null()));
    }
    Some((details.org_id, Value::Object(shown)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: however many ask, one replay of the whole log runs at a time, the others are told to
    /// come again, and one object's history is told meanwhile.
    #[tokio::test]
    async fn one_replay_runs_at_a_time() {
        let history = History::new(EventLog::in_memory());
        let at = Moment::Position(0);
        assert!(history.state(None, at, None).await.is_ok());
        let turn = history.turn.acquire().await;
        let refused = history.state(None, at, None).await;
        assert!(matches!(refused, Err(HistoryError::Busy)));
        let nobody = history.state(None, at, Some("sb-1")).await;
        assert!(matches!(nobody, Err(HistoryError::NotFound)));
        drop(turn);
        assert!(history.state(None, at, None).await.is_ok());
    }

    #[test]
    fn moments_are_positions_or_times() {
        let check = |text: &str| text.parse::<Moment>().ok();
        assert_eq!(check("17"), Some(Moment::Position(17)));
        let noon = time::macros::datetime!(2026-01-02 12:00 UTC);
        assert_eq!(check("2026-01-02T12:00:00Z"), Some(Moment::Time(noon)));
        assert_eq!(check("2026-01-02T13:00:00+01:00"), Some(Moment::Time(noon)));
        for bad in ["", "-1", "1.5", "99999999999999999999", "2026-01-02", "now"] {
            assert_eq!(check(bad), None, "{bad:?}");
        }
    }
}
