//! A secret store's rules.

use super::{at, id, org, other_org, scene, secret_was_set, set_secret};
use crate::actors::secret_store::{SecretStore, StoreCommand};
use crate::actors::secrets::SecretCommand;
use crate::events::families::{StoreCreated, StoreDeleted, StoreEvent};
use crate::ids::OrgId;

pub(super) fn created() -> StoreEvent {
    StoreEvent::Created(StoreCreated {
        store_id: id("00000000-0000-7000-8000-000000000002"),
        org_id: org(),
        name: "keys".to_owned(),
        egress_allowlist: vec!["a.test".to_owned()],
        at: at(0),
    })
}

fn create(name: Option<&str>, hosts: Option<&[&str]>) -> StoreCommand {
    StoreCommand::Create {
        id: id("00000000-0000-7000-8000-000000000002"),
        org: org(),
        name: name.map(str::to_owned),
        egress_allowlist: hosts.map(list),
        at: at(1),
    }
}

fn update(org: OrgId, name: Option<&str>, hosts: Option<&[&str]>) -> StoreCommand {
    let name = name.map(str::to_owned);
    StoreCommand::Update {
        org,
        name,
        egress_allowlist: hosts.map(list),
        at: at(5),
    }
}

fn list(hosts: &[&str]) -> Vec<String> {
    hosts.iter().map(|&host| host.to_owned()).collect()
}

#[test]
fn stores_are_made_changed_and_deleted() {
    let gone = [created(), StoreEvent::Deleted(StoreDeleted { at: at(9) })];
    let delete = |org| StoreCommand::Delete(org, at(9));
    let scenes = [
        scene::<SecretStore>("only a name", &[], create(Some("keys"), None)),
        scene::<SecretStore>("with hosts", &[], create(Some("keys"), Some(&["*"]))),
        scene::<SecretStore>("no name", &[], create(None, None)),
        scene::<SecretStore>("an empty name", &[], create(Some(""), None)),
        scene::<SecretStore>("a bad host", &[], create(Some("keys"), Some(&["a/b"]))),
        scene::<SecretStore>(
            "nothing to change",
            &[created()],
            update(org(), Some(""), None),
        ),
        scene::<SecretStore>(
            "its own name",
            &[created()],
            update(org(), Some("keys"), None),
        ),
        scene::<SecretStore>(
            "another name",
            &[created()],
            update(org(), Some("more"), None),
        ),
        scene::<SecretStore>(
            "an empty list",
            &[created()],
            update(org(), None, Some(&[])),
        ),
        scene::<SecretStore>(
            "another's",
            &[created()],
            update(other_org(), Some("x"), None),
        ),
        scene::<SecretStore>("delete", &[created()], delete(org())),
        scene::<SecretStore>("delete twice", &gone, delete(org())),
        scene::<SecretStore>("delete another's", &[created()], delete(other_org())),
    ];
    insta::assert_snapshot!(scenes.concat());
}

#[test]
fn entries_are_set_replaced_and_deleted() {
    let held = [created(), StoreEvent::SecretSet(secret_was_set("TOKEN", 2))];
    let delete = |name: &str| {
        StoreCommand::Secret(
            org(),
            SecretCommand::Delete {
                name: name.to_owned(),
                at: at(4),
            },
        )
    };
    let set = |org, hosts: &[&str]| StoreCommand::Secret(org, set_secret("TOKEN", hosts, 3));
    let scenes = [
        scene::<SecretStore>("a first one", &[created()], set(org(), &["*.a.test"])),
        scene::<SecretStore>("anew: it keeps its id", &held, set(org(), &[])),
        scene::<SecretStore>("in another's store", &held, set(other_org(), &[])),
        scene::<SecretStore>("delete", &held, delete("TOKEN")),
        scene::<SecretStore>("delete one that isn't there", &held, delete("token")),
    ];
    insta::assert_snapshot!(scenes.concat());
}
