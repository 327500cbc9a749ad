//! Sleep, sizes and labels of a sandbox: intents, outcomes, and who may ask when.

use super::sandbox::{
    and, failed, rotate, running, start_failed, started, starting, stop, stopped, timeout,
};
use super::{after, at, intent, org, other_org, scene};
use crate::actors::sandbox::scaling::Size;
use crate::actors::sandbox::{Sandbox, SandboxCommand as C};
use crate::events::families::{
    AutoscaleSet, Bounds, HibernateRequested, Hibernated, Kept, SandboxEvent as E, Scaled,
    ScalingLocked, SleepReason, StartCause, StartFailed, StartRequested, TagsSet,
};
use crate::ids::OrgId;

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
        checkpoint: None,
        at: at(5),
    });
    and(asleep(), wake)
}

pub(super) fn hibernate(org: OrgId, number: u128) -> C {
    C::Hibernate {
        org,
        intent: intent(number),
        reason: SleepReason::UserRequested,
        at: at(6),
    }
}

pub(super) fn hibernated(number: u128) -> C {
    C::Hibernated {
        intent: intent(number),
        kept: Kept::Disk,
        size_bytes: 0,
        at: at(6),
    }
}

pub(super) fn no_sleep(number: u128) -> C {
    C::HibernateFailed {
        intent: intent(number),
        reason: "busy".to_owned(),
        at: at(6),
    }
}

pub(super) fn release() -> C {
    C::ReleaseMemory {
        reason: "short".to_owned(),
        at: at(6),
    }
}

pub(super) fn wake(org: OrgId, number: u128, timeout: Option<i64>) -> C {
    C::Wake {
        org,
        intent: intent(number),
        timeout,
        at: at(6),
    }
}

pub(super) fn reboot(org: OrgId, number: u128, hard: bool) -> C {
    C::Reboot {
        org,
        intent: intent(number),
        hard,
        at: at(6),
    }
}

pub(super) fn scale(org: OrgId, memory_mb: i64, automatic: bool) -> C {
    C::Scale {
        org,
        size: Size::tier(memory_mb).expect("a tier"),
        automatic,
        at: at(6),
    }
}

pub(super) fn autoscale(on: bool) -> C {
    C::SetAutoscale {
        org: org(),
        bounds: on.then_some(Bounds {
            min_memory_mb: 1024,
            max_memory_mb: 4096,
        }),
        at: at(6),
    }
}

pub(super) fn lock(locked: bool) -> C {
    C::LockScaling {
        org: org(),
        locked,
        at: at(6),
    }
}

pub(super) fn tag(org: OrgId, key: &str) -> C {
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
