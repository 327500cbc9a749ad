//! How the writer answers its callers: an answer each, and one wake-up for many of them.
//!
//! To wake a task from another thread is a system call, and after a group's sync there are as many to
//! wake as the group has commands. Each thread that appends from within a runtime therefore has a
//! *relay*, a task of that runtime whose only work is to wake others: the writer wakes the relay,
//! and the relay, already on the right thread, wakes its neighbours for next to nothing.
//!
//! Invariants: every caller is answered or told that there is no answer, and woken then; a caller
//! depends on nobody else but its own runtime (a relay waits for nothing, takes part in nothing, and
//! belongs to the scheduler that has to run the caller's own task next); where there is no such
//! runtime, or none any more, the writer wakes the caller itself.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::runtime::{Handle, Id};

use super::error::AppendError;
use super::event::Appended;

/// Answers after which those who wait for them are woken: they start while the rest is answered.
const WAKES_AT_ONCE: usize = 32;

/// What a caller is told.
pub type Told = Result<Appended, AppendError>;

/// The place of one answer.
enum Slot {
    /// Not there yet; who is to be woken.
    Open(Option<Waker>),
    Told(Told),
    /// It was taken, or will never come.
    Empty,
}

/// The writer's half. Dropped without an answer it tells that there is none.
pub struct Reply {
    slot: Arc<Mutex<Slot>>,
    relay: Option<Arc<Relay>>,
}

/// The caller's half: completes with the answer, or with `None` when there will be none.
pub struct Answer(Arc<Mutex<Slot>>);

