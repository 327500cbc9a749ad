//! Rows 1, 2 and 21 over WebSocket: echoes and tokens in messages, whole, cut and compressed.

use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::attack;
use crate::cli::proxy::check::client::{Trouble, ask, get, send};
use crate::cli::proxy::check::frames::{DEFLATE, Heard, PLAIN_TEXT, Shape};
use crate::cli::proxy::check::message::{Message, has};
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass, skipped};
use crate::cli::proxy::check::upstream::{Reply, Upstream};
use crate::cli::proxy::check::world::World;

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!("1", "echo over WebSocket, text and binary", whole),
        attack!("2", "echo over WebSocket, cut into frames", cut),
        attack!("2", "echo over WebSocket, compressed", packed),
        attack!("21", "the token cut by WebSocket frames", token_cut),
        attack!(
            "21",
            "the token in compressed WebSocket messages",
            token_packed
        ),
    ]
}

/// The key of the example in RFC 6455, section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// Bytes of a value that, alone at a host, tell of a half replacement.
const HALF: usize = 12;

const PACKED: Shape = Shape {
    packed: true,
    ..PLAIN_TEXT
};

/// A host that agrees, and says messages back in `shape`.
fn agree(request: &Message, shape: Shape) -> Reply {
    let key = request.field("sec-websocket-key").unwrap_or_default();
    let accept = derive_accept_key(key.as_bytes());
    let offered = request.field("sec-websocket-extensions");
    let packed = shape.packed && offered.is_some_and(|offer| offer.contains("permessage-deflate"));
    let extension = match packed {
        true => format!("sec-websocket-extensions: {DEFLATE}\r\n"),
        false => String::new(),
    };
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-accept: {accept}\r\n{extension}\r\n"
    );
    Reply {
        frames: Some(Shape { packed, ..shape }),
        ..Reply::raw(head)
    }
}

/// What a client heard after it sent `text` in its own shape to a host that answers in `back`;
/// `None` when the target lets no WebSocket of this kind through.
async fn speak(
    world: &World,
    own: Shape,
    back: Shape,
    text: &[u8],
) -> Result<Option<(Upstream, Heard)>, Trouble> {
    let api = world.kit.api.as_str();
    let host = world.host(move |request| agree(request, back)).await?;
    let mut stream = world.secure(api, host.port).await?;
    let extension = match own.packed || back.packed {
        true => format!("sec-websocket-extensions: {DEFLATE}\r\n"),
        false => String::new(),
    };
    let fields = format!(
        "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: {KEY}\r\n{extension}"
    );
    let answer = match ask(&mut stream, get(api, "/", &fields).as_bytes()).await {
        Ok(answer) => answer,
        Err(trouble) if trouble.is_refusal() => return Ok(None),
        Err(trouble) => return Err(trouble),
    };
    let agreed = answer.field("sec-websocket-extensions").is_some();
    if answer.status() != 101 || own.packed && !agreed {
        return Ok(None);
    }
    send(&mut stream, &own.frames(text, Some(MASK))).await?;
    let (heard, _) = Heard::read(&mut stream, &mut Vec::new()).await;
    Ok(Some((host, heard)))
}

const NO_SOCKET: &str = "the target lets no WebSocket of this kind through";
const NOT_THERE: &str = "the value did not reach the host in a message, which had nothing to say";

async fn echo(world: &World, shapes: &[(Shape, Shape)]) -> Found {
    let text = format!("the key is {}, is it not", world.kit.primary.token);
    for (own, back) in shapes {
        let Some((host, heard)) = speak(world, *own, *back, text.as_bytes()).await? else {
            return skipped(NO_SOCKET);
        };
        if !host.got(world.kit.primary.real()) {
            return skipped(NOT_THERE);
        }
        if world
            .value_in(&heard.text)
            .or(world.value_in(&heard.all))
            .is_some()
        {
            return fail(format!("the client got the value, said back as {back:?}"));
        }
    }
    pass(format!("{} connections, without the value", shapes.len()))
}

async fn whole(world: &World) -> Found {
    let binary = Shape {
        binary: true,
        ..PLAIN_TEXT
    };
    echo(world, &[(PLAIN_TEXT, PLAIN_TEXT), (binary, binary)]).await
}

async fn cut(world: &World) -> Found {
    let shape = |binary, cut, pings| Shape {
        binary,
        cut,
        pings,
        ..PLAIN_TEXT
    };
    let backs = [
        shape(false, 1, false),
        shape(true, 1, true),
        shape(false, 7, true),
        shape(true, 13, false),
    ];
    echo(world, &backs.map(|back| (PLAIN_TEXT, back))).await
}

async fn packed(world: &World) -> Found {
    let cut = Shape {
        binary: true,
        cut: 3,
        pings: true,
        ..PACKED
    };
    echo(world, &[(PLAIN_TEXT, PACKED), (PACKED, cut), (cut, PACKED)]).await
}

/// The token in a message of each shape: it is replaced whole, or nothing of it is.
async fn token(world: &World, shapes: &[Shape]) -> Found {
    let secret = &world.kit.primary;
    let text = format!("{}{{\"key\":\"{0}\"}}", secret.token);
    let mut replaced = 0;
    for shape in shapes {
        let Some((host, _)) = speak(world, *shape, *shape, text.as_bytes()).await? else {
            return skipped(NO_SOCKET);
        };
        let got = host.look(|tap| tap.rest.clone());
        let half = secret.real().get(..HALF).unwrap_or_default();
        let (value, token) = (has(&got, secret.real()), has(&got, secret.token.as_bytes()));
        if value && token || !value && has(&got, half) {
            return fail(format!("half replaced, sent as {shape:?}"));
        }
        replaced += usize::from(value);
    }
    match replaced {
        0 => skipped("the target replaces nothing in messages"),
        all if all == shapes.len() => pass(format!("replaced in {all} of {all}")),
        some => fail(format!("replaced in {some} of {} only", shapes.len())),
    }
}

async fn token_cut(world: &World) -> Found {
    let half = world.kit.primary.token.len() / 2;
    let shapes = [1, 5, half, half * 2 - 1].map(|cut| Shape {
        binary: cut == 5,
        cut,
        pings: cut != 1,
        ..PLAIN_TEXT
    });
    token(world, &shapes).await
}

async fn token_packed(world: &World) -> Found {
    let shapes = [1, 9, usize::MAX].map(|cut| Shape { cut, ..PACKED });
    token(world, &shapes).await
}
