//! All sessions of the sandbox.
//!
//! Invariants: at most [`SESSIONS_MAX`] (and [`RESERVED`] commands); ended ones are kept for [`ENDED_KEPT`], fewer of them when
//! a new one needs the place or their scrollbacks exceed [`ENDED_BYTES_MAX`] together. A running
//! one is never dropped.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oc_guest::v1::{SessionInfo, StartSessionRequest, StartTerminalRequest};
use tonic::Status;

use super::{Kind, Session, members, pump, start};
use crate::reaper::Reaper;
use crate::spawn::Rights;
use crate::terminal::Size;

/// Most sessions, running and ended.
pub const SESSIONS_MAX: usize = 256;
/// Places beyond them for commands that run to completion.
const RESERVED: usize = 16;
/// How long an ended session can still be listed and attached to.
const ENDED_KEPT: Duration = Duration::from_secs(5 * 60);
/// Most scrollback of ended sessions together, in bytes: 32 MiB.
const ENDED_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Pause between two looks at what ended sessions have left: all process ids can't be used up in it.
const LOOK: Duration = Duration::from_secs(1);

/// See the module.
pub struct Table {
    rights: Rights,
    reaper: Arc<Reaper>,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
    /// Ids of sessions whose process is not its program yet.
    starting: Mutex<HashSet<String>>,
    /// A task looks at what ended sessions have left.
    watching: AtomicBool,
}

/// A session's place before it is in the table.
struct Place<'a> {
    table: &'a Table,
    id: String,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.table.starting().remove(&self.id);
    }
}

impl Table {
    /// An empty table.
    pub fn new(rights: Rights, reaper: Arc<Reaper>) -> Self {
        Self {
            rights,
            reaper,
            sessions: Mutex::default(),
            starting: Mutex::default(),
            watching: AtomicBool::new(false),
        }
    }

    fn starting(&self) -> MutexGuard<'_, HashSet<String>> {
        self.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a session. Commands that run to completion have some that sessions leave
    /// them, so that many sessions do not keep their owner from running one.
    fn reserve(&self, request: &StartSessionRequest) -> Result<Place<'_>, Status> {
        let (mut sessions, mut starting) = (self.sessions(), self.starting());
        let id = &request.session_id;
        if sessions.contains_key(id) || starting.contains(id) {
            return Err(Status::already_exists("a session with this id exists"));
        }
        let reserved = if request.one_shot { RESERVED } else { 0 };
        let full = sessions.len() + starting.len() >= SESSIONS_MAX + reserved;
        if full && !forget_oldest_ended(&mut sessions) {
            let reason = format!("{SESSIONS_MAX} sessions are running; end one first");
            return Err(Status::resource_exhausted(reason));
        }
        starting.insert(id.clone());
        Ok(Place {
            table: self,
            id: id.clone(),
        })
    }

    /// The sessions, without those kept long enough: nobody can see one after its time.
    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.output.finished_for().is_none_or(|t| t < ENDED_KEPT));
        sessions
    }

    /// Starts a session and its tasks.
    pub async fn start(
        self: &Arc<Self>,
        request: StartSessionRequest,
    ) -> Result<SessionInfo, Status> {
        self.start_kind(request, None).await
    }

    /// The same for a shell on a terminal.
    pub async fn start_terminal(
        self: &Arc<Self>,
        request: StartTerminalRequest,
    ) -> Result<SessionInfo, Status> {
        let (request, size) = start::of_terminal(request)?;
        self.start_kind(request, Some(size)).await
    }

    async fn start_kind(
        self: &Arc<Self>,
        request: StartSessionRequest,
        size: Option<Size>,
    ) -> Result<SessionInfo, Status> {
        start::validate(&request)?;
        let limits = start::limits(&request);
        let place = self.reserve(&request)?;
        // No await between here and `track`: see the reaper.
        let (session, sources, spawned) = start::start(request, size, self.rights, &self.reaper)?;
        let ended = self.reaper.track(session.pid);
        let running = spawned.running().await;
        running.map_err(|error| start::name_failure(session.cmd(), &error))?;
        self.sessions().insert(session.id.clone(), session.clone());
        drop(place);
        let (supervised, table) = (session.clone(), self.clone());
        tokio::spawn(async move {
            supervised.supervise(limits, ended).await;
            table.watch_left();
        });
        let info = session.info();
        let table = self.clone();
        tokio::spawn(async move {
            pump::pump(session, sources).await;
            table.trim();
        });
        Ok(info)
    }

    /// The session of that kind, or `NotFound`.
    pub fn get(&self, kind: Kind, id: &str) -> Result<Arc<Session>, Status> {
        let session = self.sessions().get(id).cloned();
        let session = session.filter(|session| session.kind == kind);
        session.ok_or_else(|| {
            Status::not_found(match kind {
                Kind::Command => format!("no session {id:?}"),
                Kind::Terminal => format!("no terminal {id:?}"),
            })
        })
    }

    /// All sessions of a kind, oldest first.
    pub fn list(&self, kind: Kind) -> Vec<SessionInfo> {
        let sessions = self.sessions();
        let of_kind = sessions.values().filter(|session| session.kind == kind);
        let mut sessions: Vec<_> = of_kind.map(|session| session.info()).collect();
        sessions.sort_by_key(|session| session.started_unix_ms);
        sessions
    }

    /// Drops an ended session from the table.
    pub fn forget(&self, id: &str) {
        self.sessions().remove(id);
    }

    /// Looks again and again whether what ended sessions have left is still there, until nothing of any
    /// is: the numbers of those that are gone may be given to others, who must not be signalled.
    fn watch_left(self: &Arc<Self>) {
        let some_left = |table: &Self| -> Vec<Arc<Session>> {
            let sessions = table.sessions();
            let left = sessions.values().filter(|session| session.has_left_some());
            left.cloned().collect()
        };
        if some_left(self).is_empty() || self.watching.swap(true, Ordering::Relaxed) {
            return;
        }
        let table = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let sessions = some_left(&table);
                if sessions.is_empty() {
                    table.watching.store(false, Ordering::Relaxed);
                    // What ended between the look and now found somebody looking.
                    table.watch_left();
                    return;
                }
                let there: HashSet<_> = members::living().map(|one| one.session).collect();
                for session in sessions {
                    if !there.contains(&session.pid) {
                        session.left.store(false, Ordering::Relaxed);
                    }
                }
            }
        });
    }

    /// Drops the oldest ended sessions while all of them together hold too much.
    fn trim(&self) {
        let mut sessions = self.sessions();
        let ended_bytes = |sessions: &HashMap<String, Arc<Session>>| -> u64 {
            let ended = sessions
                .values()
                .filter(|session| session.output.exit().is_some());
            ended.map(|session| session.output.bytes()).sum()
        };
        while ended_bytes(&sessions) > ENDED_BYTES_MAX && forget_oldest_ended(&mut sessions) {}
    }
}

