//! Unique names. Each name has a stream of its own: claiming it is an append at the revision where
//! the name was last seen free, in the same commit as the owner's event, so two owners can't have it.

use serde::{Deserialize, Serialize};

use super::family;

/// The name belongs to `owner` now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NameClaimed {
    /// Stream of the owner.
    pub owner: String,
}

/// The name is free again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NameReleased {
    /// Stream of the former owner.
    pub owner: String,
}

family! {
    /// Events of a name.
    NameEvent {
        /// Taken.
        Claimed(NameClaimed) = "name.claimed.v1",
        /// Free.
        Released(NameReleased) = "name.released.v1",
    }
}
