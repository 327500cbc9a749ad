//! Sessions over their WebSocket: replay, several clients, input, limits, how they close.

use std::time::{Duration, Instant};

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::common::{KEY, Sandbox, Server};
use crate::socket::{Frame, Socket, listed, script, start};

const MIB: usize = 1024 * 1024;

/// Goal: whoever attaches later gets the newest mebibyte, both streams in order, then the exit; as
/// often as asked, in small messages.
#[actix_rt::test]
async fn a_late_client_gets_the_newest_mebibyte() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let loud = "seq -w 500000; printf last >&2; exit 9";
    let session = script(&sandbox, loud).await;
    let whole: String = (1..=500_000).map(|n| format!("{n:06}\n")).collect();
    while listed(&sandbox, &session).await.expect("listed")["running"] == true {
        actix_rt::time::sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..2 {
        let ended = Socket::attach(&server, &sandbox, &session)
            .await
            .until_end()
            .await;
        assert_eq!((ended.exit, ended.closed), (Some(9), 1000));
        assert_eq!(ended.stderr, b"last");
        assert_eq!(ended.replayed, MIB, "all of it is replay");
        assert!(whole.as_bytes().ends_with(&ended.stdout));
    }
    let row = listed(&sandbox, &session).await.expect("still listed");
    assert_eq!(
        (&row["exitCode"], &row["attachedClients"]),
        (&json!(9), &json!(0))
    );
}

/// Goal: who starts a loud session and then attaches gets all of it; one that nobody comes for is not
/// held back for long.
#[actix_rt::test]
async fn the_first_client_gets_everything() {
    const BYTES: usize = 20_000_000;
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let loud = format!("head -c {BYTES} /dev/zero; touch /tmp/written");
    let session = script(&sandbox, &loud).await;
    assert_eq!(sandbox.run("ls /tmp").await, "", "it is held back");
    let socket = Socket::attach(&server, &sandbox, &session).await;
    let ended = socket.until_end().await;
    assert_eq!((ended.stdout.len(), ended.exit), (BYTES, Some(0)));
    let session = script(&sandbox, &loud).await;
    let started = Instant::now();
    while listed(&sandbox, &session).await.expect("listed")["running"] == true {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "it waits for ever"
        );
        actix_rt::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Goal: all clients of a session get all of it, their inputs are one, and they are counted; what is
/// no input is ignored; an empty input closes it.
#[actix_rt::test]
async fn clients_share_a_session_over_sockets() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let echo = "echo ready; while read line; do echo \"got $line\"; done; echo closed; cat; exit 2";
    let session = script(&sandbox, echo).await;
    let mut first = Socket::attach(&server, &sandbox, &session).await;
    first.until("ready\n").await;
    let mut second = Socket::attach(&server, &sandbox, &session).await;
    assert_eq!(second.until("ready\n").await, "ready\n");
    let row = listed(&sandbox, &session).await.expect("listed");
    let shown = (
        &row["running"],
        &row["attachedClients"],
        row.get("exitCode"),
    );
    assert_eq!(shown, (&json!(true), &json!(2), None));
    first.message(Message::Text("not input\n".into())).await;
    first.message(Message::Binary(vec![].into())).await;
    first
        .message(Message::Binary(vec![1, b'x', b'\n'].into()))
        .await;
    first.send(b"a\n").await;
    assert_eq!(first.until("got a\n").await, "got a\n");
    second.send(b"b\n").await;
    assert_eq!(second.until("got b\n").await, "got a\ngot b\n");
    first.until("got b\n").await;
    drop(first);
    second.send(b"").await;
    let ended = second.until_end().await;
    assert_eq!(
        (ended.stdout.as_slice(), ended.exit),
        (&b"closed\n"[..], Some(2))
    );
}

/// Goal: 64 MiB of input arrive byte for byte, at the pace at which they are read.
#[actix_rt::test]
async fn sixty_four_mebibytes_of_input_arrive() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let session = script(&sandbox, "sleep 1; cat | sha256sum").await;
    let mut socket = Socket::attach(&server, &sandbox, &session).await;
    let (mut hash, mut piece) = (Sha256::new(), vec![0u8; MIB - 1]);
    for number in 0..64u8 {
        piece
            .iter_mut()
            .step_by(257)
            .for_each(|byte| *byte = byte.wrapping_add(number));
        hash.update(&piece);
        socket.send(&piece).await;
    }
    hash.update([1; 64]);
    socket.send(&[1; 64]).await;
    socket.send(b"").await;
    let ended = socket.until_end().await;
    let wanted = format!("{}  -\n", hex::encode(hash.finalize()));
    assert_eq!(
        (String::from_utf8_lossy(&ended.stdout), ended.exit),
        (wanted.into(), Some(0))
    );
}

