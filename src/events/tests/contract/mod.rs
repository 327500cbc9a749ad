//! What every engine must do, written once and run on each: an engine is accepted when it passes.
//!
//! `engine.rs` calls the engine itself, `log.rs` the event log on it. To try another engine, give it
//! a [`Subject`] and a line in `suite!`.

mod engine;
mod log;

use tempfile::TempDir;

use super::support::{open_small, start_small};
use crate::events::EventLog;
use crate::events::engines::Engine;
use crate::events::engines::memory::Memory;
use crate::events::engines::sqlite::Sqlite;

/// An engine with a log of its own, empty at first.
pub trait Subject {
    /// The engine with whatever was appended so far; the one before was dropped.
    fn engine(&self) -> Box<dyn Engine>;
    /// A log on it with a small index; the one before was closed.
    fn log(&self) -> EventLog;
}

struct OnSqlite(TempDir);

impl Subject for OnSqlite {
    fn engine(&self) -> Box<dyn Engine> {
        Box::new(Sqlite::open(self.0.path()).expect("opened"))
    }

    fn log(&self) -> EventLog {
        open_small(self.0.path())
    }
}

struct InMemory(Memory, TempDir);

impl Subject for InMemory {
    fn engine(&self) -> Box<dyn Engine> {
        Box::new(self.0.clone())
    }

    fn log(&self) -> EventLog {
        start_small(self.1.path(), self.engine()).expect("started")
    }
}

fn sqlite() -> OnSqlite {
    OnSqlite(tempfile::tempdir().expect("a folder"))
}

fn memory() -> InMemory {
    InMemory(Memory::new(), tempfile::tempdir().expect("a folder"))
}

macro_rules! suite {
    ($($engine:ident),*; $(engine::$plain:ident,)* $(log::$served:ident,)*) => {
        suite!(@ [$($engine)*] [$($plain)*] [$($served)*]);
    };
    (@ [$($engine:ident)*] $plain:tt $served:tt) => {
        $(suite!(one $engine $plain $served);)*
    };
    (one $engine:ident [$($plain:ident)*] [$($served:ident)*]) => {
        mod $engine {
            $(#[test] fn $plain() { super::engine::$plain(&super::$engine()); })*
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $served() { super::log::$served(&super::$engine()).await; }
            )*
        }
    };
}

suite! {
    sqlite, memory;
    engine::what_is_appended_comes_back_byte_for_byte,
    engine::an_append_at_a_wrong_head_is_refused,
    engine::only_what_is_appended_counts,
    engine::commits_page_in_both_directions,
    engine::pages_of_large_commits_are_bounded,
    engine::a_view_sees_whole_groups_only,
    log::writers_get_one_total_order,
    log::a_name_goes_to_one_of_many_and_the_rest_leave_no_trace,
    log::readers_and_subscribers_see_no_gap_and_no_double,
    log::a_repeat_is_known_wherever_its_first_is,
    log::large_events_and_commits_come_back_whole,
    log::pages_backwards_mirror_pages_forwards,
    log::streams_read_the_same_from_every_part_of_the_index,
}
