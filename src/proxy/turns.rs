//! Turns: the processor time that bodies need, shared fairly between sandboxes.
//!
//! A few kilobytes of a compression bomb hold seconds of work. Whoever works on a body longer than
//! [`FREE_WORK`] takes a turn first; there are as many as processors, so that at most so many
//! tasks with heavy work are ever ready to run, and a task with a little work (another sandbox's
//! small request) waits for one or two turns, not for all that was asked before it.
//!
//! Invariants:
//! - Work-conserving: a turn is free only while nobody waits.
//! - Of the sandboxes that wait, the one that used least processor time recently is next; within a
//!   sandbox, whoever came first. Idle time earns no credit, and time used while nobody waited
//!   weighs [`AHEAD_MAX`] at most.
//! - A turn given to a body that nobody polls is given to another after [`UNUSED_MAX`]: a peer
//!   that stops reading can't keep it.
//! - Without contention a step of work costs three atomic operations and no lock.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Work on one body before it takes turns: small bodies never do.
const FREE_WORK: Duration = Duration::from_micros(50);
/// Work after which a turn ends although there is more to do.
pub(crate) const TURN_TIME_MAX: Duration = Duration::from_millis(1);
/// How far behind the others a sandbox begins that worked while nobody waited.
const AHEAD_MAX: Duration = Duration::from_millis(50);
/// How long a turn may lie unused before another gets it.
const UNUSED_MAX: Duration = Duration::from_millis(20);
/// Bytes that the bodies of one sandbox may hold at once beyond their buffers: windows of
/// decoders, messages being gathered.
const HELD_BYTES_MAX: usize = 512 * 1024 * 1024;

/// All turns there are and who waits for them.
struct Turns {
    free: AtomicUsize,
    waiting: AtomicUsize,
    line: Mutex<Line>,
}

#[derive(Default)]
struct Line {
    /// Sandboxes with bodies that wait; few, so that a walk over them is cheap.
    queues: Vec<Queue>,
    /// Given, but not yet begun.
    given: Vec<(Arc<Ticket>, Instant)>,
    /// Time used by the last sandbox that was served, when it was.
    floor_ns: u64,
}

struct Queue {
    owner: Arc<Owner>,
    tickets: VecDeque<Arc<Ticket>>,
    left: usize,
}

struct Owner {
    turns: Arc<Turns>,
    used_ns: AtomicU64,
    held_bytes: AtomicUsize,
}

/// A body's place in the line. Its state changes under the line's lock only.
struct Ticket {
    owner: Arc<Owner>,
    state: AtomicU8,
    waker: Mutex<Option<Waker>>,
}

const AWAY: u8 = 0;
const QUEUED: u8 = 1;
const GIVEN: u8 = 2;

/// One sandbox's share of the processors and of the memory for bodies.
#[derive(Clone)]
pub(crate) struct Share(Arc<Owner>);

impl Share {
    /// A share of the process's processors.
    pub fn new() -> Self {
        static TURNS: OnceLock<Arc<Turns>> = OnceLock::new();
        let turns = TURNS.get_or_init(|| {
            Turns::new(std::thread::available_parallelism().map_or(1, usize::from))
        });
        Self::of(turns)
    }

    fn of(turns: &Arc<Turns>) -> Self {
        Self(Arc::new(Owner {
            turns: turns.clone(),
            used_ns: AtomicU64::new(0),
            held_bytes: AtomicUsize::new(0),
        }))
    }

    /// The share of work that belongs to no sandbox.
    pub fn nobodys() -> Self {
        static SHARE: OnceLock<Share> = OnceLock::new();
        SHARE.get_or_init(Self::new).clone()
    }

    /// Sets `bytes` of memory aside until the answer is dropped; `None` when the sandbox holds too
    /// much already.
    pub fn hold(&self, bytes: usize) -> Option<Held> {
        let room = |held: usize| Some(held + bytes).filter(|&held| held <= HELD_BYTES_MAX);
        let held = &self.0.held_bytes;
        held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
            .ok()?;
        Some(Held {
            share: self.clone(),
            bytes,
        })
    }

    /// Whether a quarter of the memory is taken: time to ask for less.
    pub fn is_short_of_memory(&self) -> bool {
        self.0.held_bytes.load(Ordering::Relaxed) > HELD_BYTES_MAX / 4
    }
}

impl Default for Share {
    fn default() -> Self {
        Self::new()
    }
}

/// Memory set aside.
pub(crate) struct Held {
    share: Share,
    bytes: usize,
}

impl Held {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sets more aside; `false` when there is none.
    pub fn grow(&mut self, bytes: usize) -> bool {
        let more = self.share.hold(bytes);
        if let Some(mut more) = more {
            self.bytes += std::mem::take(&mut more.bytes);
            return true;
        }
        false
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let held = &self.share.0.held_bytes;
        held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Turns {
    fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            free: AtomicUsize::new(count),
            waiting: AtomicUsize::new(0),
            line: Mutex::default(),
        })
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Nothing in there can be left half-done by a panic: it holds no code of others.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_free(&self) -> bool {
        let less = |free: usize| free.checked_sub(1);
        self.free
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
            .is_ok()
    }

