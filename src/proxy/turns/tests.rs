use std::sync::atomic::AtomicUsize;

use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::proxy::body::{StreamError, Transform, TransformedBody, Work};
use crate::proxy::policy::Policy;
use crate::proxy::tally::Tally;
use crate::proxy::websocket::{Relay, Terms};

/// A body whose free work is used up.
fn worker(share: &Share) -> Turn {
    let mut turn = Turn::new(share.clone());
    turn.free = FREE_WORK;
    turn
}

/// Asks for a turn and, when it is there, uses it up; whether it was.
fn work(turn: &mut Turn) -> bool {
    let began = turn.poll_begin(&mut Context::from_waker(Waker::noop()));
    if began.is_pending() {
        return false;
    }
    let begun = turn.begun.as_mut().unwrap();
    begun.at = begun.at.checked_sub(TURN_TIME_MAX).unwrap();
    turn.end();
    true
}

fn at_rest(turns: &Turns, count: usize) {
    let line = turns.line();
    assert_eq!(turns.free.load(Ordering::SeqCst), count);
    assert_eq!(turns.waiting.load(Ordering::SeqCst), 0);
    assert!(line.given.is_empty() && line.queues.is_empty());
}

/// Goal: a sandbox with fifty bodies that never end delays another's by a turn or two, at first
/// and ever after. Method: turns are counted, not time.
#[test]
fn another_sandbox_waits_for_a_turn_or_two() {
    for processors in [1, 2] {
        let turns = Turns::new(processors);
        let (hog, other) = (Share::of(&turns), Share::of(&turns));
        let mut hogs: Vec<Turn> = (0..50).map(|_| worker(&hog)).collect();
        let mut served = [0usize; 50];
        let round = |hogs: &mut Vec<Turn>, served: &mut [usize; 50]| {
            let mut done = 0;
            for (turn, served) in hogs.iter_mut().zip(served) {
                let now = usize::from(work(turn));
                *served += now;
                done += now;
            }
            done
        };
        for _ in 0..200 {
            round(&mut hogs, &mut served);
        }
        // Within a sandbox whoever came first is next.
        let (least, most) = (served.iter().min().unwrap(), served.iter().max().unwrap());
        assert!(*least > 0 && most - least <= processors, "{served:?}");

        let mut late = worker(&other);
        let mut waited = 0;
        for turn in 0..40 {
            let mut between = 0;
            while !work(&mut late) {
                // One at a time, so that it is seen when the other's turn comes.
                between += hogs.iter_mut().position(work).map_or(0, |_| 1);
                assert!(between < 100, "never served");
            }
            waited += between;
            assert!(between <= 2 * processors, "turn {turn} after {between}");
        }
        assert!(waited >= 20, "there was no contention");
        drop((hogs, late));
        at_rest(&turns, processors);
    }
}

/// What a sandbox used while nobody waited weighs little later; what it did not use, nothing.
#[test]
fn the_past_weighs_little() {
    let turns = Turns::new(1);
    let (old, new) = (Share::of(&turns), Share::of(&turns));
    old.0.charge(Duration::from_secs(3600));
    let (mut one, mut two) = (worker(&old), worker(&new));
    let mut order = Vec::new();
    for _ in 0..400 {
        order.extend(work(&mut one).then_some('o'));
        order.extend(work(&mut two).then_some('n'));
    }
    let old_turns = order.iter().filter(|&&who| who == 'o').count();
    assert!(
        (100..250).contains(&old_turns),
        "{old_turns} of {}",
        order.len()
    );
}

/// Small bodies take no turn, so that they wait for none.
#[test]
fn a_small_body_takes_no_turn() {
    let turns = Turns::new(1);
    let share = Share::of(&turns);
    let mut hog = worker(&share);
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(hog.poll_begin(cx).is_ready());
    let mut small = Turn::new(share.clone());
    assert!(small.poll_begin(cx).is_ready());
    small.end();
    let mut large = worker(&share);
    assert!(large.poll_begin(cx).is_pending());
    hog.end();
    assert!(large.poll_begin(cx).is_ready());
    large.end();
    drop((hog, small, large));
    at_rest(&turns, 1);
}

/// Goal: a body that nobody polls, because its peer stopped reading, does not keep its turn.
#[test]
fn a_turn_that_lies_unused_is_given_to_another() {
    let turns = Turns::new(1);
    let share = Share::of(&turns);
    let cx = &mut Context::from_waker(Waker::noop());
    let mut first = worker(&share);
    assert!(first.poll_begin(cx).is_ready());
    let (mut idle, mut next) = (worker(&share), worker(&share));
    assert!(idle.poll_begin(cx).is_pending());
    assert!(next.poll_begin(cx).is_pending());
    first.end();
    // It is `idle`'s now, and it does not come for it.
    assert!(next.poll_begin(cx).is_pending());
    turns.reclaim(Instant::now());
    assert!(next.poll_begin(cx).is_pending());
    turns.reclaim(Instant::now() + UNUSED_MAX);
    assert!(next.poll_begin(cx).is_ready());
    next.end();
    assert!(idle.poll_begin(cx).is_ready());
    idle.end();
    drop((first, idle, next));
    at_rest(&turns, 1);
}

