//! An organization's rules.

use super::{at, id, org, scene};
use crate::actors::org::{Org, OrgCommand};
use crate::events::families::{KeyCreated, KeyRevoked, OrgCreated, OrgEvent, Scope};

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
        scope: Scope::Admin,
        target: None,
        expires_at: None,
        rate: None,
        at: at(1),
    }
}

/// Goal: start-up can repeat both steps after a crash at any point between them, and a key that was
/// revoked is never valid again.
#[test]
fn steps_can_be_repeated_and_revoked_keys_stay_revoked() {
    let made = [OrgEvent::Created(created())];
    let with_key = [OrgEvent::Created(created()), OrgEvent::KeyCreated(key())];
    let revoked = KeyRevoked {
        key_id: key().key_id,
        at: at(2),
    };
    let without = [&with_key[..], &[OrgEvent::KeyRevoked(revoked.clone())]].concat();
    let revoke = || OrgCommand::RevokeKey(revoked.clone());
    let ends = |minute| {
        let key = KeyCreated {
            expires_at: Some(at(minute)),
            ..key()
        };
        [OrgEvent::Created(created()), OrgEvent::KeyCreated(key)]
    };
    let (with_end, after_end) = (ends(9), ends(3));
    let another = || OrgCommand::CreateKey {
        made: KeyCreated {
            key_id: id("00000000-0000-7000-8000-0000000000f2"),
            sha256: "cd".repeat(32),
            at: at(3),
            ..key()
        },
        by: Some(key().key_id),
    };
    let scenes = [
        scene::<Org>("create", &[], OrgCommand::Create(created())),
        scene::<Org>("create again", &made, OrgCommand::Create(created())),
        scene::<Org>(
            "a key",
            &made,
            OrgCommand::CreateKey {
                made: key(),
                by: None,
            },
        ),
        scene::<Org>(
            "the same key again",
            &with_key,
            OrgCommand::CreateKey {
                made: key(),
                by: None,
            },
        ),
        scene::<Org>(
            "a key of no organization",
            &[],
            OrgCommand::CreateKey {
                made: key(),
                by: None,
            },
        ),
        scene::<Org>("revoke it", &with_key, revoke()),
        scene::<Org>("another, with one that was revoked", &without, another()),
        scene::<Org>("another, with one that ends later", &with_end, another()),
        scene::<Org>("another, with one that has ended", &after_end, another()),
        scene::<Org>("revoke it again", &without, revoke()),
        scene::<Org>(
            "what was revoked stays so",
            &without,
            OrgCommand::CreateKey {
                made: key(),
                by: None,
            },
        ),
        scene::<Org>("revoke a key there is not", &made, revoke()),
    ];
    insta::assert_snapshot!(scenes.concat());
}
