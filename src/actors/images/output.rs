//! What a step prints, as lines of bounded length, and the end of it for when it fails.

use std::collections::VecDeque;

/// Longest line, in bytes; longer ones are cut into several.
const LINE_BYTES_MAX: usize = 4096;
/// What is told of a failed step's output.
/// Of each stream: which of the two wrote first can't be told.
const TAIL_LINES_MAX: usize = 20;
const TAIL_CHARS_MAX: usize = 2000;

/// Output on its way to listeners; the streams are 0 and 1.
pub(super) struct Lines<'a> {
    say: &'a (dyn Fn(String) + Sync),
    /// What has no end yet, of each of the two streams.
    open: [Vec<u8>; 2],
    tails: [VecDeque<String>; 2],
}

impl<'a> Lines<'a> {
    pub fn new(say: &'a (dyn Fn(String) + Sync)) -> Self {
        Self {
            say,
            open: Default::default(),
            tails: Default::default(),
        }
    }

    /// Takes what one of the streams printed.
    pub fn take(&mut self, stream: usize, bytes: &[u8]) {
        let stream = stream.min(1);
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (open, tail) = (&mut self.open[stream], &mut self.tails[stream]);
            for piece in part.chunks(LINE_BYTES_MAX) {
                open.extend_from_slice(piece);
                let whole = open.last() == Some(&b'\n') || open.len() >= LINE_BYTES_MAX;
                if whole {
                    let line = std::mem::take(open);
                    Self::tell(self.say, tail, &line);
                }
            }
        }
    }

    /// The end of what was printed.
    pub fn finish(mut self) -> String {
        for (line, tail) in std::mem::take(&mut self.open).iter().zip(&mut self.tails) {
            if !line.is_empty() {
                Self::tell(self.say, tail, line);
            }
        }
        // What went wrong is mostly on standard error, and the end is what is kept.
        let tail: Vec<String> = self.tails.into_iter().flatten().collect();
        let tail = tail.join("\n");
        let from = tail.chars().count().saturating_sub(TAIL_CHARS_MAX);
        tail.chars().skip(from).collect()
    }

    fn tell(say: &(dyn Fn(String) + Sync), tail: &mut VecDeque<String>, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        // A progress bar writes its line again and again: what stands there last counts.
        let text = text.trim_end_matches(['\n', '\r']);
        let text = text.rsplit('\r').next().unwrap_or_default();
        let text: String = text
            .chars()
            .filter(|c| !c.is_control() || *c == '\t')
            .collect();
        if tail.len() >= TAIL_LINES_MAX {
            tail.pop_front();
        }
        tail.push_back(text.clone());
        say(text);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Goal: lines come whole however output is cut, streams apart, and never without bound.
    #[test]
    fn output_is_cut_into_lines() {
        let heard = Mutex::new(Vec::new());
        let say = |line: String| heard.lock().expect("no panic").push(line);
        let mut lines = Lines::new(&say);
        lines.take(0, b"on");
        lines.take(1, b"err\r\n");
        lines.take(0, b"e\n10%\r20%\r\n\x1b[1mbold\n");
        lines.take(0, &[b'x'; LINE_BYTES_MAX + 1]);
        let tail = lines.finish();
        let heard = heard.into_inner().expect("no panic");
        assert_eq!(heard[..4], ["err", "one", "20%", "[1mbold"]);
        assert_eq!(heard[4].len(), LINE_BYTES_MAX);
        assert_eq!(heard[5], "x");
        assert_eq!(tail.chars().count(), TAIL_CHARS_MAX);
        assert!(tail.ends_with("x\nerr"), "standard error last");
    }
}
