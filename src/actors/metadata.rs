//! The metadata service that a sandbox finds at `http://169.254.169.254` (contract 22): who it is,
//! what it uses, and a way to ask for another size.
//!
//! Invariants: a connection is known by the sandbox it came out of, so no credential is asked for and
//! none would help to act for another; nothing here is secret; what one sandbox can have under way is
//! bounded in number, size and time.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::aggregate::Reject;
use super::entity::Failure;
use super::platform::Platform;
use super::sandbox::Sandbox;
use super::sandbox::scaling::{CPU_PERCENT_MAX, CPU_PERCENT_MIN, Size};
use crate::events::Actor as Who;
use crate::ids::{OrgId, SandboxId};

/// Where the service answers inside a sandbox.
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));
const PORT: u16 = 80;
/// Name of the only region of a single-machine server.
pub const REGION: &str = "local";
/// Connections of one sandbox at once; others wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 16;
/// Longest a request may take to come, and a connection to stay unused.
const PATIENCE: Duration = Duration::from_secs(10);
const BODY_BYTES_MAX: usize = 4 * 1024;
/// Time over which the use of the processor is measured.
const SAMPLE: Duration = Duration::from_millis(100);
const ENDPOINTS: [&str; 5] = ["/", "/v1/status", "/v1/limits", "/v1/scale", "/v1/metadata"];

/// The service of one sandbox.
pub struct Metadata {
    platform: Weak<Platform>,
    id: SandboxId,
    org: OrgId,
    since: Instant,
    places: Semaphore,
}

/// A refusal: its status and its words, which are plain text.
struct Refusal(StatusCode, String);

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let status = match &failure {
            Failure::Reject(Reject::ScalingLocked) => StatusCode::FORBIDDEN,
            Failure::Reject(Reject::NotFound(_)) => StatusCode::NOT_FOUND,
            Failure::Reject(_) | Failure::OomFloor { .. } => StatusCode::BAD_REQUEST,
            other => {
                tracing::error!(error = %other, "a sandbox's own request failed");
                let text = "the request failed; the server's log has the reason";
                return Self(StatusCode::INTERNAL_SERVER_ERROR, text.to_owned());
            }
        };
        Self(status, failure.to_string())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScaleBody {
    #[serde(rename = "memoryMB")]
    memory_mb: Option<i64>,
    cpu_percent: Option<i64>,
}

