//! The engine by itself: bytes in, the same bytes out, groups whole or absent, pages bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ulid::Ulid;

use super::Subject;
use crate::events::chain::{chain_hash, content_hash};
use crate::events::engines::{Commit, Engine, READ_BYTES_MAX, Reader};
use crate::events::event::{EventData, from_unix_ms};
use crate::events::tests::support::stream;
use crate::events::{
    Actor, COMMIT_BYTES_MAX, COMMIT_EVENTS_MAX, EVENT_DATA_BYTES_MAX, EngineError, Head, Recorded,
};
use crate::ids::{KeyId, OrgId};

/// Makes commits that follow one another, with every field of the envelope in use in turn.
struct Maker {
    head: Head,
    revisions: HashMap<String, u64>,
}

impl Maker {
    fn new(engine: &dyn Engine) -> Self {
        Self {
            head: engine.view().head().expect("a head"),
            revisions: HashMap::new(),
        }
    }

    /// A commit with an event for each size of data, in bytes of JSON text (at least 2).
    fn commit(&mut self, sizes: &[usize]) -> Commit {
        let number = self.head.commit + 1;
        let odd = number % 2 == 1;
        let some = |wanted: bool| wanted.then(Ulid::generate);
        let actor = Actor {
            org: odd.then(|| OrgId::from_bytes([number as u8; 16])),
            key: odd.then(|| KeyId::from_bytes([7; 16])),
            kind: if number.is_multiple_of(3) {
                "x.y-z_0"
            } else {
                "api"
            }
            .into(),
        };
        let (command, correlation, causation) = (Ulid::generate(), some(odd), some(!odd));
        let mut events = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let name = format!("s:{}", (number as usize + index) % 5);
            let revision = self.revisions.entry(name.clone()).or_default();
            // Not all of it ASCII, and nothing that anybody would write the same again.
            let text = match size % 4 {
                0 if *size >= 12 => format!(" [\"é\", {}", "1".repeat(size - 9)),
                _ => format!("\"{}", "x".repeat(size - 2)),
            };
            let end = if text.starts_with(' ') { "]" } else { "\"" };
            let mut event = Recorded {
                id: Ulid::generate(),
                stream: stream(&name),
                revision: *revision,
                position: self.head.position + 1 + index as u64,
                commit: number,
                kind: format!("test.kind{}.v1", index % 3).into(),
                recorded_at: from_unix_ms(1_000 * number.cast_signed()).expect("a time"),
                actor: actor.clone(),
                command,
                correlation,
                causation,
                data: EventData::stored(&(text + end)),
                content_hash: [0; 32],
            };
            event.content_hash = content_hash(&event);
            *revision += 1;
            events.push(Arc::new(event));
        }
        let hashes = events.iter().map(|event| &event.content_hash);
        let commit = Commit {
            number,
            chain: chain_hash(number, &self.head.chain, hashes),
            events,
        };
        self.head = commit.head();
        commit
    }

    fn small(&mut self, count: usize) -> Vec<Commit> {
        (0..count).map(|_| self.commit(&[16, 40])).collect()
    }
}

/// Every field of every event, and data as text.
fn bytes(commits: &[Commit]) -> Vec<String> {
    let event = |event: &Arc<Recorded>| format!("{event:?} {}", event.data.get());
    let commit = |commit: &Commit| {
        let events: Vec<_> = commit.events.iter().map(event).collect();
        format!("{} {:?} {events:?}", commit.number, commit.chain)
    };
    commits.iter().map(commit).collect()
}

/// All commits, page by page.
fn all(reader: &dyn Reader) -> Vec<Commit> {
    let mut found: Vec<Commit> = Vec::new();
    loop {
        let from = found.last().map_or(0, |last| last.head().position + 1);
        let page = reader.commits(from, 64).expect("read");
        if page.is_empty() {
            return found;
        }
        found.extend(page);
    }
}

