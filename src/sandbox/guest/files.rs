//! Files of a sandbox.

use std::fmt::Display;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::{Stream, StreamExt, stream};
use oc_guest::{FILE_CHUNK_BYTES_MAX, v1};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::error::clean;
use super::{CALL_TIME_MAX, GuestClient, GuestError, at, short, within};

/// Most entries taken from a directory.
pub const LIST_ENTRIES_MAX: usize = 100_000;
/// Most bytes of names and paths taken from a directory: 64 MiB.
const LIST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Time limit for removing a tree.
const REMOVE_TIME_MAX: Duration = Duration::from_secs(300);
/// Messages of an upload on their way to the guest.
const INPUTS_MAX: usize = 4;
/// How long the guest may take for the next piece of an upload, or to finish it.
const STALL_TIME_MAX: Duration = Duration::from_secs(120);

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The last part of the path; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Links are not followed: one to a directory is none.
    pub is_dir: bool,
    /// In bytes.
    pub size: u64,
    /// Absolute, inside the sandbox.
    pub path: String,
}

impl GuestClient {
    /// The size and the content of a regular file. The stream gives exactly as many bytes as the
    /// size tells, or ends with an error.
    ///
    /// # Errors
    /// [`GuestError::NotFound`]; [`GuestError::Invalid`] for a directory, a device or a pipe.
    pub async fn read_file(
        &self,
        path: &str,
    ) -> Result<
        (
            u64,
            impl Stream<Item = Result<Bytes, GuestError>> + Send + use<>,
        ),
        GuestError,
    > {
        let mut client = self.client();
        let mut chunks = short(client.read_file(at(path))).await?;
        let first = within(CALL_TIME_MAX, chunks.message()).await?;
        let Some(v1::FileChunk { size, data }) = first else {
            return Err(GuestError::Broken("it sent no size of a file".into()));
        };
        let content = Content {
            first: Some(data),
            chunks,
            left: size,
        };
        Ok((size, stream::try_unfold(content, Content::next)))
    }

    /// Replaces a file's content (mode 0644 and the sandbox user's when new, parents made), all of
    /// it or nothing; answers the bytes written. The caller bounds the stream's length.
    ///
    /// # Errors
    /// [`GuestError::Upload`] when `content` fails; [`GuestError::Invalid`] for a directory or a
    /// special file; [`GuestError::Precondition`] when a file is among the parents;
    /// [`GuestError::Full`].
    pub async fn write_file<E: Display>(
        &self,
        path: &str,
        content: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
    ) -> Result<u64, GuestError> {
        let (sender, receiver) = mpsc::channel(INPUTS_MAX);
        let mut client = self.client();
        let call = pin!(client.write_file(ReceiverStream::new(receiver)));
        let feed = pin!(feed(path.to_owned(), content, sender));
        match select(call, feed).await {
            // Answered before the upload's end: only a refusal is an answer.
            Either::Left((Ok(_), _)) => Err(GuestError::Broken("it took part of an upload".into())),
            Either::Left((Err(status), _)) => Err(status.into()),
            Either::Right((Err(error), _)) => Err(error),
            Either::Right((Ok(()), call)) => within(STALL_TIME_MAX, call)
                .await
                .map(|reply| reply.into_inner().bytes),
        }
    }

    /// The directory's entries, sorted by name, hidden ones included.
    ///
    /// # Errors
    /// [`GuestError::NotFound`] when it is missing or not a directory;
    /// [`GuestError::Precondition`] above [`LIST_ENTRIES_MAX`].
    pub async fn list_dir(&self, path: &str) -> Result<Vec<DirEntry>, GuestError> {
        let mut client = self.client();
        let list = async {
            let mut replies = client.list_dir(at(path)).await?.into_inner();
            let mut entries = Vec::new();
            let mut bytes = 0;
            while let Some(reply) = replies.message().await? {
                for entry in reply.entries {
                    bytes += entry.name.len() + entry.path.len();
                    entries.push(entry);
                }
                if entries.len() > LIST_ENTRIES_MAX || bytes > LIST_BYTES_MAX {
                    let reason = "the directory is too large to list";
                    return Err(tonic::Status::failed_precondition(reason));
                }
            }
            Ok(entries)
        };
        let entries = within(CALL_TIME_MAX, list).await?;
        let entry = |v1::DirEntry {
                         name,
                         is_dir,
                         size,
                         path,
                     }| DirEntry {
            name,
            is_dir,
            size,
            path,
        };
        Ok(entries.into_iter().map(entry).collect())
    }

    /// Makes a directory and its parents; an existing one is fine.
    ///
    /// # Errors
    /// [`GuestError::Precondition`] when a file is in the way.
    pub async fn make_dir(&self, path: &str) -> Result<(), GuestError> {
        let mut client = self.client();
        short(client.make_dir(at(path))).await.map(drop)
    }

    /// Removes a file or a whole tree, following no link; a missing one is fine.
    ///
    /// # Errors
    /// [`GuestError::Invalid`] for `/`.
    pub async fn remove(&self, path: &str) -> Result<(), GuestError> {
        let mut client = self.client();
        within(REMOVE_TIME_MAX, client.remove(at(path)))
            .await
            .map(drop)
    }
}

/// A file's content on its way from the guest.
struct Content {
    /// What came with the size.
    first: Option<Vec<u8>>,
    chunks: Streaming<v1::FileChunk>,
    /// Bytes still to come of the size told.
    left: u64,
}

impl Content {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, GuestError> {
        let first = self.first.take().filter(|data| !data.is_empty());
        let data = match first {
            Some(data) => data,
            None => match within(CALL_TIME_MAX, self.chunks.message()).await? {
                // A stream of nothing would keep its reader busy for ever.
                Some(chunk) if chunk.data.is_empty() => return Err(broken("an empty part")),
                Some(chunk) => chunk.data,
                None if self.left == 0 => return Ok(None),
                None => return Err(broken("less than told")),
            },
        };
        let left = self.left.checked_sub(data.len() as u64);
        self.left = left.ok_or_else(|| broken("more than told"))?;
        Ok(Some((data.into(), self)))
    }
}

fn broken(what: &str) -> GuestError {
    GuestError::Broken(format!("it sent {what} of a file"))
}

/// Sends the path, the content in chunks, and the end mark. A failing source ends the messages
/// without the mark, so that the guest leaves the target as it was.
async fn feed<E: Display>(
    path: String,
    content: impl Stream<Item = Result<Bytes, E>>,
    guest: mpsc::Sender<v1::WriteFileInput>,
) -> Result<(), GuestError> {
    let send = async |message| match timeout(STALL_TIME_MAX, guest.send(message)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(GuestError::Gone("it stopped taking an upload".into())),
        Err(_) => Err(GuestError::Gone("it takes no more of an upload".into())),
    };
    let mut content = pin!(content);
    send(v1::WriteFileInput {
        path,
        ..Default::default()
    })
    .await?;
    while let Some(piece) = content.next().await {
        let piece = piece.map_err(|error| GuestError::Upload(clean(&error.to_string())))?;
        for chunk in piece.chunks(FILE_CHUNK_BYTES_MAX) {
            send(v1::WriteFileInput {
                data: chunk.to_vec(),
                ..Default::default()
            })
            .await?;
        }
    }
    send(v1::WriteFileInput {
        end: true,
        ..Default::default()
    })
    .await
}
