//! "Slice" flags: repeatable, each holding comma-separated values; a value in double quotes keeps
//! its commas (`--env '"GREETING=hello, world"'`), a doubled quote inside stands for one.

use std::collections::BTreeMap;

/// A `K=V` flag.
#[derive(Clone, Debug, PartialEq)]
pub struct Pairs(Vec<(String, String)>);

impl Pairs {
    /// Reads one flag's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let pair = |part: String| match part.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!(
                "`{part}` is not NAME=VALUE (put a value with commas in quotes: '\"A=1,2\"')"
            )),
        };
        split(text)?
            .into_iter()
            .map(pair)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// All flags together; a later value wins.
    pub fn merge(flags: Vec<Self>) -> BTreeMap<String, String> {
        flags.into_iter().flat_map(|Self(pairs)| pairs).collect()
    }
}

/// A flag with a list of words.
#[derive(Clone, Debug, PartialEq)]
pub struct Words(Vec<String>);

impl Words {
    /// Reads one flag's text; `--flag ""` is the empty list.
    pub fn parse(text: &str) -> Result<Self, String> {
        let words = split(text)?.into_iter().map(|word| word.trim().to_owned());
        Ok(Self(words.filter(|word| !word.is_empty()).collect()))
    }

    /// All flags together; None when the flag was not given.
    pub fn merge(flags: Vec<Self>) -> Option<Vec<String>> {
        let given = !flags.is_empty();
        given.then(|| flags.into_iter().flat_map(|Self(words)| words).collect())
    }
}

fn split(text: &str) -> Result<Vec<String>, String> {
    let mut parts = vec![String::new()];
    let (mut quoted, mut at_start) = (false, true);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let starts = std::mem::replace(&mut at_start, false);
        match character {
            '"' if starts => quoted = true,
            '"' if quoted && characters.next_if_eq(&'"').is_none() => quoted = false,
            ',' if !quoted => {
                parts.push(String::new());
                at_start = true;
            }
            other => parts
                .last_mut()
                .into_iter()
                .for_each(|part| part.push(other)),
        }
    }
    if quoted {
        Err(format!("a quote in `{text}` is not closed"))
    } else {
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_split_at_commas_outside_quotes() {
        let check = |text: &str, expected: &[(&str, &str)]| {
            let expected = expected
                .iter()
                .map(|(a, b)| (a.to_string(), b.to_string()))
                .collect();
            assert_eq!(Pairs::parse(text), Ok(Pairs(expected)), "{text}");
        };
        check("A=1", &[("A", "1")]);
        check("A=1,B=x=y", &[("A", "1"), ("B", "x=y")]);
        check("A=", &[("A", "")]);
        check(r#""A=1,2",B=3"#, &[("A", "1,2"), ("B", "3")]);
        check(r#"A=say "hi""#, &[("A", r#"say "hi""#)]);
        check(r#""A=""q""""#, &[("A", r#""q""#)]);
        for bad in ["A", "=x", "A=1,b", "\"A=1"] {
            assert!(Pairs::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_are_absent_empty_or_listed() {
        let parse = |text| Words::parse(text).unwrap();
        assert_eq!(Words::merge(vec![]), None);
        assert_eq!(Words::merge(vec![parse("")]), Some(vec![]));
        let both = Words::merge(vec![parse("a.test, *.b.test"), parse("c.test")]);
        assert_eq!(
            both,
            Some(vec!["a.test".into(), "*.b.test".into(), "c.test".into()])
        );
    }
}
