//! Lines that are added to files below `/var/log`.
//!
//! Once a second the files are looked at; what they got since is read, whole lines at a time. Whoever
//! follows them goes on after the batch it took last, or where the last one stopped, the first one at
//! the guest's start. Bounds:
//! so many files, so deep, so many bytes a look; the rest comes with the next one. A file is known by
//! its inode, so that one that is rotated away is read to its end. Files that hold NUL bytes are no
//! text and are passed over. Whatever else is there (links, pipes, devices) is left alone.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oc_guest::v1::{LogLine, LogLines};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

const FOLDER: &str = "/var/log";
const PAUSE: Duration = Duration::from_secs(1);
/// Files followed at once, and how many folders deep.
const FILES_MAX: usize = 256;
const DEPTH_MAX: usize = 4;
/// Entries of all folders looked at, at a time.
const ENTRIES_MAX: usize = 4096;
/// Bytes read from one file, and from all of them, at a time.
const FILE_BYTES_MAX: u64 = 64 * 1024;
const LOOK_BYTES_MAX: usize = 512 * 1024;
/// Longest line, in bytes; a longer one is cut.
const LINE_BYTES_MAX: usize = 8 * 1024;

/// Batches that may have been sent and not taken: one on each queue on the way.
const BATCHES_KEPT: usize = 8;

/// How far the files were told of to whoever followed them last. Clones are the same one.
#[derive(Clone, Default)]
pub struct Told(Arc<Mutex<State>>);

/// The newest batches by their numbers, each with how far the files were told of after it.
#[derive(Default)]
struct State(VecDeque<(u64, Files)>);

impl Told {
    /// Takes what is there now for told. Blocks.
    pub fn begin(&self) {
        let (_, mut files) = self.after(0);
        files.look(Path::new(FOLDER));
        self.add(files);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to go on after a batch, or after the newest one.
    fn after(&self, batch: u64) -> (u64, Files) {
        let state = self.state();
        let known = state.0.iter().find(|(number, _)| *number == batch);
        known.or(state.0.back()).cloned().unwrap_or_default()
    }

    /// The number of the next batch, after which the files are told of so far.
    fn add(&self, files: Files) -> u64 {
        let mut state = self.state();
        let number = state.0.back().map_or(0, |(number, _)| *number) + 1;
        if state.0.len() == BATCHES_KEPT {
            state.0.pop_front();
        }
        state.0.push_back((number, files));
        number
    }
}

/// The lines that are added and nobody was told of, until the receiver is gone; with the number of the
/// newest batch that was taken, those that came after it.
pub fn follow(told: Told, after: u64) -> ReceiverStream<Result<LogLines, Status>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let (_, mut files) = told.after(after);
        loop {
            let looked = tokio::task::spawn_blocking(move || {
                let lines = files.look(Path::new(FOLDER));
                (files, lines)
            });
            let Ok((back, lines)) = looked.await else {
                return;
            };
            files = back;
            if !lines.is_empty() {
                let Ok(room) = sender.reserve().await else {
                    return;
                };
                let batch = told.add(files.clone());
                room.send(Ok(LogLines { lines, batch }));
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = sender.closed() => return,
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// How far each file was read, by device and inode. `None` before the first look.
#[derive(Clone, Default)]
struct Files(Option<HashMap<(u64, u64), u64>>);

impl Files {
    fn look(&mut self, folder: &Path) -> Vec<LogLine> {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        let mut seen = HashMap::new();
        for (path, file, size) in find(folder) {
            // What was there before the first look is no news.
            let known = match &self.0 {
                None => size,
                Some(known) => known.get(&file).copied().unwrap_or(0),
            };
            let mut at = if known > size { 0 } else { known };
            if at < size && bytes < LOOK_BYTES_MAX {
                let before = lines.len();
                at += read(&path, file, at, &mut lines).unwrap_or(0);
                bytes += lines
                    .iter()
                    .skip(before)
                    .map(|line| line.line.len())
                    .sum::<usize>();
            }
            seen.insert(file, at);
        }
        self.0 = Some(seen);
        lines
    }
}

/// The regular files below a folder: path, device and inode, size.
fn find(folder: &Path) -> Vec<(PathBuf, (u64, u64), u64)> {
    let (mut found, mut entries) = (Vec::new(), 0);
    let mut open = vec![(folder.to_owned(), 1)];
    while let Some((folder, depth)) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            entries += 1;
            if entries > ENTRIES_MAX || found.len() >= FILES_MAX {
                return found;
            }
            // Of the entry itself: a link is none of these.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() && depth < DEPTH_MAX {
                open.push((entry.path(), depth + 1));
            } else if metadata.is_file() {
                let file = (metadata.dev(), metadata.ino());
                found.push((entry.path(), file, metadata.len()));
            }
        }
    }
    found
}

