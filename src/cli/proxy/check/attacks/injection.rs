//! Row 31: values with marks that mean something where they are put.

use super::attack;
use crate::cli::proxy::check::client::{Trouble, get, post};
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass, skipped};
use crate::cli::proxy::check::upstream::Reply;
use crate::cli::proxy::check::world::World;

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!("31", "a value with a line break in a header", line_break),
        attack!(
            "31",
            "a value with a line break in the request line",
            request_line
        ),
        attack!("31", "a value with quotes in JSON", json),
        attack!("31", "a value with & and = in a form and a query", form),
    ]
}

const UNKNOWN: &str = "the target does not know the secret";

async fn line_break(world: &World) -> Found {
    let api = world.kit.api.as_str();
    if !world.knows(&world.kit.crlf, api).await? {
        return skipped(format!("{UNKNOWN} `crlf`"));
    }
    let host = world.host(|_| Reply::ok("", b"fine")).await?;
    let token = &world.kit.crlf.token;
    let answer = world
        .ask(
            api,
            host.port,
            get(api, "/", &format!("x-key: {token}\r\n")),
        )
        .await;
    match (
        host.last()
            .and_then(|one| one.field("x-injected").map(drop)),
        answer,
    ) {
        (Some(()), _) => fail("the value made a header of its own"),
        (None, Ok(answer)) => pass(format!("status {}", answer.status())),
        (None, Err(trouble)) if trouble.is_refusal() => pass(trouble.to_string()),
        (None, Err(trouble)) => Err(trouble),
    }
}

async fn request_line(world: &World) -> Found {
    let api = world.kit.api.as_str();
    if !world.knows(&world.kit.crlf, api).await? {
        return skipped(format!("{UNKNOWN} `crlf`"));
    }
    for place in ["/?k=", "/path/"] {
        let host = world.host(|_| Reply::ok("", b"fine")).await?;
        let token = &world.kit.crlf.token;
        let _ = world
            .ask(api, host.port, get(api, &format!("{place}{token}"), ""))
            .await;
        if host
            .last()
            .is_some_and(|one| one.field("x-injected").is_some())
        {
            return fail(format!("the value broke the request line after {place}"));
        }
    }
    pass("escaped or refused")
}

async fn json(world: &World) -> Found {
    let api = world.kit.api.as_str();
    if !world.knows(&world.kit.quote, api).await? {
        return skipped(format!("{UNKNOWN} `quote`"));
    }
    let host = world.host(|_| Reply::ok("", b"fine")).await?;
    let body = format!("{{\"a\":\"{}\",\"b\":1}}", world.kit.quote.token);
    let request = post(api, "content-type: application/json\r\n", body.as_bytes());
    let answer = world.ask(api, host.port, request).await;
    let Some(got) = host.last() else {
        return match answer {
            Ok(answer) => pass(format!("refused with status {}", answer.status())),
            Err(trouble) if trouble.is_refusal() => pass(trouble.to_string()),
            Err(trouble) => Err(trouble),
        };
    };
    let read = serde_json::from_slice::<serde_json::Value>(&got.body);
    let value = String::from_utf8_lossy(world.kit.quote.real());
    match read {
        Ok(json) if json["a"] == *value && json["b"] == 1 => pass("the host reads the value whole"),
        Ok(_) => fail("the host reads other JSON"),
        Err(_) => fail("the host gets what is not JSON"),
    }
}

async fn form(world: &World) -> Found {
    let api = world.kit.api.as_str();
    if !world.knows(&world.kit.quote, api).await? {
        return skipped(format!("{UNKNOWN} `quote`"));
    }
    let host = world.host(|_| Reply::ok("", b"fine")).await?;
    let fields = "content-type: application/x-www-form-urlencoded\r\n";
    let text = format!("a={}&b=1", world.kit.quote.token);
    let _ = world
        .ask(api, host.port, post(api, fields, text.as_bytes()))
        .await;
    let _ = world
        .ask(api, host.port, get(api, &format!("/?{text}"), ""))
        .await;
    let (bodies, targets) = host.look(|tap| {
        let bodies: Vec<_> = tap.requests.iter().map(|one| one.body.clone()).collect();
        let targets: Vec<_> = tap
            .requests
            .iter()
            .map(|one| one.target().to_owned())
            .collect();
        (bodies, targets)
    });
    let bodies = bodies.into_iter().filter(|body| !body.is_empty());
    let queries = targets
        .iter()
        .filter_map(|target| target.split_once('?'))
        .map(|two| two.1.as_bytes().to_vec());
    let mut seen = 0;
    for text in bodies.chain(queries) {
        seen += 1;
        let pairs = text.split(|byte| *byte == b'&').count();
        if pairs != 2 || text.contains(&b'#') || text.contains(&b'"') {
            return fail("the value made a field of its own");
        }
    }
    pass(match seen {
        0 => "refused".to_owned(),
        _ => format!("{seen} of 2 sent, escaped"),
    })
}
