//! What an idle sandbox's proxy holds in memory: many of them in one process, each with its own
//! authority and a policy of one secret. Prints KiB each as JSON: as made, and after each carried
//! one request and went idle again (with a leaf and what finds its secret in answers).

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use opencomputer::proxy::{
    Binding, Decision, EgressSettings, Placement, Policy, SandboxCa, SandboxProxy, SealedToken,
    Target,
};
use opencomputer::secret::SecretValue;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Room in each audit trail, as in the server.
const TRAIL: usize = 256;

#[derive(Parser)]
struct Args {
    /// How many
    count: usize,
    /// The host that holds the secret, on loopback
    #[arg(long)]
    host: String,
    #[arg(long)]
    port: u16,
    #[arg(long)]
    value: String,
    #[arg(long)]
    root: PathBuf,
}

/// One sandbox's way out.
struct Idler {
    proxy: Arc<SandboxProxy>,
    decisions: mpsc::Receiver<Decision>,
    token: SealedToken,
}

impl Idler {
    fn new(args: &Args, settings: &Arc<EgressSettings>) -> Result<Self> {
        let token = SealedToken::generate();
        let secret = Binding {
            name: "API_KEY".to_owned(),
            token,
            value: SecretValue::from(args.value.clone()),
            hosts: vec![args.host.parse()?],
            placement: Placement::default(),
        };
        let policy = Policy::new(Vec::new(), vec![secret], true, true);
        let ca = SandboxCa::generate("bench")?;
        let (trail, decisions) = mpsc::channel(TRAIL);
        let proxy = SandboxProxy::new(settings.clone(), ca, Some(policy), trail);
        Ok(Self {
            proxy,
            decisions,
            token,
        })
    }

    /// One request by way of the proxy, until its connection has ended.
    async fn work(&mut self, args: &Args, listener: &TcpListener) -> Result<()> {
        let near = TcpStream::connect(listener.local_addr()?);
        let (near, far) = tokio::join!(near, listener.accept());
        let target = Target {
            name: Some(args.host.clone()),
            ip: Ipv4Addr::new(198, 18, 0, 7).into(),
            port: args.port,
        };
        let carried = tokio::spawn(self.proxy.clone().serve(far?.0, target));
        let ca = self.proxy.ca_certificate_pem().as_bytes();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca)?)?;
        let tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(args.host.clone())?;
        let mut stream = TlsConnector::from(Arc::new(tls))
            .connect(name, near?)
            .await?;
        let head = format!(
            "GET /bytes/1024 HTTP/1.1\r\nHost: {}:{}\r\nAuthorization: Bearer {}\r\n\
             Connection: close\r\n\r\n",
            args.host, args.port, self.token
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        // Not every server says goodbye in TLS.
        let _ = stream.read_to_end(&mut answer).await;
        if !answer.starts_with(b"HTTP/1.1 200") {
            return Err(String::from_utf8_lossy(&answer).into());
        }
        drop(stream);
        carried.await?;
        while self.decisions.try_recv().is_ok() {}
        Ok(())
    }
}

fn resident_kib() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no VmRSS")?.parse()?)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let settings = Arc::new(EgressSettings {
        allow_private: vec!["127.0.0.0/8".parse()?],
        pinned: [(args.host.clone(), IpAddr::from(Ipv4Addr::LOCALHOST))].into(),
        extra_roots: vec![CertificateDer::from_pem_file(&args.root)?],
        ..EgressSettings::default()
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    // What the first costs once (roots, tables) is not each one's.
    let mut first = Idler::new(&args, &settings)?;
    first.work(&args, &listener).await?;
    let before = resident_kib()?;
    let mut all = Vec::with_capacity(args.count);
    for _ in 0..args.count {
        all.push(Idler::new(&args, &settings)?);
    }
    let made = (resident_kib()? - before) / args.count as f64;
    for idler in &mut all {
        idler.work(&args, &listener).await?;
    }
    let used = (resident_kib()? - before) / args.count as f64;
    let found = serde_json::json!({ "count": args.count, "as_made_kib": made, "after_a_request_kib": used });
    println!("{found}");
    Ok(())
}
