//! `oc audit secrets`: which secret went where, when, from which sandbox and how often.

use std::collections::BTreeMap;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::source::time;
use crate::cli::Context;
use crate::cli::client::decode;
use crate::cli::error::CliError;
use crate::cli::output::table;

/// Most uses one command collects.
const USES_MAX: usize = 100_000;
/// Uses asked for in one request.
const PAGE_USES: usize = 500;

/// `oc audit secrets`
#[derive(Args)]
pub struct Secrets {
    /// Only this secret
    #[arg(long, value_name = "NAME")]
    secret: Option<String>,
    /// Only this sandbox
    #[arg(long, value_name = "ID")]
    sandbox: Option<String>,
    /// Only this host
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Only since this time: RFC 3339, or how long ago (90s, 15m, 2h, 3d)
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<OffsetDateTime>,
    /// Only until this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<OffsetDateTime>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    uses: Vec<Use>,
    next_before: Option<u64>,
}

/// One use of a secret.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Use {
    at: String,
    sandbox_id: String,
    secret: String,
    sent: bool,
    host: String,
    outcome: String,
    times: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Use {
    /// What became of it, in a word.
    fn fate(&self) -> String {
        match (&self.why, self.sent, self.outcome.as_str()) {
            // It was about to be sent when the server was killed, or is under way.
            (_, _, "announced") => "announced".to_owned(),
            (_, true, "refused") => "cut".to_owned(),
            (_, true, _) => "sent".to_owned(),
            (Some(why), false, _) => format!("inert ({why})"),
            (None, false, _) => "inert".to_owned(),
        }
    }
}

impl Secrets {
    fn query(&self) -> Vec<(&'static str, String)> {
        let text = |time: &OffsetDateTime| time.format(&Rfc3339).ok();
        let pairs = [
            ("secret", self.secret.clone()),
            ("sandbox", self.sandbox.clone()),
            ("host", self.host.clone()),
            ("from", self.since.as_ref().and_then(text)),
            ("to", self.until.as_ref().and_then(text)),
            ("limit", Some(PAGE_USES.to_string())),
        ];
        let given = pairs.into_iter();
        given
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    pub(super) async fn run(self, context: &Context) -> Result<(), CliError> {
        let mut uses: Vec<Use> = Vec::new();
        let mut before: Option<u64> = None;
        loop {
            let mut query = self.query();
            query.extend(before.map(|before| ("before", before.to_string())));
            let page: Page = decode(context.api.query(&["audit", "secrets"], &query).await?)?;
            uses.extend(page.uses);
            // A cursor that does not go down would never end.
            let goes_on = page
                .next_before
                .is_some_and(|next| before.is_none_or(|old| next < old));
            before = page.next_before;
            if !goes_on {
                break;
            }
            if uses.len() >= USES_MAX {
                context.output.warn(&format!(
                    "only the newest {USES_MAX} uses are counted; narrow it with --since"
                ));
                break;
            }
        }
        uses.sort_by(|a, b| a.at.cmp(&b.at));
        context.output.reply(&json!({ "uses": uses }), || {
            if uses.is_empty() {
                "No uses of secrets found.".to_owned()
            } else {
                summary(&uses)
            }
        })
    }
}

/// A line for each secret, host, sandbox and fate.
fn summary(uses: &[Use]) -> String {
    let mut groups: BTreeMap<_, (u64, &str, &str)> = BTreeMap::new();
    for one in uses {
        let key = (&one.secret, &one.host, &one.sandbox_id, one.fate());
        let group = groups.entry(key).or_insert((0, &one.at, &one.at));
        *group = (group.0.saturating_add(one.times), group.1, &one.at);
    }
    let rows = groups.into_iter().map(|(group, (times, first, last))| {
        let (secret, host, sandbox, fate) = group;
        [
            secret.clone(),
            host.clone(),
            sandbox.clone(),
            fate,
            times.to_string(),
            first.to_owned(),
            last.to_owned(),
        ]
    });
    let header = [
        "SECRET", "HOST", "SANDBOX", "FATE", "TIMES", "FIRST", "LAST",
    ];
    table(header, rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: how often and when is told for each secret, host, sandbox and fate.
    #[test]
    fn uses_are_counted_by_where_they_went() {
        let one = |at: &str, sent: bool, times: u64, why: Value| {
            let value = json!({
                "at": at, "sandboxId": "sb-1", "secret": "KEY", "sent": sent, "host": "a.test",
                "outcome": "allowed", "times": times, "why": why, "port": 443,
            });
            serde_json::from_value::<Use>(value).expect("a use")
        };
        let uses = [
            one("2026-01-01T00:00:00Z", true, 1, Value::Null),
            one("2026-01-02T00:00:00Z", true, 2, Value::Null),
            one("2026-01-03T00:00:00Z", false, 1, json!("place")),
            Use {
                outcome: "announced".to_owned(),
                ..one("2026-01-04T00:00:00Z", false, 1, Value::Null)
            },
        ];
        assert_eq!(
            summary(&uses),
            "SECRET  HOST    SANDBOX  FATE           TIMES  FIRST                 LAST\n\
             KEY     a.test  sb-1     announced      1      2026-01-04T00:00:00Z  2026-01-04T00:00:00Z\n\
             KEY     a.test  sb-1     inert (place)  1      2026-01-03T00:00:00Z  2026-01-03T00:00:00Z\n\
             KEY     a.test  sb-1     sent           3      2026-01-01T00:00:00Z  2026-01-02T00:00:00Z"
        );
    }
}
