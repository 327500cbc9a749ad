//! What the demo runs inside the sandbox, and how it reads what comes back.
//!
//! Invariant: no command holds a real value; the search for one happens here, outside.

use reqwest::Method;
use serde_json::json;

use super::upstream::{ECHO_HEADER, KEY_HEADER};
use crate::cli::client::{Api, body, decode};
use crate::cli::error::CliError;
use crate::cli::exec::RunResult;

/// The secret's name, and so the variable inside.
pub const SECRET: &str = "DEMO_API_KEY";
/// How long one command inside may take, in seconds.
const COMMAND_S_MAX: u32 = 20;

/// Prints everything any process inside could tell about its environment.
pub const ENVIRONMENTS: &str =
    r#"env; for file in /proc/[0-9]*/environ; do tr '\0' '\n' <"$file"; done 2>/dev/null; true"#;

/// A program inside that can make HTTPS calls.
#[derive(Clone, Copy)]
pub enum Tool {
    /// curl
    Curl,
    /// Python's urllib
    Python,
    /// Node's https module, which never uses proxy variables
    Node,
}

/// Whether a call goes by the proxy variables or ignores them.
#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    /// As a well-behaved program: by `HTTPS_PROXY`.
    Proxy,
    /// As a program that knows of no proxy: straight to the name.
    Direct,
}

