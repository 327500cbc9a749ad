//! The proxy alone: what it prints, what it follows, how it ends.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use crate::program::{PATIENCE, Proxy, oc, until};

/// The value of the secret; long and odd enough to be found wherever it leaks.
pub const VALUE: &str = "CANARY-standalone-value-0001";

/// A host for `api.test` on loopback that says back what it is sent.
pub struct Host {
    pub port: u16,
    pub heads: Arc<Mutex<Vec<String>>>,
}

/// Makes the host and writes its authority to `root.pem` of the folder.
pub fn host(folder: &Path) -> Host {
    host_for(folder, None)
}

/// The same, for clients with a certificate of `clients` alone when that is given.
pub fn host_for(folder: &Path, clients: Option<CertificateDer<'static>>) -> Host {
    let authority = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&authority).unwrap();
    fs::write(folder.join("root.pem"), root.pem()).unwrap();
    let issuer = Issuer::new(params, authority);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["api.test".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let verifier = match clients {
        Some(root) => {
            let mut roots = RootCertStore::empty();
            roots.add(root).unwrap();
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto())
                .build()
                .unwrap()
        }
        None => WebPkiClientVerifier::no_client_auth(),
    };
    let config = ServerConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let tls = ServerConnection::new(config.clone()).unwrap();
            let mut stream = rustls::StreamOwned::new(tls, stream);
            let head = head(&mut stream);
            let length = head.len();
            let reply = format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{head}"
            );
            seen.lock().unwrap().push(head);
            let _ = stream.write_all(reply.as_bytes());
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    Host { port, heads }
}

