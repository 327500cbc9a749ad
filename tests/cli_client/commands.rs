//! Each command against a recording server: the request it makes, the text it prints, its exit
//! code.

use crate::stand_in::{KEY, StandIn};
use serde_json::{Value, json};

/// Runs one command; asserts its only request and its output.
fn check(arguments: &str, reply: Value, request: &str, body: Value, stdout: &str) {
    let server = StandIn::always(200, reply);
    let words: Vec<&str> = arguments.split(' ').collect();
    let ran = server.oc(&words);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "oc {arguments}");
    assert_eq!(ran.stdout, format!("{stdout}\n"), "oc {arguments}");
    let seen = server.taken();
    assert_eq!(seen.len(), 1, "oc {arguments}: {seen:?}");
    assert_eq!(
        (seen[0].line.as_str(), &seen[0].body),
        (request, &body),
        "oc {arguments}"
    );
    assert_eq!(seen[0].key.as_deref(), Some(KEY));
}

fn project() -> Value {
    json!({"id": "p-1", "orgId": "o", "name": "my-agent", "template": "default", "cpuCount": 2,
           "memoryMB": 1024, "timeoutSec": 600, "egressAllowlist": [],
           "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z"})
}

#[test]
fn projects() {
    let create = "project create --name my-agent --cpu 2 --memory 1024 --timeout 600 \
                  --egress-allowlist a.test,b.test --egress-allowlist c.test";
    let body = json!({"name": "my-agent", "cpuCount": 2, "memoryMB": 1024, "timeoutSec": 600,
                      "egressAllowlist": ["a.test", "b.test", "c.test"]});
    let created = "Created project my-agent (id: p-1)";
    check(create, project(), "POST /api/projects", body, created);
    let table = "ID   NAME      TEMPLATE  CPU  MEMORY  TIMEOUT\n\
                 p-1  my-agent  default   2    1024    600";
    for list in ["project list", "project ls"] {
        check(
            list,
            json!([project()]),
            "GET /api/projects",
            Value::Null,
            table,
        );
    }
    check(
        "project list",
        json!([]),
        "GET /api/projects",
        Value::Null,
        "No projects found.",
    );
    let lines = "ID:       p-1\nName:     my-agent\nTemplate: default\nCPU:      2\n\
                 Memory:   1024MB\nTimeout:  600s";
    check(
        "project get p-1",
        project(),
        "GET /api/projects/p-1",
        Value::Null,
        lines,
    );
    let mut limited = project();
    limited["egressAllowlist"] = json!(["a.test", "b.test"]);
    let with_hosts = format!("{lines}\nEgress:   a.test, b.test");
    check(
        "project get p-1",
        limited,
        "GET /api/projects/p-1",
        Value::Null,
        &with_hosts,
    );
    let deleted = "Project p-1 deleted.";
    check(
        "project delete p-1",
        Value::Null,
        "DELETE /api/projects/p-1",
        Value::Null,
        deleted,
    );
}

