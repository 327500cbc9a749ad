//! The last bytes a session wrote, both streams in order of arrival.
//!
//! Invariants: positions are counted over everything ever written and only grow; the ring holds
//! exactly the bytes of `start()..end()`, never more than `bytes_max`; a segment holds bytes of one
//! stream; there are never more than `SEGMENTS_MAX` segments, so that a process that alternates
//! streams byte by byte can't turn bookkeeping into memory.

use std::collections::VecDeque;

/// Which of its two outputs a process wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Largest segment, in bytes: one output message.
const SEGMENT_BYTES_MAX: usize = oc_guest::OUTPUT_BYTES_MAX;
/// Most segments kept; the oldest go first.
pub const SEGMENTS_MAX: usize = 16 * 1024;

struct Segment {
    stream: Stream,
    start: u64,
    data: Vec<u8>,
}

/// See the module.
pub struct Scrollback {
    segments: VecDeque<Segment>,
    start: u64,
    end: u64,
    bytes_max: u64,
}

impl Scrollback {
    /// An empty ring that will hold at most `bytes_max` bytes.
    pub fn new(bytes_max: u32) -> Self {
        Self {
            segments: VecDeque::new(),
            start: 0,
            end: 0,
            bytes_max: u64::from(bytes_max),
        }
    }

    /// Position of the oldest byte held.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Position after the newest byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many bytes the ring may hold.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Whether one more append may drop bytes for want of segments, whatever its size.
    pub fn crowded(&self) -> bool {
        self.segments.len() >= SEGMENTS_MAX
    }

    /// Position below which bytes go when the next append is made to a crowded ring.
    pub fn second_segment_start(&self) -> u64 {
        self.segments
            .get(1)
            .map_or(self.end, |segment| segment.start)
    }

    /// Adds bytes at the end and drops what no longer fits from the start.
    pub fn push(&mut self, stream: Stream, mut data: &[u8]) {
        while !data.is_empty() {
            let room = match self.segments.back() {
                Some(last) if last.stream == stream => SEGMENT_BYTES_MAX - last.data.len(),
                _ => 0,
            };
            if room == 0 {
                self.segments.push_back(Segment {
                    stream,
                    start: self.end,
                    data: Vec::new(),
                });
            }
            let room = if room == 0 { SEGMENT_BYTES_MAX } else { room };
            let (now, later) = data.split_at(room.min(data.len()));
            if let Some(last) = self.segments.back_mut() {
                last.data.extend_from_slice(now);
            }
            self.end += now.len() as u64;
            data = later;
        }
        self.evict();
    }

    fn evict(&mut self) {
        self.start = self.start.max(self.end.saturating_sub(self.bytes_max));
        while self.segments.len() > SEGMENTS_MAX {
            self.start = self.start.max(self.second_segment_start());
            self.segments.pop_front();
        }
        while self
            .segments
            .front()
            .is_some_and(|s| s.start + s.data.len() as u64 <= self.start)
        {
            self.segments.pop_front();
        }
    }

    /// The bytes from `position` to the end of their segment. `None` at the end; a position that
    /// was dropped reads from the oldest byte held.
    pub fn read(&self, position: u64) -> Option<(Stream, &[u8])> {
        let position = position.max(self.start);
        let after = self
            .segments
            .partition_point(|segment| segment.start <= position);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        let data = segment.data.get((position - segment.start) as usize..)?;
        (!data.is_empty()).then_some((segment.stream, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(ring: &Scrollback) -> Vec<(Stream, Vec<u8>)> {
        let mut position = ring.start();
        let mut pieces = Vec::new();
        while let Some((stream, data)) = ring.read(position) {
            position += data.len() as u64;
            pieces.push((stream, data.to_vec()));
        }
        assert_eq!(position, ring.end());
        pieces
    }

    /// Goal: order and streams survive, and exactly the newest bytes are kept.
    #[test]
    fn keeps_the_newest_bytes_in_order_of_arrival() {
        let mut ring = Scrollback::new(8);
        ring.push(Stream::Stdout, b"abc");
        ring.push(Stream::Stderr, b"XY");
        ring.push(Stream::Stdout, b"def");
        let whole = [
            (Stream::Stdout, b"abc".to_vec()),
            (Stream::Stderr, b"XY".to_vec()),
        ];
        assert_eq!(replay(&ring)[..2], whole);
        ring.push(Stream::Stdout, b"gh");
        let left = [
            (Stream::Stdout, b"c".to_vec()),
            (Stream::Stderr, b"XY".to_vec()),
            (Stream::Stdout, b"defgh".to_vec()),
        ];
        assert_eq!(replay(&ring), left);
        assert_eq!((ring.start(), ring.end()), (2, 10));
    }

    /// Goal: one push larger than everything leaves its own tail, cut into messages.
    #[test]
    fn a_large_push_is_cut_into_segments() {
        let mut ring = Scrollback::new(100_000);
        let data: Vec<u8> = (0..250_000u32).map(|i| i as u8).collect();
        ring.push(Stream::Stdout, &data);
        let pieces = replay(&ring);
        assert!(
            pieces
                .iter()
                .all(|(_, piece)| piece.len() <= SEGMENT_BYTES_MAX)
        );
        let joined: Vec<u8> = pieces.into_iter().flat_map(|(_, piece)| piece).collect();
        assert_eq!(joined, data[150_000..]);
    }

    /// Goal: alternating single bytes stay within the bound on segments.
    #[test]
    fn bookkeeping_is_bounded() {
        let mut ring = Scrollback::new(1 << 20);
        for i in 0..3 * SEGMENTS_MAX {
            let stream = if i % 2 == 0 {
                Stream::Stdout
            } else {
                Stream::Stderr
            };
            ring.push(stream, b"x");
        }
        assert_eq!(ring.end() - ring.start(), SEGMENTS_MAX as u64);
        assert_eq!(replay(&ring).len(), SEGMENTS_MAX);
    }
}
