//! The `base` template: a root file system that needs no download.
//!
//! The programs are the host's own `/usr`, shared read-only; around it stands a small synthesised
//! tree. Invariants: nothing is copied from the host but the world-readable files named in
//! [`ETC_FILES`] and [`ETC_TREES`]; nothing of `/root`, `/home`, `/var`, `/opt` or the rest of
//! `/etc` is visible inside. A finished template is named after the hash of its content and never
//! changed again, since running sandboxes have it mounted.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::java;
use super::net::NAME_SERVER;

/// User id of the user `sandbox`.
pub const SANDBOX_UID: u32 = 1000;
/// Where the public roots and the sandbox's own are trusted without any variable set.
pub const SYSTEM_BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
/// Where the host keeps the public roots, most common first.
const HOST_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Files of the host's `/etc` that programs need and that hold nothing private.
const ETC_FILES: &[&str] = &[
    "debian_version",
    "ethertypes",
    "gai.conf",
    "host.conf",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "locale.alias",
    "localtime",
    "magic",
    "mime.types",
    "networks",
    "os-release",
    "profile",
    "protocols",
    "rpc",
    "services",
    "shells",
    "ssl/openssl.cnf",
    "timezone",
    "xattr.conf",
];
/// Put at the end of the host's settings of interactive shells. A terminal's shell is told its size in
/// variables too, and bash keeps these up to date; handed on, they would be what the programs it runs
/// believe, who then follow no resize.
const BASH_SETTINGS: &str = "\nexport -n COLUMNS LINES\n";
/// Folders of the host's `/etc`, likewise.
const ETC_TREES: &[&str] = &["alternatives", "fonts", "ld.so.conf.d", "perl", "terminfo"];
/// What the folders of `/etc` begin with in which Debian keeps the settings of each Java.
const JAVA_SETTINGS: &str = "java-";
/// Where Debian's Java keeps its roots.
const JAVA_CERTIFICATES: &str = "etc/ssl/certs/java";
/// Kept beside the trees.
const JAVA_ROOTS: &str = "java-roots";
/// Largest file copied, in bytes, and most files of one folder.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
const TREE_FILES_MAX: usize = 4096;
/// Deepest folder copied.
const TREE_DEPTH_MAX: u32 = 8;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
    sandbox:x:1000:1000:sandbox:/home/sandbox:/bin/bash\n";
const GROUP: &str = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\nsandbox:x:1000:\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n\
    networks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\n";

/// A finished template.
#[derive(Debug, Clone)]
pub struct Template {
    /// The synthesised tree: the lower layer of `/`.
    pub root: PathBuf,
    /// What is laid over the host's `/usr`.
    pub usr: PathBuf,
    /// The public roots, in PEM.
    pub bundle: PathBuf,
    /// A folder with the guest program alone, named [`GUEST_FILE`].
    pub program: PathBuf,
    /// The public roots once more, as Java's trust stores begin; only where the host has Java.
    pub java_roots: PathBuf,
    /// An empty folder.
    pub empty: PathBuf,
}

/// The static program that becomes PID 1 of each sandbox.
static GUEST: &[u8] = include_bytes!(env!("OC_GUEST_BINARY"));

enum Node {
    Dir { mode: u32, owner: u32 },
    File { mode: u32, bytes: Vec<u8> },
    Link(String),
}

/// Paths (relative) and what stands there, parents before children.
#[derive(Default)]
struct Plan(Vec<(String, Node)>);

impl Template {
    /// Makes the template below `base`, or finds the same one made earlier. `privileged`: root
    /// and the user `sandbox` are two owners; else all is this process' user's.
    pub fn ensure(base: &Path, privileged: bool) -> io::Result<Self> {
        let plan = Plan::collect()?;
        let name = plan.name(privileged);
        let finished = base.join(&name);
        if !finished.exists() {
            let draft = base.join(format!(".draft-{}-{name}", std::process::id()));
            plan.write(&draft, privileged)?;
            match fs::rename(&draft, &finished) {
                // Another server of this folder was faster with the same content.
                Err(_) if finished.exists() => fs::remove_dir_all(&draft)?,
                other => other?,
            }
        }
        Ok(Self::at(&finished))
    }

    /// Where [`ensure`](Self::ensure) would make or find it now.
    pub fn present(base: &Path, privileged: bool) -> io::Result<PathBuf> {
        Ok(base.join(Plan::collect()?.name(privileged)))
    }

    /// The template in folder `dir`.
    pub fn at(dir: &Path) -> Self {
        Self {
            root: dir.join("root"),
            usr: dir.join("usr"),
            bundle: dir.join("root").join(SYSTEM_BUNDLE),
            program: dir.join("program"),
            java_roots: dir.join(JAVA_ROOTS),
            empty: dir.join("empty"),
        }
    }