/// Goal: an update sends exactly the flags given, also 0 and the empty list.
#[test]
fn updates_are_partial() {
    let route = "PUT /api/projects/p-1";
    let updated = "Updated project my-agent";
    let memory = "project update p-1 --memory 2048";
    check(memory, project(), route, json!({"memoryMB": 2048}), updated);
    let zero = "project update p-1 --cpu 0 --template=";
    check(
        zero,
        project(),
        route,
        json!({"cpuCount": 0, "template": ""}),
        updated,
    );
    let clear = "project update p-1 --egress-allowlist=";
    check(
        clear,
        project(),
        route,
        json!({"egressAllowlist": []}),
        updated,
    );
    let server = StandIn::always(200, project());
    let ran = server.oc(&["project", "update", "p-1"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("--memory"), "{}", ran.stderr);
    assert_eq!(server.taken(), []);
}

#[test]
fn secret_stores() {
    let store = json!({"id": "s-1", "orgId": "o", "name": "prod", "egressAllowlist": ["a.test"],
                       "createdAt": "2020-01-01T00:00:00Z", "updatedAt": "2020-01-01T00:00:00Z"});
    let create = "secret-store create --name prod --egress-allowlist a.test";
    let body = json!({"name": "prod", "egressAllowlist": ["a.test"]});
    let created = "Created secret store prod (id: s-1)";
    check(
        create,
        store.clone(),
        "POST /api/secret-stores",
        body,
        created,
    );
    let get = "ID:     s-1\nName:   prod\nEgress: a.test";
    let route = "GET /api/secret-stores/s-1";
    check(
        "secret-store get s-1",
        store.clone(),
        route,
        Value::Null,
        get,
    );
    let update = "secret-store update s-1 --name next";
    let (route, body) = ("PUT /api/secret-stores/s-1", json!({"name": "next"}));
    check(
        update,
        store.clone(),
        route,
        body,
        "Updated secret store prod",
    );
    let route = "DELETE /api/secret-stores/s-1";
    let deleted = "Secret store s-1 deleted.";
    check(
        "secret-store delete s-1",
        Value::Null,
        route,
        Value::Null,
        deleted,
    );
    let none = "No secret stores found.";
    check(
        "secret-store ls",
        json!([]),
        "GET /api/secret-stores",
        Value::Null,
        none,
    );
    let mut open = store;
    open["egressAllowlist"] = json!([]);
    let server = StandIn::always(200, json!([open]));
    let listed = server.oc(&["secret-store", "list"]).stdout;
    assert!(
        listed.starts_with("ID   NAME  EGRESS ALLOWLIST  CREATED\ns-1  prod  (all)"),
        "{listed}"
    );
    assert!(listed.ends_with(" ago\n"), "{listed}");
}

#[test]
fn sandboxes() {
    let sandbox = json!({"sandboxID": "sb-1", "templateID": "base", "status": "running",
                         "cpuCount": 1, "memoryMB": 1024, "startedAt": "2020-01-01T00:00:00Z"});
    let created = "Created sandbox sb-1 (status: running)";
    let route = "POST /api/sandboxes";
    for create in ["create", "sandbox create"] {
        check(create, sandbox.clone(), route, json!({}), created);
    }
    let inherit = "create --project my-agent --timeout 600";
    let body = json!({"project": "my-agent", "timeout": 600});
    check(inherit, sandbox.clone(), route, body, created);
    let full = "create --template base --cpu 2 --memory 512 --env A=1,B=2 --env C=3 \
                --metadata k=v --secret-store prod --timeout 0";
    let body = json!({"templateID": "base", "cpuCount": 2, "memoryMB": 512, "timeout": 0,
                      "envs": {"A": "1", "B": "2", "C": "3"}, "metadata": {"k": "v"},
                      "secretStore": "prod"});
    check(full, sandbox.clone(), route, body, created);
    let mut gated = sandbox.clone();
    gated["previewAuthToken"] = json!("token-shown-once");
    let body = json!({"previewAuth": {"scheme": "bearer", "token": "auto"}});
    let shown = format!("{created}\nPreview auth token (shown once): token-shown-once");
    check("create --preview-auth", gated, route, body, &shown);
    let none = "No sandboxes found.";
    check("ls", json!([]), "GET /api/sandboxes", Value::Null, none);
    let lines = "ID:       sb-1\nTemplate: base\nStatus:   running\nCPU:      1\n\
                 Memory:   1024MB\nStarted:  2020-01-01T00:00:00Z";
    let route = "GET /api/sandboxes/sb-1";
    check(
        "sandbox get sb-1",
        sandbox.clone(),
        route,
        Value::Null,
        lines,
    );
    let route = "DELETE /api/sandboxes/sb-1";
    for kill in ["sandbox kill sb-1", "sandbox delete sb-1"] {
        check(
            kill,
            Value::Null,
            route,
            Value::Null,
            "Sandbox sb-1 killed.",
        );
    }
    let route = "DELETE /api/sandboxes/sb-1?deleteSecretStore=true";
    let kill = "sandbox kill sb-1 --delete-secret-store";
    check(
        kill,
        Value::Null,
        route,
        Value::Null,
        "Sandbox sb-1 killed.",
    );
    let server = StandIn::always(200, json!([sandbox]));
    let listed = server.oc(&["sandbox", "ls"]).stdout;
    assert!(
        listed.starts_with("ID    TEMPLATE  STATUS   CPU  MEM     AGE\nsb-1  base"),
        "{listed}"
    );
}

#[test]
fn exec_without_a_stream() {
    let result = json!({"exitCode": 0, "stdout": "osb_sealed_x", "stderr": ""});
    let body = json!({"cmd": "echo", "args": ["$KEY"], "expandEnv": true});
    let route = "POST /api/sandboxes/sb-1/exec/run";
    let server = StandIn::always(200, result);
    let ran = server.oc(&["exec", "sb-1", "--wait", "--", "echo", "$KEY"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "osb_sealed_x"));
    let seen = server.taken();
    assert_eq!((seen[0].line.as_str(), &seen[0].body), (route, &body));

    let failed = json!({"exitCode": 3, "stdout": "a", "stderr": "b"});
    let server = StandIn::always(200, failed.clone());
    let ran = server.oc(&["exec", "sb-1", "--wait", "--", "false"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (3, "a", "b")
    );
    let ran = server.oc(&["--json", "exec", "sb-1", "--wait", "--", "false"]);
    assert_eq!(
        (ran.code, serde_json::from_str(&ran.stdout).ok()),
        (3, Some(failed))
    );

    let session = json!({"sessionID": "0a1b2c3d", "command": "sleep", "args": ["9"],
                         "running": true, "attachedClients": 2});
    let detach = "exec sb-1 --detach --cwd /w --timeout 5 --env A=1 -- sleep 9";
    let body = json!({"cmd": "sleep", "args": ["9"], "cwd": "/w", "timeout": 5,
                      "envs": {"A": "1"}, "expandEnv": true});
    let text = "Session 0a1b2c3d created (command: sleep 9)\n\
                Attach with: oc exec attach sb-1 0a1b2c3d";
    check(
        detach,
        session.clone(),
        "POST /api/sandboxes/sb-1/exec",
        body,
        text,
    );
    let mut exited = session.clone();
    exited["running"] = json!(false);
    exited["exitCode"] = json!(4);
    let lines =
        "  0a1b2c3d  running  sleep 9  clients=2\n  0a1b2c3d  exited (4)  sleep 9  clients=2";
    let (route, both) = ("GET /api/sandboxes/sb-1/exec", json!([session, exited]));
    check("exec list sb-1", both, route, Value::Null, lines);
    check(
        "exec list sb-1",
        json!([]),
        route,
        Value::Null,
        "No active exec sessions.",
    );
    let route = "POST /api/sandboxes/sb-1/exec/0a1b2c3d/kill";
    let killed = "Session 0a1b2c3d killed";
    check(
        "exec kill sb-1 0a1b2c3d",
        json!({}),
        route,
        json!({"signal": 9}),
        killed,
    );
    let soft = "exec kill sb-1 0a1b2c3d --signal 15";
    check(soft, json!({}), route, json!({"signal": 15}), killed);
}

/// Goal: pages are followed backwards, and shown with the newest last.
#[test]
fn audit_log() {
    let event = |position: u64| {
        json!({"position": position, "commit": 1, "id": "e", "stream": "project-p-1", "revision": 0,
               "type": "project.created.v1", "recordedAt": "2026-01-01T00:00:00Z",
               "actor": {"kind": "api"}, "data": {"name": "x"}})
    };
    let server = StandIn::start(move |seen| match seen.line.contains("before=3") {
        false => (
            200,
            json!({"events": [event(4), event(3)], "nextBefore": 3}),
        ),
        true => (
            200,
            json!({"events": [event(2), event(1)], "nextBefore": null}),
        ),
    });
    let log = [
        "audit",
        "log",
        "--entity",
        "p-1",
        "--type",
        "project.created.v1",
        "--limit",
        "3",
    ];
    let ran = server.oc(&log);
    let row = |position| {
        format!(
            "{position}         2026-01-01T00:00:00Z  project.created.v1  project-p-1  name=x\n"
        )
    };
    let head = "POSITION  TIME                  TYPE                ENTITY       DETAIL\n";
    assert_eq!(
        ran.stdout,
        [head.to_owned(), row(2), row(3), row(4)].concat()
    );
    let lines: Vec<String> = server.taken().into_iter().map(|seen| seen.line).collect();
    let common = "entity=p-1&type=project.created.v1";
    assert_eq!(lines[0], format!("GET /api/audit/events?limit=3&{common}"));
    assert_eq!(
        lines[1],
        format!("GET /api/audit/events?limit=1&{common}&before=3")
    );
    let ran = server.oc(&["--json", "audit", "log", "--limit", "2"]);
    let reply: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (&reply["events"][1]["actor"]["kind"], &reply["nextBefore"]),
        (&json!("api"), &json!(3))
    );
}

#[test]
fn account() {
    let who = json!({"org_id": "o-1", "user_id": null, "email": null, "org_name": "team"});
    let server = StandIn::always(200, who);
    let ran = server.oc(&["whoami"]);
    let text = "User:      -\nWorkspace: team\nOrg ID:    o-1\nAPI:       ";
    assert_eq!(ran.stdout, format!("{text}{}\n", server.url));
    let set = server.oc(&["config", "set", "api-url", "http://other"]);
    assert_eq!(
        (set.code, set.stdout.as_str()),
        (0, "Config api-url updated.\n")
    );
    let show = server.oc(&["config", "show"]).stdout;
    assert!(
        show.contains(&format!("API URL:     {}\n", server.url)),
        "{show}"
    );
    assert!(show.contains("API Key:     osb_...eeff\n"), "{show}");
    let wrong = server.oc(&["config", "set", "colour", "red"]);
    let expected = "error: unknown config key: colour (valid: api-key, api-url)\n";
    assert_eq!((wrong.code, wrong.stderr.as_str()), (1, expected));
    for shell in ["bash", "zsh", "fish"] {
        let script = server.oc(&["completion", shell]).stdout;
        assert!(
            script.contains("secret-store") && script.contains("demo"),
            "{shell}"
        );
    }
}
