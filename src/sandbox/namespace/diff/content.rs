//! What files hold, compared with bounded memory.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Read at once of a file, in bytes.
pub const PIECE_BYTES: usize = 256 * 1024;
/// Longest extended attribute that is compared, in bytes, and longest list of their names.
const XATTR_BYTES_MAX: usize = 64 * 1024;
/// Attributes that belong to the overlay, not to the file.
const OVERLAY_MARKS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// There was no time to find out.
pub struct TimeIsUp;

/// Whether two files of one size have the same bytes; holes of both are not read.
pub fn same_content(
    a: &File,
    b: &File,
    size: i64,
    deadline: Instant,
) -> Result<io::Result<bool>, TimeIsUp> {
    let (mut first, mut second) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let size = u64::try_from(size).unwrap_or_default();
    let mut at = 0;
    while at < size {
        if Instant::now() >= deadline {
            return Err(TimeIsUp);
        }
        at = match (next_data(a, at, size), next_data(b, at, size)) {
            (Ok(a), Ok(b)) => a.min(b),
            (Err(error), _) | (_, Err(error)) => return Ok(Err(error)),
        };
        let rest = usize::try_from(size - at).unwrap_or(usize::MAX);
        let count = rest.min(PIECE_BYTES);
        let (first, second) = (&mut first[..count], &mut second[..count]);
        let read = a.read_exact_at(first, at);
        if let Err(error) = read.and_then(|()| b.read_exact_at(second, at)) {
            return Ok(Err(error));
        }
        if first != second {
            return Ok(Ok(false));
        }
        at += count as u64;
    }
    Ok(Ok(true))
}

/// Where the next data begins, at `from` or behind; `size` when there is none.
fn next_data(file: &File, from: u64, size: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(at) => Ok(at.min(size)),
        Err(Errno::NXIO) => Ok(size),
        // A file system that knows no holes.
        Err(Errno::INVAL) => Ok(from),
        Err(error) => Err(error.into()),
    }
}

/// The extended attributes of a file or a folder, in order, without the overlay's.
pub fn xattrs(file: &impl AsFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0u8; XATTR_BYTES_MAX];
    let length = match rustix::fs::flistxattr(file, &mut names[..]) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let mut found = Vec::new();
    let mut value = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        let own = OVERLAY_MARKS.iter().any(|mark| name.starts_with(mark));
        if name.is_empty() || own {
            continue;
        }
        value.resize(XATTR_BYTES_MAX, 0);
        let length = rustix::fs::fgetxattr(file, name, &mut value[..])?;
        found.push((name.to_owned(), value[..length].to_owned()));
    }
    found.sort_unstable();
    Ok(found)
}