    /// Whether the host has Java, whose trust store is then made for each sandbox.
    pub fn has_java(&self) -> bool {
        self.root.join(JAVA_CERTIFICATES).is_dir()
    }
}

impl Plan {
    fn collect() -> io::Result<Self> {
        let mut plan = Self::default();
        plan.skeleton()?;
        plan.etc()?;
        plan.usr();
        Ok(plan)
    }

    /// What a template of this content is called.
    fn name(&self, privileged: bool) -> String {
        let mut hash = Sha256::new();
        self.digest(&mut hash);
        hash.update(GUEST);
        hash.update([u8::from(privileged)]);
        hex::encode(hash.finalize()).chars().take(32).collect()
    }

    fn dir(&mut self, path: &str, mode: u32, owner: u32) {
        self.0.push((path.to_owned(), Node::Dir { mode, owner }));
    }

    fn file(&mut self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.0.push((
            path.to_owned(),
            Node::File {
                mode: 0o644,
                bytes: bytes.into(),
            },
        ));
    }

    fn link(&mut self, path: &str, target: &str) {
        self.0
            .push((path.to_owned(), Node::Link(target.to_owned())));
    }

    fn skeleton(&mut self) -> io::Result<()> {
        self.dir("root", 0o755, 0);
        for dir in [
            "dev", "etc", "home", "media", "mnt", "opt", "proc", "run", "srv", "sys", "usr",
        ] {
            self.dir(&format!("root/{dir}"), 0o755, 0);
        }
        self.dir("root/root", 0o700, 0);
        self.dir("root/tmp", 0o1777, 0);
        for dir in ["var", "var/cache", "var/lib", "var/log", "var/spool"] {
            self.dir(&format!("root/{dir}"), 0o755, 0);
        }
        self.dir("root/var/tmp", 0o1777, 0);
        self.link("root/var/run", "/run");
        self.link("root/var/lock", "/run/lock");
        self.dir("root/home/sandbox", 0o755, SANDBOX_UID);
        self.dir("root/workspace", 0o755, SANDBOX_UID);
        for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            match fs::read_link(Path::new("/").join(name)) {
                Ok(target) => self.link(&format!("root/{name}"), &target.to_string_lossy()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(_) => {
                    let what = format!(
                        "/{name} is not a link into /usr: this host keeps programs \
                         outside of /usr, so the base template can't be made from it"
                    );
                    return Err(io::Error::new(io::ErrorKind::Unsupported, what));
                }
            }
        }
        Ok(())
    }

    fn etc(&mut self) -> io::Result<()> {
        self.file("root/etc/passwd", PASSWD);
        self.file("root/etc/group", GROUP);
        self.file("root/etc/nsswitch.conf", NSSWITCH);
        self.file(
            "root/etc/resolv.conf",
            format!("nameserver {NAME_SERVER}\n"),
        );
        self.link("root/etc/mtab", "/proc/self/mounts");
        self.dir("root/etc/ssl", 0o755, 0);
        self.dir("root/etc/ssl/certs", 0o755, 0);
        for file in ETC_FILES {
            self.copy(&Path::new("/etc").join(file), &format!("root/etc/{file}"));
        }
        let bash = read_public(Path::new("/etc/bash.bashrc")).unwrap_or_default();
        let bash = [bash.as_slice(), BASH_SETTINGS.as_bytes()].concat();
        self.file("root/etc/bash.bashrc", bash);
        for tree in ETC_TREES {
            self.copy_tree(
                &Path::new("/etc").join(tree),
                &format!("root/etc/{tree}"),
                0,
            );
        }
        let bundle = HOST_BUNDLES
            .iter()
            .find_map(|path| read_public(Path::new(path)))
            .unwrap_or_default();
        if self.java() {
            self.file(JAVA_ROOTS, java::entries(&bundle));
        }
        self.file(&format!("root/{SYSTEM_BUNDLE}"), bundle);
        Ok(())
    }

