//! Strict audit: what is about to leave with a secret is on disk before it leaves.
//!
//! Invariants: a request waits for exactly one record, and goes on only when that record was
//! acknowledged by the log; requests that wait at the same time share one write.

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::proxy::{BATCH_MAX, Pace, Recorder};
use crate::proxy::Announcement;

/// Records announcements until no connection can make one any more.
pub(super) async fn announce(recorder: Recorder, mut waiting: mpsc::Receiver<Announcement>) {
    let mut pace = Pace::new();
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while waiting.recv_many(&mut batch, BATCH_MAX).await > 0 {
        // One sandbox must not fill the disk by asking; whoever waits too long is refused.
        tokio::time::sleep_until(pace.admit(batch.len(), Instant::now())).await;
        let announced: Vec<_> = batch.iter().map(|one| one.sending.clone()).collect();
        let durable = recorder.record_sending(&announced).await;
        for one in batch.drain(..).filter(|_| durable) {
            // A request that went away in the meantime needs no answer.
            let _ = one.recorded.send(());
        }
    }
}
