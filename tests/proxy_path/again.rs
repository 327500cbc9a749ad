//! Requests that a host did not carry out are sent again, and no other ones are.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use crate::two::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, TestBody, ask2, client2,
    frame, next_frame, whole, with_trailers,
};
use crate::wire::{Io, read_message};
use crate::world::{Setup, VALUE, World, ok, soon};

/// Connection and body of each request that reached a host, in their order.
type Seen = Arc<Mutex<Vec<(usize, String)>>>;

fn connections(seen: &Seen) -> Vec<usize> {
    let seen = seen.lock().unwrap();
    seen.iter().map(|(connection, _)| *connection).collect()
}

/// Takes connections on loopback; gives each with its number to `serve`.
async fn listen<F>(tls: TlsAcceptor, serve: impl Fn(usize, Io) -> F + Send + 'static) -> u16
where
    F: Future<Output = Option<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut connection = 0;
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = tls.accept(stream).await {
                tokio::spawn(serve(connection, Box::new(stream)));
                connection += 1;
            }
        }
    });
    port
}

/// What a host does with a request on HTTP/1.1 once it has read it whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum One {
    Answer,
    /// Ends the connection in an orderly way.
    Close,
    /// The same without a word to TLS.
    Cut,
    /// After the first letter of an answer.
    Hint,
    /// After an interim answer.
    Interim,
    /// Not read whole: cut after the head.
    Head,
}

/// A host that acts by the number of the request, over all its connections; it answers what is
/// beyond its plan.
async fn host1(tls: TlsAcceptor, plan: &'static [One]) -> (u16, Seen) {
    let seen = Seen::default();
    let all = seen.clone();
    let port = listen(tls, move |connection, mut io| {
        let seen = all.clone();
        async move {
            let mut ahead = Vec::new();
            loop {
                let number = seen.lock().unwrap().len();
                let act = plan.get(number).copied().unwrap_or(One::Answer);
                let message = read_message(&mut io, &mut ahead, act == One::Head).await?;
                seen.lock().unwrap().push((connection, message.text()));
                let told: &[u8] = match act {
                    One::Answer => &ok(b"done"),
                    One::Hint => b"H",
                    One::Interim => b"HTTP/1.1 103 Early Hints\r\n\r\n",
                    One::Close | One::Cut | One::Head => b"",
                };
                io.write_all(told).await.ok()?;
                io.flush().await.ok()?;
                if act == One::Close {
                    io.shutdown().await.ok()?;
                }
                if act != One::Answer {
                    return None;
                }
            }
        }
    })
    .await;
    (port, seen)
}

