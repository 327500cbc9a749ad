//! Programs people really use, with their own TLS and their own idea of a proxy.

use std::net::Ipv4Addr;
use std::process::Stdio;

use opencomputer::proxy::Target;
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::world::{Setup, VALUE, World, echo, soon};

/// A port on loopback that is the sandbox's explicit proxy.
pub async fn explicit_proxy(world: &World) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
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
    url
}

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
    let proxy_url = explicit_proxy(&world).await;
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

/// Python's TLS with strict checking of certificates (the default from 3.13 on).
#[tokio::test]
async fn python_accepts_the_certificates_strictly() {
    const PROGRAM: &str = "
import ssl, sys, urllib.request
context = ssl.create_default_context(cafile=sys.argv[1])
context.verify_flags |= ssl.VERIFY_X509_STRICT
proxy = urllib.request.ProxyHandler({'https': sys.argv[2]})
opener = urllib.request.build_opener(proxy, urllib.request.HTTPSHandler(context=context))
request = urllib.request.Request(sys.argv[3], headers={'Authorization': 'Bearer ' + sys.argv[4]})
print(opener.open(request, timeout=8).read().decode())
";
    if Command::new("python3")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .await
        .is_err()
    {
        println!("skipped: python3 is not installed");
        return;
    }
    let world = World::new(&Setup::default());
    let host = world.host(echo()).await;
    let proxy_url = explicit_proxy(&world).await;
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, world.proxy.ca_certificate_pem()).unwrap();
    let mut command = Command::new("python3");
    command.args(["-c", PROGRAM]).arg(&ca).arg(&proxy_url);
    command
        .arg(format!("https://api.test:{}/", host.port))
        .arg(world.token.to_string());
    let done = soon(command.kill_on_drop(true).output()).await.unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    assert!(host.last().head.contains(&format!("Bearer {VALUE}")));
    assert!(text.contains(&format!("Bearer {}", world.token)) && !text.contains("CANARY"));
    world.finish();
}
