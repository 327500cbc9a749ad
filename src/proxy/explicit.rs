//! The explicit proxy, for programs that follow `HTTPS_PROXY`.
//!
//! It grants nothing: the inside of a CONNECT tunnel goes the way of a transparent connection to
//! that host, and an absolute `http://` request that of plain HTTP.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use http::uri::Scheme;
use http::{Method, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::body::OutBody;
use super::connection::transparent;
use super::decision::Protocol;
use super::exchange::Exchange;
use super::framing::{Seat, Watched};
use super::gate::SandboxProxy;
use super::io::{Meter, Rewind};
use super::name::Host;
use super::origin::Origin;
use super::refusal::Refusal;
use super::serve::http_server;

/// Serves one connection to the explicit proxy.
pub(crate) async fn serve(proxy: Arc<SandboxProxy>, io: Rewind, meter: Arc<Meter>, own: Host) {
    let opened: Mutex<Option<(Host, u16, OnUpgrade)>> = Mutex::new(None);
    // Of the last absolute request: the next one is often to the same host.
    let exchange: Mutex<Option<Arc<Exchange>>> = Mutex::new(None);
    let (opened_ref, exchange_ref, proxy_ref, own_ref) = (&opened, &exchange, &proxy, &own);
    let (io, watch) = Watched::new(io);
    let service = service_fn(move |request: Request<Incoming>| {
        let (seat, watch) = (watch.next(), watch.clone());
        let connect = request.method() == Method::CONNECT;
        async move {
            let mut response = match connect {
                true => connected(request, proxy_ref, own_ref, opened_ref).await,
                false => answer(request, seat, proxy_ref, exchange_ref, own_ref).await,
            };
            let tunnel = connect && response.status().is_success();
            watch.settle(seat, &mut response, tunnel);
            Ok::<_, Infallible>(response)
        }
    });
    let served = http_server()
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection to the explicit proxy ended");
        return;
    }
    let tunnel = opened.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some((host, port, upgrade)) = tunnel else {
        let last = exchange
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(exchange) = last {
            exchange.relay().await;
        }
        return;
    };
    match upgrade.await {
        Ok(inside) => transparent(proxy, bare(inside), meter, host, port).await,
        Err(error) => tracing::debug!(%error, "CONNECT did not become a tunnel"),
    }
}

/// The connection itself, without what is only for requests to the explicit proxy.
fn bare(inside: Upgraded) -> Rewind {
    match inside.downcast::<TokioIo<Watched<Rewind>>>() {
        Ok(parts) => parts
            .io
            .into_inner()
            .into_inner()
            .preceded_by(&parts.read_buf),
        Err(inside) => Rewind::new(Box::new(TokioIo::new(inside))),
    }
}

/// Answers an absolute request.
async fn answer(
    request: Request<Incoming>,
    seat: Seat,
    proxy: &Arc<SandboxProxy>,
    last: &Mutex<Option<Arc<Exchange>>>,
    own: &Host,
) -> Response<OutBody> {
    match plain_origin(request.uri()) {
        Ok(Some(origin)) => {
            let exchange = exchange_with(origin, proxy, last);
            exchange.answer(request, seat).await
        }
        Ok(None) => refuse(proxy, &Refusal::ProxyMethod, own, 0, request.method()).await,
        Err(refusal) => refuse(proxy, &refusal, own, 0, request.method()).await,
    }
}

/// Answers CONNECT.
async fn connected(
    mut request: Request<Incoming>,
    proxy: &Arc<SandboxProxy>,
    own: &Host,
    opened: &Mutex<Option<(Host, u16, OnUpgrade)>>,
) -> Response<OutBody> {
    let (host, port) = match connect_target(request.uri()) {
        Ok(target) => target,
        Err(refusal) => return refuse(proxy, &refusal, own, 0, request.method()).await,
    };
    if let Err(refusal) = proxy.judge(&host) {
        return refuse(proxy, &refusal, &host, port, request.method()).await;
    }
    let upgrade = hyper::upgrade::on(&mut request);
    *opened.lock().unwrap_or_else(PoisonError::into_inner) = Some((host, port, upgrade));
    use http_body_util::BodyExt;
    Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync())
}

fn exchange_with(
    origin: Origin,
    proxy: &Arc<SandboxProxy>,
    last: &Mutex<Option<Arc<Exchange>>>,
) -> Arc<Exchange> {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    match &*last {
        Some(exchange) if **exchange.origin() == origin => exchange.clone(),
        _ => {
            let exchange = Arc::new(Exchange::new(proxy.clone(), origin));
            last.insert(exchange).clone()
        }
    }
}

/// Where an absolute request goes; `None` when it is not one for `http://`.
fn plain_origin(uri: &Uri) -> Result<Option<Origin>, Refusal> {
    let (Some(authority), Some(scheme)) = (uri.authority(), uri.scheme()) else {
        return Ok(None);
    };
    if *scheme != Scheme::HTTP {
        return Ok(None);
    }
    let host = authority.host().parse().map_err(|_| Refusal::HostName)?;
    let port = authority.port_u16().unwrap_or(80);
    Origin::new(host, port, false).map(Some)
}

fn connect_target(uri: &Uri) -> Result<(Host, u16), Refusal> {
    let authority = uri.authority().ok_or(Refusal::HostName)?;
    let port = authority.port_u16().ok_or(Refusal::HostName)?;
    if authority.as_str().contains('@') {
        return Err(Refusal::HostName);
    }
    Ok((
        authority.host().parse().map_err(|_| Refusal::HostName)?,
        port,
    ))
}

async fn refuse(
    proxy: &SandboxProxy,
    refusal: &Refusal,
    host: &Host,
    port: u16,
    method: &Method,
) -> Response<OutBody> {
    let mut record = proxy.record(host, port, Protocol::Connect);
    record.method(method);
    // Over HTTP/2 nobody speaks to it.
    record.client(None, Version::HTTP_11);
    // A refusal sends nothing, so a full trail only delays it.
    let _ = record.room().await;
    record.refused(refusal);
    let mut response = refusal.response(host, Version::HTTP_11);
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        let allow = http::HeaderValue::from_static("CONNECT");
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_one_reading() {
        let target = |text: &str| connect_target(&text.parse().unwrap()).map_err(|r| r.rule());
        assert_eq!(
            target("Api.Example:8443"),
            Ok(("api.example".parse().unwrap(), 8443))
        );
        assert_eq!(target("[::1]:443"), Ok(("::1".parse().unwrap(), 443)));
        for bad in [
            "api.example",
            "127.1:443",
            "u@api.example:443",
            "/x",
            "a_b.example:443",
        ] {
            assert_eq!(target(bad), Err("host_name"), "{bad}");
        }
        let plain = |text: &str| {
            plain_origin(&text.parse().unwrap())
                .unwrap()
                .map(|o| o.port)
        };
        assert_eq!(plain("http://api.example/x"), Some(80));
        assert_eq!(plain("http://api.example:81/x"), Some(81));
        assert_eq!(plain("https://api.example/x"), None);
        assert_eq!(plain("/x"), None);
    }
}
