//! Creating a sandbox: settle every setting, look the layers up, seal the set, commit, start.
//! Everything is checked before anything exists.

use std::collections::BTreeMap;
use std::sync::Arc;

use time::OffsetDateTime;
use ulid::Ulid;

use super::aggregate::Reject;
use super::entity::{Beside, Failure};
use super::idempotency::{Begun, Created, First, Keyed};
use super::images::{BASE_NAMES, DEFAULTS, ImageDefaults};
use super::layering::{LayerSecret, add, layer, unite};
use super::platform::{Caller, Platform};
use super::project::{Project, TIMEOUT_SEC_DEFAULT, check_name, check_size};
use super::sandbox::{Sandbox, SandboxCommand, timeout};
use super::sealing::{internal, off_runtime};
use super::secret_store::SecretStore;
use super::secrets::{SECRET_NAME_BYTES_MAX, check_hosts};
use crate::events::families::{
    Layer, LayerKind, Origin, ProjectCreated, SandboxCreated, SandboxSealed, SealedEntry,
};
use crate::events::{EVENT_DATA_BYTES_MAX, Expected, StreamId};
use crate::ids::{ImageId, SandboxId};
use crate::proxy::{SandboxCa, SealedToken};
use crate::secret::{SECRET_VALUE_BYTES_MAX, SecretValue};

/// The kind of the event that the values of a sandbox are bound to.
pub(super) const SEALED_KIND: &str = "sandbox.sealed.v1";
const DISK_MB_MIN: i64 = 20_480;
const DISK_MB_MAX: i64 = 262_144;
const ENVS_MAX: usize = 1024;
const ENVS_BYTES_MAX: usize = 256 * 1024;
const METADATA_BYTES_MAX: usize = 64 * 1024;
/// Most projects and stores of one sandbox; forks of forks carry all of theirs on.
const LAYERS_MAX: usize = 16;
/// Templates that mean the built-in base.
const BASE_TEMPLATES: [&str; 4] = BASE_NAMES;

/// A sandbox as a caller asks for it.
#[derive(Clone, Default)]
pub struct CreateSandbox {
    /// Template name.
    pub template: Option<String>,
    /// Free label.
    pub alias: Option<String>,
    /// Free map.
    pub metadata: BTreeMap<String, String>,
    /// Idle timeout in seconds.
    pub timeout: Option<i64>,
    /// Virtual CPUs.
    pub cpu_count: Option<i64>,
    /// Memory in MiB.
    pub memory_mb: Option<i64>,
    /// Disk in MiB.
    pub disk_mb: Option<i64>,
    /// Plain environment.
    pub envs: BTreeMap<String, String>,
    /// Project, by name or id.
    pub project: Option<String>,
    /// Secret store, by name.
    pub secret_store: Option<String>,
    /// Further allowed hosts.
    pub egress_allowlist: Vec<String>,
    /// Default container port.
    pub port: Option<i64>,
    /// False: no outbound network.
    pub network_enabled: Option<bool>,
    /// What a fork has of its source; `None`: it is no fork.
    pub inherited: Option<Inherited>,
    /// What the image that it is made from says of its processes.
    pub image: Option<ImageDefaults>,
    /// The image that it only exists to build.
    pub builds: Option<ImageId>,
}

/// What a fork has of its source.
#[derive(Clone)]
pub struct Inherited {
    /// The source's layers, lowest first. Those that are gone are left out.
    pub layers: Vec<Layer>,
    /// The checkpoint, and its sandbox.
    pub origin: Origin,
    /// Revision of the sandbox's stream that the fork branches off at; `None`: it has its disk only.
    pub revision: Option<u64>,
    /// Certificate of the authority that the disk trusts, PEM.
    pub ca_certificate: String,
    /// Its key.
    pub ca_key: Arc<SecretValue>,
}

impl Platform {
    /// Creates a sandbox, once for each key, and returns when it can run commands. When that fails,
    /// nothing remains, and the key may be tried again.
    pub async fn create_sandbox(
        self: &Arc<Self>,
        caller: &Caller,
        request: CreateSandbox,
        keyed: Option<&Keyed>,
    ) -> Result<Created<Sandbox>, Failure> {
        let first = match self.begin(caller, keyed).await? {
            Begun::First(first) => first,
            Begun::Repeat(state) => return Ok(Created::again(state)),
        };
        let made = self.make_sandbox(caller, request, &first).await;
        self.conclude(first, made.map(Arc::new)).await
    }