/// Goal: what a closed connection left in doubt is asked again where asking changes nothing, once, and
/// on a new connection; and nothing is where a byte of an answer came, the connection was new, or the
/// method may change something. Method: a first request that is answered, and a second by the plan.
#[tokio::test]
async fn what_a_closed_connection_left_open_is_asked_again_if_it_is_safe() {
    use One::{Answer, Close, Cut, Head, Hint, Interim};
    let cases: [(&str, &'static [One], u16, &[usize]); 15] = [
        ("GET", &[Answer, Close], 200, &[0, 0, 1]),
        ("GET", &[Answer, Cut], 200, &[0, 0, 1]),
        ("GET", &[Answer, Head], 200, &[0, 0, 1]),
        ("OPTIONS", &[Answer, Close], 200, &[0, 0, 1]),
        ("GET", &[Answer, Close, Close], 502, &[0, 0, 1]),
        ("GET", &[Answer, Hint], 502, &[0, 0]),
        ("GET", &[Answer, Interim], 502, &[0, 0]),
        ("GET", &[Close], 502, &[0]),
        ("POST", &[Answer, Close], 502, &[0, 0]),
        ("POST", &[Answer, Cut], 502, &[0, 0]),
        ("POST", &[Answer, Head], 502, &[0, 0]),
        ("PUT", &[Answer, Close], 502, &[0, 0]),
        ("DELETE", &[Answer, Close], 502, &[0, 0]),
        ("PATCH", &[Answer, Cut], 502, &[0, 0]),
        ("PROPFIND", &[Answer, Close], 502, &[0, 0]),
    ];
    for (method, plan, status, expected) in cases {
        let mut world = World::new(&Setup::default());
        let tls = world.authority.acceptor(&["api.test"]);
        let (port, seen) = host1(tls, plan).await;
        let body = format!("<{}>", world.token);
        let request = |method: &str| {
            let length = body.len();
            format!(
                "{method} / HTTP/1.1\r\nhost: api.test\r\ncontent-length: {length}\r\n\r\n{body}"
            )
        };
        let asked = usize::from(plan.len() > 1);
        for _ in 0..asked {
            let reply = world.ask("api.test", port, request("POST")).await;
            assert_eq!(reply.status(), 200, "{method} {plan:?}");
            world.decision().await;
        }
        let reply = world.ask("api.test", port, request(method)).await;
        assert_eq!(
            reply.status(),
            status,
            "{method} {plan:?}: {}",
            reply.text()
        );
        assert_eq!(connections(&seen), expected, "{method} {plan:?}");
        let last = seen.lock().unwrap().last().unwrap().1.clone();
        if status == 200 {
            assert_eq!(last, format!("<{VALUE}>"), "{method} {plan:?}");
        }
        let decision = world.decision().await;
        assert_eq!(decision.status, Some(status), "{method} {plan:?}");
        world.finish();
    }
}

/// What a host does with a request on HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Two {
    Answer,
    /// Says at its head that nothing was done about it.
    Refuse,
    /// The same at its end.
    RefuseLate,
    /// Resets the stream for this reason, which tells nothing.
    Reset(u32),
    /// Leaves it out of the last requests of the connection.
    LeaveOut,
    /// Says that it is the last request of the connection, and ends that.
    TakeIn,
    /// Ends the connection.
    Close,
    /// Answers when the next request on any connection is answered.
    Wait,
}

/// One connection of a host.
struct Host {
    io: WriteHalf<Io>,
    /// What is to be done about the streams under way, and what came of their bodies.
    streams: HashMap<u32, (Two, usize, Vec<u8>)>,
    waiting: Vec<u32>,
}

