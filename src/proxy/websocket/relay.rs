//! Both ways of a WebSocket side by side, until one of its ends or the policy ends it.
//!
//! Invariants: work is done in turns that are shared between sandboxes; a way reads on only when what
//! it read is written; whole frames are written, so a close frame can always follow; a relay that is
//! cut tells both sides why, within a bound.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, OpCode};

use super::deflate::Codec;
use super::frame;
use super::pump::Pump;
use super::seal::Seal;
use super::{Stop, Way};
use crate::proxy::io::Duplex;
use crate::proxy::policy::{HostRules, Policy};
use crate::proxy::refusal::Refusal;
use crate::proxy::tally::Tally;
use crate::proxy::turns::{TURN_TIME_MAX, Turn};

/// Bytes read at once.
const READ_BYTES_MAX: usize = 16 * 1024;
/// Bytes of frames that may wait to be written; one step more may be added to them.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// How long a relay lasts at most after one side closed it.
const CLOSING_TIME_MAX: Duration = Duration::from_secs(30);
/// How long the peers of a relay that is cut are given to read why.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(2);

/// How the secrets of rules are announced.
pub(crate) type Announce<'a> =
    Box<dyn Fn(Arc<HostRules>) -> BoxFuture<'a, Result<(), Refusal>> + Send + Sync + 'a>;

/// What a relay goes by.
pub(crate) struct Terms<'a, F> {
    /// The sandbox's policy, watched.
    pub policy: watch::Receiver<Option<Arc<Policy>>>,
    /// The rules of a policy for this WebSocket, or why it no longer permits it.
    pub rules: F,
    /// Waits until it is on record that the secrets of rules may be sent, where that is asked for.
    pub announce: Announce<'a>,
    /// Names of the secrets of which it is.
    pub announced: BTreeSet<String>,
    /// Names of secrets, and why the relay was cut.
    pub tally: Arc<Tally>,
    /// Bytes from the sandbox.
    pub up: Arc<AtomicU64>,
    /// Bytes to the sandbox.
    pub down: Arc<AtomicU64>,
}

/// A WebSocket that both sides agreed to.
#[derive(Debug)]
pub(crate) struct Relay {
    up: Option<Codec>,
    down: Option<Codec>,
}

impl Relay {
    /// One without compression.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self::new(None, None)
    }

    pub(super) fn new(up: Option<Codec>, down: Option<Codec>) -> Self {
        Self { up, down }
    }

    /// Carries messages between the sandbox (`near`) and the host (`far`) until both ends are
    /// done or the relay is cut, for which the tally then holds the reason. How long it may be
    /// idle is up to the caller.
    pub async fn run<F>(self, near: impl Duplex, far: impl Duplex, mut terms: Terms<'_, F>)
    where
        F: Fn(&Policy) -> Result<Arc<HostRules>, Refusal>,
    {
        let tally = terms.tally.clone();
        let rules = match terms.current() {
            Ok(rules) => rules,
            Err(refusal) => return tally.refuse(refusal),
        };
        if let Err(refusal) = terms.ready(&rules).await {
            return tally.refuse(refusal);
        }
        let seal = Arc::new(Seal::new(rules, tally.clone()));
        let (near_read, near_write) = split(near);
        let (far_read, far_write) = split(far);
        let pump = |way, codec| Pump::new(way, seal.clone(), codec);
        let turn = || Turn::new(tally.share());
        let up = (pump(Way::Up, self.up), turn());
        let mut up = Lane::new(near_read, far_write, up, Way::Up, terms.up.clone());
        let down = (pump(Way::Down, self.down), turn());
        let mut down = Lane::new(far_read, near_write, down, Way::Down, terms.down.clone());
        let closing = Notify::new();
        let ended = tokio::select! {
            ended = async { tokio::try_join!(up.run(&closing), down.run(&closing)) } => ended.map(drop),
            stop = terms.watch(&seal) => Err(End::Stopped(stop)),
            () = async { closing.notified().await; sleep(CLOSING_TIME_MAX).await } => Ok(()),
        };
        match ended {
            Ok(()) => {}
            Err(End::Broken(error)) => tracing::debug!(%error, "a WebSocket broke off"),
            Err(End::Stopped(stop)) => {
                tracing::debug!(%stop, "a WebSocket was cut");
                tally.refuse(stop.refusal());
                let farewell = async { tokio::join!(up.farewell(&stop), down.farewell(&stop)) };
                let _ = timeout(FAREWELL_TIME_MAX, farewell).await;
            }
        }
    }
}

