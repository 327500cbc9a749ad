//! Rows 1, 28 and 29 over HTTP/2: fields, trailers, gRPC messages, and CONNECT.

use http::{HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt, Full};

use super::attack;
use super::h2::{NO_H2, host};
use crate::cli::proxy::check::client::Trouble;
use crate::cli::proxy::check::h2_client::{H2, get};
use crate::cli::proxy::check::kit::{OTHER, OUTSIDE};
use crate::cli::proxy::check::message::has;
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass, skipped};
use crate::cli::proxy::check::world::World;

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!("1", "echo over HTTP/2: header, body, trailer", echo),
        attack!("1", "echo of a gRPC message", grpc),
        attack!("28", "CONNECT inside HTTP/2, plain and extended", connect),
        attack!("29", "the token in a trailer over HTTP/2", trailer),
    ]
}

const NOT_THERE: &str = "the value did not reach the host, which had nothing to say back";

fn request(world: &World, kind: &str) -> http::request::Builder {
    Request::post(format!("https://{}/", world.kit.api))
        .header("x-key", &world.kit.primary.token)
        .header("content-type", kind)
        .header("te", "trailers")
}

async fn echo(world: &World) -> Found {
    let host = host(world).await?;
    let body = Full::new(format!("body {}", world.kit.primary.token).into());
    let request = request(world, "text/plain").body(body);
    let request = request.map_err(|error| Trouble::Local(error.to_string()))?;
    let answer = world.ask_h2(&world.kit.api, host.port, request).await;
    let Some(answer) = answer? else {
        return skipped(NO_H2);
    };
    if !host.got(world.kit.primary.real()) {
        return skipped(NOT_THERE);
    }
    match world.value_in(&answer.all()) {
        Some(_) => fail("the client got the value"),
        None => pass(format!(
            "status {}, without the value",
            answer.status.as_u16()
        )),
    }
}

/// A message with the string `text` in its first field, as gRPC sends it.
fn message(text: &str) -> Vec<u8> {
    // Texts here are shorter than 128 bytes: lengths take one byte.
    let size = text.len() as u8;
    [&[0, 0, 0, 0, size + 2, 0x0a, size], text.as_bytes()].concat()
}

/// The string in a message, when every length around it is right.
fn read(message: &[u8]) -> Option<&[u8]> {
    let (head, text) = message.split_at_checked(7)?;
    let size = u8::try_from(text.len()).ok()?;
    (head == [0, 0, 0, 0, size.checked_add(2)?, 0x0a, size]).then_some(text)
}

async fn grpc(world: &World) -> Found {
    let (value, token) = (world.kit.primary.real(), &world.kit.primary.token);
    let host = host(world).await?;
    let request = request(world, "application/grpc").body(Full::new(message(token).into()));
    let request = request.map_err(|error| Trouble::Local(error.to_string()))?;
    let answer = world.ask_h2(&world.kit.api, host.port, request).await;
    let Some(answer) = answer? else {
        return skipped(NO_H2);
    };
    let Some(sent) = host.last() else {
        return skipped("the message did not reach the host");
    };
    if world.value_in(&answer.all()).is_some() {
        return fail("the client got the value");
    }
    if !has(&sent.body, value) {
        return match sent.body == message(token) {
            true => skipped("the target replaces nothing in messages"),
            false => fail("the host got a message that is neither the old nor the new one"),
        };
    }
    if read(&sent.body) != Some(value) {
        return fail("the host got a message whose lengths are not its own");
    }
    match read(&answer.body) {
        Some(_) => pass("replaced with its lengths, and back"),
        None if answer.body.is_empty() => pass("the answer was refused"),
        None => fail("the client got a message whose lengths are not its own"),
    }
}

async fn trailer(world: &World) -> Found {
    let (value, token) = (world.kit.primary.real(), &world.kit.primary.token);
    let api = world.kit.api.as_str();
    let host = host(world).await?;
    let value_of = HeaderValue::try_from(token.as_str());
    let mut trailers = HeaderMap::new();
    trailers.insert(
        "x-last",
        value_of.map_err(|error| Trouble::Local(error.to_string()))?,
    );
    let body = Full::new("body".into()).with_trailers(std::future::ready(Some(Ok(trailers))));
    let request = Request::post(format!("https://{api}/")).body(Box::pin(body));
    let request = request.map_err(|error| Trouble::Local(error.to_string()))?;
    match world.ask_h2(api, host.port, request).await {
        Ok(None) => return skipped(NO_H2),
        Ok(Some(answer)) if world.value_in(&answer.all()).is_some() => {
            return fail("the client got the value");
        }
        Ok(Some(_)) => {}
        Err(trouble) if trouble.is_refusal() => {}
        Err(trouble) => return Err(trouble),
    }
    // And to a host it is not for, by hand: the trailer names another stream's field.
    let Some(mut h2) = H2::open(world, OTHER, host.port).await? else {
        return skipped(NO_H2);
    };
    let mut fields = get(OTHER, &[]);
    fields[0].1 = b"POST";
    let last: [(&str, &[u8]); 2] = [("x-last", token.as_bytes()), ("host", api.as_bytes())];
    h2.post_with_trailers(1, &fields, b"body", &last).await?;
    let _ = h2.ended(1).await;
    host.look(|tap| {
        let mut seen = Vec::new();
        for request in &tap.requests {
            let first = request.head.lines().next().unwrap_or_default();
            if first.contains(OTHER) && has(&request.raw, value) {
                return fail("the value went to another host in a trailer");
            }
            seen.push(
                match (
                    has(&request.raw, value),
                    has(&request.raw, token.as_bytes()),
                ) {
                    (true, true) => return fail("half replaced"),
                    (true, _) => "replaced",
                    (_, true) => "a token still",
                    _ => "dropped",
                },
            );
        }
        pass(format!("at hosts: {}", seen.join(", ")))
    })
}

/// What is said freely, once there is a tunnel.
const FREE: &[u8] = b"free speech inside a stream";

async fn connect(world: &World) -> Found {
    let api = world.kit.api.as_str();
    let host = host(world).await?;
    for authority in [api, OTHER, OUTSIDE] {
        for extended in [false, true] {
            let Some(mut h2) = H2::open(world, api, host.port).await? else {
                return skipped(NO_H2);
            };
            let mut fields: Vec<(&str, &[u8])> = vec![
                (":method", b"CONNECT"),
                (":authority", authority.as_bytes()),
            ];
            if extended {
                fields.extend([
                    (":protocol", &b"websocket"[..]),
                    (":scheme", b"https"),
                    (":path", b"/"),
                    ("sec-websocket-version", b"13"),
                ]);
            }
            // Streams that are refused may take the connection with them.
            let _ = h2.post(1, &fields, &[FREE, FREE]).await;
            let _ = h2.ended(1).await;
            if host.got(FREE) || host.got(b"CONNECT ") {
                return fail(format!("CONNECT {authority} went to the host"));
            }
        }
    }
    pass("refused, plain and extended, for three targets")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a wrong length is seen.
    #[test]
    fn lengths_of_messages_are_checked() {
        assert_eq!(read(&message("a text")), Some(&b"a text"[..]));
        let longer = [message("a text").as_slice(), b"x"].concat();
        assert_eq!(read(&longer), None);
    }
}
