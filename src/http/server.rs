//! Starting and stopping the server: opens what it keeps, makes the world agree with the log, and
//! only then answers requests. Stopping it stops no sandbox.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use actix_cors::Cors;
use actix_web::dev::ServerHandle;
use actix_web::http::header::{ALLOW, RETRY_AFTER};
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, web};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::timeout;

use super::admin_socket;
use super::admission::{Admission, SAVE_INTERVAL};
use super::audit_follow::Audit;
use super::auth::Tokens;
use super::body::JSON_BYTES_MAX;
use super::error::ApiError;
use super::feeds::Feeds;
use super::idempotency::REPLAYED;
use super::keys::{is_key, new_key};
use super::methods::with_methods;
use super::metrics::{self, with_count};
use super::request_id::{REQUEST_ID, with_request_id};
use super::signed_urls::UrlSigner;
use super::stop::{serve_until, told_to_stop};
use super::{Api, routes, wire};
use crate::actors::{Failure, NewKey, Parts, Platform, Reconciler};
use crate::config::{AuditMode, Config, Egress, EgressTls};
use crate::events::{
    CheckpointError, CheckpointKey, CheckpointOptions, EngineError, EventLog, Keeper, KeyError,
    LogOptions, OpenError, Snapshots, StreamId, VerifyError,
};
use crate::proxy::{ClientIdentity, EgressSettings, HostTls};
use crate::sandbox::{DriverError, NamespaceDriver, doctor};

/// Name of the organization made on first start.
const FIRST_ORG: &str = "default";
/// Variable with the key to use on first start instead of a new one.
const BOOTSTRAP_KEY: &str = "OPENCOMPUTER_BOOTSTRAP_KEY";
/// Seconds that open requests get when the server stops.
const SHUTDOWN_SEC: u64 = 5;
/// Longest the last checkpoint may take when the server stops.
const LAST_CHECKPOINT_MAX: Duration = Duration::from_secs(10);

