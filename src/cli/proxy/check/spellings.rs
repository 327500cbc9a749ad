//! The spellings in which a host may say a value back.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

/// A spelling: its name, how a host writes the value amid other text, and the part of that by
/// which the value is found again.
pub struct Spelling {
    /// Its name.
    pub name: &'static str,
    /// What the host sends.
    pub sent: Vec<u8>,
    /// What must not arrive: all of it that depends on the value alone.
    pub core: Vec<u8>,
}

/// Base64 with the value at each of the three alignments, in both alphabets.
pub fn base64(value: &[u8]) -> Vec<Spelling> {
    let mut all = Vec::new();
    for shift in 0..3 {
        for (name, engine) in [("base64", &STANDARD), ("base64url", &URL_SAFE_NO_PAD)] {
            let sent = engine
                .encode([&b"xx"[..shift], value, b"yy"].concat())
                .into_bytes();
            // Characters that hold bits of the value only.
            let first = (shift * 8).div_ceil(6);
            let last = (shift + value.len()) * 8 / 6;
            let core = sent.get(first..last).unwrap_or_default().to_vec();
            all.push(Spelling { name, sent, core });
        }
    }
    all
}

/// Hex in both cases.
pub fn hex(value: &[u8]) -> Vec<Spelling> {
    vec![
        whole("hex", hex::encode(value).into_bytes()),
        whole("HEX", hex::encode_upper(value).into_bytes()),
    ]
}

/// Percent-encoding: of what must be, in both cases, and of everything.
pub fn percent(value: &[u8]) -> Vec<Spelling> {
    let needed = |upper: bool| {
        let encode = |&byte: &u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => vec![byte],
            _ if upper => format!("%{byte:02X}").into_bytes(),
            _ => format!("%{byte:02x}").into_bytes(),
        };
        value.iter().flat_map(encode).collect()
    };
    let every = value
        .iter()
        .flat_map(|byte| format!("%{byte:02X}").into_bytes());
    vec![
        whole("percent", needed(true)),
        whole("percent, lower case", needed(false)),
        whole("percent, every byte", every.collect()),
    ]
}

/// JSON as common encoders write it: the shortest way, with escaped slashes, and with `\u` for the
/// marks that are unsafe in HTML.
pub fn json(value: &[u8]) -> Vec<Spelling> {
    let text = String::from_utf8_lossy(value);
    let mut slashes = String::new();
    let mut html = String::new();
    for character in text.chars() {
        match character {
            '/' => slashes += "\\/",
            '"' | '\\' => slashes.extend(['\\', character]),
            _ => slashes.push(character),
        }
        match character {
            '"' | '\'' | '<' | '>' | '&' | '+' | '`' => {
                html += &format!("\\u{:04X}", u32::from(character));
            }
            '\\' => html += "\\\\",
            _ => html.push(character),
        }
    }
    let quoted = serde_json::to_string(&text).unwrap_or_default();
    vec![
        whole("JSON", quoted.trim_matches('"').to_owned().into_bytes()),
        whole("JSON, escaped slashes", slashes.into_bytes()),
        whole("JSON, safe in HTML", html.into_bytes()),
    ]
}

/// JSON with `\u` for everything but letters and digits.
pub fn json_marks(value: &[u8]) -> Vec<Spelling> {
    let escape = |character: char| match character {
        'a'..='z' | 'A'..='Z' | '0'..='9' => character.to_string(),
        _ => format!("\\u{:04x}", u32::from(character)),
    };
    let text: String = String::from_utf8_lossy(value).chars().map(escape).collect();
    vec![whole("JSON, \\u for marks", text.into_bytes())]
}

/// JSON with `\u` for every character.
pub fn json_every(value: &[u8]) -> Vec<Spelling> {
    let text = String::from_utf8_lossy(value);
    let lower = text
        .chars()
        .map(|c| format!("\\u{:04x}", u32::from(c)))
        .collect::<String>();
    let upper = text
        .chars()
        .map(|c| format!("\\u{:04X}", u32::from(c)))
        .collect::<String>();
    vec![
        whole("JSON, \\u for all", lower.into_bytes()),
        whole("JSON, \\u for all, upper case", upper.into_bytes()),
    ]
}

fn whole(name: &'static str, sent: Vec<u8>) -> Spelling {
    let core = sent.clone();
    Spelling { name, sent, core }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the core of base64 is the same whatever stands around the value.
    #[test]
    fn the_core_of_base64_depends_on_the_value_alone() {
        let value = b"a value of some length";
        for (index, spelling) in base64(value).iter().enumerate() {
            let shift = index / 2;
            let around = [&b"ab"[..shift], value, b"cd"].concat();
            let other = STANDARD.encode(&around).into_bytes();
            let url = URL_SAFE_NO_PAD.encode(&around).into_bytes();
            let found = |text: &[u8]| memchr::memmem::find(text, &spelling.core).is_some();
            assert!(found(&other) || found(&url), "{}", spelling.name);
            assert!(spelling.core.len() >= value.len());
        }
    }
}
