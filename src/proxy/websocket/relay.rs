//! Both ways of a WebSocket side by side, until one of its ends or the policy ends it.
//!
//! Invariants: a way reads on only when what it read is written; whole frames are written, so a
//! close frame can always follow; a relay that is cut tells both sides why, within a bound.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::{Notify, watch};
use tokio::task::yield_now;
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

/// Bytes read at once.
const READ_BYTES_MAX: usize = 16 * 1024;
/// Bytes of frames that may wait to be written; one step more may be added to them.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// How long one way works before other tasks get their turn.
const TURN_TIME_MAX: Duration = Duration::from_millis(2);
/// How long a relay lasts at most after one side closed it.
const CLOSING_TIME_MAX: Duration = Duration::from_secs(30);
/// How long the peers of a relay that is cut are given to read why.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(2);

/// What a relay goes by.
pub(crate) struct Terms<F> {
    /// The sandbox's policy, watched.
    pub policy: watch::Receiver<Option<Arc<Policy>>>,
    /// The rules of a policy for this WebSocket, or why it no longer permits it.
    pub rules: F,
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
    pub(super) fn new(up: Option<Codec>, down: Option<Codec>) -> Self {
        Self { up, down }
    }

    /// Carries messages between the sandbox (`near`) and the host (`far`) until both ends are
    /// done or the relay is cut, for which the tally then holds the reason. How long it may be
    /// idle is up to the caller.
    pub async fn run<F>(self, near: impl Duplex, far: impl Duplex, mut terms: Terms<F>)
    where
        F: Fn(&Policy) -> Result<Arc<HostRules>, Refusal>,
    {
        let tally = terms.tally.clone();
        let rules = match terms.current() {
            Ok(rules) => rules,
            Err(refusal) => return tally.refuse(refusal),
        };
        if let Err(refusal) = rules.prepare().await {
            return tally.refuse(refusal);
        }
        let seal = Arc::new(Seal::new(rules, tally.clone()));
        let (near_read, near_write) = split(near);
        let (far_read, far_write) = split(far);
        let pump = |way, codec| Pump::new(way, seal.clone(), codec);
        let up = pump(Way::Up, self.up);
        let mut up = Lane::new(near_read, far_write, up, Way::Up, terms.up.clone());
        let down = pump(Way::Down, self.down);
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

impl<F: Fn(&Policy) -> Result<Arc<HostRules>, Refusal>> Terms<F> {
    fn current(&mut self) -> Result<Arc<HostRules>, Refusal> {
        let policy = self.policy.borrow_and_update().clone();
        (self.rules)(&*policy.ok_or(Refusal::Closed)?)
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
            let ready = rules.prepare().await.map_err(Stop::Refused);
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
    way: Way,
    buffer: Vec<u8>,
    waiting: BytesMut,
    bytes: Arc<AtomicU64>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Lane<R, W> {
    fn new(reader: R, writer: W, pump: Pump, way: Way, bytes: Arc<AtomicU64>) -> Self {
        Self {
            reader,
            writer,
            pump,
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
        let mut turn = Instant::now();
        while self.pump.step(&mut input, &mut self.waiting)? {
            if self.waiting.len() >= WAITING_BYTES_MAX {
                write(&mut self.writer, &mut self.waiting, given).await?;
            }
            if turn.elapsed() > TURN_TIME_MAX {
                yield_now().await;
                turn = Instant::now();
            }
        }
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
