//! A secret's way through a real sandbox: narrowed, rotated, revoked, and what is told of it.
//! Where this machine can't have sandboxes, the tests say so and stop.

mod common;

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Api, KEY, Server};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const FIRST: &str = "CANARY-f1rst/value+0001";
const SECOND: &str = "CANARY-s3cond/value+0002";
const HOST: &str = "api.test";
/// No single step takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// An HTTPS host on loopback that says back what it was sent; `/slow` begins and never ends.
struct Host {
    port: u16,
    ca_pem: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Host {
    async fn start() -> Self {
        let ca_key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).expect("an authority");
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().expect("a key");
        let names = vec![HOST.to_owned()];
        let leaf = CertificateParams::new(names).expect("a name");
        let leaf = leaf.signed_by(&key, &issuer).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .expect("TLS");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a port");
        let host = Self {
            port: listener.local_addr().expect("an address").port(),
            ca_pem: ca.pem(),
            heads: Arc::default(),
        };
        let (tls, heads) = (TlsAcceptor::from(Arc::new(config)), host.heads.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, heads) = (tls.clone(), heads.clone());
                tokio::spawn(async move {
                    let Ok(mut stream) = tls.accept(stream).await else {
                        return;
                    };
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        if stream.read_exact(&mut byte).await.is_err() || head.len() > 65_536 {
                            return;
                        }
                        head.push(byte[0]);
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let length = match head.contains(" /slow ") {
                        true => head.len() + 1000,
                        false => head.len(),
                    };
                    let reply = format!(
                        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{head}"
                    );
                    heads.lock().expect("heads").push(head);
                    let _ = stream.write_all(reply.as_bytes()).await;
                    let _ = stream.flush().await;
                    let mut rest = Vec::new();
                    let _ = stream.read_to_end(&mut rest).await;
                });
            }
        });
        host
    }

    /// What `x-key` held in the last request.
    fn last_key(&self) -> String {
        let heads = self.heads.lock().expect("heads");
        let head = heads.last().expect("a request arrived");
        let line = head.lines().find_map(|line| line.strip_prefix("x-key: "));
        line.unwrap_or_default().to_owned()
    }

    fn count(&self) -> usize {
        self.heads.lock().expect("heads").len()
    }

    /// A server that may reach this host.
    fn server(&self, config: &str) -> Server {
        let server = Server::prepare();
        let root = server.root().join("root.pem");
        std::fs::write(&root, &self.ca_pem).expect("written");
        let file = server.root().join("oc.toml");
        std::fs::write(&file, config).expect("written");
        let args = [
            "--config",
            file.to_str().expect("UTF-8"),
            "--egress-allow-private",
            "127.0.0.0/8",
            "--egress-host",
            "api.test=127.0.0.1",
            "--egress-root",
            root.to_str().expect("UTF-8"),
        ];
        let mut server = server.args(&args);
        server.restart();
        server
    }
}

/// A sandbox with the store's secrets, or says why this machine has none.
async fn sandbox(api: &Api, store: &str) -> Option<String> {
    let reply = api
        .post("/api/sandboxes", &json!({ "secretStore": store }))
        .await;
    if reply.status == 500 && !rustix::process::geteuid().is_root() {
        println!("skipped: no sandboxes without root here: {}", reply.text);
        return None;
    }
    let made = reply.ok(201).json();
    Some(made["sandboxID"].as_str().expect("an id").to_owned())
}

async fn run(api: &Api, sandbox: &str, script: &str) -> String {
    let body = json!({ "cmd": "sh", "args": ["-c", script], "timeout": 30 });
    let path = format!("/api/sandboxes/{sandbox}/exec/run");
    let reply = api.post(&path, &body).await.ok(200).json();
    let all = format!("{}{}", reply["stdout"], reply["stderr"]);
    assert!(!all.contains("CANARY"), "a value inside: {all}");
    reply["stdout"]
        .as_str()
        .expect("output")
        .trim_end()
        .to_owned()
}

/// curl inside, with the token in `x-key` and what `more` says.
fn curl(port: u16, path: &str, more: &str) -> String {
    format!("curl -sS -m 20 -H \"x-key: $KEY\" {more} https://{HOST}:{port}{path}")
}

