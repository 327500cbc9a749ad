//! The files of one log: `<number>.jsonl`, a JSON object a line. The newest is written; when it is
//! full the next one is begun and the one before the newest but one is removed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Largest file, in bytes (8 MiB); there are two at most.
pub const SEGMENT_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Longest line of a file, in bytes: one that is longer was not written by us.
const RECORD_BYTES_MAX: u64 = 256 * 1024;

/// A place between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    segment: u64,
    offset: u64,
}

/// The writer's side.
#[derive(Debug)]
pub struct Segments {
    folder: PathBuf,
    number: u64,
    file: File,
    bytes: u64,
}

impl Segments {
    /// Goes on behind what is there.
    pub fn open(folder: &Path) -> io::Result<Self> {
        // Never with what it lies in: a sandbox that is gone does not come back for its log.
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let number = numbers(folder)?.last().copied().unwrap_or(1);
        let mut segments = Self {
            file: create(folder, number)?,
            bytes: 0,
            folder: folder.to_owned(),
            number,
        };
        segments.bytes = segments.file.metadata()?.len();
        // A record that a crash cut off becomes a line of its own, which no reader understands.
        if segments.bytes > 0 {
            segments.append(b"\n")?;
        }
        Ok(segments)
    }

    /// Writes whole records, each with its line feed.
    pub fn append(&mut self, records: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + records.len() as u64 > SEGMENT_BYTES_MAX {
            self.file = create(&self.folder, self.number + 1)?;
            self.number += 1;
            self.bytes = 0;
            for number in numbers(&self.folder)? {
                if number + 1 < self.number {
                    fs::remove_file(path(&self.folder, number))?;
                }
            }
        }
        self.file.write_all(records)?;
        self.bytes += records.len() as u64;
        Ok(())
    }
}

fn create(folder: &Path, number: u64) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path(folder, number))
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number}.jsonl"))
}

/// Which files there are, oldest first.
fn numbers(folder: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".jsonl"));
        numbers.extend(number.and_then(|text| text.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Hands over the whole records behind `from` (`None`: all), oldest first, until there are no more or
/// `each` breaks; answers the place behind the last one. `None` when there is no log.
pub fn read(
    folder: &Path,
    from: Option<Place>,
    mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<Option<Place>> {
    let numbers = match numbers(folder) {
        Ok(numbers) => numbers,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut place = from.unwrap_or(Place {
        segment: 0,
        offset: 0,
    });
    let first = place.segment;
    for number in numbers.into_iter().filter(|number| *number >= first) {
        let mut file = match File::open(path(folder, number)) {
            Ok(file) => file,
            // Removed meanwhile, for a newer one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if number > place.segment {
            place = Place {
                segment: number,
                offset: 0,
            };
        }
        file.seek(SeekFrom::Start(place.offset))?;
        let mut file = BufReader::new(file);
        let mut record = Vec::new();
        loop {
            record.clear();
            let read =
                io::Read::take(&mut file, RECORD_BYTES_MAX).read_until(b'\n', &mut record)?;
            // The end, or a record that is being written.
            if record.pop() != Some(b'\n') {
                break;
            }
            place.offset += read as u64;
            if each(&record).is_break() {
                return Ok(Some(place));
            }
        }
    }
    Ok(Some(place))
}
