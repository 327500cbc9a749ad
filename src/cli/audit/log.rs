//! `oc audit log` and `oc audit tail`: events, newest last.
//!
//! The server pages backwards from the newest event; pages are followed until `--limit` events
//! are there or the log begins.

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::follow::follow;
use super::source::{Filters, Folder, Source};
use crate::cli::Context;
use crate::cli::client::{Api, decode};
use crate::cli::error::CliError;
use crate::cli::output::{printable, table};

/// Events shown without `--limit`.
const EVENTS_DEFAULT: usize = 50;
/// Most events one command collects.
const EVENTS_MAX: u64 = 100_000;
/// Events asked for in one request.
const PAGE_EVENTS_MAX: usize = 500;
/// Width of the DETAIL column, in characters.
const DETAIL_CHARS_MAX: usize = 100;

/// Events shown by `tail` before it follows.
const TAIL_DEFAULT: u64 = 10;

/// `oc audit log`
#[derive(Args)]
pub struct Log {
    #[command(flatten)]
    filters: Filters,
    /// How many events to show
    #[arg(long, default_value_t = EVENTS_DEFAULT as u64,
          value_parser = clap::value_parser!(u64).range(1..=EVENTS_MAX))]
    limit: u64,
    /// Then show each event as it is recorded (with --json, one object a line)
    #[arg(long, conflicts_with_all = ["until", "data_dir"])]
    follow: bool,
    #[command(flatten)]
    folder: Folder,
}

/// `oc audit tail`
#[derive(Args)]
pub struct Tail {
    #[command(flatten)]
    filters: Filters,
    /// How many events to show before following
    #[arg(long, default_value_t = TAIL_DEFAULT,
          value_parser = clap::value_parser!(u64).range(1..=EVENTS_MAX))]
    limit: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    events: Vec<Event>,
    next_before: Option<u64>,
}

/// One recorded event.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::cli) struct Event {
    pub(in crate::cli) position: u64,
    pub(in crate::cli) stream: String,
    #[serde(rename = "type")]
    pub(in crate::cli) kind: String,
    recorded_at: String,
    pub(in crate::cli) data: Value,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Log {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        if self.follow {
            return watch(context, &self.filters, self.limit).await;
        }
        let source = self.folder.open(context)?;
        let collected = collect(&source, &self.filters, self.limit).await;
        source.close().await;
        let (events, next_before) = collected?;
        let reply = json!({ "events": events, "nextBefore": next_before });
        context.output.reply(&reply, || {
            if events.is_empty() {
                "No events found.".to_owned()
            } else {
                events_table(events)
            }
        })
    }
}

impl Tail {
    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        if self.filters.until.is_some() {
            return Err(CliError::Usage(
                "--until makes no sense for what is still to come; use `oc audit log`".to_owned(),
            ));
        }
        watch(context, &self.filters, self.limit).await
    }
}

/// Shows the last events, and then each one as it comes, without a gap between the two.
async fn watch(context: &Context, filters: &Filters, limit: u64) -> Result<(), CliError> {
    let source = Source::Server(&context.api);
    // Where the log ends, as far as we may see, before the events are read: what is recorded
    // meanwhile is in their page or behind its last one.
    let (end, _) = collect(&source, &Filters::default(), 1).await?;
    let (events, _) = collect(&source, filters, limit).await?;
    let last = [&end, &events].into_iter().flatten().map(|e| e.position);
    let after = last.max().unwrap_or(0);
    let show = |event: &Event| match context.output.json {
        true => {
            let line = serde_json::to_string(event);
            let line = line.map_err(|error| CliError::BadReply(error.to_string()))?;
            context.output.line(&line)
        }
        false => context.output.line(&row_as_it_comes(event)),
    };
    events.iter().try_for_each(show)?;
    follow(&context.api, &filters.query(), after, show).await
}

