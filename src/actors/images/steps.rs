//! Carrying out one step of an image in the sandbox that builds it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;

use super::defaults::ImageDefaults;
use super::manifest::{Step, file_bytes};
use super::output::Lines;
use crate::actors::exec::new_session_id;
use crate::actors::live::LiveSandbox;
use crate::config::Images;
use crate::sandbox::{GuestError, SessionOutput, StartSession, host_packages};

/// Longest one step may take.
pub(super) const STEP_TIME_MAX: Duration = Duration::from_secs(300);
/// Longest a small command of our own may take.
const SMALL_TIME_MAX: Duration = Duration::from_secs(60);
const HOME: &str = "/home/sandbox";
/// Where the list of the host's packages lies for a moment.
const PACKAGES_FILE: &str = "/var/tmp/.oc-packages.tar";

/// Puts the arguments behind the script's name at apt's disposal; the lists and archives it fetched
/// are gone after.
const APT: &str = r#"set -e
opts="-o Acquire::Languages=none -o Acquire::Retries=2 -o APT::Sandbox::User=root -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
mkdir -p /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/log/apt
apt-get $opts update
apt-get $opts install -y -- "$@"
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /var/cache/apt/*.bin"#;

/// The base template is the host's programs: their packages are made known to apt, and where it finds
/// others. Services are not started while packages are installed.
const APT_READY: &str = r#"set -e
tar -C / -xf "$1"
rm -f "$1"
rm -f /var/lib/dpkg/lock /var/lib/dpkg/lock-frontend
mkdir -p /etc/apt/apt.conf.d /etc/apt/sources.list.d /etc/apt/preferences.d /etc/apt/trusted.gpg.d
[ -e /etc/apt/sources.list ] || printf '%s\n' "$2" > /etc/apt/sources.list
[ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; }"#;

const PIP: &str = r#"python3 -m pip install -- "$@""#;
const HAS_PIP: &str = "python3 -m pip --version";

/// Runs what stands in the first argument in bash, where there is one.
const RUN: &str =
    r#"if command -v bash >/dev/null 2>&1; then exec bash -c "$1"; else exec sh -c "$1"; fi"#;

const ENV: &str = r#"set -e
touch /etc/environment
grep -v -E "^($3)=" /etc/environment > /etc/.environment.oc || true
printf '%s' "$1" >> /etc/.environment.oc
chmod 644 /etc/.environment.oc
mv /etc/.environment.oc /etc/environment
mkdir -p /etc/profile.d
printf '%s' "$2" > /etc/profile.d/oc-image.sh
chmod 644 /etc/profile.d/oc-image.sh"#;

const WORKDIR: &str = r#"set -e
[ -d "$1" ] || { mkdir -p -- "$1"; chown 1000:1000 -- "$1"; }"#;

const OWN: &str = r#"chown 1000:1000 -- "$@""#;

/// The sandbox that builds, and what the image says so far.
pub(super) struct Bench<'a> {
    pub live: &'a Arc<LiveSandbox>,
    /// What the steps before this one add up to.
    pub before: &'a ImageDefaults,
    /// The same with this one.
    pub after: &'a ImageDefaults,
    pub settings: &'a Images,
}

/// One command of a step.
struct Task {
    argv: Vec<String>,
    as_root: bool,
    env: BTreeMap<String, String>,
    cwd: String,
    limit: Duration,
}

impl Bench<'_> {
    /// Carries the step out; what it prints goes to `say`, line by line.
    ///
    /// # Errors
    /// Why it failed, with the end of what it printed.
    pub async fn carry_out(
        &self,
        step: &Step,
        say: &(dyn Fn(String) + Sync),
    ) -> Result<(), String> {
        match step {
            Step::AptInstall(packages) => {
                self.ready_apt(say).await?;
                let task = self.root_script(APT, words(packages), STEP_TIME_MAX);
                self.run(task, say).await
            }
            Step::PipInstall(packages) => {
                self.ready_pip(say).await?;
                let task = self.root_script(PIP, words(packages), STEP_TIME_MAX);
                self.run(task, say).await
            }
            Step::Run(commands) => {
                let line = commands.join(" && ");
                let argv = ["sh", "-c", RUN, "sh"].map(str::to_owned);
                let task = Task {
                    argv: argv.into_iter().chain([line]).collect(),
                    as_root: false,
                    env: self.live.environment(&self.before.env),
                    cwd: self
                        .before
                        .workdir
                        .clone()
                        .unwrap_or_else(|| HOME.to_owned()),
                    limit: STEP_TIME_MAX,
                };
                self.run(task, say).await
            }
            Step::Env(_) => {
                let names: Vec<_> = self.after.env.keys().cloned().collect();
                let args = vec![
                    self.after.environment_file(),
                    self.after.profile(),
                    names.join("|"),
                ];
                self.run(self.root_script(ENV, args, SMALL_TIME_MAX), say)
                    .await
            }
            Step::Workdir(path) => {
                let args = vec![path.clone()];
                self.run(self.root_script(WORKDIR, args, SMALL_TIME_MAX), say)
                    .await
            }
            Step::AddFile {
                path,
                content,
                encoding,
            } => {
                self.write(path, file_bytes(content, encoding.as_deref())?)
                    .await?;
                self.own(vec![path.clone()], say).await
            }
            Step::AddDir { path, files } => {
                self.live.guest.make_dir(path).await.map_err(told)?;
                let mut written = Vec::with_capacity(files.len());
                for file in files {
                    let to = format!("{}/{}", path.trim_end_matches('/'), file.relative_path);
                    self.write(&to, file_bytes(&file.content, Some("base64"))?)
                        .await?;
                    written.push(to);
                }
                // A command's arguments are bounded.
                for some in written.chunks(200) {
                    self.own(some.to_vec(), say).await?;
                }
                Ok(())
            }
        }
    }

    async fn write(&self, path: &str, bytes: Vec<u8>) -> Result<(), String> {
        let whole = stream::iter([Ok::<_, std::convert::Infallible>(Bytes::from(bytes))]);
        let written = self.live.guest.write_file(path, whole).await;
        written.map(drop).map_err(told)
    }

    async fn own(&self, paths: Vec<String>, say: &(dyn Fn(String) + Sync)) -> Result<(), String> {
        self.run(self.root_script(OWN, paths, SMALL_TIME_MAX), say)
            .await
    }

    /// Makes the base template's programs known to apt, once in the life of a disk.
    async fn ready_apt(&self, say: &(dyn Fn(String) + Sync)) -> Result<(), String> {
        let known = self.root_script("test -e /var/lib/dpkg/status", vec![], SMALL_TIME_MAX);
        if self.run(known, &|_| {}).await.is_ok() {
            return Ok(());
        }
        say("making the base's packages known to apt".to_owned());
        let packages = tokio::task::spawn_blocking(host_packages::database).await;
        let packages = packages.map_err(|error| error.to_string())?;
        let packages = packages.map_err(|error| format!("the base has no apt: {error}"))?;
        self.write(PACKAGES_FILE, packages).await?;
        let sources = match self.settings.apt_sources.trim() {
            "" => host_packages::sources().unwrap_or_default(),
            set => set.to_owned(),
        };
        let args = vec![PACKAGES_FILE.to_owned(), sources];
        self.run(self.root_script(APT_READY, args, SMALL_TIME_MAX), say)
            .await
    }

    /// Debian's Python comes without pip.
    async fn ready_pip(&self, say: &(dyn Fn(String) + Sync)) -> Result<(), String> {
        let known = self.root_script(HAS_PIP, vec![], SMALL_TIME_MAX);
        if self.run(known, &|_| {}).await.is_ok() {
            return Ok(());
        }
        say("the base has no pip, installing it".to_owned());
        self.ready_apt(say).await?;
        let pip = vec!["python3-pip".to_owned()];
        self.run(self.root_script(APT, pip, STEP_TIME_MAX), say)
            .await
    }

    /// A script of ours, as root, with `args` as `$1` and so on.
    fn root_script(&self, script: &str, args: Vec<String>, limit: Duration) -> Task {
        let argv = ["sh", "-c", script, "sh"].map(str::to_owned);
        let mut env = self.live.environment(&self.before.env);
        let mut set = |name: &str, value: &str| drop(env.insert(name.to_owned(), value.to_owned()));
        for (name, value) in [
            ("HOME", "/root"),
            ("USER", "root"),
            ("LOGNAME", "root"),
            ("DEBIAN_FRONTEND", "noninteractive"),
            ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
            ("PIP_ROOT_USER_ACTION", "ignore"),
            ("PIP_NO_CACHE_DIR", "1"),
            ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
            ("PIP_NO_INPUT", "1"),
        ] {
            set(name, value);
        }
        let index = self.settings.pip_index_url.trim();
        if !index.is_empty() {
            set("PIP_INDEX_URL", index);
            // Without TLS there is nothing to verify.
            if let Some(rest) = index.strip_prefix("http://") {
                let host = rest.split(['/', '?']).next().unwrap_or_default();
                set("PIP_TRUSTED_HOST", host);
            }
        }
        Task {
            argv: argv.into_iter().chain(args).collect(),
            as_root: true,
            env,
            cwd: "/".to_owned(),
            limit,
        }
    }

    async fn run(&self, task: Task, say: &(dyn Fn(String) + Sync)) -> Result<(), String> {
        let mut argv = task.argv.into_iter();
        let session = StartSession {
            session_id: new_session_id(),
            cmd: argv.next().unwrap_or_default(),
            args: argv.collect(),
            direct: true,
            env: task.env,
            cwd: task.cwd,
            timeout: Some(task.limit),
            as_root: task.as_root,
            stdin_closed: true,
            ..StartSession::default()
        };
        let mut lines = Lines::new(say);
        let mut ended = None;
        let ran = self.live.guest.run_with(session, |output| match output {
            SessionOutput::Stdout(bytes) => lines.take(0, &bytes),
            SessionOutput::Stderr(bytes) => lines.take(1, &bytes),
            SessionOutput::ReplayEnd | SessionOutput::Position(_) => {}
            SessionOutput::Exit {
                code, timed_out, ..
            } => ended = Some((code, timed_out)),
        });
        ran.await.map_err(told)?;
        let tail = lines.finish();
        let tail = if tail.is_empty() {
            tail
        } else {
            format!(": {tail}")
        };
        match ended {
            Some((0, false)) => Ok(()),
            Some((_, true)) => Err(format!(
                "did not end within {} s{tail}",
                task.limit.as_secs()
            )),
            Some((code, false)) => Err(format!("failed with exit code {code}{tail}")),
            None => Err("was cut off: the sandbox that builds it went away".to_owned()),
        }
    }
}

fn told(error: GuestError) -> String {
    format!("could not be run: {error}")
}

/// Names of packages; some write several in one text.
fn words(packages: &[String]) -> Vec<String> {
    let words = packages.iter().flat_map(|one| one.split_whitespace());
    words.map(str::to_owned).collect()
}
