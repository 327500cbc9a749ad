//! What an idle sandbox's proxy holds in memory: many of them in one process, each with its own
//! authority and a policy of one secret. Prints KiB each as JSON, by what they have done so far.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use opencomputer::proxy::{Binding, EgressSettings, Policy, SandboxCa, SandboxProxy, SealedToken};
use opencomputer::secret::SecretValue;
use tokio::sync::mpsc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How many, unless told.
const COUNT: usize = 10_000;
/// Room in each audit trail, as in the server.
const TRAIL: usize = 256;

fn resident_kib() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or("no VmRSS")?.parse()?)
}

fn one(settings: &Arc<EgressSettings>, host: &str) -> Result<(Arc<SandboxProxy>, impl Sized)> {
    let secret = Binding {
        name: "API_KEY".to_owned(),
        token: SealedToken::generate(),
        value: SecretValue::from("sk-ant-api03-idle-0123456789abcdef".to_owned()),
        hosts: vec![host.parse()?],
    };
    let policy = Policy::new(Vec::new(), vec![secret], true, true);
    let ca = SandboxCa::generate("bench")?;
    let (trail, decisions) = mpsc::channel(TRAIL);
    let proxy = SandboxProxy::new(settings.clone(), ca, Some(policy), trail);
    Ok((proxy, decisions))
}

fn main() -> Result<()> {
    let count = std::env::args().nth(1).map_or(Ok(COUNT), |n| n.parse())?;
    let host = "api.test";
    let settings = Arc::new(EgressSettings {
        pinned: [(host.to_owned(), IpAddr::from(Ipv4Addr::LOCALHOST))].into(),
        ..EgressSettings::default()
    });
    // What the first costs once, it costs once.
    let first = one(&settings, host)?;
    let before = resident_kib()?;
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        all.push(one(&settings, host)?);
    }
    let made = (resident_kib()? - before) / count as f64;
    println!(
        "{}",
        serde_json::json!({ "count": count, "made_kib": made })
    );
    drop((first, all));
    Ok(())
}
