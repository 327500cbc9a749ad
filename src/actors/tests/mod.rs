//! The rules, as given events / when a command / then events; and the read models against the log.

mod fixtures;
mod layout;
mod loading;
mod org;
mod project;
mod replay;
mod residency;
mod sandbox;
mod sandbox_sleep;
mod secret_store;
mod trail;
mod world;

use std::fmt::Write;

use time::{Duration, OffsetDateTime, macros::datetime};
use ulid::Ulid;

use super::aggregate::{Aggregate, NameChange};
use super::secrets::{SecretCommand, SetSecret};
use crate::events::EventData;
use crate::events::Sealed;
use crate::events::families::{Family, SecretPlacement, SecretSet};
use crate::ids::OrgId;

/// Stands in a ciphertext's place: the rules never look into one.
fn sealed(text: &str) -> Sealed {
    Sealed {
        key_version: 1,
        nonce: "bm9uY2U=".to_owned(),
        ciphertext: text.to_owned(),
    }
}

fn org() -> OrgId {
    id("00000000-0000-7000-8000-00000000000a")
}

fn other_org() -> OrgId {
    id("00000000-0000-7000-8000-00000000000b")
}

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a well-formed id")
}

fn intent(number: u128) -> Ulid {
    Ulid::from(number)
}

/// Noon and some minutes.
fn at(minutes: i64) -> OffsetDateTime {
    datetime!(2026-01-02 12:00 UTC) + Duration::minutes(minutes)
}

fn set_secret(name: &str, hosts: &[&str], minutes: i64) -> SecretCommand {
    SecretCommand::Set(SetSecret {
        id: id("00000000-0000-7000-8000-0000000000e1"),
        name: name.to_owned(),
        allowed_hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        placement: None,
        sealed: sealed("new"),
        at: at(minutes),
    })
}

fn secret_was_set(name: &str, minutes: i64) -> SecretSet {
    SecretSet {
        secret_id: id("00000000-0000-7000-8000-0000000000e0"),
        name: name.to_owned(),
        allowed_hosts: vec!["a.test".to_owned()],
        placement: Some(placement()),
        sealed: sealed("old"),
        at: at(minutes),
    }
}

/// Every restriction but those that came later, which leave states without them as they were.
fn placement() -> SecretPlacement {
    let list = |text: &str| Some(vec![text.to_owned()]);
    SecretPlacement {
        headers: list("authorization"),
        methods: list("POST"),
        path_prefix: Some("/v1/".to_owned()),
        max_per_request: Some(1),
        exclusive: true,
        keep_cookies: true,
        ..SecretPlacement::default()
    }
}

fn after<A: Aggregate>(given: &[A::Event]) -> A {
    let mut state = A::default();
    for (revision, event) in given.iter().enumerate() {
        state.apply(event, revision as u64);
    }
    state
}

/// Plays one scene and writes down what it led to.
fn scene<A: Aggregate>(title: &str, given: &[A::Event], when: A::Command) -> String {
    let mut text = format!("## {title}\n");
    match after::<A>(given).decide(&when) {
        Err(reject) => writeln!(text, "refused: {reject:?}"),
        Ok(decision) if decision.events.is_empty() && decision.names.is_empty() => {
            writeln!(text, "nothing changes")
        }
        Ok(decision) => {
            for event in &decision.events {
                let data = event.data().expect("event data");
                // What is written is read back as the same event.
                let raw = EventData::of(&data).expect("JSON");
                let read = A::Event::decode(event.kind(), &raw).expect("decodes");
                assert_eq!(read.data().expect("event data"), data);
                writeln!(text, "{} {data}", event.kind()).expect("written");
            }
            for name in &decision.names {
                match name {
                    NameChange::Claim { name, taken } => {
                        writeln!(text, "claim {name} or {taken:?}")
                    }
                    NameChange::Release { name } => writeln!(text, "release {name}"),
                }
                .expect("written");
            }
            Ok(())
        }
    }
    .expect("written");
    text
}