impl<F: Fn(&Policy) -> Result<Arc<HostRules>, Refusal>> Terms<'_, F> {
    fn current(&mut self) -> Result<Arc<HostRules>, Refusal> {
        let policy = self.policy.borrow_and_update().clone();
        (self.rules)(&*policy.ok_or(Refusal::Closed)?)
    }

    /// Gets rules ready to be gone by: no secret is put in place by them before this.
    async fn ready(&mut self, rules: &Arc<HostRules>) -> Result<(), Refusal> {
        rules.prepare().await?;
        let new = |name: &str| !self.announced.contains(name);
        if rules.secret_names().any(new) {
            (self.announce)(rules.clone()).await?;
            let names = rules.secret_names().map(str::to_owned);
            self.announced.extend(names);
        }
        Ok(())
    }

    /// Renews the rules with each policy; ends when one forbids the relay.
    async fn watch(&mut self, seal: &Seal) -> Stop {
        loop {
            if self.policy.changed().await.is_err() {
                return Stop::Refused(Refusal::Closed);
            }
            let rules = match self.current() {
                Ok(rules) => rules,
                Err(refusal) => return Stop::Refused(refusal),
            };
            let ready = self.ready(&rules).await.map_err(Stop::Refused);
            if let Err(stop) = ready.and_then(|()| seal.renew(rules)) {
                return stop;
            }
        }
    }
}

/// Why a way ended early.
enum End {
    Broken(io::Error),
    Stopped(Stop),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        Self::Stopped(stop)
    }
}

/// One way. Its work may be dropped at any time: what is not written stays in `waiting`.
struct Lane<R, W> {
    reader: R,
    writer: W,
    pump: Pump,
    turn: Turn,
    way: Way,
    buffer: Vec<u8>,
    waiting: BytesMut,
    bytes: Arc<AtomicU64>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Lane<R, W> {
    fn new(
        reader: R,
        writer: W,
        (pump, turn): (Pump, Turn),
        way: Way,
        bytes: Arc<AtomicU64>,
    ) -> Self {
        Self {
            reader,
            writer,
            pump,
            turn,
            way,
            buffer: vec![0; READ_BYTES_MAX],
            waiting: BytesMut::new(),
            bytes,
        }
    }

    async fn run(&mut self, closing: &Notify) -> Result<(), End> {
        loop {
            let size = match self.reader.read(&mut self.buffer).await {
                Ok(size) => size,
                // TLS that ends without saying so: messages have ends of their own.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                Err(error) => return Err(error.into()),
            };
            if size == 0 {
                closing.notify_one();
                self.writer.shutdown().await?;
                return Ok(());
            }
            if self.way == Way::Up {
                self.bytes.fetch_add(size as u64, Ordering::Relaxed);
            }
            self.pass(size).await?;
            if self.pump.closed() {
                closing.notify_one();
            }
        }
    }

    /// Passes on the first `size` bytes of the buffer.
    async fn pass(&mut self, size: usize) -> Result<(), End> {
        let mut input = &self.buffer[..size];
        // As of bodies: from the sandbox what it sent, to the sandbox what it gets.
        let given = (self.way == Way::Down).then_some(&*self.bytes);
        let (pump, turn, waiting) = (&mut self.pump, &mut self.turn, &mut self.waiting);
        while poll_fn(|cx| {
            ready!(turn.poll_begin(cx));
            let more = work(pump, &mut input, waiting);
            turn.end();
            Poll::Ready(more)
        })
        .await?
        {
            if waiting.len() >= WAITING_BYTES_MAX {
                write(&mut self.writer, waiting, given).await?;
            }
        }
        turn.pause();
        write(&mut self.writer, &mut self.waiting, given).await?;
        self.writer.flush().await?;
        Ok(())
    }

    /// Tells the side written to why the relay is cut, and lets the side read from hang up first:
    /// a connection closed with unread bytes in it takes what it was told with it.
    async fn farewell(&mut self, stop: &Stop) {
        let closed = self.pump.closed();
        let told: io::Result<()> = async {
            if !closed {
                let payload = [&stop.code().to_be_bytes(), stop.reason().as_bytes()].concat();
                let close = OpCode::Control(Control::Close);
                let out = &mut self.waiting;
                frame::write(out, self.way, close, true, false, &payload)
                    .map_err(io::Error::other)?;
            }
            self.writer.write_all_buf(&mut self.waiting).await?;
            self.writer.shutdown().await
        }
        .await;
        if told.is_ok() {
            while matches!(self.reader.read(&mut self.buffer).await, Ok(1..)) {}
        }
    }
}

/// Works for a turn's time, or until there is something to write; whether there is more to do.
fn work(pump: &mut Pump, input: &mut &[u8], waiting: &mut BytesMut) -> Result<bool, Stop> {
    let begun = Instant::now();
    while pump.step(input, waiting)? {
        if waiting.len() >= WAITING_BYTES_MAX || begun.elapsed() > TURN_TIME_MAX {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes what is waiting, and counts it.
async fn write(
    writer: &mut (impl AsyncWrite + Unpin),
    waiting: &mut BytesMut,
    given: Option<&AtomicU64>,
) -> io::Result<()> {
    if let Some(given) = given {
        given.fetch_add(waiting.len() as u64, Ordering::Relaxed);
    }
    writer.write_all_buf(waiting).await
}
