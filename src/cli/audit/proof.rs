//! `oc audit verify` and `oc audit accept-head`: is the log whole, and what when it is not.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use reqwest::Method;
use serde_json::{Value, json};

use crate::cli::Context;
use crate::cli::client::body;
use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::config::default_data_dir;
use crate::events::{
    Checkpoint, EventLog, Known, NOTE_BYTES_MAX, OfflineLog, PublicKey, StreamId, StreamReport,
    check_export,
};

/// `oc audit verify`
#[derive(Args)]
pub struct Verify {
    /// Check this export, without any server
    #[arg(long, value_name = "EXPORT", conflicts_with = "data_dir")]
    file: Option<PathBuf>,
    /// Check the log in the data folder of a server that does not run
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Also count the events of this stream, of which there must be some
    #[arg(long, value_parser = stream_id)]
    stream: Option<StreamId>,
    /// A checkpoint the log must agree with (repeatable)
    #[arg(long, value_name = "NOTE", requires = "key")]
    checkpoint: Vec<PathBuf>,
    /// The public key of the checkpoints, or a file that holds it (see `oc audit key`)
    #[arg(long, value_name = "PUBLIC_KEY")]
    key: Option<String>,
    /// A chain hash noted earlier, which the log must have at that commit (repeatable)
    #[arg(long, value_name = "COMMIT:CHAIN")]
    known: Vec<Known>,
}

/// `oc audit accept-head`
#[derive(Args)]
pub struct AcceptHead {
    /// The server's data folder [default: the one `oc serve` uses]
    #[arg(long, env = "OC_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

fn stream_id(text: &str) -> Result<StreamId, String> {
    StreamId::new(text).map_err(|bad| bad.to_string())
}

impl Verify {
    pub(super) fn is_offline(&self) -> bool {
        self.file.is_some() || self.data_dir.is_some()
    }

    pub(super) fn run_offline(self, output: Output) -> Result<(), CliError> {
        let known = self.known()?;
        let reply = match (&self.file, &self.data_dir) {
            (Some(file), _) => check_file(file, &known, self.stream.as_ref())?,
            (None, Some(dir)) => check_folder(dir, &known, self.stream.as_ref())?,
            (None, None) => return Err(CliError::Usage("there is nothing to check".into())),
        };
        print(&reply, output)
    }

    /// Has the server check its log; fails when that is not whole.
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let known = self.known()?;
        let known_json = known.iter().map(|known| {
            let chain = hex::encode(known.chain);
            json!({ "commit": known.commit, "chain": chain })
        });
        let mut asked = json!({});
        if !known.is_empty() {
            asked["known"] = known_json.collect();
        }
        if let Some(stream) = &self.stream {
            asked["stream"] = json!(stream);
        }
        let reply = context
            .api
            .send(Method::POST, &["audit", "verify"], Some(body(&asked)?))
            .await?;
        if reply["ok"] != json!(true) {
            let reason = reply["error"].as_str().unwrap_or("no reason given");
            return Err(CliError::Damaged(reason.to_owned()));
        }
        let log = reply["log"].as_str().unwrap_or_default();
        let mut wanted = known.iter().filter_map(|known| known.log);
        if let Some(other) = wanted.find(|wanted| wanted.to_string() != log) {
            let text = format!("the checkpoint is of log {other}, the server has log {log}");
            return Err(CliError::Damaged(text));
        }
        print(&reply, context.output)
    }

    /// What was noted elsewhere; a checkpoint counts only with its signature.
    fn known(&self) -> Result<Vec<Known>, CliError> {
        let mut known = self.known.clone();
        let Some(key) = &self.key else {
            return Ok(known);
        };
        let key = match Path::new(key).is_file() {
            true => read_text(Path::new(key))?,
            false => key.clone(),
        };
        let key: PublicKey = key
            .parse()
            .map_err(|error| CliError::Usage(format!("{error}")))?;
        for path in &self.checkpoint {
            let checkpoint = Checkpoint::open(&read_text(path)?, &key);
            let checkpoint = checkpoint
                .map_err(|error| CliError::Damaged(format!("{}: {error}", path.display())))?;
            known.push(checkpoint.into());
        }
        Ok(known)
    }
}

fn check_file(path: &Path, known: &[Known], stream: Option<&StreamId>) -> Result<Value, CliError> {
    let failed =
        |error: &dyn std::fmt::Display| CliError::Damaged(format!("{}: {error}", path.display()));
    let file = File::open(path).map_err(|error| failed(&error))?;
    let report = check_export(BufReader::with_capacity(1 << 20, file), known, stream)
        .map_err(|fault| failed(&fault))?;
    let reply = json!({
        "ok": true,
        "log": report.log,
        "commits": report.head.commit,
        "positions": report.head.position,
        "chain": hex::encode(report.head.chain),
        "withheld": report.withheld,
    });
    Ok(with_stream(reply, report.stream))
}

fn check_folder(dir: &Path, known: &[Known], stream: Option<&StreamId>) -> Result<Value, CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Damaged(error.to_string());
    let log = OfflineLog::open(&dir.join("log")).map_err(|error| failed(&error))?;
    let (report, found) = log.verify(known, stream).map_err(|error| failed(&error))?;
    if let (Some(stream), None) = (stream, &found) {
        return Err(failed(&format!("stream {stream} has no event")));
    }
    let reply = json!({
        "ok": true,
        "log": report.log,
        "commits": report.commits,
        "positions": report.events,
        "chain": hex::encode(report.head.chain),
    });
    Ok(with_stream(reply, found))
}

fn with_stream(mut reply: Value, stream: Option<StreamReport>) -> Value {
    if let Some(stream) = stream {
        reply["stream"] = json!({
            "stream": stream.stream,
            "events": stream.events,
            "lastRevision": stream.last_revision,
        });
    }
    reply
}

fn print(reply: &Value, output: Output) -> Result<(), CliError> {
    output.reply(reply, || {
        let withheld = match reply["withheld"].as_u64() {
            None | Some(0) => String::new(),
            Some(withheld) => format!(" ({withheld} of them by their hash alone)"),
        };
        let whole = format!(
            "The log is whole: {} commits, {} events{withheld}, chain {}",
            reply["commits"],
            reply["positions"],
            reply["chain"].as_str().unwrap_or_default()
        );
        let stream = &reply["stream"];
        match stream["stream"].as_str() {
            None => whole,
            Some(name) => format!(
                "{whole}\nStream {name}: {} events, last revision {}",
                stream["events"], stream["lastRevision"]
            ),
        }
    })
}

/// A small file: a note or a key.
fn read_text(path: &Path) -> Result<String, CliError> {
    let failed =
        |error: std::io::Error| CliError::Usage(format!("cannot read {}: {error}", path.display()));
    let mut text = String::new();
    let limit = u64::try_from(NOTE_BYTES_MAX).unwrap_or(u64::MAX);
    let file = File::open(path).map_err(failed)?;
    file.take(limit).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

impl AcceptHead {
    pub(super) fn run(self, output: Output) -> Result<(), CliError> {
        let data_dir = self.data_dir.or_else(default_data_dir).ok_or_else(|| {
            CliError::Usage("no data folder: HOME is not set; pass --data-dir".to_owned())
        })?;
        let head = EventLog::accept_head(&data_dir.join("log"))
            .map_err(|error| CliError::Damaged(error.to_string()))?;
        let reply = json!({ "position": head.position, "commit": head.commit });
        output.reply(&reply, || {
            format!(
                "The log now ends at event {} (commit {}).",
                head.position, head.commit
            )
        })
    }
}
