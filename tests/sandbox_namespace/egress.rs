//! What leaves a sandbox, and what can't.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use opencomputer::sandbox::{Driver, EgressConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Sandbox, World, root_or_skip, run_by, spec, text};

async fn next(sandbox: &mut Sandbox) -> EgressConnection {
    let accepting = sandbox.running.egress.accept();
    tokio::time::timeout(Duration::from_secs(10), accepting)
        .await
        .unwrap()
        .unwrap()
}

/// Python that connects to each `host:port` given, sends its own words and prints the answer.
const DIAL: &str = r#"
import socket, sys
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    try:
        s = socket.create_connection((host, int(port)), 10)
        s.sendall(target.encode())
        print(s.recv(100).decode())
    except OSError as e:
        print(type(e).__name__, e.errno)
"#;

fn dial(targets: &str) -> String {
    format!("python3 -c '{DIAL}' {targets}")
}

/// Goal: every TCP connection, to any name, address and port, arrives at the attached server with
/// what it was meant for, bytes flow both ways, and proxy variables play no part.
#[tokio::test]
async fn every_connection_arrives_with_its_name_and_port() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let mut sandbox = world.start(&spec()).await;
    let cases = [
        ("api.example.test:443", Some("api.example.test"), None, 443),
        (
            "Deep.Sub.Example.TEST:22",
            Some("deep.sub.example.test"),
            None,
            22,
        ),
        ("1.1.1.1:853", None, Some("1.1.1.1"), 853),
        ("169.254.169.254:80", None, Some("169.254.169.254"), 80),
        ("169.254.169.253:3128", None, Some("169.254.169.253"), 3128),
        ("10.0.2.2:65001", None, Some("10.0.2.2"), 65001),
        ("198.19.255.255:80", None, Some("198.19.255.255"), 80),
        ("8.8.8.8:53", None, Some("8.8.8.8"), 53),
    ];
    for (target, name, ip, port) in cases {
        let (guest, line) = (sandbox.guest.clone(), dial(target));
        let serving = async {
            let mut connection = next(&mut sandbox).await;
            let mut words = [0; 100];
            let count = connection.stream.read(&mut words).await.unwrap();
            assert_eq!(&words[..count], target.as_bytes());
            connection.stream.write_all(b"answer").await.unwrap();
            connection
        };
        let (output, connection) = tokio::join!(run_by(&guest, &line), serving);
        assert_eq!(text(&output).trim(), "answer", "{target}");
        assert_eq!(connection.name.as_deref(), name, "{target}");
        assert_eq!(connection.port, port, "{target}");
        if let Some(ip) = ip {
            assert_eq!(connection.ip, ip.parse::<Ipv4Addr>().unwrap(), "{target}");
        }
    }
    // A later attachment ends an earlier one.
    let _later = world
        .driver
        .attach(&sandbox.running.id)
        .await
        .unwrap()
        .unwrap();
    assert!(sandbox.running.egress.accept().await.is_none());
}

/// Goal: what is not TCP fails at once instead of hanging, and there is no other way out.
#[tokio::test]
async fn everything_else_is_refused_at_once() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let sandbox = world.start(&spec()).await;
    let begin = Instant::now();
    let udp = r#"
import socket
for port in (443, 123, 5353):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(5)
    try:
        s.sendto(b"x", ("1.1.1.1", port)); s.recv(1); print("passed")
    except OSError as e:
        print(e.errno)
for kind, proto in ((socket.SOCK_RAW, 1), (socket.SOCK_DGRAM, 1)):
    try:
        s = socket.socket(socket.AF_INET, kind, proto)
        s.sendto(b"\x08\0\0\0\0\0\0\0", ("1.1.1.1", 0)); print("passed")
    except OSError as e:
        print(e.errno)
try:
    s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM); s.settimeout(5)
    s.connect(("2606:4700::1111", 443)); print("passed")
except OSError as e:
    print(e.errno)
"#;
    let output = sandbox.run_as_root(&format!("python3 -c '{udp}'")).await;
    let lines = text(&output);
    assert!(!lines.contains("passed"), "{lines}");
    assert_eq!(lines.lines().count(), 6, "{lines}");
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "{:?}: {lines}",
        begin.elapsed()
    );
    // No device, route or neighbour leads anywhere.
    let devices = sandbox
        .output("ls /proc/sys/net/ipv4/conf | sort | tr '\\n' ' '")
        .await;
    assert_eq!(devices, "all default eth0 eth0-far lo");
    assert_eq!(
        sandbox
            .output("cat /proc/net/if_inet6 2>/dev/null | wc -l")
            .await,
        "0"
    );
}

#[tokio::test]
async fn names_resolve_to_synthetic_addresses_and_tunnel_nothing() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let sandbox = world.start(&spec()).await;
    let address = sandbox
        .output("getent ahostsv4 api.example.test | head -1 | cut -d' ' -f1")
        .await;
    assert!(address.starts_with("198.18."), "{address}");
    assert_eq!(
        sandbox
            .output("getent ahostsv4 API.example.test | head -1 | cut -d' ' -f1")
            .await,
        address
    );
    assert_ne!(
        sandbox
            .output("getent ahosts other.test | head -1 | cut -d' ' -f1")
            .await,
        address
    );
    // Any server address reaches the same stub; a TXT query gets an empty answer, no data.
    let txt = r#"
