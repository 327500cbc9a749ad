//! What can be asked of a sandbox, as commands.

use serde_json::json;

use super::{CheckpointAct, SLOTS, SandboxAct, at, id, intent, letter, sealed};
use crate::actors::checkpoint::CheckpointCommand;
use crate::actors::sandbox::SandboxCommand;
use crate::actors::sandbox::scaling::Size;
use crate::actors::tests::placement;
use crate::events::families::{
    Bounds, CheckpointFailed, CheckpointKind, CheckpointReady, CheckpointRequested, Kept, Layer,
    LayerKind, Origin, SandboxCreated, SandboxSealed, SealedEntry, SleepReason, StopReason,
};
use crate::ids::{CheckpointId, OrgId, PatchId, SandboxId, StoreId};

pub(super) fn sandbox_command(
    own: &SandboxId,
    stores: &[StoreId; SLOTS],
    act: &SandboxAct,
    org: OrgId,
) -> SandboxCommand {
    use SandboxCommand as C;
    let (intent, at) = (|number: &u128| intent(*number), at(5));
    match act {
        SandboxAct::Create {
            store,
            intent: number,
        } => C::Create {
            created: Box::new(created(own, &stores[*store], org)),
            sealed: Box::new(SandboxSealed {
                secrets: vec![
                    entry(&stores[*store], "A", 1),
                    entry(&stores[*store], "B", 1),
                ],
                ca_certificate: "CERTIFICATE".to_owned(),
                ca_key: sealed("CIPHERTEXT"),
                envs: sealed("CIPHERTEXT"),
                image: Some(sealed("CIPHERTEXT")),
            }),
            intent: intent(number),
        },
        SandboxAct::Restart(number) => C::Restart {
            intent: intent(number),
            at,
        },
        SandboxAct::Started(number) => C::Started {
            intent: intent(number),
            limits: json!({ "memory": "enforced" }),
            at,
        },
        SandboxAct::StartFailed(number) => C::StartFailed {
            intent: intent(number),
            reason: "no room".to_owned(),
            at,
        },
        SandboxAct::Fail => C::Fail {
            reason: "gone".to_owned(),
            at,
        },
        SandboxAct::Rotate { store, version } => C::Rotate {
            entry: entry(&stores[*store], "A", *version),
            at,
        },
        SandboxAct::Revoke { store, version } => C::Revoke {
            name: "A".to_owned(),
            layer_id: stores[*store].to_string(),
            version: *version,
            at,
        },
        SandboxAct::SetTimeout(seconds) => C::SetTimeout {
            org,
            seconds: *seconds,
            at,
        },
        SandboxAct::RequestStop(number) => C::RequestStop {
            org,
            intent: intent(number),
            reason: StopReason::UserRequested,
            at,
        },
        SandboxAct::Stopped(number) => C::Stopped {
            intent: intent(number),
            at,
        },
        SandboxAct::Hibernate(number) => C::Hibernate {
            org,
            intent: intent(number),
            reason: SleepReason::Idle,
            at,
        },
        SandboxAct::Hibernated(number) => C::Hibernated {
            intent: intent(number),
            kept: Kept::Memory,
            size_bytes: 4096,
            at,
        },
        SandboxAct::HibernateFailed(number) => C::HibernateFailed {
            intent: intent(number),
            reason: "busy".to_owned(),
            at,
        },
        SandboxAct::ReleaseMemory => C::ReleaseMemory {
            reason: "short".to_owned(),
            at,
        },
        SandboxAct::Wake(number, timeout) => C::Wake {
            org,
            intent: intent(number),
            timeout: *timeout,
            at,
        },
        SandboxAct::Reboot(number) => C::Reboot {
            org,
            intent: intent(number),
            hard: *number == 0,
            at,
        },
        SandboxAct::Scale(memory_mb, automatic) => C::Scale {
            org,
            size: Size::tier(*memory_mb).expect("a tier"),
            automatic: *automatic,
            at,
        },
        SandboxAct::Autoscale(on) => C::SetAutoscale {
            org,
            bounds: on.then_some(Bounds {
                min_memory_mb: 1024,
                max_memory_mb: 8192,
            }),
            at,
        },
        SandboxAct::Lock(locked) => C::LockScaling {
            org,
            locked: *locked,
            at,
        },
        SandboxAct::Restore(number) => C::Restore {
            org,
            intent: intent(number),
            checkpoint: id("00000000-0000-7000-8000-0000000000c1"),
            at,
        },
        SandboxAct::Patched(sequence, failed) => C::Patched {
            sequence: *sequence,
            error: failed.then(|| "exit code 3".to_owned()),
            at,
        },
        SandboxAct::Tag(number) => C::SetTags {
            org,
            tags: [("team".to_owned(), letter(*number))].into(),
            at,
        },
    }
}

