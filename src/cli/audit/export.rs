//! `oc audit export`, `oc audit checkpoint`, `oc audit key`: what leaves the server so that
//! strangers can check it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use crate::cli::Context;
use crate::cli::error::CliError;
use crate::cli::output::Output;
use crate::events::{CheckpointKey, ExportReport, OfflineLog, check_export};

/// `oc audit export`
#[derive(Args)]
pub struct Export {
    /// File to write (readable by this user only) [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Export everything from the data folder of a server that does not run
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// `oc audit key`
#[derive(Args)]
pub struct Key {
    /// Print it as PEM, for `openssl`
    #[arg(long)]
    pem: bool,
    /// Read it from the data folder of a server instead of asking one
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Export {
    pub(super) fn is_offline(&self) -> bool {
        self.data_dir.is_some()
    }

    pub(super) fn run_offline(self, output: Output) -> Result<(), CliError> {
        let damaged = |error: &dyn std::fmt::Display| CliError::Damaged(error.to_string());
        let dir = self.data_dir.unwrap_or_default().join("log");
        let log = OfflineLog::open(&dir).map_err(|error| damaged(&error))?;
        let mut sink = Sink::open(self.output)?;
        log.export(&mut sink.out).map_err(|error| damaged(&error))?;
        sink.finish(output)
    }

    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut sink = Sink::open(self.output)?;
        let (api, out) = (&context.api, &mut sink.out);
        api.download(&["audit", "export"], &[], |piece| {
            out.write_all(piece).map_err(CliError::Output)
        })
        .await?;
        sink.finish(context.output)
    }
}

/// Where an export goes. A file gets its name only when it was checked to be whole.
struct Sink {
    out: BufWriter<Box<dyn Write>>,
    file: Option<Named>,
}

struct Named {
    path: PathBuf,
    part: PathBuf,
    handle: File,
}

impl Sink {
    fn open(path: Option<PathBuf>) -> Result<Self, CliError> {
        let Some(path) = path else {
            let out: Box<dyn Write> = Box::new(io::stdout());
            return Ok(Self {
                out: BufWriter::new(out),
                file: None,
            });
        };
        let mut part = path.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let handle = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)
            .map_err(failed(&part))?;
        let second = handle.try_clone().map_err(failed(&part))?;
        Ok(Self {
            out: BufWriter::with_capacity(1 << 20, Box::new(second)),
            file: Some(Named { path, part, handle }),
        })
    }

    fn finish(mut self, output: Output) -> Result<(), CliError> {
        self.out.flush().map_err(CliError::Output)?;
        let Some(Named { path, part, handle }) = self.file else {
            return Ok(());
        };
        handle.sync_all().map_err(failed(&part))?;
        let report = check(&part)?;
        std::fs::rename(&part, &path).map_err(failed(&path))?;
        let reply = json!({
            "file": path,
            "log": report.log,
            "commits": report.head.commit,
            "positions": report.head.position,
            "withheld": report.withheld,
            "chain": hex::encode(report.head.chain),
        });
        output.reply(&reply, || {
            format!(
                "Exported {} commits, {} events ({} by their hash alone) to {}; chain {}",
                report.head.commit,
                report.head.position,
                report.withheld,
                path.display(),
                hex::encode(report.head.chain)
            )
        })
    }
}

fn check(path: &Path) -> Result<ExportReport, CliError> {
    let file = File::open(path).map_err(failed(path))?;
    check_export(BufReader::with_capacity(1 << 20, file), &[], None)
        .map_err(|fault| CliError::Damaged(format!("{}: {fault}", path.display())))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CliError {
    let path = path.display().to_string();
    move |error| CliError::Usage(format!("cannot use {path}: {error}"))
}

/// Prints a note of the running server's log.
pub(super) async fn checkpoint(context: &Context) -> Result<(), CliError> {
    let reply = context.api.get(&["audit", "checkpoint"]).await?;
    let note = reply["note"].as_str().unwrap_or_default();
    context
        .output
        .reply(&reply, || note.trim_end_matches('\n').to_owned())
}

impl Key {
    pub(super) fn is_offline(&self) -> bool {
        self.data_dir.is_some()
    }

    pub(super) fn run_offline(self, output: Output) -> Result<(), CliError> {
        let dir = self.data_dir.clone().unwrap_or_default();
        let path = dir.join(CheckpointKey::FILE);
        let key = CheckpointKey::load(&path)
            .map_err(|error| CliError::Usage(error.to_string()))?
            .ok_or_else(|| {
                let text = format!("{} is missing: a server makes it", path.display());
                CliError::Usage(text)
            })?;
        let log = OfflineLog::open(&dir.join("log"))
            .map_err(|error| CliError::Damaged(error.to_string()))?;
        let key = key.public(log.id());
        self.print(&key.to_string(), &key.pem(), output)
    }

    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let reply = context.api.get(&["audit", "checkpoint"]).await?;
        let text = |field: &str| reply[field].as_str().unwrap_or_default().to_owned();
        self.print(&text("key"), &text("keyPem"), context.output)
    }

    fn print(&self, key: &str, pem: &str, output: Output) -> Result<(), CliError> {
        let reply = json!({ "key": key, "pem": pem });
        output.reply(&reply, || match self.pem {
            true => pem.trim_end().to_owned(),
            false => key.to_owned(),
        })
    }
}
