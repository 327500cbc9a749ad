//! Where the master key comes from: a file of the server's own, its environment, or a command.
//!
//! Only a file is ever written by this program. A key from elsewhere must be there before the first
//! start, and a rotation takes the new one from a file that the operator supplies.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::{KeyError, Keyring, MasterKey, open_keyring};
use crate::config::{MASTER_KEY_VARIABLE, MasterSource};

/// Longest output of a command that is looked at, in bytes.
const OUTPUT_BYTES_MAX: u64 = 1024;
/// How long a command may take, in milliseconds.
const COMMAND_MS_MAX: u64 = 30_000;
const POLL_MS: u64 = 5;

impl MasterSource {
    /// Opens the keyring with the key from here. Returns whether the key was made now, which only
    /// happens to a file, and never for a keyring that exists already.
    pub fn open_keyring(
        &self,
        keys_path: &Path,
        log_has_events: bool,
    ) -> Result<(Keyring, bool), KeyError> {
        match self {
            Self::File(path) => open_keyring(path, keys_path, log_has_events),
            _ => Ok((
                Keyring::open(keys_path, self.load()?, log_has_events)?,
                false,
            )),
        }
    }

    /// The key as it is now; an absent one is an error.
    pub fn load(&self) -> Result<MasterKey, KeyError> {
        match self {
            Self::File(path) => MasterKey::load(path)?.ok_or_else(|| KeyError::MasterLost {
                path: path.to_owned(),
            }),
            Self::Environment => {
                let text = Zeroizing::new(std::env::var(MASTER_KEY_VARIABLE).unwrap_or_default());
                MasterKey::from_text(text.as_bytes(), MASTER_KEY_VARIABLE)
            }
            Self::Command(words) => run(words),
        }
    }

    /// The file, when this is one: what a rotation may replace.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            _ => None,
        }
    }

    /// What it is, for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Environment => format!("the variable {MASTER_KEY_VARIABLE}"),
            Self::Command(words) => {
                format!("the output of `{}`", words.first().map_or("", |w| w))
            }
        }
    }
}

/// The key that a command prints. What it says on its error output goes to ours.
fn run(words: &[String]) -> Result<MasterKey, KeyError> {
    let program = words.first().map_or("", String::as_str);
    let failed = |detail: String| KeyError::Command {
        program: program.to_owned(),
        detail,
    };
    let io = |error: std::io::Error| failed(error.to_string());
    let mut child = Command::new(program)
        .args(words.get(1..).unwrap_or_default())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(io)?;
    let stdout = child.stdout.take();
    // Read aside: a program that prints nothing and does not end must not keep the server waiting.
    let reading = std::thread::spawn(move || {
        let mut text = Zeroizing::new(Vec::with_capacity(1024 + 16));
        let read = stdout.map(|out| out.take(OUTPUT_BYTES_MAX).read_to_end(&mut text));
        read.unwrap_or(Ok(0)).map(|_| text)
    });
    let deadline = Instant::now() + Duration::from_millis(COMMAND_MS_MAX);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(io)? {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(format!("it took more than {COMMAND_MS_MAX} ms")));
        }
        std::thread::sleep(Duration::from_millis(POLL_MS));
    };
    if !status.success() {
        return Err(failed(format!("it ended with {status}")));
    }
    // A grandchild may hold the pipe open: what is not there by the deadline does not come.
    while !reading.is_finished() {
        if Instant::now() > deadline {
            return Err(failed("its output does not end".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(POLL_MS));
    }
    let text = reading
        .join()
        .map_err(|_| failed("its output can't be read".to_owned()))?
        .map_err(io)?;
    MasterKey::from_text(&text, &format!("the output of `{program}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Result<MasterKey, KeyError> {
        MasterSource::Command(words.iter().map(|&word| word.to_owned()).collect()).load()
    }

    fn refusal(words: &[&str]) -> String {
        match command(words) {
            Ok(_) => panic!("{words:?} gave a key"),
            Err(error) => error.to_string(),
        }
    }

    /// Goal: a command's output is the key, and whatever else happens is told without the output.
    #[test]
    fn a_command_gives_the_key_or_a_reason() {
        let text = "5e".repeat(32);
        let key = command(&["sh", "-c", &format!("echo {text}")]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(key.expose(), &[0x5e; 32]);
        let refused = refusal(&["sh", "-c", "echo not-to-be-repeated"]);
        assert!(refused.contains("64 hexadecimal digits"), "{refused}");
        assert!(!refused.contains("not-to-be-repeated"), "{refused}");
        assert!(refusal(&["sh", "-c", &format!("echo {text}; exit 3")]).contains("exit status: 3"));
        assert!(refusal(&["/no/such/program"]).contains("/no/such/program"));
        assert!(refusal(&[]).contains("can't be had"));
        // Endless output is cut off, not collected.
        assert!(refusal(&["sh", "-c", "yes || true"]).contains("64 hexadecimal digits"));
    }
}
