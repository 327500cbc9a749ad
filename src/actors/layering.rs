//! Layers of a sandbox: the projects and stores whose secrets and allowlists it has, the last wins.

use std::collections::BTreeMap;

use super::create::CreateSandbox;
use super::entity::Failure;
use super::platform::{Caller, Platform};
use super::project::Project;
use super::secret_store::SecretStore;
use super::secrets::{Secret, Secrets};
use crate::events::StreamId;
use crate::events::families::{Layer, LayerKind};

/// A secret as a layer gives it, its value still under the layer's own data key.
pub(super) struct LayerSecret {
    pub(super) layer_id: String,
    pub(super) stream: StreamId,
    pub(super) event_kind: &'static str,
    pub(super) secret: Secret,
}

impl Platform {
    /// The inherited layers that the caller still has and does not name again: what is named moves to
    /// the end, so that it wins as asked.
    pub(super) async fn still_there(
        &self,
        caller: &Caller,
        request: &CreateSandbox,
        inherited: impl Iterator<Item = &Layer>,
    ) -> Result<Vec<Layer>, Failure> {
        let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        let project = named(&request.project)
            .and_then(|name| self.catalog.find_project(&caller.org, &name))
            .map(|found| found.project_id.to_string());
        let store = named(&request.secret_store)
            .and_then(|name| self.catalog.find_store(&caller.org, &name))
            .map(|found| found.store_id.to_string());
        let again = |layer: &&Layer| {
            Some(&layer.id) != project.as_ref() && Some(&layer.id) != store.as_ref()
        };
        Ok(inherited.filter(again).cloned().collect())
    }

    /// Adds an inherited layer, unless it is gone or not the caller's any more.
    pub(super) async fn add_layer(
        &self,
        caller: &Caller,
        inherited: &Layer,
        secrets: &mut BTreeMap<String, LayerSecret>,
        layers: &mut Vec<Layer>,
        allowlist: &mut Vec<String>,
    ) -> Result<(), Failure> {
        let id = inherited.id.clone();
        match inherited.kind {
            LayerKind::Project => {
                let Ok(project) = id.parse() else {
                    return Ok(());
                };
                let stream = Project::stream(&project);
                let state = self.projects.inspect(&stream).await?;
                let Ok(found) = state.visible_to(&caller.org) else {
                    return Ok(());
                };
                let kind = "project.secret_set.v1";
                add(secrets, &id, &stream, kind, &state.secrets);
                layers.push(layer(LayerKind::Project, id, &found.name));
                unite(allowlist, &found.egress_allowlist);
            }
            LayerKind::Store => {
                let Ok(store) = id.parse() else {
                    return Ok(());
                };
                let stream = SecretStore::stream(&store);
                let state = self.stores.inspect(&stream).await?;
                let Ok(found) = state.visible_to(&caller.org) else {
                    return Ok(());
                };
                let kind = "store.secret_set.v1";
                add(secrets, &id, &stream, kind, &state.secrets);
                layers.push(layer(LayerKind::Store, id, &found.name));
                unite(allowlist, &found.egress_allowlist);
            }
        }
        Ok(())
    }
}

pub(super) fn layer(kind: LayerKind, id: String, name: &str) -> Layer {
    Layer {
        kind,
        id,
        name: name.to_owned(),
    }
}

/// Lays a layer's secrets over those below it; a later layer wins with its hosts.
pub(super) fn add(
    secrets: &mut BTreeMap<String, LayerSecret>,
    layer_id: &str,
    stream: &StreamId,
    event_kind: &'static str,
    from: &Secrets,
) {
    for (name, secret) in from.iter() {
        let secret = LayerSecret {
            layer_id: layer_id.to_owned(),
            stream: stream.clone(),
            event_kind,
            secret: secret.clone(),
        };
        secrets.insert(name.clone(), secret);
    }
}

/// Adds what is not there yet, in order.
pub(super) fn unite(list: &mut Vec<String>, more: &[String]) {
    for host in more {
        if !list.contains(host) {
            list.push(host.clone());
        }
    }
}