impl Tool {
    /// The first of the tools that the sandbox has.
    pub async fn find(api: &Api, sandbox: &str) -> Result<Option<Self>, CliError> {
        let script = "command -v curl || command -v python3 || command -v node";
        let path = run(api, sandbox, script).await?.stdout;
        Ok(match path.trim().rsplit('/').next().unwrap_or_default() {
            "curl" => Some(Self::Curl),
            "python3" => Some(Self::Python),
            "node" => Some(Self::Node),
            _ => None,
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Curl => "curl",
            Self::Python => "python3",
            Self::Node => "node",
        }
    }

    /// A command that calls `url` with the secret's variable as key and prints the reply's status
    /// line, headers and body, decompressed.
    pub fn call(self, url: &str, way: Way) -> String {
        let direct = way == Way::Direct;
        match self {
            Self::Curl => {
                let proxy = if direct { "--noproxy '*' " } else { "" };
                let key = format!(r#""{KEY_HEADER}: ${SECRET}""#);
                format!("curl -sS -i --compressed --max-time 10 {proxy}-H {key} '{url}' 2>&1")
            }
            Self::Python => format!(
                r#"python3 - 2>&1 <<'END'
import gzip, os, urllib.error, urllib.request
handlers = [urllib.request.ProxyHandler({{}})] if {direct} else []
request = urllib.request.Request({url:?}, headers={{{KEY_HEADER:?}: os.environ[{SECRET:?}]}})
try:
    reply = urllib.request.build_opener(*handlers).open(request, timeout=10)
except urllib.error.HTTPError as error:
    reply = error
body = reply.read()
if reply.headers.get("content-encoding") == "gzip":
    body = gzip.decompress(body)
print("HTTP/1.1", reply.status)
print(str(reply.headers).strip() + "\n")
print(body.decode())
END"#,
                direct = if direct { "True" } else { "False" }
            ),
            Self::Node => format!(
                r#"node - 2>&1 <<'END'
const options = {{ headers: {{ {KEY_HEADER:?}: process.env.{SECRET} }}, timeout: 10000 }};
require("https").get({url:?}, options, (reply) => {{
  const gzipped = reply.headers["content-encoding"] === "gzip";
  const stream = gzipped ? reply.pipe(require("zlib").createGunzip()) : reply;
  console.log("HTTP/1.1 " + reply.statusCode);
  for (const [name, value] of Object.entries(reply.headers)) console.log(name + ": " + value);
  console.log("");
  stream.on("data", (chunk) => process.stdout.write(chunk));
}});
END"#
            ),
        }
    }
}

/// A plain-text request over a bare TCP socket, made by bash itself: no proxy, no library.
pub fn raw_socket(host: &str) -> String {
    let request = format!(r"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let script =
        format!(r#"exec 3<>/dev/tcp/{host}/80 && printf "{request}" >&3 && timeout 10 cat <&3"#);
    format!("bash -c '{script}' 2>&1")
}

/// Runs a shell command in the sandbox to its end.
pub async fn run(api: &Api, sandbox: &str, script: &str) -> Result<RunResult, CliError> {
    let request = json!({ "cmd": "sh", "args": ["-c", script], "timeout": COMMAND_S_MAX });
    let path = ["sandboxes", sandbox, "exec", "run"];
    decode(api.send(Method::POST, &path, Some(body(&request)?)).await?)
}

/// A reply as a [`Tool`] prints it.
#[derive(Debug, PartialEq)]
pub struct Reply {
    /// HTTP status of the final reply.
    pub status: u16,
    /// The header that says the key back.
    pub echo_header: String,
    /// The body.
    pub body: String,
}

impl Reply {
    /// Reads the last reply in the text: curl prints the proxy's own before it.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.replace("\r\n", "\n");
        let mut rest = text.get(text.find("HTTP/")?..)?;
        loop {
            let (head, body) = rest.split_once("\n\n").unwrap_or((rest, ""));
            if body.starts_with("HTTP/") {
                rest = body;
                continue;
            }
            let status = head.split_whitespace().nth(1)?.parse().ok()?;
            let named = |line: &&str| {
                line.get(..ECHO_HEADER.len())
                    .is_some_and(|name| name.eq_ignore_ascii_case(ECHO_HEADER))
            };
            let echo = head
                .lines()
                .find(named)
                .and_then(|line| line.split_once(':'));
            let echo_header = echo
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default();
            return Some(Self {
                status,
                echo_header,
                body: body.trim().to_owned(),
            });
        }
    }

    /// Whether this is a refusal a program and a person can read: 403 with a JSON reason.
    pub fn is_readable_refusal(&self) -> bool {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap_or_default();
        let reason = body.get("error").and_then(serde_json::Value::as_str);
        self.status == 403 && reason.is_some_and(|reason| !reason.is_empty())
    }
}

/// Whether this is a sealed token: `osb_sealed_` and 32 hex digits.
pub fn is_token(text: &str) -> bool {
    text.strip_prefix("osb_sealed_").is_some_and(|hex| {
        hex.len() == 32
            && hex
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_read_past_the_proxys_own() {
        let direct = "HTTP/1.1 200 OK\r\nContent-Type: x\r\nX-Echo: token\r\n\r\n{\"a\":1}\n";
        let expected = Reply {
            status: 200,
            echo_header: "token".into(),
            body: "{\"a\":1}".into(),
        };
        assert_eq!(Reply::parse(direct), Some(expected));
        let proxied = format!("HTTP/1.1 200 Connection established\r\n\r\n{direct}");
        assert_eq!(Reply::parse(&proxied), Reply::parse(direct));
        assert_eq!(Reply::parse("curl: (6) Could not resolve host"), None);
        let refused =
            "HTTP/1.1 403 Forbidden\r\n\r\ncurl: (56) CONNECT tunnel failed, response 403";
        assert_eq!(Reply::parse(refused).map(|reply| reply.status), Some(403));
    }

    #[test]
    fn refusals_must_be_readable() {
        let check = |status, body: &str| {
            let body = body.to_owned();
            Reply {
                status,
                echo_header: String::new(),
                body,
            }
            .is_readable_refusal()
        };
        assert!(check(403, r#"{"error":"host not allowed"}"#));
        assert!(!check(200, r#"{"error":"host not allowed"}"#));
        assert!(!check(403, "Forbidden") && !check(403, r#"{"error":""}"#) && !check(403, ""));
    }

    #[test]
    fn tokens_are_told_from_other_text() {
        assert!(is_token("osb_sealed_0123456789abcdef0123456789abcdef"));
        for bad in [
            "",
            "osb_sealed_",
            "osb_sealed_0123456789ABCDEF0123456789abcdef",
            "x",
        ] {
            assert!(!is_token(bad), "{bad}");
        }
    }

    /// Goal: every tool's command makes the call it should. Method: run them here, against a
    /// plain server, with the variable they use.
    #[test]
    fn commands_do_on_this_machine_what_they_should_inside() {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1/echo", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let mut requests = Vec::new();
            for _ in 0..2 {
                let (mut socket, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    socket.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                requests.push(String::from_utf8(head).unwrap());
                let reply = "HTTP/1.1 403 No\r\nx-echo: t\r\ncontent-length: 13\r\nconnection: close\r\n\r\n{\"error\":\"n\"}";
                socket.write_all(reply.as_bytes()).unwrap();
            }
            requests
        });
        for tool in [Tool::Curl, Tool::Python] {
            let script = tool.call(&url, Way::Direct);
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", &script]).env(SECRET, "token");
            let output = shell
                .env("http_proxy", "http://127.0.0.1:1")
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let reply = Reply::parse(&text).unwrap_or_else(|| panic!("{}: {text}", tool.name()));
            assert!(reply.is_readable_refusal(), "{}: {text}", tool.name());
            assert_eq!(reply.echo_header, "t");
        }
        for request in server.join().unwrap() {
            assert!(
                request.to_lowercase().contains("x-api-key: token\r\n"),
                "{request}"
            );
        }
    }
}
