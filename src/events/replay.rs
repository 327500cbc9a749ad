//! Reading the whole log in order as fast as the machine can, and proving it on the way.
//!
//! Several readers decode stretches of the log side by side, one thread takes the stretches in order,
//! walks along them as `oc audit verify` does, and hands the events on. At most a few stretches
//! wait at any time, so memory does not grow with the log.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use ulid::Ulid;

use super::engines::{Commit, Reader};
use super::error::{EngineError, VerifyError};
use super::event::{Head, Recorded};
use super::log::EventLog;
use super::verify::{VerifyReport, Walk, branches};

/// Positions in one stretch. Tests take fewer, so that little logs are long ones.
const STRETCH: u64 = if cfg!(test) { 8 } else { 8_192 };
/// Events read at once: what the last page of a stretch reads beyond its end is read twice.
const PAGE_EVENTS: u64 = if cfg!(test) { 3 } else { 512 };
/// Readers at once; each also has one stretch ready and one in the making.
const READERS: u64 = 2;

/// Commits with what was made of each of their events.
type Stretch<T> = Vec<(Commit, Vec<T>)>;

impl EventLog {
    /// Hands every event up to the present head to `apply`, in order, with what `prepare` made of
    /// it; `prepare` runs on several threads. Every hash, link, position and revision is checked
    /// before its event is handed on.
    pub async fn replay<T: Send + 'static>(
        &self,
        prepare: impl Fn(&Recorded) -> T + Send + Sync + 'static,
        mut apply: impl FnMut(&Arc<Recorded>, T) + Send + 'static,
    ) -> Result<VerifyReport, VerifyError> {
        let until = self.head();
        let prepare = Arc::new(prepare);
        let (mut stretches, mut readers) = (Vec::new(), Vec::new());
        for reader in 0..READERS {
            let (ready, taken) = sync_channel(1);
            let (log, prepare) = (self.clone(), Arc::clone(&prepare));
            stretches.push(taken);
            readers.push(tokio::spawn(async move {
                let read = move |view: &super::view::View| -> Result<(), EngineError> {
                    read(view.reader(), reader, until, prepare.as_ref(), &ready);
                    Ok(())
                };
                log.readers().run(read).await
            }));
        }
        let log = self.id();
        let walked = tokio::task::spawn_blocking(move || walk(log, until, &stretches, &mut apply));
        let walked = walked
            .await
            .map_err(|error| EngineError::Io(error.to_string()))?;
        for reader in readers {
            let read = reader
                .await
                .map_err(|error| EngineError::Io(error.to_string()))?;
            read?;
        }
        walked
    }
}

/// Decodes every [`READERS`]th stretch, until the end or until nobody takes them any more.
fn read<T>(
    reader: &dyn Reader,
    first: u64,
    until: Head,
    prepare: &impl Fn(&Recorded) -> T,
    ready: &SyncSender<Result<Stretch<T>, EngineError>>,
) {
    let mut stretch = first;
    while stretch * STRETCH < until.position {
        let start = stretch * STRETCH + 1;
        let end = (start + STRETCH).min(until.position + 1);
        let made = decode(reader, start, end, prepare);
        let failed = made.is_err();
        if ready.send(made).is_err() || failed {
            return;
        }
        stretch += READERS;
    }
}

/// The commits that begin at positions from `start` to before `end`.
fn decode<T>(
    reader: &dyn Reader,
    start: u64,
    end: u64,
    prepare: &impl Fn(&Recorded) -> T,
) -> Result<Stretch<T>, EngineError> {
    let mut made = Vec::new();
    let mut next = start;
    while next < end {
        let limit = PAGE_EVENTS.min(end - next);
        let page = reader.commits(next, usize::try_from(limit).unwrap_or(usize::MAX))?;
        let Some(last) = page.last() else { break };
        next = last.head().position + 1;
        for commit in page {
            if (start..end).contains(&commit.first_position()) {
                branches(reader, &commit)?;
                let of = commit.events.iter().map(|event| prepare(event)).collect();
                made.push((commit, of));
            }
        }
    }
    Ok(made)
}

fn walk<T>(
    log: Ulid,
    until: Head,
    stretches: &[Receiver<Result<Stretch<T>, EngineError>>],
    apply: &mut impl FnMut(&Arc<Recorded>, T),
) -> Result<VerifyReport, VerifyError> {
    let mut walk = Walk::new(Head::beginning(log));
    let cut_off = || EngineError::Io("a replay was cut off".into());
    for (_, stretch) in (0..until.position.div_ceil(STRETCH)).zip(stretches.iter().cycle()) {
        for (commit, made) in stretch.recv().map_err(|_| cut_off())?? {
            walk.commit(&commit)?;
            for (event, made) in commit.events.iter().zip(made) {
                apply(event, made);
            }
        }
    }
    walk.end(log, until)
}
