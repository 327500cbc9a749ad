//! WebSocket through the seal: raw frames on both sides, so that the tests see what was sent.

use std::sync::{Arc, Mutex};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use futures_util::{SinkExt, StreamExt};
use opencomputer::proxy::{Decision, Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::wire::{Io, Message, get, read_message, send};
use crate::world::{OTHER_VALUE, Setup, VALUE, World, soon};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A frame as it was on the wire, its payload unmasked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    opcode: u8,
    last: bool,
    compressed: bool,
    masked: bool,
    payload: Vec<u8>,
}

impl Frame {
    fn new(opcode: u8, payload: impl AsRef<[u8]>) -> Self {
        Self {
            opcode,
            last: true,
            compressed: false,
            masked: false,
            payload: payload.as_ref().to_vec(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let bit = |set, bit| if set { bit } else { 0 };
        let first = self.opcode | bit(self.last, 0x80) | bit(self.compressed, 0x40);
        let mask = bit(self.masked, 0x80);
        let mut bytes = match self.payload.len() {
            short @ ..126 => vec![first, short as u8 | mask],
            long @ ..65536 => [&[first, 126 | mask][..], &(long as u16).to_be_bytes()].concat(),
            long => [&[first, 127 | mask][..], &(long as u64).to_be_bytes()].concat(),
        };
        let key = [0x5a, 0xc3, 0x0f, 0x99];
        if self.masked {
            bytes.extend(key);
        }
        let keys = key.iter().cycle();
        let masked = self.payload.iter().zip(keys);
        bytes.extend(masked.map(|(byte, key)| if self.masked { byte ^ key } else { *byte }));
        bytes
    }

    /// A close frame's code and reason.
    fn closing(&self) -> (u16, String) {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        let (code, reason) = self.payload.split_at(2);
        let code = u16::from_be_bytes(code.try_into().unwrap());
        (code, String::from_utf8(reason.to_vec()).unwrap())
    }
}

async fn read_frame(io: &mut Io) -> Option<Frame> {
    let mut head = [0; 2];
    io.read_exact(&mut head).await.ok()?;
    let length = match head[1] & 0x7f {
        126 => io.read_u16().await.ok()?.into(),
        127 => io.read_u64().await.ok()?,
        short => short.into(),
    };
    let masked = head[1] & 0x80 != 0;
    let mut key = [0; 4];
    if masked {
        io.read_exact(&mut key).await.ok()?;
    }
    let mut payload = vec![0; length as usize];
    io.read_exact(&mut payload).await.ok()?;
    payload
        .iter_mut()
        .zip(key.iter().cycle())
        .for_each(|(byte, key)| *byte ^= key);
    Some(Frame {
        opcode: head[0] & 15,
        last: head[0] & 0x80 != 0,
        compressed: head[0] & 0x40 != 0,
        masked,
        payload,
    })
}

/// A whole message in one frame; control frames come as they are.
async fn read_whole(io: &mut Io) -> Option<Frame> {
    let mut whole = soon(read_frame(io)).await?;
    while !whole.last {
        let next = soon(read_frame(io)).await?;
        assert_eq!(next.opcode, 0);
        whole.last = next.last;
        whole.payload.extend(next.payload);
    }
    Some(whole)
}

/// A host that answers each request with 101 and `fields`, then does `script` with the stream.
async fn host<F>(
    world: &World,
    fields: &'static str,
    script: impl Fn(Message, Io) -> F + Send + Sync + 'static,
) -> u16
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = world.authority.acceptor(&["api.test", "other.test"]);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = tls.accept(stream).await else {
                continue;
            };
            let mut io: Io = Box::new(stream);
            let mut ahead = Vec::new();
            let Some(request) = read_message(&mut io, &mut ahead, false).await else {
                continue;
            };
            let key = request.field("sec-websocket-key").unwrap_or_default();
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
                 x-echo: {}\r\n{}\r\n\r\n",
                request.field("authorization").unwrap_or_default(),
                fields.replace("ACCEPT", &derive_accept_key(key.as_bytes())),
            );
            send(&mut io, answer).await;
            tokio::spawn(script(request, io));
        }
    });
    port
}

