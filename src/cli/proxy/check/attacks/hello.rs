//! Row 18: a ClientHello that hides the name it is for.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::{EchGreaseConfig, EchMode};
use rustls::crypto::aws_lc_rs::hpke::ALL_SUPPORTED_SUITES;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::attack;
use crate::cli::proxy::check::authority::crypto;
use crate::cli::proxy::check::client::{Trouble, send};
use crate::cli::proxy::check::kit::{OTHER, PLAIN};
use crate::cli::proxy::check::message::has;
use crate::cli::proxy::check::outcome::{Check, Outcome, fail, pass};
use crate::cli::proxy::check::world::World;

type Found = Result<Outcome, Trouble>;

pub fn attacks() -> Vec<Check> {
    vec![attack!(
        "18",
        "a ClientHello with a second, hidden name",
        hidden
    )]
}

/// Bytes of the hidden part by which it is known again.
const MARK_BYTES: usize = 24;
/// Most bytes kept of what reaches the host.
const HEARD_BYTES_MAX: usize = 64 * 1024;
/// In which a tunnel would have carried the hello.
const PASSAGE: Duration = Duration::from_secs(1);

/// A ClientHello for `name` with the extension for an encrypted one, and a mark from inside that.
///
/// The extension is GREASE: nobody but the one it is meant for can tell that from a real one.
fn hello(name: &str) -> Result<(Vec<u8>, Vec<u8>), String> {
    let suite = ALL_SUPPORTED_SUITES.first().ok_or("no suite for ECH")?;
    let (key, _) = suite
        .generate_key_pair()
        .map_err(|error| error.to_string())?;
    let mode = EchMode::from(EchGreaseConfig::new(*suite, key));
    let config = ClientConfig::builder_with_provider(crypto()).with_ech(mode);
    let config = config.map_err(|error| error.to_string())?;
    let config = config
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).map_err(|error| error.to_string())?;
    let mut client =
        ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())?;
    let mut hello = Vec::new();
    client
        .write_tls(&mut hello)
        .map_err(|error| error.to_string())?;
    // The number of the extension, its length, "outer", HKDF with SHA-256 or SHA-384; then the
    // AEAD, the number of the key, and the length of the random key share.
    let found = hello
        .windows(7)
        .position(|bytes| matches!(bytes, [0xfe, 0x0d, _, _, 0, 0, 1 | 2]));
    let mark = found.and_then(|at| hello.get(at + 12..at + 12 + MARK_BYTES));
    let mark = mark.ok_or("no ECH in the hello")?.to_vec();
    Ok((hello, mark))
}

async fn hidden(world: &World) -> Found {
    let mut seen = Vec::new();
    for name in [world.kit.api.as_str(), OTHER, PLAIN] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let _host = AbortOnDropHandle::new(tokio::spawn(overhear(listener, heard.clone())));
        let (hello, mark) = hello(name).map_err(Trouble::Local)?;
        let mut stream = match world.tunnel(format!("{name}:{port}").as_bytes()).await {
            Ok(stream) => stream,
            Err(trouble) if trouble.is_refusal() => {
                seen.push(trouble.to_string());
                continue;
            }
            Err(trouble) => return Err(trouble),
        };
        let _ = send(&mut stream, &hello).await;
        let mut answer = Vec::new();
        let _ = timeout(PASSAGE, stream.read_buf(&mut answer)).await;
        tokio::time::sleep(PASSAGE / 10).await;
        if has(&heard.lock().unwrap_or_else(PoisonError::into_inner), &mark) {
            return fail(format!(
                "the hidden name for {name} went to the host unread"
            ));
        }
        seen.push(match answer.first() {
            Some(0x15) => "a TLS alert".to_owned(),
            Some(0x16) => "the target answers itself".to_owned(),
            Some(_) => "something else than TLS".to_owned(),
            None => "no answer".to_owned(),
        });
    }
    pass(seen.join(", "))
}

async fn overhear(listener: TcpListener, heard: Arc<Mutex<Vec<u8>>>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut bytes = Vec::with_capacity(4096);
        while let Ok(1..) = stream.read_buf(&mut bytes).await {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            if heard.len() < HEARD_BYTES_MAX {
                heard.append(&mut bytes);
            }
            bytes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the mark is of the hidden part, so that a hello that passes is seen.
    #[test]
    fn each_hello_hides_something_of_its_own() {
        let (first, mark) = hello("a.test").unwrap();
        let (second, other) = hello("a.test").unwrap();
        assert!(has(&first, &mark) && has(&second, &other));
        assert!(!has(&second, &mark) && has(&first, b"a.test"));
    }
}