/// Goal: all fields of all kinds of commits come back as they went in: now, through another view,
/// and from the engine opened again.
pub fn what_is_appended_comes_back_byte_for_byte(subject: &dyn Subject) {
    let mut engine = subject.engine();
    let log = engine.view().log();
    assert_eq!(engine.view().head().expect("a head").position, 0);
    assert!(all(engine.view()).is_empty());
    let reader = engine.reader().expect("a reader");
    let mut maker = Maker::new(&*engine);
    let groups = [
        vec![maker.commit(&[2])],
        maker.small(1),
        // Several to a block, then some that fill one exactly, nearly and not at all.
        (2..60).map(|size| maker.commit(&[size, 9])).collect(),
        [3_400, 3_800, 3_899, 3_900, 3_901, 4_096, 2, 8_000, 2]
            .map(|n| maker.commit(&[n]))
            .into(),
        vec![maker.commit(&[20; COMMIT_EVENTS_MAX])],
        vec![maker.commit(&[EVENT_DATA_BYTES_MAX])],
        vec![
            maker.commit(&[2]),
            maker.commit(&[COMMIT_BYTES_MAX / 4; 4]),
            maker.commit(&[2]),
        ],
    ];
    let mut at = engine.view().head().expect("a head");
    for group in &groups {
        engine.append(&at, group).expect("appended");
        at = group.last().expect("a commit").head();
        assert_eq!(engine.view().head().expect("a head"), at);
        assert_eq!(reader.head().expect("a head"), at);
        engine.tidy().expect("kept up");
    }
    let wanted = bytes(&groups.concat());
    assert_eq!(bytes(&all(engine.view())), wanted);
    assert_eq!(bytes(&all(&*reader)), wanted);
    engine.close().expect("closed");
    drop((reader, engine));
    let engine = subject.engine();
    assert_eq!(engine.view().log(), log);
    assert_eq!(engine.view().head().expect("a head"), at);
    assert_eq!(bytes(&all(engine.view())), wanted);
    engine.view().check_files().expect("in order");
}

/// Goal: behind any head but the present one nothing is written.
pub fn an_append_at_a_wrong_head_is_refused(subject: &dyn Subject) {
    let mut engine = subject.engine();
    let mut maker = Maker::new(&*engine);
    let beginning = maker.head;
    let group = maker.small(3);
    engine.append(&beginning, &group).expect("appended");
    let head = maker.head;
    let next = maker.small(2);
    let wrong = [
        beginning,
        group[1].head(),
        next[1].head(),
        Head {
            chain: [0; 32],
            ..head
        },
        Head {
            commit: head.commit + 1,
            ..head
        },
        Head {
            position: head.position + 1,
            ..head
        },
    ];
    for at in wrong {
        let refused = engine.append(&at, &next).expect_err("refused");
        assert!(matches!(refused, EngineError::HeadMoved), "{refused}");
        assert_eq!(engine.view().head().expect("a head"), head);
    }
    assert_eq!(bytes(&all(engine.view())), bytes(&group));
    engine.append(&head, &next).expect("appended");
}

/// Goal: what was announced to an engine counts for nothing until it is appended, whatever is
/// appended in the end. Method: nothing, something else, less, more, and the same, after an
/// announcement that is small and one of many rows.
pub fn only_what_is_appended_counts(subject: &dyn Subject) {
    let mut engine = subject.engine();
    let reader = engine.reader().expect("a reader");
    let mut wanted = Vec::new();
    for size in [16, 3_000] {
        for case in 0..5 {
            let at = reader.head().expect("a head");
            let make = |engine: &dyn Engine| {
                let mut maker = Maker::new(engine);
                [
                    maker.commit(&[size]),
                    maker.commit(&[size, 5]),
                    maker.commit(&[size]),
                ]
            };
            let (expected, other) = (make(&*engine), make(&*engine));
            let mut before = at;
            for commit in &expected {
                engine.announce(&before, commit);
                before = commit.head();
                assert_eq!(bytes(&all(&*reader)), bytes(&wanted));
            }
            let appended = match case {
                0 => &[][..],
                1 => &other[..],
                2 => &expected[..2],
                3 => {
                    // A group that came to nothing, and then another one at the same place.
                    engine.announce(&at, &other[0]);
                    &other[..1]
                }
                _ => &expected[..],
            };
            if !appended.is_empty() {
                engine.append(&at, appended).expect("appended");
            }
            wanted.extend_from_slice(appended);
            assert_eq!(bytes(&all(&*reader)), bytes(&wanted));
            engine.tidy().expect("upkeep");
            assert_eq!(bytes(&all(engine.view())), bytes(&wanted));
        }
    }
    let astray = Maker::new(&*engine).commit(&[16]);
    engine.announce(&Head::beginning(engine.view().log()), &astray);
    let at = reader.head().expect("a head");
    engine
        .append(&at, &[astray])
        .expect("appended all the same");
    engine.close().expect("closed");
    drop((reader, engine));
    subject.engine().view().check_files().expect("in order");
}

