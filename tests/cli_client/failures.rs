//! What goes wrong and how it is told: exit codes, JSON errors, hints; and that no secret is
//! printed on any path.

use std::io::Write;
use std::process::Stdio;

use crate::stand_in::{KEY, Ran, StandIn};
use serde_json::{Value, json};

#[test]
fn exit_codes_and_the_servers_words() {
    for (status, code) in [
        (400, 3),
        (401, 3),
        (404, 3),
        (429, 3),
        (409, 4),
        (500, 5),
        (503, 5),
    ] {
        let server = StandIn::always(status, json!({"error": "said so", "code": "x"}));
        let ran = server.oc(&["project", "get", "p-1"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "HTTP {status}");
        assert!(ran.stderr.starts_with("error: said so\n"), "{}", ran.stderr);
        let ran = server.oc(&["project", "get", "p-1", "--json"]);
        let error: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(error, json!({"code": code, "error": "said so"}));
    }
}

#[test]
fn a_missing_server_is_explained() {
    let server = StandIn::always(200, json!([]));
    // A port that was just free, on an address of our own: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{free}");
    let ran = server.oc(&["ls", "--api-url", &url]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.contains(&url) && ran.stderr.contains("oc serve"),
        "{}",
        ran.stderr
    );
    let ran = server.oc(&["ls", "--api-url", &url, "--json"]);
    let error: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(error["code"], 1);
}

#[test]
fn wrong_arguments_are_local_problems() {
    let server = StandIn::always(200, json!({}));
    for words in [
        &["project", "create"][..],
        &["nonsense"],
        &["exec", "sb-1"],
        &["ls", "--x"],
    ] {
        let ran = server.oc(words);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{words:?}");
        assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
        let ran = server.oc(&[&["--json"], words].concat());
        let error: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(error["code"], 1, "{words:?}");
    }
    assert_eq!(server.taken(), []);
    assert_eq!(server.oc(&["--help"]).code, 0);
    assert!(server.oc(&["--version"]).stdout.starts_with("oc "));
}

#[test]
fn a_call_without_a_key_warns_and_goes_out() {
    let server = StandIn::always(200, json!([]));
    let ran = server
        .command(&["ls"])
        .env_remove("OPENCOMPUTER_API_KEY")
        .output()
        .unwrap();
    let ran = Ran::new(ran);
    assert_eq!(ran.code, 0);
    assert!(
        ran.stderr.starts_with("warning: no API key"),
        "{}",
        ran.stderr
    );
    assert_eq!(server.taken()[0].key, None);
}

/// Goal: a redirect does not carry the key away.
#[test]
fn redirects_are_not_followed() {
    let server = StandIn::always(302, json!({"error": "moved"}));
    assert_eq!(server.oc(&["ls"]).code, 5);
    assert_eq!(server.taken().len(), 1);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let server = StandIn::always(200, json!([]));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ran = server.command(&["ls"]).stdout(writer).output().unwrap();
    assert_eq!((ran.status.code(), ran.stderr), (Some(1), vec![]));
}

const VALUE: &str = "canary-7b1f0c2d-not-to-be-printed";

/// A server where `p-1` is a project and `s-1` a store, each with the secret `KEY`.
fn holders() -> StandIn {
    StandIn::start(|seen| {
        let path = seen.line.split_whitespace().nth(1).unwrap_or_default();
        match path.trim_start_matches("/api/") {
            "projects/p-1" | "secret-stores/s-1" => (200, json!({"id": "x"})),
            "projects/p-1/secrets" => (200, json!(["A", "KEY"])),
            "secret-stores/s-1/secrets" => (
                200,
                json!([{"name": "A", "allowedHosts": ["a.test", "b.test"]}, {"name": "KEY"}]),
            ),
            "projects/p-1/secrets/KEY" | "secret-stores/s-1/secrets/KEY" => {
                match seen.line.starts_with("DELETE") {
                    true => (204, Value::Null),
                    false => (200, json!({"name": "KEY", "status": "set"})),
                }
            }
            _ => (404, json!({"error": "not found"})),
        }
    })
}

fn said(server: &StandIn, words: &[&str]) -> (i32, String) {
    let ran = server.oc(words);
    assert!(
        !format!("{ran:?}").contains(VALUE),
        "{words:?} printed the value"
    );
    (ran.code, ran.stdout)
}

#[test]
fn secrets_go_to_a_project_or_a_store() {
    let server = holders();
    let set = |id, more: &[&str]| {
        said(
            &server,
            &[&["secret", "set", id, "KEY", VALUE], more].concat(),
        )
    };
    assert_eq!(
        set("p-1", &[]),
        (0, "Secret KEY set on project p-1\n".into())
    );
    let seen = server.taken();
    assert_eq!((seen.len(), &seen[0].body), (1, &json!({"value": VALUE})));
    let hosts = set("s-1", &["--allowed-hosts", "a.test,*.b.test"]);
    assert_eq!(
        hosts,
        (
            0,
            "Secret KEY set on store s-1 (allowed hosts: a.test, *.b.test)\n".into()
        )
    );
    let seen = server.taken();
    assert_eq!(seen[1].line, "PUT /api/secret-stores/s-1/secrets/KEY");
    assert_eq!(
        seen[1].body,
        json!({"value": VALUE, "allowedHosts": ["a.test", "*.b.test"]})
    );
    assert_eq!(set("x-1", &[]).0, 3);

    let list = |id| said(&server, &["secret", "ls", id]);
    assert_eq!(list("p-1"), (0, "A\nKEY\n".into()));
    assert_eq!(
        list("s-1"),
        (
            0,
            "NAME  ALLOWED HOSTS\nA     a.test, b.test\nKEY   (all)\n".into()
        )
    );
    assert_eq!(list("x-1").0, 3);

    let delete = |id, name| said(&server, &["secret", "delete", id, name]);
    assert_eq!(
        delete("p-1", "KEY"),
        (0, "Secret KEY deleted from project p-1\n".into())
    );
    assert_eq!(
        delete("s-1", "KEY"),
        (0, "Secret KEY deleted from store s-1\n".into())
    );
    assert_eq!(
        delete("p-1", "GONE"),
        (0, "Secret GONE deleted from project p-1\n".into())
    );
    assert_eq!(
        delete("s-1", "GONE"),
        (0, "Secret GONE deleted from store s-1\n".into())
    );
    assert_eq!(delete("x-1", "KEY").0, 3);
}

#[test]
fn values_come_from_standard_input() {
    let server = holders();
    let from_stdin = |input: &str| {
        let words = ["secret", "set", "p-1", "KEY", "--from-stdin"];
        let mut command = server.command(&words);
        let command = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // The program may refuse before it has read everything.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        Ran::new(child.wait_with_output().unwrap())
    };
    let ran = from_stdin(&format!("{VALUE}\nsecond line\n"));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        server.taken()[0].body["value"],
        format!("{VALUE}\nsecond line")
    );
    let empty = from_stdin("\n");
    assert_eq!(
        (empty.code, empty.stderr.as_str()),
        (1, "error: secret value cannot be empty\n")
    );
    let large = from_stdin(&VALUE.repeat(4000));
    assert_eq!(large.code, 1);
    assert!(
        large.stderr.contains("65536") && !large.stderr.contains(VALUE),
        "{}",
        large.stderr
    );
    let neither = server.oc(&["secret", "set", "p-1", "KEY"]);
    let expected = "error: provide value as argument or use --from-stdin\n";
    assert_eq!((neither.code, neither.stderr.as_str()), (1, expected));
    assert_eq!(server.taken(), []);
}

/// Goal: whatever a server says, the value it was given is not echoed by us... unless the server
/// itself does, and the key never is.
#[test]
fn refused_values_are_not_printed() {
    for status in [400, 401, 409, 500] {
        let server = StandIn::always(status, json!({"error": "no"}));
        assert_ne!(said(&server, &["secret", "set", "p-1", "KEY", VALUE]).0, 0);
        assert_ne!(
            said(&server, &["--json", "secret", "set", "p-1", "KEY", VALUE]).0,
            0
        );
        assert_eq!(server.taken()[0].key.as_deref(), Some(KEY));
    }
    let server = holders();
    let conflict = said(
        &server,
        &["secret", "set", "p-1", "KEY", VALUE, "--from-stdin"],
    );
    assert_eq!(conflict.0, 1);
}
