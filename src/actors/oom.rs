//! Telling a sandbox's owner that processes were killed for memory: an event a sandbox and round, in
//! the stream `resource-<sandbox>`, and a note in the output of the command that was killed.
//!
//! The kernel counts kills for each sandbox and says no more. So a note is written when a command
//! died of SIGKILL and the count rose while it ran: who else in the sandbox was killed in that time,
//! and by whom, nobody knows.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use time::OffsetDateTime;

use super::live::LiveSandbox;
use super::platform::Platform;
use super::sealing::off_runtime;
use crate::events::StreamId;
use crate::events::families::{OomKilled, ResourceEvent, observed};
use crate::sandbox::Gauges;

/// Time between looks; also the pace of a sandbox's events, however much is killed in it.
const ROUND: Duration = Duration::from_secs(2);

/// What a shell answers for a command that SIGKILL ended, and the guest does.
const KILLED: i32 = 128 + 9;

/// How many kills there had been when a command was started.
pub(super) struct Before(Option<u64>);

impl Before {
    /// Looks at the count.
    pub fn of(gauges: &dyn Gauges) -> Self {
        Self(gauges.oom_kills())
    }

    /// The note for a command that ended with `exit_code`, if it was killed for memory.
    pub fn note(&self, gauges: &dyn Gauges, exit_code: Option<i32>) -> Option<String> {
        let rose = || Some(gauges.oom_kills()? > self.0?);
        if exit_code != Some(KILLED) || rose() != Some(true) {
            return None;
        }
        let limit = gauges.read().memory_limit_bytes;
        let limit = limit.map_or_else(String::new, |bytes| format!(" (limit {} MiB)", bytes >> 20));
        Some(format!("\nProcess killed: out of memory{limit}"))
    }
}

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
    let total = live.gauges.oom_kills()?;
    let told = live.oom_told.swap(total, Ordering::Relaxed);
    let kills = total.checked_sub(told).filter(|kills| *kills > 0)?;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::sandbox::Stats;

    #[derive(Debug)]
    struct Fixed(AtomicU64);

    impl Gauges for Fixed {
        fn read(&self) -> Stats {
            Stats {
                memory_limit_bytes: Some(256 << 20),
                ..Stats::default()
            }
        }

        fn oom_kills(&self) -> Option<u64> {
            match self.0.load(Ordering::Relaxed) {
                u64::MAX => None,
                kills => Some(kills),
            }
        }
    }

    /// Goal: only a command that SIGKILL ended while the count rose is said to have died of memory.
    #[test]
    fn only_a_kill_while_the_count_rose_is_out_of_memory() {
        let note = |then, now, code| {
            let gauges = Fixed(AtomicU64::new(then));
            let before = Before::of(&gauges);
            gauges.0.store(now, Ordering::Relaxed);
            before.note(&gauges, code)
        };
        let text = "\nProcess killed: out of memory (limit 256 MiB)";
        assert_eq!(note(1, 2, Some(137)).as_deref(), Some(text));
        assert_eq!(note(1, 1, Some(137)), None);
        assert_eq!(note(1, 2, Some(0)), None);
        assert_eq!(note(1, 2, None), None);
        assert_eq!(note(u64::MAX, 2, Some(137)), None);
    }
}
