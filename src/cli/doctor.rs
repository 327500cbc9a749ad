//! `oc doctor`: what this machine can do for sandboxes, and what is missing.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::Global;
use super::data::DataArgs;
use crate::sandbox::{Check, doctor as probe, store_check};

/// `oc doctor`
#[derive(Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    data: DataArgs,
}

/// Probes this machine and prints what was found. Ends with 1 when sandboxes can't run here.
pub fn doctor(global: &Global, args: DoctorArgs) -> ExitCode {
    let mut checks = probe();
    checks.push(disks(args.data));
    match global.json {
        true => print_json(&checks),
        false => print_text(&checks),
    }
    match checks.iter().all(|check| check.ok || !check.required) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// How copies of disks are made in the data folder that a server would have.
fn disks(data: DataArgs) -> Check {
    match data.config() {
        Ok(config) => {
            let disks = config.data_dir.join("sandboxes");
            store_check(&disks, config.disk_store.into())
        }
        Err(error) => Check {
            name: "disk store".to_owned(),
            ok: false,
            required: false,
            detail: format!("the configuration can't be read: {error}"),
            fix: Some("mend the configuration file".to_owned()),
        },
    }
}

fn print_json(checks: &[Check]) {
    let rows: Vec<_> = checks
        .iter()
        .map(|check| {
            json!({
                "name": check.name,
                "ok": check.ok,
                "required": check.required,
                "detail": check.detail,
                "fix": check.fix,
            })
        })
        .collect();
    println!("{:#}", json!(rows));
}

fn print_text(checks: &[Check]) {
    for check in checks {
        let mark = match (check.ok, check.required) {
            (true, _) => "ok     ",
            (false, true) => "MISSING",
            (false, false) => "limited",
        };
        println!("{mark}  {}: {}", check.name, check.detail);
        if let Some(fix) = check.fix.as_deref().filter(|_| !check.ok) {
            println!("         fix: {fix}");
        }
    }
    let missing = checks
        .iter()
        .filter(|check| !check.ok && check.required)
        .count();
    match missing {
        0 => println!("\nSandboxes can run here."),
        n => println!("\nSandboxes can't run here: {n} needed thing(s) missing."),
    }
}
