//! A terminal from its opening to its end, and who may use it.

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::common::KEY;
use crate::screen::{Screen, World, sandbox};

/// Goal: sizes and their bounds, environment, user, folder, the two kinds of ids, and an end that
/// leaves nothing (section 10).
#[actix_rt::test]
async fn a_terminal_has_its_whole_life_in_the_api() {
    let Some(world) = World::new(&json!({
        "memoryMB": 256, "envs": { "PLAIN": "seen", "TERM": "dumb", "COLUMNS": "7" },
    }))
    .await
    else {
        return;
    };
    let (id, mut screen) = world.shell(&json!({})).await;
    screen.ask("stty size", "24 80\r\n").await;
    screen
        .ask(
            "echo $TERM:$COLUMNS:$LINES:$PLAIN",
            "xterm-256color:80:24:seen",
        )
        .await;
    screen
        .ask(
            "echo $(id -un):$(pwd):$HOME",
            "sandbox:/home/sandbox:/home/sandbox",
        )
        .await;
    screen
        .ask(
            "echo ${HTTPS_PROXY##*:}:${SSL_CERT_FILE##*/}",
            "3128:opensandbox-proxy.crt",
        )
        .await;
    // Programs that open their terminal by its name may.
    screen.ask("echo by na''me > $(tty)", "by name\r\n").await;

    // Neither kind's calls find the other's ids.
    let path = world.path(&format!("/pty/{id}"));
    assert_eq!(world.api.get(&world.path("/exec")).await.ok(200).text, "[]");
    let exec = world.path(&format!("/exec/{id}"));
    world.api.get(&exec).await.ok(404);
    world
        .api
        .post(&format!("{exec}/kill"), &json!({}))
        .await
        .ok(404);
    let command = json!({ "cmd": "sleep 300" });
    let command = world.api.post(&world.path("/exec"), &command).await.ok(201);
    let command = command.json()["sessionID"]
        .as_str()
        .expect("an id")
        .to_owned();
    let foreign = world.path(&format!("/pty/{command}"));
    let size = json!({ "cols": 132, "rows": 43 });
    world.api.get(&foreign).await.ok(404);
    world
        .api
        .post(&format!("{foreign}/resize"), &size)
        .await
        .ok(404);
    world.api.delete(&foreign).await.ok(404);

    // A resize reaches what runs, and what runs next.
    let watch = "bash -c 'trap \"stty size\" WINCH; echo r\"\"eady; while sleep 0.05; do :; done'";
    screen.ask(watch, "ready").await;
    world
        .api
        .post(&format!("{path}/resize"), &size)
        .await
        .ok(200);
    screen.until("43 132\r\n").await;
    screen.keys("\u{3}").await;
    screen
        .ask(
            "echo n''ow $(tput cols) $(tput lines) $COLUMNS",
            "now 132 43 132",
        )
        .await;
    for (cols, rows) in [(0, 24), (80, 0), (65536, 24), (80, -1)] {
        let size = json!({ "cols": cols, "rows": rows });
        for at in [world.path("/pty"), format!("{path}/resize")] {
            let refused = world.api.post(&at, &size).await;
            refused.refused(400, "cols and rows must be between 1 and 65535");
        }
    }
    for size in [json!({}), json!({ "cols": 80 })] {
        let refused = world.api.post(&format!("{path}/resize"), &size).await;
        refused.refused(400, "cols and rows are required");
    }
    let (_, mut wide) = world.shell(&json!({ "cols": 65535, "rows": 1 })).await;
    wide.ask("stty size", "1 65535\r\n").await;
    wide.ask("exit", "exit").await;
    assert_eq!(wide.end().await.1, 1000);

    // A delete ends shell, jobs and foreground.
    screen.ask("sleep 7001 & sleep 7002", "sleep 7002").await;
    let sleeping = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c '^700[12]$'";
    for _ in 0..100 {
        if world.run(sleeping).await == "2" {
            break;
        }
    }
    assert_eq!(world.run(sleeping).await, "2");
    world.api.delete(&path).await.ok(204);
    assert_eq!(screen.end().await.1, 1000);
    assert_eq!(world.run(sleeping).await, "0");
    world.api.delete(&path).await.ok(404);
    world
        .api
        .post(&format!("{path}/resize"), &size)
        .await
        .ok(404);
    let gone = Screen::connect(world.server.url(), &path, &[("x-api-key", KEY)]).await;
    let (status, body) = gone.err().expect("it is gone");
    assert_eq!(status, 404);
    assert!(body.starts_with(r#"{"error":""#), "{body}");
}

/// Goal: the shell, its folder and its variables are the caller's to choose; what can't be is told.
#[actix_rt::test]
async fn a_shell_is_chosen_or_found() {
    let Some(world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    let chosen = json!({
        "shell": "/bin/sh", "cwd": "/tmp", "envs": { "TERM": "vt100", "MINE": "a b" },
    });
    let (_, mut screen) = world.shell(&chosen).await;
    let own = "echo $0:$PWD:$TERM:$MINE:$(tr '\\0' '\\n' < /proc/$$/environ | grep COLUMNS)";
    screen.ask(own, "/bin/sh:/tmp:vt100:a b:COLUMNS=80").await;
    let (_, mut named) = world.shell(&json!({ "shell": "bash", "cwd": "" })).await;
    named.ask("echo $0:$PWD", "bash:/home/sandbox").await;
    let (_, mut bash) = world.shell(&json!({ "shell": "", "cols": null })).await;
    bash.ask("echo $0", "/bin/bash").await;
    for (body, error) in [
        (
            json!({ "shell": "/no/such/shell" }),
            "command not found: /no/such/shell",
        ),
        (
            json!({ "shell": "/etc/passwd" }),
            "permission denied: /etc/passwd",
        ),
        (
            json!({ "cwd": "/no/such" }),
            "working directory does not exist: /no/such",
        ),
        (
            json!({ "shell": "a\0b" }),
            "shell and cwd must not hold NUL or exceed 4096 bytes",
        ),
        (
            json!({ "envs": { "": "" } }),
            "envs: names must not be empty or hold `=` or NUL",
        ),
        (
            json!({ "envs": [1] }),
            "invalid request: `envs` has the wrong type",
        ),
    ] {
        let refused = world.api.post(&world.path("/pty"), &body).await;
        refused.refused(400, error);
    }
    // The sandbox's own layer of /usr: the host keeps its shells.
    let sudo = "sudo mv /usr/bin/bash /usr/bin/bash.away";
    assert_eq!(world.run(&format!("{sudo} && echo done")).await, "done");
    let (_, mut sh) = world.shell(&json!({})).await;
    sh.ask("echo $0", "/bin/sh").await;
    sh.ask("sudo mv /usr/bin/sh /usr/bin/sh.away; echo $?", "0\r\n")
        .await;
    let refused = world.api.post(&world.path("/pty"), &json!({})).await;
    refused.refused(500, "no shell found");
}

/// Goal: a key or the sandbox's own token opens a terminal in every slot there is, below `/api` and
/// beside it; no other credential does (section 2.1).
#[actix_rt::test]
async fn a_terminal_takes_every_credential_in_every_slot() {
    let Some(world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    let Some((other, theirs)) = sandbox(&world.api, &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let id = world.open(&json!({})).await;
    let url = world.server.url();
    for prefix in ["/api", ""] {
        let path = format!("{prefix}/sandboxes/{}/pty", world.id);
        for credential in [KEY, &world.token] {
            let bearer = format!("Bearer {credential}");
            let socket = format!("{path}/{id}");
            for (query, header) in [
                (String::new(), Some(("authorization", bearer.as_str()))),
                (String::new(), Some(("x-api-key", credential))),
                (format!("?token={credential}"), None),
                (format!("?api_key={credential}"), None),
                // Python sends both.
                (
                    format!("?api_key={credential}"),
                    Some(("x-api-key", credential)),
                ),
            ] {
                let at = format!("{socket}{query}");
                let headers: Vec<_> = header.into_iter().collect();
                let screen = Screen::connect(url, &at, &headers).await;
                let mut screen = screen.unwrap_or_else(|refused| panic!("{at}: {refused:?}"));
                screen.ask("echo o''k", "ok\r\n").await;
            }
            let own = world.api.without_key().with_key(credential);
            let reply = own.post(&path, &json!({})).await.ok(201).json();
            let made = format!("{path}/{}", reply["sessionID"].as_str().expect("an id"));
            let size = json!({ "cols": 100, "rows": 30 });
            own.post(&format!("{made}/resize"), &size).await.ok(200);
            own.delete(&made).await.ok(204);
        }
        let refused = async |at: String, expected: u16, text: &str| {
            let refused = Screen::connect(url, &at, &[]).await.err();
            let body = json!({ "error": text }).to_string();
            assert_eq!(refused, Some((expected, body)), "{at}");
        };
        refused(format!("{path}/{id}"), 401, "missing API key").await;
        refused(
            format!("{path}/{id}?api_key=osb_no"),
            401,
            "invalid API key",
        )
        .await;
        let foreign = "token not valid for this sandbox";
        refused(format!("{path}/{id}?token={theirs}"), 403, foreign).await;
        let elsewhere = format!("{prefix}/sandboxes/{other}/pty/{id}");
        refused(format!("{elsewhere}?token={}", world.token), 403, foreign).await;
        let unknown = format!("{path}/00000000?token={}", world.token);
        refused(unknown, 404, "no terminal \"00000000\"").await;
        let elsewhere = format!("{elsewhere}?api_key={KEY}");
        refused(elsewhere, 404, &format!("no terminal {id:?}")).await;
    }
}

/// Goal: an `Idempotency-Key` opens one terminal, and is free again when none could be opened.
#[actix_rt::test]
async fn a_terminal_is_opened_once_for_its_key() {
    let Some(world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    let path = world.path("/pty");
    let keyed = world.api.with_header("idempotency-key", "terminal-1");
    let absent = json!({ "shell": "/no/such" });
    keyed.post(&path, &absent).await.ok(400);
    let body = json!({ "cols": 90 });
    let first = keyed.post(&path, &body).await.ok(201);
    let again = keyed.post(&path, &body).await.ok(201);
    assert_eq!(first.json(), again.json());
    let marks = [&first, &again].map(|reply| reply.header("idempotent-replayed"));
    assert_eq!(marks, ["", "true"]);
    keyed.post(&path, &json!({ "cols": 91 })).await.ok(409);
    let id = first.json()["sessionID"]
        .as_str()
        .expect("an id")
        .to_owned();
    let mut screen = world.attach(&id).await;
    screen.send(Message::text("stty size\r")).await;
    screen.until("24 90\r\n").await;
    world.api.delete(&format!("{path}/{id}")).await.ok(204);
    keyed.post(&path, &body).await.ok(409);
}
