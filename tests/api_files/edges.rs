//! Names, links, and things that are no files.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::boxes::escaped;
use crate::common::{Sandbox, Server};

/// Longest any of these calls may take; builds may run beside the test.
const PROMPT: Duration = Duration::from_secs(20);

fn names(listed: &Value) -> Vec<String> {
    let rows = listed.as_array().expect("a list").iter();
    rows.map(|row| row["name"].as_str().expect("a name").to_owned())
        .collect()
}

/// Goal: whatever a name looks like, it is that name: written, listed, read and removed.
#[actix_rt::test]
async fn odd_names_are_only_names() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let long = "n".repeat(255);
    let mut odd = vec![
        "a\nb",
        "\n",
        "a\tb\r",
        "\u{1}\u{7f}",
        "'",
        "\"",
        "`id`",
        "$(id)",
        "${HOME}",
        "-rf",
        "--",
        " ",
        " . ",
        "...",
        "~",
        "*",
        "?x=1&path=y",
        "#",
        "a;b|c",
        "\\",
        "\\n",
        "a%2fb",
        "%",
        "%00",
        "+",
        "é",
        "e\u{301}",
        "日本語",
        "\u{202e}txt",
        "\u{1f980}",
        "\u{feff}",
        ".oc-upload-1-0",
        &long,
    ];
    for name in &odd {
        let path = format!("/workspace/odd/{name}");
        sandbox.write(&path, *name).await.ok(204);
        assert_eq!(sandbox.read(&path).await.ok(200).text, *name, "{name:?}");
    }
    let listed = sandbox.list("/workspace/odd").await.ok(200).json();
    odd.sort_unstable();
    assert_eq!(names(&listed), odd, "sorted by bytes");
    for row in listed.as_array().expect("a list") {
        let name = row["name"].as_str().expect("a name");
        let wanted = json!({
            "name": name, "isDir": false, "size": name.len(),
            "path": format!("/workspace/odd/{name}"),
        });
        assert_eq!(row, &wanted);
    }
    let count = "find /workspace/odd -type f -printf x | wc -c";
    assert_eq!(sandbox.run(count).await, odd.len().to_string());
    for name in &odd {
        let path = sandbox.file(&format!("/workspace/odd/{name}"));
        sandbox.api.delete(&path).await.ok(204);
    }
    assert_eq!(sandbox.list("/workspace/odd").await.text, "[]");
    let longer = format!("/workspace/odd/{}", "n".repeat(256));
    sandbox.write(&longer, "x").await.ok(400);
    sandbox.read(&longer).await.ok(400);

    // Names that are no text are shown as well as text can, and mean no other file.
    let make =
        r#"cd /workspace/odd; printf 1 > "$(printf 'a\377b')"; printf 2 > "$(printf '\376')""#;
    sandbox.run(make).await;
    let listed = sandbox.list("/workspace/odd").await.ok(200).json();
    assert_eq!(names(&listed), ["a\u{fffd}b", "\u{fffd}"]);
    let raw = sandbox.path("/files?path=/workspace/odd/a%FFb");
    for method in ["GET", "PUT", "DELETE"] {
        let reply = sandbox.api.call(method, &raw, None).await;
        reply.refused(400, "path must be UTF-8");
    }
    sandbox.read("/workspace/odd/a\u{fffd}b").await.ok(404);
    let folder = sandbox.file("/workspace/odd");
    sandbox.api.delete(&folder).await.ok(204);
    sandbox.list("/workspace/odd").await.ok(404);
}

/// Goal: dots and links, however they are laid, lead nowhere but into the sandbox itself.
#[actix_rt::test]
async fn dots_and_links_stay_inside() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let canary = server.root().join("canary");
    std::fs::write(&canary, "of the host").expect("a file of the host");
    let canary = canary.to_str().expect("text");
    let lay = "cd /home/sandbox
        ln -s /proc/1/root/etc x; ln -s /proc/1/root one; ln -s /proc/self/root own
        ln -s /proc/1/cwd cwd; ln -s ../../../../../../../.. up; ln -s /proc/self/fd fd
        ln -s loop loop; ln -s b a; ln -s a b; ln -s nowhere/new dangling; mkdir real
        ln -s real folder; ln -s /etc/hostname file";
    sandbox.run(lay).await;
    let hostname = sandbox.run("cat /etc/hostname").await;
    for through in [
        "x/hostname",
        "one/etc/hostname",
        "own/etc/hostname",
        "up/etc/hostname",
        "file",
    ] {
        let read = sandbox.read(through).await.ok(200).text;
        assert_eq!(read.trim_end(), hostname, "{through}");
    }
    for way in [
        "",
        "/one",
        "/own",
        "/cwd",
        "/up",
        "/x/..",
        "/fd/3",
        "/../../..",
    ] {
        for file in [
            canary,
            &format!("/../../../../..{canary}"),
            "/proc/1/root/proc/1/root/x",
        ] {
            let path = format!("/home/sandbox{way}{file}");
            sandbox.read(&path).await.ok(404);
        }
    }
    // `..` is taken as text, before any link.
    let plain = sandbox
        .read("/home/sandbox/folder/../../../etc/hostname")
        .await;
    assert_eq!(plain.ok(200).text.trim_end(), hostname);

    for path in ["loop", "a", "loop/x", "b/y"] {
        sandbox.read(path).await.ok(400);
        sandbox.write(path, "x").await.ok(400);
        sandbox.list(path).await.ok(400);
    }
    sandbox.write("dangling", "made").await.ok(204);
    assert_eq!(
        sandbox.run("cat nowhere/new; readlink dangling").await,
        "madenowhere/new"
    );
    sandbox.write("folder/in", "side").await.ok(204);
    assert_eq!(sandbox.run("cat real/in").await, "side");
    let listed = sandbox.list("folder").await.ok(200).json();
    assert_eq!(names(&listed), ["in"]);
    // A link is removed, what it leads to is not.
    for link in ["folder", "x", "loop", "one"] {
        sandbox.api.delete(&sandbox.file(link)).await.ok(204);
    }
    assert_eq!(
        sandbox
            .run("ls; cat real/in /etc/hostname | wc -l")
            .await
            .lines()
            .last(),
        Some("1")
    );
    sandbox.api.delete(&sandbox.file("/")).await.ok(400);
    sandbox.api.delete(&sandbox.file("/..")).await.ok(400);
}

