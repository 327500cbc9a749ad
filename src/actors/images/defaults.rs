//! What an image says of the processes in its sandboxes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::manifest::{Step, Vars};

/// Variables and the folder that processes begin with. A sandbox's own variables win.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDefaults {
    /// Variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where processes start when nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
}

impl ImageDefaults {
    /// What `steps` add up to, on top of what was there before.
    pub fn of<'a>(mut self, steps: impl IntoIterator<Item = &'a Step>) -> Self {
        for step in steps {
            match step {
                Step::Env(Vars(vars)) => self.env.extend(vars.iter().cloned()),
                Step::Workdir(path) => self.workdir = Some(path.clone()),
                _ => {}
            }
        }
        self
    }

    /// Whether it says anything.
    pub fn is_empty(&self) -> bool {
        self.env.is_empty() && self.workdir.is_none()
    }

    /// The lines of `/etc/environment`, which knows no escapes.
    pub(super) fn environment_file(&self) -> String {
        let line = |(name, value): (&String, &String)| {
            let value = value.replace(['\n', '\r'], " ");
            format!("{name}={value}\n")
        };
        self.env.iter().map(line).collect()
    }

    /// The script that login shells read.
    pub(super) fn profile(&self) -> String {
        let line = |(name, value): (&String, &String)| {
            let value = value.replace('\'', r"'\''");
            format!("export {name}='{value}'\n")
        };
        self.env.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: later steps win, and a shell reads back what was given.
    #[test]
    fn variables_are_written_for_shells() {
        let vars =
            |name: &str, value: &str| Step::Env(Vars(vec![(name.to_owned(), value.to_owned())]));
        let odd = "it's $HOME\n`x` \"q\"";
        let steps = [
            vars("A", "1"),
            vars("B", odd),
            Step::Workdir("/a".to_owned()),
            vars("A", "2"),
            Step::Workdir("/b".to_owned()),
        ];
        let defaults = ImageDefaults::default().of(&steps);
        assert_eq!(defaults.workdir.as_deref(), Some("/b"));
        assert!(
            defaults
                .environment_file()
                .starts_with("A=2\nB=it's $HOME `x`")
        );
        let script = format!("{}printf '%s|%s' \"$A\" \"$B\"", defaults.profile());
        let ran = std::process::Command::new("sh")
            .args(["-c", &script])
            .output();
        let ran = ran.expect("a shell");
        assert_eq!(String::from_utf8_lossy(&ran.stdout), format!("2|{odd}"));
    }
}
