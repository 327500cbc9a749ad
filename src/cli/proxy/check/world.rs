//! What every attack has at hand: the target, the kit, and hosts to be started.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::authority::Flaw;
use super::client::{Trouble, get};
use super::kit::{Kit, Sealed};
use super::message::{Message, has};
use super::upstream::{Reply, Script, Upstream};

/// The target and what it was told.
pub struct World {
    /// The proxy under test, `host:port`.
    pub target: String,
    /// Secrets and names.
    pub kit: Kit,
    /// What clients trust: the proxy's authority, and the hosts'.
    pub roots: Vec<CertificateDer<'static>>,
}

impl World {
    /// A host with a good certificate for every name, that answers by `script`.
    pub async fn host(
        &self,
        script: impl Fn(&Message) -> Reply + Send + Sync + 'static,
    ) -> Result<Upstream, Trouble> {
        self.host_with(
            Flaw::None,
            Ipv4Addr::LOCALHOST.into(),
            &[],
            Arc::new(script),
        )
        .await
    }

    /// A host with a certificate of this kind, at an address, offering `alpn`.
    pub async fn host_with(
        &self,
        flaw: Flaw,
        ip: IpAddr,
        alpn: &[&str],
        script: Script,
    ) -> Result<Upstream, Trouble> {
        let made = self.kit.authority.server(&self.kit.names(), flaw, alpn);
        let (config, _) = made.map_err(Trouble::Local)?;
        Ok(Upstream::start(ip, Some(config), script).await?)
    }

    /// A host that says back all it is sent.
    pub async fn echo(&self) -> Result<Upstream, Trouble> {
        self.host(|message| Reply::ok("", &message.raw)).await
    }

    /// The usual request: the primary token in a field.
    pub fn request(&self, path: &str, fields: &str) -> String {
        let token = &self.kit.primary.token;
        get(&self.kit.api, path, &format!("x-key: {token}\r\n{fields}"))
    }

    /// Whether any value of the kit is in `bytes`; the role of the first.
    pub fn value_in(&self, bytes: &[u8]) -> Option<&'static str> {
        let found = self
            .kit
            .secrets()
            .into_iter()
            .find(|(_, one)| has(bytes, one.real()));
        found.map(|(role, _)| role)
    }

    /// Whether the target knows `secret` for `host`: its value replaces its token in a JSON body.
    pub async fn knows(&self, secret: &Sealed, host: &str) -> Result<bool, Trouble> {
        let upstream = self.host(|_| Reply::ok("", b"fine")).await?;
        let body = secret.token.as_bytes();
        let request = super::client::post(host, "content-type: text/plain\r\n", body);
        match self.ask(host, upstream.port, request).await {
            Ok(_) => Ok(upstream.got(secret.real())),
            Err(trouble) if trouble.is_refusal() => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }
}

/// The value of `x-key` of a request as it reached a host: what a host can say back.
pub fn key(message: &Message) -> Vec<u8> {
    message.field("x-key").unwrap_or("none").as_bytes().to_vec()
}
