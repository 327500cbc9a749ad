//! Verifying an export (`export.rs`) without any server: a pure function over its lines.
//!
//! One pass, one line in memory at a time, and for each stream its last revision. Every content
//! hash is made again from the fields as they stand in the file, every chain hash from those; then
//! the chain is compared with what was noted elsewhere ([`Known`]), the only thing that tells a
//! history that was rewritten from its first commit on.
//!
//! Unknown and repeated fields are refused: nothing may stand in an export that no hash covers.

use std::collections::HashMap;
use std::io::BufRead;

use serde::Deserialize;
use ulid::Ulid;

use super::chain::{self, Hash};
use super::event::Head;
use super::export_fault::ExportFault;
use super::export_lines::{Commit, End, EndLine, Event, Header, Lines, hash_of, malformed, parse};
use super::proof::{Known, StreamReport};
use super::stream::StreamId;

/// What was checked, all of it found in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportReport {
    /// The log's identity.
    pub log: Ulid,
    /// Events that are there in full, their content checked.
    pub events: u64,
    /// Events of others, of which only the content hash is there.
    pub withheld: u64,
    /// Streams of the events in full.
    pub streams: u64,
    /// Where the export ends.
    pub head: Head,
    /// The stream asked for.
    pub stream: Option<StreamReport>,
}

/// Checks an export whole, against what is `known` from elsewhere; with `stream` also counts that
/// stream's events, of which there must be some.
pub fn check_export(
    export: impl BufRead,
    known: &[Known],
    stream: Option<&StreamId>,
) -> Result<ExportReport, ExportFault> {
    let mut lines = Lines::new(export);
    let mut check = match lines.next()? {
        Some(line) => Check::new(&parse(line, 1)?, known)?,
        None => return Err(malformed(1, "the file is empty")),
    };
    loop {
        let number = lines.number + 1;
        let step = match lines.next()? {
            Some(line) => check.line(line, number)?,
            None => return Err(check.truncated("its last line is missing")),
        };
        match step {
            Step::Commit => {}
            Step::Misplaced(found) => {
                return Err(misplaced(&mut lines, found, check.head.commit + 1));
            }
            Step::End => break,
        }
    }
    match lines.next()? {
        Some(_) => Err(ExportFault::AfterEnd { line: lines.number }),
        None => check.report(stream),
    }
}

enum Step {
    Commit,
    /// A commit of this number where another belongs.
    Misplaced(u64),
    End,
}

/// Where a stream stands: its last revision, events seen, and how many events had been withheld.
struct Stream {
    revision: u64,
    events: u64,
    withheld: u64,
}

struct Check<'a> {
    log: Ulid,
    known: &'a [Known],
    head: Head,
    last_ms: i64,
    events: u64,
    withheld: u64,
    streams: HashMap<String, Stream>,
}

impl<'a> Check<'a> {
    fn new(header: &Header<'_>, known: &'a [Known]) -> Result<Self, ExportFault> {
        if header.format != "oc.log.v1" {
            return Err(malformed(1, "its format is not oc.log.v1"));
        }
        let log = Ulid::from_string(header.log).ok();
        let log = log.filter(|log| log.to_string() == header.log);
        let log = log.ok_or_else(|| malformed(1, "its log is no ULID"))?;
        let mut logs = known.iter().filter_map(|known| known.log);
        if let Some(wanted) = logs.find(|wanted| *wanted != log) {
            return Err(ExportFault::OtherLog {
                found: log.to_string(),
                wanted: wanted.to_string(),
            });
        }
        let check = Self {
            log,
            known,
            head: Head::beginning(log),
            last_ms: i64::MIN,
            events: 0,
            withheld: 0,
            streams: HashMap::new(),
        };
        check.compare()?;
        Ok(check)
    }

    fn line(&mut self, line: &[u8], number: u64) -> Result<Step, ExportFault> {
        if line.starts_with(b"{\"end\"") {
            let EndLine { end } = parse(line, number)?;
            return self.end(&end).map(|()| Step::End);
        }
        let commit: Commit<'_> = parse(line, number)?;
        if commit.commit != self.head.commit + 1 {
            return Ok(Step::Misplaced(commit.commit));
        }
        self.commit(&commit).map(|()| Step::Commit)
    }

    fn commit(&mut self, commit: &Commit<'_>) -> Result<(), ExportFault> {
        let number = commit.commit;
        let mut hashes = Vec::with_capacity(commit.events.len());
        for (index, event) in commit.events.iter().enumerate() {
            let position = self.head.position + 1 + hashes.len() as u64;
            let hash = match event.is_withheld() {
                true => {
                    self.withheld += 1;
                    hash_of(event.content_hash).ok_or(ExportFault::Altered {
                        position,
                        commit: number,
                    })?
                }
                false => {
                    let later = commit.events.get(index + 1..).unwrap_or_default();
                    self.event(event, number, position, later)?
                }
            };
            hashes.push(hash);
        }
        let head = Head {
            position: self.head.position + hashes.len() as u64,
            commit: number,
            chain: chain::chain_hash(number, &self.head.chain, &hashes),
        };
        if hashes.is_empty() || hash_of(commit.chain) != Some(head.chain) {
            return Err(ExportFault::Chain { commit: number });
        }
        self.head = head;
        self.compare()
    }

