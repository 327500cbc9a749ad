//! `oc doctor`: what this machine can do for sandboxes, and what is missing.

use std::process::ExitCode;

use serde_json::json;

use super::Global;
use crate::sandbox::{Check, doctor as probe};

/// Probes this machine and prints what was found. Ends with 1 when sandboxes can't run here.
pub fn doctor(global: &Global) -> ExitCode {
    let checks = probe();
    match global.json {
        true => print_json(&checks),
        false => print_text(&checks),
    }
    match checks.iter().all(|check| check.ok || !check.required) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
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
