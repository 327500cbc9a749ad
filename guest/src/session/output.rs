//! A session's output: one writer (the pump), any number of readers, one buffer.
//!
//! Invariants: there is no queue per reader. Each reader is a position in the scrollback, and the
//! pump reads from the process only as much as drops no byte an attached reader has yet to see, so
//! memory is the scrollback whatever the number of readers. Until the first reader comes the process is
//! held back for [`FIRST_READER_MAX`] at most; with nobody attached after that, nothing holds it back. With readers the slowest one does, as at the end of any pipe, but a reader that
//! takes nothing for [`READER_STALL_MAX`] while the process waits for it is dropped: one frozen
//! client can't stop a process others depend on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::scrollback::{Scrollback, Stream};

/// How long a reader may hold the process back without taking a byte.
pub const READER_STALL_MAX: Duration = Duration::from_secs(30);

/// How long the place of a session's first reader is kept: who starts a session and then attaches to it
/// gets all of its output, and what nobody comes for is held back for so long, once.
pub const FIRST_READER_MAX: Duration = Duration::from_secs(5);

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The process's own code, 128 + signal, or -1 after a timeout.
    pub code: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
    /// The session's own time limit ended it.
    pub timed_out: bool,
}

/// What a reader is given, in this order: data, `ReplayEnd`, data, `Exit`.
pub enum Piece {
    /// To an observer: where in the output the next data begins. First, and after a gap.
    At(u64),
    Data(Stream, Vec<u8>),
    ReplayEnd,
    Exit(Exit),
    /// The reader took nothing for too long and lost its place; nothing follows.
    Dropped,
}

/// The place held for the first reader.
const RESERVED: u64 = 0;

struct State {
    scrollback: Scrollback,
    positions: HashMap<u64, u64>,
    next_reader: u64,
    exit: Option<(Exit, Instant)>,
}

impl State {
    /// How many bytes may be added without dropping one a reader still needs.
    fn room(&self) -> usize {
        let Some(slowest) = self.positions.values().min() else {
            return oc_guest::OUTPUT_BYTES_MAX;
        };
        if self.scrollback.crowded() && *slowest < self.scrollback.second_segment_start() {
            return 0;
        }
        let unread = self.scrollback.end().saturating_sub(*slowest);
        let room = self.scrollback.bytes_max().saturating_sub(unread);
        oc_guest::OUTPUT_BYTES_MAX.min(room as usize)
    }
}

/// See the module.
pub struct Output {
    state: Mutex<State>,
    /// Wakes the readers.
    grown: watch::Sender<()>,
    /// Wakes the pump.
    taken: Notify,
    /// How long the first reader's place may hold the process back.
    first_reader_max: Duration,
}