fn created(sandbox: &SandboxId, store: &StoreId, org: OrgId) -> SandboxCreated {
    SandboxCreated {
        sandbox_id: sandbox.clone(),
        org_id: org,
        template: "base".to_owned(),
        cpu_count: 1,
        memory_mb: 1024,
        disk_mb: 20480,
        timeout_sec: 300,
        port: 80,
        network_enabled: true,
        alias: Some("box".to_owned()),
        metadata: [("team".to_owned(), "x".to_owned())].into(),
        layers: vec![Layer {
            kind: LayerKind::Store,
            id: store.to_string(),
            name: "keys".to_owned(),
        }],
        egress_allowlist: vec!["a.test".to_owned()],
        own_allowlist: Some(vec!["a.test".to_owned()]),
        origin: Some(Origin {
            checkpoint_id: id("00000000-0000-7000-8000-0000000000c0"),
            sandbox_id: id("sb-01m806v6r12w1bmtyq39z8xdwq"),
        }),
        builds: Some(id("00000000-0000-7000-8000-0000000000a7")),
        at: at(0),
    }
}

fn entry(store: &StoreId, name: &str, version: u64) -> SealedEntry {
    SealedEntry {
        name: name.to_owned(),
        token: format!("osb_sealed_{name}"),
        allowed_hosts: vec!["a.test".to_owned()],
        placement: Some(placement()),
        layer_id: store.to_string(),
        version,
        sealed: sealed("CIPHERTEXT"),
    }
}

/// Lives of sandboxes in which everything happens that can be recorded, by slot.
pub fn sandbox_lives() -> impl Iterator<Item = (usize, SandboxAct)> {
    use SandboxAct as S;
    let create = || S::Create {
        store: 1,
        intent: 1,
    };
    let rotate = S::Rotate {
        store: 1,
        version: 2,
    };
    let revoke = S::Revoke {
        store: 1,
        version: 9,
    };
    let short = [create(), S::Started(1), rotate, revoke, S::SetTimeout(60)];
    let end = [S::RequestStop(2), S::Stopped(2)];
    let never = [create(), S::StartFailed(1)];
    let failed = [create(), S::Started(1), S::Fail];
    let long = [
        create(),
        S::Started(1),
        S::Restart(3),
        S::Started(3),
        S::Hibernate(4),
        S::HibernateFailed(4),
        S::Hibernate(5),
        S::Hibernated(5),
        S::ReleaseMemory,
        S::Wake(6, Some(30)),
        S::Started(6),
        S::Reboot(7),
        S::Started(7),
        S::Scale(4096, false),
        S::Autoscale(true),
        S::Scale(8192, true),
        S::Lock(true),
        S::Tag(0),
        S::Restore(8),
        S::Started(8),
        S::Patched(1, false),
        S::Patched(2, true),
    ];
    let in_slot = |slot: usize, acts: Vec<S>| acts.into_iter().map(move |act| (slot, act));
    in_slot(0, [short.as_slice(), &end].concat())
        .chain(in_slot(1, never.into()))
        .chain(in_slot(2, failed.into()))
        .chain(in_slot(0, long.into()))
}

/// Lives of checkpoints in which everything happens that can be recorded, by slot.
pub fn checkpoint_lives() -> impl Iterator<Item = (usize, CheckpointAct)> {
    use CheckpointAct as C;
    let long = [
        C::Request(0),
        C::Ready,
        C::Publish(true),
        C::AddPatch(0),
        C::AddPatch(1),
        C::DeletePatch(0),
    ];
    let deleted = [C::Request(1), C::Ready, C::Delete];
    let in_slot = |slot: usize, acts: Vec<C>| acts.into_iter().map(move |act| (slot, act));
    in_slot(0, long.into())
        .chain(in_slot(1, deleted.into()))
        .chain(in_slot(2, vec![C::Request(2), C::Fail]))
}

pub(super) fn checkpoint_command(
    own: &CheckpointId,
    act: &CheckpointAct,
    org: OrgId,
) -> CheckpointCommand {
    use CheckpointCommand as C;
    let at = at(5);
    let patch =
        |number: &u8| id::<PatchId>(&format!("00000000-0000-7000-8000-0000000000d{number}"));
    match act {
        CheckpointAct::Request(number) => {
            let sandbox = id("sb-01m806v6r12w1bmtyq39z8xdwq");
            let store = id("00000000-0000-7000-8000-0000000000b0");
            C::Request(Box::new(CheckpointRequested {
                checkpoint_id: *own,
                org_id: org,
                name: letter(*number),
                kind: CheckpointKind::DiskOnly,
                config: created(&sandbox, &store, org),
                revision: 3,
                envs: sealed("CIPHERTEXT"),
                image: Some(sealed("CIPHERTEXT")),
                ca_certificate: "CERTIFICATE".to_owned(),
                ca_key: sealed("CIPHERTEXT"),
                at,
            }))
        }
        CheckpointAct::Ready => C::Ready(CheckpointReady {
            size_bytes: 4096,
            paused_us: 1500,
            at,
        }),
        CheckpointAct::Fail => C::Fail(CheckpointFailed {
            reason: "no room".to_owned(),
            at,
        }),
        CheckpointAct::Delete => C::Delete { org, at },
        CheckpointAct::Publish(public) => C::Publish {
            org,
            public: *public,
            at,
        },
        CheckpointAct::AddPatch(number) => C::AddPatch {
            org,
            id: patch(number),
            script: "SCRIPT".to_owned(),
            description: "d".to_owned(),
            at,
        },
        CheckpointAct::DeletePatch(number) => C::DeletePatch {
            org,
            id: patch(number),
            at,
        },
    }
}
