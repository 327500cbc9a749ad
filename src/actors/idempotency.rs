//! `Idempotency-Key`: a creating request that is sent again makes no second object.
//!
//! ```text
//!         recorded (in the commit of what is made)
//!  Free ───────────────────────────────────────────▶ Taken
//!    ▲               released, or what it made failed  │
//!    └─────────────────────────────────────────────────┘
//! ```
//!
//! Invariants: a key is taken in the same commit as the first event of what is made, expected where
//! it was seen free, so a race makes one object and a crash can't part them; the log is the only
//! memory of it, so a restart forgets nothing; a key is kept for ever. A repeat is answered from the
//! events of what was made, as it was when it was made.
//!
//! A key belongs to one organization; for what is started in a sandbox, to that sandbox, whose own
//! token is good for nothing outside of it.
//!
//! Neither the key nor the request is in the log: only hashes under a key of the server's, and the
//! request's hash depends on the idempotency key too. So not even the server's own keys tell whether
//! a guessed body is right, unless the idempotency key can be guessed as well.

mod turns;

use std::fmt::Display;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::aggregate::{Aggregate, Reject};
use super::entity::{Beside, Failure, record};
use super::platform::{Caller, Platform};
use super::project::Project;
use super::sandbox::{Phase, Sandbox};
use super::sealing::internal;
use super::secret_store::SecretStore;
use crate::events::families::{Family, IdempotencyEvent, IdempotencyRecorded, IdempotencyReleased};
use crate::events::{AppendError, EventLog, Expected, StreamId};

use turns::{Turn, Turns};

/// Longest key, in characters.
pub const KEY_CHARS_MAX: usize = 255;
/// Longest a repeat waits for the first request; published clients give up after 30 s.
const WAIT_MAX: Duration = Duration::from_secs(25);
/// Events read at a time when a first answer is rebuilt.
const PAGE_EVENTS: usize = 64;
const OTHER_REQUEST: &str = "this Idempotency-Key was used before for another request";
const IN_PROGRESS: &str = "a request with this Idempotency-Key is still in progress, try again";

/// What a caller wants done once: the key it chose, and a fingerprint of the request.
pub struct Keyed {
    key: String,
    request: [u8; 32],
}

impl Keyed {
    /// A key of 1 to 255 printable ASCII characters, and a hash of everything the request says;
    /// `None` for any other key.
    pub fn new(key: &str, request: [u8; 32]) -> Option<Self> {
        let fits = (1..=KEY_CHARS_MAX).contains(&key.len());
        let printable = key.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        (fits && printable).then(|| Self {
            key: key.to_owned(),
            request,
        })
    }
}

/// What a creating request made, now or when it first came.
#[derive(Debug)]
pub struct Created<A> {
    /// As it was when it was made.
    pub state: Arc<A>,
    /// This request repeats one, and made nothing.
    pub replayed: bool,
}

impl<A> Created<A> {
    /// What an earlier request made.
    pub(super) fn again(state: Arc<A>) -> Self {
        Self {
            state,
            replayed: true,
        }
    }
}

/// How far a creation got, as its own events tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Creation {
    /// No outcome yet.
    Open,
    /// It was told to its caller.
    Made,
    /// It failed as a whole, and nothing of it is left.
    Failed,
}

/// An aggregate that requests with a key make.
pub(super) trait Creatable: Aggregate {
    /// How far its creation is at this state.
    fn creation(&self) -> Creation;
}

impl Creatable for Project {
    fn creation(&self) -> Creation {
        Creation::Made
    }
}

impl Creatable for SecretStore {
    fn creation(&self) -> Creation {
        Creation::Made
    }
}

impl Creatable for Sandbox {
    fn creation(&self) -> Creation {
        match (self.started_at, &self.phase) {
            (Some(_), _) => Creation::Made,
            (None, Phase::Absent | Phase::Starting(_)) => Creation::Open,
            // Also one that was deleted before it ran: its caller was told that it failed.
            (None, _) => Creation::Failed,
        }
    }
}

/// What the server keeps in memory for keys: nothing that is needed after a restart.
#[derive(Default)]
pub(super) struct Keys {
    server: OnceLock<Zeroizing<[u8; 32]>>,
    turns: Turns,
}

