//! The walk along two trees.

use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{Dir, FileType};

use super::Side;
use super::content::{TimeIsUp, same_content, xattrs};
use super::told::{Entry, Summary, Told, kind_name, write_line};
use crate::sandbox::namespace::merged::{Folder, Layer, Node, open_file};

/// Names of one folder held at once; they are told in order as far as that.
pub const NAMES_MAX: usize = 1024;
/// Deepest folder that is entered.
pub const DEPTH_MAX: usize = 64;
/// Longest silence.
const QUIET_MAX: Duration = Duration::from_secs(5);
/// Over these of a sandbox's root other file systems are mounted.
const COVERED: [&CStr; 5] = [c"usr", c"dev", c"proc", c"run", c"sys"];

/// Why a comparison ends early.
enum Ended {
    /// Nobody reads it.
    Unheard(io::Error),
    TimeIsUp,
}

impl From<TimeIsUp> for Ended {
    fn from(_: TimeIsUp) -> Self {
        Self::TimeIsUp
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Unheard(error)
    }
}

struct Walk<'a, W> {
    from: &'a Side,
    to: &'a Side,
    out: &'a mut W,
    path: Vec<u8>,
    summary: Summary,
    entries: u64,
    heard: Instant,
    deadline: Instant,
}

/// Compares two disks and writes what differs. An error is one of `out`.
pub fn compare(from: &Side, to: &Side, time: Duration, out: &mut impl Write) -> io::Result<()> {
    let mut walk = Walk {
        from,
        to,
        out,
        path: Vec::new(),
        summary: Summary::default(),
        entries: 0,
        heard: Instant::now(),
        deadline: Instant::now() + time,
    };
    let walked = walk.folder(&from.root, &to.root, 0).and_then(|()| {
        walk.path.extend(b"/usr");
        walk.folder(&from.usr, &to.usr, 1)
    });
    match walked {
        Ok(()) => walk.summary.complete = true,
        Err(Ended::TimeIsUp) => {}
        Err(Ended::Unheard(error)) => return Err(error),
    }
    let summary = serde_json::json!({ "summary": walk.summary });
    writeln!(out, "{summary}")?;
    out.flush()
}