pub fn crypto() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Reads to the end of a head.
fn head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Asks `api.test` through the proxy with the token in a header; the whole answer.
pub fn ask(proxy: &Proxy, host: &Host, ca: &Path, token: &str) -> String {
    let mut stream = TcpStream::connect(&proxy.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = host.port;
    write!(
        stream,
        "CONNECT api.test:{port} HTTP/1.1\r\nhost: api.test:{port}\r\n\r\n"
    )
    .unwrap();
    let reply = head(&mut stream);
    if !reply.starts_with("HTTP/1.1 200 ") {
        return reply;
    }
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(ca).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("api.test").unwrap();
    let tls = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = rustls::StreamOwned::new(tls, stream);
    let request = format!(
        "GET / HTTP/1.1\r\nhost: api.test:{port}\r\nconnection: close\r\nx-key: {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

pub const POLICY: &str = r#"
[[secret]]
name = "KEY"
value_env = "OC_TEST_VALUE"
hosts = ["api.test"]

[egress]
allow_private = ["127.0.0.1/32"]
extra_roots = ["root.pem"]
resolve = { "api.test" = "127.0.0.1" }
"#;

pub fn write_policy(folder: &Path, text: &str) {
    // In place of the old one, as editors and deployments do.
    fs::write(folder.join("next"), text).unwrap();
    fs::rename(folder.join("next"), folder.join("policy.toml")).unwrap();
}

fn audit(folder: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(folder.join("audit.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Goal: the engine keeps its promise outside any sandbox: the host gets the value, the client
/// sees the token, the trail says so, and no file of the process holds the value.
#[test]
fn a_client_gets_its_token_back_and_the_trail_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let host = host(folder);
    write_policy(folder, POLICY);
    let proxy = Proxy::start(folder);
    let secret = &proxy.ready["secrets"][0];
    let token = secret["token"].as_str().unwrap().to_owned();
    assert_eq!(
        (&secret["name"], &secret["hosts"][0]),
        (&"KEY".into(), &"api.test".into())
    );
    assert_eq!(proxy.ready["event"], "ready");
    let ca = folder.join("ca.pem");
    assert_eq!(proxy.ready["ca"].as_str().unwrap(), ca.to_str().unwrap());

    let answer = ask(&proxy, &host, &ca, &token);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains(&token) && !answer.contains("CANARY"),
        "{answer}"
    );
    assert!(host.heads.lock().unwrap()[0].contains(VALUE));

    // Programs of the same user can't read the values out of the process's memory or environment.
    if rustix::process::getuid().is_root() {
        println!("skipped in part: root reads the memory of every process");
    } else {
        let environment = format!("/proc/{}/environ", proxy.pid().as_raw_nonzero());
        assert!(fs::read(environment).is_err());
    }
    // Ends in order: what was decided is in the file.
    proxy.signal(Signal::TERM);
    assert!(proxy.end().success());
    let lines = audit(folder);
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["secrets"][0], "KEY");
    assert_eq!(lines[0]["resealed"][0], "KEY");
    for file in fs::read_dir(folder).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("CANARY"));
    }
}

/// Goal: plain HTTP is carried and never with a value; a request that is no proxy request is
/// refused with words.
#[test]
fn absolute_requests_are_carried_without_a_value() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let _host = host(folder);
    write_policy(folder, POLICY);
    let proxy = Proxy::start(folder);
    let token = proxy.ready["secrets"][0]["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let plain = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = plain.local_addr().unwrap().port();
    let seen = std::thread::spawn(move || {
        let (mut stream, _) = plain.accept().unwrap();
        let head = head(&mut stream);
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .unwrap();
        head
    });
    let ask = |request: String| {
        let mut stream = TcpStream::connect(&proxy.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        head(&mut stream)
    };
    let reply = ask(format!(
        "GET http://api.test:{port}/ HTTP/1.1\r\nhost: api.test:{port}\r\nx-key: {token}\r\n\r\n"
    ));
    assert!(reply.starts_with("HTTP/1.1 204 "), "{reply}");
    let seen = seen.join().unwrap();
    assert!(seen.contains(&token) && !seen.contains("CANARY"), "{seen}");
    let reply = ask("GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_owned());
    assert!(reply.starts_with("HTTP/1.1 405 "), "{reply}");
    // The proxy is not a way to itself.
    let (_, own) = proxy.address.rsplit_once(':').unwrap();
    let reply = ask(format!(
        "GET http://127.0.0.1:{own}/ HTTP/1.1\r\nhost: 127.0.0.1:{own}\r\n\r\n"
    ));
    assert!(reply.starts_with("HTTP/1.1 403 "), "{reply}");
}

/// Goal: a changed file and SIGHUP both bring the new policy, the token stays, and a bad file
/// leaves the old one in force and is reported.
#[test]
fn the_policy_is_followed_and_a_bad_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let host = host(folder);
    write_policy(folder, POLICY);
    let proxy = Proxy::start(folder);
    let ca = folder.join("ca.pem");
    let token = proxy.ready["secrets"][0]["token"]
        .as_str()
        .unwrap()
        .to_owned();

    // By looking at the file: now nothing may be reached, by the same engine.
    write_policy(
        folder,
        &POLICY.replace("[egress]", "[egress]\nallow = [\"other.test\"]"),
    );
    let event = proxy.line();
    assert_eq!(
        (&event["event"], &event["secrets"][0]["token"]),
        (&"reloaded".into(), &token.clone().into())
    );
    assert!(ask(&proxy, &host, &ca, &token).starts_with("HTTP/1.1 403 "));

    // A bad file changes nothing.
    write_policy(folder, &POLICY.replace("hosts", "host"));
    until("the complaint", || {
        let log = fs::read_to_string(folder.join("stderr")).unwrap();
        log.contains("secret[0].host: unknown field").then_some(())
    });
    assert!(ask(&proxy, &host, &ca, &token).starts_with("HTTP/1.1 403 "));

    // By signal, with other ways out: a new engine under the same authority and token.
    write_policy(
        folder,
        &POLICY.replace("[egress]", "[egress]\nstrict = true"),
    );
    proxy.signal(Signal::HUP);
    assert_eq!(proxy.line()["event"], "reloaded");
    let answer = ask(&proxy, &host, &ca, &token);
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains(&token),
        "{answer}"
    );

    proxy.signal(Signal::INT);
    assert!(proxy.end().success());
    assert!(audit(folder).len() >= 3);
}

/// Goal: a start that can't be meant ends with an error that names the place, exit code 1, and
/// nothing listening.
#[test]
fn mistakes_end_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    let run = |text: &str| {
        fs::write(&policy, text).unwrap();
        let mut command = oc();
        command
            .args(["proxy", "--listen", "127.0.0.1:0", "--policy"])
            .arg(&policy);
        let done = command.env_remove("OC_TEST_VALUE").output().unwrap();
        assert_eq!(done.status.code(), Some(1), "{text}");
        assert!(done.stdout.is_empty());
        String::from_utf8(done.stderr).unwrap()
    };
    let error = run(POLICY);
    assert!(
        error.contains("policy.toml:9: egress.extra_roots[0]: "),
        "{error}"
    );
    let error = run(&POLICY.replace("extra_roots = [\"root.pem\"]\n", ""));
    assert!(
        error.contains("policy.toml:4: secret[0].value_env: this variable is not set"),
        "{error}"
    );
    let error = run("[egress]\nstricht = true\n");
    assert!(
        error.contains("policy.toml:2: egress.stricht: unknown field"),
        "{error}"
    );
    let done = oc().arg("proxy").output().unwrap();
    assert_eq!(done.status.code(), Some(1));
}

/// Goal: nothing goes on unrecorded. Method: the trail is a device that is always full.
#[test]
fn a_trail_that_can_not_be_written_ends_the_proxy() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let host = host(folder);
    write_policy(folder, POLICY);
    std::os::unix::fs::symlink("/dev/full", folder.join("audit.jsonl")).unwrap();
    let proxy = Proxy::start(folder);
    let token = proxy.ready["secrets"][0]["token"]
        .as_str()
        .unwrap()
        .to_owned();
    ask(&proxy, &host, &folder.join("ca.pem"), &token);
    assert_eq!(proxy.end().code(), Some(1));
    let log = fs::read_to_string(folder.join("stderr")).unwrap();
    assert!(log.contains("decisions can't be written"), "{log}");
    assert!(!log.contains("CANARY"));
}