impl Host {
    async fn tell(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Option<()> {
        let bytes = frame(kind, flags, stream, payload);
        self.io.write_all(&bytes).await.ok()?;
        self.io.flush().await.ok()
    }

    async fn answer(&mut self, stream: u32) -> Option<()> {
        // `:status: 200` of the static table.
        self.tell(HEADERS, END_HEADERS, stream, &[0x88]).await?;
        self.tell(DATA, END_STREAM, stream, b"done").await
    }

    /// Acts on the head of a request.
    async fn begun(&mut self, act: Two, stream: u32) -> Option<()> {
        let go_away = |last: u32, code: u32| [last.to_be_bytes(), code.to_be_bytes()].concat();
        match act {
            Two::Refuse => self.tell(RST_STREAM, 0, stream, &7_u32.to_be_bytes()).await,
            Two::Reset(code) => self.tell(RST_STREAM, 0, stream, &code.to_be_bytes()).await,
            Two::LeaveOut => {
                let last = stream.saturating_sub(2);
                self.tell(GOAWAY, 0, 0, &go_away(last, 0)).await
            }
            Two::TakeIn => {
                self.tell(GOAWAY, 0, 0, &go_away(stream, 0)).await?;
                None
            }
            Two::Close => None,
            Two::Answer | Two::RefuseLate | Two::Wait => Some(()),
        }
    }

    /// Acts on the end of a request.
    async fn ended(&mut self, act: Two, stream: u32) -> Option<()> {
        match act {
            Two::Answer => self.answer(stream).await,
            Two::RefuseLate => self.tell(RST_STREAM, 0, stream, &7_u32.to_be_bytes()).await,
            Two::Wait => {
                self.waiting.push(stream);
                Some(())
            }
            _ => Some(()),
        }
    }
}

async fn host2(tls: TlsAcceptor, plan: &'static [Two]) -> (u16, Seen) {
    let seen = Seen::default();
    let all = seen.clone();
    let port = listen(tls, move |connection, io| {
        serve2(connection, io, plan, all.clone())
    })
    .await;
    (port, seen)
}

async fn serve2(connection: usize, io: Io, plan: &'static [Two], seen: Seen) -> Option<()> {
    let (mut read, write) = tokio::io::split(io);
    read.read_exact(&mut [0; 24]).await.ok()?;
    let (frames, mut next) = tokio::sync::mpsc::channel(8);
    // Ends with this connection, which is closed only then.
    let _reader = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(frame) = next_frame(&mut read).await {
            let _ = frames.send(frame).await;
        }
    }));
    let mut host = Host {
        io: write,
        streams: HashMap::new(),
        waiting: Vec::new(),
    };
    // Windows of a mebibyte.
    host.tell(SETTINGS, 0, 0, &[0, 4, 0, 16, 0, 0]).await?;
    host.tell(8, 0, 0, &(1_u32 << 20).to_be_bytes()).await?;
    loop {
        let Ok(frame) = timeout(Duration::from_millis(20), next.recv()).await else {
            if seen.lock().unwrap().len() >= plan.len() {
                for stream in std::mem::take(&mut host.waiting) {
                    host.answer(stream).await?;
                }
            }
            continue;
        };
        let frame = frame?;
        let stream = frame.stream;
        if frame.kind == SETTINGS && frame.flags & 1 == 0 {
            host.tell(SETTINGS, 1, 0, &[]).await?;
        }
        if frame.kind == HEADERS && !host.streams.contains_key(&stream) {
            let (number, act) = {
                let mut seen = seen.lock().unwrap();
                seen.push((connection, String::new()));
                let number = seen.len() - 1;
                (number, plan.get(number).copied().unwrap_or(Two::Answer))
            };
            host.streams.insert(stream, (act, number, Vec::new()));
            host.begun(act, stream).await?;
        }
        let Some((act, number, body)) = host.streams.get_mut(&stream) else {
            continue;
        };
        if frame.kind == DATA {
            body.extend(&frame.payload);
        }
        if matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0 {
            seen.lock().unwrap()[*number].1 = String::from_utf8_lossy(body).into_owned();
            let act = *act;
            host.ended(act, stream).await?;
        }
    }
}