/// A key that was found free, to be taken with what is made.
pub(super) struct Claim {
    stream: StreamId,
    expected: Expected,
    request_hash: String,
}

impl Claim {
    /// The event that takes the key for `entity`.
    fn take(&self, entity: &StreamId, session: Option<&str>) -> Result<Beside, Failure> {
        let event = IdempotencyEvent::Recorded(IdempotencyRecorded {
            request_hash: self.request_hash.clone(),
            entity: entity.to_string(),
            session: session.map(str::to_owned),
        });
        self.beside(&event, self.expected)
    }

    /// The event that gives the key back, after [`Claim::take`] was recorded.
    pub(super) fn release(&self) -> Result<Beside, Failure> {
        let event = IdempotencyEvent::Released(IdempotencyReleased {
            request_hash: self.request_hash.clone(),
        });
        let taken = match self.expected {
            Expected::Revision(revision) => revision + 1,
            _ => 0,
        };
        self.beside(&event, Expected::Revision(taken))
    }

    fn beside(&self, event: &IdempotencyEvent, expected: Expected) -> Result<Beside, Failure> {
        let event = record(&self.stream, event)?;
        Ok(Beside { expected, event })
    }
}

/// The right to carry out a creating request; requests with the same key wait until it is dropped.
pub(super) struct First {
    /// The key to take; `None`: the request has none.
    pub(super) claim: Option<Claim>,
    _turn: Option<Turn>,
}

impl First {
    /// What belongs into the commit that makes `entity`.
    pub(super) fn beside(&self, entity: &StreamId) -> Result<Vec<Beside>, Failure> {
        let claim = self.claim.iter();
        claim.map(|claim| claim.take(entity, None)).collect()
    }

    /// The same for a session of the sandbox `entity`.
    pub(super) fn beside_session(
        &self,
        entity: &StreamId,
        session: &str,
    ) -> Result<Vec<Beside>, Failure> {
        let claim = self.claim.iter();
        claim
            .map(|claim| claim.take(entity, Some(session)))
            .collect()
    }
}

/// What a request with a key turns out to be.
pub(super) enum Begun<T> {
    /// Nothing came of this key yet.
    First(First),
    /// It was carried out before, with this result.
    Repeat(T),
}

/// What the log knows of a key.
enum Known {
    Free(Expected),
    Taken {
        by: IdempotencyRecorded,
        revision: u64,
    },
}

impl Platform {
    /// Looks whether a creating request was carried out before. Waits while another with the same
    /// key is carried out.
    ///
    /// # Errors
    /// [`Reject::Conflict`] when the key belongs to another request, or to one that is not over.
    pub(super) async fn begin<A: Creatable>(
        &self,
        caller: &Caller,
        keyed: Option<&Keyed>,
    ) -> Result<Begun<Arc<A>>, Failure> {
        let (first, taken) = match self.begin_in(&caller.org, keyed).await? {
            Begun::First(first) => return Ok(Begun::First(first)),
            Begun::Repeat(found) => found,
        };
        match self.rebuild::<A>(&taken).await? {
            (Creation::Made, state) => Ok(Begun::Repeat(Arc::new(state))),
            (Creation::Failed, _) => Ok(Begun::First(first)),
            (Creation::Open, _) => Err(in_progress()),
        }
    }

    /// The same for keys of an organization or a sandbox, before it is known how far the request
    /// got: for a repeat, what took the key, and the right to try again should nothing have come of
    /// it.
    pub(super) async fn begin_in(
        &self,
        scope: &impl Display,
        keyed: Option<&Keyed>,
    ) -> Result<Begun<(First, IdempotencyRecorded)>, Failure> {
        let Some(keyed) = keyed else {
            return Ok(Begun::First(First {
                claim: None,
                _turn: None,
            }));
        };
        let (stream, request_hash) = hashes(&*self.server_key()?, scope, keyed)?;
        let turn = self.idempotency.turns.take(&stream, WAIT_MAX).await;
        let turn = Some(turn.ok_or_else(in_progress)?);
        let known = look_up(&self.log, &stream).await?;
        let first = |expected| First {
            claim: Some(Claim {
                stream,
                expected,
                request_hash: request_hash.clone(),
            }),
            _turn: turn,
        };
        match known {
            Known::Free(expected) => Ok(Begun::First(first(expected))),
            Known::Taken { by, .. } if by.request_hash != request_hash => {
                Err(Reject::Conflict(OTHER_REQUEST.to_owned()).into())
            }
            Known::Taken { by, revision } => {
                Ok(Begun::Repeat((first(Expected::Revision(revision)), by)))
            }
        }
    }

