//! The client against a guest that has been taken over: every answer is wrong in some way, and the
//! client must end with an error, in time, holding no more than its bounds.

use std::pin::Pin;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use oc_guest::v1::guest_server::{Guest, GuestServer};
use tonic::{Response, Streaming};

use super::*;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The wrong answers; what it does depends on the path or command asked for.
struct Hostile;

#[tonic::async_trait]
impl Guest for Hostile {
    async fn hello(
        &self,
        _: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        Ok(Response::new(v1::HelloReply {
            protocol: 999,
            uptime_ms: u64::MAX,
        }))
    }

    async fn start_session(
        &self,
        _: Request<v1::StartSessionRequest>,
    ) -> Result<Response<v1::SessionInfo>, Status> {
        // Larger than any message may be.
        let cmd = "x".repeat(oc_guest::MESSAGE_BYTES_MAX + 1);
        Ok(Response::new(v1::SessionInfo {
            cmd,
            ..Default::default()
        }))
    }

    type AttachStream = Replies<v1::AttachOutput>;

    async fn attach(
        &self,
        _: Request<Streaming<v1::AttachInput>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        // An unknown kind, then an end without an exit.
        let unknown = v1::AttachOutput { output: None };
        Ok(Response::new(Box::pin(stream::iter([Ok(unknown)]))))
    }

    type FollowLogsStream = Replies<v1::LogLines>;

    async fn follow_logs(
        &self,
        _: Request<v1::FollowLogsRequest>,
    ) -> Result<Response<Self::FollowLogsStream>, Status> {
        Err(Status::unimplemented("no such call"))
    }