import socket, struct
def ask(server, name, kind):
    q = struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0)
    for label in name.split("."):
        q += bytes([len(label)]) + label.encode()
    q += b"\0" + struct.pack(">HH", kind, 1)
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
    s.sendto(q, (server, 53)); r = s.recv(2000)
    print(struct.unpack(">HHHH", r[:8])[1] & 15, struct.unpack(">HHHH", r[:8])[3])
ask("8.8.8.8", "a" * 63 + ".evil.test", 1)
ask("9.9.9.9", "data.evil.test", 16)
ask("9.9.9.9", "data.evil.test", 10)
ask("10.0.2.3", "data.evil.test", 255)
ask("10.0.2.3", "1.2.3.4", 1)
"#;
    let output = sandbox.run(&format!("python3 -c '{txt}'")).await;
    assert_eq!(text(&output), "0 1\n0 0\n0 0\n0 0\n3 0\n");
}

/// Goal: no server attached means closed: refused at once, not queued for later.
#[tokio::test]
async fn without_a_server_every_connection_is_reset() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let sandbox = world.start(&spec()).await;
    let Sandbox { running, guest } = sandbox;
    let id = running.id.clone();
    drop(running);
    let begin = Instant::now();
    let output = run_by(&guest, &dial("api.example.test:443 1.1.1.1:80")).await;
    let lines = text(&output);
    assert_eq!(
        lines
            .lines()
            .filter(|l| l.starts_with("ConnectionRe"))
            .count(),
        2,
        "{lines}"
    );
    assert!(begin.elapsed() < Duration::from_secs(5));
    // The listener's own port, reached directly, leads nowhere either, even when attached.
    let mut running = world.driver.attach(&id).await.unwrap().unwrap();
    let output = run_by(&guest, &dial("127.0.0.1:65001")).await;
    assert!(
        text(&output).starts_with("ConnectionRe"),
        "{}",
        text(&output)
    );
    let nothing = tokio::time::timeout(Duration::from_millis(100), running.egress.accept()).await;
    assert!(nothing.is_err());
}

#[tokio::test]
async fn network_off_rejects_everything_at_once() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let mut spec = spec();
    spec.network = false;
    let sandbox = world.start(&spec).await;
    let begin = Instant::now();
    let output = sandbox
        .run(&dial("api.example.test:443 1.1.1.1:80 127.0.0.1:1"))
        .await;
    let lines = text(&output);
    assert_eq!(lines.lines().count(), 3, "{lines}");
    assert!(!lines.contains("answer"), "{lines}");
    assert!(
        begin.elapsed() < Duration::from_secs(8),
        "{:?}",
        begin.elapsed()
    );
    let loopback = "python3 -c 'import socket as s; l=s.create_server((\"127.0.0.1\", 0)); \
         c=s.create_connection(l.getsockname()); print(1)'";
    assert_eq!(sandbox.output(loopback).await, "1");
}

/// Goal: two sandboxes share nothing: neither loopback nor abstract sockets nor shared memory.
#[tokio::test]
async fn sandboxes_do_not_reach_each_other() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let (a, b) = (world.start(&spec()).await, world.start(&spec()).await);
    let serve = r#"
import socket, time, os
t = socket.create_server(("0.0.0.0", 7777))
u = socket.socket(socket.AF_UNIX); u.bind("\0oc-test"); u.listen()
open("/dev/shm/oc-test", "w").write("x")
print("up", flush=True)
if os.fork() == 0:
    os.setsid(); [os.close(f) for f in (0, 1, 2)]; time.sleep(60)
"#;
    assert_eq!(a.output(&format!("python3 -c '{serve}'")).await, "up");
    let reach = r#"
import socket, os
def attempt(f):
    try:
        f(); print("reached")
    except OSError as e:
        print("no")
attempt(lambda: socket.create_connection(("127.0.0.1", 7777), 2))
attempt(lambda: socket.create_connection(("10.0.2.15", 7777), 2))
attempt(lambda: socket.socket(socket.AF_UNIX).connect("\0oc-test"))
attempt(lambda: open("/dev/shm/oc-test"))
"#;
    let line = format!("python3 -c '{reach}'");
    assert_eq!(b.output(&line).await, "no\nno\nno\nno");
    assert_eq!(a.output(&line).await, "reached\nreached\nreached\nreached");
}

/// Goal: curl, git and Python trust the sandbox's own certificate with no variable set.
#[tokio::test]
async fn the_sandboxs_certificate_is_trusted_by_default() {
    if !root_or_skip() {
        return;
    }
    let world = World::new();
    let sandbox = world.start(&spec()).await;
    let count = "python3 -c 'import ssl; c=ssl.create_default_context(); \
         print(sum(\"oc test\" in str(x) for x in c.get_ca_certs()), len(c.get_ca_certs()) > 50)'";
    assert_eq!(sandbox.output(count).await, "1 True");
    for file in [
        "/etc/ssl/certs/ca-certificates.crt",
        "/usr/local/share/ca-certificates/opensandbox-proxy.crt",
    ] {
        let bundle = sandbox.output(&format!("cat {file}")).await;
        assert!(bundle.contains(crate::support::CA_PEM.trim()), "{file}");
    }
}
