//! Which value of each secret its layer has now, and which one each sandbox was given: tells, with
//! no look at the entities, who still has an old value. A value is named by the revision of the
//! event that set it; neither values nor ciphertexts are here.

use std::collections::BTreeMap;

use crate::events::families::{ProjectEvent, SandboxEvent, SealedEntry, StoreEvent};
use crate::ids::SandboxId;

/// One secret a sandbox was given.
#[derive(Debug)]
struct Given {
    layer_id: String,
    name: String,
    version: u64,
}

impl Given {
    fn of(entry: &SealedEntry) -> Self {
        Self {
            layer_id: entry.layer_id.clone(),
            name: entry.name.clone(),
            version: entry.version,
        }
    }
}

/// The versions of every layer and every sandbox that is not gone.
#[derive(Debug, Default)]
pub(super) struct Versions {
    /// By layer and name.
    layers: BTreeMap<String, BTreeMap<String, u64>>,
    /// Until when values are dead, by layer and name; outlives the layer.
    revoked: BTreeMap<String, BTreeMap<String, u64>>,
    sandboxes: BTreeMap<SandboxId, Vec<Given>>,
}

impl Versions {
    /// Whether a secret of the sandbox was set anew, or revoked, since the sandbox was given it. A
    /// secret that was deleted, alone or with its layer, leaves its value where it is.
    pub(super) fn has_old_values(&self, id: &SandboxId) -> bool {
        self.has_older_than(&self.layers, id) || self.has_revoked_values(id)
    }

    /// Whether the sandbox has a secret that was revoked since it was given it.
    pub(super) fn has_revoked_values(&self, id: &SandboxId) -> bool {
        self.has_older_than(&self.revoked, id)
    }

    fn has_older_than(
        &self,
        layers: &BTreeMap<String, BTreeMap<String, u64>>,
        id: &SandboxId,
    ) -> bool {
        let now = |given: &Given| layers.get(&given.layer_id)?.get(&given.name).copied();
        let given = self.sandboxes.get(id).into_iter().flatten();
        given
            .filter_map(|given| now(given).map(|now| now > given.version))
            .any(|old| old)
    }

    pub(super) fn of_project(&mut self, id: &str, event: &ProjectEvent, revision: u64) {
        match event {
            ProjectEvent::SecretSet(set) => self.set(id, &set.name, revision),
            ProjectEvent::SecretDeleted(deleted) => self.delete(id, &deleted.name),
            ProjectEvent::SecretRevoked(revoked) => self.revoke(id, &revoked.name, revision),
            ProjectEvent::Deleted(_) => drop(self.layers.remove(id)),
            ProjectEvent::Created(_) | ProjectEvent::Updated(_) => {}
        }
    }

    pub(super) fn of_store(&mut self, id: &str, event: &StoreEvent, revision: u64) {
        match event {
            StoreEvent::SecretSet(set) => self.set(id, &set.name, revision),
            StoreEvent::SecretDeleted(deleted) => self.delete(id, &deleted.name),
            StoreEvent::SecretRevoked(revoked) => self.revoke(id, &revoked.name, revision),
            StoreEvent::Deleted(_) => drop(self.layers.remove(id)),
            StoreEvent::Created(_) | StoreEvent::Updated(_) => {}
        }
    }

    pub(super) fn of_sandbox(&mut self, id: &SandboxId, event: &SandboxEvent) {
        match event {
            SandboxEvent::Sealed(sealed) => {
                let given = sealed.secrets.iter().map(Given::of).collect();
                self.sandboxes.insert(id.clone(), given);
            }
            SandboxEvent::SecretRotated(rotated) => {
                let given = self.sandboxes.get_mut(id).into_iter().flatten();
                for given in given.filter(|given| given.name == rotated.entry.name) {
                    *given = Given::of(&rotated.entry);
                }
            }
            SandboxEvent::SecretRevoked(taken) => {
                if let Some(given) = self.sandboxes.get_mut(id) {
                    given.retain(|given| given.name != taken.name);
                }
            }
            _ => {}
        }
    }

    /// The sandbox is gone for good.
    pub(super) fn forget(&mut self, id: &SandboxId) {
        self.sandboxes.remove(id);
    }

    fn set(&mut self, layer: &str, name: &str, revision: u64) {
        let layer = self.layers.entry(layer.to_owned()).or_default();
        layer.insert(name.to_owned(), revision);
    }

