//! Rows 10, 20 and 30: names that look like a host's, and secrets of other hosts.

use super::attack;
use crate::cli::proxy::check::client::{Trouble, ask, get};
use crate::cli::proxy::check::kit::{BELOW_WILD, LOOKALIKES, OTHER, PLAIN, WILD};
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass, skipped};
use crate::cli::proxy::check::world::World;

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![
        attack!(
            "10",
            "names with NUL, blanks, percent and other dots",
            names
        ),
        attack!("20", "names that only look like the host", lookalikes),
        attack!("30", "tokens at hosts of other secrets", cross),
    ]
}

async fn names(world: &World) -> Found {
    let api = world.kit.api.as_str();
    let odd: [(&str, String); 12] = [
        ("NUL", format!("{api}\0.evil")),
        ("%00", format!("{api}%00.evil")),
        ("a tab", format!("{api}\t")),
        ("a blank inside", format!("{api} evil")),
        ("%2e", api.replace('.', "%2e")),
        ("an ideographic full stop", api.replace('.', "\u{3002}")),
        ("a full-width letter", api.replace('a', "\u{ff41}")),
        ("a Cyrillic letter", api.replace('a', "\u{430}")),
        ("an empty label", api.replacen('.', "..", 1)),
        ("user information", format!("user@{api}")),
        ("a line feed", format!("{api}\nx: y")),
        ("a backslash", format!("{api}\\.evil")),
    ];
    for (what, name) in odd {
        let host = world.echo().await?;
        let authority = format!("{name}:{}", host.port);
        if let Ok(mut stream) = world.tls(&authority, Some(api), &[]).await {
            let _ = ask(&mut stream, world.request("/", "").as_bytes()).await;
        }
        if host.look(|tap| tap.connections) > 0 {
            return fail(format!("a name with {what} was dialled"));
        }
    }
    pass("12 names, none dialled")
}

async fn lookalikes(world: &World) -> Found {
    let kit = &world.kit;
    if !world.knows(&kit.wild, BELOW_WILD).await? {
        return skipped("the target does not know the secret `wild`");
    }
    for name in LOOKALIKES.into_iter().chain([WILD, OTHER, PLAIN]) {
        let host = world.echo().await?;
        let fields = format!(
            "x-key: {}\r\nx-wild: {}\r\n",
            kit.primary.token, kit.wild.token
        );
        let _ = world.ask(name, host.port, get(name, "/", &fields)).await;
        if let Some(role) = host.look(|tap| {
            tap.requests
                .iter()
                .find_map(|request| world.value_in(&request.raw))
        }) {
            return fail(format!("{role} went to {name}"));
        }
    }
    // The same host, spelt otherwise, may get the value and may not hand it on.
    let host = world.echo().await?;
    let upper = kit.api.to_ascii_uppercase() + ".";
    let answer = world.ask(&upper, host.port, world.request("/", "")).await;
    if answer.is_ok_and(|answer| world.value_in(&answer.raw).is_some()) {
        return fail(format!("the client got the value by the name {upper}"));
    }
    pass("7 names without a value")
}

async fn cross(world: &World) -> Found {
    let kit = &world.kit;
    if !world.knows(&kit.other, OTHER).await? {
        return skipped("the target does not know the secret `other`");
    }
    for (name, token, own) in [
        (kit.api.as_str(), &kit.other.token, "other"),
        (OTHER, &kit.primary.token, "primary"),
        (OTHER, &kit.quote.token, "quote"),
    ] {
        let host = world.echo().await?;
        let fields = format!("x-key: {token}\r\nauthorization: Bearer {token}\r\n");
        let request = get(name, &format!("/?k={token}"), &fields);
        let _ = world.ask(name, host.port, request).await;
        let got = host.look(|tap| tap.requests.iter().find_map(|one| world.value_in(&one.raw)));
        if let Some(role) = got {
            return fail(format!("{role} went to {name} for the token of {own}"));
        }
    }
    pass("each value stayed at its host")
}