impl Metadata {
    /// The service of a sandbox that has been up for `uptime`.
    pub(super) fn new(
        platform: &Arc<Platform>,
        id: &SandboxId,
        org: OrgId,
        uptime: Duration,
    ) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            platform: Arc::downgrade(platform),
            id: id.clone(),
            org,
            since: now.checked_sub(uptime).unwrap_or(now),
            places: Semaphore::new(CONNECTIONS_MAX),
        })
    }

    /// Whether a connection is meant for the service: to its address, chosen without a name.
    pub(super) fn is_meant(name: Option<&str>, ip: IpAddr, port: u16) -> bool {
        name.is_none() && ip == ADDRESS && port == PORT
    }

    /// Serves one connection to its end.
    pub(super) async fn serve(self: Arc<Self>, stream: TcpStream) {
        let Ok(_place) = self.places.acquire().await else {
            return;
        };
        let answer = |request| {
            let service = self.clone();
            async move { Ok::<_, Infallible>(service.answer(request).await) }
        };
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer));
        // A program that breaks off is no news.
        let _ = serving.await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, kind, body) = match self.reply(request).await {
            Ok(reply) => (StatusCode::OK, "application/json", reply.to_string()),
            Err(Refusal(status, text)) => (status, "text/plain; charset=utf-8", text + "\n"),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let kind = header::HeaderValue::from_static(kind);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    async fn reply(&self, request: Request<Incoming>) -> Result<Value, Refusal> {
        let path = request.uri().path().to_owned();
        let wanted = match path.as_str() {
            "/v1/scale" => Method::POST,
            known if ENDPOINTS.contains(&known) => Method::GET,
            _ => return Err(Refusal(StatusCode::NOT_FOUND, "not found".to_owned())),
        };
        if *request.method() != wanted {
            let text = format!("method not allowed, use {wanted}");
            return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, text));
        }
        let platform = self.platform.upgrade().ok_or(Failure::Unavailable)?;
        match path.as_str() {
            "/" => Ok(json!({ "endpoints": ENDPOINTS })),
            "/v1/status" => Ok(json!({
                "sandboxId": self.id,
                "uptime": self.since.elapsed().as_secs(),
            })),
            "/v1/limits" => self.limits(&platform).await,
            "/v1/scale" => self.scale(&platform, request.into_body()).await,
            _ => {
                let state = self.state(&platform).await?;
                let template = state.details.as_ref().map(|details| &details.template);
                Ok(json!({ "region": REGION, "template": template }))
            }
        }
    }

    async fn state(&self, platform: &Platform) -> Result<Arc<Sandbox>, Failure> {
        let stream = Sandbox::stream(&self.id);
        platform.sandboxes.inspect(&stream).await
    }

    /// What the sandbox uses and may use: processor in percent of one, memory in bytes.
    async fn limits(&self, platform: &Arc<Platform>) -> Result<Value, Refusal> {
        let live = platform.find_live(&self.id).ok_or(Failure::Unavailable)?;
        let read = || {
            let live = live.clone();
            super::sealing::off_runtime(move || Ok(live.gauges.read()))
        };
        let (first, began) = (read().await?, Instant::now());
        tokio::time::sleep(SAMPLE).await;
        let now = read().await?;
        let used = now.cpu_us.zip(first.cpu_us);
        let cpu = used.map(|(now, first)| {
            now.saturating_sub(first) as f64 * 100.0 / began.elapsed().as_micros().max(1) as f64
        });
        let state = self.state(platform).await?;
        let memory = state.size().map(|size| u64::from(size.memory_mb) << 20);
        use std::sync::atomic::Ordering::Relaxed;
        Ok(json!({
            "cpuPercent": cpu.unwrap_or(0.0),
            "memUsage": now.memory_bytes.unwrap_or(0),
            "memLimit": now.memory_limit_bytes.or(memory).unwrap_or(0),
            "pids": now.tasks.unwrap_or(0),
            "netInput": live.traffic.back.load(Relaxed),
            "netOutput": live.traffic.out.load(Relaxed),
        }))
    }

    async fn scale(&self, platform: &Arc<Platform>, body: Incoming) -> Result<Value, Refusal> {
        let bad = |text: &str| Refusal(StatusCode::BAD_REQUEST, text.to_owned());
        let read = Limited::new(body, BODY_BYTES_MAX).collect();
        let bytes = tokio::time::timeout(PATIENCE, read).await;
        let bytes = bytes.map_err(|_| bad("the body did not come in time"))?;
        let bytes = bytes.map_err(|_| bad("the body is too large or broke off"))?;
        let asked: ScaleBody = serde_json::from_slice(&bytes.to_bytes())
            .map_err(|_| bad("the body is not the expected JSON object"))?;
        let memory_mb = asked.memory_mb.ok_or_else(|| bad("memoryMB is required"))?;
        let mut size = Size::tier(memory_mb).map_err(Failure::from)?;
        if let Some(percent) = asked.cpu_percent {
            let known = u32::try_from(percent).ok();
            let known = known.filter(|n| (CPU_PERCENT_MIN..=CPU_PERCENT_MAX).contains(n));
            size.cpu_percent = known.ok_or_else(|| {
                bad(&format!(
                    "cpuPercent must be between {CPU_PERCENT_MIN} and {CPU_PERCENT_MAX}"
                ))
            })?;
        }
        let who = Who {
            org: Some(self.org),
            ..Who::system()
        };
        platform
            .resize(&self.id, self.org, size, false, &who)
            .await?;
        Ok(json!({ "ok": true, "memoryMB": size.memory_mb, "cpuPercent": size.cpu_percent }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: only its own address and port are taken from the proxy, and no name that claims them.
    #[test]
    fn only_its_own_address_is_the_service() {
        let v4 = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(Metadata::is_meant(None, v4("169.254.169.254"), 80));
        for (name, ip, port) in [
            (Some("a.test"), "169.254.169.254", 80),
            (None, "169.254.169.254", 443),
            (None, "169.254.169.253", 80),
            (None, "127.0.0.1", 80),
        ] {
            assert!(
                !Metadata::is_meant(name, v4(ip), port),
                "{name:?} {ip} {port}"
            );
        }
    }
}
