//! One configuration from defaults, file, environment and flags; later wins.
//!
//! The file is TOML: `<data-dir>/oc.toml`, or the one named by `--config`. Unknown fields are
//! refused, so that a misspelt setting can't be silently without effect.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

/// Where `oc serve` listens when nothing else is said.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7600";

/// Variable with the master key itself, 64 hexadecimal digits.
pub const MASTER_KEY_VARIABLE: &str = "OC_MASTER_KEY";

/// Flags of `oc serve`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ServeArgs {
    /// Folder of the event log, keys and sandbox disks [default: /var/lib/opencomputer as root,
    /// else ~/.local/share/opencomputer]
    #[arg(long, env = "OC_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address to listen on; port 0 picks a free one [default: 127.0.0.1:7600]
    #[arg(long, env = "OC_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Address to serve metrics on (Prometheus, at /metrics, without a key) [default: none]
    #[arg(long, env = "OC_ADMIN_LISTEN", value_name = "ADDR:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// Configuration file [default: oc.toml in the data folder, when there is one]
    #[arg(long, env = "OC_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Origin that clients reach this server by, when it isn't the address it listens on
    #[arg(long, env = "OC_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// Master key file [default: master.key in the data folder]
    #[arg(long, env = "OC_MASTER_KEY_FILE", value_name = "FILE")]
    pub master_key_file: Option<PathBuf>,
    /// Pass every request as one default organization; only on a loopback address
    #[arg(long)]
    pub no_auth: bool,
    /// Private range that sandboxes may reach, e.g. 10.1.2.0/24 (repeatable)
    #[arg(long, value_name = "CIDR")]
    pub egress_allow_private: Vec<IpNet>,
    /// Address for a name, instead of DNS (repeatable)
    #[arg(long, value_name = "NAME=IP", value_parser = parse_host)]
    pub egress_host: Vec<(String, IpAddr)>,
    /// Extra root certificates for upstream hosts, PEM (repeatable)
    #[arg(long, value_name = "FILE")]
    pub egress_root: Vec<PathBuf>,
    /// Where new disks lie [default: files]
    #[arg(long, env = "OC_DISK_STORE", value_name = "STORE")]
    pub disk_store: Option<DiskStore>,
    /// Write logs as JSON lines
    #[arg(long)]
    pub log_json: bool,
}

fn parse_host(text: &str) -> Result<(String, IpAddr), String> {
    let (name, ip) = text.split_once('=').ok_or("expected NAME=IP")?;
    let ip = ip
        .parse()
        .map_err(|_| format!("`{ip}` is not an IP address"))?;
    Ok((name.to_ascii_lowercase(), ip))
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<SocketAddr>,
    admin_listen: Option<SocketAddr>,
    public_url: Option<String>,
    master_key_file: Option<PathBuf>,
    master_key_command: Option<Vec<String>>,
    checkpoints: Option<CheckpointsFile>,
    #[serde(default)]
    disks: DisksFile,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    egress: EgressFile,
    #[serde(default)]
    images: Images,
}

/// Socket of the server's own machine, in the data folder.
pub const ADMIN_SOCKET: &str = "admin.sock";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DisksFile {
    store: DiskStore,
}

/// Where new disks lie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DiskStore {
    /// In files; copies share blocks where the host's file system can
    #[default]
    Files,
    /// In a file system in one file that shares blocks
    Pool,
    /// The same, an XFS
    PoolXfs,
    /// The same, a btrfs
    PoolBtrfs,
}

/// Limits an operator may set.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest memory of one sandbox, MiB.
    pub memory_mb_max: u32,
    /// Sandboxes of one organization running at once.
    pub concurrent_sandboxes_max: usize,
    /// Captured output of one command, bytes per stream.
    pub exec_output_bytes_max: usize,
    /// Requests a second one API key is good for, unless it was made with a rate of its own. 0: any.
    pub requests_per_sec: u32,
    /// Largest uploaded file, bytes.
    pub upload_bytes_max: u64,
    /// Memory that hibernated sandboxes may hold together, MiB; beyond it the longest asleep keep
    /// only their disks. 0: half of the machine's.
    pub hibernated_memory_mb_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_mb_max: 16384,
            concurrent_sandboxes_max: 50,
            exec_output_bytes_max: 16 * 1024 * 1024,
            requests_per_sec: 0,
            upload_bytes_max: 2 * 1024 * 1024 * 1024,
            hibernated_memory_mb_max: 0,
        }
    }
}

/// How images are built.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Hosts that builds may reach; empty: any that sandboxes may.
    pub egress_allowlist: Vec<String>,
    /// Lines of apt's `sources.list`; empty: those of the host's distribution.
    pub apt_sources: String,
    /// Where pip finds packages; empty: its own default.
    pub pip_index_url: String,
    /// Images built at once.
    pub concurrent_builds_max: usize,
    /// Images without a name kept for each organization, those used last.
    pub cached_images_max: usize,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            egress_allowlist: Vec::new(),
            apt_sources: String::new(),
            pip_index_url: String::new(),
            concurrent_builds_max: 4,
            cached_images_max: 32,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EgressFile {
    allow_private: Vec<IpNet>,
    hosts: BTreeMap<String, IpAddr>,
    extra_roots: Vec<PathBuf>,
    inspect_all: bool,
    strict_tokens: bool,
    audit: AuditMode,
    tls: Vec<EgressTls>,
}

