//! The command line of `sudo`, as far as it makes sense in a sandbox.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// What the caller wants.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Run(Run),
    /// `-v`, `-k`, `-K` alone: there are no credentials to keep.
    Validate,
    List,
    Version,
    Help,
}

/// A command to run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// A name, or `#` and a number; root when absent.
    pub user: Option<OsString>,
    /// `-E`: `HOME` stays as it is too.
    pub preserve_env: bool,
    /// `-H`: overrules `preserve_env` for `HOME`.
    pub set_home: bool,
    /// `-i`: the user's shell as a login shell, in the user's home.
    pub login: bool,
    /// `-s`: the caller's shell.
    pub shell: bool,
    /// `-D`.
    pub cwd: Option<OsString>,
    /// `NAME=value` before the command.
    pub assignments: Vec<(OsString, OsString)>,
    /// Empty only with `login` or `shell`.
    pub command: Vec<OsString>,
}

/// Reads the arguments after the program's name.
///
/// # Errors
/// A text for the user about an option that is unknown, unsupported or lacks its value.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Action, String> {
    let mut parser = Parser {
        args: args.into_iter().collect::<Vec<_>>().into_iter(),
        ..Parser::default()
    };
    let first = parser.options()?;
    let Parser {
        mut run, action, ..
    } = parser;
    let mut words = first.into_iter().chain(parser.args).peekable();
    while let Some((name, value)) = words.peek().and_then(|word| assignment(word)) {
        run.assignments.push((name, value));
        words.next();
    }
    run.command = words.collect();
    match action {
        Some(action) if run.command.is_empty() || action != Action::Validate => Ok(action),
        _ if run.command.is_empty() && !run.login && !run.shell => Ok(Action::Help),
        _ => Ok(Action::Run(run)),
    }
}

#[derive(Default)]
struct Parser {
    args: std::vec::IntoIter<OsString>,
    run: Run,
    action: Option<Action>,
}

impl Parser {
    /// Reads options; answers the first word that is none.
    fn options(&mut self) -> Result<Option<OsString>, String> {
        while let Some(arg) = self.args.next() {
            let bytes = arg.as_bytes();
            if bytes == b"--" {
                return Ok(self.args.next());
            }
            if let Some(long) = bytes.strip_prefix(b"--") {
                self.long(long)?;
            } else if let Some(cluster) = bytes.strip_prefix(b"-").filter(|rest| !rest.is_empty()) {
                self.cluster(cluster)?;
            } else {
                return Ok(Some(arg));
            }
        }
        Ok(None)
    }

    /// `-nE`, `-uroot`, `-Hu root`.
    fn cluster(&mut self, cluster: &[u8]) -> Result<(), String> {
        for (at, letter) in cluster.iter().enumerate() {
            if matches!(letter, b'u' | b'p' | b'C' | b'D') {
                let rest = cluster.get(at + 1..).filter(|rest| !rest.is_empty());
                let value = rest.map(|rest| OsStr::from_bytes(rest).to_owned());
                return self.option(char::from(*letter), value);
            }
            self.option(char::from(*letter), None)?;
        }
        Ok(())
    }

    fn long(&mut self, long: &[u8]) -> Result<(), String> {
        let mut parts = long.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        let value = parts
            .next()
            .map(|value| OsStr::from_bytes(value).to_owned());
        let letter = match name {
            b"user" => 'u',
            b"prompt" => 'p',
            b"close-from" => 'C',
            b"chdir" => 'D',
            b"non-interactive" => 'n',
            // With a list of names as well: the environment is kept anyway.
            b"preserve-env" if value.is_some() => 'n',
            b"preserve-env" => 'E',
            b"set-home" => 'H',
            b"stdin" => 'S',
            b"askpass" => 'A',
            b"bell" => 'B',
            b"preserve-groups" => 'P',
            b"login" => 'i',
            b"shell" => 's',
            b"validate" => 'v',
            b"reset-timestamp" => 'k',
            b"remove-timestamp" => 'K',
            b"list" => 'l',
            b"version" => 'V',
            b"help" => 'h',
            _ => return Err(unsupported(&format!("--{}", String::from_utf8_lossy(name)))),
        };
        self.option(letter, value)
    }

    fn option(&mut self, letter: char, value: Option<OsString>) -> Result<(), String> {
        match letter {
            // Nothing asks for a password, so how to ask does not matter.
            'n' | 'S' | 'A' | 'B' | 'P' => {}
            'p' | 'C' => drop(self.value(letter, value)?),
            'u' => self.run.user = Some(self.value(letter, value)?),
            'D' => self.run.cwd = Some(self.value(letter, value)?),
            'E' => self.run.preserve_env = true,
            'H' => self.run.set_home = true,
            'i' => self.run.login = true,
            's' => self.run.shell = true,
            'v' | 'k' | 'K' => self.action = Some(Action::Validate),
            'l' => self.action = Some(Action::List),
            'V' => self.action = Some(Action::Version),
            'h' => self.action = Some(Action::Help),
            other => return Err(unsupported(&format!("-{other}"))),
        }
        Ok(())
    }

    fn value(&mut self, letter: char, given: Option<OsString>) -> Result<OsString, String> {
        let value = given.or_else(|| self.args.next());
        value.ok_or_else(|| format!("option -{letter} needs a value"))
    }
}

fn unsupported(option: &str) -> String {
    format!("option {option} is not supported in a sandbox; try: sudo [-EHins] [-u user] command")
}

/// `NAME=value` taken apart.
fn assignment(word: &OsStr) -> Option<(OsString, OsString)> {
    let bytes = word.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (bytes.get(..at)?, bytes.get(at + 1..)?);
    let plain = name
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let named = plain && name.first().is_some_and(|byte| !byte.is_ascii_digit());
    named.then(|| {
        (
            OsStr::from_bytes(name).to_owned(),
            OsStr::from_bytes(value).to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Action, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn run(line: &str) -> Run {
        match parsed(line) {
            Ok(Action::Run(run)) => run,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// Goal: the spellings scripts use.
    #[test]
    fn command_lines() {
        let plain = run("apt-get install -y git");
        assert_eq!(plain.command, ["apt-get", "install", "-y", "git"]);
        assert_eq!(plain.user, None);
        for line in [
            "-nEu www cmd -u x",
            "-n -E -uwww cmd -u x",
            "-E --user=www -- cmd -u x",
        ] {
            let run = run(line);
            assert_eq!(run.user.as_deref(), Some(OsStr::new("www")), "{line}");
            assert_eq!(run.command, ["cmd", "-u", "x"], "{line}");
            assert!(run.preserve_env && !run.set_home, "{line}");
        }
        let assigned = run("-H A=1 _b2=x=y cmd C=3");
        let pair = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        assert_eq!(assigned.assignments, [pair("A", "1"), pair("_b2", "x=y")]);
        assert_eq!(assigned.command, ["cmd", "C=3"]);
        assert!(run("-i").login && run("-s ls").shell);
        assert_eq!(run("-k true").command, ["true"]);
    }

    /// Goal: what is no command, and what is refused.
    #[test]
    fn other_actions() {
        for (line, action) in [
            ("-v", Action::Validate),
            ("-n -v", Action::Validate),
            ("-k", Action::Validate),
            ("-l", Action::List),
            ("--version", Action::Version),
            ("", Action::Help),
            ("-n", Action::Help),
        ] {
            assert_eq!(parsed(line), Ok(action), "{line}");
        }
        for line in ["-e file", "--host=x ls", "-u", "-Z"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
