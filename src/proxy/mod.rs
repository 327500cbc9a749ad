//! The seal: the byte path that swaps sealed tokens for real values, and back.
//!
//! Everything that leaves a sandbox comes here as a stream and the name that was asked for
//! ([`Target`]); this module decides, resolves, dials, and looks inside where a secret may be.
//! It knows nothing of projects, stores or events.
//!
//! Invariants:
//! - A real value goes only to a host its binding names, only over TLS whose certificate was
//!   verified for that name, and only on an address this process resolved and checked itself.
//! - Name asked for = SNI = `Host` = verified certificate name = resolved name. Anything else,
//!   and anything unclear, is refused ([`Refusal`] names the rule).
//! - A missing policy, a full audit queue or an internal error refuses; nothing fails open.
//! - Every connection and request ends in exactly one [`Decision`], which never holds a value,
//!   a path or a query.
//! - Memory per connection is constant, whatever the size of a body.
//!
//! Pure rooms first (`name`, `token`, `escape`, `substitute`, `reseal`, `address`, `origin`), then
//! the ones with I/O: a connection comes in through `gate`, `connection` and `serve`, a request
//! goes through `exchange`, `upload`, `answer` and `ahead`, and out through `upstream` and `dial`.
//! Another content coding becomes a variant of `coding::Coding`.

mod address;
mod again;
mod ahead;
mod answer;
mod body;
mod ca;
mod coding;
mod connection;
mod content;
mod credential;
mod decision;
mod delivery;
mod dial;
mod entropy;
mod escape;
mod exchange;
mod explicit;
mod forms;
mod frames;
mod framing;
#[cfg(fuzzing)]
#[path = "../../fuzz/src/properties.rs"]
pub mod fuzzing;
mod gate;
mod grants;
mod grpc;
mod head;
mod io;
mod multipart;
mod name;
mod opening;
mod origin;
mod path;
mod placement;
mod policy;
mod refusal;
mod reseal;
mod revoked;
mod scout;
mod serve;
mod settings;
mod spool;
mod standing;
mod streams;
mod substitute;
mod tally;
mod token;
mod trailers;
mod tunnel;
mod turns;
mod upgrade;
mod upload;
mod upstream;
mod websocket;

pub use ca::{CaError, SandboxCa};
pub use decision::{Announcement, Decision, Outcome, Protocol, Sending};
pub use entropy::{
    RESEAL_BITS_MIN, RESEAL_DISTINCT_BYTES_MIN, RESEAL_VALUE_BYTES_MIN, reseal_possible,
};
pub use gate::{SandboxProxy, Target};
pub use io::Traffic;
pub use name::{BadName, BadPattern, CanonicalName, Host, HostPattern};
pub use placement::{
    BadPlacement, PATH_PREFIX_BYTES_MAX, PLACEMENT_ENTRIES_MAX, Placement, PlacementText,
    REPLACEMENTS_MAX,
};
pub use policy::{Binding, Policy};
pub use refusal::Refusal;
pub use settings::{BadIdentity, ClientIdentity, EgressSettings, HostTls, UpstreamTls};
pub use token::{BadToken, SealedToken};