/// Bodies that go away in any state leave no turn behind.
#[test]
fn turns_of_bodies_that_are_dropped_come_back() {
    let turns = Turns::new(3);
    let shares: Vec<Share> = (0..4).map(|_| Share::of(&turns)).collect();
    let cx = &mut Context::from_waker(Waker::noop());
    let mut open: Vec<Turn> = Vec::new();
    for step in 0..20_000usize {
        match rand::random_range(0..4) {
            0 => open.push(worker(&shares[step % 4])),
            1 if !open.is_empty() => {
                let at = rand::random_range(0..open.len());
                drop(open.swap_remove(at));
            }
            _ if !open.is_empty() => {
                let at = rand::random_range(0..open.len());
                if let Some(turn) = open.get_mut(at)
                    && turn.poll_begin(cx).is_ready()
                    && rand::random_bool(0.9)
                {
                    turn.end();
                    turn.slice = TURN_TIME_MAX * u32::from(rand::random_bool(0.5));
                } else if open.get(at).is_some_and(|turn| turn.begun.is_some()) {
                    // As after a panic in the middle of a step.
                    drop(open.swap_remove(at));
                }
            }
            _ => turns.reclaim(Instant::now() + UNUSED_MAX),
        }
    }
    drop(open);
    at_rest(&turns, 3);
}

/// Never ends, and takes a third of a turn for each step.
struct Busy(Arc<AtomicUsize>);
impl Transform for Busy {
    fn push(&mut self, _input: &[u8], _out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        while begun.elapsed() < TURN_TIME_MAX / 3 {
            std::hint::spin_loop();
        }
        Ok(())
    }
    fn has_more(&self) -> bool {
        true
    }
    fn finish(&mut self, _out: &mut Vec<u8>) -> Result<(), StreamError> {
        Ok(())
    }
}

/// Goal: on one thread with fifty endless bodies of another sandbox, a task that needs ten
/// wake-ups and a body waits for some turns each time, not for all fifty. Method: steps of the
/// others are counted.
#[tokio::test]
async fn a_task_with_little_work_is_not_lost_among_heavy_bodies() {
    const WAKES: usize = 10;
    let turns = Turns::new(2);
    let body = |share: &Share, transform: Box<dyn Transform>| {
        let tally = Arc::new(Tally::of(share.clone()));
        let inner = crate::proxy::refusal::full("x");
        TransformedBody::new(inner, Work { transform, tally }, false)
    };
    let (hog, other) = (Share::of(&turns), Share::of(&turns));
    let steps = Arc::new(AtomicUsize::new(0));
    let hogs: Vec<_> = (0..50)
        .map(|_| tokio::spawn(body(&hog, Box::new(Busy(steps.clone()))).collect()))
        .collect();
    while steps.load(Ordering::Relaxed) < 300 {
        tokio::task::yield_now().await;
    }
    let before = steps.load(Ordering::Relaxed);
    for _ in 0..WAKES {
        tokio::task::yield_now().await;
    }
    let small = body(&other, Box::new(Upper)).collect().await.unwrap();
    assert_eq!(small.to_bytes(), "X");
    let meanwhile = steps.load(Ordering::Relaxed) - before;
    // Two turns of three steps (one more where a step began early) for each time it slept.
    assert!(meanwhile <= (WAKES + 1) * 2 * 4, "{meanwhile} steps");
    for hog in hogs {
        hog.abort();
    }
}

struct Upper;
impl Transform for Upper {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        out.extend(input.to_ascii_uppercase());
        Ok(())
    }
    fn finish(&mut self, _out: &mut Vec<u8>) -> Result<(), StreamError> {
        Ok(())
    }
}

/// Goal: a WebSocket's work waits while all turns are another's. Method: the one turn there is is
/// held, and a message that needs more than its free work gets no further.
#[tokio::test]
async fn websockets_take_turns() {
    let turns = Turns::new(1);
    let mut hog = worker(&Share::of(&turns));
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(hog.poll_begin(cx).is_ready());

    let policy = Arc::new(Policy::new(Vec::new(), Vec::new(), true, true));
    let (_policies, watched) = tokio::sync::watch::channel(Some(policy));
    let terms = Terms {
        policy: watched,
        rules: |policy: &Policy| Ok(policy.rules_for(&"a.test".parse().unwrap(), true, false)),
        announce: Box::new(|_| Box::pin(std::future::ready(Ok(())))),
        announced: Default::default(),
        tally: Arc::new(Tally::of(Share::of(&turns))),
        up: Arc::default(),
        down: Arc::default(),
    };
    let (program, near) = tokio::io::duplex(1024);
    let (mut host, far) = tokio::io::duplex(1024);
    tokio::spawn(async move { Relay::plain().run(near, far, terms).await });
    let sending = tokio::spawn(async move {
        let mut program = program;
        const LENGTH: usize = 4 * 1024 * 1024;
        let head = [
            &[0x82, 0x80 | 127][..],
            &(LENGTH as u64).to_be_bytes(),
            &[0; 4],
        ]
        .concat();
        program.write_all(&head).await.unwrap();
        program.write_all(&vec![b'x'; LENGTH]).await.unwrap();
        program
    });
    let came = Arc::new(AtomicUsize::new(0));
    let counted = came.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(size @ 1..) = host.read(&mut buffer).await {
            counted.fetch_add(size, Ordering::SeqCst);
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(came.load(Ordering::SeqCst) < 1024 * 1024, "{came:?}");
    assert!(!sending.is_finished());
    hog.end();
    let _program = tokio::time::timeout(Duration::from_secs(30), sending).await;
    assert!(_program.is_ok(), "{came:?}");
}