    async fn make_sandbox(
        self: &Arc<Self>,
        caller: &Caller,
        request: CreateSandbox,
        first: &First,
    ) -> Result<Sandbox, Failure> {
        let id = SandboxId::generate();
        let _turn = self.take_turn(&id).await;
        let (created, secrets) = self.plan(caller, &id, &request).await?;
        // What only builds is nobody's sandbox; builds have places of their own.
        let place = match request.builds {
            None => Some(self.take_place(caller)?),
            Some(_) => None,
        };
        let stream = Sandbox::stream(&id);
        let mut beside = first.beside(&stream)?;
        if let Some(inherited) = &request.inherited
            && let Some(revision) = inherited.revision
        {
            let parent = Sandbox::stream(&inherited.origin.sandbox_id);
            let branch = self.log.branch_event(&stream, &parent, revision);
            beside.push(Beside {
                expected: Expected::NoStream,
                event: branch.await.map_err(internal)?,
            });
        }
        let (platform, own, from) = (self.clone(), stream.clone(), request.clone());
        let sealed = off_runtime(move || platform.seal_set(&own, secrets, &from)).await;
        let accepted = match sealed {
            Ok(sealed) => {
                let command = SandboxCommand::Create {
                    created: Box::new(created),
                    sealed: Box::new(sealed),
                    intent: Ulid::generate(),
                };
                self.execute_beside(&self.sandboxes, &stream, command, &caller.who(), beside)
                    .await
            }
            Err(failure) => Err(failure),
        };
        // From here on the read models count it.
        drop(place);
        match accepted {
            Ok(done) => {
                // A secret that was revoked since it was looked up found no sandbox to take it from.
                let state = self.take_revoked(&id, done.state, &caller.who()).await?;
                self.start_sandbox(&id, &state, &caller.who()).await
            }
            Err(failure) => {
                self.shred_or_keep(&stream).await;
                // A layer deleted in between has lost its key: that is the reason to tell.
                self.plan(caller, &id, &request).await?;
                Err(failure)
            }
        }
    }

    /// Refuses what [`Platform::create_sandbox`] would refuse, before anything is done for it.
    pub async fn check_sandbox(
        &self,
        caller: &Caller,
        request: &CreateSandbox,
    ) -> Result<(), Failure> {
        let id = SandboxId::generate();
        self.plan(caller, &id, request).await.map(drop)
    }

    /// Settles every setting and finds the secrets; changes nothing.
    async fn plan(
        &self,
        caller: &Caller,
        id: &SandboxId,
        request: &CreateSandbox,
    ) -> Result<(SandboxCreated, BTreeMap<String, LayerSecret>), Failure> {
        let memory_mb_max = self.limits.memory_mb_max.into();
        check_size(request.cpu_count, request.memory_mb, memory_mb_max)?;
        check_request(request)?;
        let mut layers = Vec::new();
        let mut secrets = BTreeMap::new();
        let mut allowlist: Vec<String> = Vec::new();
        let mut project: Option<ProjectCreated> = None;
        let inherited = request.inherited.iter().flat_map(|from| &from.layers);
        for layer in self.still_there(caller, request, inherited).await? {
            self.add_layer(caller, &layer, &mut secrets, &mut layers, &mut allowlist)
                .await?;
        }
        if let Some(name) = request.project.as_deref().filter(|name| !name.is_empty()) {
            let found = self
                .catalog
                .find_project(&caller.org, name)
                .ok_or_else(|| unknown("project", name))?;
            let stream = Project::stream(&found.project_id);
            let state = self.projects.inspect(&stream).await?;
            let found = state
                .visible_to(&caller.org)
                .map_err(|_| unknown("project", name))?;
            let layer_id = found.project_id.to_string();
            add(
                &mut secrets,
                &layer_id,
                &stream,
                "project.secret_set.v1",
                &state.secrets,
            );
            layers.push(layer(LayerKind::Project, layer_id, &found.name));
            unite(&mut allowlist, &found.egress_allowlist);
            project = Some(found.clone());
        }
        if let Some(name) = request
            .secret_store
            .as_deref()
            .filter(|name| !name.is_empty())
        {
            let found = self
                .catalog
                .find_store(&caller.org, name)
                .ok_or_else(|| unknown("secret store", name))?;
            let stream = SecretStore::stream(&found.store_id);
            let state = self.stores.inspect(&stream).await?;
            let found = state
                .visible_to(&caller.org)
                .map_err(|_| unknown("secret store", name))?;
            let layer_id = found.store_id.to_string();
            add(
                &mut secrets,
                &layer_id,
                &stream,
                "store.secret_set.v1",
                &state.secrets,
            );
            layers.push(layer(LayerKind::Store, layer_id, &found.name));
            unite(&mut allowlist, &found.egress_allowlist);
        }
        unite(&mut allowlist, &request.egress_allowlist);
        if layers.len() > LAYERS_MAX {
            return Err(Reject::invalid(format!(
                "a sandbox has at most {LAYERS_MAX} projects and secret stores"
            ))
            .into());
        }
        // A plain variable takes the place of a secret of the same name.
        secrets.retain(|name, _| !request.envs.contains_key(name));
        let created = settle(caller, id, request, project.as_ref(), layers, allowlist)?;
        // The project may be older than the operator's limit.
        let (cpu_count, memory_mb) = (created.cpu_count.into(), created.memory_mb.into());
        check_size(Some(cpu_count), Some(memory_mb), memory_mb_max)?;
        Ok((created, secrets))
    }

