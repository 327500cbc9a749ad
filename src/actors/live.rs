//! A sandbox that runs: how to reach its guest and its proxy, and the environment its processes get.
//! Nothing here is durable; a restarted server builds it anew from the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actix::Addr;

use super::activity::Activity;
use super::kills::Kills;
use super::logs::SandboxLog;
use super::proxy::{ProxyActor, SetPolicy};
use super::scaler::Samples;
use crate::events::families::SandboxCreated;
use crate::proxy::{Policy, Traffic};
use crate::sandbox::{Gauges, GuestClient, Limits};

/// Where the explicit proxy answers inside a sandbox.
pub const PROXY_URL: &str = "http://169.254.169.253:3128";
/// The trust bundle inside a sandbox: public roots and the sandbox's own authority.
pub const CA_BUNDLE: &str = "/usr/local/share/ca-certificates/opensandbox-proxy.crt";
/// The user's home inside a sandbox.
const HOME: &str = "/home/sandbox";
const NO_PROXY: &str = "localhost,127.0.0.1,::1,169.254.169.254";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running sandbox.
pub struct LiveSandbox {
    /// Its settings when it was attached.
    pub details: SandboxCreated,
    /// The guest inside.
    pub guest: GuestClient,
    /// What its programs print.
    pub log: SandboxLog,
    /// Its proxy actor.
    pub proxy: Addr<ProxyActor>,
    /// Base environment, the lowest layer.
    pub base: BTreeMap<String, String>,
    /// Where processes start when nothing else is said; `None`: the user's home.
    pub workdir: Option<String>,
    /// Sealed tokens and plain variables: what `expandEnv` may expand.
    pub injected: BTreeMap<String, String>,
    /// Revision of the newest policy its proxy was sent.
    pub policy_revision: AtomicU64,
    /// What it uses.
    pub gauges: Arc<dyn Gauges>,
    /// What was killed in it for memory.
    pub kills: Arc<Kills>,
    /// How far its limits reach.
    pub limits: Limits,
    /// What its connections have carried.
    pub traffic: Arc<Traffic>,
    /// When it was last used.
    pub activity: Activity,
    /// How much of its memory it used lately.
    pub(super) samples: Samples,
}

impl LiveSandbox {
    /// Has the proxy use `policy`, unless it was sent a newer one already. When this returns, it
    /// does: what the policy revokes is told to end. A proxy that is gone carries nothing.
    pub async fn renew_policy(&self, policy: Policy, revision: u64) {
        let _ = self.proxy.send(SetPolicy { policy, revision }).await;
        self.policy_revision.fetch_max(revision, Ordering::Relaxed);
    }

    /// Whether the proxy was never sent what the log says since `revision`.
    pub fn is_behind(&self, revision: u64) -> bool {
        self.policy_revision.load(Ordering::Relaxed) < revision
    }

    /// Where a process starts that was given `cwd`.
    pub fn start_in(&self, cwd: Option<String>) -> String {
        cwd.filter(|cwd| !cwd.is_empty())
            .or_else(|| self.workdir.clone())
            .unwrap_or_else(|| HOME.to_owned())
    }

    /// The environment of one process: base, then sandbox, then its own.
    pub fn environment(&self, own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut environment = self.base.clone();
        environment.extend(self.injected.clone());
        environment.extend(own.clone());
        environment
    }
}

/// The base environment; the proxy's part is there when the sandbox has anything to do with it.
pub fn base_environment(governed: bool) -> BTreeMap<String, String> {
    let mut base = vec![
        ("HOME", HOME),
        ("USER", "sandbox"),
        ("LOGNAME", "sandbox"),
        ("PATH", PATH),
        ("LANG", "C.UTF-8"),
    ];
    if governed {
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            base.push((name, PROXY_URL));
        }
        base.extend([("NO_PROXY", NO_PROXY), ("no_proxy", NO_PROXY)]);
    }
    // The authority signs for every host whose traffic is inspected, so it is always trusted.
    for name in ["NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"] {
        base.push((name, CA_BUNDLE));
    }
    base.into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
