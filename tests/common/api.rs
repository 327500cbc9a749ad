//! Requests and replies, with nothing checked on the way unless a test says so.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

/// One caller of one server.
#[derive(Clone)]
pub struct Api {
    client: reqwest::Client,
    url: String,
    headers: HeaderMap,
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Api {
    pub fn new(client: reqwest::Client, url: &str, key: Option<&str>) -> Self {
        let api = Self {
            client,
            url: url.to_owned(),
            headers: HeaderMap::new(),
        };
        match key {
            Some(key) => api.with_key(key),
            None => api,
        }
    }

    /// The same with another API key.
    pub fn with_key(&self, key: &str) -> Self {
        self.with_header("x-api-key", key)
    }

    /// The same without any credential.
    pub fn without_key(&self) -> Self {
        Self {
            headers: HeaderMap::new(),
            ..self.clone()
        }
    }

    /// The same with a header set.
    pub fn with_header(&self, name: &'static str, value: &str) -> Self {
        let mut other = self.clone();
        let value = HeaderValue::from_str(value).expect("a header value");
        other.headers.insert(HeaderName::from_static(name), value);
        other
    }

    /// A request that was not sent yet, for what the methods below don't do.
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        self.client
            .request(method, format!("{}{path}", self.url))
            .headers(self.headers.clone())
    }

    /// Sends a request; an error means that no whole reply came back.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Reply, reqwest::Error> {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body);
        }
        let reply = request.send().await?;
        let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
        Ok(Reply {
            status,
            headers,
            text: reply.text().await?,
        })
    }

    /// Sends a request to a server that must answer.
    #[track_caller]
    pub fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> impl Future<Output = Reply> + use<> {
        let (api, method, path) = (self.clone(), method.to_owned(), path.to_owned());
        async move {
            let sent = api.send(&method, &path, body).await;
            sent.unwrap_or_else(|error| panic!("{method} {path} was not answered: {error:?}"))
        }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.call("POST", path, Some(body.to_string().into_bytes()))
            .await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Reply {
        self.call("PUT", path, Some(body.to_string().into_bytes()))
            .await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.call("DELETE", path, None).await
    }

    /// Makes a project and gives its id.
    pub async fn project(&self, body: &Value) -> String {
        self.post("/api/projects", body).await.ok(201).id()
    }

    /// Makes a store and gives its id.
    pub async fn store(&self, body: &Value) -> String {
        self.post("/api/secret-stores", body).await.ok(201).id()
    }

    /// Position of the log's last event, after its proof held.
    pub async fn verified_positions(&self) -> u64 {
        let proof = self
            .call("POST", "/api/audit/verify", None)
            .await
            .ok(200)
            .json();
        assert_eq!(proof["ok"], true, "the chain verifies: {proof}");
        proof["positions"].as_u64().expect("a number of events")
    }
}

impl Reply {
    /// The reply, if it has this status.
    #[track_caller]
    pub fn ok(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {:?}", self.text))
    }

    /// The object's `id`.
    #[track_caller]
    pub fn id(&self) -> String {
        self.json()["id"].as_str().expect("an id").to_owned()
    }

    /// The reply is this status with exactly this envelope.
    #[track_caller]
    pub fn refused(&self, status: u16, error: &str) {
        let expected = serde_json::json!({ "error": error });
        assert_eq!((self.status, self.json()), (status, expected));
    }

    /// A header as text; empty when it isn't there.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}
