//! How hard a value is to guess: whether the re-seal may search for it.
//!
//! A value that can be guessed must not be searched for. A program in the sandbox could send its
//! guesses to a host that echoes, and see by which of them comes back changed that it was right.

/// Shortest value that is searched for in responses, in bytes. Shorter ones would be found in
/// text that has nothing to do with them, and the change would tell a program its guess was right.
pub const RESEAL_VALUE_BYTES_MIN: usize = 8;
/// Fewest distinct bytes of a value that is searched for.
pub const RESEAL_DISTINCT_BYTES_MIN: usize = 6;
/// Fewest bits of a value that is searched for, by [`estimated_bits`]. Guesses are not one for each
/// request: every byte of a body that a host echoes may begin one. At a hundred megabytes a second,
/// without a pause, trying half of these takes six hours; each bit more doubles that.
pub const RESEAL_BITS_MIN: f64 = 42.0;

/// Whether a value can be recognised in responses without telling what it is; a caller should
/// warn about one that can't.
pub fn reseal_possible(value: &[u8]) -> bool {
    let mut seen = [false; 256];
    for &byte in value {
        seen[usize::from(byte)] = true;
    }
    let distinct = seen.iter().filter(|seen| **seen).count();
    value.len() >= RESEAL_VALUE_BYTES_MIN
        && distinct >= RESEAL_DISTINCT_BYTES_MIN
        && estimated_bits(value) >= RESEAL_BITS_MIN
}

/// Bits of a value, from above: its bytes that neither repeat nor continue the one before them
/// (`aa`, `ab`, `21`), each worth the logarithm of the classes of characters that occur; in nothing
/// but hex digits, four bits. A word of a dictionary is worth less than this says.
fn estimated_bits(value: &[u8]) -> f64 {
    let occurs = |class: fn(&u8) -> bool, size: u32| if value.iter().any(class) { size } else { 0 };
    let digit = |b: &u8| b.is_ascii_digit();
    let hex = value.iter().all(|b| digit(b) || matches!(b, b'a'..=b'f'))
        || value.iter().all(|b| digit(b) || matches!(b, b'A'..=b'F'));
    let classes = occurs(u8::is_ascii_digit, 10)
        + occurs(u8::is_ascii_lowercase, 26)
        + occurs(u8::is_ascii_uppercase, 26)
        + occurs(|b| b.is_ascii_punctuation() || *b == b' ', 33)
        + occurs(|b| !b.is_ascii() || b.is_ascii_control(), 128);
    let alphabet = if hex { classes.min(16) } else { classes };
    let continues = value
        .windows(2)
        .filter(|pair| matches!(pair, [a, b] if a.abs_diff(*b) <= 1))
        .count();
    (value.len() - continues) as f64 * f64::from(alphabet).log2()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what people use for passwords is not searched for; what programs make for keys is.
    #[test]
    fn guessable_values_are_told_from_keys() {
        for weak in [
            "",
            "short-1",
            "password",
            "abcdefghijklmnop",
            "aaaaaaaaaaaaaaaaaaaaaaaa",
            "1234567890",
            "20261122",
            "abababababababababab",
            "987654321987654321",
            "hunter22",
            "9f86d081",
            "9F86D0814C",
            "31415926535897",
            "h8f#kQ2",
        ] {
            assert!(!reseal_possible(weak.as_bytes()), "{weak}");
        }
        for strong in [
            "k7Gq2xZp",
            "real-value-0001",
            "sk-test-51HxYz",
            "9f86d081884c7d65",
            "correct horse battery",
            "4915731826409573",
        ] {
            assert!(reseal_possible(strong.as_bytes()), "{strong}");
        }
        assert!(reseal_possible(&[7, 200, 13, 90, 255, 31, 2, 140]));
    }
}
