//! Request bodies: JSON of bounded size, unknown fields ignored, and errors that name the field but
//! never repeat what was in it (it may have been a secret).

use actix_web::http::StatusCode;
use actix_web::web::Bytes;
use actix_web::{FromRequest, HttpRequest, dev::Payload};
use futures_util::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
use zeroize::Zeroize;

use super::error::ApiError;

/// Largest JSON body, in bytes (1 MiB).
pub const JSON_BYTES_MAX: usize = 1024 * 1024;
const NOT_AN_OBJECT: &str = "invalid request: not the expected JSON object";

/// A JSON body of type `T`; an absent body reads as `{}`.
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + 'static> FromRequest for Json<T> {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let bytes = read(request, payload);
        Box::pin(async move {
            let bytes = bytes.await?;
            let parsed = parse(&bytes);
            wipe(bytes);
            parsed.map(Self)
        })
    }
}

/// The bytes of a request's body, at most [`JSON_BYTES_MAX`].
pub(super) fn read(
    request: &HttpRequest,
    payload: &mut Payload,
) -> impl Future<Output = Result<Bytes, ApiError>> + use<> {
    let bytes = Bytes::from_request(request, payload);
    async move {
        bytes.await.map_err(|error| {
            let status = error.as_response_error().status_code();
            match status {
                StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
                    status,
                    format!("the request body must not exceed {JSON_BYTES_MAX} bytes"),
                ),
                _ => ApiError::bad_request("the request body could not be read"),
            }
        })
    }
}

/// The body may hold a secret: this copy of it does not stay behind.
pub(super) fn wipe(bytes: Bytes) {
    if let Ok(mut own) = bytes.try_into_mut() {
        own.as_mut().zeroize();
    }
}

/// Reads a body as JSON; an absent one as `{}`.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let text = match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => b"{}",
        // Serde would read a list as the values of the fields in their order.
        Some(b'[') => return Err(ApiError::bad_request(NOT_AN_OBJECT)),
        Some(_) => bytes,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value: T = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.inner();
        match inner.classify() {
            // Which of the two was meant can't be known.
            serde_json::error::Category::Data
                if inner.to_string().starts_with("duplicate field") =>
            {
                ApiError::bad_request("invalid request: a field is there twice")
            }
            // Where a misspelt field would allow more than was meant, unknown ones are refused.
            serde_json::error::Category::Data if inner.to_string().starts_with("unknown field") => {
                let (at, _) = path.rsplit_once('.').unwrap_or((&path, ""));
                ApiError::bad_request(format!("invalid request: `{at}` has an unknown field"))
            }
            serde_json::error::Category::Data if path != "." => {
                ApiError::bad_request(format!("invalid request: `{path}` has the wrong type"))
            }
            serde_json::error::Category::Data => ApiError::bad_request(NOT_AN_OBJECT),
            _ => ApiError::bad_request(format!(
                "invalid request: not valid JSON at line {} column {}",
                inner.line(),
                inner.column()
            )),
        }
    })?;
    deserializer
        .end()
        .map_err(|_| ApiError::bad_request("invalid request: text after the JSON value"))?;
    Ok(value)
}
