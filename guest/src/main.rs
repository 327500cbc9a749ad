//! The program inside each sandbox: its init and server, and, under the name `sudo`, the client of
//! that server's other service.

mod files;
mod logs;
mod reaper;
mod serve;
mod service;
mod session;
mod spawn;
mod sudo;
mod terminal;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    if Path::new(&name).file_name() == Some(OsStr::new("sudo")) {
        return sudo::main(args);
    }
    match args.next() {
        Some(mode) if mode == "sudo" => sudo::main(args),
        _ => serve(),
    }
}

fn serve() -> ExitCode {
    match serve::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("oc-guest: {error}");
            ExitCode::from(2)
        }
    }
}