/// Reads whole lines from `at` on; answers how many bytes are done with.
fn read(path: &Path, file: (u64, u64), at: u64, lines: &mut Vec<LogLine>) -> std::io::Result<u64> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY;
    let mut opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    let found = opened.metadata()?;
    if !found.is_file() || (found.dev(), found.ino()) != file {
        return Ok(0);
    }
    opened.seek(SeekFrom::Start(at))?;
    let mut data = Vec::new();
    opened.take(FILE_BYTES_MAX).read_to_end(&mut data)?;
    let whole = match data.iter().rposition(|byte| *byte == b'\n') {
        Some(last) => last + 1,
        // One endless line is taken in pieces; a short one is waited for.
        None if data.len() as u64 == FILE_BYTES_MAX => data.len(),
        None => return Ok(0),
    };
    data.truncate(whole);
    if !data.contains(&0) {
        let path = path.to_string_lossy();
        let text = data.strip_suffix(b"\n").unwrap_or(&data);
        lines.extend(text.split(|byte| *byte == b'\n').map(|line| {
            let line = line.get(..LINE_BYTES_MAX).unwrap_or(line);
            LogLine {
                path: path.clone().into_owned(),
                line: String::from_utf8_lossy(line).into_owned(),
            }
        }));
    }
    Ok(whole as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder that goes with the test.
    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn add(path: &Path, text: &[u8]) {
        use std::io::Write;
        let file = OpenOptions::new().create(true).append(true).open(path);
        file.unwrap().write_all(text).unwrap();
    }

    /// Goal: who names a batch goes on after it, who names none or one of long ago after the newest.
    #[test]
    fn who_comes_again_goes_on() {
        let told = Told::default();
        assert!(told.after(0).1.0.is_none(), "the first one has no news");
        let files = |at| Files(Some(HashMap::from([((1, 1), at)])));
        let place = |after| told.after(after).1.0.unwrap()[&(1, 1)];
        for at in 1..=BATCHES_KEPT as u64 + 2 {
            assert_eq!(told.add(files(at)), at);
        }
        assert_eq!(place(5), 5);
        assert_eq!((place(0), place(1), place(99)), (10, 10, 10));
    }

    /// Goal: only what is added is told, in whole lines, across rotation and truncation; what is no
    /// text or no file is not.
    #[test]
    fn what_is_added_is_told_once() {
        let folder =
            Folder(std::env::temp_dir().join(format!("oc-guest-logs-{}", std::process::id())));
        let (at, mut files) = (folder.0.as_path(), Files::default());
        fs::create_dir_all(at.join("sub")).unwrap();
        let (one, two) = (at.join("one.log"), at.join("sub/two.log"));
        add(&one, b"old\n");
        symlink("/etc/passwd", at.join("link")).unwrap();
        let look = |files: &mut Files| -> Vec<String> {
            let mut lines: Vec<_> = files.look(at).into_iter().map(|line| line.line).collect();
            lines.sort();
            lines
        };
        assert!(look(&mut files).is_empty(), "what was there is no news");
        add(&one, b"a\nb\nhal");
        add(&two, b"new file\n");
        add(&at.join("binary"), b"\0\0\n");
        assert_eq!(look(&mut files), ["a", "b", "new file"]);
        add(&one, b"f\n");
        fs::rename(&one, at.join("one.log.1")).unwrap();
        add(&one, b"next\n");
        assert_eq!(look(&mut files), ["half", "next"]);
        fs::write(&two, b"short\n").unwrap();
        assert_eq!(look(&mut files), ["short"]);
        add(&two, &[b'x'; 100_000]);
        assert_eq!(look(&mut files)[0].len(), LINE_BYTES_MAX);
        assert!(look(&mut files).is_empty(), "its end is waited for");
    }
}
