//! A sandbox's rules: intents, outcomes, and what late or repeated ones may do.

use proptest::prelude::*;
use serde_json::json;
use ulid::Ulid;

use super::sandbox_sleep::{
    autoscale, hibernate, hibernated, lock, no_sleep, reboot, release, scale, tag, wake,
};
use super::{after, at, id, intent, org, other_org, scene, sealed};
use crate::actors::aggregate::Aggregate;
use crate::actors::sandbox::{Phase, Sandbox, SandboxCommand as C};
use crate::events::families::SecretTaken;
use crate::events::families::{
    Layer, LayerKind, SandboxCreated, SandboxEvent as E, SandboxFailed, SandboxSealed, SealedEntry,
    StartCause, StartFailed, StartRequested, Started, StopReason, StopRequested, Stopped,
};
use crate::ids::OrgId;

pub(super) fn created() -> SandboxCreated {
    SandboxCreated {
        sandbox_id: id("sb-01m806v6r12w1bmtyq39z8xdwq"),
        org_id: org(),
        template: "base".to_owned(),
        cpu_count: 1,
        memory_mb: 1024,
        disk_mb: 20480,
        timeout_sec: 300,
        port: 80,
        network_enabled: true,
        alias: None,
        metadata: [("team".to_owned(), "x".to_owned())].into(),
        layers: vec![Layer {
            kind: LayerKind::Store,
            id: "L1".to_owned(),
            name: "keys".to_owned(),
        }],
        egress_allowlist: Vec::new(),
        own_allowlist: None,
        origin: None,
        builds: None,
        at: at(0),
    }
}

fn entry(layer: &str, version: u64, token: &str) -> SealedEntry {
    SealedEntry {
        name: "TOKEN".to_owned(),
        token: token.to_owned(),
        allowed_hosts: vec!["a.test".to_owned()],
        placement: Some(super::placement()),
        layer_id: layer.to_owned(),
        version,
        sealed: sealed("value"),
    }
}

pub(super) fn set() -> SandboxSealed {
    SandboxSealed {
        secrets: vec![entry("L1", 3, "osb_sealed_1")],
        ca_certificate: "CERTIFICATE".to_owned(),
        ca_key: sealed("ca-key"),
        envs: sealed("envs"),
        image: Some(sealed("image")),
    }
}

pub(super) fn starting() -> Vec<E> {
    vec![
        E::Created(created()),
        E::Sealed(set()),
        E::StartRequested(StartRequested {
            intent: intent(1),
            cause: StartCause::Created,
            checkpoint: None,
            at: at(0),
        }),
    ]
}

pub(super) fn and(mut given: Vec<E>, event: E) -> Vec<E> {
    given.push(event);
    given
}

pub(super) fn running() -> Vec<E> {
    and(
        starting(),
        E::Started(Started {
            intent: intent(1),
            limits: json!({}),
            at: at(1),
        }),
    )
}

pub(super) fn failed() -> Vec<E> {
    and(
        running(),
        E::Failed(SandboxFailed {
            reason: "gone".to_owned(),
            at: at(2),
        }),
    )
}

fn stopping() -> Vec<E> {
    let reason = StopReason::UserRequested;
    and(
        running(),
        E::StopRequested(StopRequested {
            intent: intent(2),
            reason,
            at: at(3),
        }),
    )
}

pub(super) fn stopped() -> Vec<E> {
    and(
        stopping(),
        E::Stopped(Stopped {
            intent: intent(2),
            at: at(4),
        }),
    )
}

fn never_started() -> Vec<E> {
    let reason = "no room".to_owned();
    and(
        starting(),
        E::StartFailed(StartFailed {
            intent: intent(1),
            reason,
            at: at(1),
        }),
    )
}

fn create() -> C {
    C::Create {
        created: Box::new(created()),
        sealed: Box::new(set()),
        intent: intent(1),
    }
}

pub(super) fn started(number: u128) -> C {
    C::Started {
        intent: intent(number),
        limits: json!({ "memory": "sandbox" }),
        at: at(6),
    }
}

pub(super) fn start_failed(number: u128) -> C {
    C::StartFailed {
        intent: intent(number),
        reason: "no room".to_owned(),
        at: at(6),
    }
}

pub(super) fn stop(org: OrgId, number: u128) -> C {
    C::RequestStop {
        org,
        intent: intent(number),
        reason: StopReason::UserRequested,
        at: at(6),
    }
}

