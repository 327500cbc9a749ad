//! Which of a sandbox's programs were killed for memory, and the note that says so.
//!
//! The kernel counts kills for each sandbox and says no more. So a note is written when a program
//! ended as SIGKILL ends one, nobody here asked for that, and the count rose shortly before, while it
//! ran: who else in the sandbox was killed in that time, and by whom, nobody knows. Whoever sees the
//! exit first decides, and all others are told the same.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sandbox::Gauges;

/// What a shell answers for a command that SIGKILL ended, and the guest does.
const KILLED: i32 = 128 + 9;
/// Looks at the count that are remembered: a kill is recent for as long as they go back.
const LOOKS_MAX: usize = 6;
/// Programs remembered; more than a guest has sessions.
const PROGRAMS_MAX: usize = 1024;

/// The kills for memory in one running sandbox.
#[derive(Debug)]
pub struct Kills {
    gauges: Arc<dyn Gauges>,
    /// Kills that were told of.
    told: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The count at the last looks, the newest last.
    looks: VecDeque<u64>,
    programs: VecDeque<(String, Program)>,
}

#[derive(Debug, Clone)]
enum Program {
    /// It runs, for all that is known; the count was this when it began to.
    Runs(Option<u64>),
    /// It has ended, with this to say about it.
    Ended(Option<String>),
}

impl Kills {
    /// Of a sandbox that just came up: what was killed while no server looked is in the count, and not
    /// told of again.
    pub(super) fn new(gauges: Arc<dyn Gauges>) -> Self {
        let count = gauges.oom_kills().unwrap_or_default();
        Self {
            gauges,
            told: count.into(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kills since the last look, and all there ever were; `None` when there are none. Reads a
    /// small file of the kernel.
    pub(super) fn look(&self) -> Option<(u64, u64)> {
        let count = self.gauges.oom_kills()?;
        let mut state = self.state();
        if state.looks.len() == LOOKS_MAX {
            state.looks.pop_front();
        }
        state.looks.push_back(count);
        drop(state);
        let told = self.told.swap(count, Ordering::Relaxed);
        let new = count.checked_sub(told).filter(|new| *new > 0)?;
        Some((new, count))
    }

    /// Watches a program that is about to be started, or was seen to run.
    pub(super) fn began(&self, id: &str) {
        let count = self.gauges.oom_kills();
        let mut state = self.state();
        if state.programs.len() == PROGRAMS_MAX {
            let ended = |(_, program): &(String, Program)| matches!(program, Program::Ended(_));
            let oldest = state.programs.iter().position(ended).unwrap_or_default();
            state.programs.remove(oldest);
        }
        let program = Program::Runs(count);
        state.programs.push_back((id.to_owned(), program));
    }

    /// Somebody asks for the program to be killed: its end has another reason.
    pub fn asked(&self, id: &str) {
        let mut state = self.state();
        let mut programs = state.programs.iter_mut();
        if let Some((_, program)) = programs.find(|(known, _)| known == id)
            && matches!(program, Program::Runs(_))
        {
            *program = Program::Ended(None);
        }
    }

    /// What there is to say about a program that ended with this code. Nothing about one that was not
    /// seen to run.
    pub fn note(&self, id: &str, exit_code: i32) -> Option<String> {
        let count = self.gauges.oom_kills();
        let mut state = self.state();
        // Before so many looks nothing is long ago.
        let whole = state.looks.len() == LOOKS_MAX;
        let recent = state.looks.front().filter(|_| whole).copied();
        let mut programs = state.programs.iter_mut();
        let (_, program) = programs.find(|(known, _)| known == id)?;
        let before = match program {
            Program::Ended(note) => return note.clone(),
            Program::Runs(before) => *before,
        };
        let rose = || Some(count? > before?.max(recent.unwrap_or_default()));
        let killed = exit_code == KILLED && rose() == Some(true);
        let note = killed.then(|| self.text());
        *program = Program::Ended(note.clone());
        note
    }

    fn text(&self) -> String {
        let limit = self.gauges.read().memory_limit_bytes;
        let limit = limit.map_or_else(String::new, |bytes| format!(" (limit {} MiB)", bytes >> 20));
        format!("\nProcess killed: out of memory{limit}")
    }
}

#[cfg(test)]
mod tests {
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

    fn kills(count: u64) -> (Arc<Fixed>, Kills) {
        let gauges = Arc::new(Fixed(count.into()));
        (gauges.clone(), Kills::new(gauges))
    }

    const TEXT: &str = "\nProcess killed: out of memory (limit 256 MiB)";

    /// Goal: only a program that SIGKILL ended while the count rose is said to have died of memory.
    #[test]
    fn only_a_kill_while_the_count_rose_is_out_of_memory() {
        let note = |then, now, code| {
            let (gauges, kills) = kills(then);
            kills.began("a");
            gauges.0.store(now, Ordering::Relaxed);
            kills.note("a", code)
        };
        assert_eq!(note(1, 2, 137).as_deref(), Some(TEXT));
        assert_eq!(note(1, 1, 137), None);
        assert_eq!(note(1, 2, 0), None);
        assert_eq!(note(1, 2, -1), None);
        assert_eq!(note(u64::MAX, 2, 137), None);
        assert_eq!(note(1, u64::MAX, 137), None);
    }

    /// Goal: a kill of long ago is not the reason of an end today, nor is one of memory the reason of
    /// an end that was asked for; all who ask are told the same, and nothing of what nobody saw run.
    #[test]
    fn the_first_to_see_an_end_decides_what_is_said_of_it() {
        let (gauges, kills) = kills(0);
        for id in ["long", "asked", "short", "other"] {
            kills.began(id);
        }
        gauges.0.store(1, Ordering::Relaxed);
        assert_eq!(kills.look(), Some((1, 1)));
        assert_eq!(kills.look(), None);
        assert_eq!(kills.note("short", 137).as_deref(), Some(TEXT));
        assert_eq!(kills.note("other", 0), None);
        kills.asked("asked");
        assert_eq!(kills.note("asked", 137), None);
        for _ in 0..LOOKS_MAX {
            assert_eq!(kills.look(), None);
        }
        assert_eq!(kills.note("long", 137), None);
        assert_eq!(kills.note("short", 137).as_deref(), Some(TEXT));
        assert_eq!(kills.note("other", 137), None);
        assert_eq!(kills.note("unknown", 137), None);
        kills.asked("short");
        assert_eq!(kills.note("short", 137).as_deref(), Some(TEXT));
    }

    /// Goal: what is remembered is bounded, and those that run are kept before those that ended.
    #[test]
    fn programs_are_bounded() {
        let (gauges, kills) = kills(0);
        kills.began("first");
        for number in 0..2 * PROGRAMS_MAX {
            let id = number.to_string();
            kills.began(&id);
            assert_eq!(kills.note(&id, 0), None);
        }
        assert_eq!(kills.state().programs.len(), PROGRAMS_MAX);
        gauges.0.store(1, Ordering::Relaxed);
        assert_eq!(kills.note("first", 137).as_deref(), Some(TEXT));
    }
}