/// Why the server did not start, with the way out.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data folder can't be made or opened.
    #[error("can't use the data folder {path}: {source}; pass another one with --data-dir")]
    DataDir {
        /// Which folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The event log can't be opened.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The event log does not prove itself.
    #[error(
        "the event log is damaged: {0}. Nothing was changed. Restore it from a backup, or keep what \
         is whole of it with `oc log repair`"
    )]
    Unproved(VerifyError),
    /// The event log could not be read to its end.
    #[error(
        "the event log can't be read: {0}; nothing is known to be wrong with it. Mend the cause and \
         start again"
    )]
    Unread(EngineError),
    /// The keys can't be opened.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Checkpoints can't be signed or kept, or the log is not the one they were signed for.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Sandboxes can't be isolated on this machine.
    #[error("sandboxes can't run here: {0}; `oc doctor` says what is missing")]
    Driver(#[from] DriverError),
    /// Something that every sandbox needs is not to be had here.
    #[error("sandboxes can't run on this machine: {name}: {detail}; {fix} (`oc doctor` says more)")]
    Unfit {
        /// What is missing.
        name: String,
        /// What was found.
        detail: String,
        /// The way out.
        fix: String,
    },
    /// An entry of `[[egress.tls]]` is of no use.
    #[error("[[egress.tls]] for `{hosts}`: {message}")]
    HostTls {
        /// Its pattern.
        hosts: String,
        /// What is wrong.
        message: String,
    },
    /// A file with extra root certificates is of no use.
    #[error("extra root certificates {path}: {message}")]
    Roots {
        /// Which file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The address is taken or not allowed.
    #[error("can't listen on {addr}: {source}; pass another address with --listen")]
    Listen {
        /// Which address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The first key given is not a key.
    #[error("{BOOTSTRAP_KEY} must be `osb_` followed by 64 hex digits")]
    BootstrapKey,
    /// The first organization or key could not be recorded.
    #[error("the first organization could not be made: {0}")]
    Bootstrap(#[from] Failure),
    /// The log can't be written any more.
    #[error("the event log stopped: {0}; nothing acknowledged is lost, mend the cause and restart")]
    LogStopped(String),
    /// Input or output failed.
    #[error("the server failed: {0}")]
    Io(#[from] io::Error),
}

/// A key that the server made on its first start.
pub struct FirstKey<'a> {
    /// Origin of the server.
    pub url: &'a str,
    /// The key's text; this is the only time it is there.
    pub key: &'a str,
}

/// Runs the server until it is told to stop (SIGTERM, SIGINT). `first_key` is called when a key
/// was made, once in the life of a data folder.
pub async fn serve(config: Config, first_key: impl FnOnce(FirstKey<'_>)) -> Result<(), ServeError> {
    // The first provider installed stays; both are the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    make_private_dir(&config.data_dir)?;
    let log = EventLog::open(LogOptions {
        dir: config.data_dir.join("log"),
    })?;
    let keys = config.data_dir.join("keys.db");
    let has_events = log.head().position > 0;
    let (keyring, created) = config.master_key.open_keyring(&keys, has_events)?;
    if created {
        tracing::info!(
            file = config.master_key.describe(),
            "made a new master key; back it up"
        );
    }
    let (checkpoint_key, notes) = checkpoints(&config, &log).await?;
    check_machine().await?;
    let disks = config.data_dir.join("sandboxes");
    let driver = NamespaceDriver::in_store(&disks, config.disk_store.into())?;
    let listener = bind(config.listen)?;
    let admin = config.admin_listen.map(bind).transpose()?;
    // Nothing is decided before the whole log was read and proved: what a model that is behind
    // doesn't know would look as if it were not there.
    let snapshots_key = keyring.derive(&StreamId::of("server", "signing"), "state-snapshots")?;
    let platform = Platform::start(Parts {
        log: log.clone(),
        snapshots: Snapshots::open(&config.data_dir.join("log"), snapshots_key),
        keyring: Arc::new(keyring),
        driver: Arc::new(driver),
        egress: Arc::new(egress_settings(&config.egress, listener.local_addr()?)?),
        limits: config.limits,
        images: config.images.clone(),
    })
    .await
    .map_err(unproved)?;
    // Only now is anything signed: a note stands for a history that was proved.
    let keeper = match notes {
        Some(options) => Some(Keeper::start(log.clone(), checkpoint_key.clone(), options).await?),
        None => None,
    };
    let url = local_url(listener.local_addr()?);
    if config.listen.ip().is_unspecified() && config.public_url.is_none() {
        tracing::warn!(
            url,
            "clients elsewhere need an address of theirs: pass --public-url"
        );
    }
    let org = bootstrap(&platform, &url, first_key).await?;
    Reconciler::start(&platform).await;
    let stopping = told_to_stop()?;
    let api = web::Data::new(Api {
        tokens: Tokens::new(&*platform.signing_key("sandbox-token")?),
        url_signer: UrlSigner::new(&*platform.signing_key("signed-url")?),
        public_url: config.public_url.clone().unwrap_or_else(|| url.clone()),
        no_auth: config.no_auth.then_some(org),
        checkpoint_key,
        admission: Admission::open(&config.data_dir, config.limits.requests_per_sec),
        audit: Audit::new(log.clone(), stopping.clone()),
        stopping: stopping.clone(),
        log_feeds: Feeds::default(),
        platform: platform.clone(),
    });
    let requests = metrics::shared();
    let admin = admin
        .map(|listener| serve_admin(listener, api.clone(), requests.clone()))
        .transpose()?;
    let local = admin_socket::serve(&config.data_dir, api.clone())?;
    let uses = api.clone();
    let saved = actix_rt::spawn(async move {
        loop {
            tokio::time::sleep(SAVE_INTERVAL).await;
            uses.admission.save();
        }
    });
    let uses = api.clone();
    let server = HttpServer::new(move || {
        App::new()
            .wrap(from_fn(with_count))
            .wrap(from_fn(with_methods))
            .wrap(cors())
            .wrap(from_fn(with_request_id))
            .app_data(api.clone())
            .app_data(requests.clone())
            .app_data(web::PayloadConfig::new(JSON_BYTES_MAX))
            .app_data(
                web::QueryConfig::default()
                    .error_handler(|_, _| ApiError::bad_request("invalid query parameter").into()),
            )
            .app_data(
                web::PathConfig::default()
                    .error_handler(|_, _| ApiError::bad_request("invalid path").into()),
            )
            .configure(routes)
    })
    .workers(2)
    .on_connect(wire::remember)
    // An answer that is streamed goes out in several writes; without this the last of them would
    // wait some 40 ms for the client's acknowledgement of the one before.
    .tcp_nodelay(true)
    .shutdown_timeout(SHUTDOWN_SEC)
    .disable_signals()
    .listen(listener)?
    .run();
    announce(&config.data_dir, &url)?;
    // What the log can't keep must not be acknowledged: the server ends, and says why.
    let ended = serve_until(server, &stopping, log.wait_stopped()).await;
    if let Some(admin) = admin {
        admin.stop(false).await;
    }
    local.stop(false).await;
    saved.abort();
    uses.admission.save();
    if let Some(reason) = ended? {
        return Err(ServeError::LogStopped(reason.to_string()));
    }
    platform.let_go().await;
    // The log first: the folder of checkpoints may be on another machine, and not answer.
    log.close().await;
    if let Some(keeper) = keeper
        && timeout(LAST_CHECKPOINT_MAX, keeper.stop()).await.is_err()
    {
        let sec = LAST_CHECKPOINT_MAX.as_secs();
        tracing::error!(
            sec,
            "the last checkpoint was not written in time; the next start writes it"
        );
    }
    Ok(())
}

fn bind(addr: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(addr).map_err(|source| ServeError::Listen { addr, source })
}

/// Serves the operator's metrics on a listener of their own.
fn serve_admin(
    listener: TcpListener,
    api: web::Data<Api>,
    requests: web::Data<metrics::Requests>,
) -> io::Result<ServerHandle> {
    tracing::info!(address = %listener.local_addr()?, "metrics are served at /metrics");
    let server = HttpServer::new(move || {
        App::new()
            .app_data(api.clone())
            .app_data(requests.clone())
            .configure(metrics::routes)
    })
    .workers(1)
    .disable_signals()
    .listen(listener)?
    .run();
    let handle = server.handle();
    actix_rt::spawn(server);
    Ok(handle)
}

/// The key that signs checkpoints, made on first start, and where the operator wants them. A log
/// that is not the one the newest checkpoint was signed for is refused; nothing is signed yet.
async fn checkpoints(
    config: &Config,
    log: &EventLog,
) -> Result<(Arc<CheckpointKey>, Option<CheckpointOptions>), ServeError> {
    let path = config.data_dir.join(CheckpointKey::FILE);
    let key = Arc::new(CheckpointKey::load_or_create(&path)?.0);
    let Some(settings) = &config.checkpoints else {
        return Ok((key, None));
    };
    let options = CheckpointOptions {
        dir: settings.dir.clone(),
        every: settings.every,
        every_commits: settings.every_commits,
    };
    Keeper::check(log, &key, &options).await?;
    Ok((key, Some(options)))
}

/// A log that could not be read is not a damaged one, and needs no repair.
fn unproved(error: VerifyError) -> ServeError {
    match error {
        VerifyError::Engine(error) if !matches!(error, EngineError::Damaged(_)) => {
            ServeError::Unread(error)
        }
        error => ServeError::Unproved(error),
    }
}

/// Any origin may ask anything, with its own credentials, and read every header of ours.
fn cors() -> Cors {
    Cors::permissive().expose_headers([REQUEST_ID, REPLAYED, RETRY_AFTER, ALLOW])
}

/// Refuses a machine that can't isolate, and says what is weaker than it could be.
async fn check_machine() -> Result<(), ServeError> {
    let checks = tokio::task::spawn_blocking(doctor)
        .await
        .map_err(io::Error::other)?;
    for check in checks.into_iter().filter(|check| !check.ok) {
        let fix = check.fix.unwrap_or_default();
        if check.required {
            let (name, detail) = (check.name, check.detail);
            return Err(ServeError::Unfit { name, detail, fix });
        }
        tracing::warn!(
            what = check.name,
            found = check.detail,
            fix,
            "weaker isolation"
        );
    }
    Ok(())
}

/// The server's origin for programs on this machine; a listener on every address has no other one.
fn local_url(listener: SocketAddr) -> String {
    let mut address = listener;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}")
}

/// Tells people and programs where the server is.
fn announce(data_dir: &Path, url: &str) -> io::Result<()> {
    let text = serde_json::json!({ "url": url, "pid": std::process::id() }).to_string();
    let (file, fresh) = (
        data_dir.join("endpoint.json"),
        data_dir.join("endpoint.json.new"),
    );
    std::fs::write(&fresh, text)?;
    std::fs::rename(fresh, file)?;
    tracing::info!(url, "listening");
    println!("OpenComputer listens on {url}");
    Ok(())
}

/// A folder for nobody else's eyes.
fn make_private_dir(path: &Path) -> Result<(), ServeError> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let error = |source| ServeError::DataDir {
        path: path.to_owned(),
        source,
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(error)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(error)
}

fn egress_settings(egress: &Egress, own: SocketAddr) -> Result<EgressSettings, ServeError> {
    let host_tls: Result<Vec<_>, _> = egress.tls.iter().map(host_tls).collect();
    Ok(EgressSettings {
        allow_private: egress.allow_private.clone(),
        pinned: egress.hosts.clone().into_iter().collect(),
        extra_roots: roots(&egress.extra_roots)?,
        host_tls: host_tls?,
        own: vec![own],
        inspect_all: egress.inspect_all,
        strict_tokens: egress.strict_tokens,
        strict_audit: egress.audit == AuditMode::Strict,
        ..EgressSettings::default()
    })
}

fn roots(paths: &[PathBuf]) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let mut roots = Vec::new();
    for path in paths {
        let error = |message: String| ServeError::Roots {
            path: path.clone(),
            message,
        };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|e| error(e.to_string()))?;
        let before = roots.len();
        for certificate in certificates {
            roots.push(certificate.map_err(|e| error(e.to_string()))?);
        }
        if roots.len() == before {
            return Err(error("no certificate in the file".to_owned()));
        }
    }
    Ok(roots)
}

fn host_tls(entry: &EgressTls) -> Result<HostTls, ServeError> {
    let error = |message: String| ServeError::HostTls {
        hosts: entry.hosts.clone(),
        message,
    };
    let read = |path: &PathBuf| {
        let bytes = std::fs::read(path).map(zeroize::Zeroizing::new);
        bytes.map_err(|e| error(format!("can't read {}: {e}", path.display())))
    };
    let identity = match (&entry.client_certificate, &entry.client_key) {
        (Some(chain), Some(key)) => {
            let identity = ClientIdentity::from_pem(&read(chain)?, &read(key)?);
            Some(identity.map_err(|e| error(e.to_string()))?)
        }
        (None, None) => None,
        _ => {
            let message = "`client_certificate` and `client_key` belong together";
            return Err(error(message.to_owned()));
        }
    };
    Ok(HostTls {
        pattern: entry
            .hosts
            .parse()
            .map_err(|e: crate::proxy::BadPattern| error(e.to_string()))?,
        extra_roots: roots(&entry.extra_roots)?,
        identity,
    })
}

/// Makes the first organization and its key when there are none.
async fn bootstrap(
    platform: &Platform,
    url: &str,
    first_key: impl FnOnce(FirstKey<'_>),
) -> Result<crate::ids::OrgId, ServeError> {
    let given = std::env::var(BOOTSTRAP_KEY)
        .ok()
        .filter(|key| !key.is_empty());
    if given.as_deref().is_some_and(|key| !is_key(key)) {
        return Err(ServeError::BootstrapKey);
    }
    let known = platform.catalog().first_org();
    let has_key = platform.catalog().has_keys();
    if let (Some(org), true) = (known, has_key) {
        return Ok(org);
    }
    let key = match &given {
        Some(key) => key.clone(),
        None => new_key(),
    };
    // Told before it is valid: a crash in between makes another key at the next start, while one
    // that was valid and never told would lock everybody out.
    if given.is_none() {
        first_key(FirstKey { url, key: &key });
    }
    let org = match known {
        Some(org) => org,
        None => platform.create_org(FIRST_ORG).await?.org_id,
    };
    let made = platform.add_key(&org, NewKey::first(), &key, None);
    made.await?;
    Ok(org)
}
