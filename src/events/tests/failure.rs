//! When storage fails under the writer: a full disk is survived, anything else stops the log.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::mount::{MountFlags, mount};

use super::support::{command, event, fill, note, open, stream, with_mounts};
use crate::events::engines::sqlite::Sqlite;
use crate::events::engines::{Commit, Engine, Reader};
use crate::events::index::Index;
use crate::events::{AppendError, EngineError, EventLog, Expected, Head};

/// SQLite, with the next append failing in the way it is told: before anything is written, or after
/// everything is (an error of the sync, when nobody can know what the disk has).
struct Failing {
    engine: Sqlite,
    next: Arc<Mutex<Option<(EngineError, bool)>>>,
}

impl Engine for Failing {
    fn view(&self) -> &dyn Reader {
        self.engine.view()
    }

    fn announce(&mut self, at: &Head, commit: &Commit) {
        self.engine.announce(at, commit);
    }

    fn append(&mut self, at: &Head, commits: &[Commit]) -> Result<(), EngineError> {
        match self.next.lock().expect("not poisoned").take() {
            None => self.engine.append(at, commits),
            Some((error, after)) => {
                if after {
                    self.engine.append(at, commits)?;
                }
                Err(error)
            }
        }
    }

    fn reader(&self) -> Result<Box<dyn Reader>, EngineError> {
        self.engine.reader()
    }

    fn tidy(&mut self) -> Result<(), EngineError> {
        self.engine.tidy()
    }

    fn close(&mut self) -> Result<(), EngineError> {
        self.engine.close()
    }
}

type Next = Arc<Mutex<Option<(EngineError, bool)>>>;

fn failing_log(dir: &Path) -> (EventLog, Next) {
    let engine = Sqlite::open(dir).expect("opened");
    let index = Index::open(dir, engine.view().log()).expect("an index");
    let next = Next::default();
    let engine = Failing {
        engine,
        next: Arc::clone(&next),
    };
    let log = EventLog::start(dir.to_owned(), Box::new(engine), index);
    (log.expect("started"), next)
}

/// Goal: after a failed sync nothing is written any more, everyone is told why, the reason reaches
/// those who wait for it; a restart finds out what the disk has, and the command id tells its
/// sender.
#[tokio::test]
async fn a_failed_sync_stops_the_log_for_good() {
    for after in [false, true] {
        let dir = tempfile::tempdir().expect("a folder");
        let (log, next) = failing_log(dir.path());
        fill(&log, "a", 2).await;
        let mut subscription = log.subscribe(3);
        let failure = EngineError::Io("fsync: input/output error".into());
        *next.lock().expect("not poisoned") = Some((failure, after));
        let unsure = note("a", "unsure");
        let refused = log
            .append(unsure.clone())
            .await
            .expect_err("stopped")
            .to_string();
        assert!(refused.contains("input/output error"), "{refused}");
        assert!(refused.contains("Restart the server"), "{refused}");
        let later = log.append(note("a", "later")).await.expect_err("stopped");
        assert!(matches!(later, AppendError::Stopped { .. }), "{later}");
        assert!(log.wait_stopped().await.contains("input/output error"));
        assert!(
            subscription.next().await.is_err(),
            "what was not acknowledged is not shown"
        );
        assert_eq!(log.head().position, 2);
        log.close().await;

        let log = open(dir.path());
        let found = if after { 3 } else { 2 };
        assert_eq!(log.head().position, found);
        let again = log.append(unsure).await.expect("answered");
        assert_eq!((again.replayed, again.first_position), (after, 3));
        log.verify().await.expect("verified");
        log.close().await;
    }
}

/// Goal: a group that the disk has no room for is refused whole, in words that name the folder;
/// afterwards the log goes on and the refused command can be sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_group_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, next) = failing_log(dir.path());
    fill(&log, "a", 1).await;
    *next.lock().expect("not poisoned") = Some((EngineError::Full, false));
    let expected = [("a", Expected::Revision(0)), ("b", Expected::NoStream)];
    let append = command(&expected, vec![event("a", 1), event("b", 1)]);
    let full = log
        .append(append.clone())
        .await
        .expect_err("full")
        .to_string();
    assert!(full.contains(&dir.path().display().to_string()), "{full}");
    assert!(full.contains("free some space"), "{full}");
    assert!(log.stream_head(&stream("b")).await.expect("read").is_none());
    let done = log.append(append).await.expect("recorded now");
    assert_eq!(
        (done.replayed, done.first_position, done.last_position),
        (false, 2, 3)
    );
    log.verify().await.expect("verified");
    log.close().await;
}

/// Goal: the same on a disk that is really full: refused precisely, whole before and after, going
/// on once there is room. Method: a 2 MiB tmpfs in a mount namespace of this test's threads only,
/// so that nothing is left behind even when it fails.
#[test]
fn a_full_disk_is_survived() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().to_owned();
    let mounted = path.clone();
    with_mounts(
        move || mount("tmpfs", &mounted, "tmpfs", MountFlags::empty(), c"size=2m"),
        move || {
            // All threads of this runtime are started here and so see the small disk.
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.expect("a runtime").block_on(fill_the_disk(&path));
        },
    );
}

async fn fill_the_disk(dir: &Path) {
    let log = open(dir);
    let filler = dir.join("filler");
    std::fs::write(&filler, vec![1; 512 * 1024]).expect("there is room");
    let mut recorded = 0;
    let refused = loop {
        let mut append = note("a", "x".repeat(20_000));
        append.events.push(event("b", recorded));
        match log.append(append.clone()).await {
            Ok(_) => recorded += 1,
            Err(error) => break (append, error),
        }
        assert!(recorded < 1_000, "the disk does not fill up");
    };
    let (append, error) = refused;
    assert!(matches!(error, AppendError::Full { .. }), "{error}");
    assert!(recorded > 5, "only {recorded} commits fit");
    assert_eq!(log.head().commit, recorded);
    let report = log.verify().await.expect("whole while full");
    assert_eq!(report.commits, recorded);
    assert!(matches!(
        log.append(append.clone()).await,
        Err(AppendError::Full { .. })
    ));

    std::fs::remove_file(filler).expect("removed");
    let done = log.append(append).await.expect("there is room again");
    assert_eq!((done.commit, done.replayed), (recorded + 1, false));
    log.close().await;
    let log = open(dir);
    assert_eq!(log.head().commit, recorded + 1);
    log.close().await;
}
