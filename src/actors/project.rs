//! A project: named defaults, an egress allowlist and secrets.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::aggregate::{Aggregate, Decision, NameChange, Reject};
use super::secrets::{SecretCommand, Secrets, check_hosts};
use crate::events::StreamId;
use crate::events::families::{ProjectCreated, ProjectDeleted, ProjectEvent, ProjectUpdated};
use crate::ids::{OrgId, ProjectId};

/// Largest number of virtual CPUs.
pub const CPU_COUNT_MAX: i64 = 4;
/// Smallest memory of a sandbox in MiB.
pub const MEMORY_MB_MIN: i64 = 128;
/// Longest name of a project or store, bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Largest timeout in seconds (about 68 years, a positive 32-bit number).
pub const TIMEOUT_SEC_MAX: i64 = i32::MAX as i64;

/// Idle timeout of a sandbox or project that states none, in seconds.
pub const TIMEOUT_SEC_DEFAULT: u32 = 300;

const TAKEN: &str = "project name already exists";

/// Settings as a caller gives them: absent, empty or not positive means "default" on create and
/// "keep" on update.
#[derive(Debug, Clone, Default)]
pub struct ProjectSettings {
    /// Name.
    pub name: Option<String>,
    /// Template.
    pub template: Option<String>,
    /// Virtual CPUs.
    pub cpu_count: Option<i64>,
    /// Memory in MiB.
    pub memory_mb: Option<i64>,
    /// Idle timeout in seconds.
    pub timeout_sec: Option<i64>,
    /// Allowed hosts; an empty list clears.
    pub egress_allowlist: Option<Vec<String>>,
}

/// What can be asked of a project.
pub enum ProjectCommand {
    /// Make it.
    Create {
        /// Its id.
        id: ProjectId,
        /// Its tenant.
        org: OrgId,
        /// Settings.
        settings: ProjectSettings,
        /// Largest memory allowed, MiB.
        memory_mb_max: i64,
        /// Now.
        at: OffsetDateTime,
    },
    /// Change settings.
    Update {
        /// Who asks.
        org: OrgId,
        /// Settings.
        settings: ProjectSettings,
        /// Largest memory allowed, MiB.
        memory_mb_max: i64,
        /// Now.
        at: OffsetDateTime,
    },
    /// Set or delete a secret.
    Secret(OrgId, SecretCommand),
    /// Delete it with its secrets.
    Delete(OrgId, OffsetDateTime),
}

/// A project's state.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Project {
    /// Set once it exists.
    pub details: Option<ProjectCreated>,
    /// When it was last changed.
    #[serde(with = "time::serde::rfc3339::option")]
    pub updated_at: Option<OffsetDateTime>,
    /// Its secrets.
    pub secrets: Secrets,
    deleted: bool,
}

impl Project {
    /// The stream of a project.
    pub fn stream(id: &ProjectId) -> StreamId {
        StreamId::of("project", id)
    }

    /// Whether it was there and is gone.
    pub fn is_deleted(&self) -> bool {
        self.deleted
    }

    /// The project as `org` may see it.
    pub fn visible_to(&self, org: &OrgId) -> Result<&ProjectCreated, Reject> {
        match &self.details {
            Some(details) if !self.deleted && details.org_id == *org => Ok(details),
            _ => Err(Reject::not_found("project")),
        }
    }

    fn update(
        &self,
        org: &OrgId,
        settings: &ProjectSettings,
        memory_mb_max: i64,
        at: OffsetDateTime,
    ) -> Result<Decision<ProjectEvent>, Reject> {
        let now = self.visible_to(org)?;
        refuse_negative("cpuCount", settings.cpu_count)?;
        refuse_negative("memoryMB", settings.memory_mb)?;
        check(settings, memory_mb_max)?;
        let changed = ProjectUpdated {
            name: given(&settings.name).filter(|new| *new != now.name),
            template: given(&settings.template),
            cpu_count: positive(settings.cpu_count),
            memory_mb: positive(settings.memory_mb),
            timeout_sec: positive(settings.timeout_sec),
            egress_allowlist: settings.egress_allowlist.clone(),
            at,
        };
        let names = match &changed.name {
            Some(new) => vec![
                NameChange::Claim {
                    name: name_stream(org, new),
                    taken: TAKEN,
                },
                NameChange::Release {
                    name: name_stream(org, &now.name),
                },
            ],
            None => Vec::new(),
        };
        let untouched = changed.name.is_none()
            && changed.template.is_none()
            && changed.cpu_count.is_none()
            && changed.memory_mb.is_none()
            && changed.timeout_sec.is_none()
            && changed.egress_allowlist.is_none();
        if untouched {
            return Ok(Decision::nothing());
        }
        Ok(Decision {
            events: vec![ProjectEvent::Updated(changed)],
            names,
        })
    }
}

impl Aggregate for Project {
    type Command = ProjectCommand;
    type Event = ProjectEvent;
    const STATE_VERSION: u32 = 3;