async fn set(api: &Api, store: &str, body: &Value) {
    let path = format!("/api/secret-stores/{store}/secrets/KEY");
    let reply = api.put(&path, body).await.ok(200).json();
    assert_eq!(reply, json!({ "name": "KEY", "status": "set" }));
}

fn oc(server: &Server, args: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_oc"))
        .args(args)
        .env_clear()
        .env("HOME", server.root())
        .env("OPENCOMPUTER_API_URL", server.url())
        .env("OPENCOMPUTER_API_KEY", KEY)
        .output()
        .expect("oc starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Every file of the data folder, for a value in clear.
fn no_value_in(server: &Server) {
    let found = Command::new("grep")
        .args(["-rlE", "CANARY-(f1rst|s3cond)"])
        .arg(server.data())
        .output()
        .expect("grep");
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.is_empty(), "a value in clear: {found}");
    assert!(!server.log().contains("CANARY"));
}

/// Goal: revoking takes a secret from a sandbox that runs, cuts what is under way with it, and no
/// restart, no crash and no new value of the same name brings it back there.
#[actix_rt::test]
async fn a_revoked_secret_dies_in_a_running_sandbox_and_stays_dead() {
    let host = Host::start().await;
    let mut server = host.server("");
    let api = server.api();
    let store = api.store(&json!({ "name": "keys" })).await;
    set(&api, &store, &json!({ "value": FIRST })).await;
    // A host without any secret is not looked into: this one stays one with a secret.
    let path = format!("/api/secret-stores/{store}/secrets/OTHER");
    let other = json!({ "value": "CANARY-f1rst/other+0003" });
    api.put(&path, &other).await.ok(200);
    let Some(id) = sandbox(&api, "keys").await else {
        return;
    };
    let token = run(&api, &id, "echo $KEY").await;
    assert!(token.starts_with("osb_sealed_"), "{token}");
    run(&api, &id, &curl(host.port, "/", "")).await;
    assert_eq!(host.last_key(), FIRST);

    // Rotated: the token stays, the next request has the new value.
    set(&api, &store, &json!({ "value": SECOND })).await;
    run(&api, &id, &curl(host.port, "/", "")).await;
    assert_eq!(host.last_key(), SECOND);

    let slow = curl(host.port, "/slow", "-o /tmp/slow");
    let slow = format!("(setsid sh -c '{slow}; echo $? > /tmp/ended' >/dev/null 2>&1 &)");
    let before = host.count();
    run(&api, &id, &slow).await;
    let begun = Instant::now();
    while host.count() == before {
        assert!(begun.elapsed() < PATIENCE, "the slow request arrives");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(host.last_key(), SECOND);
    let (ok, said, error) = oc(&server, &["secret", "revoke", &store, "KEY"]);
    assert!(ok, "{error}");
    assert_eq!(said, format!("Secret KEY revoked on store {store}\n"));
    let wait =
        "for i in $(seq 60); do [ -s /tmp/ended ] && break; sleep 0.05; done; cat /tmp/ended";
    let code = run(&api, &id, wait).await;
    assert!(!code.is_empty() && code != "0", "cut within 3 s: {code:?}");

    async fn dead(api: &Api, host: &Host, id: &str, token: &str) {
        assert_eq!(run(api, id, "echo $KEY").await, token);
        run(api, id, &curl(host.port, "/", "")).await;
        assert_eq!(host.last_key(), token);
    }
    dead(&api, &host, &id, &token).await;
    let path = |name: &str| format!("/api/secret-stores/{store}/secrets/{name}/revoke");
    api.post(&path("KEY"), &json!({})).await.ok(200);
    api.post(&path("NEVER"), &json!({}))
        .await
        .refused(404, "secret not found");
    // A new value is for new tokens.
    set(&api, &store, &json!({ "value": SECOND })).await;
    dead(&api, &host, &id, &token).await;
    server.stop();
    server.restart();
    let api = server.api();
    dead(&api, &host, &id, &token).await;
    server.kill();
    server.restart();
    let api = server.api();
    dead(&api, &host, &id, &token).await;
    let fresh = sandbox(&api, "keys").await.expect("a sandbox");
    run(&api, &fresh, &curl(host.port, "/", "")).await;
    assert_eq!(host.last_key(), SECOND);

    let uses = uses_of(&api, &format!("?secret=KEY&sandbox={id}"), 6).await;
    let fates: Vec<_> = uses
        .iter()
        .map(|one| (one["sent"] == true, one["why"].as_str().unwrap_or_default()))
        .collect();
    assert!(fates.contains(&(true, "")) && fates.contains(&(false, "revoked")));
    assert!(
        uses.iter()
            .all(|one| one["host"] == HOST && one["secret"] == "KEY")
    );
    let cut = uses.iter().find(|one| one["reason"] == "secret_revoked");
    assert!(cut.is_some(), "the cut request is on record: {uses:?}");
    for id in [id, fresh] {
        api.delete(&format!("/api/sandboxes/{id}")).await.ok(204);
    }
    no_value_in(&server);
}

/// The uses there are, once there are `count` of them that are decided: records follow within a moment.
async fn uses_of(api: &Api, query: &str, count: usize) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let path = format!("/api/audit/secrets{query}");
        let page = api.get(&path).await.ok(200).json();
        let uses = page["uses"].as_array().expect("uses").clone();
        let decided = uses.iter().all(|one| one["outcome"] != "announced");
        if uses.len() >= count && decided {
            return uses;
        }
        assert!(begun.elapsed() < PATIENCE, "{count} uses: {uses:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Goal: a placement is checked, shown, brought to running sandboxes with a rotation, and there
/// after a restart; the trail tells what did not fit, to its own organization alone.
#[actix_rt::test]
async fn a_placement_is_kept_shown_and_reaches_running_sandboxes() {
    let host = Host::start().await;
    let mut server = host.server("[egress]\naudit = \"strict\"\n");
    let api = server.api();
    let store = api.store(&json!({ "name": "keys" })).await;
    let path = format!("/api/secret-stores/{store}/secrets/KEY");
    for (placement, told) in [
        (json!({ "header": ["x-key"] }), "unknown field"),
        (json!({ "headers": [] }), "placement.headers"),
        (json!({ "headers": ["a b"] }), "placement.headers"),
        (json!({ "headers": "x-key" }), "placement"),
        (json!({ "methods": ["get"] }), "placement.methods"),
        (json!({ "pathPrefix": "/v1/../x" }), "placement.pathPrefix"),
        (json!({ "maxPerRequest": 0 }), "placement.maxPerRequest"),
        (json!({ "confine": true }), "placement.confine"),
        (json!({ "maxPerRequest": -1 }), "placement"),
        (json!([]), "placement"),
        (json!([["x-key"]]), "placement"),
    ] {
        let body = json!({ "value": FIRST, "placement": placement });
        let reply = api.put(&path, &body).await;
        assert_eq!(reply.status, 400, "{}", reply.text);
        assert!(reply.text.contains(told), "{}", reply.text);
        assert!(!reply.text.contains("CANARY"));
    }
    set(&api, &store, &json!({ "value": FIRST, "placement": {} })).await;
    let list = format!("/api/secret-stores/{store}/secrets");
    let shown = api.get(&list).await.ok(200).json();
    assert!(shown[0].get("placement").is_none(), "{shown}");
    let Some(id) = sandbox(&api, "keys").await else {
        return;
    };
    let token = run(&api, &id, "echo $KEY").await;
    let in_query = curl(host.port, "/?k=$KEY", "");
    run(&api, &id, &in_query).await;
    let seen = |host: &Host| host.heads.lock().expect("heads").last().cloned();
    let first = seen(&host).expect("arrived");
    assert!(!first.contains(&token), "everywhere: {first}");

    let flags = [
        "secret",
        "set",
        &store,
        "KEY",
        SECOND,
        "--header",
        "X-Key",
        "--method",
        "get",
        "--path-prefix",
        "/",
        "--max-per-request",
        "1",
    ];
    let (ok, _, error) = oc(&server, &flags);
    assert!(ok && error.is_empty(), "{error}");
    let expected = json!({
        "headers": ["x-key"], "methods": ["GET"], "pathPrefix": "/", "maxPerRequest": 1,
    });
    let shown = api.get(&list).await.ok(200).json();
    assert_eq!(shown[0]["placement"], expected);
    let (_, table, _) = oc(&server, &["secret", "list", &store]);
    assert!(
        table.contains("headers x-key; GET; below /; 1 a request"),
        "{table}"
    );
    for restarted in [false, true] {
        if restarted {
            server.stop();
            server.restart();
        }
        let api = server.api();
        run(&api, &id, &in_query).await;
        let second = seen(&host).expect("arrived");
        assert!(second.contains(&format!("GET /?k={token} ")), "{second}");
        assert_eq!(host.last_key(), SECOND);
        run(&api, &id, &curl(host.port, "/", "-X POST")).await;
        assert_eq!(host.last_key(), token);
    }
    let api = server.api();
    // One at first; then, twice, one that is sent and held back and one that is held back.
    let uses = uses_of(&api, "?host=API.test.", 7).await;
    let why: Vec<_> = uses.iter().filter_map(|one| one["why"].as_str()).collect();
    assert!(
        why.contains(&"place") && why.contains(&"method"),
        "{uses:?}"
    );
    let announced = api
        .get("/api/audit/events?type=egress.announced")
        .await
        .ok(200)
        .json();
    let announced = announced["events"].as_array().expect("events").clone();
    assert!(
        announced.len() >= 3,
        "strict audit announces: {announced:?}"
    );
    let (ok, summary, error) = oc(&server, &["audit", "secrets", "--sandbox", &id]);
    assert!(ok, "{error}");
    assert!(
        summary.contains("inert (method)") && summary.contains("sent"),
        "{summary}"
    );
    let (_, summary, _) = oc(&server, &["audit", "secrets", "--secret", "NONE"]);
    assert_eq!(summary, "No uses of secrets found.\n");

    // Paged one record at a time, the same uses come, either way.
    for (cursor, next) in [("before", "nextBefore"), ("after", "nextAfter")] {
        let (mut paged, mut at) = (0, (cursor == "after").then_some(0));
        loop {
            let from = at.map(|at| format!("&{cursor}={at}")).unwrap_or_default();
            let path = format!("/api/audit/secrets?limit=1{from}");
            let page = api.get(&path).await.ok(200).json();
            paged += page["uses"].as_array().expect("uses").len();
            at = page[next].as_u64();
            if at.is_none() {
                break;
            }
        }
        assert_eq!(paged, uses.len(), "{cursor}");
    }
    let (_, _, warned) = oc(&server, &["secret", "set", &store, "WEAK", "password"]);
    assert!(
        warned.starts_with("warning: ") && !warned.contains("password"),
        "{warned}"
    );
    let (_, said, warned) = oc(
        &server,
        &["--json", "secret", "set", &store, "WEAK", "12345678"],
    );
    assert!(
        said.contains("Secret WEAK set") && warned.starts_with("{\"warning\":"),
        "{warned}"
    );
    api.delete(&format!("/api/sandboxes/{id}")).await.ok(204);
    no_value_in(&server);
}

/// Goal: nobody learns of another organization's secrets, and a misspelt question is refused.
#[actix_rt::test]
async fn uses_are_told_to_their_own_organization() {
    let server = Server::start_with_two_orgs();
    for api in [server.api(), server.other()] {
        let page = api.get("/api/audit/secrets").await.ok(200).json();
        assert_eq!(page, json!({ "uses": [], "nextBefore": null }));
    }
    let api = server.api();
    for bad in [
        "?limit=0",
        "?limit=501",
        "?secrets=KEY",
        "?sandbox=x",
        "?from=now",
        "?before=1&after=1",
    ] {
        let reply = api.get(&format!("/api/audit/secrets{bad}")).await;
        assert_eq!(reply.status, 400, "{bad}: {}", reply.text);
    }
    let project = api.project(&json!({ "name": "p" })).await;
    let of = |api: &Api| {
        let path = format!("/api/projects/{project}/secrets/KEY/revoke");
        let api = api.clone();
        async move { api.post(&path, &json!({})).await }
    };
    of(&api).await.refused(404, "secret not found");
    let path = format!("/api/projects/{project}/secrets/KEY");
    api.put(&path, &json!({ "value": FIRST })).await.ok(200);
    of(&server.other()).await.refused(404, "project not found");
    let reply = of(&api).await.ok(200).json();
    assert_eq!(reply, json!({ "name": "KEY", "status": "revoked" }));
    let names = api.get(&format!("/api/projects/{project}/secrets")).await;
    assert_eq!(names.text, "[]");
}
