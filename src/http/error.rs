//! The error envelope: `{"error": text}` with a status, and for a few cases more fields.
//! Texts are short, specific and shown to users; they never hold a secret value.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, ResponseError};
use serde_json::{Value, json};
use tracing::Instrument;

use crate::actors::{Failure, Reject, SessionFailure};
use crate::events::AppendError;
use crate::sandbox::GuestError;

/// A reply that is not a success.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    body: Value,
    /// The reason is in the server's log and nowhere else.
    unexplained: bool,
}

/// What handlers return.
pub type ApiResult<T = HttpResponse> = Result<T, ApiError>;

impl ApiError {
    /// A status and its text.
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            body: json!({ "error": text.into() }),
            unexplained: false,
        }
    }

    /// 400.
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    /// 404: `"<what> not found"`.
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{what} not found"))
    }

    /// 500; the reason goes to the server's log, since it may name what is the operator's alone.
    pub fn internal(reason: impl std::fmt::Display) -> Self {
        tracing::error!(%reason, "request failed");
        Self {
            unexplained: true,
            ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        }
    }

    /// The envelope that leads from a reply without a reason to the reason.
    pub(super) fn unexplained(&self, request: &str) -> Option<Value> {
        let text =
            format!("internal error: the server's log has the reason, for request {request}");
        self.unexplained.then(|| json!({ "error": text }))
    }

    /// The envelope, for a reply whose status is sent already.
    pub(super) fn envelope(&self) -> Value {
        self.body.clone()
    }

    /// A further field of the envelope.
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.body[field] = value.into();
        self
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status, self.body)
    }
}

impl std::error::Error for ApiError {}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut reply = HttpResponse::build(self.status);
        // A quota says how much is in use; what else there is too much of is over in a moment.
        if self.status == StatusCode::TOO_MANY_REQUESTS && self.body.get("active").is_none() {
            reply.insert_header(("Retry-After", "1"));
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            // Who waits for a sandbox shall look again sooner.
            let soon = self.body.get("waking").is_some() || self.body.get("retryable").is_some();
            reply.insert_header(("Retry-After", if soon { "1" } else { "2" }));
        }
        reply.json(&self.body)
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Reject(Reject::NotFound(text)) => Self::new(StatusCode::NOT_FOUND, text),
            Failure::Reject(Reject::Invalid(text)) => Self::new(StatusCode::BAD_REQUEST, text),
            Failure::Reject(Reject::Conflict(text)) => Self::new(StatusCode::CONFLICT, text),
            Failure::Quota { active, limit } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, failure.to_string())
                    .with("active", active)
                    .with("limit", limit)
            }
            // Many large secrets in one sandbox, say: trying again would not help.
            Failure::Append(AppendError::TooLarge { .. }) => {
                Self::new(StatusCode::BAD_REQUEST, failure.to_string())
            }
            Failure::Gone(_) => Self::new(StatusCode::GONE, failure.to_string()),
            Failure::Reject(Reject::ScalingLocked) => {
                Self::new(StatusCode::FORBIDDEN, failure.to_string()).with("code", "scaling_locked")
            }
            Failure::BuildFailed(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, failure.to_string())
            }
            Failure::Waking => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, failure.to_string()).with("waking", true)
            }
            Failure::WakeFailed => Self::new(StatusCode::BAD_GATEWAY, failure.to_string()),
            Failure::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, failure.to_string())
                .with("code", "sandbox_migrating")
                .with("retryable", true),
            Failure::OomFloor { used_mb, asked_mb } => {
                let details = json!({ "usedMB": used_mb, "requestedMB": asked_mb });
                Self::new(StatusCode::CONFLICT, failure.to_string())
                    .with("code", "oom_floor")
                    .with("details", details)
            }
            Failure::Append(ref error) => {
                tracing::error!(%failure, "request refused");
                let text = match error {
                    AppendError::Full { .. } => {
                        "the server's disk is full, nothing was recorded: try again later"
                    }
                    AppendError::Stopped { .. } => "the server is stopping: try again later",
                    _ => "the event log could not take the change: try again",
                };
                Self::new(StatusCode::SERVICE_UNAVAILABLE, text)
            }
            Failure::Contended | Failure::Unavailable => {
                tracing::error!(%failure, "request refused");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, failure.to_string())
            }
            other => Self::internal(other),
        }
    }
}

impl From<Reject> for ApiError {
    fn from(reject: Reject) -> Self {
        Failure::from(reject).into()
    }
}

impl From<SessionFailure> for ApiError {
    fn from(failure: SessionFailure) -> Self {
        match failure {
            SessionFailure::Refused(failure) => failure.into(),
            SessionFailure::Guest(error) => error.into(),
            failure @ SessionFailure::NoShell => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, failure.to_string())
            }
        }
    }
}

impl From<GuestError> for ApiError {
    fn from(error: GuestError) -> Self {
        let status = match &error {
            GuestError::NotFound(_) => StatusCode::NOT_FOUND,
            GuestError::Invalid(_)
            | GuestError::Precondition(_)
            | GuestError::CommandNotFound(_)
            | GuestError::Refused(_)
            | GuestError::Upload(_) => StatusCode::BAD_REQUEST,
            GuestError::Full(_) => StatusCode::INSUFFICIENT_STORAGE,
            GuestError::Gone(_) | GuestError::Protocol { .. } => StatusCode::BAD_GATEWAY,
            GuestError::Unsupported => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

/// Runs work to its end even when the client hangs up meanwhile: an effect belongs to every intent.
pub(super) async fn to_the_end<T, E>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> ApiResult<T>
where
    T: Send + 'static,
    E: Into<ApiError> + Send + 'static,
{
    tokio::spawn(work.in_current_span())
        .await
        .map_err(ApiError::internal)?
        .map_err(Into::into)
}

/// For paths that no route has.
pub async fn no_route() -> ApiResult {
    Err(ApiError::new(StatusCode::NOT_FOUND, "no such route"))
}
