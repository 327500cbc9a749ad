//! What a request and its project add up to.

use super::*;
use crate::ids::OrgId;

fn settled(request: &CreateSandbox, project: Option<&ProjectCreated>) -> SandboxCreated {
    let caller = Caller {
        org: OrgId::generate(),
        key: None,
    };
    let id = SandboxId::generate();
    settle(&caller, &id, request, project, Vec::new(), Vec::new()).unwrap()
}

/// Goal: what counts as explicit beside a project's defaults (contract 23.4).
#[test]
fn a_request_wins_over_its_project_where_it_says_something() {
    let project = ProjectCreated {
        project_id: crate::ids::ProjectId::generate(),
        org_id: OrgId::generate(),
        name: "p".to_owned(),
        template: "default".to_owned(),
        cpu_count: 2,
        memory_mb: 2048,
        timeout_sec: 900,
        egress_allowlist: Vec::new(),
        at: OffsetDateTime::UNIX_EPOCH,
    };
    let silent = CreateSandbox {
        timeout: Some(0),
        cpu_count: Some(0),
        memory_mb: Some(-1),
        ..CreateSandbox::default()
    };
    let with = settled(&silent, Some(&project));
    let without = settled(&silent, None);
    let sizes = |s: &SandboxCreated| (s.cpu_count, s.memory_mb, s.timeout_sec);
    assert_eq!(sizes(&with), (2, 2048, 900));
    assert_eq!(sizes(&without), (1, 1024, 0));
    let loud = CreateSandbox {
        timeout: Some(60),
        cpu_count: Some(4),
        memory_mb: Some(512),
        ..CreateSandbox::default()
    };
    assert_eq!(sizes(&settled(&loud, Some(&project))), (4, 512, 60));
    assert_eq!(
        settled(&CreateSandbox::default(), None).timeout_sec,
        TIMEOUT_SEC_DEFAULT
    );
}

/// Goal: an environment that can't be sealed is refused before anything exists.
#[test]
fn an_environment_over_the_sealing_limit_is_refused() {
    let with = |bytes| CreateSandbox {
        envs: BTreeMap::from([("A".to_owned(), "x".repeat(bytes))]),
        ..CreateSandbox::default()
    };
    assert!(check_request(&with(SECRET_VALUE_BYTES_MAX - 64)).is_ok());
    assert!(check_request(&with(SECRET_VALUE_BYTES_MAX)).is_err());
}
