//! The name stub: answers every canonical name with a synthetic address and asks nobody.
//!
//! Invariants: no query ever leaves the machine, so a name can't carry data out by being asked
//! for (only a connection to it can, and that is the policy's to judge); an answer is never
//! longer than [`ANSWER_BYTES_MAX`]; a name that two parsers could read differently gets
//! NXDOMAIN; types other than A are answered "nothing of this type" (RFC 2308, NODATA).

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::names::NameTable;

/// Longest query read, in bytes; without TCP none needs more (RFC 6891 suggests 1232).
pub const QUERY_BYTES_MAX: usize = 1232;
/// Longest answer given, in bytes: the limit every client accepts (RFC 1035, 4.2.1).
pub const ANSWER_BYTES_MAX: usize = 512;
/// How long programs may keep an address. Short, since a full table reuses addresses.
const TTL_SECONDS: u32 = 30;

/// The answer to `query`, or `None` when it deserves none.
pub fn answer(query: &[u8], table: &mut NameTable) -> Option<Vec<u8>> {
    let id = u16::from_be_bytes([*query.first()?, *query.get(1)?]);
    let Ok(query) = Message::from_vec(query) else {
        return encode(&Message::error_msg(
            id,
            OpCode::Query,
            ResponseCode::FormErr,
        ));
    };
    if query.metadata.message_type == MessageType::Response {
        return None;
    }
    let mut reply = Message::response(id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = match query.queries.as_slice() {
        _ if query.metadata.op_code != OpCode::Query => ResponseCode::NotImp,
        [question] => {
            reply.add_query(question.clone());
            if question.query_class() != DNSClass::IN {
                ResponseCode::Refused
            } else {
                resolve(question.name(), question.query_type(), table, &mut reply)
            }
        }
        _ => ResponseCode::FormErr,
    };
    encode(&reply)
}

fn resolve(
    name: &Name,
    kind: RecordType,
    table: &mut NameTable,
    reply: &mut Message,
) -> ResponseCode {
    let Some(canonical) = canonical(name) else {
        return ResponseCode::NXDomain;
    };
    if kind == RecordType::A {
        // RFC 6761: these names are this machine's own, whoever asks.
        let own = canonical == "localhost" || canonical.ends_with(".localhost");
        let address = if own {
            Ipv4Addr::LOCALHOST
        } else {
            table.address(&canonical)
        };
        let record = Record::from_rdata(name.clone(), TTL_SECONDS, RData::A(A(address)));
        reply.add_answer(record);
    }
    ResponseCode::NoError
}

/// The one spelling of a name the filter, the dialler and the certificate check will all see:
/// lower case, no trailing dot. `None` when the name is anything but letters, digits, `-` and
/// `_` in labels, or reads as an address in some spelling.
fn canonical(name: &Name) -> Option<String> {
    let mut labels = Vec::new();
    for label in name.iter() {
        let allowed = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_';
        let dashed = label.first() == Some(&b'-') || label.last() == Some(&b'-');
        if label.is_empty() || label.len() > 63 || dashed || !label.iter().all(allowed) {
            return None;
        }
        labels.push(std::str::from_utf8(label).ok()?.to_ascii_lowercase());
    }
    let last = labels.last()?;
    // "1.2.3.4", "127.1", "0x7f000001": some resolver reads each of these as an address.
    let hex = |rest: &str| rest.bytes().all(|b| b.is_ascii_hexdigit());
    if last.bytes().all(|b| b.is_ascii_digit()) || last.strip_prefix("0x").is_some_and(hex) {
        return None;
    }
    let text = labels.join(".");
    (text.len() <= 253).then_some(text)
}

fn encode(message: &Message) -> Option<Vec<u8>> {
    message
        .to_vec()
        .ok()
        .filter(|bytes| bytes.len() <= ANSWER_BYTES_MAX)
}

/// Lets [`BURST`](RateLimit::BURST) queries pass at once and
/// [`PER_SECOND`](RateLimit::PER_SECOND) on average.
#[derive(Debug)]
pub struct RateLimit {
    tokens: f64,
    last: std::time::Instant,
}

impl RateLimit {
    /// Queries that may come at once.
    pub const BURST: f64 = 2000.0;
    /// Queries answered per second, on average.
    pub const PER_SECOND: f64 = 1000.0;

    /// A full bucket.
    pub fn new(now: std::time::Instant) -> Self {
        Self {
            tokens: Self::BURST,
            last: now,
        }
    }

    /// Whether one more query may be answered at `now`.
    pub fn admit(&mut self, now: std::time::Instant) -> bool {
        let refill = now.saturating_duration_since(self.last).as_secs_f64() * Self::PER_SECOND;
        self.tokens = (self.tokens + refill).min(Self::BURST);
        self.last = now;
        let admitted = self.tokens >= 1.0;
        if admitted {
            self.tokens -= 1.0;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use std::time::{Duration, Instant};

    fn ask(table: &mut NameTable, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let mut query = Message::query();
        // By labels, since the text form refuses names that the wire form carries.
        let labels = name
            .split('.')
            .filter(|label| !label.is_empty())
            .map(str::as_bytes);
        query.add_query(Query::query(Name::from_labels(labels).unwrap(), kind));
        let bytes = answer(&query.to_vec().unwrap(), table).unwrap();
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!(reply.metadata.id, query.metadata.id);
        let answers = reply.answers.iter().map(|r| r.data.to_string()).collect();
        (reply.metadata.response_code, answers)
    }

    #[test]
    fn an_address_is_given_once_per_name_whatever_its_case() {
        let mut table = NameTable::default();
        let first = ask(&mut table, "Api.Example.com.", RecordType::A);
        assert_eq!(
            first,
            (ResponseCode::NoError, vec!["198.18.0.1".to_owned()])
        );
        assert_eq!(ask(&mut table, "api.example.COM", RecordType::A), first);
        assert_eq!(
            table.name("198.18.0.1".parse().unwrap()).unwrap(),
            "api.example.com"
        );
        let own = ask(&mut table, "localhost.", RecordType::A);
        assert_eq!(own.1, ["127.0.0.1"]);
    }

    #[test]
    fn other_types_are_empty_and_name_nothing() {
        let mut table = NameTable::default();
        for kind in ["AAAA", "TXT", "NULL", "HTTPS", "MX", "PTR", "SRV", "CNAME"] {
            let got = ask(&mut table, "data.evil.test.", kind.parse().unwrap());
            assert_eq!(got, (ResponseCode::NoError, vec![]), "{kind}");
        }
        assert_eq!(table.name("198.18.0.1".parse().unwrap()), None);
    }

    #[test]
    fn names_that_can_be_read_two_ways_do_not_exist() {
        let mut table = NameTable::default();
        let long = format!("{}.test.", ["a".repeat(63).as_str(); 4].join("."));
        assert!(
            Name::from_ascii(&long).is_err(),
            "the parser itself refuses 255 bytes"
        );
        for name in [
            "1.2.3.4.",
            "127.1.",
            "0x7f000001.",
            "-a.test.",
            "a-.test.",
            "a\0b.test.",
            ".",
        ] {
            let got = ask(&mut table, name, RecordType::A);
            assert_eq!(got.0, ResponseCode::NXDomain, "{name}");
        }
    }

    #[test]
    fn garbage_gets_an_error_or_nothing_and_never_a_panic() {
        let mut table = NameTable::default();
        assert_eq!(answer(b"", &mut table), None);
        assert_eq!(answer(b"x", &mut table), None);
        for length in 2..64 {
            for byte in [0u8, 0x0c, 0x80, 0xc0, 0xff] {
                let reply = answer(&vec![byte; length], &mut table);
                assert!(reply.is_none_or(|r| r.len() <= ANSWER_BYTES_MAX));
            }
        }
    }

    #[test]
    fn the_rate_is_bounded_and_recovers() {
        let start = Instant::now();
        let mut limit = RateLimit::new(start);
        let admitted = (0..10_000).filter(|_| limit.admit(start)).count();
        assert_eq!(admitted, RateLimit::BURST as usize);
        assert!(limit.admit(start + Duration::from_millis(10)));
    }
}