async fn collect(
    source: &Source<'_>,
    filters: &Filters,
    limit: u64,
) -> Result<(Vec<Event>, Option<u64>), CliError> {
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut events: Vec<Event> = Vec::new();
    let mut before = None;
    loop {
        let missing = wanted.saturating_sub(events.len());
        let reply = source.page(filters, before, missing.min(PAGE_EVENTS_MAX));
        let page: Page = decode(reply.await?)?;
        events.extend(page.events);
        // A cursor that does not go down would never end.
        let goes_on = page
            .next_before
            .is_some_and(|next| before.is_none_or(|old| next < old));
        before = page.next_before;
        if !goes_on || events.len() >= wanted {
            break;
        }
    }
    events.sort_by_key(|event| event.position);
    let surplus = events.len().saturating_sub(wanted);
    Ok((events.split_off(surplus), before))
}

/// The newest events of all entities, oldest first.
pub(in crate::cli) async fn newest(api: &Api, limit: u64) -> Result<Vec<Event>, CliError> {
    let (source, filters) = (Source::Server(api), Filters::default());
    let (events, _) = collect(&source, &filters, limit).await?;
    Ok(events)
}

/// One event on a line of its own: who follows can't wait for the widths of a whole table.
fn row_as_it_comes(event: &Event) -> String {
    let [time, kind, stream, detail] = [
        &event.recorded_at,
        &event.kind,
        &event.stream,
        &detail(&event.data),
    ]
    .map(|text| printable(text));
    let line = format!(
        "{:<8}  {time:<24}  {kind:<26}  {stream:<44}  {detail}",
        event.position
    );
    line.trim_end().to_owned()
}

fn events_table(events: Vec<Event>) -> String {
    let row = |event: Event| {
        let detail = detail(&event.data);
        [
            event.position.to_string(),
            event.recorded_at,
            event.kind,
            event.stream,
            detail,
        ]
    };
    table(
        ["POSITION", "TIME", "TYPE", "ENTITY", "DETAIL"],
        events.into_iter().map(row).collect(),
    )
}

/// The data on one line: `name=value` for what is short, cut at the column's width.
pub(in crate::cli) fn detail(data: &Value) -> String {
    let Some(fields) = data.as_object() else {
        return String::new();
    };
    if let Some(decisions) = fields.get("decisions").and_then(Value::as_array) {
        return cut(decisions
            .iter()
            .map(decision)
            .collect::<Vec<_>>()
            .join("; "));
    }
    let word = |(name, value): (&String, &Value)| match value {
        // The same as the event's own.
        _ if matches!(name.as_str(), "at" | "orgId") => None,
        Value::Null => None,
        Value::String(text) => Some(format!("{name}={text}")),
        Value::Bool(_) | Value::Number(_) => Some(format!("{name}={value}")),
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) => {
            let words: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            words.map(|words| format!("{name}={}", words.join(",")))
        }
        Value::Object(_) => None,
    };
    let line = fields.iter().filter_map(word).collect::<Vec<_>>().join(" ");
    cut(line)
}

/// One outbound decision: what was asked for, what was decided, and which secrets took part.
fn decision(decision: &Value) -> String {
    let text = |field: &str| decision[field].as_str().unwrap_or_default();
    let names: Vec<_> = decision["secrets"]
        .as_array()
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let with = match names.is_empty() {
        true => String::new(),
        false => format!(" with {}", names.join(",")),
    };
    let (host, port) = (text("host"), &decision["port"]);
    format!(
        "{} {host}:{port} ({}){with}",
        text("outcome"),
        text("reason")
    )
}

fn cut(line: String) -> String {
    match line.char_indices().nth(DETAIL_CHARS_MAX) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_short_and_flat() {
        let check = |data: Value, expected: &str| assert_eq!(detail(&data), expected);
        let data = json!({"at": "now", "name": "KEY", "hosts": ["a", "b"], "n": 3, "ok": true, "x": {"y": 1}, "e": []});
        check(data, "hosts=a,b n=3 name=KEY ok=true");
        check(json!("text"), "");
        check(
            json!({"orgId": "x", "decisions": [
                {"host": "a.test", "port": 443, "outcome": "allowed", "reason": "bound", "secrets": ["KEY"]},
                {"host": "b.test", "port": 443, "outcome": "refused", "reason": "egress_allowlist"},
            ]}),
            "allowed a.test:443 (bound) with KEY; refused b.test:443 (egress_allowlist)",
        );
        check(
            json!({"a": "é".repeat(200)}),
            &format!("a={}…", "é".repeat(98)),
        );
    }
}