impl<W: Write> Walk<'_, W> {
    /// Compares what two folders hold: every name that one of the layers has that they don't share.
    fn folder(&mut self, from: &Folder, to: &Folder, depth: usize) -> Result<(), Ended> {
        let shared = from.shared_with(to);
        let own = |folder: &Folder| folder.0.len() - shared;
        let layers: Vec<&Layer> = from.0[..own(from)].iter().chain(&to.0[..own(to)]).collect();
        for (at, layer) in layers.iter().enumerate() {
            let mut listing = match Dir::read_from(&*layer.dir) {
                Ok(listing) => listing,
                Err(error) => {
                    self.unknown(&io::Error::from(error))?;
                    continue;
                }
            };
            loop {
                let (names, failed) = next_names(&mut listing);
                if let Some(error) = failed {
                    self.unknown(&error)?;
                }
                if names.is_empty() {
                    break;
                }
                for name in names {
                    let covered = depth == 0 && COVERED.contains(&name.as_c_str());
                    let listed = || {
                        let mut before = layers[..at].iter();
                        before.any(|layer| !matches!(layer.look(&name), Ok(None)))
                    };
                    if covered || listed() {
                        continue;
                    }
                    let length = self.path.len();
                    self.path.push(b'/');
                    self.path.extend(name.as_bytes());
                    let done = self.name(from, to, &name, depth);
                    self.path.truncate(length);
                    done?;
                }
            }
        }
        Ok(())
    }

    /// Compares what two folders have at a name.
    fn name(&mut self, from: &Folder, to: &Folder, name: &CStr, depth: usize) -> Result<(), Ended> {
        self.progress()?;
        let (from, to) = match (from.find(name), to.find(name)) {
            (Ok(from), Ok(to)) => (from, to),
            (Err(error), _) | (_, Err(error)) => return self.unknown(&error),
        };
        match (&from, &to) {
            (None, None) => return Ok(()),
            (None, Some(_)) => {
                self.summary.added += 1;
                self.tell("added", &[], (None, to.as_ref()), name)?;
            }
            (Some(_), None) => {
                self.summary.removed += 1;
                self.tell("removed", &[], (from.as_ref(), None), name)?;
            }
            (Some(a), Some(b)) if a.is(b) => return Ok(()),
            (Some(a), Some(b)) => match self.differences(a, b, name)? {
                Ok(what) if what.is_empty() => {}
                Ok(what) => {
                    self.summary.changed += 1;
                    self.tell("changed", &what, (Some(a), Some(b)), name)?;
                }
                Err(error) => self.unknown(&error)?,
            },
        }
        let inner = |node: Option<Node>| node.map(|node| node.folder).unwrap_or_default();
        let (from, to) = (inner(from), inner(to));
        if from.0.is_empty() && to.0.is_empty() {
            return Ok(());
        }
        if depth >= DEPTH_MAX {
            let what = format!("deeper than {DEPTH_MAX} folders; what it holds is not compared");
            return self.unknown(&io::Error::other(what));
        }
        self.folder(&from, &to, depth + 1)
    }

    /// In what two things at one name differ; what they hold of other names aside.
    fn differences(
        &self,
        a: &Node,
        b: &Node,
        name: &CStr,
    ) -> Result<io::Result<Vec<&'static str>>, Ended> {
        if a.kind() != b.kind() {
            return Ok(Ok(vec!["type"]));
        }
        let mut what = Vec::new();
        let mut note = |differs: bool, word: &'static str| {
            if differs {
                what.push(word);
            }
        };
        note((a.stat.st_mode ^ b.stat.st_mode) & 0o7777 != 0, "mode");
        let owner = |side: &Side, node: &Node| {
            let stat = &node.stat;
            (side.inside(stat.st_uid), side.inside(stat.st_gid))
        };
        note(owner(self.from, a) != owner(self.to, b), "owner");
        match a.kind() {
            FileType::RegularFile => {
                note(a.stat.st_nlink != b.stat.st_nlink, "links");
                let files = open_file(a, name).and_then(|a| Ok((a, open_file(b, name)?)));
                let (first, second) = match files {
                    Ok(files) => files,
                    Err(error) => return Ok(Err(error)),
                };
                match xattrs(&first).and_then(|a| Ok(a != xattrs(&second)?)) {
                    Ok(differ) => note(differ, "xattrs"),
                    Err(error) => return Ok(Err(error)),
                }
                if a.stat.st_size != b.stat.st_size {
                    note(true, "size");
                    note(true, "content");
                } else {
                    match same_content(&first, &second, a.stat.st_size, self.deadline)? {
                        Ok(same) => note(!same, "content"),
                        Err(error) => return Ok(Err(error)),
                    }
                }
            }
            FileType::Directory => {
                let top = |node: &Node| node.folder.0.first().map(|layer| layer.dir.clone());
                if let (Some(a), Some(b)) = (top(a), top(b)) {
                    match xattrs(&a).and_then(|a| Ok(a != xattrs(&b)?)) {
                        Ok(differ) => note(differ, "xattrs"),
                        Err(error) => return Ok(Err(error)),
                    }
                }
            }
            FileType::Symlink => match (target(a, name), target(b, name)) {
                (Ok(a), Ok(b)) => note(a != b, "target"),
                (Err(error), _) | (_, Err(error)) => return Ok(Err(error)),
            },
            _ => note(a.stat.st_rdev != b.stat.st_rdev, "device"),
        }
        Ok(Ok(what))
    }

    /// Counts, and says from time to time that it goes on.
    fn progress(&mut self) -> Result<(), Ended> {
        self.entries += 1;
        let now = Instant::now();
        if now >= self.deadline {
            return Err(Ended::TimeIsUp);
        }
        if now - self.heard >= QUIET_MAX {
            let progress = serde_json::json!({ "progress": { "entries": self.entries } });
            writeln!(self.out, "{progress}")?;
            self.out.flush()?;
            self.heard = now;
        }
        Ok(())
    }

    fn unknown(&mut self, error: &io::Error) -> Result<(), Ended> {
        self.summary.unknown += 1;
        let entry = Entry {
            reason: Some(error.to_string()),
            ..self.entry("unknown", &[])
        };
        Ok(write_line(self.out, &entry)?)
    }

    fn tell(
        &mut self,
        change: &'static str,
        what: &[&'static str],
        (from, to): (Option<&Node>, Option<&Node>),
        name: &CStr,
    ) -> Result<(), Ended> {
        let told = |side: &Side, node: &Node| Told {
            kind: kind_name(node.kind()),
            mode: format!("{:04o}", node.stat.st_mode & 0o7777),
            uid: side.inside(node.stat.st_uid),
            gid: side.inside(node.stat.st_gid),
            size: (node.kind() == FileType::RegularFile).then_some(node.stat.st_size),
            target: target(node, name)
                .ok()
                .map(|target| String::from_utf8_lossy(target.as_bytes()).into_owned())
                .filter(|_| node.kind() == FileType::Symlink),
        };
        let entry = Entry {
            from: from.map(|node| told(self.from, node)),
            to: to.map(|node| told(self.to, node)),
            ..self.entry(change, what)
        };
        Ok(write_line(self.out, &entry)?)
    }

    fn entry<'b>(&self, change: &'static str, what: &'b [&'static str]) -> Entry<'b> {
        let path = if self.path.is_empty() {
            b"/"
        } else {
            &self.path[..]
        };
        Entry {
            path: String::from_utf8_lossy(path).into_owned(),
            path_base64: std::str::from_utf8(path)
                .is_err()
                .then(|| STANDARD.encode(path)),
            change,
            what,
            from: None,
            to: None,
            reason: None,
        }
    }
}

/// The next names of a listing, in order, and why there are no more, when that is a failure.
fn next_names(listing: &mut Dir) -> (Vec<CString>, Option<io::Error>) {
    let mut names = Vec::new();
    let mut failed = None;
    while names.len() < NAMES_MAX {
        match listing.next() {
            None => break,
            Some(Ok(entry)) => {
                let name = entry.file_name();
                if !matches!(name.to_bytes(), b"." | b"..") {
                    names.push(name.to_owned());
                }
            }
            Some(Err(error)) => {
                failed = Some(error.into());
                break;
            }
        }
    }
    names.sort_unstable();
    (names, failed)
}

fn target(node: &Node, name: &CStr) -> io::Result<CString> {
    Ok(rustix::fs::readlinkat(&*node.parent, name, Vec::new())?)
}