    fn take(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0 && self.take_free()
    }

    // Whoever waits announces it before looking for a free turn, and whoever gives one back frees
    // it before looking for somebody who waits: one of the two sees the other.
    fn give_back(&self) {
        self.free.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.hand_out(&mut self.line());
        }
    }

    fn hand_out(&self, line: &mut Line) {
        while !line.queues.is_empty() && self.take_free() {
            let Some(ticket) = line.next() else {
                self.free.fetch_add(1, Ordering::SeqCst);
                return;
            };
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            // Counted as used in full until it is known, lest one sandbox gets all turns at once.
            let used = &ticket.owner.used_ns;
            used.fetch_add(nanos(TURN_TIME_MAX), Ordering::Relaxed);
            ticket.state.store(GIVEN, Ordering::SeqCst);
            line.given.push((ticket.clone(), Instant::now()));
            ticket.wake();
        }
    }

    fn queue(&self, ticket: &Arc<Ticket>) {
        let mut line = self.line();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        ticket.state.store(QUEUED, Ordering::SeqCst);
        line.push(ticket.clone());
        self.hand_out(&mut line);
    }

    /// Begins a turn that was given.
    fn begin(&self, ticket: &Arc<Ticket>) -> bool {
        self.line().begin(ticket)
    }

    fn leave(&self, ticket: &Arc<Ticket>) {
        let mut line = self.line();
        match ticket.state.load(Ordering::SeqCst) {
            QUEUED => {
                ticket.state.store(AWAY, Ordering::SeqCst);
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                line.remove(ticket);
            }
            GIVEN => {
                line.begin(ticket);
                ticket.owner.correct(Duration::ZERO);
                self.free.fetch_add(1, Ordering::SeqCst);
                self.hand_out(&mut line);
            }
            _ => {}
        }
    }

    /// Takes turns back that lie unused.
    fn reclaim(&self, now: Instant) {
        let mut line = self.line();
        let stale = |since: Instant| now.saturating_duration_since(since) >= UNUSED_MAX;
        for (ticket, _) in line.given.extract_if(.., |(_, since)| stale(*since)) {
            ticket.state.store(AWAY, Ordering::SeqCst);
            ticket.owner.correct(Duration::ZERO);
            self.free.fetch_add(1, Ordering::SeqCst);
        }
        self.hand_out(&mut line);
    }
}

impl Line {
    fn push(&mut self, ticket: Arc<Ticket>) {
        let same = |queue: &&mut Queue| Arc::ptr_eq(&queue.owner, &ticket.owner);
        if let Some(queue) = self.queues.iter_mut().find(same) {
            return queue.tickets.push_back(ticket);
        }
        let owner = ticket.owner.clone();
        let used = owner.used_ns.load(Ordering::Relaxed);
        let most = self.floor_ns.saturating_add(nanos(AHEAD_MAX));
        let used = used.clamp(self.floor_ns, most);
        owner.used_ns.store(used, Ordering::Relaxed);
        self.queues.push(Queue {
            owner,
            tickets: VecDeque::from([ticket]),
            left: 0,
        });
    }

    fn next(&mut self) -> Option<Arc<Ticket>> {
        loop {
            let used = |queue: &Queue| queue.owner.used_ns.load(Ordering::Relaxed);
            let (at, _) = self
                .queues
                .iter()
                .enumerate()
                .min_by_key(|(_, queue)| used(queue))?;
            let queue = self.queues.get_mut(at)?;
            let ticket = queue.tickets.pop_front();
            let waits = |ticket: &Arc<Ticket>| ticket.state.load(Ordering::SeqCst) == QUEUED;
            let found = ticket.filter(waits);
            if found.is_none() {
                queue.left = queue.left.saturating_sub(1);
            }
            let now = used(queue);
            if queue.tickets.is_empty() {
                self.queues.swap_remove(at);
            }
            if found.is_some() {
                self.floor_ns = self.floor_ns.max(now);
                return found;
            }
        }
    }

    fn begin(&mut self, ticket: &Arc<Ticket>) -> bool {
        let at = self.given.iter().position(|(g, _)| Arc::ptr_eq(g, ticket));
        if let Some(at) = at {
            self.given.swap_remove(at);
            ticket.state.store(AWAY, Ordering::SeqCst);
        }
        at.is_some()
    }

    /// Lets go of tickets whose bodies are gone, when they are half of their queue: each costs as
    /// much as it saves.
    fn remove(&mut self, ticket: &Arc<Ticket>) {
        let same = |queue: &Queue| Arc::ptr_eq(&queue.owner, &ticket.owner);
        let Some(at) = self.queues.iter().position(same) else {
            return;
        };
        if let Some(queue) = self.queues.get_mut(at) {
            queue.left += 1;
            if queue.left * 2 >= queue.tickets.len() {
                let waits = |ticket: &Arc<Ticket>| ticket.state.load(Ordering::SeqCst) == QUEUED;
                queue.tickets.retain(waits);
                queue.left = 0;
            }
            if queue.tickets.is_empty() {
                self.queues.swap_remove(at);
            }
        }
    }
}