impl Output {
    /// Every byte is held until the first reader comes, or the process has waited so long for it.
    pub fn new(bytes_max: u32, first_reader_max: Duration) -> Self {
        let positions = HashMap::from([(RESERVED, 0)]);
        let scrollback = Scrollback::new(bytes_max);
        let state = State {
            scrollback,
            positions,
            next_reader: RESERVED + 1,
            exit: None,
        };
        Self {
            state: Mutex::new(state),
            grown: watch::Sender::new(()),
            taken: Notify::new(),
            first_reader_max,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock; a poisoned state is still a consistent one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes may be taken from the process now; 0 while a reader has to catch up.
    pub fn room(&self) -> usize {
        self.state().room()
    }

    /// Waits until a reader took something, after [`Output::room`] answered 0. Readers that stand
    /// in the way and stall are dropped.
    pub async fn room_made(&self) {
        let stall_max = match self.state().positions.contains_key(&RESERVED) {
            true => self.first_reader_max,
            false => READER_STALL_MAX,
        };
        if tokio::time::timeout(stall_max, self.taken.notified())
            .await
            .is_err()
        {
            self.drop_slowest();
        }
    }

    fn drop_slowest(&self) {
        let mut state = self.state();
        if let Some(slowest) = state.positions.values().min().copied() {
            state.positions.retain(|_, position| *position != slowest);
        }
        drop(state);
        self.grown.send_replace(());
    }

    /// Adds what the process wrote.
    pub fn append(&self, stream: Stream, data: &[u8]) {
        self.state().scrollback.push(stream, data);
        self.grown.send_replace(());
    }

    /// Nothing follows; every reader gets `exit` after the last byte.
    pub fn finish(&self, exit: Exit) {
        self.state().exit = Some((exit, Instant::now()));
        self.grown.send_replace(());
    }

    /// The exit, once all output is in.
    pub fn exit(&self) -> Option<Exit> {
        self.state().exit.map(|(exit, _)| exit)
    }

    /// How long ago the output finished.
    pub fn finished_for(&self) -> Option<Duration> {
        self.state().exit.map(|(_, at)| at.elapsed())
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        let state = self.state();
        state.scrollback.end() - state.scrollback.start()
    }

    /// A reader that starts with the scrollback.
    pub fn reader(self: &Arc<Self>) -> Reader {
        let grown = self.grown.subscribe();
        let mut state = self.state();
        let id = state.next_reader;
        state.next_reader += 1;
        let position = state.scrollback.start();
        state.positions.remove(&RESERVED);
        state.positions.insert(id, position);
        let replay_until = Some(state.scrollback.end());
        drop(state);
        // Who waits for a first reader waits for this one now, with the patience that readers get.
        self.taken.notify_one();
        Reader {
            output: self.clone(),
            place: Place::Held(id),
            replay_until,
            grown,
        }
    }

    /// A reader that starts with the scrollback, holds nothing back and misses what leaves the
    /// scrollback before it was taken.
    pub fn observer(self: &Arc<Self>) -> Reader {
        let grown = self.grown.subscribe();
        let state = self.state();
        let (start, end) = (state.scrollback.start(), state.scrollback.end());
        drop(state);
        Reader {
            output: self.clone(),
            place: Place::Own(start, false),
            replay_until: Some(end),
            grown,
        }
    }
}

/// Where a reader is.
enum Place {
    /// In the output's own table, by this number: what comes next waits for the reader.
    Held(u64),
    /// Here: nothing waits. Whether the observer knows of the place.
    Own(u64, bool),
}

/// One attached client's view of the output.
pub struct Reader {
    output: Arc<Output>,
    place: Place,
    replay_until: Option<u64>,
    grown: watch::Receiver<()>,
}

impl Reader {
    /// The next piece; waits for the process when there is none. Cancel safe.
    pub async fn next(&mut self) -> Piece {
        loop {
            self.grown.mark_unchanged();
            if let Some(piece) = self.take() {
                return piece;
            }
            // The sender lives in the output this reader holds.
            let _ = self.grown.changed().await;
        }
    }

    fn take(&mut self) -> Option<Piece> {
        let mut state = self.output.state();
        let position = match self.place {
            Place::Held(id) => match state.positions.get(&id) {
                Some(position) => *position,
                None => return Some(Piece::Dropped),
            },
            Place::Own(position, known) => {
                let start = state.scrollback.start();
                if !known || position < start {
                    let position = position.max(start);
                    self.place = Place::Own(position, true);
                    return Some(Piece::At(position));
                }
                position
            }
        };
        if self.replay_until.is_some_and(|until| position >= until) {
            self.replay_until = None;
            return Some(Piece::ReplayEnd);
        }
        if let Some((stream, data)) = state.scrollback.read(position) {
            // The replay ends exactly where the stream stood when the client attached.
            let replay = self.replay_until.map_or(u64::MAX, |until| until - position);
            let len = data
                .len()
                .min(usize::try_from(replay).unwrap_or(usize::MAX));
            let piece = data.get(..len).unwrap_or(data).to_vec();
            let next = position + piece.len() as u64;
            match &mut self.place {
                Place::Held(id) => drop(state.positions.insert(*id, next)),
                Place::Own(own, _) => *own = next,
            }
            drop(state);
            self.output.taken.notify_one();
            return Some(Piece::Data(stream, piece));
        }
        state.exit.map(|(exit, _)| Piece::Exit(exit))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Place::Held(id) = self.place {
            self.output.state().positions.remove(&id);
            self.output.taken.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest scrollback a session has.
    const BYTES_MAX: usize = 2 * oc_guest::OUTPUT_BYTES_MAX;
    static CHUNK: [u8; oc_guest::OUTPUT_BYTES_MAX] = [b'x'; oc_guest::OUTPUT_BYTES_MAX];

    fn output() -> Arc<Output> {
        Arc::new(Output::new(BYTES_MAX as u32, FIRST_READER_MAX))
    }

    /// One whose first reader has come and gone.
    fn left() -> Arc<Output> {
        let output = output();
        drop(output.reader());
        output
    }

    /// Appends a chunk when there is room for it, as the pump does.
    fn pumped(output: &Output) -> bool {
        let room = output.room();
        output.append(Stream::Stdout, CHUNK.get(..room).unwrap());
        room > 0
    }

    fn data(piece: Piece) -> usize {
        match piece {
            Piece::Data(_, data) => data.len(),
            _ => panic!("not data"),
        }
    }

    /// Goal: nobody attached holds nothing back; a reader does, and what it has not read is kept.
    #[tokio::test]
    async fn only_readers_hold_the_process_back() {
        let output = left();
        assert!((0..10).all(|_| pumped(&output)));
        assert_eq!(output.bytes(), BYTES_MAX as u64);
        let mut reader = output.reader();
        assert!(!pumped(&output));
        assert_eq!(data(reader.next().await), CHUNK.len());
        assert!(pumped(&output) && !pumped(&output));
        assert_eq!(data(reader.next().await), CHUNK.len());
        assert!(matches!(reader.next().await, Piece::ReplayEnd));
        drop(reader);
        assert!((0..10).all(|_| pumped(&output)));
    }

    /// Goal: one frozen client is dropped after its time; the other one misses nothing.
    #[tokio::test(start_paused = true)]
    async fn a_stalled_reader_is_dropped() {
        let output = left();
        let (mut frozen, mut live) = (output.reader(), output.reader());
        assert!(matches!(live.next().await, Piece::ReplayEnd));
        let mut seen = 0;
        while pumped(&output) {
            seen += data(live.next().await);
        }
        let before = tokio::time::Instant::now();
        output.room_made().await;
        assert!(
            before.elapsed() < READER_STALL_MAX,
            "the live reader's progress counts"
        );
        output.room_made().await;
        assert!(before.elapsed() >= READER_STALL_MAX);
        assert!(pumped(&output));
        seen += data(live.next().await);
        assert_eq!(seen, BYTES_MAX + CHUNK.len());
        assert!(matches!(frozen.next().await, Piece::Dropped));
    }

    /// Goal: a session's first output waits for its first reader, though not for ever.
    #[tokio::test(start_paused = true)]
    async fn the_first_place_is_reserved() {
        let held = output();
        while pumped(&held) {}
        let mut reader = held.reader();
        assert_eq!(
            data(reader.next().await) + data(reader.next().await),
            BYTES_MAX
        );
        assert!(pumped(&held));

        let abandoned = output();
        while pumped(&abandoned) {}
        let before = tokio::time::Instant::now();
        abandoned.room_made().await;
        assert!(before.elapsed() >= FIRST_READER_MAX);
        assert!((0..10).all(|_| pumped(&abandoned)));
    }

    /// Goal: an observer holds nothing back, misses what it doesn't take and is told how much, and ends
    /// with the exit.
    #[tokio::test]
    async fn an_observer_holds_nothing_back() {
        let output = left();
        let mut observer = output.observer();
        assert!(matches!(observer.next().await, Piece::At(0)));
        assert!(matches!(observer.next().await, Piece::ReplayEnd));
        assert!(pumped(&output));
        assert_eq!(data(observer.next().await), CHUNK.len());
        assert!((0..9).all(|_| pumped(&output)));
        output.append(Stream::Stderr, b"last");
        output.finish(Exit {
            code: 3,
            signal: 0,
            timed_out: false,
        });
        let Piece::At(at) = observer.next().await else {
            panic!("the gap is told")
        };
        let mut seen = 0;
        let exit = loop {
            match observer.next().await {
                Piece::Data(_, data) => seen += data.len(),
                Piece::Exit(exit) => break exit,
                _ => panic!("nothing else comes"),
            }
        };
        assert_eq!((seen, exit.code), (BYTES_MAX, 3));
        assert_eq!(at as usize + seen, 10 * CHUNK.len() + "last".len());
    }

    /// Goal: alternating streams byte by byte neither drops unread bytes nor blocks for good.
    #[tokio::test]
    async fn crowding_holds_the_process_back_too() {
        let output = left();
        let mut reader = output.reader();
        assert!(matches!(reader.next().await, Piece::ReplayEnd));
        let mut written = 0;
        while output.room() > 0 {
            let stream = if written % 2 == 0 {
                Stream::Stdout
            } else {
                Stream::Stderr
            };
            output.append(stream, b"x");
            written += 1;
        }
        assert!(written < BYTES_MAX, "stopped by segments, not by bytes");
        output.finish(Exit {
            code: 0,
            signal: 0,
            timed_out: false,
        });
        let mut seen = 0;
        while let Piece::Data(_, data) = reader.next().await {
            seen += data.len();
        }
        assert_eq!(seen, written);
    }
}
