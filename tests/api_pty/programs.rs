//! Programs that need a terminal: shells with job control, interpreters, editors, full screens.

use std::time::Duration;

use serde_json::json;

use crate::screen::World;

/// Whether the sandbox has a program; says so when not.
async fn has(world: &World, program: &str) -> bool {
    let found = world.run(&format!("command -v {program} || true")).await;
    if found.is_empty() {
        println!("skipped: no {program} on this machine");
    }
    !found.is_empty()
}

/// Goal: Ctrl-C, Ctrl-Z, Ctrl-\, fg and bg in bash; Ctrl-D ends it.
#[actix_rt::test]
async fn bash_controls_its_jobs() {
    let Some(world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    let (_, mut screen) = world.shell(&json!({})).await;
    // The signal's key has to find the program in the foreground, not the shell.
    let running = Duration::from_millis(500);
    screen.ask("sleep 300", "sleep 300").await;
    tokio::time::sleep(running).await;
    screen.keys("\u{1a}").await;
    screen.until("Stopped").await;
    screen.ask("bg", "sleep 300 &").await;
    screen.ask("jobs", "Running").await;
    screen.ask("fg", "sleep 300\r\n").await;
    tokio::time::sleep(running).await;
    screen.keys("\u{3}").await;
    screen.until("^C").await;
    screen.ask("echo code=$?", "code=130").await;
    screen.ask("sleep 300; echo code=$?", "sleep 300").await;
    tokio::time::sleep(running).await;
    screen.keys("\u{1c}").await;
    screen.until("code=131").await;
    screen.ask("cat", "cat\r\n").await;
    screen.ask("twice", "twice\r\ntwice\r\n").await;
    screen.keys("\u{4}").await;
    screen.until("$ ").await;
    // Backspace takes a whole character, in the shell's own line and in the terminal's.
    screen.ask("echo =\u{fc}\u{7f}x=", "\r=x=\r\n").await;
    screen.ask("read line; echo \"=$line=\"", "\r\n").await;
    screen.ask("a\u{2603}\u{7f}b", "=ab=").await;
    screen.ask("\u{4}", "exit").await;
    assert_eq!(screen.end().await.1, 1000);
}

/// Goal: programs are told of 256 colours, and text of the whole world goes in and out.
#[actix_rt::test]
async fn colours_and_characters_come_through() {
    let Some(world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    let (_, mut screen) = world.shell(&json!({})).await;
    if has(&world, "tput").await {
        screen.ask("tput colors", "\r256\r\n").await;
        screen
            .ask("tput setaf 208; echo; tput sgr0", "\u{1b}[38;5;208m")
            .await;
    }
    let text =
        "\u{65e5}\u{672c}\u{8a9e} \u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{1f469}\u{200d}\u{1f680} e\u{301}";
    screen
        .ask(
            &format!("printf '%s\\n' '{text}'"),
            &format!("\r{text}\r\n"),
        )
        .await;
    screen
        .ask(
            &format!("printf '{text}' | wc -c"),
            &format!("\r{}\r\n", text.len()),
        )
        .await;
}

/// Goal: an interpreter's lines, history and interrupts.
#[actix_rt::test]
async fn python_is_interactive() {
    let Some(world) = World::new(&json!({ "memoryMB": 512 })).await else {
        return;
    };
    if !has(&world, "python3").await {
        return;
    }
    let (_, mut screen) = world.shell(&json!({})).await;
    screen.ask("python3", ">>> ").await;
    screen.ask("6 * 7", "42\r\n>>> ").await;
    // The line before, by the arrow key.
    screen.keys("\u{1b}[A").await;
    screen.until("6 * 7").await;
    screen.keys(" + 1\r").await;
    screen.until("43").await;
    screen.ask("import time; time.sleep(300)", "300)").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    screen.keys("\u{3}").await;
    screen.until("KeyboardInterrupt").await;
    screen
        .ask("import os; os.get_terminal_size()", "columns=80, lines=24")
        .await;
    screen
        .ask("'gr\u{fc}n'.upper()", "'GR\u{dc}N'\r\n>>> ")
        .await;
    screen.keys("\u{4}").await;
    screen.until("$ ").await;
    screen.ask("exit", "exit").await;
}

/// Goal: an editor draws its screen, follows a resize, and writes what was typed.
#[actix_rt::test]
async fn vim_edits_a_file() {
    let Some(world) = World::new(&json!({ "memoryMB": 512 })).await else {
        return;
    };
    if !has(&world, "vim").await {
        return;
    }
    let (id, mut screen) = world.shell(&json!({ "cols": 100, "rows": 30 })).await;
    // The other screen, and the empty lines below the text.
    screen.keys("vim -u NONE -N /workspace/note\r").await;
    let drawn = screen.until("~").await;
    assert!(drawn.contains("\u{1b}[?1049h"), "{drawn:?}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    screen.keys("igr\u{fc}ne Zeile").await;
    screen.keys("\u{1b}").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let size = json!({ "cols": 60, "rows": 20 });
    let resize = world.path(&format!("/pty/{id}/resize"));
    world.api.post(&resize, &size).await.ok(200);
    tokio::time::sleep(Duration::from_millis(500)).await;
    screen.keys(":put =&columns.'x'.&lines\r").await;
    screen.until("60x20").await;
    screen.keys(":wq\r").await;
    screen.until("\u{1b}[?1049l").await;
    let written = world.run("cat /workspace/note").await;
    assert_eq!(written, "gr\u{fc}ne Zeile\n60x20");
}

/// Goal: a full screen of processes, in colour, at the size it is given meanwhile.
#[actix_rt::test]
async fn htop_shows_processes() {
    let Some(world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    if !has(&world, "htop").await {
        return;
    }
    let (id, mut screen) = world.shell(&json!({ "cols": 100, "rows": 30 })).await;
    let shown = screen.ask("htop -d 5", "F10").await;
    for expected in ["\u{1b}[?1049h", "Load average", "\u{1b}[32m"] {
        assert!(shown.contains(expected), "no {expected:?} in {shown:?}");
    }
    let size = json!({ "cols": 140, "rows": 40 });
    let resize = world.path(&format!("/pty/{id}/resize"));
    world.api.post(&resize, &size).await.ok(200);
    // The keys' line moves to the new last line.
    screen.until("\u{1b}[40d").await;
    screen.keys("q").await;
    screen.until("\u{1b}[?1049l").await;
}

/// Goal: a multiplexer inside opens terminals of its own, and finds itself again.
#[actix_rt::test]
async fn tmux_runs_inside() {
    let Some(world) = World::new(&json!({ "memoryMB": 256 })).await else {
        return;
    };
    if !has(&world, "tmux").await {
        return;
    }
    let (_, mut screen) = world.shell(&json!({})).await;
    screen.ask("tmux new -s one", "[one]").await;
    screen.ask("KEPT=by''tmux; echo in''side", "inside").await;
    screen.keys("\u{2}d").await;
    screen.until("[detached").await;
    screen.ask("tmux attach -t one", "inside").await;
    screen.ask("echo \"=$KEPT=\"", "=bytmux=").await;
    screen.ask("exit", "[exited]").await;
}
