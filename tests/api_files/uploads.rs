//! Uploads and downloads that are large, broken off, raced or too much.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use reqwest::Body;
use serde_json::json;

use crate::common::{KEY, Sandbox, Server};

const MIB: usize = 1024 * 1024;
/// Size of the large file when the environment says nothing, MiB.
const LARGE_MIB: usize = 512;
/// How much more memory the server and the guest may ever have held with a large file than without.
const GROWTH_KIB_MAX: u64 = 24 * 1024;

/// The piece of a file that begins at MiB `number`: no two are the same.
fn piece(number: usize) -> Vec<u8> {
    let mut piece: Vec<u8> = (0..=255).cycle().take(MIB).collect();
    piece[..8].copy_from_slice(&number.to_be_bytes());
    piece
}

/// The most memory a process ever held, in KiB.
fn peak_kib(status: &str) -> u64 {
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|text| text.parse().ok()).expect("VmHWM")
}

/// Uploads and downloads a file of so many MiB and compares every byte.
async fn there_and_back(sandbox: &Sandbox, mib: usize) {
    let path = sandbox.file("/workspace/large");
    let pieces = stream::iter(0..mib).map(|number| Ok::<_, std::io::Error>(piece(number)));
    let request = sandbox
        .api
        .request("PUT", &path)
        .body(Body::wrap_stream(pieces));
    let patience = Duration::from_secs(900);
    let reply = request.timeout(patience).send().await.expect("a reply");
    assert_eq!(reply.status(), 204);
    let size = sandbox.run("stat -c %s /workspace/large").await;
    assert_eq!(size, (mib * MIB).to_string());
    let request = sandbox.api.request("GET", &path).timeout(patience);
    let mut reply = request.send().await.expect("a reply");
    assert_eq!(reply.content_length(), Some((mib * MIB) as u64));
    let (mut at, mut wanted) = (0, piece(0));
    while let Some(chunk) = reply.chunk().await.expect("the file's bytes") {
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let within = at % MIB;
            if within == 0 {
                wanted = piece(at / MIB);
            }
            let length = rest.len().min(MIB - within);
            assert!(
                rest[..length] == wanted[within..within + length],
                "differs near {at}"
            );
            rest = &rest[length..];
            at += length;
        }
    }
    assert_eq!(at, mib * MIB);
    sandbox.api.delete(&path).await.ok(204);
}

/// Goal: a file of any size passes both ways, whole, in constant memory of the server and the guest.
/// Method: the most either ever held, after a file of 64 MiB and after one of 512 MiB
/// (`OC_TEST_FILE_MIB` says another size).
#[actix_rt::test]
async fn a_large_file_takes_constant_memory() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let asked = std::env::var("OC_TEST_FILE_MIB").ok();
    let mib = asked
        .and_then(|text| text.parse().ok())
        .unwrap_or(LARGE_MIB);
    let peaks = async || {
        let own = fs::read_to_string(format!("/proc/{}/status", server.pid()));
        let guest = sandbox.run("cat /proc/1/status").await;
        [
            peak_kib(&own.expect("the server's status")),
            peak_kib(&guest),
        ]
    };
    there_and_back(&sandbox, 64).await;
    let before = peaks().await;
    let started = std::time::Instant::now();
    there_and_back(&sandbox, mib).await;
    let after = peaks().await;
    println!(
        "{mib} MiB there and back in {:?}; peaks {before:?} KiB, {after:?} KiB",
        started.elapsed()
    );
    for (before, after) in before.into_iter().zip(after) {
        assert!(
            after - before < GROWTH_KIB_MAX,
            "{before} KiB before, {after} KiB after"
        );
    }
}

/// Goal: what is larger than the operator allows is refused with 413, whether its length was told or
/// not, and leaves nothing: no file, no part of one, no folder that was made for it.
#[actix_rt::test]
async fn nothing_is_left_of_an_upload_that_is_too_large() {
    let mut server = Server::prepare();
    fs::create_dir_all(server.data()).expect("a data folder");
    let settings = "[limits]\nupload_bytes_max = 1048576\n";
    fs::write(server.data().join("oc.toml"), settings).expect("settings");
    server.restart();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    let text = "the file must not exceed 1048576 bytes";
    sandbox.write("kept", "as it was").await.ok(204);
    sandbox.write("whole", vec![7; MIB]).await.ok(204);
    let streamed = async |path: &str, mib: usize| {
        let pieces = stream::iter(0..mib).map(|number| Ok::<_, std::io::Error>(piece(number)));
        let request = sandbox.api.request("PUT", &sandbox.file(path));
        let reply = request
            .body(Body::wrap_stream(pieces))
            .send()
            .await
            .expect("a reply");
        (reply.status().as_u16(), reply.text().await.expect("a text"))
    };
    assert_eq!(streamed("whole", 1).await.0, 204);
    for path in ["kept", "new", "deep/er/new"] {
        sandbox
            .write(path, vec![7; MIB + 1])
            .await
            .refused(413, text);
        for mib in [2, 20] {
            let refused = json!({ "error": text }).to_string();
            assert_eq!(streamed(path, mib).await, (413, refused), "{path}");
        }
    }
    assert_eq!(sandbox.run("ls -A").await, "kept\nwhole");
    assert_eq!(sandbox.read("kept").await.text, "as it was");
}

