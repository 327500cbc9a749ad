//! What a build says, as it says it, to however many who listen, now or later.
//!
//! Invariants: a feed ends once, and whoever follows it sees that after everything that was said; it
//! keeps a bounded number of lines, and who comes later is told that earlier ones are gone; nobody
//! who listens holds up the build.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Most lines kept, and their bytes.
const LINES_MAX: usize = 20_000;
const BYTES_MAX: usize = 4 * 1024 * 1024;

/// One line of a build's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildLine {
    /// The step, counted from 1; 0: none.
    pub step: u32,
    /// The step's type, or `resolve`, `cache_hit`, `build`, `checkpoint`, `create`.
    pub kind: &'static str,
    /// What is said.
    pub message: String,
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// There is a result.
    Done,
    /// There is none, for this reason.
    Failed(String),
    /// Nobody is at work on it any more.
    Abandoned,
}

#[derive(Default)]
struct Said {
    lines: VecDeque<Arc<BuildLine>>,
    /// Number of the first line that is kept.
    first: u64,
    bytes: usize,
    ended: Option<Ended>,
}

/// What a build says.
pub struct Feed {
    said: Mutex<Said>,
    /// Changes with everything that happens.
    happened: watch::Sender<u64>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            said: Mutex::default(),
            happened: watch::Sender::new(0),
        }
    }
}

impl Feed {
    /// Adds a line.
    pub fn say(&self, step: u32, kind: &'static str, message: impl Into<String>) {
        let message = message.into();
        {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            said.bytes += message.len();
            said.lines.push_back(Arc::new(BuildLine {
                step,
                kind,
                message,
            }));
            while said.lines.len() > LINES_MAX || said.bytes > BYTES_MAX {
                let Some(gone) = said.lines.pop_front() else {
                    break;
                };
                said.bytes -= gone.message.len();
                said.first += 1;
            }
        }
        self.happened.send_modify(|count| *count += 1);
    }

    /// Ends the feed, unless it has ended.
    pub fn end(&self, ended: Ended) {
        {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            said.ended.get_or_insert(ended);
        }
        self.happened.send_modify(|count| *count += 1);
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.ended.clone()
    }

    /// Follows the feed from its first line.
    pub fn follow(self: &Arc<Self>) -> Follower {
        Follower {
            happened: self.happened.subscribe(),
            feed: self.clone(),
            next: 0,
        }
    }

    /// Waits for the end.
    pub async fn wait(&self) -> Ended {
        let mut happened = self.happened.subscribe();
        loop {
            if let Some(ended) = self.ended() {
                return ended;
            }
            if happened.changed().await.is_err() {
                return Ended::Abandoned;
            }
        }
    }
}

/// One listener.
pub struct Follower {
    feed: Arc<Feed>,
    happened: watch::Receiver<u64>,
    next: u64,
}

impl Follower {
    /// The next line, or how it ended. Loses nothing when dropped while it waits.
    pub async fn next(&mut self) -> Result<Arc<BuildLine>, Ended> {
        loop {
            // Marked first: what happens while we look is seen by the next round.
            self.happened.borrow_and_update();
            if let Some(next) = self.look() {
                return next;
            }
            if self.happened.changed().await.is_err() {
                return Err(Ended::Abandoned);
            }
        }
    }

    fn look(&mut self) -> Option<Result<Arc<BuildLine>, Ended>> {
        let said = self
            .feed
            .said
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.next < said.first {
            let gone = said.first - self.next;
            self.next = said.first;
            return Some(Ok(Arc::new(BuildLine {
                step: 0,
                kind: "build",
                message: format!("… {gone} earlier lines are gone"),
            })));
        }
        let at = usize::try_from(self.next - said.first).unwrap_or(usize::MAX);
        if let Some(line) = said.lines.get(at) {
            self.next += 1;
            return Some(Ok(line.clone()));
        }
        said.ended.clone().map(Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: whoever comes, and when, hears everything once and the end last.
    #[tokio::test]
    async fn everybody_hears_everything() {
        let feed = Arc::new(Feed::default());
        let mut early = feed.follow();
        feed.say(1, "run", "one");
        let waiting = tokio::spawn(async move {
            let mut heard = Vec::new();
            loop {
                match early.next().await {
                    Ok(line) => heard.push(line.message.clone()),
                    Err(ended) => return (heard, ended),
                }
            }
        });
        tokio::task::yield_now().await;
        feed.say(2, "run", "two");
        feed.end(Ended::Failed("why".to_owned()));
        feed.end(Ended::Done);
        let (heard, ended) = waiting.await.expect("no panic");
        assert_eq!(heard, ["one", "two"]);
        assert_eq!(ended, Ended::Failed("why".to_owned()));
        let mut late = feed.follow();
        assert_eq!(late.next().await.expect("a line").message, "one");
    }

    /// Goal: a flood stays bounded, and its first lines are told to be gone.
    #[tokio::test]
    async fn a_flood_stays_bounded() {
        let feed = Arc::new(Feed::default());
        for number in 0..LINES_MAX + 5 {
            feed.say(1, "run", number.to_string());
        }
        feed.say(1, "run", "x".repeat(BYTES_MAX));
        let mut late = feed.follow();
        let first = late.next().await.expect("a line");
        assert_eq!(
            first.message,
            format!("… {} earlier lines are gone", LINES_MAX + 5)
        );
        assert_eq!(late.next().await.expect("a line").message.len(), BYTES_MAX);
    }
}
