//! The layouts of written-down states. A layout that differs from its recorded one needs the next
//! `STATE_VERSION`: then the file's name differs too, and old state snapshots are thrown away.

use insta::assert_json_snapshot;
use serde_json::json;

use super::{after, at, id, intent, org, project, sandbox, secret_store, secret_was_set};
use crate::actors::aggregate::Aggregate;
use crate::actors::checkpoint::Checkpoint;
use crate::actors::images::Image;
use crate::actors::org::Org;
use crate::actors::project::Project;
use crate::actors::sandbox::{PatchState, Phase, Sandbox};
use crate::actors::secret_store::SecretStore;
use crate::events::families::{
    CheckpointEvent, CheckpointKind, CheckpointReady, CheckpointRequested, ImageEvent,
    ImageLayerAdded, ImageReady, ImageRequested, ImageUsed, KeyCreated, KeyRevoked, OrgCreated,
    OrgEvent, PatchAdded, ProjectEvent, SandboxEvent, Scope, SecretDeleted, SecretRevoked,
    SecretTaken, StoreEvent,
};

/// Every field is set, and what is written down reads back as the same.
fn check<A: Aggregate>(name: &str, state: &A) {
    let written = serde_json::to_value(state).expect("written down");
    let read: A = serde_json::from_value(written.clone()).expect("read back");
    assert_eq!(serde_json::to_value(&read).expect("written again"), written);
    let empty = serde_json::to_value(A::default()).expect("written down");
    serde_json::from_value::<A>(empty).expect("nothing reads back too");
    assert!(
        !written.to_string().contains("null"),
        "{name}: every field has a value"
    );
    assert_json_snapshot!(format!("{name}_v{}", A::STATE_VERSION), written);
}

/// Goal: nobody changes what is written down without a new version. If this fails and the change
/// is meant, raise the aggregate's `STATE_VERSION` and take the new file in.
#[test]
fn a_changed_layout_needs_a_new_state_version() {
    let organization = [
        OrgEvent::Created(OrgCreated {
            org_id: org(),
            name: "default".to_owned(),
            at: at(0),
        }),
        OrgEvent::KeyCreated(KeyCreated {
            key_id: id("00000000-0000-7000-8000-0000000000f1"),
            name: "first".to_owned(),
            prefix: "osb_00000000".to_owned(),
            sha256: "ab".repeat(32),
            scope: Scope::Admin,
            target: None,
            expires_at: None,
            rate: None,
            at: at(1),
        }),
        OrgEvent::KeyRevoked(KeyRevoked {
            key_id: id("00000000-0000-7000-8000-0000000000f1"),
            at: at(2),
        }),
    ];
    check("org", &after::<Org>(&organization));
    let secret = ProjectEvent::SecretSet(secret_was_set("KEY", 1));
    let revoked = |name: &str| SecretRevoked {
        name: name.to_owned(),
        at: at(2),
    };
    let gone = || SecretDeleted {
        name: "GONE".to_owned(),
        at: at(2),
    };
    let dead = ProjectEvent::SecretRevoked(revoked("OLD"));
    check(
        "project",
        &after::<Project>(&[
            project::created(),
            secret,
            dead,
            ProjectEvent::SecretDeleted(gone()),
        ]),
    );
    let dead = StoreEvent::SecretRevoked(revoked("OLD"));
    let secret = StoreEvent::SecretSet(secret_was_set("KEY", 1));
    check(
        "store",
        &after::<SecretStore>(&[
            secret_store::created(),
            secret,
            dead,
            StoreEvent::SecretDeleted(gone()),
        ]),
    );
    let mut with_alias = sandbox::running();
    if let Some(SandboxEvent::Created(created)) = with_alias.first_mut() {
        created.alias = Some("mine".to_owned());
        created.egress_allowlist = vec!["a.test".to_owned()];
    }
    let kept = after::<Sandbox>(&with_alias).sealed;
    let taken = SecretTaken {
        name: "TOKEN".to_owned(),
        layer_id: "L1".to_owned(),
        at: at(6),
    };
    with_alias.push(SandboxEvent::SecretRevoked(taken));
    with_alias.extend(super::sandbox_sleep::asleep_and_scaled());
    let mut both = after::<Sandbox>(&with_alias);
    both.sealed = kept;
    both.restoring = Some(id("00000000-0000-7000-8000-0000000000c0"));
    both.patched = PatchState {
        sequence: 1,
        error: Some("exit code 3".to_owned()),
    };
    check("sandbox", &both);
    let mut taken = after::<Checkpoint>(&checkpoint_events());
    taken.failed_at = Some(at(7));
    check("checkpoint", &taken);
    check("image", &after::<Image>(&image_events()));
    let phases = [
        Phase::Absent,
        Phase::Starting(intent(1)),
        Phase::Running,
        Phase::Hibernating(intent(3)),
        Phase::Hibernated,
        Phase::Failed("gone".to_owned()),
        Phase::Stopping(intent(2)),
        Phase::Stopped,
        Phase::NeverStarted,
    ];
    assert_json_snapshot!(format!("phases_v{}", Sandbox::STATE_VERSION), json!(phases));
}

/// An image that was used.
fn image_events() -> Vec<ImageEvent> {
    let layer = ImageLayerAdded {
        key: "cd".repeat(32),
        checkpoint_id: id("00000000-0000-7000-8000-0000000000c1"),
        at: at(2),
    };
    vec![
        ImageEvent::Requested(ImageRequested {
            image_id: id("00000000-0000-7000-8000-0000000000a7"),
            org_id: org(),
            name: Some("tools".to_owned()),
            content_hash: "ab".repeat(32),
            manifest: vec![super::sealed("manifest-0")],
            checkpoint_id: id("00000000-0000-7000-8000-0000000000c2"),
            at: at(1),
        }),
        ImageEvent::LayerAdded(layer),
        ImageEvent::Ready(ImageReady { at: at(3) }),
        ImageEvent::Used(ImageUsed { at: at(4) }),
    ]
}

/// A checkpoint with a patch.
fn checkpoint_events() -> Vec<CheckpointEvent> {
    let requested = CheckpointRequested {
        checkpoint_id: id("00000000-0000-7000-8000-0000000000c0"),
        org_id: super::org(),
        name: "first".to_owned(),
        kind: CheckpointKind::Full,
        config: sandbox::created(),
        revision: 3,
        envs: super::sealed("envs"),
        image: Some(super::sealed("image")),
        ca_certificate: "CERTIFICATE".to_owned(),
        ca_key: super::sealed("ca-key"),
        at: at(1),
    };
    let ready = CheckpointReady {
        size_bytes: 4096,
        paused_us: 1500,
        at: at(2),
    };
    let patch = PatchAdded {
        patch_id: id("00000000-0000-7000-8000-0000000000d0"),
        sequence: 1,
        script: "true".to_owned(),
        description: "d".to_owned(),
        at: at(3),
    };
    vec![
        CheckpointEvent::Requested(requested),
        CheckpointEvent::Ready(ready),
        CheckpointEvent::PatchAdded(patch),
    ]
}
