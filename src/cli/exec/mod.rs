//! `oc exec`: commands in a sandbox.
//!
//! Invariants: the words after `--` reach the sandbox as they are (no shell of ours); the
//! command's exit code is the exit code of `oc`.

pub mod frame;
pub mod stream;

use std::collections::BTreeMap;
use std::io::Write;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::Context;
use super::client::{body, decode};
use super::error::CliError;
use super::output::{printable, write_stdout};
use super::slice::Pairs;

/// `oc exec`
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(
    override_usage = "oc exec [OPTIONS] <SANDBOX_ID> -- <COMMAND>...\n       oc exec list <SANDBOX_ID>\n       oc exec attach <SANDBOX_ID> <SESSION_ID>\n       oc exec kill <SANDBOX_ID> <SESSION_ID> [--signal <N>]"
)]
pub struct Exec {
    #[command(subcommand)]
    session: Option<Session>,
    #[command(flatten)]
    start: Start,
}

/// What can be done with sessions that run already.
#[derive(Subcommand)]
pub enum Session {
    /// List the sessions of a sandbox
    #[command(visible_alias = "ls")]
    List {
        /// Sandbox id
        sandbox_id: String,
    },
    /// Show a session's output so far, then follow it
    Attach {
        /// Sandbox id
        sandbox_id: String,
        /// Session id
        session_id: String,
    },
    /// Send a signal to a session's processes
    Kill {
        /// Sandbox id
        sandbox_id: String,
        /// Session id
        session_id: String,
        /// Signal number
        #[arg(long, default_value_t = 9)]
        signal: i32,
    },
}

/// `oc exec <id> -- <command>`
#[derive(Args)]
pub struct Start {
    /// Sandbox id
    sandbox_id: Option<String>,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Working directory
    #[arg(long)]
    cwd: Option<String>,
    /// Kill the command after so many seconds (0: the server's default)
    #[arg(long)]
    timeout: Option<i64>,
    /// Environment variable for this command (repeatable, comma-separated)
    #[arg(long, value_name = "K=V", value_parser = Pairs::parse)]
    env: Vec<Pairs>,
    /// Wait for the end and print the output then, instead of streaming it
    #[arg(long, conflicts_with = "detach")]
    wait: bool,
    /// Start the command and leave it running
    #[arg(long)]
    detach: bool,
}

/// The request body of routes 44 and 48.
#[derive(Serialize, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
struct Process {
    cmd: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<i64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    expand_env: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct SessionInfo {
    #[serde(rename = "sessionID")]
    id: String,
    command: String,
    args: Vec<String>,
    running: bool,
    exit_code: Option<i32>,
    attached_clients: u64,
}

/// What a command that was run to its end left.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RunResult {
    pub(super) exit_code: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Exec {
    pub(super) async fn run(self, context: &Context) -> Result<u8, CliError> {
        match self.session {
            None => self.start.run(context).await,
            Some(Session::List { sandbox_id }) => list(context, &sandbox_id).await.map(|()| 0),
            Some(Session::Attach {
                sandbox_id,
                session_id,
            }) => {
                // The session is not ours alone: our end of input is not its end of input.
                let code = stream::follow(&context.api, &sandbox_id, &session_id, false).await?;
                Ok(exit_byte(code))
            }
            Some(Session::Kill {
                sandbox_id,
                session_id,
                signal,
            }) => {
                let reply = stream::kill(&context.api, &sandbox_id, &session_id, signal).await?;
                context
                    .output
                    .reply(&reply, || format!("Session {session_id} killed"))?;
                Ok(0)
            }
        }
    }
}

impl Start {
    async fn run(self, context: &Context) -> Result<u8, CliError> {
        let (wait, detach) = (self.wait, self.detach);
        let (sandbox, process) = self.into_process()?;
        let request = body(&process)?;
        if wait {
            let path = ["sandboxes", &sandbox, "exec", "run"];
            let reply = context.api.send(Method::POST, &path, Some(request)).await?;
            return print_result(context, reply);
        }
        let path = ["sandboxes", &sandbox, "exec"];
        let reply = context.api.send(Method::POST, &path, Some(request)).await?;
        let session: SessionInfo = decode(reply.clone())?;
        if detach {
            let line = printable(&command_line(&process.cmd, &process.args));
            context.output.reply(&reply, || {
                format!(
                    "Session {id} created (command: {line})\nAttach with: oc exec attach {sandbox} {id}",
                    id = session.id,
                )
            })?;
            return Ok(0);
        }
        stream::follow(&context.api, &sandbox, &session.id, true)
            .await
            .map(exit_byte)
    }