/// Goal: a page has exactly what its bounds say, from any position, within a commit or beyond the
/// end. Method: every position, and the extremes, against a list kept here.
pub fn commits_page_in_both_directions(subject: &dyn Subject) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut engine = subject.engine();
    let mut maker = Maker::new(&*engine);
    let mut list: Vec<Commit> = Vec::new();
    for _ in 0..8 {
        let at = maker.head;
        let size = |random: &mut StdRng| random.random_range(2..1_500);
        let group: Vec<_> = (0..random.random_range(1..9))
            .map(|_| {
                let sizes = vec![size(&mut random); random.random_range(1..6)];
                maker.commit(&sizes)
            })
            .collect();
        engine.append(&at, &group).expect("appended");
        list.extend(group);
    }
    let shape = |commits: &[Commit]| -> Vec<_> {
        let shape = |c: &Commit| (c.number, c.chain, c.first_position(), c.events.len());
        commits.iter().map(shape).collect()
    };
    let end = maker.head.position;
    let edges = [
        end + 1,
        end + 2,
        i64::MAX as u64,
        i64::MAX as u64 + 1,
        u64::MAX,
    ];
    for at in (0..=end).chain(edges) {
        for limit in [0, 1, 5, usize::MAX] {
            let mut events = 0;
            let mut within = |commit: &&Commit| {
                let fits = events < limit;
                events += commit.events.len();
                fits
            };
            let from = list.iter().filter(|commit| commit.head().position >= at);
            let wanted: Vec<_> = from.take_while(&mut within).cloned().collect();
            let found = engine.view().commits(at, limit).expect("read");
            assert_eq!(shape(&found), shape(&wanted), "from {at}, {limit}");
            events = 0;
            let mut within = |commit: &&Commit| {
                let fits = events < limit;
                events += commit.events.len();
                fits
            };
            let before = list
                .iter()
                .rev()
                .filter(|commit| commit.first_position() < at);
            let wanted: Vec<_> = before.take_while(&mut within).cloned().collect();
            let found = engine.view().commits_before(at, limit).expect("read");
            assert_eq!(shape(&found), shape(&wanted), "before {at}, {limit}");
        }
    }
}

/// Goal: no page is much larger than its bound, and pages still lead through the whole log.
pub fn pages_of_large_commits_are_bounded(subject: &dyn Subject) {
    let mut engine = subject.engine();
    let mut maker = Maker::new(&*engine);
    let mut commits = 0;
    for (size, count) in [(EVENT_DATA_BYTES_MAX, 3), (300_000, 3), (3_000, 9)] {
        let at = maker.head;
        let group: Vec<_> = (0..count).map(|_| maker.commit(&[size; 4])).collect();
        commits += group.len();
        engine.append(&at, &group).expect("appended");
    }
    let bounded = |page: &[Commit]| {
        let bytes: usize = page.iter().map(Commit::bytes).sum();
        assert!(bytes < READ_BYTES_MAX + COMMIT_BYTES_MAX, "{bytes}");
        page.len()
    };
    let (mut found, mut next) = (0, 1);
    while next <= maker.head.position {
        let page = engine.view().commits(next, 1_000).expect("read");
        found += bounded(&page);
        next = page
            .last()
            .expect("not empty before the end")
            .head()
            .position
            + 1;
    }
    assert_eq!(found, commits);
    let (mut found, mut before) = (0, u64::MAX);
    while before > 1 {
        let page = engine.view().commits_before(before, 1_000).expect("read");
        found += bounded(&page);
        before = page
            .last()
            .expect("not empty before the beginning")
            .first_position();
    }
    assert_eq!(found, commits);
}

/// Goal: another view sees a group whole or not at all, at any moment. Method: groups of a known
/// number of commits, and a thread that looks all the time.
pub fn a_view_sees_whole_groups_only(subject: &dyn Subject) {
    const GROUP: usize = 7;
    let mut engine = subject.engine();
    let mut maker = Maker::new(&*engine);
    let reader = engine.reader().expect("a reader");
    let ended = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(move || {
            let (mut heads, mut looked) = (Vec::new(), 0_u64);
            while !ended.load(Ordering::Relaxed) {
                let head = reader.head().expect("a head");
                let commits = reader.commits(0, 100_000).expect("read").len() as u64;
                assert!(
                    head.commit.is_multiple_of(GROUP as u64),
                    "a part of a group"
                );
                assert!(commits.is_multiple_of(GROUP as u64) && commits >= head.commit);
                heads.push(head.commit);
                looked += 1;
            }
            assert!(heads.is_sorted());
            looked
        });
        let end = End(ended);
        for _ in 0..40 {
            let at = maker.head;
            // More than one block.
            let group: Vec<_> = (0..GROUP).map(|_| maker.commit(&[900, 900])).collect();
            engine.append(&at, &group).expect("appended");
        }
        drop(end);
        assert!(watcher.join().expect("it saw whole groups") > 0);
    });
}

/// Tells the other thread to end, also when this one panics.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