impl Owner {
    fn charge(&self, work: Duration) {
        self.used_ns.fetch_add(nanos(work), Ordering::Relaxed);
    }

    /// A turn that was counted in full took `work`.
    fn correct(&self, work: Duration) {
        let real = |used: u64| {
            Some(
                used.saturating_sub(nanos(TURN_TIME_MAX))
                    .saturating_add(nanos(work)),
            )
        };
        let _ = self
            .used_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, real);
    }
}

impl Ticket {
    fn wake(&self) {
        let waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waker) = &*waker {
            after_io(waker);
        }
    }

    fn wait(&self, cx: &Context<'_>) {
        let mut waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }
}

/// Wakes a task once its runtime has looked for bytes that arrived: a runtime with turn after turn
/// to run would else look for them only now and then.
fn after_io(waker: &Waker) {
    let yielding = std::pin::pin!(tokio::task::yield_now());
    let _ = yielding.poll(&mut Context::from_waker(waker));
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// One body's turns.
pub(crate) struct Turn {
    share: Share,
    /// Work done without a turn.
    free: Duration,
    /// Work done since the last pause.
    slice: Duration,
    begun: Option<Begun>,
    ticket: Option<Arc<Ticket>>,
    queued: bool,
    patience: Option<Pin<Box<tokio::time::Sleep>>>,
}

#[derive(Clone, Copy)]
struct Begun {
    at: Instant,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Free,
    Taken,
    Given,
}

impl Turn {
    pub fn new(share: Share) -> Self {
        Self {
            share,
            free: Duration::ZERO,
            slice: Duration::ZERO,
            begun: None,
            ticket: None,
            queued: false,
            patience: None,
        }
    }

    /// Waits until a step of work may begin; [`end`](Self::end) follows in the same poll.
    pub fn poll_begin(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let turns = &self.share.0.turns;
        let kind = if self.queued {
            if !self.poll_given(cx) {
                return Poll::Pending;
            }
            Kind::Given
        } else if self.free < FREE_WORK {
            Kind::Free
        } else if self.slice < TURN_TIME_MAX && turns.take() {
            Kind::Taken
        } else {
            self.slice = Duration::ZERO;
            let ticket = self.ticket.get_or_insert_with(|| {
                Arc::new(Ticket {
                    owner: self.share.0.clone(),
                    state: AtomicU8::new(AWAY),
                    waker: Mutex::default(),
                })
            });
            ticket.wait(cx);
            turns.queue(ticket);
            self.queued = true;
            self.arm(cx);
            // Even where a turn was given at once: other tasks of this thread come first.
            return Poll::Pending;
        };
        self.begun = Some(Begun {
            at: Instant::now(),
            kind,
        });
        Poll::Ready(())
    }

    /// Whether the turn that was queued for is there.
    fn poll_given(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(ticket) = self.ticket.clone() else {
            self.queued = false;
            return false;
        };
        let turns = self.share.0.turns.clone();
        ticket.wait(cx);
        loop {
            match ticket.state.load(Ordering::SeqCst) {
                GIVEN if turns.begin(&ticket) => {
                    self.queued = false;
                    self.patience = None;
                    return true;
                }
                // Given to another meanwhile.
                AWAY => turns.queue(&ticket),
                GIVEN => {}
                _ if self.is_patient(cx) => return false,
                _ => {
                    turns.reclaim(Instant::now());
                    self.arm(cx);
                    if ticket.state.load(Ordering::SeqCst) == QUEUED {
                        return false;
                    }
                }
            }
        }
    }

    fn arm(&mut self, cx: &mut Context<'_>) {
        if tokio::runtime::Handle::try_current().is_ok() {
            let mut patience = Box::pin(tokio::time::sleep(UNUSED_MAX));
            // Asked once, so that it wakes; it can't be over yet.
            let _ = patience.as_mut().poll(cx);
            self.patience = Some(patience);
        }
    }

    fn is_patient(&mut self, cx: &mut Context<'_>) -> bool {
        match &mut self.patience {
            Some(patience) => patience.as_mut().poll(cx).is_pending(),
            None => true,
        }
    }

    /// The step of work is done.
    pub fn end(&mut self) {
        let Some(begun) = self.begun.take() else {
            return;
        };
        let work = begun.at.elapsed();
        self.slice += work;
        match begun.kind {
            Kind::Free => {
                self.free += work;
                self.share.0.charge(work);
            }
            Kind::Taken => {
                self.share.0.charge(work);
                self.share.0.turns.give_back();
            }
            Kind::Given => {
                self.share.0.correct(work);
                self.share.0.turns.give_back();
            }
        }
    }

    /// There is nothing to do until more bytes come.
    pub fn pause(&mut self) {
        self.slice = Duration::ZERO;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // A step that panicked must not keep its turn.
        self.end();
        if let Some(ticket) = self.ticket.take().filter(|_| self.queued) {
            self.share.0.turns.leave(&ticket);
        }
    }
}
