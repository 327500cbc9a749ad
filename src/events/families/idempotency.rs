//! Keys that make creating requests repeatable. Each key has a stream of its own; taking it is an
//! append at the revision where it was last seen free, in the same commit as the first event of
//! what is made. Neither the key nor the request is here in clear, only keyed hashes of them.

use serde::{Deserialize, Serialize};

use super::family;

/// The key belongs to one request now, and to what that request made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdempotencyRecorded {
    /// Keyed hash of method, path and body, lower-case hex.
    pub request_hash: String,
    /// Stream of what was made, or of the sandbox that a process was started in.
    pub entity: String,
    /// The process, when the request was for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// Nothing came of the request: the key is free again.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IdempotencyReleased {
    /// As in the event that took it.
    pub request_hash: String,
}

family! {
    /// Events of an idempotency key.
    IdempotencyEvent {
        /// Taken.
        Recorded(IdempotencyRecorded) = "idempotency.recorded.v1",
        /// Free.
        Released(IdempotencyReleased) = "idempotency.released.v1",
    }
}