    fn revoke(&mut self, layer: &str, name: &str, revision: u64) {
        self.delete(layer, name);
        let layer = self.revoked.entry(layer.to_owned()).or_default();
        layer.insert(name.to_owned(), revision);
    }

    fn delete(&mut self, layer: &str, name: &str) {
        if let Some(layer) = self.layers.get_mut(layer) {
            layer.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::events::Sealed;
    use crate::events::families::{
        SandboxSealed, SecretDeleted, SecretRevoked, SecretRotated, SecretSet, SecretTaken,
        StoreDeleted,
    };
    use crate::ids::SecretId;

    const AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn sealed() -> Sealed {
        Sealed {
            key_version: 1,
            nonce: String::new(),
            ciphertext: String::new(),
        }
    }

    fn entry(version: u64) -> SealedEntry {
        SealedEntry {
            name: "KEY".to_owned(),
            token: String::new(),
            allowed_hosts: Vec::new(),
            placement: None,
            layer_id: "store-1".to_owned(),
            version,
            sealed: sealed(),
        }
    }

    fn set() -> StoreEvent {
        StoreEvent::SecretSet(SecretSet {
            secret_id: SecretId::generate(),
            name: "KEY".to_owned(),
            allowed_hosts: Vec::new(),
            placement: None,
            sealed: sealed(),
            at: AT,
        })
    }

    /// Goal: a sandbox has an old value from the moment its secret is set anew until it is given
    /// the new one, also when the secret was set between the sandbox's plan and its commit.
    #[test]
    fn an_old_value_shows_until_it_is_replaced() {
        let (mut versions, id) = (Versions::default(), SandboxId::generate());
        versions.of_store("store-1", &set(), 1);
        versions.of_store("store-1", &set(), 2);
        let given = SandboxSealed {
            secrets: vec![entry(1)],
            ca_certificate: String::new(),
            ca_key: sealed(),
            envs: sealed(),
            image: None,
        };
        versions.of_sandbox(&id, &SandboxEvent::Sealed(given));
        assert!(versions.has_old_values(&id));
        let rotated = SecretRotated {
            entry: entry(2),
            at: AT,
        };
        versions.of_sandbox(&id, &SandboxEvent::SecretRotated(rotated));
        assert!(!versions.has_old_values(&id));

        // Deleting takes nothing away; a secret of that name set later is a new value.
        let deleted = SecretDeleted {
            name: "KEY".to_owned(),
            at: AT,
        };
        versions.of_store("store-1", &StoreEvent::SecretDeleted(deleted), 3);
        assert!(!versions.has_old_values(&id));
        versions.of_store("store-1", &set(), 4);
        assert!(versions.has_old_values(&id));
        versions.of_store("store-1", &StoreEvent::Deleted(StoreDeleted { at: AT }), 5);
        assert!(!versions.has_old_values(&id));
    }
    /// Goal: a revoked value shows, even after its layer is gone, until it was taken away; one that
    /// is set later is not meant.
    #[test]
    fn a_revoked_value_shows_until_it_is_taken() {
        let (mut versions, id) = (Versions::default(), SandboxId::generate());
        versions.of_store("store-1", &set(), 1);
        let given = |version| {
            SandboxEvent::Sealed(SandboxSealed {
                secrets: vec![entry(version)],
                ca_certificate: String::new(),
                ca_key: sealed(),
                envs: sealed(),
                image: None,
            })
        };
        let revoked = SecretRevoked {
            name: "KEY".to_owned(),
            at: AT,
        };
        versions.of_store("store-1", &StoreEvent::SecretRevoked(revoked), 2);
        // The sandbox was planned before, and committed after.
        versions.of_sandbox(&id, &given(1));
        assert!(versions.has_revoked_values(&id) && versions.has_old_values(&id));
        versions.of_store("store-1", &StoreEvent::Deleted(StoreDeleted { at: AT }), 3);
        assert!(versions.has_old_values(&id));
        let taken = SecretTaken {
            name: "KEY".to_owned(),
            layer_id: "store-1".to_owned(),
            at: AT,
        };
        versions.of_sandbox(&id, &SandboxEvent::SecretRevoked(taken));
        assert!(!versions.has_old_values(&id));
        versions.of_sandbox(&id, &given(4));
        assert!(!versions.has_old_values(&id));
    }
}