/// Whether there was one.
fn forget_oldest_ended(sessions: &mut HashMap<String, Arc<Session>>) -> bool {
    let ended = sessions
        .values()
        .filter(|session| session.output.exit().is_some());
    let oldest = ended
        .min_by_key(|session| session.started)
        .map(|session| session.id.clone());
    oldest.is_some_and(|id| sessions.remove(&id).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u32) -> StartSessionRequest {
        StartSessionRequest {
            session_id: format!("{id:08x}"),
            cmd: "/bin/true".to_owned(),
            direct: true,
            cwd: "/".to_owned(),
            stdin_closed: true,
            ..StartSessionRequest::default()
        }
    }

    /// Goal: an ended session is listed and attachable for five minutes and not a second longer; a
    /// running one stays. Method: the clock is ours once the process has ended.
    #[tokio::test]
    async fn ended_sessions_are_kept_for_five_minutes() {
        let reaper = Reaper::start().unwrap();
        let table = Arc::new(Table::new(Rights::find(), reaper));
        let mut running = request(2);
        running.cmd = "/bin/sleep".to_owned();
        running.args = vec!["8648".to_owned()];
        table.start(request(1)).await.unwrap();
        table.start(running).await.unwrap();
        while table
            .get(Kind::Command, "00000001")
            .unwrap()
            .output
            .exit()
            .is_none()
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::pause();
        tokio::time::advance(ENDED_KEPT - Duration::from_secs(2)).await;
        assert_eq!(table.list(Kind::Command).len(), 2);
        assert!(table.get(Kind::Command, "00000001").is_ok());
        tokio::time::advance(Duration::from_secs(4)).await;
        assert!(table.get(Kind::Command, "00000001").is_err());
        let left = table.list(Kind::Command);
        assert!(left.len() == 1 && left[0].running, "{left:?}");
        table
            .get(Kind::Command, "00000002")
            .unwrap()
            .signal(libc::SIGKILL);
    }
}
