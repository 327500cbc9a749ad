//! The house rules that no compiler checks: which room may know which, where clocks and panics may
//! be, how long a file may grow, what may never be written down.
//!
//! Each rule reads the sources as text and reports every offence at once. An exception is a row in
//! a table here, with its reason; a row that is no longer needed is an offence too.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Room, and the rooms it may use besides `ids`, `secret` and `config`, which everybody may.
const ARROWS: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("events", &["config"]),
    ("sandbox", &[]),
    ("proxy", &[]),
    ("actors", &["config", "events", "sandbox", "proxy"]),
    ("http", &["config", "actors", "events", "sandbox", "proxy"]),
    ("cli", &["config", "actors", "events", "sandbox", "proxy"]),
];

/// Longest file without a reason, in lines.
const LINES_MAX: usize = 500;
/// Files above it, and why they are one thing.
const LONG_FILES: &[(&str, &str)] = &[];

/// Panics outside tests: file, and the message, which states the invariant that makes it safe.
const EXPECTS: &[(&str, &str)] = &[
    (
        "src/config.rs",
        "the default address is a constant that parses",
    ),
    (
        "src/events/stream.rs",
        "ids print as few, allowed characters",
    ),
];

/// Files that write to standard output or error as their job.
const PRINTERS: &[(&str, &str)] = &[
    ("guest/src/main.rs", "says why the guest can't start"),
    ("guest/src/sudo/", "is a command of the sandbox's user"),
    ("src/cli/", "is the command line"),
    ("src/http/server.rs", "announces where the server listens"),
    ("src/main.rs", "is the program"),
    (
        "src/sandbox/namespace/doctor.rs",
        "prints the probe that `oc doctor` reads",
    ),
    (
        "src/sandbox/namespace/supervisor.rs",
        "has its own log as standard error",
    ),
];

/// Files of `decide` and `apply`: no clock, no randomness, no I/O; these come in with the command.
const PURE: &[&str] = &[
    "src/actors/aggregate.rs",
    "src/actors/checkpoint.rs",
    "src/actors/images/image.rs",
    "src/actors/model.rs",
    "src/actors/org.rs",
    "src/actors/project.rs",
    "src/actors/sandbox/mod.rs",
    "src/actors/sandbox/command.rs",
    "src/actors/sandbox/scaling.rs",
    "src/actors/sandbox/sleep.rs",
    "src/actors/sandbox/tags.rs",
    "src/actors/secret_store.rs",
    "src/actors/secrets.rs",
];
const IMPURE: &[&str] = &[
    "now_utc(",
    "SystemTime::now(",
    "Instant::now(",
    "rand::",
    "getrandom",
    "generate()",
    "std::fs",
    "std::net",
    "std::env",
    "tokio::",
    "async ",
    ".await",
];

/// Nowhere, not even in tests. Spelt apart so that this file may pass its own check.
const NEVER: &[&str] = &[
    concat!("unbounded_", "channel"),
    concat!("mpsc::", "unbounded"),
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("db", "g!("),
];
/// A switched-off test is allowed as the other process of a test that starts it.
const IGNORED: &str = concat!("#[", "ignore");
const STARTED: &str = concat!("#[", "ignore = \"started by ");

/// Words that no tracked text may have: places of one workshop, and registries by their host names
/// (which one is used is the reader's setting, not ours).
const FORBIDDEN_WORDS: &[&str] = &[
    concat!("\"/wo", "rk/"),
    concat!(" /wo", "rk/"),
    concat!("`/wo", "rk/"),
    concat!("/wo", "rk/wt"),
    concat!("/wo", "rk/shared"),
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("registry.npm", "js.org"),
];

/// One source file, its path from the root with `/`.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Lines of code outside tests: number and text, comments left out.
    fn code(&self) -> Vec<(usize, &str)> {
        let mut kept = Vec::new();
        // The formatter puts an item's last brace under its first letter.
        let mut end: Option<String> = None;
        let mut first = false;
        for (index, line) in self.text.lines().enumerate() {
            if let Some(last) = &end {
                if line == last || (first && line.ends_with(';')) {
                    end = None;
                }
                first = line.trim_start().starts_with("#[");
            } else if line.trim() == "#[cfg(test)]" {
                let indent = line.len() - line.trim_start().len();
                (end, first) = (Some(format!("{}}}", " ".repeat(indent))), true);
            } else if !line.trim_start().starts_with("//") {
                kept.push((index + 1, line));
            }
        }
        kept
    }

    fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("tests.rs")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below the given folders.