    /// Checks an event in full at its place; `later` are those behind it in its commit.
    fn event(
        &mut self,
        event: &Event<'_>,
        commit: u64,
        position: u64,
        later: &[Event<'_>],
    ) -> Result<Hash, ExportFault> {
        let hash = event.hash();
        if hash_of(event.content_hash) != Some(hash) {
            return Err(ExportFault::Altered { position, commit });
        }
        if event.position != position {
            let what = match event.position {
                found if found < position => "an event inserted",
                _ if later.iter().any(|e| e.position == position) => "its events reordered",
                _ => "an event dropped",
            };
            return Err(ExportFault::Events {
                commit,
                position,
                what,
            });
        }
        let envelope = |what| Err(ExportFault::Envelope { position, what });
        if event.commit != commit {
            return envelope("it belongs to another commit");
        }
        if event.recorded_at_ms < self.last_ms {
            return envelope("time goes backwards");
        }
        self.last_ms = event.recorded_at_ms;
        self.events += 1;
        match self.follow(event) {
            true => Ok(hash),
            false => envelope("its stream's revisions have a gap or a double"),
        }
    }

    /// Whether the event is the next one of its stream: where others' events are withheld, some of
    /// its stream may be among them.
    fn follow(&mut self, event: &Event<'_>) -> bool {
        let withheld = self.withheld;
        let Some(stream) = self.streams.get_mut(event.stream) else {
            let first = Stream {
                revision: event.revision,
                events: 1,
                withheld,
            };
            self.streams.insert(event.stream.to_owned(), first);
            return event.revision <= withheld;
        };
        let skipped = event.revision.checked_sub(stream.revision + 1);
        let fits = skipped.is_some_and(|skipped| skipped <= withheld - stream.withheld);
        stream.revision = event.revision;
        stream.events += 1;
        stream.withheld = withheld;
        fits
    }

    /// Compares the chain here with what was noted elsewhere of this commit.
    fn compare(&self) -> Result<(), ExportFault> {
        let mut here = self.known.iter().filter(|k| k.commit == self.head.commit);
        match here.find(|known| known.chain != self.head.chain) {
            None => Ok(()),
            Some(known) => Err(ExportFault::OtherHistory {
                commit: known.commit,
                found: hex::encode(self.head.chain),
                wanted: hex::encode(known.chain),
            }),
        }
    }

    /// The end line says where the last commit led, and no commit noted elsewhere lies beyond.
    fn end(&self, end: &End<'_>) -> Result<(), ExportFault> {
        let said = (end.position, end.commit, hash_of(end.chain));
        if said != (self.head.position, self.head.commit, Some(self.head.chain)) {
            return Err(self.truncated("its last line tells of another end"));
        }
        let ends = self.head.commit;
        match self.known.iter().find(|known| known.commit > ends) {
            None => Ok(()),
            Some(Known { commit, .. }) => Err(ExportFault::EndsEarly {
                ends,
                commit: *commit,
            }),
        }
    }

    fn truncated(&self, what: &'static str) -> ExportFault {
        ExportFault::Truncated {
            commit: self.head.commit,
            what,
        }
    }

    fn report(self, stream: Option<&StreamId>) -> Result<ExportReport, ExportFault> {
        let stream = match stream {
            None => None,
            Some(stream) => match self.streams.get(stream.as_str()) {
                Some(found) => Some(StreamReport {
                    stream: stream.clone(),
                    events: found.events,
                    last_revision: found.revision,
                }),
                None => {
                    return Err(ExportFault::NoStream {
                        stream: stream.clone(),
                    });
                }
            },
        };
        Ok(ExportReport {
            log: self.log,
            events: self.events,
            withheld: self.withheld,
            streams: self.streams.len() as u64,
            head: self.head,
            stream,
        })
    }
}

/// A commit `found` where `wanted` belongs: the rest of the file tells what was done.
fn misplaced(lines: &mut Lines<impl BufRead>, found: u64, wanted: u64) -> ExportFault {
    #[derive(Deserialize)]
    struct Number {
        commit: u64,
    }
    let line = lines.number;
    if found < wanted {
        return ExportFault::Inserted {
            commit: found,
            line,
        };
    }
    while let Ok(Some(line)) = lines.next() {
        let number = serde_json::from_slice::<Number>(line);
        if number.is_ok_and(|number| number.commit == wanted) {
            return ExportFault::Reordered {
                commit: wanted,
                line: lines.number,
            };
        }
    }
    ExportFault::Dropped {
        first: wanted,
        last: found - 1,
    }
}
