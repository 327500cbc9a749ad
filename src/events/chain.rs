//! The proof: how an event's content hash and a commit's chain hash are made.
//!
//! Everything is SHA-256 over *netstrings*: a field `f` is written as its length in bytes in
//! decimal, `:`, its bytes, `,`. Numbers are decimal text, hashes are lower-case hex, ids are their
//! usual text, an absent optional field is empty. No field can run into the next one.
//!
//! ```text
//! genesis      = H("oc.log.v1", log id)
//! content hash = H("oc.event.v1", id, stream, revision, position, commit, recorded_at_ms, kind,
//!                  actor kind, org, key, command, correlation, causation, data)
//! chain hash   = H("oc.commit.v1", commit number, chain hash of the commit before (or genesis),
//!                  content hash of each of its events in order)
//! ```
//!
//! `data` is the JSON text exactly as stored, so nobody needs a canonical JSON. The chain hash of
//! the last commit stands for every byte of every event, their order, and the log's identity.
//! `SPECIFICATION.md`, section 8, says the same for strangers and `fixtures/verify_chain.py` does it in Python.

use sha2::{Digest, Sha256};
use ulid::Ulid;

use super::event::Recorded;

/// A SHA-256 value.
pub type Hash = [u8; 32];

/// The chain hash before the first commit; it binds the chain to this one log.
pub fn genesis(log: Ulid) -> Hash {
    let mut hash = Netstrings::new("oc.log.v1");
    hash.text(&log.to_string());
    hash.finish()
}

/// The content hash of an event: every field but the hash itself.
pub fn content_hash(event: &Recorded) -> Hash {
    let optional = |id: Option<Ulid>| id.map(|id| id.to_string()).unwrap_or_default();
    let mut hash = Netstrings::new("oc.event.v1");
    hash.text(&event.id.to_string());
    hash.text(event.stream.as_str());
    hash.number(event.revision);
    hash.number(event.position);
    hash.number(event.commit);
    hash.text(&event.recorded_at_ms().to_string());
    hash.text(&event.kind);
    hash.text(&event.actor.kind);
    hash.text(&event.actor.org.map(|id| id.to_string()).unwrap_or_default());
    hash.text(&event.actor.key.map(|id| id.to_string()).unwrap_or_default());
    hash.text(&event.command.to_string());
    hash.text(&optional(event.correlation));
    hash.text(&optional(event.causation));
    hash.text(event.data.get());
    hash.finish()
}

/// The same from the fields as texts, in the order above: what a verifier of an export has.
pub fn content_hash_of_texts<'a>(fields: impl IntoIterator<Item = &'a str>) -> Hash {
    let mut hash = Netstrings::new("oc.event.v1");
    fields.into_iter().for_each(|field| hash.text(field));
    hash.finish()
}

/// The chain hash of commit `number`, which follows a commit whose chain hash is `previous`.
pub fn chain_hash<'a>(
    number: u64,
    previous: &Hash,
    events: impl IntoIterator<Item = &'a Hash>,
) -> Hash {
    let mut hash = Netstrings::new("oc.commit.v1");
    hash.number(number);
    hash.text(&hex::encode(previous));
    for event in events {
        hash.text(&hex::encode(event));
    }
    hash.finish()
}

/// What makes two requests with the same command id "the same": streams, kinds and data, in order.
/// Event ids and expectations are left out, since a caller that retries makes them anew.
pub fn request_hash<'a>(events: impl IntoIterator<Item = (&'a str, &'a str, &'a str)>) -> Hash {
    let mut hash = Netstrings::new("oc.request.v1");
    for (stream, kind, data) in events {
        hash.text(stream);
        hash.text(kind);
        hash.text(data);
    }
    hash.finish()
}

/// SHA-256 over a sequence of netstrings.
struct Netstrings(Sha256);

impl Netstrings {
    /// `domain` keeps hashes of different things apart.
    fn new(domain: &str) -> Self {
        let mut hash = Self(Sha256::new());
        hash.text(domain);
        hash
    }

    fn text(&mut self, field: &str) {
        self.0.update(field.len().to_string().as_bytes());
        self.0.update(b":");
        self.0.update(field.as_bytes());
        self.0.update(b",");
    }

    fn number(&mut self, number: u64) {
        self.text(&number.to_string());
    }

    fn finish(self) -> Hash {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Goal: the byte form stays what SPECIFICATION.md says. The value was made with Python's hashlib:
    /// `sha256(b"9:oc.log.v1,26:00000000000000000000000000,")`.
    #[test]
    fn genesis_of_a_known_log_has_a_known_value() {
        let expected = hex::encode(Sha256::digest(
            b"9:oc.log.v1,26:00000000000000000000000000,",
        ));
        assert_eq!(hex::encode(genesis(Ulid::nil())), expected);
    }

    proptest! {
        /// Goal: no two different lists of fields have the same bytes, so moving a byte from one
        /// field to its neighbour always changes the hash.
        #[test]
        fn fields_do_not_run_into_each_other(
            left in proptest::collection::vec("[0-9:,a]{0,4}", 0..6),
            right in proptest::collection::vec("[0-9:,a]{0,4}", 0..6),
        ) {
            let hash = |fields: &[String]| {
                let mut hash = Netstrings::new("test");
                fields.iter().for_each(|field| hash.text(field));
                hash.finish()
            };
            prop_assert_eq!(left == right, hash(&left) == hash(&right));
        }

        /// Goal: a commit's number, its predecessor and the order of its events all matter.
        #[test]
        fn the_chain_hash_depends_on_all_of_its_inputs(
            number in 1..1000u64, previous: [u8; 32], a: [u8; 32], b: [u8; 32], other: [u8; 32],
        ) {
            prop_assume!(a != b && previous != other);
            let base = chain_hash(number, &previous, [&a, &b]);
            prop_assert_ne!(base, chain_hash(number + 1, &previous, [&a, &b]));
            prop_assert_ne!(base, chain_hash(number, &other, [&a, &b]));
            prop_assert_ne!(base, chain_hash(number, &previous, [&b, &a]));
            prop_assert_ne!(base, chain_hash(number, &previous, [&a]));
        }
    }
}
