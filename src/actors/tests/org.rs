//! An organization's rules.

use super::{at, id, org, scene};
use crate::actors::org::{Org, OrgCommand};
use crate::events::families::{KeyCreated, OrgCreated, OrgEvent};

fn created() -> OrgCreated {
    OrgCreated {
        org_id: org(),
        name: "default".to_owned(),
        at: at(0),
    }
}

fn key() -> KeyCreated {
    KeyCreated {
        key_id: id("00000000-0000-7000-8000-0000000000f1"),
        name: "first".to_owned(),
        prefix: "osb_00000000".to_owned(),
        sha256: "ab".repeat(32),
        at: at(1),
    }
}

/// Goal: start-up can repeat both steps after a crash at any point between them.
#[test]
fn making_an_organization_and_its_key_can_be_repeated() {
    let made = [OrgEvent::Created(created())];
    let with_key = [OrgEvent::Created(created()), OrgEvent::KeyCreated(key())];
    let scenes = [
        scene::<Org>("create", &[], OrgCommand::Create(created())),
        scene::<Org>("create again", &made, OrgCommand::Create(created())),
        scene::<Org>("a key", &made, OrgCommand::CreateKey(key())),
        scene::<Org>(
            "the same key again",
            &with_key,
            OrgCommand::CreateKey(key()),
        ),
        scene::<Org>(
            "a key of no organization",
            &[],
            OrgCommand::CreateKey(key()),
        ),
    ];
    insta::assert_snapshot!(scenes.concat());
}