/// Goal: what a client sent before its connection was lost reaches the process, however the loss shows
/// and whatever the process says meanwhile.
#[actix_rt::test]
async fn what_a_lost_client_sent_arrives() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    for (name, noise) in [("quiet", "echo up"), ("loud", "seq 1000; sleep 0.01")] {
        let cat = format!("(while :; do {noise}; sleep 0.05; done) & exec cat > /tmp/{name}");
        let session = script(&sandbox, &cat).await;
        let mut wanted = Vec::new();
        for number in 0..40 {
            let mut socket = Socket::attach(&server, &sandbox, &session).await;
            let rest = "x".repeat(number * 500);
            let line = format!("{number} {rest}");
            socket.send(format!("{line}\n").as_bytes()).await;
            socket.lose(number % 2 == 0);
            wanted.push(line);
        }
        wanted.sort();
        let started = Instant::now();
        loop {
            let text = sandbox.read(&format!("/tmp/{name}")).await.ok(200).text;
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort();
            if lines == wanted {
                break;
            }
            let numbers: Vec<_> = lines
                .iter()
                .filter_map(|line| line.split(' ').next())
                .collect();
            let late = started.elapsed() > Duration::from_secs(20);
            assert!(!late, "{name}: {} of 40 came: {numbers:?}", lines.len());
            actix_rt::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Goal: a client that reads nothing holds up neither other sessions nor, for long, its own; the
/// other client of its session gets every byte.
#[actix_rt::test]
async fn a_client_that_does_not_read_stops_nobody() {
    const BYTES: usize = 60_000_000;
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let session = script(
        &sandbox,
        &format!("read go; head -c {BYTES} /dev/zero; echo ."),
    )
    .await;
    let deaf = Socket::attach(&server, &sandbox, &session).await;
    let mut live = Socket::attach(&server, &sandbox, &session).await;
    live.send(b"go\n").await;
    let reading = actix_rt::spawn(live.until_end());
    actix_rt::time::sleep(Duration::from_secs(2)).await;
    let started = Instant::now();
    assert_eq!(sandbox.run("echo other").await, "other");
    assert!(started.elapsed() < Duration::from_secs(10));
    let ended = reading.await.expect("the live client");
    assert_eq!((ended.stdout.len(), ended.exit), (BYTES + 2, Some(0)));
    drop(deaf);
}

/// Goal: a process that doesn't read its input delays no answer to a ping behind it.
#[actix_rt::test]
async fn a_ping_behind_input_nobody_reads_is_answered() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let session = script(&sandbox, "sleep 8645").await;
    let mut socket = Socket::attach(&server, &sandbox, &session).await;
    socket.send(&vec![0; MIB - 1]).await;
    socket.send(&vec![0; MIB - 1]).await;
    socket
        .message(Message::Ping(b"there?".to_vec().into()))
        .await;
    socket.pong(b"there?").await;
}

/// Goal: `maxRunAfterDisconnect` counts from when the last client left, and not before one came.
#[actix_rt::test]
async fn a_session_ends_after_its_last_client_left() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let body = json!({ "cmd": "sleep", "args": ["8646"], "maxRunAfterDisconnect": 2 });
    let session = start(&sandbox, &body).await;
    let running = async || listed(&sandbox, &session).await.expect("listed")["running"] == true;
    let second = Duration::from_secs(1);
    actix_rt::time::sleep(3 * second).await;
    assert!(running().await, "nobody came yet");
    let socket = Socket::attach(&server, &sandbox, &session).await;
    let again = Socket::attach(&server, &sandbox, &session).await;
    drop(socket);
    actix_rt::time::sleep(3 * second).await;
    assert!(running().await, "one is still there");
    drop(again);
    actix_rt::time::sleep(second).await;
    let back = Socket::attach(&server, &sandbox, &session).await;
    actix_rt::time::sleep(2 * second).await;
    assert!(running().await, "one came back in time");
    drop(back);
    let left = Instant::now();
    while running().await {
        assert!(left.elapsed() < 20 * second, "it runs on");
        actix_rt::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(left.elapsed() > second);
    let ended = Socket::attach(&server, &sandbox, &session)
        .await
        .until_end()
        .await;
    assert_eq!(ended.exit, Some(137));
}

/// Goal: a session's own time limit is told as in the other routes, to whoever attaches when.
#[actix_rt::test]
async fn a_sessions_time_limit_is_told() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let body = json!({ "cmd": "echo out; echo err >&2; sleep 60", "timeout": 1 });
    let session = start(&sandbox, &body).await;
    for _ in 0..2 {
        let ended = Socket::attach(&server, &sandbox, &session)
            .await
            .until_end()
            .await;
        assert_eq!(
            (ended.exit, ended.stdout.as_slice()),
            (Some(-1), &b"out\n"[..])
        );
        assert_eq!(ended.stderr, b"err\n\nProcess timed out");
    }
}

