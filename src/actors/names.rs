//! Unique names: which stream a name has.

use sha2::{Digest, Sha256};

use crate::events::StreamId;
use crate::ids::OrgId;

/// The stream of `name` among the objects of one `kind` in one organization. The name is hashed:
/// any text can be a name, and only few characters can be in a stream's id.
pub fn stream(kind: &str, org: &OrgId, name: &str) -> StreamId {
    let hash = hex::encode(Sha256::digest(name.as_bytes()));
    StreamId::of("name", format_args!("{kind}-{org}-{hash}"))
}
