//! `oc exec` over its WebSocket: output, input, exit codes, Ctrl-C.

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::stand_in::{KEY, Ran, StandIn};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// A server whose new sessions all play `role`.
fn sessions(role: &'static str) -> StandIn {
    StandIn::start(move |seen| match seen.line.ends_with("/kill") {
        true => (200, json!({})),
        false => (
            201,
            json!({"sessionID": role, "command": "x", "args": [], "running": true}),
        ),
    })
}

fn interrupt(child: &Child) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
}

/// Waits until a request with this ending has arrived `count` times.
fn wait_for(server: &StandIn, ending: &str, count: usize) {
    let (started, mut found) = (Instant::now(), 0);
    while found < count {
        found += server
            .taken()
            .iter()
            .filter(|seen| seen.line.ends_with(ending))
            .count();
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "no request for {ending}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn both_streams_and_the_exit_code_come_through() {
    let server = sessions("ended");
    let ran = server.oc(&["exec", "sb-1", "--", "x"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (7, "output\n", "err")
    );
    let seen = server.taken();
    assert_eq!(seen[1].line, "GET /api/sandboxes/sb-1/exec/ended");
    assert_eq!(seen[1].key.as_deref(), Some(KEY));
    let ran = server.oc(&["exec", "attach", "sb-1", "ended"]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (7, "output\n", "err")
    );
}

#[test]
fn a_stream_that_ends_early_is_told_from_success() {
    let ran = sessions("lost").oc(&["exec", "sb-1", "--", "x"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (255, "partial"));
    let ran = sessions("missing").oc(&["exec", "sb-1", "--", "x"]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (3, "error: session not found\n")
    );
}

#[test]
fn input_is_forwarded_and_its_end_too() {
    let server = sessions("cat");
    let mut command = server.command(&["exec", "sb-1", "--", "cat"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input: Vec<u8> = (0..300_000u32).flat_map(u32::to_be_bytes).collect();
    let mut stdin = child.stdin.take().unwrap();
    let copy = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        output.stdout == input,
        "{} of {} bytes",
        output.stdout.len(),
        input.len()
    );
}

/// Goal: output is whole and in order though its reader is slow.
#[test]
fn a_slow_reader_gets_everything() {
    let server = sessions("flood");
    let mut command = server.command(&["exec", "sb-1", "--", "x"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut output = Vec::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut output)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(output.len(), 256 * 32 * 1024);
    for (number, block) in (0u32..).zip(output.chunks(32 * 1024)) {
        assert!(
            block.chunks(4).all(|word| word == number.to_be_bytes()),
            "block {number}"
        );
    }
}

#[test]
fn the_first_interrupt_goes_to_the_command() {
    let server = sessions("sleep");
    let child = server
        .command(&["exec", "sb-1", "--", "x"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&server, "/exec/sleep", 1);
    interrupt(&child);
    assert_eq!(Ran::new(child.wait_with_output().unwrap()).code, 130);
}

#[test]
fn the_second_interrupt_leaves() {
    let server = sessions("deaf");
    let child = server
        .command(&["exec", "sb-1", "--", "x"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&server, "/exec/deaf", 1);
    interrupt(&child);
    wait_for(&server, "/exec/deaf/kill", 1);
    interrupt(&child);
    assert_eq!(Ran::new(child.wait_with_output().unwrap()).code, 130);
}

/// Goal: a reader that stops reading does not lock the user in.
#[test]
fn interrupts_are_heard_while_output_is_stuck() {
    let server = sessions("flood");
    let (reader, writer) = std::io::pipe().unwrap();
    let child = server
        .command(&["exec", "sb-1", "--", "x"])
        .stdout(writer)
        .spawn()
        .unwrap();
    wait_for(&server, "/exec/flood", 1);
    std::thread::sleep(Duration::from_millis(200));
    interrupt(&child);
    wait_for(&server, "/kill", 1);
    interrupt(&child);
    assert_eq!(Ran::new(child.wait_with_output().unwrap()).code, 130);
    drop(reader);
}
