//! A project's rules.

use super::{after, at, id, org, other_org, scene, secret_was_set, set_secret};
use crate::actors::aggregate::Aggregate;
use crate::actors::project::{Project, ProjectCommand, ProjectSettings};
use crate::actors::secrets::{SECRETS_MAX, SecretCommand};
use crate::events::families::{
    ProjectCreated, ProjectDeleted, ProjectEvent, ProjectUpdated, SecretDeleted,
};
use crate::ids::OrgId;

pub(super) fn created() -> ProjectEvent {
    ProjectEvent::Created(ProjectCreated {
        project_id: id("00000000-0000-7000-8000-000000000001"),
        org_id: org(),
        name: "api".to_owned(),
        template: "node".to_owned(),
        cpu_count: 2,
        memory_mb: 2048,
        timeout_sec: 60,
        egress_allowlist: vec!["a.test".to_owned()],
        at: at(0),
    })
}

fn deleted() -> ProjectEvent {
    ProjectEvent::Deleted(ProjectDeleted { at: at(9) })
}

fn named(name: &str) -> ProjectSettings {
    ProjectSettings {
        name: Some(name.to_owned()),
        ..ProjectSettings::default()
    }
}

fn create(settings: ProjectSettings) -> ProjectCommand {
    ProjectCommand::Create {
        id: id("00000000-0000-7000-8000-000000000001"),
        org: org(),
        settings,
        memory_mb_max: 16384,
        at: at(1),
    }
}

fn update(org: OrgId, settings: ProjectSettings) -> ProjectCommand {
    ProjectCommand::Update {
        org,
        settings,
        memory_mb_max: 16384,
        at: at(5),
    }
}

#[test]
fn create_fills_in_every_default() {
    let says_nothing = ProjectSettings {
        template: Some(String::new()),
        cpu_count: Some(0),
        memory_mb: Some(-1),
        timeout_sec: Some(0),
        ..named("api")
    };
    let says_all = ProjectSettings {
        template: Some("node".to_owned()),
        cpu_count: Some(4),
        memory_mb: Some(16384),
        timeout_sec: Some(i32::MAX.into()),
        egress_allowlist: Some(vec!["*.a.test".to_owned()]),
        ..named("api")
    };
    let scenes = [
        scene::<Project>("only a name", &[], create(named("api"))),
        scene::<Project>(
            "empty and not positive is absent",
            &[],
            create(says_nothing),
        ),
        scene::<Project>("everything given", &[], create(says_all)),
        scene::<Project>("no name", &[], create(ProjectSettings::default())),
        scene::<Project>("an empty name", &[], create(named(""))),
        scene::<Project>(
            "a negative timeout",
            &[],
            create(ProjectSettings {
                timeout_sec: Some(-1),
                ..named("api")
            }),
        ),
    ];
    insta::assert_snapshot!(scenes.concat());
}

#[test]
fn update_changes_what_is_given() {
    let empty = ProjectSettings {
        name: Some(String::new()),
        template: Some(String::new()),
        cpu_count: Some(0),
        memory_mb: Some(0),
        timeout_sec: Some(0),
        egress_allowlist: None,
    };
    let clear = ProjectSettings {
        egress_allowlist: Some(Vec::new()),
        ..Default::default()
    };
    let negative = ProjectSettings {
        memory_mb: Some(-1),
        ..Default::default()
    };
    let too_big = ProjectSettings {
        cpu_count: Some(5),
        ..Default::default()
    };
    let one = ProjectSettings {
        cpu_count: Some(1),
        ..Default::default()
    };
    let scenes = [
        scene::<Project>(
            "nothing given",
            &[created()],
            update(org(), Default::default()),
        ),
        scene::<Project>("all empty", &[created()], update(org(), empty)),
        scene::<Project>("its own name", &[created()], update(org(), named("api"))),
        scene::<Project>("another name", &[created()], update(org(), named("web"))),
        scene::<Project>("an empty list clears", &[created()], update(org(), clear)),
        scene::<Project>("one number", &[created()], update(org(), one.clone())),
        scene::<Project>("a negative number", &[created()], update(org(), negative)),
        scene::<Project>("too much", &[created()], update(org(), too_big)),
        scene::<Project>("another's", &[created()], update(other_org(), one.clone())),
        scene::<Project>("one that never was", &[], update(org(), one.clone())),
        scene::<Project>("a deleted one", &[created(), deleted()], update(org(), one)),
    ];
    insta::assert_snapshot!(scenes.concat());
}