    fn decide(&self, command: &ProjectCommand) -> Result<Decision<ProjectEvent>, Reject> {
        match command {
            ProjectCommand::Create {
                id,
                org,
                settings,
                memory_mb_max,
                at,
            } => {
                let name = given(&settings.name).ok_or(Reject::invalid("name is required"))?;
                // A negative size means the default here, as clients of the old server rely on.
                check(settings, *memory_mb_max)?;
                let created = ProjectCreated {
                    project_id: *id,
                    org_id: *org,
                    template: given(&settings.template).unwrap_or_else(|| "default".to_owned()),
                    cpu_count: positive(settings.cpu_count).unwrap_or(1),
                    memory_mb: positive(settings.memory_mb).unwrap_or(1024),
                    timeout_sec: positive(settings.timeout_sec).unwrap_or(TIMEOUT_SEC_DEFAULT),
                    egress_allowlist: settings.egress_allowlist.clone().unwrap_or_default(),
                    at: *at,
                    name: name.clone(),
                };
                Ok(Decision {
                    events: vec![ProjectEvent::Created(created)],
                    names: vec![NameChange::Claim {
                        name: name_stream(org, &name),
                        taken: TAKEN,
                    }],
                })
            }
            ProjectCommand::Update {
                org,
                settings,
                memory_mb_max,
                at,
            } => self.update(org, settings, *memory_mb_max, *at),
            ProjectCommand::Secret(org, command) => {
                self.visible_to(org)?;
                Ok(match command {
                    SecretCommand::Set(set) => {
                        ProjectEvent::SecretSet(self.secrets.decide_set(set)?).into()
                    }
                    SecretCommand::Delete { name, at } => {
                        ProjectEvent::SecretDeleted(self.secrets.decide_delete(name, *at)?).into()
                    }
                    SecretCommand::Revoke { name, at } => {
                        ProjectEvent::SecretRevoked(self.secrets.decide_revoke(name, *at)?).into()
                    }
                })
            }
            ProjectCommand::Delete(org, at) => {
                let name = name_stream(org, &self.visible_to(org)?.name);
                Ok(Decision {
                    events: vec![ProjectEvent::Deleted(ProjectDeleted { at: *at })],
                    names: vec![NameChange::Release { name }],
                })
            }
        }
    }

    fn apply(&mut self, event: &ProjectEvent, revision: u64) {
        match event {
            ProjectEvent::Created(created) => {
                self.updated_at = Some(created.at);
                self.details = Some(created.clone());
            }
            ProjectEvent::Updated(changed) => {
                self.updated_at = Some(changed.at);
                if let Some(details) = &mut self.details {
                    replace(&mut details.name, &changed.name);
                    replace(&mut details.template, &changed.template);
                    replace(&mut details.cpu_count, &changed.cpu_count);
                    replace(&mut details.memory_mb, &changed.memory_mb);
                    replace(&mut details.timeout_sec, &changed.timeout_sec);
                    replace(&mut details.egress_allowlist, &changed.egress_allowlist);
                }
            }
            ProjectEvent::SecretSet(set) => self.secrets.apply_set(set, revision),
            ProjectEvent::SecretDeleted(deleted) => self.secrets.apply_delete(deleted),
            ProjectEvent::SecretRevoked(revoked) => self.secrets.apply_revoke(revoked, revision),
            ProjectEvent::Deleted(_) => {
                self.deleted = true;
                self.secrets.clear();
            }
        }
    }
}

/// Puts `new` in place of `old` when there is one.
pub(super) fn replace<T: Clone>(old: &mut T, new: &Option<T>) {
    if let Some(new) = new {
        *old = new.clone();
    }
}

/// A text that says something.
pub(super) fn given(text: &Option<String>) -> Option<String> {
    text.clone().filter(|text| !text.is_empty())
}

/// A number that says something; `check` has bounded it.
fn positive(number: Option<i64>) -> Option<u32> {
    number
        .filter(|number| *number > 0)
        .and_then(|number| u32::try_from(number).ok())
}

fn check(settings: &ProjectSettings, memory_mb_max: i64) -> Result<(), Reject> {
    check_name(settings.name.as_deref().unwrap_or_default())?;
    check_name(settings.template.as_deref().unwrap_or_default())
        .map_err(|_| Reject::invalid("template must be at most 128 printable characters"))?;
    refuse_negative("timeoutSec", settings.timeout_sec)?;
    check_size(settings.cpu_count, settings.memory_mb, memory_mb_max)?;
    if settings
        .timeout_sec
        .is_some_and(|seconds| seconds > TIMEOUT_SEC_MAX)
    {
        return Err(Reject::invalid(format!(
            "timeoutSec must not exceed {TIMEOUT_SEC_MAX}"
        )));
    }
    check_hosts(
        "egressAllowlist",
        settings.egress_allowlist.as_deref().unwrap_or_default(),
    )
}

fn refuse_negative(field: &str, number: Option<i64>) -> Result<(), Reject> {
    match number {
        Some(..0) => Err(Reject::invalid(format!("{field} must not be negative"))),
        _ => Ok(()),
    }
}

/// Bounds of the sizes a sandbox can have; absent or not positive passes as "default".
pub(super) fn check_size(
    cpu_count: Option<i64>,
    memory_mb: Option<i64>,
    memory_mb_max: i64,
) -> Result<(), Reject> {
    if cpu_count.is_some_and(|count| count > CPU_COUNT_MAX) {
        return Err(Reject::invalid(format!(
            "cpuCount must not exceed {CPU_COUNT_MAX}"
        )));
    }
    match memory_mb {
        Some(mb) if mb > memory_mb_max => Err(Reject::invalid(format!(
            "memoryMB must not exceed {memory_mb_max}"
        ))),
        Some(mb) if mb > 0 && mb < MEMORY_MB_MIN => Err(Reject::invalid(format!(
            "memoryMB must be at least {MEMORY_MB_MIN}"
        ))),
        _ => Ok(()),
    }
}

/// A name people can read: bounded, no control characters.
pub(super) fn check_name(name: &str) -> Result<(), Reject> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Reject::invalid(format!(
            "name must be at most {NAME_BYTES_MAX} bytes"
        )));
    }
    if name.chars().any(char::is_control) {
        return Err(Reject::invalid("name must not hold control characters"));
    }
    Ok(())
}

fn name_stream(org: &OrgId, name: &str) -> StreamId {
    super::names::stream("project", org, name)
}
