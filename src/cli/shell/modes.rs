//! What programs in the sandbox switched on in the user's terminal (another screen, the mouse, a
//! hidden cursor), so that it can be switched off when they are cut off before they could.
//!
//! Only private modes of the form `ESC [ ? n ; n h` (on) and `l` (off) are followed, and of those the
//! ones in [`KNOWN`]. Sequences may be cut anywhere.

/// Number, what the terminal begins with, and what that is.
const KNOWN: [(u16, bool); 12] = [
    (1, false),    // arrow keys as programs want them
    (25, true),    // the cursor is shown
    (47, false),   // another screen, the oldest way
    (1000, false), // mouse buttons
    (1002, false), // mouse movement with a button
    (1003, false), // all mouse movement
    (1004, false), // focus
    (1006, false), // mouse coordinates in decimal
    (1015, false), // mouse coordinates, urxvt's way
    (1047, false), // another screen, an older way
    (1049, false), // another screen
    (2004, false), // pasted text is marked
];
/// Longest list of numbers followed; a longer one is no mode of ours.
const NUMBERS_MAX: usize = 16;

#[derive(Default, Clone, Copy, PartialEq)]
enum At {
    #[default]
    Text,
    Escape,
    Bracket,
    Numbers,
}

/// See the module.
#[derive(Default)]
pub struct Modes {
    at: At,
    number: u16,
    numbers: Vec<u16>,
    /// Those of [`KNOWN`] that are not as they began.
    changed: [bool; KNOWN.len()],
}

impl Modes {
    /// Follows output.
    pub fn see(&mut self, output: &[u8]) {
        for &byte in output {
            self.at = self.step(byte);
        }
    }

    fn step(&mut self, byte: u8) -> At {
        match (self.at, byte) {
            (_, 0x1b) => At::Escape,
            (At::Escape, b'[') => At::Bracket,
            // A full reset.
            (At::Escape, b'c') => {
                self.changed = Default::default();
                At::Text
            }
            (At::Bracket, b'?') => {
                (self.number, self.numbers) = (0, Vec::new());
                At::Numbers
            }
            (At::Numbers, b'0'..=b'9') => {
                let digit = u16::from(byte - b'0');
                self.number = self.number.saturating_mul(10).saturating_add(digit);
                At::Numbers
            }
            (At::Numbers, b';' | b'h' | b'l') => {
                if self.numbers.len() >= NUMBERS_MAX {
                    return At::Text;
                }
                self.numbers.push(std::mem::take(&mut self.number));
                match byte {
                    b';' => return At::Numbers,
                    on => self.set(on == b'h'),
                }
                At::Text
            }
            _ => At::Text,
        }
    }

    fn set(&mut self, on: bool) {
        for (changed, (number, first)) in self.changed.iter_mut().zip(KNOWN) {
            if self.numbers.contains(&number) {
                *changed = on != first;
            }
        }
    }

    /// What brings the terminal back to how it began; empty when it is there.
    pub fn undo(&self) -> String {
        let changed = self
            .changed
            .iter()
            .zip(KNOWN)
            .filter(|(changed, _)| **changed);
        let mut undo: String = changed
            .map(|(_, (number, first))| format!("\x1b[?{number}{}", if first { 'h' } else { 'l' }))
            .collect();
        if !undo.is_empty() {
            // Colours, and the character set of lines and corners.
            undo.push_str("\x1b[0m\x1b(B");
        }
        undo
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undo(output: &str) -> String {
        let mut whole = Modes::default();
        whole.see(output.as_bytes());
        let mut cut = Modes::default();
        output.bytes().for_each(|byte| cut.see(&[byte]));
        assert_eq!(whole.undo(), cut.undo(), "{output:?}");
        whole.undo().replace("\x1b[0m\x1b(B", "")
    }

    #[test]
    fn what_was_switched_on_is_switched_off() {
        for (output, expected) in [
            ("plain \x1b[31mred\x1b[0m", ""),
            ("\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"),
            ("\x1b[?1049h\x1b[?1049l", ""),
            ("\x1b[?1000;1006h", "\x1b[?1000l\x1b[?1006l"),
            ("\x1b[?1000;1006h\x1b[?1006l", "\x1b[?1000l"),
            ("\x1b[?25l\x1bc", ""),
            ("\x1b[?2004h", "\x1b[?2004l"),
            ("\x1b[?7h\x1b[?12;25l", "\x1b[?25h"),
            // No modes: cut off, not private, absurd.
            ("\x1b[?1049", ""),
            ("\x1b[1049h", ""),
            ("\x1b[?99999999999h", ""),
            ("\x1b[?1049\x1b[?25l", "\x1b[?25h"),
        ] {
            assert_eq!(undo(output), expected, "{output:?}");
        }
        let long = format!("\x1b[?{}25l", "1;".repeat(1000));
        assert_eq!(undo(&long), "");
    }
}
