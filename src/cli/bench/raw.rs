//! The least that durability costs: a file, an append, one sync for all who wait. It gathers its
//! groups as the event log does, so that both get the same chances; its callers are answered over
//! ordinary channels.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

/// What one event of the measurement takes in the log, about: its data and its envelope, in bytes.
const RECORD_BYTES: usize = 450;
/// As in the log's writer.
const GROUP_MAX: usize = 512;
const GATHER_US_MAX: u64 = 300;
const AWAKE_US_MAX: u64 = 100;

type Message = (Arc<[u8]>, oneshot::Sender<()>);

/// A file that callers append to. Its thread ends with it.
pub struct Raw {
    queue: mpsc::Sender<Message>,
    groups: Arc<AtomicU64>,
}

impl Raw {
    /// Makes the file.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let (queue, waiting) = mpsc::channel(1_024);
        let groups = Arc::new(AtomicU64::new(0));
        std::thread::Builder::new()
            .name("oc-bench-raw".into())
            .spawn({
                let groups = Arc::clone(&groups);
                move || write(file, waiting, &groups)
            })?;
        Ok(Self { queue, groups })
    }

    /// Groups written so far, each with a sync.
    pub fn groups(&self) -> u64 {
        self.groups.load(Ordering::Relaxed)
    }

    /// Appends a second by `callers` callers, each of which waits for its sync before it goes on.
    pub async fn rate(&self, callers: u64, each: u64) -> io::Result<f64> {
        let bytes: Arc<[u8]> = vec![b'x'; RECORD_BYTES].into();
        let started = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..callers {
            let (queue, bytes) = (self.queue.clone(), Arc::clone(&bytes));
            tasks.spawn(async move {
                for _ in 0..each {
                    let (done, answer) = oneshot::channel();
                    // Either fails only when the thread has ended on an error of the disk.
                    let gone = |_| io::Error::other("the raw file can't be written");
                    let message = (Arc::clone(&bytes), done);
                    queue.send(message).await.map_err(|_| gone(()))?;
                    answer.await.map_err(|_| gone(()))?;
                }
                Ok::<_, io::Error>(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok((callers * each) as f64 / started.elapsed().as_secs_f64())
    }
}

fn write(mut file: File, mut waiting: mpsc::Receiver<Message>, groups: &AtomicU64) {
    let mut last = 0;
    while let Some(first) = first(&mut waiting, last > 1) {
        let mut group = vec![first];
        let mut take = |group: &mut Vec<Message>| {
            let before = group.len();
            while group.len() < GROUP_MAX
                && let Ok(next) = waiting.try_recv()
            {
                group.push(next);
            }
            group.len() > before
        };
        take(&mut group);
        let gathering = Duration::from_micros(GATHER_US_MAX);
        let (mut idle, mut since) = (Duration::ZERO, Instant::now());
        while group.len() < last && idle + since.elapsed() < gathering {
            std::thread::yield_now();
            let idled = since.elapsed();
            if take(&mut group) {
                (idle, since) = (idle + idled, Instant::now());
            }
        }
        last = group.len();
        let bytes: Vec<u8> = group.iter().flat_map(|(b, _)| b.iter().copied()).collect();
        if file
            .write_all(&bytes)
            .and_then(|()| file.sync_data())
            .is_err()
        {
            return;
        }
        groups.fetch_add(1, Ordering::Relaxed);
        for (_, done) in group {
            // A caller that went away needs no answer.
            let _ = done.send(());
        }
    }
}

/// Waits for the first of a group, awake for a while when it is to come `soon`.
fn first(waiting: &mut mpsc::Receiver<Message>, soon: bool) -> Option<Message> {
    let awake = Instant::now();
    while soon && awake.elapsed() < Duration::from_micros(AWAKE_US_MAX) {
        if let Ok(first) = waiting.try_recv() {
            return Some(first);
        }
        std::thread::yield_now();
    }
    waiting.blocking_recv()
}
