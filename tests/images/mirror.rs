//! Packages from a mirror on this machine, through the sandbox's proxy.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::json;

use crate::common::Server;
use crate::kit::{create, has_sandboxes, image, run, step, stream};

/// Serves the files of a folder, and says on which port.
fn serve(folder: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let folder = folder.clone();
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().expect("a second handle"));
                loop {
                    let mut first = String::new();
                    if lines.read_line(&mut first).unwrap_or(0) == 0 {
                        return;
                    }
                    let mut line = String::new();
                    while lines.read_line(&mut line).unwrap_or(0) > 2 {
                        line.clear();
                    }
                    let path = first
                        .split(' ')
                        .nth(1)
                        .unwrap_or("/")
                        .trim_start_matches('/');
                    let file = folder.join(path);
                    let file = if file.is_dir() {
                        file.join("index.html")
                    } else {
                        file
                    };
                    let (status, body) = match fs::read(file) {
                        Ok(body) => ("200 OK", body),
                        Err(_) => ("404 Not Found", Vec::new()),
                    };
                    let kind = match path.ends_with('/') {
                        true => "text/html",
                        false => "application/octet-stream",
                    };
                    let head = format!(
                        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
                        body.len()
                    );
                    let mut stream = &stream;
                    if stream
                        .write_all(head.as_bytes())
                        .and_then(|()| stream.write_all(&body))
                        .is_err()
                    {
                        return;
                    }
                }
            });
        }
    });
    port
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    fs::write(path, text).expect("written");
}

fn tool(program: &str, args: &[&str]) -> Option<Vec<u8>> {
    let ran = Command::new(program).args(args).output().ok()?;
    ran.status.success().then_some(ran.stdout)
}

/// A repository with one Debian package, whose installation leaves a trace.
fn debian(folder: &Path) -> Option<()> {
    let package = folder.join("package");
    write(
        &package.join("DEBIAN/control"),
        "Package: oc-greeting\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <n@example.test>\n\
         Description: says hello\n",
    );
    write(
        &package.join("DEBIAN/postinst"),
        "#!/bin/sh\necho set up > /etc/oc-greeting\n",
    );
    write(
        &package.join("usr/bin/oc-greeting"),
        "#!/bin/sh\necho hello from a package\n",
    );
    for file in ["DEBIAN/postinst", "usr/bin/oc-greeting"] {
        let path = package.join(file);
        tool("chmod", &["755", path.to_str()?])?;
    }
    let deb = folder.join("apt/oc-greeting_1.0_all.deb");
    fs::create_dir_all(folder.join("apt")).ok()?;
    tool(
        "dpkg-deb",
        &["--root-owner-group", "-b", package.to_str()?, deb.to_str()?],
    )?;
    let bytes = fs::read(&deb).ok()?;
    let hash = tool("sha256sum", &[deb.to_str()?])?;
    let hash = String::from_utf8(hash).ok()?;
    let hash = hash.split(' ').next()?.to_owned();
    let index = format!(
        "Package: oc-greeting\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <n@example.test>\n\
         Description: says hello\nFilename: ./oc-greeting_1.0_all.deb\nSize: {}\nSHA256: {hash}\n",
        bytes.len()
    );
    write(&folder.join("apt/Packages"), &index);
    Some(())
}

/// An index with one Python package.
fn python(folder: &Path) -> Option<()> {
    let script = "import sys, zipfile\n\
        name = 'oc_greeting-1.0'\n\
        with zipfile.ZipFile(sys.argv[1], 'w') as z:\n\
        \x20   z.writestr('oc_greeting.py', 'TEXT = \"hello from python\"\\n')\n\
        \x20   z.writestr(name + '.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: oc-greeting\\nVersion: 1.0\\n')\n\
        \x20   z.writestr(name + '.dist-info/WHEEL', 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
        \x20   z.writestr(name + '.dist-info/RECORD', '')\n";
    let simple = folder.join("simple/oc-greeting");
    fs::create_dir_all(&simple).ok()?;
    let wheel = simple.join("oc_greeting-1.0-py3-none-any.whl");
    tool("python3", &["-c", script, wheel.to_str()?])?;
    let name = "oc_greeting-1.0-py3-none-any.whl";
    write(
        &simple.join("index.html"),
        &format!("<a href=\"{name}\">{name}</a>\n"),
    );
    Some(())
}

/// Goal: packages come from where the operator says, through the proxy, under the builds' own
/// allowlist; what is installed is there in the image's sandboxes.
#[actix_rt::test]
async fn packages_are_installed_from_a_local_mirror() {
    let server = Server::prepare();
    let files = server.root().join("mirror");
    if debian(&files).is_none() || python(&files).is_none() {
        println!("skipped: no dpkg-deb or python3 here to make packages with");
        return;
    }
    let port = serve(files);
    let config = format!(
        "[images]\negress_allowlist = [\"mirror.test\"]\n\
         apt_sources = \"deb [trusted=yes] http://mirror.test:{port}/apt ./\"\n\
         pip_index_url = \"http://mirror.test:{port}/simple\"\n\
         [egress]\nallow_private = [\"127.0.0.0/8\"]\n\
         [egress.hosts]\n\"mirror.test\" = \"127.0.0.1\"\n\"other.test\" = \"127.0.0.1\"\n"
    );
    let path = server.root().join("oc.toml");
    fs::write(&path, config).expect("written");
    let mut server = server.args(&["--config", path.to_str().expect("UTF-8")]);
    server.restart();
    let api = server.api();
    if !has_sandboxes(&api).await {
        return;
    }
    let fetch = |host: &str| {
        format!("curl -s -o /dev/null -w '%{{http_code}}\\n' http://{host}:{port}/apt/Packages")
    };
    let steps = [
        step("apt_install", json!({ "packages": ["oc-greeting"] })),
        step("pip_install", json!({ "packages": ["oc-greeting"] })),
        run("oc-greeting && python3 -c 'import oc_greeting; print(oc_greeting.TEXT)'"),
        run(&format!(
            "{}; {}",
            fetch("mirror.test"),
            fetch("other.test")
        )),
    ];
    let body = json!({ "image": image(&steps) });
    let (sandbox, told) = create(&api, &body).await;
    assert!(
        told.said("run")
            .contains("hello from a package\nhello from python"),
        "{:?}",
        told.log
    );
    assert!(told.said("run").ends_with("200\n403"), "{:?}", told.log);
    assert!(
        told.said("apt_install").contains("Setting up oc-greeting"),
        "{:?}",
        told.log
    );
    let look = "oc-greeting; cat /etc/oc-greeting; python3 -c 'import oc_greeting as o; print(o.TEXT)'; \
                dpkg -s oc-greeting | grep Status; ls /var/lib/apt/lists | wc -l";
    let seen = sandbox.run(look).await;
    assert_eq!(
        seen,
        "hello from a package\nset up\nhello from python\nStatus: install ok installed\n0"
    );
    // The builds' list is not the sandbox's.
    assert_eq!(sandbox.run(&fetch("other.test")).await, "200");
    let missing =
        json!({ "image": image(&[step("apt_install", json!({ "packages": ["no-such-thing"] }))]) });
    let told = stream(&api, "/api/sandboxes", &missing).await;
    let error = told.end.1["error"].as_str().unwrap_or_default().to_owned();
    assert!(
        error.contains("apt_install") && error.contains("no-such-thing"),
        "{error}"
    );
}