/// Goal: what is no regular file is refused at once, and holds nothing up, however often it is asked
/// for; files of the kernel are read as they are and written never.
#[actix_rt::test]
async fn what_is_no_file_is_refused_at_once() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let make = "mkdir t; mkfifo t/fifo; ln -s fifo t/link; mkdir t/dir
        perl -MSocket -e 'socket(S,PF_UNIX,SOCK_STREAM,0); bind(S,pack_sockaddr_un(\"t/socket\"))' \
        || true";
    sandbox.run(make).await;
    let things = [
        "t/fifo",
        "t/link",
        "t/dir",
        "/",
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/dev/tty",
        "/dev/random",
        "/dev/stdin",
        "/proc",
        "/proc/self/fd/0",
        "/proc/1/fd/3",
        "/dev/fd/3",
    ];
    for thing in things {
        let started = Instant::now();
        let (read, written) = (sandbox.read(thing).await, sandbox.write(thing, "x").await);
        assert!([400, 404].contains(&read.status), "{thing}: {}", read.text);
        assert!(
            [400, 404].contains(&written.status),
            "{thing}: {}",
            written.text
        );
        assert!(started.elapsed() < PROMPT, "{thing}");
    }
    // More at once than the guest has threads for files.
    let many = (0..64).map(|_| sandbox.read("t/fifo"));
    for reply in futures_util::future::join_all(many).await {
        assert_eq!(reply.status, 400, "{}", reply.text);
    }
    sandbox.write("t/after", "still here").await.ok(204);

    let version = sandbox.run("cat /proc/version").await;
    assert_eq!(
        sandbox.read("/proc/version").await.ok(200).text.trim_end(),
        version
    );
    sandbox.read("/proc/self/status").await.ok(200);
    for kernel in [
        "/proc/version",
        "/proc/sys/kernel/hostname",
        "/proc/self/oom_score_adj",
        "/proc/new",
        "/sys/kernel/new",
        "/proc/1/mem",
        "/proc/self/exe",
        "/proc/1/exe",
    ] {
        let started = Instant::now();
        let reply = sandbox.write(kernel, "0").await;
        assert_eq!(reply.status, 400, "{kernel}: {}", reply.text);
        assert!(started.elapsed() < PROMPT, "{kernel}");
    }
    for odd in [
        "/proc/kmsg",
        "/proc/kcore",
        "/proc/1/mem",
        "/proc/self/mem",
        "/proc/1/environ",
    ] {
        let started = Instant::now();
        let reply = sandbox.read(odd).await;
        assert!(reply.status < 502, "{odd}: {} {}", reply.status, reply.text);
        assert!(started.elapsed() < PROMPT, "{odd}");
    }
    assert_eq!(sandbox.read("t/after").await.ok(200).text, "still here");
}

/// Goal: a file nobody may read is read and written all the same, and keeps its owner and mode.
#[actix_rt::test]
async fn owners_and_modes_do_not_stand_in_the_way() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        println!("skipped: without root there is no other user inside");
        return;
    }
    let make = "sudo sh -c 'mkdir -m 0 /closed; printf 1 > /closed/f; chmod 0 /closed/f'
        printf 2 > script; chmod 755 script";
    sandbox.run(make).await;
    assert_eq!(sandbox.read("/closed/f").await.ok(200).text, "1");
    sandbox.write("/closed/f", "new").await.ok(204);
    sandbox.write("script", "new").await.ok(204);
    sandbox.write("/closed/g", "new").await.ok(204);
    let listed = sandbox.list("/closed").await.ok(200).json();
    assert_eq!(names(&listed), ["f", "g"]);
    let shown = sandbox
        .run("sudo stat -c '%a %U %s' /closed/f script /closed/g")
        .await;
    assert_eq!(shown, "0 root 3\n755 sandbox 3\n644 sandbox 3");
}

/// Goal: a hundred thousand entries are listed and one more is refused in words; both in time.
#[actix_rt::test]
async fn a_hundred_thousand_entries_are_listed() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 1024 })).await else {
        return;
    };
    sandbox
        .run("mkdir /workspace/many; cd /workspace/many; seq -w 99999 | xargs touch")
        .await;
    sandbox.run("touch /workspace/many/z").await;
    let listed = sandbox.list("/workspace/many").await.ok(200).json();
    let rows = listed.as_array().expect("a list");
    assert_eq!(rows.len(), 100_000);
    let named = |row: &Value| row["name"].as_str().unwrap_or_default().to_owned();
    assert!(
        rows.windows(2).all(|two| named(&two[0]) < named(&two[1])),
        "sorted"
    );
    sandbox.run("touch /workspace/many/zz").await;
    let reply = sandbox.list("/workspace/many").await;
    reply.refused(400, "more than 100000 entries: /workspace/many");
    let folder = format!("/files?path={}", escaped("/workspace/many"));
    let gone = sandbox.api.request("DELETE", &sandbox.path(&folder));
    let gone = gone.timeout(Duration::from_secs(200)).send().await;
    assert_eq!(gone.expect("a reply").status(), 204);
    sandbox.list("/workspace/many").await.ok(404);
}