/// Goal: what was deleted is revoked still, for the sandboxes that have it; what never was, is not.
#[test]
fn a_name_that_was_ever_here_can_be_revoked() {
    let revoke = |events: &[ProjectEvent], name: &str| {
        let command = SecretCommand::Revoke {
            name: name.to_owned(),
            at: at(5),
        };
        let state = after::<Project>(events);
        let decision = state.decide(&ProjectCommand::Secret(org(), command));
        decision.map(|decision| decision.events)
    };
    let mut events = vec![
        created(),
        ProjectEvent::SecretSet(secret_was_set("TOKEN", 2)),
        ProjectEvent::SecretDeleted(SecretDeleted {
            name: "TOKEN".to_owned(),
            at: at(4),
        }),
    ];
    assert!(revoke(&events[..1], "TOKEN").is_err());
    assert!(revoke(&events, "OTHER").is_err());
    let revoked = revoke(&events, "TOKEN").expect("a deleted one");
    assert!(matches!(
        revoked.as_slice(),
        [ProjectEvent::SecretRevoked(_)]
    ));
    events.extend(revoked);
    assert_eq!(
        after::<Project>(&events).secrets.revoked_at("TOKEN"),
        Some(3)
    );
    assert!(revoke(&events, "TOKEN").is_ok());
}

#[test]
fn secrets_are_set_replaced_and_deleted() {
    let held = [
        created(),
        ProjectEvent::SecretSet(secret_was_set("TOKEN", 2)),
    ];
    let set =
        |name: &str, hosts: &[&str]| ProjectCommand::Secret(org(), set_secret(name, hosts, 3));
    let delete = |org: OrgId, name: &str| {
        ProjectCommand::Secret(
            org,
            SecretCommand::Delete {
                name: name.to_owned(),
                at: at(4),
            },
        )
    };
    let gone = ProjectEvent::SecretDeleted(SecretDeleted {
        name: "TOKEN".to_owned(),
        at: at(4),
    });
    let without = [held.to_vec(), vec![gone]].concat();
    let scenes = [
        scene::<Project>("a first one", &[created()], set("TOKEN", &["a.test"])),
        scene::<Project>(
            "anew: it keeps its id, loses its hosts",
            &held,
            set("TOKEN", &[]),
        ),
        scene::<Project>("a bad name", &held, set("1TOKEN", &[])),
        scene::<Project>("a bad host", &held, set("TOKEN", &["a b"])),
        scene::<Project>(
            "of a deleted project",
            &[created(), deleted()],
            set("TOKEN", &[]),
        ),
        scene::<Project>("delete", &held, delete(org(), "TOKEN")),
        scene::<Project>("delete one that isn't there", &held, delete(org(), "OTHER")),
        scene::<Project>("delete twice", &without, delete(org(), "TOKEN")),
        scene::<Project>("delete another's", &held, delete(other_org(), "TOKEN")),
    ];
    insta::assert_snapshot!(scenes.concat());
}

#[test]
fn a_delete_gives_the_present_name_back() {
    let renamed = ProjectEvent::Updated(ProjectUpdated {
        name: Some("web".to_owned()),
        template: None,
        cpu_count: None,
        memory_mb: None,
        timeout_sec: None,
        egress_allowlist: None,
        at: at(3),
    });
    let delete = |org| ProjectCommand::Delete(org, at(9));
    let scenes = [
        scene::<Project>("delete", &[created()], delete(org())),
        scene::<Project>("after a rename", &[created(), renamed], delete(org())),
        scene::<Project>("twice", &[created(), deleted()], delete(org())),
        scene::<Project>("another's", &[created()], delete(other_org())),
    ];
    insta::assert_snapshot!(scenes.concat());
    let secret = ProjectEvent::SecretSet(secret_was_set("TOKEN", 2));
    let state: Project = after(&[created(), secret, deleted()]);
    assert_eq!(
        state.secrets.iter().count(),
        0,
        "a deleted project holds no ciphertext"
    );
}

/// Goal: the bound on entries counts entries, so that a full project can still be rotated.
#[test]
fn a_full_project_takes_new_values_but_no_new_names() {
    let names = (0..SECRETS_MAX).map(|n| format!("S{n}"));
    let events: Vec<_> = std::iter::once(created())
        .chain(names.map(|name| ProjectEvent::SecretSet(secret_was_set(&name, 1))))
        .collect();
    let full: Project = after(&events);
    let set = |name: &str| full.decide(&ProjectCommand::Secret(org(), set_secret(name, &[], 2)));
    assert!(set("S0").is_ok());
    let refused = set("ONE_MORE").expect_err("over the bound").to_string();
    assert_eq!(refused, "at most 1024 secrets can be kept here");
}