    /// Gives each secret a token and moves its value under the sandbox's own data key. Blocks.
    fn seal_set(
        &self,
        stream: &StreamId,
        secrets: BTreeMap<String, LayerSecret>,
        request: &CreateSandbox,
    ) -> Result<SandboxSealed, Failure> {
        let ca = match &request.inherited {
            Some(from) => SandboxCa::load(&from.ca_certificate, &from.ca_key),
            None => SandboxCa::generate("OpenComputer sandbox"),
        };
        let ca = ca.map_err(internal)?;
        let mut entries = Vec::with_capacity(secrets.len());
        for (name, from) in secrets {
            let value = self.unseal(&from.stream, from.event_kind, &name, &from.secret.sealed)?;
            entries.push(SealedEntry {
                token: SealedToken::generate().to_string(),
                allowed_hosts: from.secret.allowed_hosts,
                placement: from.secret.placement,
                layer_id: from.layer_id,
                version: from.secret.version,
                sealed: self.seal(stream, SEALED_KIND, &format!("secret:{name}"), &value)?,
                name,
            });
        }
        let envs = SecretValue::new(serde_json::to_vec(&request.envs)?);
        let set = SandboxSealed {
            secrets: entries,
            ca_certificate: ca.certificate_pem().to_owned(),
            ca_key: self.seal(stream, SEALED_KIND, "ca-key", &ca.key_to_secret())?,
            envs: self.seal(stream, SEALED_KIND, "envs", &envs)?,
            image: match &request.image {
                None => None,
                Some(defaults) => {
                    let said = SecretValue::new(serde_json::to_vec(defaults)?);
                    Some(self.seal(stream, SEALED_KIND, DEFAULTS, &said)?)
                }
            },
        };
        // The set is one event; each secret alone is within its bound, all together may not be.
        if serde_json::to_vec(&set)?.len() > EVENT_DATA_BYTES_MAX {
            return Err(Reject::invalid(format!(
                "secrets and envs of one sandbox must not exceed {EVENT_DATA_BYTES_MAX} bytes \
                 together, as sealed"
            ))
            .into());
        }
        Ok(set)
    }
}

fn unknown(what: &str, name: &str) -> Reject {
    let shown: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
    Reject::invalid(format!("{what} not found: {shown}"))
}