fn sources(folders: &[&str]) -> Vec<Source> {
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("a source folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("source is UTF-8");
                let path = path.strip_prefix(root()).expect("below the root");
                found.push(Source {
                    path: path.to_str().expect("UTF-8").to_owned(),
                    text,
                });
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {folders:?}");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn report(offences: Vec<String>) {
    assert!(
        offences.is_empty(),
        "{} offences:\n{}",
        offences.len(),
        offences.join("\n")
    );
}

/// Top-level modules of this crate that a text names, also inside `use crate::{…}`.
fn rooms_named(text: &str) -> BTreeSet<&str> {
    let word = |text: &'_ str| text.find(|c: char| !c.is_alphanumeric() && c != '_');
    let mut named = BTreeSet::new();
    for rest in text.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            named.extend(rest.get(..word(rest).unwrap_or(rest.len())));
            continue;
        };
        let mut depth = 0;
        for part in list.split_inclusive([',', '{', '}']) {
            let name = part.trim_start();
            if depth == 0 {
                named.extend(name.get(..word(name).unwrap_or(name.len())));
            }
            named.remove("");
            match part.as_bytes().last() {
                Some(b'{') => depth += 1,
                Some(b'}') if depth == 0 => break,
                Some(b'}') => depth -= 1,
                _ => {}
            }
        }
    }
    named
}

/// Goal: `http` and `cli` → `actors` → `events`, `sandbox`, `proxy`, and never back or across.
#[test]
fn arrows_between_rooms_point_one_way() {
    let known: BTreeSet<_> = ARROWS.iter().map(|(room, _)| *room).collect();
    let mut offences = Vec::new();
    let mut used = BTreeSet::new();
    for source in sources(&["src"]) {
        let Some((room, _)) = source
            .path
            .strip_prefix("src/")
            .and_then(|at| at.split_once('/'))
        else {
            continue;
        };
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == room) else {
            offences.push(format!(
                "{}: room `{room}` has no row in ARROWS",
                source.path
            ));
            continue;
        };
        // Tests too; only comments may name other rooms.
        let lines = source
            .text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        let text = lines.collect::<Vec<_>>().join("\n");
        for other in rooms_named(&text) {
            if other != room && known.contains(other) {
                used.insert((room.to_owned(), other.to_owned()));
                if !allowed.contains(&other) {
                    offences.push(format!("{}: `{room}` uses `{other}`", source.path));
                }
            }
        }
    }
    let real = |from: &str, to: &str| used.contains(&(from.to_owned(), to.to_owned()));
    assert!(
        real("http", "actors") && real("actors", "events"),
        "the check sees no arrow at all"
    );
    report(offences);
}

#[test]
fn the_arrow_check_reads_every_way_of_naming_a_room() {
    let text =
        "use crate::{events::{Log, proxy}, ids::OrgId,\n sandbox};\nlet x = crate::cli::y();";
    let named: Vec<_> = rooms_named(text).into_iter().collect();
    assert_eq!(named, ["cli", "events", "ids", "sandbox"]);
}

/// Goal: each file says what it is for, and stays small enough to be read in one sitting.
#[test]
fn files_have_docs_and_stay_small() {
    let mut offences = Vec::new();
    for source in sources(&["src", "guest/src", "tests"]) {
        let lines = source.text.lines().count();
        let listed = LONG_FILES.iter().any(|(path, _)| *path == source.path);
        // A table of cases is long and still read in one sitting.
        if lines > LINES_MAX && !listed && !source.path.starts_with("tests/") {
            offences.push(format!(
                "{}: {lines} lines, more than {LINES_MAX}",
                source.path
            ));
        }
        if lines <= LINES_MAX && listed {
            offences.push(format!(
                "{}: no longer needs its row in LONG_FILES",
                source.path
            ));
        }
        if !source.text.starts_with("//!") && !source.is_test() {
            offences.push(format!("{}: does not start with `//!`", source.path));
        }
    }
    report(offences);
}

/// Goal: nothing panics on input; a panic states the invariant that forbids it and is listed.
#[test]
fn panics_are_listed_with_their_invariants() {
    let mut offences = Vec::new();
    let mut needed = BTreeSet::new();
    for source in sources(&["src", "guest/src"])
        .iter()
        .filter(|source| !source.is_test())
    {
        let code = source.code();
        for (position, (number, line)) in code.iter().enumerate() {
            let place = format!("{}:{number}", source.path);
            for call in [".unwrap()", ".unwrap_err()", "panic!(", "unreachable!("] {
                if line.contains(call) {
                    offences.push(format!("{place}: `{call}`"));
                }
            }
            // Not the methods of our own that are called the same and take a closure.
            if !line.contains(".expect(") || line.contains(".expect(|") {
                continue;
            }
            let next = code.get(position + 1).map_or("", |(_, next)| *next);
            let message = EXPECTS.iter().find(|(path, message)| {
                *path == source.path && (line.contains(message) || next.contains(message))
            });
            match message {
                Some(row) => drop(needed.insert(*row)),
                None => offences.push(format!("{place}: `.expect(` without a row in EXPECTS")),
            }
        }
    }
    let stale = EXPECTS.iter().filter(|row| !needed.contains(*row));
    offences.extend(stale.map(|(path, message)| format!("{path}: `{message}` is no longer there")));
    report(offences);
}

