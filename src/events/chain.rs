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

use std::cell::Cell;

use sha2::{Digest, Sha256};
use ulid::Ulid;
use uuid::Uuid;

use super::event::Recorded;

/// A SHA-256 value.
pub type Hash = [u8; 32];

/// The chain hash before the first commit; it binds the chain to this one log.
pub fn genesis(log: Ulid) -> Hash {
    let mut hash = Netstrings::new("oc.log.v1", 64);
    hash.ulid(Some(log));
    hash.finish()
}

/// The content hash of an event: every field but the hash itself.
pub fn content_hash(event: &Recorded) -> Hash {
    let mut hash = Netstrings::new("oc.event.v1", 512 + event.data.get().len());
    hash.ulid(Some(event.id));
    hash.text(event.stream.as_str());
    hash.number(event.revision);
    hash.number(event.position);
    hash.number(event.commit);
    hash.number(event.recorded_at_ms());
    hash.text(&event.kind);
    hash.text(&event.actor.kind);
    hash.uuid(event.actor.org.map(|id| Uuid::from_bytes(id.to_bytes())));
    hash.uuid(event.actor.key.map(|id| Uuid::from_bytes(id.to_bytes())));
    hash.ulid(Some(event.command));
    hash.ulid(event.correlation);
    hash.ulid(event.causation);
    hash.text(event.data.get());
    hash.finish()
}

/// The same from the fields as texts, in the order above: what a verifier of an export has.
pub fn content_hash_of_texts<'a>(fields: impl IntoIterator<Item = &'a str>) -> Hash {
    let mut hash = Netstrings::new("oc.event.v1", 1024);
    fields.into_iter().for_each(|field| hash.text(field));
    hash.finish()
}

/// The chain hash of commit `number`, which follows a commit whose chain hash is `previous`.
pub fn chain_hash<'a>(
    number: u64,
    previous: &Hash,
    events: impl IntoIterator<Item = &'a Hash>,
) -> Hash {
    let mut hash = Netstrings::new("oc.commit.v1", 256);
    hash.number(number);
    hash.hash(previous);
    for event in events {
        hash.hash(event);
    }
    hash.finish()
}

/// SHA-256 over a sequence of netstrings. They are collected first: one long update costs a fraction
/// of many short ones.
struct Netstrings(Vec<u8>);

/// Most bytes that a thread keeps at hand for the next hash (64 KiB).
const KEPT_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    /// Where a thread's fields are collected, one hash after the other.
    static COLLECTED: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Netstrings {
    /// `domain` keeps hashes of different things apart; `room` is about how many bytes will come.
    fn new(domain: &str, room: usize) -> Self {
        // Without the thread's own (as it ends, or within another hash) it is a new one.
        let mut bytes = COLLECTED.try_with(Cell::take).unwrap_or_default();
        bytes.reserve(room);
        let mut hash = Self(bytes);
        hash.text(domain);
        hash
    }

    fn text(&mut self, field: &str) {
        self.bytes(field.as_bytes());
    }

    fn bytes(&mut self, field: &[u8]) {
        let mut length = itoa::Buffer::new();
        self.0
            .extend_from_slice(length.format(field.len()).as_bytes());
        self.0.push(b':');
        self.0.extend_from_slice(field);
        self.0.push(b',');
    }

    fn number(&mut self, number: impl itoa::Integer) {
        let mut text = itoa::Buffer::new();
        self.text(text.format(number));
    }

    fn hash(&mut self, hash: &Hash) {
        let mut text = [0; 64];
        // 64 places for 32 bytes always do.
        if hex::encode_to_slice(hash, &mut text).is_ok() {
            self.bytes(&text);
        }
    }

    fn ulid(&mut self, id: Option<Ulid>) {
        let mut text = [0; ulid::ULID_LEN];
        self.text(id.map_or("", |id| id.array_to_str(&mut text)));
    }

    fn uuid(&mut self, id: Option<Uuid>) {
        let mut text = Uuid::encode_buffer();
        self.text(id.map_or("", |id| id.hyphenated().encode_lower(&mut text)));
    }

    fn finish(mut self) -> Hash {
        let hash = Sha256::digest(&self.0).into();
        if self.0.capacity() <= KEPT_BYTES_MAX {
            self.0.clear();
            let _ = COLLECTED.try_with(|kept| kept.set(self.0));
        }
        hash
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
                let mut hash = Netstrings::new("test", 0);
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
