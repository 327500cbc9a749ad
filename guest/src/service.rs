//! The protocol's service: translates requests to sessions and files, decides nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use oc_guest::v1::{
    self, AttachInput, FileChunk, ListDirReply, PathRequest, attach_input, guest_server,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::files;
use crate::logs;
use crate::session::{Kind, attach, start, table::Table};

/// See the module.
pub struct Service {
    started: Instant,
    table: Arc<Table>,
    files: files::Files,
    logs: logs::Told,
}

impl Service {
    /// A service over the given sessions and files.
    pub fn new(table: Arc<Table>, files: files::Files) -> Self {
        let logs = logs::Told::default();
        let begin = logs.clone();
        // Beside the start, which does not wait for it.
        tokio::task::spawn_blocking(move || begin.begin());
        Self {
            started: Instant::now(),
            table,
            files,
            logs,
        }
    }
}

type Reply<T> = Result<Response<T>, Status>;
type Replies<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

/// Starts to the end: a caller that hangs up must not leave a process that nobody knows of.
async fn whole(
    starting: impl Future<Output = Result<v1::SessionInfo, Status>> + Send + 'static,
) -> Reply<v1::SessionInfo> {
    let started = tokio::spawn(starting).await;
    let started = started.map_err(|_| Status::internal("starting broke off"));
    started.flatten().map(Response::new)
}

#[tonic::async_trait]
impl guest_server::Guest for Service {
    async fn hello(&self, _: Request<v1::HelloRequest>) -> Reply<v1::HelloReply> {
        let uptime = self.started.elapsed().as_millis();
        let uptime_ms = u64::try_from(uptime).unwrap_or(u64::MAX);
        Ok(Response::new(v1::HelloReply {
            protocol: oc_guest::PROTOCOL,
            uptime_ms,
        }))
    }

    async fn start_session(
        &self,
        request: Request<v1::StartSessionRequest>,
    ) -> Reply<v1::SessionInfo> {
        let (table, request) = (self.table.clone(), request.into_inner());
        whole(async move { table.start(request).await }).await
    }

    type AttachStream = attach::Outputs;

    async fn attach(&self, request: Request<Streaming<AttachInput>>) -> Reply<attach::Outputs> {
        let mut inputs = request.into_inner();
        let first = inputs.message().await?.and_then(|first| first.input);
        let session = match first {
            Some(attach_input::Input::SessionId(id)) => self.table.get(Kind::Command, &id)?,
            Some(attach_input::Input::TerminalId(id)) => self.table.get(Kind::Terminal, &id)?,
            Some(attach_input::Input::Observe(id)) => {
                let session = self.table.get(Kind::Command, &id)?;
                return Ok(Response::new(attach::observe(&session)));
            }
            _ => {
                return Err(Status::invalid_argument(
                    "the first input names the session",
                ));
            }
        };
        Ok(Response::new(attach::attach(
            session,
            self.table.clone(),
            inputs,
        )))
    }

    type FollowLogsStream = ReceiverStream<Result<v1::LogLines, Status>>;

    async fn follow_logs(
        &self,
        request: Request<v1::FollowLogsRequest>,
    ) -> Reply<Self::FollowLogsStream> {
        let after = request.into_inner().after;
        Ok(Response::new(logs::follow(self.logs.clone(), after)))
    }

    async fn list_sessions(
        &self,
        _: Request<v1::ListSessionsRequest>,
    ) -> Reply<v1::ListSessionsReply> {
        Ok(Response::new(v1::ListSessionsReply {
            sessions: self.table.list(Kind::Command),
        }))
    }

    async fn signal(&self, request: Request<v1::SignalRequest>) -> Reply<v1::SignalReply> {
        let v1::SignalRequest { session_id, signal } = request.into_inner();
        if !(1..=64).contains(&signal) {
            return Err(Status::invalid_argument(
                "a signal is a number from 1 to 64",
            ));
        }
        self.table.get(Kind::Command, &session_id)?.signal(signal);
        Ok(Response::new(v1::SignalReply {}))
    }

    async fn start_terminal(
        &self,
        request: Request<v1::StartTerminalRequest>,
    ) -> Reply<v1::SessionInfo> {
        let (table, request) = (self.table.clone(), request.into_inner());
        whole(async move { table.start_terminal(request).await }).await
    }

    async fn list_terminals(
        &self,
        _: Request<v1::ListSessionsRequest>,
    ) -> Reply<v1::ListSessionsReply> {
        Ok(Response::new(v1::ListSessionsReply {
            sessions: self.table.list(Kind::Terminal),
        }))
    }

    async fn resize(&self, request: Request<v1::ResizeRequest>) -> Reply<v1::ResizeReply> {
        let v1::ResizeRequest { terminal_id, size } = request.into_inner();
        let size = start::size(size)?;
        self.table.get(Kind::Terminal, &terminal_id)?.resize(size)?;
        Ok(Response::new(v1::ResizeReply {}))
    }

    async fn hang_up(&self, request: Request<v1::HangUpRequest>) -> Reply<v1::HangUpReply> {
        let id = request.into_inner().terminal_id;
        let terminal = self.table.get(Kind::Terminal, &id)?;
        self.table.forget(&id);
        // A task of its own: it is finished also when the host no longer waits. Its only end is
        // the guest's own.
        let _ = tokio::spawn(terminal.hang_up()).await;
        Ok(Response::new(v1::HangUpReply {}))
    }

    type ReadFileStream = ReceiverStream<Result<FileChunk, Status>>;

    async fn read_file(&self, request: Request<PathRequest>) -> Reply<Self::ReadFileStream> {
        self.files
            .read(&request.into_inner().path)
            .await
            .map(Response::new)
    }

    async fn write_file(
        &self,
        request: Request<Streaming<v1::WriteFileInput>>,
    ) -> Reply<v1::WriteFileReply> {
        let bytes = self.files.write(request.into_inner()).await?;
        Ok(Response::new(v1::WriteFileReply { bytes }))
    }

    type ListDirStream = Replies<ListDirReply>;

    async fn list_dir(&self, request: Request<PathRequest>) -> Reply<Self::ListDirStream> {
        let replies = self.files.list(&request.into_inner().path).await?;
        Ok(Response::new(Box::pin(tokio_stream::iter(
            replies.into_iter().map(Ok),
        ))))
    }

    async fn make_dir(&self, request: Request<PathRequest>) -> Reply<v1::MakeDirReply> {
        self.files.make_dir(&request.into_inner().path).await?;
        Ok(Response::new(v1::MakeDirReply {}))
    }

    async fn remove(&self, request: Request<PathRequest>) -> Reply<v1::RemoveReply> {
        self.files.remove(&request.into_inner().path).await?;
        Ok(Response::new(v1::RemoveReply {}))
    }
}
