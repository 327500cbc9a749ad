//! The synthetic addresses a sandbox sees, and the names they stand for.
//!
//! Invariants: at most [`NAMES_MAX`] names are held; each has exactly one address and each
//! address at most one name; when the table is full the name unused for longest loses its
//! address. Addresses mean nothing outside their sandbox and are never routed.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use crate::sandbox::SYNTHETIC_NETWORK;

/// Most names remembered for one sandbox.
pub const NAMES_MAX: u32 = 16_384;

// All addresses must lie inside the /15 they are taken from, its first address left out.
const _: () = assert!(NAMES_MAX + 1 < 1 << (32 - SYNTHETIC_NETWORK.1 as u32));

#[derive(Debug)]
struct Slot {
    name: String,
    /// Moment of last use; the key of this slot in `order`.
    used: u64,
}

/// Names of one sandbox and the addresses they were answered with.
#[derive(Debug)]
pub struct NameTable {
    slots: Vec<Slot>,
    by_name: HashMap<String, u32>,
    order: BTreeMap<u64, u32>,
    clock: u64,
    names_max: u32,
}

impl Default for NameTable {
    fn default() -> Self {
        Self::with_capacity(NAMES_MAX)
    }
}

impl NameTable {
    fn with_capacity(names_max: u32) -> Self {
        Self {
            slots: Vec::new(),
            by_name: HashMap::new(),
            order: BTreeMap::new(),
            clock: 0,
            names_max,
        }
    }

    /// The address of `name` (canonical: lower case, no trailing dot), now its last use.
    pub fn address(&mut self, name: &str) -> Ipv4Addr {
        let index = match self.by_name.get(name) {
            Some(&index) => index,
            None => self.assign(name),
        };
        self.touch(index);
        Ipv4Addr::from_bits(u32::from(SYNTHETIC_NETWORK.0) + 1 + index)
    }

    /// The name `address` was given out for, now its last use.
    pub fn name(&mut self, address: Ipv4Addr) -> Option<String> {
        let index = address
            .to_bits()
            .checked_sub(u32::from(SYNTHETIC_NETWORK.0) + 1)?;
        let name = self.slots.get(index as usize)?.name.clone();
        self.touch(index);
        Some(name)
    }

    fn assign(&mut self, name: &str) -> u32 {
        let slot = Slot {
            name: name.to_owned(),
            used: 0,
        };
        let index = if (self.slots.len() as u32) < self.names_max {
            self.slots.push(slot);
            self.slots.len() as u32 - 1
        } else {
            let (_, index) = self.order.pop_first().unwrap_or_default();
            if let Some(old) = self.slots.get_mut(index as usize) {
                self.by_name.remove(&old.name);
                *old = slot;
            }
            index
        };
        self.by_name.insert(name.to_owned(), index);
        index
    }

    fn touch(&mut self, index: u32) {
        self.clock += 1;
        if let Some(slot) = self.slots.get_mut(index as usize) {
            self.order.remove(&slot.used);
            slot.used = self.clock;
            self.order.insert(self.clock, index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_address_and_an_address_its_name() {
        let mut table = NameTable::default();
        let a = table.address("a.test");
        let b = table.address("b.test");
        assert_ne!(a, b);
        assert_eq!(table.address("a.test"), a);
        assert_eq!(table.name(b).as_deref(), Some("b.test"));
        for unknown in [
            "198.18.0.0",
            "198.18.9.9",
            "10.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
        ] {
            assert_eq!(table.name(unknown.parse().unwrap()), None, "{unknown}");
        }
    }

    /// Goal: a full table stays full, and it is the longest unused name that gives way.
    #[test]
    fn the_table_is_bounded_and_forgets_the_longest_unused() {
        let mut table = NameTable::with_capacity(3);
        let a = table.address("a");
        let b = table.address("b");
        table.address("c");
        table.name(a);
        let d = table.address("d");
        assert_eq!(d, b, "b was unused for longest");
        assert_eq!(table.name(d).as_deref(), Some("d"));
        assert_eq!(table.name(a).as_deref(), Some("a"));
        for i in 0..1000 {
            table.address(&i.to_string());
        }
        assert_eq!(
            (table.slots.len(), table.by_name.len(), table.order.len()),
            (3, 3, 3)
        );
    }
}
