//! A sandbox's rules: intents, outcomes, and what late or repeated ones may do.

use proptest::prelude::*;
use serde_json::json;
use ulid::Ulid;

use super::{after, at, id, intent, org, other_org, scene, sealed};
use crate::actors::aggregate::Aggregate;
use crate::actors::sandbox::scaling::Size;
use crate::actors::sandbox::{Phase, Sandbox, SandboxCommand as C};
use crate::events::families::SecretTaken;
use crate::events::families::{
    AutoscaleSet, Bounds, HibernateRequested, Hibernated, Kept, Layer, LayerKind, SandboxCreated,
    SandboxEvent as E, SandboxFailed, SandboxSealed, Scaled, ScalingLocked, SealedEntry,
    SleepReason, StartCause, StartFailed, StartRequested, Started, StopReason, StopRequested,
    Stopped, TagsSet,
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
    }
}

fn starting() -> Vec<E> {
    vec![
        E::Created(created()),
        E::Sealed(set()),
        E::StartRequested(StartRequested {
            intent: intent(1),
            cause: StartCause::Created,
            at: at(0),
        }),
    ]
}

fn and(mut given: Vec<E>, event: E) -> Vec<E> {
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

fn failed() -> Vec<E> {
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

fn stopped() -> Vec<E> {
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

fn started(number: u128) -> C {
    C::Started {
        intent: intent(number),
        limits: json!({ "memory": "sandbox" }),
        at: at(6),
    }
}

fn start_failed(number: u128) -> C {
    C::StartFailed {
        intent: intent(number),
        reason: "no room".to_owned(),
        at: at(6),
    }
}

fn stop(org: OrgId, number: u128) -> C {
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

fn timeout(org: OrgId, seconds: i64) -> C {
    C::SetTimeout {
        org,
        seconds,
        at: at(6),
    }
}

fn rotate(layer: &str, version: u64) -> C {
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

fn hibernate_requested(number: u128) -> E {
    E::HibernateRequested(HibernateRequested {
        intent: intent(number),
        reason: SleepReason::Idle,
        at: at(3),
    })
}

/// What puts a running sandbox to sleep, with everything set that can be.
pub(super) fn asleep_and_scaled() -> Vec<E> {
    let bounds = Some(Bounds {
        min_memory_mb: 1024,
        max_memory_mb: 4096,
    });
    vec![
        E::Scaled(Scaled {
            memory_mb: 4096,
            cpu_percent: 150,
            automatic: false,
            at: at(3),
        }),
        E::AutoscaleSet(AutoscaleSet { bounds, at: at(3) }),
        E::TagsSet(TagsSet {
            tags: [("team".to_owned(), "x".to_owned())].into(),
            at: at(3),
        }),
        hibernate_requested(3),
        E::Hibernated(Hibernated {
            intent: intent(3),
            kept: Kept::Memory,
            size_bytes: 4096,
            at: at(4),
        }),
    ]
}

fn falling_asleep() -> Vec<E> {
    and(running(), hibernate_requested(3))
}

fn asleep() -> Vec<E> {
    let slept = E::Hibernated(Hibernated {
        intent: intent(3),
        kept: Kept::Memory,
        size_bytes: 4096,
        at: at(4),
    });
    and(falling_asleep(), slept)
}

fn waking() -> Vec<E> {
    let wake = E::StartRequested(StartRequested {
        intent: intent(4),
        cause: StartCause::Wake,
        at: at(5),
    });
    and(asleep(), wake)
}

fn hibernate(org: OrgId, number: u128) -> C {
    C::Hibernate {
        org,
        intent: intent(number),
        reason: SleepReason::UserRequested,
        at: at(6),
    }
}

fn hibernated(number: u128) -> C {
    C::Hibernated {
        intent: intent(number),
        kept: Kept::Disk,
        size_bytes: 0,
        at: at(6),
    }
}

fn no_sleep(number: u128) -> C {
    C::HibernateFailed {
        intent: intent(number),
        reason: "busy".to_owned(),
        at: at(6),
    }
}

fn release() -> C {
    C::ReleaseMemory {
        reason: "short".to_owned(),
        at: at(6),
    }
}

fn wake(org: OrgId, number: u128, timeout: Option<i64>) -> C {
    C::Wake {
        org,
        intent: intent(number),
        timeout,
        at: at(6),
    }
}

fn reboot(org: OrgId, number: u128, hard: bool) -> C {
    C::Reboot {
        org,
        intent: intent(number),
        hard,
        at: at(6),
    }
}

fn scale(org: OrgId, memory_mb: i64, automatic: bool) -> C {
    C::Scale {
        org,
        size: Size::tier(memory_mb).expect("a tier"),
        automatic,
        at: at(6),
    }
}

fn autoscale(on: bool) -> C {
    C::SetAutoscale {
        org: org(),
        bounds: on.then_some(Bounds {
            min_memory_mb: 1024,
            max_memory_mb: 4096,
        }),
        at: at(6),
    }
}

fn lock(locked: bool) -> C {
    C::LockScaling {
        org: org(),
        locked,
        at: at(6),
    }
}

fn tag(org: OrgId, key: &str) -> C {
    C::SetTags {
        org,
        tags: [(key.to_owned(), "x".to_owned())].into(),
        at: at(6),
    }
}

#[test]
fn a_sleep_is_an_intent_and_one_outcome_and_ends_on_use() {
    let scenes = [
        scene::<Sandbox>("hibernate", &running(), hibernate(org(), 3)),
        scene::<Sandbox>(
            "while it falls asleep",
            &falling_asleep(),
            hibernate(org(), 9),
        ),
        scene::<Sandbox>("asleep already", &asleep(), hibernate(org(), 9)),
        scene::<Sandbox>("while it starts", &starting(), hibernate(org(), 9)),
        scene::<Sandbox>("when it is gone", &stopped(), hibernate(org(), 9)),
        scene::<Sandbox>("another's", &running(), hibernate(other_org(), 9)),
        scene::<Sandbox>("it sleeps", &falling_asleep(), hibernated(3)),
        scene::<Sandbox>("it sleeps, told twice", &asleep(), hibernated(3)),
        scene::<Sandbox>(
            "it sleeps, of another attempt",
            &falling_asleep(),
            hibernated(9),
        ),
        scene::<Sandbox>("it can't sleep", &falling_asleep(), no_sleep(3)),
        scene::<Sandbox>("its processes are let go", &asleep(), release()),
        scene::<Sandbox>("let go while it runs", &running(), release()),
        scene::<Sandbox>("wake", &asleep(), wake(org(), 4, None)),
        scene::<Sandbox>("wake with a timeout", &asleep(), wake(org(), 4, Some(0))),
        scene::<Sandbox>(
            "wake with a bad timeout",
            &asleep(),
            wake(org(), 4, Some(-1)),
        ),
        scene::<Sandbox>("wake twice", &waking(), wake(org(), 9, None)),
        scene::<Sandbox>("wake one that runs", &running(), wake(org(), 9, Some(60))),
        scene::<Sandbox>(
            "wake one that stopped by itself",
            &failed(),
            wake(org(), 9, None),
        ),
        scene::<Sandbox>("wake a gone one", &stopped(), wake(org(), 9, None)),
        scene::<Sandbox>("wake another's", &asleep(), wake(other_org(), 9, None)),
        scene::<Sandbox>("it is awake", &waking(), started(4)),
        scene::<Sandbox>(
            "it can't be woken: it sleeps on",
            &waking(),
            start_failed(4),
        ),
        scene::<Sandbox>("deleted asleep", &asleep(), stop(org(), 9)),
        scene::<Sandbox>("timeout of a sleeper", &asleep(), timeout(org(), 60)),
        scene::<Sandbox>("a newer value for a sleeper", &asleep(), rotate("L1", 4)),
        scene::<Sandbox>("reboot", &running(), reboot(org(), 5, false)),
        scene::<Sandbox>("power-cycle", &running(), reboot(org(), 5, true)),
        scene::<Sandbox>("reboot a sleeper", &asleep(), reboot(org(), 5, false)),
    ];
    insta::assert_snapshot!(scenes.concat());
    let woken = [
        waking(),
        vec![E::StartFailed(StartFailed {
            intent: intent(4),
            reason: "no room".to_owned(),
            at: at(6),
        })],
    ];
    let state = after::<Sandbox>(&woken.concat());
    assert_eq!(state.phase.status(), Some("hibernated"));
}

#[test]
fn sizes_change_while_a_sandbox_runs_and_is_not_locked() {
    let locked = and(
        running(),
        E::ScalingLocked(ScalingLocked {
            locked: true,
            at: at(3),
        }),
    );
    let automatic = [running(), asleep_and_scaled().into_iter().take(2).collect()].concat();
    let scenes = [
        scene::<Sandbox>("scale", &running(), scale(org(), 4096, false)),
        scene::<Sandbox>("to the size it has", &running(), scale(org(), 1024, false)),
        scene::<Sandbox>("asleep", &asleep(), scale(org(), 4096, false)),
        scene::<Sandbox>("another's", &running(), scale(other_org(), 4096, false)),
        scene::<Sandbox>("locked", &locked, scale(org(), 4096, false)),
        scene::<Sandbox>(
            "by itself, not asked for",
            &running(),
            scale(org(), 4096, true),
        ),
        scene::<Sandbox>("by itself", &automatic, scale(org(), 1024, true)),
        scene::<Sandbox>(
            "by hand: no longer by itself",
            &automatic,
            scale(org(), 1024, false),
        ),
        scene::<Sandbox>("autoscale", &running(), autoscale(true)),
        scene::<Sandbox>("autoscale again", &automatic, autoscale(true)),
        scene::<Sandbox>("autoscale off", &automatic, autoscale(false)),
        scene::<Sandbox>("autoscale, locked", &locked, autoscale(true)),
        scene::<Sandbox>("lock", &automatic, lock(true)),
        scene::<Sandbox>("lock again", &locked, lock(true)),
        scene::<Sandbox>("unlock", &locked, lock(false)),
        scene::<Sandbox>("lock a gone one", &stopped(), lock(true)),
        scene::<Sandbox>("tags", &asleep(), tag(org(), "team")),
        scene::<Sandbox>("a reserved tag", &running(), tag(org(), "oc:team")),
        scene::<Sandbox>("tags of a gone one", &stopped(), tag(org(), "team")),
        scene::<Sandbox>("another's tags", &running(), tag(other_org(), "team")),
    ];
    insta::assert_snapshot!(scenes.concat());
    let state = after::<Sandbox>(&and(
        automatic,
        E::ScalingLocked(ScalingLocked {
            locked: true,
            at: at(5),
        }),
    ));
    assert_eq!(state.scaling.autoscale, None);
    assert_eq!(
        state.size(),
        Some(Size {
            memory_mb: 4096,
            cpu_percent: 150
        })
    );
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