fn gone(number: u128) -> C {
    C::Stopped {
        intent: intent(number),
        at: at(6),
    }
}

pub(super) fn timeout(org: OrgId, seconds: i64) -> C {
    C::SetTimeout {
        org,
        seconds,
        at: at(6),
    }
}

pub(super) fn rotate(layer: &str, version: u64) -> C {
    C::Rotate {
        entry: entry(layer, version, ""),
        at: at(6),
    }
}

fn revoke(layer: &str, version: u64) -> C {
    C::Revoke {
        name: "TOKEN".to_owned(),
        layer_id: layer.to_owned(),
        version,
        at: at(6),
    }
}

fn revoked() -> Vec<E> {
    let taken = SecretTaken {
        name: "TOKEN".to_owned(),
        layer_id: "L1".to_owned(),
        at: at(6),
    };
    and(running(), E::SecretRevoked(taken))
}

/// Goal: of a revoked secret a sandbox keeps the name and the dead token, and no ciphertext.
#[test]
fn a_revoked_secret_leaves_a_dead_token() {
    let state = after::<Sandbox>(&revoked());
    let sealed = state.sealed.expect("a sealed set");
    assert!(sealed.secrets.is_empty());
    let dead: Vec<_> = state.revoked.iter().map(|dead| &*dead.token).collect();
    assert_eq!(dead, ["osb_sealed_1"]);
    assert!(state.sealed_revision > after::<Sandbox>(&running()).sealed_revision);
}

#[test]
fn a_start_is_an_intent_and_one_outcome() {
    let scenes = [
        scene::<Sandbox>("create", &[], create()),
        scene::<Sandbox>("it runs", &starting(), started(1)),
        scene::<Sandbox>("it runs, told twice", &running(), started(1)),
        scene::<Sandbox>("it runs, of another attempt", &starting(), started(9)),
        scene::<Sandbox>("it can't be started", &starting(), start_failed(1)),
        scene::<Sandbox>("failed, told late", &running(), start_failed(1)),
        scene::<Sandbox>("it runs, told after the stop", &stopping(), started(1)),
        scene::<Sandbox>(
            "restart",
            &running(),
            C::Restart {
                intent: intent(5),
                at: at(6),
            },
        ),
        scene::<Sandbox>(
            "restart a gone one",
            &stopped(),
            C::Restart {
                intent: intent(5),
                at: at(6),
            },
        ),
        scene::<Sandbox>(
            "it ended",
            &running(),
            C::Fail {
                reason: "gone".into(),
                at: at(6),
            },
        ),
        scene::<Sandbox>(
            "it ended, told twice",
            &failed(),
            C::Fail {
                reason: "gone".into(),
                at: at(6),
            },
        ),
    ];
    insta::assert_snapshot!(scenes.concat());
}

#[test]
fn a_stop_is_an_intent_and_one_outcome() {
    let scenes = [
        scene::<Sandbox>("while it runs", &running(), stop(org(), 2)),
        scene::<Sandbox>("while it starts", &starting(), stop(org(), 2)),
        scene::<Sandbox>("after it failed", &failed(), stop(org(), 2)),
        scene::<Sandbox>("twice", &stopping(), stop(org(), 9)),
        scene::<Sandbox>("when it is gone", &stopped(), stop(org(), 9)),
        scene::<Sandbox>("one that never started", &never_started(), stop(org(), 9)),
        scene::<Sandbox>("another's", &running(), stop(other_org(), 9)),
        scene::<Sandbox>("gone", &stopping(), gone(2)),
        scene::<Sandbox>("gone, told twice", &stopped(), gone(2)),
        scene::<Sandbox>("gone, of another attempt", &stopping(), gone(9)),
        scene::<Sandbox>("gone, without a stop", &running(), gone(2)),
    ];
    insta::assert_snapshot!(scenes.concat());
}

