//! The WebSocket: what is sent, who gets it, and how it ends.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::common::KEY;
use crate::screen::{Screen, World};

/// Goal: everybody attached sees everything and may type, by bytes or by text; who comes later gets
/// what was before, in messages that every client takes; leaving leaves the shell.
#[actix_rt::test]
async fn clients_share_a_terminal_and_come_back_to_it() {
    let Some(world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    let id = world.open(&json!({})).await;
    // The prompt is written while nobody looks.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut first = world.attach(&id).await;
    let prompt = first.until("$ ").await;
    let mut second = world.attach(&id).await;
    assert_eq!(second.until("$ ").await, prompt);
    first
        .send(Message::text("echo 'gr\u{fc}n \u{2603} \u{1f980}'\r"))
        .await;
    for screen in [&mut first, &mut second] {
        screen.until("\rgr\u{fc}n \u{2603} \u{1f980}\r\n").await;
    }
    second.keys("echo two''fold\r").await;
    first.until("twofold").await;
    second.until("twofold").await;
    first.send(Message::binary(Vec::new())).await;
    first.pong().await;

    // Typed by one who leaves at once; nobody is there while it goes on.
    let typed = "sleep 0.5; echo al''one; seq 300000; touch /tmp/counted\r";
    first.keys(typed).await;
    first.close().await;
    second.close().await;
    let started = Instant::now();
    while world.run("ls /tmp/counted 2>/dev/null").await.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(60), "it never ran");
    }
    let mut later = world.attach(&id).await;
    let replay = later.until("\r\n300000\r\n").await;
    assert!(
        later.longest <= 64 * 1024,
        "{} bytes in one message",
        later.longest
    );
    // What is kept, and what the terminal itself held back while it was copied.
    let kept = replay.len();
    let most = 1024 * 1024 + 4096;
    assert!((1_000_000..=most).contains(&kept), "{kept} bytes");
    let numbers = replay
        .lines()
        .skip(1)
        .filter_map(|line| line.parse::<u32>().ok());
    let numbers: Vec<_> = numbers.collect();
    assert!(numbers.is_sorted() && numbers.len() > 100_000);

    // A large paste, and a client that is heard while nobody reads what it typed.
    let mut raw = world.attach(&id).await;
    raw.ask(
        "stty raw -echo; echo r''eady; sleep 3; head -c 600000 | sha256sum; stty sane",
        "ready",
    )
    .await;
    let input: String = (0..60_000).map(|number| format!("{number:010}")).collect();
    raw.keys(&input).await;
    raw.pong().await;
    use sha2::{Digest, Sha256};
    raw.until(&hex::encode(Sha256::digest(&input))).await;

    // The end is told to all; what was written last is still there afterwards.
    raw.keys("echo go''ne; exit\r").await;
    assert_eq!(raw.end().await.1, 1000);
    let (_, code) = later.end().await;
    assert_eq!(code, 1000);
    let (text, code) = world.attach(&id).await.end().await;
    assert!(text.contains("gone\r\n"));
    assert_eq!(code, 1000);
}

/// Goal: what was typed before a connection was lost is typed.
#[actix_rt::test]
async fn what_was_typed_before_a_loss_is_typed() {
    let Some(world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    let (id, screen) = world.shell(&json!({})).await;
    screen.close().await;
    for number in 0..30 {
        let mut screen = world.attach(&id).await;
        screen
            .keys(&format!("seq 100; echo {number} >> /tmp/typed\r"))
            .await;
        screen.lose(number % 2 == 0);
        // In order: the next client may be heard before what the last one left behind is typed.
        let count = format!("grep -c '^{number}$' /tmp/typed 2>/dev/null; true");
        let started = Instant::now();
        while world.run(&count).await.trim() != "1" {
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "{number} is lost"
            );
        }
    }
}

/// Goal: a shell that was killed for memory says so before it closes, also to whoever comes later.
#[actix_rt::test]
async fn a_shell_killed_for_memory_says_so() {
    let Some(world) = World::new(&json!({ "memoryMB": 128 })).await else {
        return;
    };
    let stats = world.api.get(&world.path("/stats")).await.ok(200).json();
    if stats["memory"]["enforced"] != "sandbox" {
        println!("skipped: memory is not limited for the whole sandbox here");
        return;
    }
    let (id, mut screen) = world.shell(&json!({})).await;
    screen
        .keys("exec python3 -c 'x = bytearray(1 << 30)'\r")
        .await;
    for mut screen in [screen, world.attach(&id).await] {
        let (text, code) = screen.end().await;
        let note = "\r\nProcess killed: out of memory (limit 128 MiB)\r\n";
        assert!(text.ends_with(note), "{text:?}");
        assert_eq!(code, 1000);
    }
}

/// Goal: a client that takes nothing holds the shell back for its time and no longer.
#[actix_rt::test]
async fn a_frozen_client_does_not_stall_the_shell_for_ever() {
    let Some(world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    let (id, frozen) = world.shell(&json!({})).await;
    let mut live = world.attach(&id).await;
    // More than every buffer on the way holds: the rest waits for the frozen one.
    live.keys("seq 3000000; echo do''ne\r").await;
    live.until_within("done\r\n", Duration::from_secs(120))
        .await;
    drop(frozen);
}

/// Goal: a server that stops says so, and the shell is there for the next one; a sandbox that is
/// deleted ends its sockets.
#[actix_rt::test]
async fn sockets_end_with_the_server_and_the_sandbox() {
    let Some(mut world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    let (id, mut screen) = world.shell(&json!({})).await;
    screen.ask("KEPT=by''shell", "$ ").await;
    world.server.stop();
    assert_eq!(screen.end().await.1, 1001);
    world.server.restart();
    world.api = world.server.api();
    let mut again = world.attach(&id).await;
    again.ask("echo $KEPT", "byshell\r\n").await;
    world.api.delete(&world.path("")).await.ok(204);
    // By its shell's end or by the server's letting go, whichever is seen first.
    let (_, code) = again.end().await;
    assert!([1000, 1001, 1011].contains(&code), "{code}");
    let path = world.path(&format!("/pty/{id}"));
    let refused = Screen::connect(world.server.url(), &path, &[("x-api-key", KEY)]).await;
    assert_eq!(refused.err().map(|refused| refused.0), Some(410));
}

/// Goal: a sandbox that is put to sleep lets go of who is at a terminal and keeps the shell, which a
/// client finds after the wake with all it had said.
#[actix_rt::test]
async fn a_terminal_sleeps_with_its_sandbox() {
    let Some(world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    let (id, mut screen) = world.shell(&json!({})).await;
    screen
        .ask("KEPT=by''shell; echo be''fore", "before\r\n")
        .await;
    let slept = world.api.post(&world.path("/hibernate"), &json!({})).await;
    if slept.ok(200).json()["kept"] != "memory" {
        println!("skipped: no freezer here, sleepers keep their disk only");
        return;
    }
    assert_eq!(screen.end().await.1, 1001);
    let woken = world.api.post(&world.path("/wake"), &json!({})).await;
    woken.ok(200);
    let mut again = world.attach(&id).await;
    let path = world.path(&format!("/pty/{id}"));
    again.until("before\r\n").await;
    again.ask("echo $KEPT-a''fter", "byshell-after\r\n").await;
    let size = json!({ "cols": 100, "rows": 30 });
    world
        .api
        .post(&format!("{path}/resize"), &size)
        .await
        .ok(200);
    again.ask("stty size", "30 100\r\n").await;
}
