//! `oc checkpoint diff` and its route, on a real server with real sandboxes; where this machine can't
//! have any, the tests say so and stop.

mod common;

use std::collections::BTreeMap;
use std::process::Command;

use common::checkpoints::{checkpoint, fork, id_of, path_of, run, sandbox};
use common::{KEY, Server};
use serde_json::{Value, json};

/// The lines of a comparison, by path, and its summary.
async fn diff(server: &Server, from: &Value, to: &Value) -> (BTreeMap<String, Value>, Value) {
    let (from, to) = (id_of(from), id_of(to));
    let path = format!("/api/sandboxes/checkpoints/{from}/diff/{to}");
    let text = server.api().get(&path).await.ok(200).text;
    let mut lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .filter(|line: &Value| line.get("progress").is_none())
        .collect();
    let summary = lines.pop().expect("a summary")["summary"].take();
    assert_eq!(summary["complete"], true, "{text}");
    let named = |line: Value| (line["path"].as_str().expect("a path").to_owned(), line);
    (lines.into_iter().map(named).collect(), summary)
}

const BEFORE: &str = "cd ~; echo one > same; echo one > content; echo one > size; echo one > mode; \
    echo one > gone; ln -s one link; mkdir -p dir/sub; echo x > dir/sub/file; echo f > turns; \
    echo l > linked; truncate -s 4G hole; \
    sudo sh -c 'echo one > /etc/own; touch /usr/local/added-before'";

/// Odd names: line breaks, control characters, no UTF-8, leading dashes, long.
const AFTER: &str = r#"cd ~; echo two > content; echo longer > size; chmod 600 mode; rm gone
    ln -sfn two link; rm -r dir; rm turns; mkdir turns; echo in > turns/in; ln linked linked-too
    touch -d 2001-01-01 same
    printf x > "$(printf 'line\nbreak')"; printf x > "$(printf 'esc\033[2J')"
    printf x > "$(printf 'byte\377')"; printf x > ./-rf; printf x > "$(printf %0200d 7)"
    mkfifo pipe; printf y | dd of=hole bs=1 seek=3G conv=notrunc 2>/dev/null
    sudo sh -c 'echo two > /etc/own; rm /usr/local/added-before; rm -r /usr/share/doc
                chown 0:0 /home/sandbox/mode'"#;

/// Goal: everything that differs between two checkpoints is listed, with what it was and is, and
/// nothing else; a deleted folder of the template with all it held; odd names come whole; the way
/// back is the mirror image; the command prints it.
#[actix_rt::test]
async fn what_differs_between_checkpoints_is_listed() {
    let server = Server::start_with_two_orgs();
    let api = server.api();
    let Some(path) = sandbox(&api, &json!({})).await else {
        return;
    };
    run(&api, &path, BEFORE).await;
    let before = checkpoint(&api, &path, "before").await;
    let docs = run(&api, &path, "find /usr/share/doc | wc -l").await;
    run(&api, &path, AFTER).await;
    let after = checkpoint(&api, &path, "after").await;

    let (mut lines, summary) = diff(&server, &before, &after).await;
    let docs: usize = docs.parse().expect("a number");
    let gone: Vec<String> = lines
        .keys()
        .filter(|path| path.starts_with("/usr/share/doc"))
        .cloned()
        .collect();
    assert_eq!(gone.len(), docs, "the whole folder of the template");
    for path in gone {
        assert_eq!(lines.remove(&path).expect("a line")["change"], "removed");
    }
    let home = |name: &str| format!("/home/sandbox/{name}");
    for (path, what) in [
        (home("content"), json!(["content"])),
        (home("size"), json!(["size", "content"])),
        (home("mode"), json!(["mode", "owner"])),
        (home("link"), json!(["target"])),
        (home("turns"), json!(["type"])),
        (home("linked"), json!(["links"])),
        (home("hole"), json!(["content"])),
        ("/etc/own".to_owned(), json!(["content"])),
    ] {
        let line = lines.remove(&path).unwrap_or_else(|| panic!("no {path}"));
        assert_eq!(line["change"], "changed", "{line}");
        assert_eq!(line["what"], what, "{line}");
    }
    for path in [
        home("gone"),
        home("dir"),
        home("dir/sub"),
        home("dir/sub/file"),
    ] {
        assert_eq!(lines.remove(&path).expect("a line")["change"], "removed");
    }
    let was = lines.remove("/usr/local/added-before").expect("a line");
    assert_eq!(was["from"]["type"], "file");
    assert_eq!(was["from"]["uid"], 0, "owners as the sandbox knows them");
    let long = format!("{:0200}", 7);
    for path in [
        "line\nbreak",
        "esc\u{1b}[2J",
        "-rf",
        "linked-too",
        "turns/in",
        &long,
    ] {
        assert_eq!(lines.remove(&home(path)).expect(path)["change"], "added");
    }
    let odd = lines.remove(&home("byte\u{fffd}")).expect("the odd byte");
    assert_eq!(odd["pathBase64"], "L2hvbWUvc2FuZGJveC9ieXRl/w==");
    assert_eq!(
        lines.remove(&home("pipe")).expect("a line")["to"]["type"],
        "fifo"
    );
    // What programs of the machine note by themselves.
    lines.retain(|path, _| !path.starts_with("/var/") && !path.starts_with("/tmp/"));
    assert!(lines.is_empty(), "{lines:?}");

    let (_, mirror) = diff(&server, &after, &before).await;
    assert_eq!(
        (&mirror["added"], &mirror["removed"], &mirror["changed"]),
        (&summary["removed"], &summary["added"], &summary["changed"])
    );
    let (none, summary) = diff(&server, &after, &after).await;
    assert!(none.is_empty() && summary["changed"] == 0, "{none:?}");

    // A fork that did nothing has the disk of its checkpoint.
    let forked = path_of(&fork(&api, &after, &json!({})).await);
    let twin = checkpoint(&api, &forked, "twin").await;
    let (lines, _) = diff(&server, &after, &twin).await;
    let own = |path: &&String| path.starts_with("/home/") || path.starts_with("/usr/");
    assert_eq!(lines.keys().filter(own).count(), 0, "{lines:?}");

    let oc = |more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_oc"))
            .args(["checkpoint", "diff", id_of(&before), id_of(&after)])
            .args(more)
            .env_clear()
            .env("HOME", server.root())
            .env("OPENCOMPUTER_API_URL", server.url())
            .env("OPENCOMPUTER_API_KEY", KEY)
            .output()
            .expect("oc runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let text = oc(&[]);
    for line in [
        "A  /home/sandbox/line\\u{a}break\n",
        "A  /home/sandbox/esc\\u{1b}[2J\n",
        "D  /usr/share/doc/\n",
        "M  /home/sandbox/size  (size 4 → 7, content)\n",
        "M  /home/sandbox/link  (target one → two)\n",
    ] {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
    let json = oc(&["--json"]);
    let last = json.lines().last().expect("a line");
    let last: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(last["summary"]["complete"], true);

    let other = server.other();
    let route = format!(
        "/api/sandboxes/checkpoints/{}/diff/{}",
        id_of(&before),
        id_of(&after)
    );
    other.get(&route).await.refused(404, "checkpoint not found");
    api.get("/api/sandboxes/checkpoints/x/diff/y")
        .await
        .refused(400, "invalid checkpoint ID");
}