/// Goal: the shell of the SDKs: one bash, told apart by sentinels on both streams, with no echo and
/// no prompt; its state lives on from command to command (section 8.5).
#[actix_rt::test]
async fn the_shell_of_the_sdks_works() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let body = json!({ "cmd": "bash", "args": ["--noprofile", "--norc", "+m"] });
    let session = start(&sandbox, &body).await;
    let mut socket = Socket::attach(&server, &sandbox, &session).await;
    assert_eq!(socket.next().await, Frame::ReplayEnd);
    for (token, command, stdout, stderr, code) in [
        ("t1", "cd /tmp; A=1; echo one", "one\n", "", 0),
        ("t2", "echo $A $PWD; echo e >&2", "1 /tmp\n", "e\n", 0),
        ("t3", "(exit 7)", "", "", 7),
        (
            "t4",
            "cat /dev/null; no-such-thing",
            "",
            "bash: line 1: no-such-thing: command not found\n",
            127,
        ),
    ] {
        let line = format!(
            "{{ {command}\n}}; __oc=$?; printf '\\n__OC_{token}_DONE__\\n'; \
             printf '\\n__OC_{token}_EXIT_%d__\\n' $__oc >&2\n"
        );
        socket.send(line.as_bytes()).await;
        let (done, exit) = (
            format!("\n__OC_{token}_DONE__\n"),
            format!("\n__OC_{token}_EXIT_{code}__\n"),
        );
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while !out.ends_with(done.as_bytes()) || !err.ends_with(b"__\n") {
            match socket.next().await {
                Frame::Stdout(bytes) => out.extend(bytes),
                Frame::Stderr(bytes) => err.extend(bytes),
                frame => panic!("{frame:?}"),
            }
        }
        assert_eq!(String::from_utf8_lossy(&out), format!("{stdout}{done}"));
        let err = String::from_utf8_lossy(&err).into_owned();
        let said = err.strip_suffix(&exit).unwrap_or_else(|| panic!("{err:?}"));
        assert_eq!(said.is_empty(), stderr.is_empty(), "{said:?}");
        assert!(code == 127 || said == stderr, "{said:?}");
    }
    socket.send(b"exit 3\n").await;
    assert_eq!(socket.until_end().await.exit, Some(3));
}

/// Goal: what can't be attached to is refused before the upgrade with the usual envelope; a server
/// that stops says so, and the session is there again for the next one.
#[actix_rt::test]
async fn sockets_are_refused_and_closed_in_words() {
    let mut server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let session = script(&sandbox, "echo up; sleep 8647").await;
    let token = sandbox.object["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let at = |server: &Server, below: &str| {
        let path = sandbox.path(&format!("/exec/{below}"));
        format!("{}{path}", server.url().replace("http://", "ws://"))
    };
    for (below, status) in [
        (format!("00000000?api_key={KEY}"), 404),
        (format!("{session}?api_key=osb_x"), 401),
        (session.clone(), 401),
    ] {
        let refused = tokio_tungstenite::connect_async(at(&server, &below)).await;
        let Err(Error::Http(reply)) = refused else {
            panic!("{below} was not refused: {refused:?}");
        };
        assert_eq!(reply.status(), status, "{below}");
        let body = reply.body().as_deref().unwrap_or_default();
        let body: serde_json::Value = serde_json::from_slice(body).expect("the envelope");
        assert!(body["error"].is_string(), "{body}");
    }
    for credential in [format!("token={token}"), format!("api_key={token}")] {
        let url = at(&server, &format!("{session}?{credential}"));
        tokio_tungstenite::connect_async(url)
            .await
            .expect("the sandbox's token opens it");
    }
    let mut socket = Socket::attach(&server, &sandbox, &session).await;
    socket.until("up\n").await;
    let stopping = Instant::now();
    server.stop();
    assert!(
        stopping.elapsed() < Duration::from_secs(5),
        "no socket holds it up"
    );
    let ended = socket.until_end().await;
    assert_eq!((ended.closed, ended.exit), (1001, None));
    server.restart();
    let mut socket = Socket::attach(&server, &sandbox, &session).await;
    assert_eq!(socket.until("up\n").await, "up\n");
}