const ACCEPTED: &str = "sec-websocket-accept: ACCEPT";

/// Asks for a WebSocket; the head of the answer.
async fn ask(io: &mut Io, path: &str, fields: &str) -> String {
    let fields = format!(
        "upgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: {KEY}\r\n{fields}"
    );
    send(io, get("api.test", path, &fields)).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(io.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// An open WebSocket of the sandbox to `api.test`.
async fn open(world: &World, port: u16) -> Io {
    let mut io = world.secure("api.test", port).await;
    let head = ask(&mut io, "/", "").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    io
}

async fn say(io: &mut Io, frame: Frame) {
    send(
        io,
        Frame {
            masked: true,
            ..frame
        }
        .bytes(),
    )
    .await;
}

/// Frames the host was sent.
type Heard = Arc<Mutex<Vec<Frame>>>;

/// A host that sends back each message in two frames, cut at a place that moves on, and hears all.
async fn echo(world: &World) -> (u16, Heard) {
    let heard = Heard::default();
    let kept = heard.clone();
    let port = host(world, ACCEPTED, move |_, mut io| {
        let heard = heard.clone();
        async move {
            let mut cut = 0;
            while let Some(frame) = read_whole(&mut io).await {
                let (one, two) = frame.payload.split_at(cut.min(frame.payload.len()));
                let mut back = Frame::new(frame.opcode, one);
                let mut bytes = Vec::new();
                if matches!(frame.opcode, TEXT | BINARY) {
                    back.last = false;
                    bytes = Frame::new(0, two).bytes();
                } else {
                    back.payload = frame.payload.clone();
                    if frame.opcode == PING {
                        back.opcode = PONG;
                    }
                }
                cut += 1;
                heard.lock().unwrap().push(frame);
                send(&mut io, [back.bytes(), bytes].concat()).await;
            }
        }
    })
    .await;
    (port, kept)
}

/// Goal: threat rows 1 and 21. Method: a token is cut into two frames at every byte, and the host
/// echoes the value cut at every byte; text and binary.
#[tokio::test]
async fn websocket_messages_are_sealed_at_every_cut() {
    let mut world = World::new(&Setup::default());
    let (port, heard) = echo(&world).await;
    let token = world.token.to_string();
    for opcode in [TEXT, BINARY] {
        let mut io = open(&world, port).await;
        for cut in 0..=token.len() {
            let (one, two) = token.split_at(cut);
            let begin = Frame {
                last: false,
                ..Frame::new(opcode, format!("<{one}"))
            };
            say(&mut io, begin).await;
            say(&mut io, Frame::new(0, format!("{two}>"))).await;
            let back = read_whole(&mut io).await.unwrap();
            assert_eq!(back, Frame::new(opcode, format!("<{token}>")), "{cut}");
            let frame = heard.lock().unwrap().pop().unwrap();
            assert_eq!((frame.masked, frame.opcode), (true, opcode));
            assert_eq!(frame.payload, format!("<{VALUE}>").as_bytes(), "{cut}");
        }
        say(&mut io, Frame::new(CLOSE, b"\x03\xe8")).await;
        assert_eq!(read_whole(&mut io).await.unwrap().closing().0, 1000);
        drop(io);
        let decision = world.decision().await;
        assert_eq!(
            (decision.outcome, decision.status),
            (Outcome::Allowed, Some(101))
        );
        assert_eq!(
            (&*decision.secrets[0], &*decision.resealed[0]),
            ("API_KEY", "API_KEY")
        );
        assert!(decision.bytes_up > 44 * 45 && decision.bytes_down > 44 * 45);
    }
    world.finish();
}

/// Values go into the handshake as into any head, the host's echo of it is sealed, and a
/// subprotocol that carries a token is chosen under its own name.
#[tokio::test]
async fn the_handshake_is_sealed() {
    let world = World::new(&Setup {
        value: "CANARY-value-in-a-protocol",
        ..Setup::default()
    });
    let fields =
        "sec-websocket-accept: ACCEPT\r\nsec-websocket-protocol: key.CANARY-value-in-a-protocol";
    let seen = Arc::new(Mutex::new(None));
    let kept = seen.clone();
    let port = host(&world, fields, move |request, _| {
        *seen.lock().unwrap() = Some(request);
        async {}
    })
    .await;
    let token = world.token;
    let mut io = world.secure("api.test", port).await;
    let fields = format!(
        "sec-websocket-protocol: chat, key.{token}\r\nauthorization: Bearer {token}\r\n\
         sec-websocket-extensions: x-private; a=1\r\norigin: https://me.test\r\n"
    );
    let head = ask(&mut io, &format!("/ws?k={token}"), &fields).await;
    let answer = Message {
        head,
        body: Vec::new(),
    };
    assert_eq!(answer.status(), 101);
    assert_eq!(
        answer.field("sec-websocket-accept"),
        Some(&*derive_accept_key(KEY.as_bytes()))
    );
    assert_eq!(
        answer.field("sec-websocket-protocol"),
        Some(&*format!("key.{token}"))
    );
    assert_eq!(answer.field("x-echo"), Some(&*format!("Bearer {token}")));
    assert_eq!(answer.field("sec-websocket-extensions"), None);
    assert!(!answer.head.contains("CANARY"));
    let asked: Message = kept.lock().unwrap().take().unwrap();
    assert!(
        asked
            .head
            .starts_with("GET /ws?k=CANARY-value-in-a-protocol HTTP/1.1\r\n")
    );
    assert_eq!(
        asked.field("authorization"),
        Some("Bearer CANARY-value-in-a-protocol")
    );
    assert_eq!(asked.field("origin"), Some("https://me.test"));
    assert_eq!(asked.field("sec-websocket-extensions"), None);
    world.finish();
}

/// Pings, pongs and the reason of a close frame are a place for a value too.
#[tokio::test]
async fn websocket_control_frames_are_sealed() {
    let world = World::new(&Setup::default());
    let (port, heard) = echo(&world).await;
    let token = world.token.to_string();
    let mut io = open(&world, port).await;
    say(
        &mut io,
        Frame {
            last: false,
            ..Frame::new(TEXT, &token[..9])
        },
    )
    .await;
    say(&mut io, Frame::new(PING, &token)).await;
    say(&mut io, Frame::new(0, &token[9..])).await;
    say(&mut io, Frame::new(CLOSE, format!("\x0c\x20{token}"))).await;
    let mut back = Vec::new();
    for _ in 0..3 {
        back.push(read_whole(&mut io).await.unwrap());
    }
    assert!(back.contains(&Frame::new(PONG, &token)) && back.contains(&Frame::new(TEXT, &token)));
    assert_eq!(back[2].closing(), (3104, token));
    let sent = heard.lock().unwrap().clone();
    assert_eq!(sent[2].closing(), (3104, VALUE.to_owned()));
    world.finish();
}

/// A compressed echo is opened, sealed and compressed again, with memory between messages.
#[tokio::test]
async fn compressed_websocket_messages_are_sealed() {
    fn deflate(stream: &mut Compress, text: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(4096);
        stream
            .compress_vec(text.as_bytes(), &mut out, FlushCompress::Sync)
            .unwrap();
        assert_eq!(out.split_off(out.len() - 4), [0, 0, 255, 255]);
        out
    }
    fn inflate(stream: &mut Decompress, message: &[u8]) -> String {
        let mut out = Vec::with_capacity(4096);
        let message = [message, &[0, 0, 255, 255]].concat();
        stream
            .decompress_vec(&message, &mut out, FlushDecompress::Sync)
            .unwrap();
        String::from_utf8(out).unwrap()
    }
    let world = World::new(&Setup::default());
    let fields = "sec-websocket-accept: ACCEPT\r\n\
                  sec-websocket-extensions: permessage-deflate; server_max_window_bits=15";
    let port = host(&world, fields, |asked, mut io| async move {
        assert_eq!(
            asked.field("sec-websocket-extensions"),
            Some("permessage-deflate")
        );
        let (mut packer, mut opener) = (
            Compress::new(Compression::best(), false),
            Decompress::new(false),
        );
        while let Some(frame) = read_whole(&mut io)
            .await
            .filter(|frame| frame.opcode == TEXT)
        {
            assert!(frame.compressed);
            let text = inflate(&mut opener, &frame.payload);
            let said = format!("you said {text}, key {}", text.contains(VALUE));
            let packed = deflate(&mut packer, &said);
            // One byte a frame: every cut at once.
            let count = packed.len();
            for (index, byte) in packed.into_iter().enumerate() {
                let mut frame = Frame::new(if index == 0 { TEXT } else { 0 }, [byte]);
                (frame.last, frame.compressed) = (index + 1 == count, index == 0);
                send(&mut io, frame.bytes()).await;
            }
        }
    })
    .await;
    let token = world.token.to_string();
    for offer in [
        "client_max_window_bits",
        "server_max_window_bits=12; client_max_window_bits=12",
    ] {
        let mut io = world.secure("api.test", port).await;
        let offer = format!("sec-websocket-extensions: permessage-deflate; {offer}\r\n");
        let head = ask(&mut io, "/", &offer).await;
        assert!(
            head.contains("sec-websocket-extensions: permessage-deflate"),
            "{head}"
        );
        let limited = head.contains("permessage-deflate; server_max_window_bits=12\r\n");
        assert_eq!(limited, offer.contains("server_max"), "{head}");
        let (mut packer, mut opener) = (
            Compress::new(Compression::fast(), false),
            Decompress::new(false),
        );
        for round in 0..5 {
            let text = format!("{round} {{{token}}} {token}");
            let frame = Frame::new(TEXT, deflate(&mut packer, &text));
            say(
                &mut io,
                Frame {
                    compressed: true,
                    ..frame
                },
            )
            .await;
            let back = read_whole(&mut io).await.unwrap();
            assert!(back.compressed);
            let said = inflate(&mut opener, &back.payload);
            assert_eq!(said, format!("you said {text}, key true"));
        }
    }
    world.finish();
}

/// A frame of any length passes while it is sent, and the token at its far end is replaced.
#[tokio::test]
async fn a_long_websocket_message_is_streamed() {
    const LENGTH: usize = 64 * 1024 * 1024;
    let world = World::new(&Setup::default());
    let port = host(&world, ACCEPTED, |_, mut io| async move {
        let (mut length, mut end) = (0, Vec::new());
        let mut frames = 0;
        loop {
            let frame = read_frame(&mut io).await.unwrap();
            assert!(frame.payload.len() < 1024 * 1024);
            length += frame.payload.len();
            end = [&end[end.len().saturating_sub(64)..], &frame.payload].concat();
            frames += 1;
            if frames == 1 {
                // The rest is not sent yet.
                send(&mut io, Frame::new(TEXT, "go on").bytes()).await;
            }
            if frame.last {
                break;
            }
        }
        let end = String::from_utf8_lossy(&end[end.len() - VALUE.len()..]).into_owned();
        send(&mut io, Frame::new(TEXT, format!("{length} {end}")).bytes()).await;
    })
    .await;
    let token = world.token.to_string();
    let mut io = open(&world, port).await;
    let length = (LENGTH + token.len()) as u64;
    let head = [&[0x82, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat();
    send(&mut io, head).await;
    let piece = vec![b'x'; 1024 * 1024];
    send(&mut io, &piece).await;
    assert_eq!(read_whole(&mut io).await.unwrap().payload, b"go on");
    for _ in 1..LENGTH / piece.len() {
        soon(io.write_all(&piece)).await.unwrap();
    }
    send(&mut io, &token).await;
    let told = read_whole(&mut io).await.unwrap();
    let expected = format!("{} {token}", LENGTH + VALUE.len());
    assert_eq!(String::from_utf8(told.payload).unwrap(), expected);
    world.finish();
}

/// Goal: threat row 28. What is no handshake for WebSocket reaches no host.
#[tokio::test]
async fn other_upgrades_are_refused() {
    let mut world = World::new(&Setup::default());
    let host = world.host(crate::world::echo()).await;
    for fields in [
        "upgrade: raw\r\nconnection: upgrade\r\n",
        "upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        "upgrade: websocket, raw\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "upgrade: websocket\r\nupgrade: raw\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 7\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "connection: upgrade\r\n",
    ] {
        let reply = world
            .ask("api.test", host.port, get("api.test", "/", fields))
            .await;
        let refused = (reply.status(), reply.rule());
        assert_eq!(refused, (403, "upgrade_unsupported".to_owned()), "{fields}");
        assert_eq!(world.decision().await.reason, "upgrade_unsupported");
    }
    assert_eq!(host.count(), 0);
    world.finish();
}

/// Goal: threat row 28 from the other side. A host that answers the handshake with anything but
/// what was asked gets no connection to the sandbox.
#[tokio::test]
async fn a_wrong_answer_to_the_handshake_is_refused() {
    let mut world = World::new(&Setup::default());
    for fields in [
        "sec-websocket-accept: dGhlIHNhbXBsZSBub25jZQ==",
        "x: y",
        "sec-websocket-accept: ACCEPT\r\nsec-websocket-extensions: x-raw",
        "sec-websocket-accept: ACCEPT\r\nsec-websocket-extensions: permessage-deflate",
        "sec-websocket-accept: ACCEPT\r\nsec-websocket-protocol: chat",
        "sec-websocket-accept: ACCEPT\r\nupgrade: h2c",
    ] {
        let port = host(&world, fields, |_, mut io| async move {
            let _ = io.write_all(VALUE.as_bytes()).await;
        })
        .await;
        let mut io = world.secure("api.test", port).await;
        let head = ask(&mut io, "/", "").await;
        assert!(head.starts_with("HTTP/1.1 502 "), "{fields}: {head}");
        drop(io);
        let decision = world.decision().await;
        assert_eq!(decision.reason, "upgrade_answer", "{fields}");
    }
    world.finish();
}

/// A host without a WebSocket answers in HTTP, and the connection goes on.
#[tokio::test]
async fn a_declined_handshake_is_an_answer_like_others() {
    let world = World::new(&Setup::default());
    let host = world.host(crate::world::echo()).await;
    let mut io = world.secure("api.test", host.port).await;
    let fields = format!(
        "upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: {KEY}\r\nx-key: {}\r\n",
        world.token
    );
    for fields in [&*fields, ""] {
        let reply = crate::wire::ask(&mut io, get("api.test", "/", fields)).await;
        assert_eq!(reply.status(), 200);
        assert!(!reply.text().contains("CANARY"));
    }
    assert_eq!(host.count(), 2);
    world.finish();
}

/// Sends `bytes` from the host once a WebSocket is open; what both sides are told, and the record.
async fn cut(
    setup: &Setup,
    from_host: &[u8],
    from_sandbox: &[u8],
) -> ([(u16, String); 2], Decision) {
    let mut world = World::new(setup);
    let (tell, told) = tokio::sync::oneshot::channel();
    let (bytes, tell) = (from_host.to_vec(), Mutex::new(Some(tell)));
    let port = host(&world, ACCEPTED, move |_, mut io| {
        let (bytes, tell) = (bytes.clone(), tell.lock().unwrap().take().unwrap());
        async move {
            send(&mut io, bytes).await;
            let _ = tell.send(read_whole(&mut io).await.unwrap());
            assert_eq!(read_frame(&mut io).await, None, "nothing follows");
        }
    })
    .await;
    let mut io = open(&world, port).await;
    send(&mut io, from_sandbox).await;
    let near = read_whole(&mut io).await.unwrap();
    assert!(!near.masked);
    assert_eq!(soon(read_frame(&mut io)).await, None);
    drop(io);
    let far = soon(told).await.unwrap();
    assert!(far.masked);
    let decision = world.decision().await;
    world.finish();
    ([near.closing(), far.closing()], decision)
}

/// Frames that could be read in two ways, from either side, end the WebSocket for both.
#[tokio::test]
async fn frames_against_the_protocol_close_both_sides() {
    let masked = Frame {
        masked: true,
        ..Frame::new(TEXT, "x")
    }
    .bytes();
    let bare = Frame::new(TEXT, "x").bytes();
    let nothing: &[u8] = &[];
    for (from_host, from_sandbox) in [
        (masked.as_slice(), nothing),
        (nothing, bare.as_slice()),
        (&[0xc1, 0], nothing),
        (&[0x91, 0], nothing),
        (&[0x83, 0], nothing),
        (&[0x80, 0], nothing),
        (&[0x81, 126, 0, 1], nothing),
        (&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0], nothing),
        (nothing, &[0x09, 0x80, 0, 0, 0, 0]),
    ] {
        let (told, decision) = cut(&Setup::default(), from_host, from_sandbox).await;
        assert_eq!(
            (told[0].0, told[1].0),
            (1002, 1002),
            "{from_host:x?} {from_sandbox:x?}"
        );
        let decided = (decision.outcome, decision.reason.as_str());
        assert_eq!(decided, (Outcome::Refused, "websocket_frames"));
    }
    let (told, _) = cut(&Setup::default(), &[0x81, 1, 0xff], &[]).await;
    assert_eq!((told[0].0, told[1].0), (1007, 1007));
}

/// A token that may not go to the host ends a strict WebSocket with the rule's name.
#[tokio::test]
async fn a_refused_token_closes_with_its_rule() {
    let strict = Setup {
        strict: true,
        ..Setup::default()
    };
    let token = opencomputer::proxy::SealedToken::generate().to_string();
    let frame = Frame {
        masked: true,
        ..Frame::new(TEXT, token)
    };
    let (told, decision) = cut(&strict, &[], &frame.bytes()).await;
    let expected = (1008, "secret_not_bound_to_host".to_owned());
    assert_eq!(told, [expected.clone(), expected]);
    assert_eq!(decision.reason, "secret_not_bound_to_host");
}

/// A rotated value is used from the next message on, the former one is still sealed, and a policy
/// that forbids the host ends the WebSocket.
#[tokio::test]
async fn an_open_websocket_follows_the_policy() {
    let mut world = World::new(&Setup::default());
    let (port, heard) = echo(&world).await;
    let token = world.token.to_string();
    let mut io = open(&world, port).await;
    say(&mut io, Frame::new(TEXT, &token)).await;
    assert_eq!(read_whole(&mut io).await.unwrap().payload, token.as_bytes());
    let rotated = Setup {
        value: "CANARY-rotated-0003",
        ..Setup::default()
    };
    world.set_policy(&rotated);
    // The relay is told of the policy by another task.
    let expected = loop {
        say(&mut io, Frame::new(TEXT, &token)).await;
        assert_eq!(read_whole(&mut io).await.unwrap().payload, token.as_bytes());
        let sent = heard.lock().unwrap().pop().unwrap().payload;
        if sent != VALUE.as_bytes() {
            break sent;
        }
    };
    assert_eq!(expected, b"CANARY-rotated-0003");
    // The host remembers what it was told first.
    say(&mut io, Frame::new(TEXT, format!("{VALUE} {OTHER_VALUE}"))).await;
    let back = read_whole(&mut io).await.unwrap().payload;
    assert_eq!(back, format!("{token} {OTHER_VALUE}").as_bytes());
    world.set_policy(&Setup {
        allowlist: vec!["else.test"],
        ..Setup::default()
    });
    let closed = read_whole(&mut io).await.unwrap().closing();
    assert_eq!(closed, (1008, "egress_allowlist".to_owned()));
    drop(io);
    let decision = world.decision().await;
    assert_eq!(decision.reason, "egress_allowlist");
    world.finish();
}

/// With strict audit a secret that is bound to the host while a WebSocket is open is put into nothing
/// before it was announced; where that fails, the WebSocket ends.
#[tokio::test]
async fn secrets_bound_later_are_announced_first() {
    let before = || Setup {
        strict_audit: true,
        inspect_all: true,
        hosts: vec!["sub.api.test"],
        ..Setup::default()
    };
    for recorded in [true, false] {
        let mut world = World::new(&before());
        let (announcements, mut waiting) = tokio::sync::mpsc::channel(8);
        world.proxy.announce_to(announcements);
        let (port, heard) = echo(&world).await;
        let token = world.token.to_string();
        let mut io = open(&world, port).await;
        world.set_policy(&Setup {
            hosts: vec!["api.test", "sub.api.test"],
            ..before()
        });
        let announced = soon(waiting.recv()).await.unwrap();
        assert_eq!(announced.sending.secrets, ["API_KEY"]);
        say(&mut io, Frame::new(TEXT, &token)).await;
        assert_eq!(read_whole(&mut io).await.unwrap().payload, token.as_bytes());
        let sent = heard.lock().unwrap().pop().unwrap().payload;
        assert_eq!(sent, token.as_bytes(), "nothing is replaced before");
        if recorded {
            announced.recorded.send(()).unwrap();
            while heard
                .lock()
                .unwrap()
                .pop()
                .is_none_or(|one| one.payload != VALUE.as_bytes())
            {
                say(&mut io, Frame::new(TEXT, &token)).await;
                assert_eq!(read_whole(&mut io).await.unwrap().payload, token.as_bytes());
            }
            // A rotation brings no new name.
            let value = "CANARY-rotated-0003";
            let hosts = vec!["api.test"];
            world.set_policy(&Setup {
                value,
                hosts,
                ..before()
            });
            while heard
                .lock()
                .unwrap()
                .pop()
                .is_none_or(|one| one.payload != value.as_bytes())
            {
                say(&mut io, Frame::new(TEXT, &token)).await;
                assert_eq!(read_whole(&mut io).await.unwrap().payload, token.as_bytes());
            }
            assert!(waiting.try_recv().is_err());
        } else {
            drop(announced);
            let closed = read_whole(&mut io).await.unwrap().closing();
            assert_eq!(closed, (1008, "audit_unrecorded".to_owned()));
            drop(io);
            assert_eq!(world.decision().await.reason, "audit_unrecorded");
        }
        world.finish();
    }
}

/// A WebSocket without TLS carries messages and no value.
#[tokio::test]
async fn a_websocket_without_tls_carries_no_secret() {
    let world = World::new(&Setup::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let stream = listener.accept().await.unwrap().0;
        let mut server = tokio_tungstenite::accept_async(stream).await.unwrap();
        let said = server.next().await.unwrap().unwrap();
        server.send(said.clone()).await.unwrap();
        said.into_text().unwrap().to_string()
    });
    let stream = world.connect("api.test", port).await;
    let url = format!("ws://api.test:{port}/");
    let opened = soon(tokio_tungstenite::client_async(url, stream)).await;
    let (mut socket, _) = opened.unwrap();
    let text = format!("key {}", world.token);
    socket.send(text.clone().into()).await.unwrap();
    let back = soon(socket.next()).await.unwrap().unwrap();
    assert_eq!(back.into_text().unwrap().as_str(), text);
    assert_eq!(soon(server).await.unwrap(), text);
    world.finish();
}

/// The end of one side is the end for the other, without a close frame nobody sent.
#[tokio::test]
async fn an_abrupt_end_is_carried_over() {
    let world = World::new(&Setup::default());
    let port = host(&world, ACCEPTED, |_, mut io| async move {
        // In the middle of a frame.
        send(&mut io, [0x81, 9, b'x']).await;
    })
    .await;
    let mut io = open(&world, port).await;
    let mut rest = Vec::new();
    let _ = soon(io.read_to_end(&mut rest)).await;
    assert!(rest.is_empty());
    let (gone, left) = tokio::sync::oneshot::channel::<()>();
    let gone = Mutex::new(Some(gone));
    let port = host(&world, ACCEPTED, move |_, mut io| {
        let gone = gone.lock().unwrap().take();
        async move {
            assert_eq!(read_frame(&mut io).await, None);
            drop(gone);
        }
    })
    .await;
    drop(open(&world, port).await);
    assert!(soon(left).await.is_err());
    world.finish();
}
