//! The connections of one sandbox to its hosts, kept and shared between its requests.
//!
//! Invariants:
//! - A connection serves one sandbox and one [`Origin`]: it was resolved, checked, dialled and
//!   verified for that name, and its address stays the same for its life.
//! - After [`Upstreams::clear`] no connection from before it is used again; after
//!   [`Upstreams::keep`] none to a host that was let go.
//! - Their number is bounded: as many as there are requests under way ([`REQUESTS_MAX`], over
//!   HTTP/1.1 to one host [`EXCHANGES_MAX`]) and [`IDLE_MAX`] unused ones, each closed after a
//!   time. While nothing is kept, nothing runs.
//! - A request that comes in HTTP/1.1 goes out in HTTP/1.1 unless the host speaks only HTTP/2,
//!   and one in HTTP/2 goes out in HTTP/2 unless the host speaks only HTTP/1.1: what the program
//!   and the host agree on needs no translation.

mod driver;
mod failure;
mod link;
mod shelf;

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

pub(crate) use self::failure::Failure;
use self::link::{Link, Many, One, Share};
use self::shelf::{Flight, Shelves, Speaks};
use super::body::OutBody;
use super::delivery::Place;
use super::dial::{Alpn, Dialer};
use super::name::Host;
use super::origin::Origin;
use super::refusal::Refusal;
use super::spool::Spools;
use super::standing::Rest;

/// Requests of one sandbox under way at once.
const REQUESTS_MAX: usize = 512;
/// HTTP/1.1 exchanges of one sandbox with one host at once, each with its connection.
const EXCHANGES_MAX: usize = 128;
/// Unused connections kept, to all hosts.
const IDLE_MAX: usize = 128;
/// How long a request waits for others to end before it is refused.
const PLACE_WAIT: Duration = Duration::from_secs(10);
/// How long a connection is kept unused. Most hosts close theirs after a minute or more.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// How long an upload may go on after its answer is complete.
const UPLOAD_GRACE: Duration = Duration::from_secs(30);
/// How often a request looks again after others took what was dialled.
const LOOKS_MAX: usize = 16;

/// The connections of one sandbox.
pub(crate) struct Upstreams {
    own: Weak<Self>,
    shelves: Mutex<Shelves>,
    places: Arc<Semaphore>,
    idle_timeout: Duration,
    spools: Spools,
}

/// Where a request gets its connection from.
enum Look {
    /// This one has room.
    Shared(Share),
    /// A dial that others may wait for as well.
    Flight(Flight, Alpn),
    /// One of its own, kept or new, when it has a place.
    Own(Arc<Semaphore>, Speaks),
}

/// A request's place among those of the sandbox, and among those of its host.
type Places = (Place, Option<OwnedSemaphorePermit>);

/// A connection held for one request.
pub(crate) struct Lease {
    upstreams: Arc<Upstreams>,
    origin: Arc<Origin>,
    link: Option<Link>,
    /// Of the time it was made: [`Upstreams::clear`] begins another. `None` when it is not kept.
    generation: Option<u64>,
    places: Option<Places>,
    /// The upload of its request, which may go on after the answer.
    rest: Option<Rest>,
}