#[test]
fn rotation_and_timeout_reach_live_sandboxes() {
    let scenes = [
        scene::<Sandbox>("its secret is revoked", &running(), revoke("L1", 9)),
        scene::<Sandbox>("revoked before this value", &running(), revoke("L1", 3)),
        scene::<Sandbox>("revoked in a layer that lost", &running(), revoke("L2", 9)),
        scene::<Sandbox>("revoked twice", &revoked(), revoke("L1", 9)),
        scene::<Sandbox>("a new value after it", &revoked(), rotate("L1", 10)),
        scene::<Sandbox>("revoked when it is gone", &stopped(), revoke("L1", 9)),
        scene::<Sandbox>(
            "a newer value: the token stays",
            &running(),
            rotate("L1", 4),
        ),
        scene::<Sandbox>("the value it has", &running(), rotate("L1", 3)),
        scene::<Sandbox>("of a layer that lost", &running(), rotate("L2", 9)),
        scene::<Sandbox>("when it is gone", &stopped(), rotate("L1", 4)),
        scene::<Sandbox>("timeout", &running(), timeout(org(), 0)),
        scene::<Sandbox>("a negative timeout", &running(), timeout(org(), -1)),
        scene::<Sandbox>(
            "a timeout beyond bounds",
            &running(),
            timeout(org(), i64::MAX),
        ),
        scene::<Sandbox>("timeout of a gone one", &stopped(), timeout(org(), 60)),
        scene::<Sandbox>("timeout of another's", &running(), timeout(other_org(), 60)),
    ];
    insta::assert_snapshot!(scenes.concat());
}

fn any_command() -> impl Strategy<Value = C> {
    let number = || 1..4u128;
    prop_oneof![
        number().prop_map(started),
        number().prop_map(start_failed),
        number().prop_map(|number| stop(org(), number)),
        number().prop_map(gone),
        number().prop_map(|number| hibernate(org(), number)),
        number().prop_map(hibernated),
        number().prop_map(no_sleep),
        Just(()).prop_map(|()| release()),
        (number(), prop::option::of(-1..9i64)).prop_map(|(number, timeout)| wake(
            org(),
            number,
            timeout
        )),
        number().prop_map(|number| reboot(org(), number, number == 1)),
        any::<bool>().prop_map(|automatic| scale(org(), 4096, automatic)),
        any::<bool>().prop_map(autoscale),
        any::<bool>().prop_map(lock),
        Just(()).prop_map(|()| tag(org(), "team")),
        number().prop_map(|number| C::Restart {
            intent: intent(number),
            at: at(6)
        }),
        Just(()).prop_map(|()| C::Fail {
            reason: "gone".to_owned(),
            at: at(6)
        }),
        (0..9u64).prop_map(|version| rotate("L1", version)),
        (-1..99i64).prop_map(|seconds| timeout(org(), seconds)),
    ]
}

fn open_intent(phase: &Phase) -> Option<Ulid> {
    match phase {
        Phase::Starting(intent) | Phase::Stopping(intent) | Phase::Hibernating(intent) => {
            Some(*intent)
        }
        _ => None,
    }
}

proptest! {
    /// Goal: whatever comes, in whatever order and however often: an outcome is recorded only for
    /// the open intent, what is final stays final, and it holds no ciphertext.
    #[test]
    fn no_order_of_commands_breaks_a_life(commands in prop::collection::vec(any_command(), 0..40)) {
        let mut state: Sandbox = after(&starting());
        for (step, command) in commands.iter().enumerate() {
            let before = state.clone();
            let events = state.decide(command).map(|decision| decision.events).unwrap_or_default();
            for event in &events {
                let closes = match event {
                    E::Started(e) => Some(e.intent),
                    E::StartFailed(e) => Some(e.intent),
                    E::Stopped(e) => Some(e.intent),
                    E::Hibernated(e) => Some(e.intent),
                    E::HibernateFailed(e) => Some(e.intent),
                    _ => None,
                };
                if let Some(closes) = closes {
                    prop_assert_eq!(open_intent(&state.phase), Some(closes));
                }
                state.apply(event, step as u64 + 3);
            }
            let is_final = |phase: &Phase| matches!(phase, Phase::Stopped | Phase::NeverStarted);
            if is_final(&before.phase) {
                let labels = |event: &E| matches!(event, E::TagsSet(_));
                prop_assert!(events.iter().all(labels), "{:?} is final", before.phase);
            }
            prop_assert_eq!(state.sealed.is_none(), is_final(&state.phase));
            // The same outcome a second time changes nothing.
            if matches!(command, C::Started { .. } | C::StartFailed { .. } | C::Stopped { .. }) {
                let again = state.decide(command).map(|decision| decision.events);
                prop_assert!(again.is_err() || again.is_ok_and(|events| events.is_empty()));
            }
        }
    }
}
