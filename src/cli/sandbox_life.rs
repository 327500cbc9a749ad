//! `oc sandbox hibernate`, `wake`, `reboot`, `scale` and the like.

use clap::{Args, Subcommand};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::client::{body, decode};
use super::error::CliError;

/// The commands of `oc sandbox` that change how a sandbox runs.
#[derive(Subcommand)]
pub enum Life {
    /// Put a sandbox to sleep: its processes stop where they are, and it wakes on use
    Hibernate {
        /// Sandbox id
        sandbox_id: String,
    },
    /// Wake a sandbox
    Wake {
        /// Sandbox id
        sandbox_id: String,
        /// Idle timeout in seconds from now on (0: as before)
        #[arg(long, default_value_t = 0)]
        timeout: i64,
    },
    /// End a sandbox's processes and start it anew on its disk
    Reboot {
        /// Sandbox id
        sandbox_id: String,
    },
    /// The same without asking the processes
    #[command(name = "power-cycle")]
    PowerCycle {
        /// Sandbox id
        sandbox_id: String,
    },
    /// Set after how many seconds without use a sandbox goes to sleep (0: never)
    #[command(name = "set-timeout")]
    SetTimeout {
        /// Sandbox id
        sandbox_id: String,
        /// Seconds
        seconds: i64,
    },
    /// Give a running sandbox another size
    Scale {
        /// Sandbox id
        sandbox_id: String,
        /// Memory in MB: 1024, 4096, 8192 or 16384
        memory_mb: i64,
    },
    /// Show or set whether the server sizes a sandbox by itself
    Autoscale(Autoscale),
    /// Forbid changes of a sandbox's size
    Lock {
        /// Sandbox id
        sandbox_id: String,
    },
    /// Permit changes of a sandbox's size again
    Unlock {
        /// Sandbox id
        sandbox_id: String,
    },
    /// Show whether a sandbox's size may change
    #[command(name = "lock-status")]
    LockStatus {
        /// Sandbox id
        sandbox_id: String,
    },
}

/// `oc sandbox autoscale`
#[derive(Args)]
pub struct Autoscale {
    /// Sandbox id
    sandbox_id: String,
    /// Switch it on, within --min and --max
    #[arg(long, requires = "min", requires = "max", conflicts_with = "off")]
    on: bool,
    /// Switch it off
    #[arg(long)]
    off: bool,
    /// Least memory in MB
    #[arg(long, value_name = "MB")]
    min: Option<i64>,
    /// Most memory in MB
    #[arg(long, value_name = "MB")]
    max: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Reply {
    status: String,
    size_bytes: u64,
    #[serde(rename = "memoryMB")]
    memory_mb: i64,
    cpu_percent: i64,
    enabled: bool,
    #[serde(rename = "minMemoryMB")]
    min_memory_mb: i64,
    #[serde(rename = "maxMemoryMB")]
    max_memory_mb: i64,
    locked: bool,
}

impl Life {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        match self {
            Self::Hibernate { sandbox_id: id } => {
                say(context, Method::POST, &id, "hibernate", None, |reply| {
                    let slept = format!("Sandbox {id} hibernated.");
                    match reply.size_bytes {
                        0 => slept,
                        bytes => format!("{slept}\nSize: {:.1} MB", bytes as f64 / 1_048_576.0),
                    }
                })
                .await
            }
            Self::Wake {
                sandbox_id: id,
                timeout,
            } => {
                let body = match timeout {
                    0 => json!({}),
                    seconds => json!({ "timeout": seconds }),
                };
                say(context, Method::POST, &id, "wake", Some(body), |reply| {
                    format!("Sandbox {id} woke up (status: {})", reply.status)
                })
                .await
            }
            Self::Reboot { sandbox_id: id } => {
                say(context, Method::POST, &id, "reboot", None, |_| {
                    format!("Sandbox {id} rebooted.")
                })
                .await
            }
            Self::PowerCycle { sandbox_id: id } => {
                say(context, Method::POST, &id, "power-cycle", None, |_| {
                    format!("Sandbox {id} power-cycled.")
                })
                .await
            }
            Self::SetTimeout {
                sandbox_id: id,
                seconds,
            } => {
                let body = json!({ "timeout": seconds });
                say(context, Method::POST, &id, "timeout", Some(body), |_| {
                    format!("Timeout updated to {seconds}s for sandbox {id}")
                })
                .await
            }
            Self::Scale {
                sandbox_id: id,
                memory_mb,
            } => {
                let body = json!({ "memoryMB": memory_mb });
                say(context, Method::POST, &id, "scale", Some(body), |reply| {
                    let (memory, cpu) = (reply.memory_mb, reply.cpu_percent);
                    format!("Scaled {id} to {memory}MB / {cpu}% CPU")
                })
                .await
            }
            Self::Autoscale(autoscale) => autoscale.run(context).await,
            Self::Lock { sandbox_id: id } => lock(context, &id, true).await,
            Self::Unlock { sandbox_id: id } => lock(context, &id, false).await,
            Self::LockStatus { sandbox_id: id } => {
                say(
                    context,
                    Method::GET,
                    &id,
                    "scaling-lock",
                    None,
                    |reply| match reply.locked {
                        true => format!("Sandbox {id} is LOCKED (no scaling)"),
                        false => format!("Sandbox {id} is unlocked"),
                    },
                )
                .await
            }
        }
    }
}

impl Autoscale {
    async fn run(self, context: &Context) -> Result<(), CliError> {
        let body = match (self.on, self.off) {
            (true, _) => Some(json!({
                "enabled": true, "minMemoryMB": self.min, "maxMemoryMB": self.max,
            })),
            (_, true) => Some(json!({ "enabled": false })),
            (false, false) if self.min.is_some() || self.max.is_some() => {
                return Err(CliError::Usage("--min and --max go with --on".to_owned()));
            }
            (false, false) => None,
        };
        let method = match body {
            Some(_) => Method::PUT,
            None => Method::GET,
        };
        let id = &self.sandbox_id;
        say(context, method, id, "autoscale", body, |reply| {
            let (min, max) = (reply.min_memory_mb, reply.max_memory_mb);
            match reply.enabled {
                true => format!("Autoscale enabled for {id} ({min}–{max} MB)"),
                false => format!("Autoscale disabled for {id}"),
            }
        })
        .await
    }
}

async fn lock(context: &Context, id: &str, locked: bool) -> Result<(), CliError> {
    let body = json!({ "locked": locked });
    say(
        context,
        Method::PUT,
        id,
        "scaling-lock",
        Some(body),
        |reply| match reply.locked {
            true => format!("Sandbox {id} locked (scaling disabled)"),
            false => format!("Sandbox {id} unlocked"),
        },
    )
    .await
}

/// One call below a sandbox, and what it says about the reply.
async fn say(
    context: &Context,
    method: Method,
    id: &str,
    what: &str,
    fields: Option<Value>,
    words: impl FnOnce(Reply) -> String,
) -> Result<(), CliError> {
    let fields = fields.map(|fields| body(&fields)).transpose()?;
    let reply = context
        .api
        .send(method, &["sandboxes", id, what], fields)
        .await?;
    match reply {
        // Nothing to show as JSON either: the line is the same in both modes.
        Value::Null => context.output.line(&words(Reply::default())),
        reply => {
            let read: Reply = decode(reply.clone())?;
            context.output.reply(&reply, || words(read))
        }
    }
}