/// Goal: a request that the host did nothing about is sent again whatever it asks for, whole, on new
/// connections, and not forever; one that the host may have carried out is not.
#[tokio::test]
async fn what_a_host_did_nothing_about_is_sent_again() {
    use Two::{Answer, Close, LeaveOut, Refuse, RefuseLate, Reset, TakeIn};
    let cases: [(Method, &'static [Two], u16, &[usize]); 14] = [
        (Method::POST, &[Refuse], 200, &[0, 1]),
        (Method::POST, &[RefuseLate], 200, &[0, 1]),
        (Method::POST, &[LeaveOut], 200, &[0, 1]),
        (Method::POST, &[Answer, LeaveOut], 200, &[0, 0, 1]),
        (Method::POST, &[Refuse, RefuseLate], 200, &[0, 1, 2]),
        (Method::DELETE, &[Answer, Refuse], 200, &[0, 0, 1]),
        (Method::POST, &[Refuse, Refuse, Refuse], 502, &[0, 1, 2]),
        (Method::GET, &[LeaveOut, Refuse, LeaveOut], 502, &[0, 1, 2]),
        // INTERNAL_ERROR and CANCEL.
        (Method::GET, &[Reset(2)], 502, &[0]),
        (Method::POST, &[Reset(8)], 502, &[0]),
        (Method::POST, &[Answer, TakeIn], 502, &[0, 0]),
        (Method::POST, &[Answer, Close], 502, &[0, 0]),
        (Method::GET, &[Answer, Close], 200, &[0, 0, 1]),
        (Method::GET, &[Close], 502, &[0]),
    ];
    for (method, plan, status, expected) in cases {
        let world = World::new(&Setup::default());
        let tls = world.authority.acceptor_offering(&["api.test"], &["h2"]);
        let (port, seen) = host2(tls, plan).await;
        let mut client = client2(&world, "api.test", port).await;
        let token = world.token.to_string();
        let request = |method: &Method| {
            let fields = [("x-sum", token.clone())];
            let body = with_trailers(format!("<{token}>"), &fields);
            let request = Request::builder().method(method);
            request.uri("https://api.test/").body(body).unwrap()
        };
        if plan[0] == Answer {
            let reply = ask2(&mut client, request(&Method::POST)).await.unwrap();
            assert_eq!(reply.status, 200, "{method} {plan:?}");
        }
        let reply = ask2(&mut client, request(&method)).await.unwrap();
        assert_eq!(reply.status, status, "{method} {plan:?}: {}", reply.text());
        assert_eq!(connections(&seen), expected, "{method} {plan:?}");
        if status == 200 {
            let last = seen.lock().unwrap().last().unwrap().1.clone();
            assert_eq!(last, format!("<{VALUE}>"), "{method} {plan:?}");
        }
        world.finish();
    }
}

/// Goal: an upload that is refused in its middle goes on in the next attempt, a token that was cut by
/// it included; one of which more was read than is kept is not sent in part.
#[tokio::test]
async fn an_upload_goes_on_after_it_was_refused() {
    let world = World::new(&Setup::default());
    let tls = world.authority.acceptor_offering(&["api.test"], &["h2"]);
    let (port, seen) = host2(tls, &[Two::Refuse]).await;
    let mut client = client2(&world, "api.test", port).await;
    let text = format!("<{}>", world.token);
    let (begin, end) = text.split_at(20);
    let (pieces, body) = tokio::sync::mpsc::channel(4);
    let piece = |text: &str| Ok::<_, Infallible>(Frame::data(Bytes::from(text.to_owned())));
    pieces.send(piece(begin)).await.unwrap();
    let body: TestBody = BodyExt::boxed(StreamBody::new(ReceiverStream::new(body)));
    let request = Request::post("https://api.test/").body(body).unwrap();
    let asked = tokio::spawn(async move { ask2(&mut client, request).await });
    soon(async {
        while seen.lock().unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    pieces.send(piece(end)).await.unwrap();
    drop(pieces);
    assert_eq!(asked.await.unwrap().unwrap().status, 200);
    assert_eq!(connections(&seen), [0, 1]);
    assert_eq!(seen.lock().unwrap()[1].1, format!("<{VALUE}>"));

    let tls = world.authority.acceptor_offering(&["api.test"], &["h2"]);
    let (port, seen) = host2(tls, &[Two::RefuseLate]).await;
    let mut client = client2(&world, "api.test", port).await;
    let long = Request::post("https://api.test/").body(whole("x".repeat(200_000)));
    let reply = ask2(&mut client, long.unwrap()).await.unwrap();
    assert_eq!(reply.status, 502, "{}", reply.text());
    assert_eq!(connections(&seen), [0]);
    world.finish();
}

/// Goal: a connection that takes no more requests carries those it took to their end.
#[tokio::test]
async fn requests_that_were_taken_in_are_answered_where_they_are() {
    let world = World::new(&Setup::default());
    for last in [Two::LeaveOut, Two::Refuse] {
        let plan: &'static [Two] = match last {
            Two::Refuse => &[Two::Wait, Two::Refuse, Two::Answer],
            _ => &[Two::Wait, Two::LeaveOut, Two::Answer],
        };
        let tls = world.authority.acceptor_offering(&["api.test"], &["h2"]);
        let (port, seen) = host2(tls, plan).await;
        let client = client2(&world, "api.test", port).await;
        let ask = |text: &'static str| {
            let mut client = client.clone();
            let request = Request::post("https://api.test/")
                .body(whole(text))
                .unwrap();
            tokio::spawn(async move { ask2(&mut client, request).await })
        };
        let first = ask("first");
        soon(async {
            while seen.lock().unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let second = ask("second");
        for asked in [first, second] {
            assert_eq!(asked.await.unwrap().unwrap().status, 200, "{last:?}");
        }
        assert_eq!(connections(&seen), [0, 0, 1], "{last:?}");
        assert_eq!(seen.lock().unwrap()[0].1, "first");
        assert_eq!(seen.lock().unwrap()[2].1, "second");
    }
    world.finish();
}