/// The two halves of an answer to whoever calls this.
pub fn answer() -> (Reply, Answer) {
    let slot = Arc::new(Mutex::new(Slot::Open(None)));
    let reply = Reply {
        slot: Arc::clone(&slot),
        relay: Relay::here(),
    };
    (reply, Answer(slot))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reply {
    /// Puts the answer in its place; returns who is to be woken.
    fn put(&self, next: Slot) -> Option<Waker> {
        let mut slot = lock(&self.slot);
        match std::mem::replace(&mut *slot, next) {
            Slot::Open(waker) => waker,
            before => {
                *slot = before;
                None
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(waker) = self.put(Slot::Empty) {
            waker.wake();
        }
    }
}

impl Future for Answer {
    type Output = Option<Told>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Told>> {
        let mut slot = lock(&self.0);
        match std::mem::replace(&mut *slot, Slot::Empty) {
            Slot::Told(told) => Poll::Ready(Some(told)),
            Slot::Empty => Poll::Ready(None),
            Slot::Open(before) => {
                let waker = before.filter(|waker| waker.will_wake(context.waker()));
                let waker = waker.unwrap_or_else(|| context.waker().clone());
                *slot = Slot::Open(Some(waker));
                Poll::Pending
            }
        }
    }
}

/// Who is to be woken after a group, by relay. Dropped, it wakes whoever is left.
#[derive(Default)]
pub struct Wakes {
    relays: Vec<(Arc<Relay>, Vec<Waker>)>,
}

impl Wakes {
    /// Answers a caller and has it woken before long.
    pub fn tell(&mut self, mut reply: Reply, told: Told) {
        let Some(waker) = reply.put(Slot::Told(told)) else {
            return;
        };
        let Some(relay) = reply.relay.take() else {
            return waker.wake();
        };
        let known = self.relays.iter_mut();
        match known
            .into_iter()
            .find(|(known, _)| Arc::ptr_eq(known, &relay))
        {
            Some((relay, wakers)) => {
                wakers.push(waker);
                if wakers.len() >= WAKES_AT_ONCE {
                    relay.wake(wakers);
                }
            }
            None => self.relays.push((relay, vec![waker])),
        }
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        for (relay, wakers) in &mut self.relays {
            relay.wake(wakers);
        }
    }
}

/// Wakes tasks of one thread's runtime from within.
struct Relay {
    runtime: Id,
    work: Mutex<Work>,
}

#[derive(Default)]
struct Work {
    /// To be woken. At most one for each command that the writer has taken.
    wakers: Vec<Waker>,
    /// The relay's own task, when it waits.
    task: Option<Waker>,
    /// Its thread has another one now, or ends.
    retired: bool,
    /// The task is gone, and with it perhaps its runtime.
    ended: bool,
}

/// A thread's relay, which ends with it.
struct Here(Arc<Relay>);

impl Drop for Here {
    fn drop(&mut self) {
        let mut work = lock(&self.0.work);
        work.retired = true;
        let task = work.task.take();
        drop(work);
        if let Some(task) = task {
            task.wake();
        }
    }
}

thread_local! {
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

impl Relay {
    /// The relay of this thread and runtime; `None` outside of a runtime's tasks: only for them is
    /// it certain that whoever runs the caller next runs the relay too.
    fn here() -> Option<Arc<Relay>> {
        tokio::task::try_id()?;
        let runtime = Handle::try_current().ok()?;
        let find = |here: &RefCell<Option<Here>>| {
            let mut here = here.borrow_mut();
            if let Some(Here(relay)) = &*here
                && relay.runtime == runtime.id()
                && !lock(&relay.work).ended
            {
                return Arc::clone(relay);
            }
            let relay = Arc::new(Relay {
                runtime: runtime.id(),
                work: Mutex::default(),
            });
            runtime.spawn(Running(Arc::clone(&relay)));
            *here = Some(Here(Arc::clone(&relay)));
            relay
        };
        HERE.try_with(find).ok()
    }

    /// Has `wakers` woken and empties the list.
    fn wake(&self, wakers: &mut Vec<Waker>) {
        if wakers.is_empty() {
            return;
        }
        let mut work = lock(&self.work);
        if work.ended {
            drop(work);
            return wakers.drain(..).for_each(Waker::wake);
        }
        work.wakers.append(wakers);
        // Without one it is about to run and will see the list.
        let task = work.task.take();
        drop(work);
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// The relay's task.
struct Running(Arc<Relay>);

impl Future for Running {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut work = lock(&self.0.work);
        let wakers = std::mem::take(&mut work.wakers);
        work.ended = work.retired;
        let ended = work.ended;
        work.task = (!ended).then(|| context.waker().clone());
        drop(work);
        wakers.into_iter().for_each(Waker::wake);
        if ended {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut work = lock(&self.0.work);
        work.ended = true;
        let wakers = std::mem::take(&mut work.wakers);
        drop(work);
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::task::Wake;
    use std::thread;
    use std::time::Duration;

    use tokio::runtime::Builder;

    use super::*;

    const CALLERS: usize = 100;
    const PATIENCE: Duration = Duration::from_secs(20);

    fn told(commit: u64) -> Told {
        Ok(Appended {
            first_position: commit,
            last_position: commit,
            commit,
            events: Vec::new(),
            replayed: false,
        })
    }

    /// Starts `CALLERS` tasks on a runtime; gives their replies and, later, what they were told.
    fn callers(runtime: &tokio::runtime::Runtime) -> (Vec<Reply>, mpsc::Receiver<Option<u64>>) {
        let (replies, asked) = mpsc::sync_channel(CALLERS);
        let (answers, got) = mpsc::sync_channel(CALLERS);
        for _ in 0..CALLERS {
            let (replies, answers) = (replies.clone(), answers.clone());
            runtime.spawn(async move {
                let (reply, answer) = answer();
                replies.send(reply).expect("asked");
                let told = answer.await.map(|told| told.expect("recorded").commit);
                answers.send(told).expect("told");
            });
        }
        runtime.block_on(async {
            while tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks()
                < CALLERS
            {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        });
        drop(replies);
        (asked.iter().take(CALLERS).collect(), got)
    }

    /// Answers from a thread of its own while the runtime runs, every tenth one by dropping it;
    /// returns what came.
    fn round(runtime: &tokio::runtime::Runtime) -> Vec<Option<u64>> {
        let (replies, got) = callers(runtime);
        let writer = thread::spawn(move || {
            let mut wakes = Wakes::default();
            for (number, reply) in (0..).zip(replies) {
                match number % 10 {
                    9 => drop(reply),
                    _ => wakes.tell(reply, told(number)),
                }
            }
        });
        let collected = runtime.block_on(async {
            let collect = tokio::task::spawn_blocking(move || {
                let next = || got.recv_timeout(PATIENCE).expect("everyone is woken");
                (0..CALLERS).map(|_| next()).collect()
            });
            collect.await.expect("collected")
        });
        writer.join().expect("answered");
        collected
    }

    fn all() -> Vec<Option<u64>> {
        let numbers = 0..CALLERS as u64;
        let mut all: Vec<_> = numbers
            .map(|number| (number % 10 != 9).then_some(number))
            .collect();
        all.sort();
        all
    }

    /// Goal: every caller is woken with its own answer, or with none, on either kind of runtime, one
    /// after the other on the same thread too.
    #[test]
    fn every_caller_of_a_runtime_is_woken_with_its_answer() {
        for _ in 0..3 {
            for mut builder in [Builder::new_current_thread(), Builder::new_multi_thread()] {
                let runtime = builder.worker_threads(2).enable_all().build();
                let mut got = round(&runtime.expect("a runtime"));
                got.sort();
                assert_eq!(got, all());
            }
        }
    }

    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Goal: many callers of one runtime cost the writer few wake-ups. Method: a relay whose task
    /// counts how often it is woken.
    #[test]
    fn a_group_costs_few_wake_ups() {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let id = runtime.handle().id();
        let relay = Arc::new(Relay {
            runtime: id,
            work: Mutex::default(),
        });
        let (own, theirs) = (
            Arc::new(Counter(AtomicUsize::new(0))),
            Arc::new(Counter(AtomicUsize::new(0))),
        );
        let mut task = Running(Arc::clone(&relay));
        let own_waker = Waker::from(Arc::clone(&own));
        let mut context = Context::from_waker(&own_waker);
        assert!(Pin::new(&mut task).poll(&mut context).is_pending());
        let mut wakes = Wakes::default();
        let mut answers = Vec::new();
        for number in 0..WAKES_AT_ONCE as u64 {
            let (mut reply, mut caller) = answer();
            let waker = Waker::from(Arc::clone(&theirs));
            let mut context = Context::from_waker(&waker);
            assert!(Pin::new(&mut caller).poll(&mut context).is_pending());
            reply.relay = Some(Arc::clone(&relay));
            wakes.tell(reply, told(number));
            answers.push(caller);
        }
        drop(wakes);
        assert_eq!(own.0.load(Ordering::Relaxed), 1);
        assert_eq!(theirs.0.load(Ordering::Relaxed), 0);
        assert!(Pin::new(&mut task).poll(&mut context).is_pending());
        assert_eq!(theirs.0.load(Ordering::Relaxed), WAKES_AT_ONCE);
    }

    /// Goal: callers outlive the runtime of their relay. Method: the runtime goes after they asked
    /// and before they are answered.
    #[test]
    fn a_relay_that_is_gone_keeps_nobody_waiting() {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (sent, asked) = mpsc::sync_channel(1);
        runtime.block_on(async {
            let ask = tokio::spawn(async move { sent.send(answer()).expect("asked") });
            ask.await.expect("asked");
        });
        let (reply, mut caller) = asked.recv().expect("asked");
        assert!(reply.relay.is_some(), "asked from within a task");
        let woken = Arc::new(Counter(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        assert!(Pin::new(&mut caller).poll(&mut context).is_pending());
        drop(runtime);
        Wakes::default().tell(reply, told(1));
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        let answered = Pin::new(&mut caller).poll(&mut context);
        assert!(matches!(answered, Poll::Ready(Some(Ok(done))) if done.commit == 1));
    }

    /// Goal: outside of a runtime's tasks nobody but the writer is needed.
    #[test]
    fn a_caller_outside_of_tasks_has_no_relay() {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        assert!(runtime.block_on(async { answer().0.relay.is_none() }));
        assert!(answer().0.relay.is_none());
    }
}
