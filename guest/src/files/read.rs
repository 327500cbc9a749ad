//! Reading a file as a stream of chunks, the size first.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use oc_guest::{FILE_CHUNK_BYTES_MAX, v1::FileChunk};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{blocking, named, require_regular};

/// Chunks between the disk and one client's connection: 256 KiB at most.
const CHUNKS_MAX: usize = 4;
/// Largest file of unknown size (as those of /proc), in bytes; it is held in memory.
const UNSIZED_BYTES_MAX: u64 = 1024 * 1024;

type Chunks = ReceiverStream<Result<FileChunk, Status>>;

/// Opens the file and streams it. The bytes sent are exactly as many as the size told: a file that
/// grows meanwhile is cut there, one that shrinks ends the stream with an error.
pub async fn read(path: PathBuf) -> Result<Chunks, Status> {
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let opened = path.clone();
    let (file, size) = blocking(move || open(&opened)).await?;
    tokio::spawn(async move {
        // The client being gone is no error of ours.
        let _ = send(file, size, &path, &sender).await;
    });
    Ok(ReceiverStream::new(receiver))
}

/// A file, or the content of one whose size the kernel does not tell.
enum Content {
    File(File),
    Memory(Vec<u8>),
}

fn open(path: &Path) -> Result<(Content, u64), Status> {
    let failed = |error: std::io::Error| match error.raw_os_error() {
        // Nothing can be below a file: for a reader the path is missing.
        Some(libc::ENOTDIR) => named(path, &std::io::Error::from_raw_os_error(libc::ENOENT)),
        _ => named(path, &error),
    };
    // Asked before opening: to open a pipe or a device can be an act of its own.
    require_regular(path, &std::fs::metadata(path).map_err(failed)?)?;
    // And after, with an open that can't wait, since the name may have changed its meaning.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    require_regular(path, &found)?;
    if found.len() > 0 {
        return Ok((Content::File(file), found.len()));
    }
    let mut content = Vec::new();
    let limited = (&mut file)
        .take(UNSIZED_BYTES_MAX + 1)
        .read_to_end(&mut content);
    let size = limited.map_err(failed)? as u64;
    if size > UNSIZED_BYTES_MAX {
        let reason = format!("larger than its size tells: {}", path.display());
        return Err(Status::failed_precondition(reason));
    }
    Ok((Content::Memory(content), size))
}

type Client = mpsc::Sender<Result<FileChunk, Status>>;
type Gone = mpsc::error::SendError<Result<FileChunk, Status>>;

async fn send(content: Content, size: u64, path: &Path, client: &Client) -> Result<(), Gone> {
    client
        .send(Ok(FileChunk {
            size,
            data: Vec::new(),
        }))
        .await?;
    match content {
        Content::Memory(content) => {
            for chunk in content.chunks(FILE_CHUNK_BYTES_MAX) {
                client
                    .send(Ok(FileChunk {
                        size: 0,
                        data: chunk.to_vec(),
                    }))
                    .await?;
            }
            Ok(())
        }
        Content::File(file) => send_file(file, size, path, client).await,
    }
}

async fn send_file(mut file: File, size: u64, path: &Path, client: &Client) -> Result<(), Gone> {
    let mut left = size;
    while left > 0 {
        let want = left.min(FILE_CHUNK_BYTES_MAX as u64);
        // A thread a chunk, so that a slow client holds none.
        let read = blocking(move || {
            let mut data = Vec::with_capacity(want as usize);
            let read = (&mut file).take(want).read_to_end(&mut data);
            Ok((file, read.map(|_| data)))
        });
        let data = match read.await {
            Ok((back, Ok(data))) if !data.is_empty() => {
                file = back;
                data
            }
            Ok((_, Ok(_))) => {
                let reason = format!("the file shrank while it was read: {}", path.display());
                return client.send(Err(Status::aborted(reason))).await;
            }
            Ok((_, Err(error))) => return client.send(Err(named(path, &error))).await,
            Err(status) => return client.send(Err(status)).await,
        };
        left -= data.len() as u64;
        client.send(Ok(FileChunk { size: 0, data })).await?;
    }
    Ok(())
}