    fn into_process(self) -> Result<(String, Process), CliError> {
        let usage = "usage: oc exec <sandbox-id> -- <command> [args…]";
        let mut words = self.command.into_iter();
        let (Some(sandbox), Some(cmd)) = (self.sandbox_id, words.next()) else {
            return Err(CliError::Usage(format!(
                "a sandbox and a command are needed; {usage}"
            )));
        };
        let expand_env = !is_shell(&cmd);
        let process = Process {
            cmd,
            args: words.collect(),
            envs: Pairs::merge(self.env),
            cwd: self.cwd,
            timeout: self.timeout,
            expand_env,
        };
        Ok((sandbox, process))
    }
}

fn print_result(context: &Context, reply: serde_json::Value) -> Result<u8, CliError> {
    let result: RunResult = decode(reply.clone())?;
    if context.output.json {
        context.output.json(&reply)?;
    } else {
        write_stdout(&result.stdout)?;
        std::io::stderr()
            .write_all(result.stderr.as_bytes())
            .map_err(CliError::Output)?;
    }
    Ok(exit_byte(result.exit_code))
}

async fn list(context: &Context, sandbox: &str) -> Result<(), CliError> {
    let reply = context.api.get(&["sandboxes", sandbox, "exec"]).await?;
    let sessions: Vec<SessionInfo> = decode(reply.clone())?;
    context.output.reply(&reply, || {
        if sessions.is_empty() {
            return "No active exec sessions.".to_owned();
        }
        let line = |session: SessionInfo| {
            let state = match (session.running, session.exit_code) {
                (true, _) => "running".to_owned(),
                (false, code) => format!("exited ({})", code.unwrap_or(-1)),
            };
            let command = command_line(&session.command, &session.args);
            let clients = session.attached_clients;
            printable(&format!(
                "  {}  {state}  {command}  clients={clients}",
                session.id
            ))
        };
        sessions
            .into_iter()
            .map(line)
            .collect::<Vec<_>>()
            .join("\n")
    })
}

fn command_line(cmd: &str, args: &[String]) -> String {
    std::iter::once(cmd)
        .chain(args.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A shell expands variables itself, with quoting that we would break.
fn is_shell(cmd: &str) -> bool {
    let name = cmd.rsplit('/').next().unwrap_or(cmd);
    matches!(name, "sh" | "bash" | "dash" | "zsh")
}

/// The exit code as the system passes it on: the low byte, so -1 is 255.
fn exit_byte(code: i32) -> u8 {
    (code & 0xff) as u8
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        exec: Exec,
    }

    fn parse(words: &[&str]) -> Result<Exec, String> {
        let words = std::iter::once(&"exec").chain(words);
        Line::try_parse_from(words)
            .map(|line| line.exec)
            .map_err(|error| error.to_string())
    }

    fn process(words: &[&str]) -> (String, Process) {
        parse(words).unwrap().start.into_process().unwrap()
    }

    #[test]
    fn words_after_the_dashes_are_the_command() {
        let (sandbox, process) = process(&["sb-1", "--cwd", "/w", "--", "echo", "--json", "list"]);
        assert_eq!(sandbox, "sb-1");
        assert_eq!(
            (process.cmd.as_str(), process.args),
            ("echo", vec!["--json".into(), "list".into()])
        );
        assert_eq!(process.cwd.as_deref(), Some("/w"));
        assert!(parse(&["sb-1", "echo"]).is_err());
        assert!(parse(&["sb-1"]).unwrap().start.into_process().is_err());
        assert!(parse(&[]).unwrap().start.into_process().is_err());
        assert!(parse(&["sb-1", "--wait", "--detach", "--", "x"]).is_err());
    }

    #[test]
    fn session_commands_are_told_from_sandboxes() {
        assert!(matches!(
            parse(&["list", "sb-1"]).unwrap().session,
            Some(Session::List { .. })
        ));
        let attach = parse(&["attach", "sb-1", "0a1b2c3d"]).unwrap().session;
        assert!(matches!(attach, Some(Session::Attach { .. })));
        let kill = parse(&["kill", "sb-1", "0a1b2c3d", "--signal", "15"])
            .unwrap()
            .session;
        assert!(matches!(kill, Some(Session::Kill { signal: 15, .. })));
        let kill = parse(&["kill", "sb-1", "0a1b2c3d"]).unwrap().session;
        assert!(matches!(kill, Some(Session::Kill { signal: 9, .. })));
        assert!(parse(&["list"]).is_err());
    }

    /// Goal: `oc exec <id> -- echo '$NAME'` prints the token, `sh -c '…$NAME…'` is left alone.
    #[test]
    fn variables_are_expanded_by_the_server_unless_a_shell_does_it() {
        let json = |words: &[&str]| serde_json::to_string(&process(words).1).unwrap();
        let echo = json(&["sb-1", "--", "echo", "$A"]);
        assert_eq!(echo, r#"{"cmd":"echo","args":["$A"],"expandEnv":true}"#);
        for shell in ["sh", "/bin/bash", "dash", "/usr/bin/zsh"] {
            assert!(!json(&["sb-1", "--", shell, "-c", "echo $A"]).contains("expandEnv"));
        }
        let full = json(&["sb-1", "--env", "A=1,B=2", "--timeout", "0", "--", "fish"]);
        assert_eq!(
            full,
            r#"{"cmd":"fish","envs":{"A":"1","B":"2"},"timeout":0,"expandEnv":true}"#
        );
    }

    #[test]
    fn exit_codes_are_passed_on_as_one_byte() {
        assert_eq!([0, 3, 137, -1].map(exit_byte), [0, 3, 137, 255]);
    }
}