/// Goal: an upload whose client goes away in the middle leaves nothing, and the file as it was.
#[actix_rt::test]
async fn nothing_is_left_of_an_upload_that_breaks_off() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 128 })).await else {
        return;
    };
    sandbox.write("kept", "as it was").await.ok(204);
    let address = server
        .url()
        .strip_prefix("http://")
        .expect("plain HTTP")
        .to_owned();
    for path in ["kept", "new/folder/file"] {
        let head = format!(
            "PUT {} HTTP/1.1\r\nhost: {address}\r\nx-api-key: {KEY}\r\ncontent-length: 9000000\r\n\r\n",
            sandbox.file(path)
        );
        let mut socket = TcpStream::connect(&address).expect("a connection");
        socket.write_all(head.as_bytes()).expect("a head");
        socket.write_all(&vec![1; 3_000_000]).expect("half a body");
        let begun = "find . -name '.oc-upload*' -size +1000k | grep -q .";
        eventually(&sandbox, begun).await;
        drop(socket);
        eventually(&sandbox, "test \"$(find . -mindepth 1)\" = ./kept").await;
    }
    assert_eq!(sandbox.read("kept").await.text, "as it was");
}

/// Waits until a script succeeds inside.
async fn eventually(sandbox: &Sandbox, script: &str) {
    for _ in 0..300 {
        if sandbox.outcome(script).await["exitCode"] == 0 {
            return;
        }
        actix_rt::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("did not come true: {script}");
}

/// Goal: a folder that a program swaps for a link and back while files are written into it costs
/// nothing but those writes: each file is whole where it is, and no part of one lies about.
#[actix_rt::test]
async fn a_folder_swapped_for_a_link_leaves_no_parts() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let race = "mkdir -p race/d race/other; cd race; ln -s other l
        while [ ! -e stop ]; do mv d e; mv l d; mv d l; mv e d; done";
    let body = json!({ "cmd": "sh", "args": ["-c", race] });
    sandbox
        .api
        .post(&sandbox.path("/exec"), &body)
        .await
        .ok(201);
    let content = "0123456789abcdef".repeat(8 * 1024);
    let mut done = 0;
    for _ in 0..12 {
        let write = async |n: u32| {
            let path = format!("race/d/f{n}");
            sandbox.write(&path, content.clone()).await
        };
        let writes = (0..8).map(write);
        for reply in futures_util::future::join_all(writes).await {
            let refused = [400, 404].contains(&reply.status);
            assert!(
                reply.status == 204 || refused,
                "{} {}",
                reply.status,
                reply.text
            );
            done += u32::from(reply.status == 204);
        }
    }
    assert!(done > 0, "some writes met the folder");
    sandbox.run("touch race/stop").await;
    let (parts, sizes) = (
        "find . -name '.oc-upload*'",
        "find . -name 'f?' ! -size 131072c",
    );
    assert_eq!(
        sandbox.run(&format!("sleep 0.3; {parts}; {sizes}")).await,
        ""
    );
}

/// Goal: a reader gets the file as it was opened: exactly its size when it grows or is replaced, and
/// an end in error, never a shorter file, when it shrinks.
#[actix_rt::test]
async fn a_file_that_changes_is_never_taken_for_a_whole_one() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    for (change, whole) in [
        ("echo more >> f", true),
        ("rm f", true),
        ("mv g f", true),
        ("truncate -s 1M f", false),
        (": > f", false),
    ] {
        sandbox
            .run("rm -f f g; truncate -s 128M f; echo short > g")
            .await;
        let mut reply = sandbox
            .api
            .request("GET", &sandbox.file("f"))
            .send()
            .await
            .expect("a reply");
        let mut read = reply
            .chunk()
            .await
            .expect("a chunk")
            .expect("a chunk")
            .len();
        sandbox.run(change).await;
        let ended = loop {
            match reply.chunk().await {
                Ok(Some(chunk)) => read += chunk.len(),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        assert_eq!(ended, whole, "{change}");
        assert_eq!(read == 128 * MIB, whole, "{change}");
    }
}

/// Goal: where there is no more room inside, the upload is refused in words and takes no room.
#[actix_rt::test]
async fn a_full_disk_inside_is_told() {
    let server = Server::start();
    let Some(sandbox) = Sandbox::make(&server.api(), &json!({ "memoryMB": 256 })).await else {
        return;
    };
    let room = sandbox
        .run("df -B1 --output=avail /dev/shm | tail -1")
        .await;
    let room: usize = room.trim().parse().expect("a number");
    assert!(room < 2048 * MIB, "a small file system: {room}");
    let pieces = stream::iter(0..room / MIB + 2).map(|n| Ok::<_, std::io::Error>(piece(n)));
    let request = sandbox
        .api
        .request("PUT", &sandbox.file("/dev/shm/big/file"));
    let reply = request
        .body(Body::wrap_stream(pieces))
        .send()
        .await
        .expect("a reply");
    assert_eq!(reply.status(), 507, "{:?}", reply.text().await);
    assert_eq!(sandbox.run("ls -A /dev/shm").await, "");
    sandbox.write("/dev/shm/small", "fits").await.ok(204);
}