/// TLS with some hosts; the first entry whose pattern matches a host counts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressTls {
    /// Pattern of the hosts: a name, `*.` and a name, or `*`.
    pub hosts: String,
    /// Files with root certificates trusted for these hosts, PEM.
    #[serde(default)]
    pub extra_roots: Vec<PathBuf>,
    /// File with the client certificate shown to these hosts and its chain, PEM.
    pub client_certificate: Option<PathBuf>,
    /// File with its private key, PEM.
    pub client_key: Option<PathBuf>,
}

/// When the record of a request is durable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuditMode {
    /// Within a moment, with others in one write: no request waits for the disk.
    #[default]
    Batched,
    /// Before a secret leaves with it.
    Strict,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointsFile {
    dir: PathBuf,
    #[serde(default = "every_sec")]
    every_sec: u64,
    #[serde(default = "every_commits")]
    every_commits: u64,
}

fn every_sec() -> u64 {
    300
}

fn every_commits() -> u64 {
    10_000
}

/// Where signed checkpoints of the event log are written, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoints {
    /// The folder, best out of reach of whoever can change the log.
    pub dir: PathBuf,
    /// Longest time from a commit to the checkpoint that covers it.
    pub every: Duration,
    /// Most commits from one checkpoint to the next, as far as one look a second can tell.
    pub every_commits: u64,
}

/// Where the master key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MasterSource {
    /// A file with mode 0600, made on first start.
    File(PathBuf),
    /// The variable [`MASTER_KEY_VARIABLE`].
    Environment,
    /// The output of a program: its path and its arguments, run without a shell.
    Command(Vec<String>),
}

/// What the operator allows sandboxes to reach.
#[derive(Debug, Clone, Default)]
pub struct Egress {
    /// Private ranges that may be dialled.
    pub allow_private: Vec<IpNet>,
    /// Names with a fixed address, lower case.
    pub hosts: BTreeMap<String, IpAddr>,
    /// Files with extra root certificates, PEM.
    pub extra_roots: Vec<PathBuf>,
    /// Decrypt every TLS connection, not only those to hosts that may receive a secret.
    pub inspect_all: bool,
    /// Refuse a token sent to a host its secret isn't bound to, instead of passing it inert.
    pub strict_tokens: bool,
    /// What is different about TLS with some hosts.
    pub tls: Vec<EgressTls>,
    /// When the record of a request that carries a secret is durable.
    pub audit: AuditMode,
}

/// The server's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of everything the server keeps.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it serves metrics; `None`: nowhere.
    pub admin_listen: Option<SocketAddr>,
    /// Origin that clients use, without a trailing slash; `None`: the address listened on.
    pub public_url: Option<String>,
    /// Where the master key comes from.
    pub master_key: MasterSource,
    /// Where checkpoints go; `None`: none are written.
    pub checkpoints: Option<Checkpoints>,
    /// No credentials are asked for.
    pub no_auth: bool,
    /// Where new disks lie.
    pub disk_store: DiskStore,
    /// Limits.
    pub limits: Limits,
    /// Egress settings.
    pub egress: Egress,
    /// How images are built.
    pub images: Images,
    /// Logs as JSON lines.
    pub log_json: bool,
}

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration file {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file says something that is not understood.
    #[error("configuration file {path}: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with its line.
        message: String,
    },
    /// Keyless and reachable from elsewhere.
    #[error(
        "--no-auth with {0}: a server that asks for no key may only listen on a loopback address; \
         listen on 127.0.0.1 or drop --no-auth"
    )]
    OpenWithoutAuth(SocketAddr),
    /// Two masters.
    #[error(
        "the master key is given by {0} and by {1}: keep one of them (the file in the data folder \
         is used when none is given)"
    )]
    TwoMasterKeys(&'static str, &'static str),
    /// A setting of the checkpoints is of no use.
    #[error("`checkpoints.{0}` must be at least 1")]
    Checkpoints(&'static str),
    /// A folder that depends on where the server was started: elsewhere it would find no
    /// checkpoint, and take a log that was cut off for a whole one.
    #[error(
        "`checkpoints.dir` is {0}, which depends on where the server is started: give an absolute path"
    )]
    CheckpointsDir(PathBuf),
    /// No place for the data.
    #[error("no data folder: HOME is not set; pass --data-dir")]
    NoDataDir,
}

