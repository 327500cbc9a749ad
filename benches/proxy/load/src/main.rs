//! The two ends of the proxy benchmark, and the plain tunnel it compares with.
//!
//! `benches/proxy/run` starts these; each is one thread, so that pinning is all that decides who
//! runs when. The upstream host answers only requests whose `Authorization` holds the real value,
//! so a run in which a proxy did not substitute can't be mistaken for a fast one.

mod body;
mod client;
mod connect;
mod hostile;
mod process;
mod tls;
mod tunnel;
mod upstream;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use tokio::task::LocalSet;

/// The name of the upstream host, which every proxy is told to find on loopback.
pub const HOST: &str = "api.test";

/// Any failure ends the program with its message.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The two ends of the proxy benchmark
#[derive(Parser)]
#[command(name = "bench-load")]
enum Command {
    /// Write the certificates of the upstream host and an authority for a proxy that brings none
    Certificates { directory: PathBuf },
    /// Serve the upstream host
    Upstream(upstream::Args),
    /// Serve CONNECT without looking inside; every name is loopback
    Tunnel { listen: SocketAddr },
    /// Run one case against one target and print what was measured as JSON
    Client(client::Args),
    /// Be a bad neighbour until ended
    Hostile(hostile::Args),
}

fn main() -> Result<()> {
    let command = Command::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let work = async {
        match command {
            Command::Certificates { directory } => tls::write_certificates(&directory),
            Command::Upstream(args) => upstream::serve(args).await,
            Command::Tunnel { listen } => tunnel::serve(listen).await,
            Command::Client(args) => client::run(args).await,
            Command::Hostile(args) => hostile::run(args).await,
        }
    };
    LocalSet::new().block_on(&runtime, work)
}