    /// Turns the outcome of a first request into its answer. When it lost a race for the key (one
    /// whose client hung up may still be recorded), the winner's result is the answer.
    pub(super) async fn conclude<A: Creatable>(
        &self,
        first: First,
        outcome: Result<Arc<A>, Failure>,
    ) -> Result<Created<A>, Failure> {
        let failure = match outcome {
            Ok(state) => {
                return Ok(Created {
                    state,
                    replayed: false,
                });
            }
            Err(failure) => failure,
        };
        let Some(claim) = &first.claim else {
            return Err(failure);
        };
        let lost = matches!(&failure, Failure::Append(AppendError::Conflict { stream, .. })
            if *stream == claim.stream);
        let Ok(Known::Taken { by, .. }) = look_up(&self.log, &claim.stream).await else {
            return Err(failure);
        };
        if by.request_hash != claim.request_hash {
            return Err(match lost {
                true => Reject::Conflict(OTHER_REQUEST.to_owned()).into(),
                false => failure,
            });
        }
        match self.rebuild::<A>(&by).await {
            Ok((Creation::Made, state)) => Ok(Created::again(Arc::new(state))),
            Ok((Creation::Open, _)) if lost => Err(in_progress()),
            _ => Err(failure),
        }
    }

    /// What a key's owner was when its caller was answered, from its own events.
    async fn rebuild<A: Creatable>(
        &self,
        taken: &IdempotencyRecorded,
    ) -> Result<(Creation, A), Failure> {
        let stream = StreamId::new(taken.entity.as_str()).map_err(internal)?;
        let (mut state, mut next) = (A::default(), 0);
        loop {
            let page = self.log.read_stream(&stream, next, PAGE_EVENTS).await?;
            if page.is_empty() {
                return Ok((Creation::Open, state));
            }
            for recorded in page {
                state.fold(&recorded)?;
                next = recorded.revision + 1;
                let creation = state.creation();
                if creation != Creation::Open {
                    return Ok((creation, state));
                }
            }
        }
    }

    /// The server's own key for hashes of keys and requests.
    fn server_key(&self) -> Result<Zeroizing<[u8; 32]>, Failure> {
        if let Some(key) = self.idempotency.server.get() {
            return Ok(key.clone());
        }
        let key = self.signing_key("idempotency")?;
        Ok(self.idempotency.server.get_or_init(|| key).clone())
    }
}

pub(super) fn in_progress() -> Failure {
    Reject::Conflict(IN_PROGRESS.to_owned()).into()
}

async fn look_up(log: &EventLog, stream: &StreamId) -> Result<Known, Failure> {
    let Some((revision, last)) = log.stream_head(stream).await? else {
        return Ok(Known::Free(Expected::NoStream));
    };
    Ok(match IdempotencyEvent::decode(&last.kind, &last.data)? {
        IdempotencyEvent::Recorded(by) => Known::Taken { by, revision },
        IdempotencyEvent::Released(_) => Known::Free(Expected::Revision(revision)),
    })
}

/// The stream of a key in its scope, and the hash of a request under that key.
fn hashes(
    server: &[u8; 32],
    scope: &impl Display,
    keyed: &Keyed,
) -> Result<(StreamId, String), Failure> {
    let text = scope.to_string();
    let (within, key) = (text.as_bytes(), keyed.key.as_bytes());
    let name = mac(server, &[b"key", within, key])?;
    let request_hash = mac(server, &[b"request", within, key, &keyed.request])?;
    let stream = StreamId::of("idem", format_args!("{scope}-{name}"));
    Ok((stream, request_hash))
}

/// HMAC-SHA256 over fields, each with its length before it; lower-case hex.
fn mac(key: &[u8; 32], fields: &[&[u8]]) -> Result<String, Failure> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(internal)?;
    for field in fields {
        mac.update(&(field.len() as u64).to_be_bytes());
        mac.update(field);
    }
    Ok(hex::encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests;