/// Bounds of the fields that need no look-up.
fn check_request(request: &CreateSandbox) -> Result<(), Reject> {
    if let Some(seconds) = request.timeout {
        timeout(seconds)?;
    }
    if let Some(disk) = request.disk_mb
        && !(DISK_MB_MIN..=DISK_MB_MAX).contains(&disk)
    {
        return Err(Reject::invalid(format!(
            "diskMB must be between {DISK_MB_MIN} and {DISK_MB_MAX}"
        )));
    }
    if request
        .port
        .is_some_and(|port| !(1..=65_535).contains(&port))
    {
        return Err(Reject::invalid("port must be between 1 and 65535"));
    }
    check_name(request.alias.as_deref().unwrap_or_default())
        .map_err(|_| Reject::invalid("alias must be at most 128 printable characters"))?;
    check_hosts("egressAllowlist", &request.egress_allowlist)?;
    check_envs(&request.envs)?;
    // They are kept as one sealed value, in JSON.
    let sealed = serde_json::to_vec(&request.envs).map_or(usize::MAX, |json| json.len());
    if sealed > SECRET_VALUE_BYTES_MAX {
        return Err(Reject::invalid(format!(
            "envs must not exceed {SECRET_VALUE_BYTES_MAX} bytes as JSON"
        )));
    }
    let metadata: usize = request
        .metadata
        .iter()
        .map(|(k, v)| k.len() + v.len())
        .sum();
    if metadata > METADATA_BYTES_MAX {
        return Err(Reject::invalid(format!(
            "metadata must not exceed {METADATA_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

/// Variables that a process can be given: no `=` or NUL in a name, no NUL in a value.
pub(super) fn check_envs(envs: &BTreeMap<String, String>) -> Result<(), Reject> {
    let bad_name = |name: &String| {
        name.is_empty() || name.len() > SECRET_NAME_BYTES_MAX || name.contains(['=', '\0'])
    };
    if envs.keys().any(bad_name) {
        return Err(Reject::invalid(
            "envs: names must not be empty or hold `=` or NUL",
        ));
    }
    if envs.values().any(|value| value.contains('\0')) {
        return Err(Reject::invalid("envs: values must not hold NUL"));
    }
    let bytes: usize = envs
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if envs.len() > ENVS_MAX || bytes > ENVS_BYTES_MAX {
        return Err(Reject::invalid(format!(
            "envs must not exceed {ENVS_MAX} variables or {ENVS_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

/// Request over project over default, setting by setting.
fn settle(
    caller: &Caller,
    id: &SandboxId,
    request: &CreateSandbox,
    project: Option<&ProjectCreated>,
    layers: Vec<Layer>,
    egress_allowlist: Vec<String>,
) -> Result<SandboxCreated, Reject> {
    let asked = request.template.as_deref().unwrap_or_default();
    let template = match (BASE_TEMPLATES.contains(&asked), project) {
        (true, Some(project)) => project.template.as_str(),
        (true, None) => "base",
        (false, _) => asked,
    };
    if !BASE_TEMPLATES.contains(&template) {
        let shown: String = template
            .chars()
            .filter(|c| !c.is_control())
            .take(128)
            .collect();
        return Err(Reject::NotFound(format!("template not found: {shown}")));
    }
    let size = |asked: Option<i64>| asked.filter(|n| *n > 0).and_then(|n| u32::try_from(n).ok());
    // With a project, 0 inherits; without one an explicit 0 means "never".
    let timeout_sec = match (request.timeout, project) {
        (Some(0), Some(project)) => project.timeout_sec,
        (Some(seconds), _) => timeout(seconds)?,
        (None, Some(project)) => project.timeout_sec,
        (None, None) => TIMEOUT_SEC_DEFAULT,
    };
    Ok(SandboxCreated {
        sandbox_id: id.clone(),
        org_id: caller.org,
        template: "base".to_owned(),
        cpu_count: size(request.cpu_count)
            .or(project.map(|p| p.cpu_count))
            .unwrap_or(1),
        memory_mb: size(request.memory_mb)
            .or(project.map(|p| p.memory_mb))
            .unwrap_or(1024),
        disk_mb: size(request.disk_mb).unwrap_or(20_480),
        timeout_sec,
        port: request
            .port
            .and_then(|port| u16::try_from(port).ok())
            .unwrap_or(80),
        network_enabled: request.network_enabled.unwrap_or(true),
        alias: request.alias.clone().filter(|alias| !alias.is_empty()),
        metadata: request.metadata.clone(),
        layers,
        egress_allowlist,
        own_allowlist: Some(request.egress_allowlist.clone()),
        origin: request.inherited.as_ref().map(|from| from.origin.clone()),
        builds: request.builds,
        at: OffsetDateTime::now_utc(),
    })
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;
