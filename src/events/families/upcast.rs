//! Events of older versions, read as the present ones.
//!
//! A step is a pure function from the data of one kind to the data of the next; steps form chains
//! (`x.v1` → `x.v2` → `x.v3`) that end at a kind the family has now. They run at every read, on a
//! copy: what is stored stays as it was written, byte for byte, and so do its hashes.

use crate::events::event::EventData;
use serde_json::Value;

use super::{DecodeError, Family};

/// One step of a chain. Declared behind the family ([`super::family`]).
#[derive(Debug, Clone, Copy)]
pub struct Upcast {
    /// The kind it takes.
    pub from: &'static str,
    /// The kind it makes of it.
    pub to: &'static str,
    /// The change. It can't fail: data that fits no better afterwards is refused by the decoder,
    /// under the kind that was stored.
    pub change: fn(Value) -> Value,
}

/// Reads an event whose kind the family no longer writes.
pub fn decode_old<F: Family>(kind: &str, data: &EventData) -> Result<F, DecodeError> {
    let step_from = |kind: &str| F::UPCASTS.iter().find(|step| step.from == kind);
    let unfit = |source| DecodeError::Data {
        kind: kind.to_owned(),
        source,
    };
    let Some(mut step) = step_from(kind) else {
        return Err(DecodeError::UnknownKind(kind.to_owned()));
    };
    let mut value: Value = serde_json::from_str(data.get()).map_err(unfit)?;
    // As many steps as there are: a chain that bites its tail ends too.
    for _ in F::UPCASTS {
        value = (step.change)(value);
        match step_from(step.to) {
            Some(next) => step = next,
            None => break,
        }
    }
    if !F::KINDS.contains(&step.to) {
        return Err(DecodeError::UnknownKind(kind.to_owned()));
    }
    let data = EventData::of(&value).map_err(unfit)?;
    F::decode(step.to, &data).map_err(|error| match error {
        DecodeError::Data { source, .. } => unfit(source),
        unknown => unknown,
    })
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;
    use crate::events::families::{
        EgressEvent, IdempotencyEvent, KINDS, NameEvent, OrgEvent, ProjectEvent, ResourceEvent,
        SandboxEvent, StoreEvent, family,
    };

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Size {
        bytes: u64,
        unit: String,
    }

    family! {
        /// A family that has a history: `thing.sized` counted KiB, then bytes, then named its unit.
        ThingEvent {
            /// It has a size.
            Sized(Size) = "thing.sized.v3",
        }
        upcasts {
            "thing.sized.v1" => "thing.sized.v2" by to_bytes,
            "thing.sized.v2" => "thing.sized.v3" by name_the_unit,
            "thing.lost.v1" => "thing.lost.v2" by to_bytes,
            "thing.tail.v1" => "thing.tail.v2" by name_the_unit,
            "thing.tail.v2" => "thing.tail.v1" by name_the_unit,
        }
    }

    fn to_bytes(data: Value) -> Value {
        json!({ "bytes": data["kib"].as_u64().map(|kib| kib * 1024) })
    }

    fn name_the_unit(mut data: Value) -> Value {
        data["unit"] = json!("byte");
        data
    }

    fn decode(kind: &str, data: &str) -> Result<Size, String> {
        let data = EventData::stored(data);
        let ThingEvent::Sized(sized) =
            ThingEvent::decode(kind, &data).map_err(|error| error.to_string())?;
        Ok(sized)
    }

    /// Goal: every version reads as the present one, through as many steps as lie between.
    #[test]
    fn an_old_event_reads_as_the_present_one() {
        let expected = |bytes| {
            let unit = "byte".to_owned();
            Ok(Size { bytes, unit })
        };
        assert_eq!(decode("thing.sized.v1", r#"{"kib":2}"#), expected(2048));
        assert_eq!(decode("thing.sized.v2", r#"{"bytes":5}"#), expected(5));
        let now = r#"{"bytes":5,"unit":"byte"}"#;
        assert_eq!(decode("thing.sized.v3", now), expected(5));
    }

    /// Goal: what can't be read is refused under the kind that was stored, never guessed at.
    #[test]
    fn what_leads_nowhere_is_unknown() {
        for kind in [
            "thing.sized.v4",
            "thing.lost.v1",
            "thing.tail.v1",
            "thing.sized",
            "",
        ] {
            let refused = decode(kind, "{}").expect_err("refused");
            assert!(
                refused.starts_with(&format!("unknown event kind `{kind}`")),
                "{refused}"
            );
        }
        let unfit = decode("thing.sized.v1", r#"{"kib":"two"}"#).expect_err("refused");
        assert!(
            unfit.starts_with("event of kind `thing.sized.v1` has data"),
            "{unfit}"
        );
    }

    fn check<F: Family>() {
        for step in F::UPCASTS {
            assert!(
                !F::KINDS.contains(&step.from),
                "{} is still written",
                step.from
            );
            let twice = F::UPCASTS.iter().filter(|other| other.from == step.from);
            assert_eq!(twice.count(), 1, "{} leads to two kinds", step.from);
            let mut end = step.to;
            for _ in F::UPCASTS {
                let next = F::UPCASTS.iter().find(|next| next.from == end);
                end = next.map_or(end, |next| next.to);
            }
            assert!(F::KINDS.contains(&end), "{} leads to {end}", step.from);
        }
    }

    /// Goal: the chains of the real families end at kinds they have.
    #[test]
    fn every_chain_ends_at_a_present_kind() {
        check::<EgressEvent>();
        check::<IdempotencyEvent>();
        check::<NameEvent>();
        check::<OrgEvent>();
        check::<ProjectEvent>();
        check::<ResourceEvent>();
        check::<SandboxEvent>();
        check::<StoreEvent>();
    }

    /// Goal: no family is left out of [`KINDS`], which other tests go by. Method: the kinds in it
    /// against the kinds that stand in the sources.
    #[test]
    fn every_family_is_listed() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/events/families");
        let mut written = Vec::new();
        for file in std::fs::read_dir(folder).expect("the families").flatten() {
            if file.file_name() == "upcast.rs" {
                continue;
            }
            let text = std::fs::read_to_string(file.path()).expect("UTF-8");
            let kinds = text.lines().filter_map(|line| {
                let (_, kind) = line.trim().strip_suffix("\",")?.split_once(") = \"")?;
                Some(kind.to_owned())
            });
            written.extend(kinds);
        }
        let mut listed: Vec<_> = KINDS.concat();
        written.sort_unstable();
        listed.sort_unstable();
        assert_eq!(written, listed, "left: the sources, right: KINDS");
    }
}