impl Upstreams {
    pub fn new(idle_timeout: Duration) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            own: own.clone(),
            shelves: Mutex::default(),
            places: Arc::new(Semaphore::new(REQUESTS_MAX)),
            idle_timeout,
            spools: Spools::new(),
        })
    }

    /// Remembers that a host answered `411` to a body that lost its length here.
    pub fn wants_length(&self, origin: &Arc<Origin>) {
        self.lock().of(origin).wants_length = true;
    }

    /// Where to set down bodies for a host that wants their length; `None` for others.
    pub fn spools_for(&self, origin: &Origin) -> Option<&Spools> {
        self.lock().wants_length(origin).then_some(&self.spools)
    }

    /// Forgets every connection; those in use end with their request.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Forgets the connections to hosts that are not `permitted`.
    pub fn keep(&self, permitted: impl Fn(&Host) -> bool) {
        self.lock().keep(|origin| permitted(&origin.host));
    }

    /// A connection for a request that came in `version`: a kept one or, where there is none or
    /// `anew`, one that was made for it.
    pub async fn lease(
        self: &Arc<Self>,
        dialer: &Dialer,
        origin: &Arc<Origin>,
        version: Version,
        anew: bool,
    ) -> Result<Lease, Refusal> {
        let place = place(&self.places).await?;
        let (link, exchange, generation) = self.link(dialer, origin, version, anew).await?;
        Ok(Lease {
            upstreams: self.clone(),
            origin: origin.clone(),
            link: Some(link),
            generation: Some(generation),
            places: Some((Arc::new(place), exchange)),
            rest: None,
        })
    }

    /// A connection that may turn into another protocol: HTTP/1.1, new, and never shared.
    pub async fn lease_apart(
        self: &Arc<Self>,
        dialer: &Dialer,
        origin: &Arc<Origin>,
    ) -> Result<Lease, Refusal> {
        let place = place(&self.places).await?;
        let dialled = dialer.open(origin, Alpn::One).await?;
        Ok(Lease {
            upstreams: self.clone(),
            origin: origin.clone(),
            link: Some(Link::One(One::open(dialled, true).await?)),
            generation: None,
            places: Some((Arc::new(place), None)),
            rest: None,
        })
    }

    async fn link(
        &self,
        dialer: &Dialer,
        origin: &Arc<Origin>,
        version: Version,
        anew: bool,
    ) -> Result<(Link, Option<OwnedSemaphorePermit>, u64), Refusal> {
        for _ in 0..LOOKS_MAX {
            // A new policy meanwhile makes what was dialled before it useless for others, and for
            // this request too, which looks again. Whether it may still go on is asked elsewhere.
            let generation = self.lock().generation;
            let (exchanges, speaks) = match self.look(origin, version) {
                Look::Shared(share) => return Ok((Link::Many(share), None, generation)),
                Look::Flight(flight, alpn) => {
                    // Many requests at once need one connection, not one each.
                    let made = self.make(dialer, origin, alpn, generation);
                    let landed = flight.get_or_init(|| made).await.clone();
                    self.lock().of(origin).landed(&flight);
                    landed?;
                    continue;
                }
                Look::Own(exchanges, speaks) => (exchanges, speaks),
            };
            let place = place(&exchanges).await?;
            // Where one connection was closed the other kept ones will be too.
            while let Some(mut one) = self.take_idle(origin).filter(|_| !anew) {
                if one.is_ready() {
                    return Ok((Link::One(one), Some(place), generation));
                }
            }
            match dialer.open(origin, Alpn::One).await {
                Ok(dialled) => {
                    let one = One::open(dialled, false).await?;
                    return Ok((Link::One(one), Some(place), generation));
                }
                Err(Refusal::NoCommonProtocol) if speaks == Speaks::Unknown => {
                    self.lock().of(origin).speaks = Speaks::OnlyTwo;
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Err(Refusal::Unreachable)
    }

    /// What there is for a request that came in `version`.
    fn look(&self, origin: &Arc<Origin>, version: Version) -> Look {
        let mut shelves = self.lock();
        let shelf = shelves.of(origin);
        let many = match shelf.speaks {
            Speaks::Unknown => origin.tls && version == Version::HTTP_2,
            Speaks::OnlyOne => false,
            Speaks::OnlyTwo => true,
        };
        if !many {
            return Look::Own(shelf.exchanges.clone(), shelf.speaks);
        }
        match shelf.share() {
            Some(share) => Look::Shared(share),
            None if shelf.speaks == Speaks::OnlyTwo => Look::Flight(shelf.flight(), Alpn::Two),
            None => Look::Flight(shelf.flight(), Alpn::Both),
        }
    }

    fn take_idle(&self, origin: &Origin) -> Option<One> {
        self.lock().take_idle(origin)
    }

    /// Dials for whoever waits, and puts the connection where they look.
    async fn make(
        &self,
        dialer: &Dialer,
        origin: &Arc<Origin>,
        alpn: Alpn,
        generation: u64,
    ) -> Result<(), Refusal> {
        let dialled = dialer.open(origin, alpn).await?;
        if dialled.two {
            let many = Many::open(dialled).await?;
            let mut shelves = self.lock();
            if shelves.generation == generation {
                shelves.of(origin).add(many);
                self.sweep_later(&mut shelves);
            }
        } else {
            let mut one = One::open(dialled, false).await?;
            self.lock().of(origin).speaks = Speaks::OnlyOne;
            // Its task has to begin first.
            if one.becomes_ready(UPLOAD_GRACE).await {
                self.put(origin, one, generation);
            }
        }
        Ok(())
    }

    fn put(&self, origin: &Arc<Origin>, mut one: One, generation: u64) {
        let mut shelves = self.lock();
        if shelves.generation != generation || !one.rests() {
            return;
        }
        shelves.put(origin, one, IDLE_MAX);
        self.sweep_later(&mut shelves);
    }

    /// Starts the task that closes what is not used, unless it runs already.
    fn sweep_later(&self, shelves: &mut Shelves) {
        if std::mem::replace(&mut shelves.swept, true) {
            return;
        }
        let (own, idle_timeout) = (self.own.clone(), self.idle_timeout);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(idle_timeout / 4).await;
                let Some(upstreams) = own.upgrade() else {
                    return;
                };
                let mut shelves = upstreams.lock();
                if !shelves.sweep(Instant::now(), idle_timeout) {
                    shelves.swept = false;
                    return;
                }
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Shelves> {
        // Shelves are changed in steps that each leave them whole.
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those that are under way.
async fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Refusal> {
    if let Ok(place) = places.clone().try_acquire_owned() {
        return Ok(place);
    }
    match timeout(PLACE_WAIT, places.clone().acquire_owned()).await {
        Ok(Ok(place)) => Ok(place),
        _ => Err(Refusal::RequestLimit),
    }
}

impl Lease {
    /// The version requests on it are sent in.
    pub fn version(&self) -> Version {
        self.link.as_ref().map_or(Version::HTTP_11, Link::version)
    }

    /// The version of TLS it is over.
    pub fn tls(&self) -> Option<&'static str> {
        self.link.as_ref().and_then(Link::tls)
    }

    /// Whether a request on it, `safe` to repeat or not, may have to be sent again.
    pub fn may_fail(&self, safe: bool) -> bool {
        self.link.as_ref().is_some_and(|link| link.may_fail(safe))
    }

    /// Sends a request. One of which nothing was written comes back with the failure.
    pub async fn send(&mut self, request: Request<OutBody>) -> Result<Response<Incoming>, Failure> {
        match &mut self.link {
            Some(link) => link.send(request).await,
            None => Err(Failure::Unsent(Box::new(request))),
        }
    }

    /// The place of its request, for what outlives the lease.
    pub fn place(&self) -> Option<Place> {
        self.places.as_ref().map(|(place, _)| place.clone())
    }

    /// Holds on to an upload until it is over, also after its answer.
    pub fn follow(&mut self, rest: Option<Rest>) {
        self.rest = rest;
    }

    /// Polls the body of the answer.
    pub fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Incoming,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.link {
            Some(link) => link.poll_body(cx, body),
            None => Pin::new(body).poll_frame(cx),
        }
    }

    /// Gives the connection back after a complete answer, so that the next request may use it.
    /// Dropped instead, a lease cuts what is still under way.
    pub fn give_back(mut self) {
        let rest = self.rest.take().filter(|rest| !rest.is_over());
        let (mut one, generation) = match (self.link.take(), self.generation) {
            (Some(Link::One(one)), Some(generation)) => (one, generation),
            (link, _) => return self.finish_upload(link, rest),
        };
        if one.rests() {
            return self.upstreams.put(&self.origin, one, generation);
        }
        if one.is_closed() {
            return;
        }
        // The answer came before the upload was complete, which may go on.
        let (upstreams, origin, places) = (
            self.upstreams.clone(),
            self.origin.clone(),
            self.places.take(),
        );
        tokio::spawn(async move {
            let ready = match rest {
                Some(mut rest) => tokio::select! {
                    ready = one.becomes_ready(UPLOAD_GRACE) => ready,
                    () = rest.falls() => false,
                },
                None => one.becomes_ready(UPLOAD_GRACE).await,
            };
            if ready {
                upstreams.put(&origin, one, generation);
            }
            drop(places);
        });
    }

    /// Lets an upload over HTTP/2 go on after its answer, within bounds. It keeps its places.
    fn finish_upload(mut self, link: Option<Link>, rest: Option<Rest>) {
        let Some(mut rest) = rest else {
            return;
        };
        let places = self.places.take();
        tokio::spawn(async move {
            let _ = timeout(UPLOAD_GRACE, rest.ends()).await;
            // Of what is left nothing is taken from the program any more.
            rest.close();
            drop((link, places));
        });
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Nobody gets an answer any more.
        if let Some(rest) = self.rest.take() {
            rest.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::settings::EgressSettings;
    use tokio::io::AsyncReadExt;

    /// Goal: a kept connection is used again, and closed when it is not used for its time.
    #[tokio::test]
    async fn unused_connections_are_closed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dialer = Dialer::new(Arc::new(EgressSettings {
            allow_private: vec!["127.0.0.0/8".parse().unwrap()],
            ..EgressSettings::default()
        }));
        let origin = Arc::new(Origin::new("127.0.0.1".parse().unwrap(), port, false).unwrap());
        let upstreams = Upstreams::new(Duration::from_millis(200));
        let lease = || upstreams.lease(&dialer, &origin, Version::HTTP_11, false);
        let mut first = lease().await.unwrap();
        if let Some(Link::One(one)) = &mut first.link {
            assert!(one.becomes_ready(Duration::from_secs(5)).await);
        }
        first.give_back();
        lease().await.unwrap().give_back();
        let (mut far, _) = listener.accept().await.unwrap();
        let begun = Instant::now();
        let end = timeout(Duration::from_secs(5), far.read(&mut [0; 9])).await;
        assert_eq!(end.unwrap().unwrap(), 0);
        assert!(begun.elapsed() > Duration::from_millis(100));
        let second = timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(second.is_err(), "one connection was enough");
        assert!(
            !upstreams.lock().swept,
            "nothing is kept and something runs"
        );
    }
}