    /// Settings of every Java of the host, without which it does not start; whether it has any.
    fn java(&mut self) -> bool {
        let entries = fs::read_dir("/etc").into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(JAVA_SETTINGS))
            .collect();
        names.sort();
        for name in &names {
            self.copy_tree(
                &Path::new("/etc").join(name),
                &format!("root/etc/{name}"),
                0,
            );
        }
        if !names.is_empty() {
            self.dir(&format!("root/{JAVA_CERTIFICATES}"), 0o755, 0);
        }
        !names.is_empty()
    }

    /// Small additions to `/usr`.
    fn usr(&mut self) {
        for dir in [
            "usr",
            "usr/lib",
            "usr/lib/ssl",
            "usr/local",
            "usr/local/bin",
            "usr/local/share",
        ] {
            self.dir(dir, 0o755, 0);
        }
        self.dir("usr/local/share/ca-certificates", 0o755, 0);
        // OpenSSL's default file: with it Python and others trust the bundle with no variable.
        self.link("usr/lib/ssl/cert.pem", &format!("/{SYSTEM_BUNDLE}"));
        // A set-uid sudo can't work under no_new_privs; the guest stands in for it.
        self.link("usr/local/bin/sudo", GUEST_INSIDE);
    }

    fn copy(&mut self, from: &Path, to: &str) {
        if let Some(bytes) = read_public(from) {
            self.file(to, bytes);
        }
    }

    fn copy_tree(&mut self, from: &Path, to: &str, depth: u32) {
        let Ok(entries) = fs::read_dir(from) else {
            return;
        };
        self.dir(to, 0o755, 0);
        let mut entries: Vec<_> = entries.flatten().take(TREE_FILES_MAX).collect();
        // Sorted, so that equal content has an equal hash.
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let (path, to) = (entry.path(), format!("{to}/{name}"));
            match entry.file_type() {
                Ok(kind) if kind.is_symlink() => {
                    if let Ok(target) = fs::read_link(&path) {
                        self.link(&to, &target.to_string_lossy());
                    }
                }
                Ok(kind) if kind.is_dir() && depth < TREE_DEPTH_MAX => {
                    self.copy_tree(&path, &to, depth + 1);
                }
                Ok(kind) if kind.is_file() => self.copy(&path, &to),
                _ => {}
            }
        }
    }

    fn digest(&self, hash: &mut Sha256) {
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for (path, node) in &self.0 {
            field(path.as_bytes());
            match node {
                Node::Dir { mode, owner } => field(format!("d{mode}:{owner}").as_bytes()),
                Node::File { mode, bytes } => {
                    field(format!("f{mode}").as_bytes());
                    field(bytes);
                }
                Node::Link(target) => field(format!("l{target}").as_bytes()),
            }
        }
    }

    fn write(&self, draft: &Path, privileged: bool) -> io::Result<()> {
        let _ = fs::remove_dir_all(draft);
        fs::create_dir_all(draft)?;
        for (path, node) in &self.0 {
            let path = draft.join(path);
            match node {
                Node::Dir { mode, owner } => {
                    fs::create_dir(&path)?;
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
                    if privileged {
                        chown(&path, Some(*owner), Some(*owner))?;
                    }
                }
                Node::File { mode, bytes } => {
                    fs::write(&path, bytes)?;
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode))?;
                }
                Node::Link(target) => symlink(target, &path)?,
            }
        }
        let made = Template::at(draft);
        fs::create_dir(&made.empty)?;
        fs::create_dir(&made.program)?;
        let guest = made.program.join(GUEST_FILE);
        fs::write(&guest, GUEST)?;
        fs::set_permissions(&guest, fs::Permissions::from_mode(0o755))
    }
}

/// Name of the guest program in its folder.
pub const GUEST_FILE: &str = "oc-guest";
/// Where the guest program is found inside.
pub const GUEST_INSIDE: &str = "/run/oc/guest";

/// The content of a regular file that everybody may read and that is not too large.
fn read_public(path: &Path) -> Option<Vec<u8>> {
    let file = fs::File::open(path).ok()?;
    let meta = file.metadata().ok()?;
    let public = meta.permissions().mode() & 0o004 != 0;
    if !meta.is_file() || !public || meta.len() > FILE_BYTES_MAX {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the template is the same on every call, holds what programs need and nothing that
    /// everybody on the host could not read.
    #[test]
    fn the_template_is_cached_and_holds_nothing_private() {
        let base = tempfile::tempdir().unwrap();
        let privileged = rustix::process::geteuid().is_root();
        let first = Template::ensure(base.path(), privileged).unwrap();
        let second = Template::ensure(base.path(), privileged).unwrap();
        assert_eq!(first.root, second.root);
        assert_eq!(
            fs::read_dir(base.path()).unwrap().count(),
            1,
            "no draft is left"
        );
        assert!(fs::metadata(first.program.join(GUEST_FILE)).unwrap().len() > 0);
        assert!(
            fs::read_to_string(&first.bundle)
                .unwrap()
                .contains("BEGIN CERTIFICATE")
        );
        for absent in [
            "etc/shadow",
            "etc/ssl/private",
            "etc/environment",
            "etc/gitconfig",
        ] {
            assert!(!first.root.join(absent).exists(), "{absent}");
        }
        assert_eq!(fs::read_dir(first.root.join("root")).unwrap().count(), 0);
    }

    #[test]
    fn private_files_and_devices_are_not_copied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("private");
        fs::write(&path, "x").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(read_public(&path), None);
        assert_eq!(read_public(Path::new("/dev/zero")), None);
    }
}
