//! Telling a sandbox's owner that processes were killed for memory: an event a sandbox and round, in
//! the stream `resource-<sandbox>`. What is said to whoever ran the program is in [`super::kills`].

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use time::OffsetDateTime;

use super::live::LiveSandbox;
use super::platform::Platform;
use super::sealing::off_runtime;
use crate::events::StreamId;
use crate::events::families::{OomKilled, ResourceEvent, observed};

/// Time between looks; also the pace of a sandbox's events, however much is killed in it.
const ROUND: Duration = Duration::from_secs(2);

/// Looks at every sandbox again and again, as long as the platform lives.
pub(super) async fn watch(platform: Weak<Platform>) {
    loop {
        tokio::time::sleep(ROUND).await;
        let Some(platform) = platform.upgrade() else {
            return;
        };
        let all: Vec<_> = {
            let live = platform.live.lock().unwrap_or_else(PoisonError::into_inner);
            live.values().cloned().collect()
        };
        let risen = off_runtime(move || Ok(all.into_iter().filter_map(risen).collect::<Vec<_>>()));
        for killed in risen.await.unwrap_or_default() {
            platform.tell(killed).await;
        }
    }
}

/// What is new about a sandbox. Reads a small file of the kernel.
fn risen(live: Arc<LiveSandbox>) -> Option<OomKilled> {
    let (kills, total) = live.kills.look()?;
    Some(OomKilled {
        sandbox_id: live.details.sandbox_id.clone(),
        org_id: live.details.org_id,
        kills,
        total,
        limit_bytes: live.gauges.read().memory_limit_bytes,
        at: OffsetDateTime::now_utc(),
    })
}

impl Platform {
    /// Records kills. Tried once: the count itself stays, and is shown with what the sandbox uses.
    async fn tell(&self, killed: OomKilled) {
        let (id, org, kills) = (killed.sandbox_id.clone(), killed.org_id, killed.kills);
        tracing::warn!(sandbox = %id, kills, "processes of a sandbox were killed for memory");
        let stream = StreamId::of("resource", &id);
        let Ok(append) = observed(stream, &ResourceEvent::OomKilled(killed), org) else {
            return;
        };
        if let Err(error) = self.log.append(append).await {
            tracing::error!(%error, sandbox = %id, "kills for memory could not be recorded");
        }
    }
}