/// Goal: only those print whose job it is; everything else logs.
#[test]
fn only_programs_print() {
    let mut offences = Vec::new();
    for source in sources(&["src", "guest/src"])
        .iter()
        .filter(|source| !source.is_test())
    {
        if PRINTERS
            .iter()
            .any(|(path, _)| source.path.starts_with(path))
        {
            continue;
        }
        for (number, line) in source.code() {
            if ["println!(", "eprintln!(", "print!("]
                .iter()
                .any(|call| line.contains(call))
            {
                offences.push(format!("{}:{number}: prints", source.path));
            }
        }
    }
    report(offences);
}

/// Goal: `decide` and `apply` have no clock, randomness or I/O within reach.
#[test]
fn aggregates_are_pure() {
    let mut offences = Vec::new();
    let all = sources(&["src/actors"]);
    for path in PURE {
        let source = all.iter().find(|source| source.path == *path);
        let source = source.unwrap_or_else(|| panic!("{path} is gone; mend PURE"));
        for (number, line) in source.code() {
            for word in IMPURE.iter().filter(|word| line.contains(**word)) {
                offences.push(format!("{path}:{number}: `{word}`"));
            }
        }
    }
    // Whatever implements `Aggregate` is in the list.
    let others = all
        .iter()
        .filter(|source| !PURE.contains(&source.path.as_str()));
    for source in others.filter(|source| !source.is_test()) {
        if source
            .code()
            .iter()
            .any(|(_, line)| line.starts_with("impl Aggregate for "))
        {
            offences.push(format!(
                "{}: implements Aggregate and is not in PURE",
                source.path
            ));
        }
    }
    report(offences);
}

#[test]
fn nothing_unbounded_unfinished_or_switched_off() {
    let mut offences = Vec::new();
    for source in sources(&["src", "guest/src", "tests"]) {
        for (number, line) in source.text.lines().enumerate() {
            for word in NEVER.iter().filter(|word| line.contains(**word)) {
                offences.push(format!("{}:{}: `{word}`", source.path, number + 1));
            }
            // The standard library's, which takes no bound; a test's may be as it is.
            if line.contains("mpsc::channel()") && !source.path.starts_with("tests/") {
                offences.push(format!(
                    "{}:{}: a queue without a bound",
                    source.path,
                    number + 1
                ));
            }
            if line.contains(IGNORED) && !line.contains(STARTED) {
                offences.push(format!(
                    "{}:{}: a switched-off test",
                    source.path,
                    number + 1
                ));
            }
        }
    }
    report(offences);
}

#[test]
fn no_forbidden_words_in_tracked_text() {
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output();
    let listed = match listed {
        Ok(output) if output.status.success() => output.stdout,
        _ => {
            println!("skipped: not a git checkout, so it is unknown what is tracked");
            return;
        }
    };
    let mut offences = Vec::new();
    let names = listed
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    for name in names.map(|name| String::from_utf8_lossy(name).into_owned()) {
        // Lock files name the registry that each entry came from; they are made by tools.
        let is_lock = name.ends_with(".lock") || name.ends_with("-lock.json");
        let Ok(text) = fs::read_to_string(root().join(&name)) else {
            continue;
        };
        if is_lock {
            continue;
        }
        for word in FORBIDDEN_WORDS.iter().filter(|word| text.contains(**word)) {
            offences.push(format!("{name}: `{word}`"));
        }
    }
    report(offences);
}

/// Goal: a promise is held by a test that exists. Method: every name of a test in SPECIFICATION.md
/// is looked for as a function in the sources.
#[test]
fn the_specification_names_tests_that_exist() {
    let text = fs::read_to_string(root().join("SPECIFICATION.md")).unwrap();
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains('`'));
    let names: BTreeSet<&str> = rows
        .filter_map(|row| row.trim_end_matches(" |").rsplit(" | ").next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .filter(|name| name.contains('_') && !name.contains(['/', ' ', '.']))
        .collect();
    assert!(names.len() > 50, "the table is not read: {names:?}");
    let sources = sources(&["src", "guest", "tests"]);
    let missing: Vec<String> = names
        .into_iter()
        .filter(|name| {
            let function = format!("fn {name}(");
            !sources.iter().any(|source| source.text.contains(&function))
        })
        .map(|name| format!("SPECIFICATION.md: no test `{name}`"))
        .collect();
    report(missing);
}
