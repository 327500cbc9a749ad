//! The engine as a CONNECT proxy: one sandbox for each address to listen on, all on one thread as
//! in the server.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use opencomputer::proxy::{
    Binding, EgressSettings, Placement, Policy, SandboxCa, SandboxProxy, SealedToken, Target,
};
use opencomputer::secret::SecretValue;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Where a sandbox finds its explicit proxy.
const EXPLICIT: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 169, 253), 3128);
/// Decisions waiting to be read.
const TRAIL: usize = 1024;

#[derive(Parser)]
struct Args {
    /// Addresses, a sandbox each
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// The host that holds the secret; it is on loopback
    #[arg(long)]
    host: String,
    /// The secret
    #[arg(long)]
    value: String,
    /// Root certificate of the host
    #[arg(long)]
    root: PathBuf,
    /// Folder for the certificates of the sandboxes: `ours-N.pem`
    #[arg(long)]
    certificates: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> Result<()> {
    let settings = Arc::new(EgressSettings {
        allow_private: vec!["127.0.0.0/8".parse()?],
        pinned: [(args.host.clone(), IpAddr::from(Ipv4Addr::LOCALHOST))].into(),
        extra_roots: vec![CertificateDer::from_pem_file(&args.root)?],
        ..EgressSettings::default()
    });
    let mut tokens = Vec::new();
    let mut doors = Vec::new();
    for (number, address) in args.listen.iter().enumerate() {
        let token = SealedToken::generate();
        let secret = Binding {
            name: "API_KEY".to_owned(),
            token,
            value: SecretValue::from(args.value.clone()),
            hosts: vec![args.host.parse()?],
            placement: Placement::default(),
        };
        let policy = Policy::new(Vec::new(), vec![secret], true, true);
        let ca = SandboxCa::generate(&format!("bench-{number}"))?;
        let pem = args.certificates.join(format!("ours-{number}.pem"));
        fs::write(pem, ca.certificate_pem())?;
        let (trail, mut decisions) = mpsc::channel(TRAIL);
        tokio::spawn(async move { while decisions.recv().await.is_some() {} });
        let proxy = SandboxProxy::new(settings.clone(), ca, Some(policy), trail);
        tokens.push(token.to_string());
        doors.push((TcpListener::bind(address).await?, proxy));
    }
    println!("{}", serde_json::json!({ "tokens": tokens }));
    let mut work = Vec::new();
    for (listener, proxy) in doors {
        work.push(tokio::spawn(accept(listener, proxy)));
    }
    for task in work {
        task.await?;
    }
    Ok(())
}

async fn accept(listener: TcpListener, proxy: Arc<SandboxProxy>) {
    let (ip, port) = EXPLICIT;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let target = Target {
                    name: None,
                    ip: ip.into(),
                    port,
                };
                tokio::spawn(proxy.clone().serve(stream, target));
            }
            Err(error) => eprintln!("accept: {error}"),
        }
    }
}