impl Config {
    /// Puts the sources together and checks what must hold between them.
    pub fn load(args: ServeArgs) -> Result<Self, ConfigError> {
        let data_dir = match args.data_dir {
            Some(dir) => dir,
            None => default_data_dir().ok_or(ConfigError::NoDataDir)?,
        };
        let data_dir = std::path::absolute(&data_dir).unwrap_or(data_dir);
        let file = match &args.config {
            Some(path) => read_file(path)?,
            None => match data_dir.join("oc.toml") {
                // A file that can't be looked at is not the same as none: it may hold limits.
                path if !matches!(path.try_exists(), Ok(false)) => read_file(&path)?,
                _ => File::default(),
            },
        };
        let mut egress = Egress {
            allow_private: file.egress.allow_private,
            hosts: file
                .egress
                .hosts
                .into_iter()
                .map(|(n, ip)| (n.to_ascii_lowercase(), ip))
                .collect(),
            extra_roots: file.egress.extra_roots,
            inspect_all: file.egress.inspect_all,
            strict_tokens: file.egress.strict_tokens,
            tls: file.egress.tls,
            audit: file.egress.audit,
        };
        egress.allow_private.extend(args.egress_allow_private);
        egress.hosts.extend(args.egress_host);
        egress.extra_roots.extend(args.egress_root);
        let listen = args.listen.or(file.listen).unwrap_or_else(|| {
            DEFAULT_LISTEN
                .parse()
                .expect("the default address is a constant that parses")
        });
        if args.no_auth && !listen.ip().is_loopback() {
            return Err(ConfigError::OpenWithoutAuth(listen));
        }
        let variable = has_master_variable();
        let key_file = args.master_key_file.or(file.master_key_file);
        Ok(Self {
            master_key: master_source(&data_dir, key_file, file.master_key_command, variable)?,
            checkpoints: file.checkpoints.map(checkpoints).transpose()?,
            data_dir,
            listen,
            admin_listen: args.admin_listen.or(file.admin_listen),
            public_url: args
                .public_url
                .or(file.public_url)
                .map(|url| url.trim_end_matches('/').to_owned()),
            no_auth: args.no_auth,
            disk_store: args.disk_store.unwrap_or(file.disks.store),
            limits: file.limits,
            egress,
            images: file.images,
            log_json: args.log_json,
        })
    }
}

/// Where a server on `data_dir` looks for its master key when only the configuration file `config`,
/// if there is one, says so; with `variable`, also when [`MASTER_KEY_VARIABLE`] is set.
pub fn configured_master(
    data_dir: &Path,
    config: &Path,
    variable: bool,
) -> Result<MasterSource, ConfigError> {
    let data_dir = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let file = match config.try_exists() {
        Ok(false) => File::default(),
        _ => read_file(config)?,
    };
    let variable = variable && has_master_variable();
    let (key_file, command) = (file.master_key_file, file.master_key_command);
    master_source(&data_dir, key_file, command, variable)
}

fn has_master_variable() -> bool {
    std::env::var_os(MASTER_KEY_VARIABLE).is_some_and(|key| !key.is_empty())
}

/// One source, or the file in the data folder. Two would leave open which of them is meant, and a
/// wrong guess would make a second key.
fn master_source(
    data_dir: &Path,
    file: Option<PathBuf>,
    command: Option<Vec<String>>,
    variable: bool,
) -> Result<MasterSource, ConfigError> {
    const FILE: &str = "a key file";
    const COMMAND: &str = "`master_key_command`";
    match (file, command, variable) {
        (None, None, false) => Ok(MasterSource::File(data_dir.join("master.key"))),
        (Some(file), None, false) => Ok(MasterSource::File(file)),
        (None, Some(command), false) => Ok(MasterSource::Command(command)),
        (None, None, true) => Ok(MasterSource::Environment),
        (Some(_), Some(_), _) => Err(ConfigError::TwoMasterKeys(FILE, COMMAND)),
        (Some(_), None, true) => Err(ConfigError::TwoMasterKeys(FILE, MASTER_KEY_VARIABLE)),
        (None, Some(_), true) => Err(ConfigError::TwoMasterKeys(COMMAND, MASTER_KEY_VARIABLE)),
    }
}

fn checkpoints(file: CheckpointsFile) -> Result<Checkpoints, ConfigError> {
    if file.every_sec == 0 {
        return Err(ConfigError::Checkpoints("every_sec"));
    }
    if file.every_commits == 0 {
        return Err(ConfigError::Checkpoints("every_commits"));
    }
    if !file.dir.is_absolute() {
        return Err(ConfigError::CheckpointsDir(file.dir));
    }
    Ok(Checkpoints {
        dir: file.dir,
        every: Duration::from_secs(file.every_sec),
        every_commits: file.every_commits,
    })
}

fn read_file(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        message: error.to_string(),
    })
}

/// `/var/lib/opencomputer` as root, else the user's own data folder; `None` without a `HOME`.
pub fn default_data_dir() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/opencomputer"));
    }
    let base = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")))?;
    Some(base.join("opencomputer"))
}

#[cfg(test)]
mod tests;
