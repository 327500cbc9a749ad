//! Connections passed through unread: TLS to hosts without secrets, and other protocols where
//! the policy permits them.
//!
//! Invariant: a tunnel lives only as long as the policy would let it begin.

use tokio::net::TcpStream;

use super::decision::{Outcome, Record};
use super::gate::SandboxProxy;
use super::io::Rewind;
use super::policy::Policy;

/// Copies both ways until both ends are done, or `permitted` no longer holds.
pub(crate) async fn run(
    proxy: &SandboxProxy,
    mut near: Rewind,
    mut far: TcpStream,
    mut record: Record,
    rule: &str,
    permitted: impl Fn(&Policy) -> bool,
) {
    record.passed(Outcome::Tunnelled, rule);
    let mut policy = proxy.watch_policy();
    // Looked at once at the start: it may have changed since it was asked.
    policy.mark_changed();
    let copy = tokio::io::copy_bidirectional(&mut near, &mut far);
    tokio::pin!(copy);
    loop {
        tokio::select! {
            ended = &mut copy => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "tunnel ended");
                }
                return;
            }
            changed = policy.changed() => {
                let current = policy.borrow_and_update().clone();
                let still = changed.is_ok() && current.is_some_and(|policy| permitted(&policy));
                if !still {
                    record.passed(Outcome::Tunnelled, "cut_by_new_policy");
                    return;
                }
            }
        }
    }
}
