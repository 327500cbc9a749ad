//! `/metrics` in Prometheus' text format, on a listener of its own without a key.
//!
//! Invariants: no label holds a name that a user chose, so none can hold a secret's name or value:
//! labels are routes as the source spells them, statuses, and sandbox ids; their number is bounded
//! by [`SANDBOXES_MAX`] and by the number of routes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::{HttpResponse, web};

use super::Api;
use super::error::ApiResult;
use crate::actors::SandboxStats;

/// Sandboxes with lines of their own; of further ones only the totals are told.
const SANDBOXES_MAX: usize = 500;
/// Media type of the text.
const TEXT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The route of requests that have none.
const NO_ROUTE: &str = "other";

/// Requests answered, by route and status. Routes are those of the source: a bounded set.
#[derive(Debug, Default)]
pub struct Requests(Mutex<BTreeMap<(String, u16), u64>>);

impl Requests {
    fn count(&self, route: String, status: u16) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((route, status)).or_default() += 1;
    }
}

/// Counts a request when it is answered.
pub(super) async fn with_count<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let requests = request.app_data::<web::Data<Requests>>().cloned();
    let reply = next.call(request).await?;
    if let Some(requests) = requests {
        let route = reply.request().match_pattern();
        let route = route.unwrap_or_else(|| NO_ROUTE.to_owned());
        requests.count(route, reply.status().as_u16());
    }
    Ok(reply)
}

/// The whole admin listener.
pub(super) fn routes(config: &mut web::ServiceConfig) {
    config.route("/metrics", web::get().to(metrics));
}

async fn metrics(api: web::Data<Api>, requests: web::Data<Requests>) -> ApiResult {
    let mut page = Page::default();
    let head = api.platform.log().head();
    page.one(
        "oc_log_events_total",
        "counter",
        "Events in the log.",
        head.position,
    );
    page.one(
        "oc_log_commits_total",
        "counter",
        "Commits (appends) in the log.",
        head.commit,
    );
    page.family(
        "oc_http_requests_total",
        "counter",
        "Requests answered since the start.",
    );
    let counts = requests
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    for ((route, status), count) in counts {
        let labels = format!("route=\"{route}\",status=\"{status}\"");
        page.line("oc_http_requests_total", &labels, count);
    }
    page.family("oc_sandboxes", "gauge", "Sandboxes in the log, by status.");
    for (status, count) in api.platform.sandboxes_by_status() {
        page.line("oc_sandboxes", &format!("status=\"{status}\""), count);
    }
    let counters = api.platform.counters();
    let family = "oc_egress_decisions_total";
    page.family(family, "counter", "What proxies decided since the start.");
    for (outcome, counter) in [
        ("allowed", &counters.egress_allowed),
        ("tunnelled", &counters.egress_tunnelled),
        ("refused", &counters.egress_refused),
    ] {
        let count = AtomicU64::load(counter, Ordering::Relaxed);
        page.line(family, &format!("outcome=\"{outcome}\""), count);
    }
    let sandboxes = api.platform.all_stats().await?;
    let held = sandboxes.len() as u64;
    page.one(
        "oc_sandboxes_held",
        "gauge",
        "Sandboxes this server holds.",
        held,
    );
    page.sandboxes(&sandboxes);
    Ok(HttpResponse::Ok().content_type(TEXT_TYPE).body(page.0))
}

type Figure = fn(&SandboxStats) -> Option<u64>;

/// What is told of each sandbox; a figure the machine can't give has no line.
const FIGURES: [(&str, &str, &str, Figure); 10] = [
    (
        "oc_sandbox_cpu_microseconds_total",
        "counter",
        "Processor time used.",
        |s| s.usage.cpu_us,
    ),
    (
        "oc_sandbox_memory_bytes",
        "gauge",
        "Memory in use, page cache included.",
        |s| s.usage.memory_bytes,
    ),
    (
        "oc_sandbox_memory_peak_bytes",
        "gauge",
        "The most memory it used.",
        |s| s.usage.memory_peak_bytes,
    ),
    (
        "oc_sandbox_memory_limit_bytes",
        "gauge",
        "Its memory limit.",
        |s| s.usage.memory_limit_bytes,
    ),
    (
        "oc_sandbox_oom_kills_total",
        "counter",
        "Processes killed at the memory limit.",
        |s| s.usage.oom_kills,
    ),
    (
        "oc_sandbox_processes",
        "gauge",
        "Processes and threads.",
        |s| s.usage.tasks,
    ),
    ("oc_sandbox_disk_bytes", "gauge", "Disk in use.", |s| {
        s.usage.disk_bytes
    }),
    (
        "oc_sandbox_disk_limit_bytes",
        "gauge",
        "Size of its disk.",
        |s| s.usage.disk_limit_bytes,
    ),
    (
        "oc_sandbox_sent_bytes_total",
        "counter",
        "Bytes its connections sent out.",
        |s| Some(s.bytes_out),
    ),
    (
        "oc_sandbox_received_bytes_total",
        "counter",
        "Bytes its connections received.",
        |s| Some(s.bytes_in),
    ),
];

/// The text as it grows.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "{name}{{{labels}}} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn sandboxes(&mut self, sandboxes: &[SandboxStats]) {
        for (name, kind, help, figure) in FIGURES {
            self.family(name, kind, help);
            for sandbox in sandboxes.iter().take(SANDBOXES_MAX) {
                if let Some(value) = figure(sandbox) {
                    self.line(name, &format!("sandbox=\"{}\"", sandbox.id), value);
                }
            }
        }
    }
}

/// Shared by every worker of both listeners.
pub(super) fn shared() -> web::Data<Requests> {
    web::Data::from(Arc::<Requests>::default())
}
