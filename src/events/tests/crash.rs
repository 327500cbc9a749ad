//! `kill -9` at any moment: what was acknowledged is there.
//!
//! Fault model: the process dies, the machine does not, so the page cache survives. What a power
//! cut does to unsynced files is played through in `damage.rs` with truncated and stale files.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::{assert_index_agrees, everything, note, open, open_small};

const FOLDER: &str = "OC_TEST_CRASH_FOLDER";
/// `true`: with an index of which next to nothing stays in memory.
const SMALL_INDEX: &str = "OC_TEST_CRASH_SMALL_INDEX";
const KILLS: usize = 300;
/// Kills on the same folder, before a new one keeps the checks at each opening short.
const KILLS_PER_FOLDER: usize = 12;
const WRITERS: usize = 6;

/// An acknowledgement as the child printed it.
struct Ack {
    position: u64,
    hash: String,
}

/// Goal: every acknowledged event survives and the chain verifies, wherever the process was killed;
/// and what streams and ids are looked up in has all of it, also when the kill was in the middle of
/// moving it to disk. Method: a child appends from several tasks and reports acknowledgements over a
/// pipe; it is killed after a random time, the log is opened, verified and compared; again, on the
/// same folder. Two folders at a time; every other one with an index of which next to nothing stays
/// in memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_kill() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let halves = [0, 1].map(|half| {
        let folders = (0..KILLS / KILLS_PER_FOLDER).skip(half).step_by(2);
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(half as u64));
        tokio::spawn(async move {
            let mut acknowledged = 0;
            for folder in folders {
                acknowledged += kill_in_one_folder(&mut random, folder / 2 % 2 == 0).await;
            }
            acknowledged
        })
    });
    let mut acknowledged = 0;
    for half in halves {
        acknowledged += half.await.expect("every kill was survived");
    }
    assert!(
        acknowledged > KILLS,
        "the children got hardly anything done: {acknowledged}"
    );
}

/// Returns how many events the children have acknowledged.
async fn kill_in_one_folder(random: &mut StdRng, small: bool) -> usize {
    let dir = tempfile::tempdir().expect("a folder");
    let mut acks = Vec::new();
    for kill in 0..KILLS_PER_FOLDER {
        let delay = Duration::from_micros(random.random_range(0..60_000));
        acks.extend(run_and_kill(dir.path(), delay, small));
        // Not after each kill: a crash must also be able to follow a crash.
        if kill % 3 == 2 || kill + 1 == KILLS_PER_FOLDER {
            compare(dir.path(), &acks, small).await;
        }
    }
    acks.len()
}

async fn compare(dir: &Path, acks: &[Ack], small: bool) {
    let log = if small { open_small(dir) } else { open(dir) };
    log.verify().await.expect("the chain verifies");
    let all = everything(&log).await;
    for ack in acks {
        let event = all.get(usize::try_from(ack.position).expect("small") - 1);
        let event = event.unwrap_or_else(|| panic!("event {} is lost", ack.position));
        let hash = hex::encode(event.content_hash);
        assert_eq!(hash, ack.hash, "event {}", ack.position);
    }
    assert_index_agrees(&log).await;
    log.close().await;
}

/// Starts a child on `dir`, kills it `delay` after it is ready, returns what it acknowledged.
fn run_and_kill(dir: &Path, delay: Duration, small: bool) -> Vec<Ack> {
    let child = Command::new(std::env::current_exe().expect("the test program"))
        .args([
            "--exact",
            "events::tests::crash::child",
            "--ignored",
            "--nocapture",
        ])
        .env(FOLDER, dir)
        .env(SMALL_INDEX, small.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the child starts");
    // Killed and reaped also when something below panics.
    let mut child = Killed(child);
    let mut output = BufReader::new(child.0.stdout.take().expect("its output is a pipe"));
    let mut line = String::new();
    while line.trim() != "ready" {
        line.clear();
        let bytes = output.read_line(&mut line).expect("its output is text");
        assert_ne!(bytes, 0, "the child ended before it was ready");
    }
    // The child's pipe must not fill up meanwhile, so it is read by a thread of its own.
    let reader = std::thread::spawn(move || {
        let mut rest = String::new();
        output.read_to_string(&mut rest).map(|_| rest)
    });
    std::thread::sleep(delay);
    child.kill();
    let rest = reader
        .join()
        .expect("the reader ended")
        .expect("its output is text");
    let whole_lines = rest.rsplit_once('\n').map_or("", |(lines, _cut)| lines);
    whole_lines
        .lines()
        .filter_map(|line| line.strip_prefix("ack ")?.split_once(' '))
        .map(|(position, hash)| Ack {
            position: position.parse().expect("a position"),
            hash: hash.to_owned(),
        })
        .collect()
}

struct Killed(Child);

impl Killed {
    fn kill(&mut self) {
        // Either may fail when it is dead and reaped already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The child: appends until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by what_was_acknowledged_survives_a_kill"]
async fn child() {
    let Some(dir) = std::env::var_os(FOLDER) else {
        return;
    };
    let small = std::env::var_os(SMALL_INDEX).is_some_and(|small| small == "true");
    let dir = Path::new(&dir);
    let log = if small { open_small(dir) } else { open(dir) };
    let say = |line: String| {
        // One write a line, so that lines of different tasks don't mix.
        std::io::stdout()
            .lock()
            .write_all(line.as_bytes())
            .expect("the parent listens");
    };
    say("\nready\n".to_owned());
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let log = log.clone();
            tokio::spawn(async move {
                loop {
                    let append = note(&format!("writer-{writer}"), "x".repeat(500));
                    let done = log.append(append).await.expect("appended");
                    let hash = hex::encode(done.events[0].content_hash);
                    say(format!("ack {} {hash}\n", done.first_position));
                }
            })
        })
        .collect();
    let ended = futures_util::future::select_all(tasks).await;
    panic!("a writer ended: {:?}", ended.0);
}
