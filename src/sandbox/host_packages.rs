//! What apt has to know in a sandbox whose programs are the host's: which packages these are, and
//! where others come from. Nothing of it is private: it names what `/usr` shows anyway. The host's own
//! list of sources is not taken, since it may hold passwords.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// Debian's list of what is installed.
const DATABASE: &str = "/var/lib/dpkg";
/// Largest archive of it, in bytes (256 MiB).
const BYTES_MAX: usize = 256 * 1024 * 1024;

/// The host's package database as a tar archive with paths below `/`. Blocks.
///
/// # Errors
/// The host has none, or it can't be read.
pub fn database() -> io::Result<Vec<u8>> {
    if !Path::new(DATABASE).join("status").exists() {
        let what = "the host's programs are not Debian packages";
        return Err(io::Error::new(io::ErrorKind::Unsupported, what));
    }
    let output = Command::new("tar")
        .args(["-C", "/", "-c", "--numeric-owner", "--sort=name"])
        .args(["--exclude=*-old", "--exclude=lock*", "--exclude=*.md5sums"])
        // Overrides name groups of the host's that a sandbox has not.
        .args([
            "--exclude=*.symbols",
            "--exclude=available",
            "--exclude=statoverride",
        ])
        .args(["--", DATABASE.trim_start_matches('/')])
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("tar failed").to_owned();
        return Err(io::Error::other(last));
    }
    if output.stdout.len() > BYTES_MAX {
        return Err(io::Error::other(
            "the list of the host's packages is too large",
        ));
    }
    Ok(output.stdout)
}

/// Where the host's distribution has its packages, as lines for `sources.list`; `None` when that is
/// not known.
pub fn sources() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let field = |name: &str| {
        let lines = release.lines();
        let value = lines
            .filter_map(|line| line.split_once('='))
            .find(|(key, _)| *key == name);
        value.map(|(_, value)| value.trim_matches('"').to_owned())
    };
    let id = field("ID")?;
    let keyring = format!("/usr/share/keyrings/{id}-archive-keyring.gpg");
    let keyring = Path::new(&keyring).exists().then_some(keyring.as_str());
    lines(&id, &field("VERSION_CODENAME")?, keyring)
}

fn lines(id: &str, codename: &str, keyring: Option<&str>) -> Option<String> {
    let signed = keyring
        .map(|path| format!("[signed-by={path}] "))
        .unwrap_or_default();
    let line = |url: &str, suite: &str, parts: &str| format!("deb {signed}{url} {suite} {parts}\n");
    Some(match id {
        "debian" => {
            let (main, parts) = ("http://deb.debian.org/debian", "main");
            line(main, codename, parts)
                + &line(main, &format!("{codename}-updates"), parts)
                + &line(
                    "http://deb.debian.org/debian-security",
                    &format!("{codename}-security"),
                    parts,
                )
        }
        "ubuntu" => {
            let (main, parts) = ("http://archive.ubuntu.com/ubuntu", "main universe");
            line(main, codename, parts)
                + &line(main, &format!("{codename}-updates"), parts)
                + &line(
                    "http://security.ubuntu.com/ubuntu",
                    &format!("{codename}-security"),
                    parts,
                )
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: known distributions have their three suites, others none.
    #[test]
    fn sources_are_those_of_the_distribution() {
        let debian = lines("debian", "bookworm", Some("/k.gpg")).expect("known");
        assert_eq!(debian.lines().count(), 3);
        assert!(debian.contains("/debian-security bookworm-security main"));
        assert!(debian.starts_with("deb [signed-by=/k.gpg] http"));
        assert!(
            lines("ubuntu", "noble", None)
                .expect("known")
                .contains("noble-updates")
        );
        assert_eq!(lines("arch", "x", None), None);
    }

    /// Goal: the list of packages is there where the host has one, without what nobody needs.
    #[test]
    fn the_hosts_packages_are_listed() {
        let listed = match database() {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                println!("skipped: {error}");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let has = |name: &str| {
            listed
                .windows(name.len())
                .any(|part| part == name.as_bytes())
        };
        assert!(has("var/lib/dpkg/status") && !has("var/lib/dpkg/status-old"));
    }
}