    async fn list_sessions(
        &self,
        _: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsReply>, Status> {
        let session = v1::SessionInfo {
            started_unix_ms: u64::MAX,
            ..Default::default()
        };
        Ok(Response::new(v1::ListSessionsReply {
            sessions: vec![session; 100_000],
        }))
    }

    async fn signal(
        &self,
        _: Request<v1::SignalRequest>,
    ) -> Result<Response<v1::SignalReply>, Status> {
        Err(Status::not_found(format!(
            "\u{1b}[2Jforged\nline {}",
            "x".repeat(2000)
        )))
    }

    // A guest of before there were terminals, for all the client can tell.
    async fn start_terminal(
        &self,
        _: Request<v1::StartTerminalRequest>,
    ) -> Result<Response<v1::SessionInfo>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_terminals(
        &self,
        _: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsReply>, Status> {
        let sessions = vec![v1::SessionInfo::default(); 100_000];
        Ok(Response::new(v1::ListSessionsReply { sessions }))
    }

    async fn resize(
        &self,
        _: Request<v1::ResizeRequest>,
    ) -> Result<Response<v1::ResizeReply>, Status> {
        Err(Status::not_found("\u{1b}]0;forged\u{7}"))
    }

    async fn hang_up(
        &self,
        _: Request<v1::HangUpRequest>,
    ) -> Result<Response<v1::HangUpReply>, Status> {
        Ok(Response::new(v1::HangUpReply {}))
    }

    type ReadFileStream = Replies<v1::FileChunk>;

    async fn read_file(
        &self,
        request: Request<v1::PathRequest>,
    ) -> Result<Response<Self::ReadFileStream>, Status> {
        let chunk = |size, len| {
            Ok(v1::FileChunk {
                size,
                data: vec![0; len],
            })
        };
        let chunks = match request.into_inner().path.as_str() {
            "more" => vec![chunk(5, 0), chunk(0, 4), chunk(0, 2)],
            "less" => vec![chunk(5, 3)],
            "endless" => {
                let endless = stream::repeat_with(move || chunk(5, 0));
                return Ok(Response::new(Box::pin(endless)));
            }
            _ => vec![],
        };
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }

    async fn write_file(
        &self,
        _: Request<Streaming<v1::WriteFileInput>>,
    ) -> Result<Response<v1::WriteFileReply>, Status> {
        // Says "written" without having read a byte.
        Ok(Response::new(v1::WriteFileReply { bytes: 1 }))
    }

    type ListDirStream = Replies<v1::ListDirReply>;

    async fn list_dir(
        &self,
        _: Request<v1::PathRequest>,
    ) -> Result<Response<Self::ListDirStream>, Status> {
        let entries = vec![
            v1::DirEntry {
                name: "x".repeat(1000),
                ..Default::default()
            };
            1000
        ];
        let endless = stream::repeat_with(move || {
            Ok(v1::ListDirReply {
                entries: entries.clone(),
            })
        });
        Ok(Response::new(Box::pin(endless)))
    }

    async fn make_dir(
        &self,
        _: Request<v1::PathRequest>,
    ) -> Result<Response<v1::MakeDirReply>, Status> {
        std::future::pending().await
    }

    async fn remove(
        &self,
        _: Request<v1::PathRequest>,
    ) -> Result<Response<v1::RemoveReply>, Status> {
        Err(Status::unavailable("not for you"))
    }
}

/// A client of the hostile guest; the folder holds the socket.
async fn hostile() -> (GuestClient, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("guest.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        let service = GuestServer::new(Hostile);
        while let Ok((connection, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            let connection = TokioIo::new(connection);
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(connection, service));
        }
    });
    (GuestClient::connect(&socket).await.unwrap(), folder)
}

/// Goal: wrong versions, oversized messages and forged texts.
#[tokio::test]
async fn wrong_answers_are_errors() {
    let (guest, _folder) = hostile().await;
    let hello = guest.hello(Duration::from_secs(5)).await;
    assert_eq!(
        hello,
        Err(GuestError::Protocol {
            ours: oc_guest::PROTOCOL,
            theirs: 999
        })
    );
    let started = guest.start(shell(1, "true")).await;
    assert!(matches!(started, Err(GuestError::Full(_))), "{started:?}");
    let sessions = guest.sessions().await.unwrap();
    assert_eq!(sessions.len(), SESSIONS_MAX);
    let Err(GuestError::NotFound(text)) = guest.signal("00000001", 9).await else {
        panic!()
    };
    assert_eq!(text.chars().count(), 512);
    assert!(!text.contains(char::is_control), "{text:?}");
    let size = TerminalSize::new(80, 24).unwrap();
    let started = guest.start_terminal(terminals::bash(1)).await;
    assert_eq!(started, Err(GuestError::Unsupported));
    assert_eq!(guest.terminals().await.unwrap().len(), SESSIONS_MAX);
    let Err(GuestError::NotFound(text)) = guest.resize_terminal("00000001", size).await else {
        panic!()
    };
    assert!(!text.contains(char::is_control), "{text:?}");
    let mut attached = guest.attach("00000001").await.unwrap();
    assert!(matches!(attached.next().await, Err(GuestError::Gone(_))));
    assert_eq!(attached.next().await, Ok(None));
}

/// Goal: sizes that do not fit the content, an endless list, an answer out of turn.
#[tokio::test]
async fn wrong_files_are_errors() {
    let (guest, _folder) = hostile().await;
    for path in ["more", "less", "endless"] {
        let (size, content) = guest.read_file(path).await.unwrap();
        assert_eq!(size, 5);
        let content: Result<Vec<Bytes>, _> = content.try_collect().await;
        assert!(matches!(content, Err(GuestError::Broken(_))), "{path}");
    }
    assert!(matches!(
        guest.read_file("none").await,
        Err(GuestError::Broken(_))
    ));
    let list = guest.list_dir("/").await;
    assert!(matches!(list, Err(GuestError::Precondition(_))));
    let content = stream::pending::<Result<Bytes, std::io::Error>>();
    let written = guest.write_file("x", content).await;
    assert!(matches!(written, Err(GuestError::Broken(_))));
    assert!(matches!(guest.remove("x").await, Err(GuestError::Gone(_))));
}
