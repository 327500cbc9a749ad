//! Programs people really use, with their own TLS and their own idea of a proxy.

use std::net::Ipv4Addr;
use std::process::Stdio;

use opencomputer::proxy::Target;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::world::{Setup, VALUE, World, echo, soon};

/// curl trusts the sandbox's CA, sends a token through the explicit proxy, and sees the token
/// again; a refusal reaches it as a status with words.
#[tokio::test]
async fn curl_works_through_the_explicit_proxy() {
    if Command::new("curl")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .await
        .is_err()
    {
        println!("skipped: curl is not installed");
        return;
    }
    let world = World::new(&Setup {
        allowlist: vec!["api.test"],
        ..Setup::default()
    });
    let host = world.host(echo()).await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let proxy_url = format!("http://{}", listener.local_addr().unwrap());
    let proxy = world.proxy.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let ip = Ipv4Addr::new(169, 254, 169, 253).into();
            let target = Target {
                name: None,
                ip,
                port: 3128,
            };
            tokio::spawn(proxy.clone().serve(stream, target));
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, world.proxy.ca_certificate_pem()).unwrap();
    let curl = |url: String| {
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--show-error",
            "--max-time",
            "8",
            "--proxy",
            &proxy_url,
        ]);
        command
            .arg("--cacert")
            .arg(&ca)
            .args(["--noproxy", "", "--data-binary"]);
        command.arg(format!("token={}", world.token));
        command
            .arg("--header")
            .arg(format!("authorization: Bearer {}", world.token));
        command
            .arg("--compressed")
            .arg(url)
            .kill_on_drop(true)
            .env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    };
    let done = soon(curl(format!("https://api.test:{}/", host.port)).output())
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(host.last().head.contains(&format!("Bearer {VALUE}")));
    assert_eq!(
        host.last().text(),
        "token=CANARY-v4lue%2Fwith%2Bodd%3Dchars%260001"
    );
    assert!(
        text.contains(&format!("token={}", world.token)) && !text.contains("CANARY"),
        "{text}"
    );

    let refused = soon(curl("https://off.example/".to_owned()).output())
        .await
        .unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("403"));
    let refused = soon(curl("http://off.example/".to_owned()).output())
        .await
        .unwrap();
    assert!(String::from_utf8_lossy(&refused.stdout).contains("egress_allowlist"));
    world.finish();
}
