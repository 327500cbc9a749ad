//! Image manifests (contract section 13): what a caller sends, checked and put in order.
//!
//! Everything is checked before anything exists. Variables keep the order they came in, since one of
//! the published clients hashes them in it.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::actors::aggregate::Reject;

/// Names of the template that is always there.
pub const BASE_NAMES: [&str; 4] = ["", "base", "default", "ubuntu"];
const STEPS_MAX: usize = 100;
const PACKAGES_MAX: usize = 500;
/// Longest name of a package, and longest path, in bytes.
const PACKAGE_BYTES_MAX: usize = 512;
const PATH_BYTES_MAX: usize = 4096;
/// Longest commands of one step together, in bytes: they are one argument of a shell.
const COMMANDS_BYTES_MAX: usize = 100 * 1024;
/// Variables of an image together, in bytes.
const VARS_BYTES_MAX: usize = 32 * 1024;
/// Largest manifest, in bytes of JSON.
pub const MANIFEST_BYTES_MAX: usize = 640 * 1024;

/// A manifest as it is sent.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestBody {
    base: Option<String>,
    steps: Option<Vec<StepBody>>,
    name: Option<String>,
    #[serde(rename = "builderMemoryMB")]
    builder_memory_mb: Option<i64>,
    #[serde(rename = "runtimeMemoryMB")]
    runtime_memory_mb: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct StepBody {
    #[serde(rename = "type")]
    kind: Option<String>,
    args: Option<ArgsBody>,
    // Some write the arguments beside the type.
    #[serde(flatten)]
    flat: ArgsBody,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ArgsBody {
    packages: Option<Vec<String>>,
    commands: Option<Vec<String>>,
    vars: Option<Vars>,
    path: Option<String>,
    content: Option<String>,
    encoding: Option<String>,
    files: Option<Vec<DirFile>>,
}

/// Variables in the order they came in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vars(pub Vec<(String, String)>);

impl<'de> Deserialize<'de> for Vars {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Vars;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vars, A::Error> {
                let mut all: Vec<(String, String)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, String>()? {
                    match all.iter_mut().find(|(known, _)| *known == name) {
                        Some(known) => known.1 = value,
                        None => all.push((name, value)),
                    }
                }
                Ok(Vars(all))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// A file of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirFile {
    /// Where, below the folder.
    pub relative_path: String,
    /// What, in base64.
    pub content: String,
}

/// A manifest that can be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The template, as it was given.
    pub base: String,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// Free label.
    pub name: Option<String>,
    /// Memory of the build, MiB.
    pub builder_memory_mb: Option<i64>,
    /// Memory of its sandboxes, MiB.
    pub runtime_memory_mb: Option<i64>,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Debian packages.
    AptInstall(Vec<String>),
    /// Python packages.
    PipInstall(Vec<String>),
    /// Shell commands, each only after the one before succeeded.
    Run(Vec<String>),
    /// Variables of every process.
    Env(Vars),
    /// Where processes start.
    Workdir(String),
    /// One file.
    AddFile {
        /// Where.
        path: String,
        /// What, as it was given.
        content: String,
        /// `base64`, or plain text.
        encoding: Option<String>,
    },
    /// Files below one folder.
    AddDir {
        /// The folder.
        path: String,
        /// What is in it.
        files: Vec<DirFile>,
    },
}

impl Step {
    /// Its type, as clients spell it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::AptInstall(_) => "apt_install",
            Self::PipInstall(_) => "pip_install",
            Self::Run(_) => "run",
            Self::Env(_) => "env",
            Self::Workdir(_) => "workdir",
            Self::AddFile { .. } => "add_file",
            Self::AddDir { .. } => "add_dir",
        }
    }
}

impl Manifest {
    /// Checks what was sent.
    ///
    /// # Errors
    /// [`Reject::Invalid`] that names the step, counted from 1.
    pub fn check(body: ManifestBody) -> Result<Self, Reject> {
        let steps = body.steps.unwrap_or_default();
        if steps.len() > STEPS_MAX {
            return Err(Reject::invalid(format!(
                "an image has at most {STEPS_MAX} steps"
            )));
        }
        let base = body.base.unwrap_or_else(|| "base".to_owned());
        let text_ok = |text: &str| text.len() <= 256 && !text.chars().any(char::is_control);
        if !text_ok(&base) || !body.name.as_deref().is_none_or(text_ok) {
            return Err(Reject::invalid(
                "image.base and image.name must be short, printable texts",
            ));
        }
        let mut checked = Vec::with_capacity(steps.len());
        for (number, step) in (1..).zip(steps) {
            let step = step
                .check()
                .map_err(|why| Reject::invalid(format!("image step {number}: {why}")))?;
            checked.push(step);
        }
        let manifest = Self {
            base,
            steps: checked,
            name: body.name,
            builder_memory_mb: body.builder_memory_mb.filter(|mb| *mb > 0),
            runtime_memory_mb: body.runtime_memory_mb.filter(|mb| *mb > 0),
        };
        let vars: usize = manifest.steps.iter().map(vars_bytes).sum();
        if vars > VARS_BYTES_MAX {
            return Err(Reject::invalid(format!(
                "variables of an image must not exceed {VARS_BYTES_MAX} bytes together"
            )));
        }
        if manifest.to_json().len() > MANIFEST_BYTES_MAX {
            return Err(Reject::invalid(format!(
                "an image manifest must not exceed {MANIFEST_BYTES_MAX} bytes of JSON; fetch large \
                 files in a `run` step instead"
            )));
        }
        Ok(manifest)
    }
}

fn vars_bytes(step: &Step) -> usize {
    match step {
        Step::Env(Vars(vars)) => vars
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum(),
        _ => 0,
    }
}

impl StepBody {
    fn check(self) -> Result<Step, String> {
        let kind = self.kind.unwrap_or_default();
        // What stands under `args` counts, and what stands beside the type where nothing does.
        let args = self.args.unwrap_or(self.flat);
        Ok(match kind.as_str() {
            "apt_install" => Step::AptInstall(packages(args.packages)?),
            "pip_install" => Step::PipInstall(packages(args.packages)?),
            "run" => Step::Run(commands(args.commands)?),
            "env" => Step::Env(vars(args.vars)?),
            "workdir" => Step::Workdir(absolute(args.path)?),
            "add_file" => {
                let path = absolute(args.path)?;
                let content = args.content.ok_or("content is required")?;
                let encoding = args.encoding.filter(|encoding| !encoding.is_empty());
                file_bytes(&content, encoding.as_deref())?;
                Step::AddFile {
                    path,
                    content,
                    encoding,
                }
            }
            "add_dir" => {
                let path = absolute(args.path)?;
                let files = args.files.ok_or("files is required")?;
                for file in &files {
                    relative(&file.relative_path)?;
                    file_bytes(&file.content, Some("base64"))?;
                }
                Step::AddDir { path, files }
            }
            "" => return Err("type is required".to_owned()),
            other => {
                let shown: String = other.chars().filter(|c| !c.is_control()).take(64).collect();
                return Err(format!("unknown type {shown}"));
            }
        })
    }
}

/// The bytes of a file's content.
///
/// # Errors
/// Another encoding, or content that is none.
pub fn file_bytes(content: &str, encoding: Option<&str>) -> Result<Vec<u8>, String> {
    match encoding {
        None | Some("utf-8" | "utf8" | "text" | "plain") => Ok(content.as_bytes().to_vec()),
        Some("base64") => BASE64_STANDARD
            .decode(content)
            .map_err(|_| "content is not base64".to_owned()),
        Some(_) => Err("encoding must be base64".to_owned()),
    }
}

fn packages(given: Option<Vec<String>>) -> Result<Vec<String>, String> {
    let given = given.ok_or("packages is required")?;
    let bad = |one: &String| {
        one.trim().is_empty() || one.len() > PACKAGE_BYTES_MAX || one.chars().any(char::is_control)
    };
    if given.is_empty() || given.len() > PACKAGES_MAX || given.iter().any(bad) {
        return Err(format!(
            "packages must be 1 to {PACKAGES_MAX} names of at most {PACKAGE_BYTES_MAX} bytes"
        ));
    }
    Ok(given)
}

fn commands(given: Option<Vec<String>>) -> Result<Vec<String>, String> {
    let given = given.ok_or("commands is required")?;
    let bytes: usize = given.iter().map(|one| one.len() + 4).sum();
    if given.is_empty()
        || given
            .iter()
            .any(|one| one.trim().is_empty() || one.contains('\0'))
    {
        return Err("commands must be texts that are not empty and hold no NUL".to_owned());
    }
    if bytes > COMMANDS_BYTES_MAX {
        return Err(format!(
            "commands must not exceed {COMMANDS_BYTES_MAX} bytes"
        ));
    }
    Ok(given)
}

fn vars(given: Option<Vars>) -> Result<Vars, String> {
    let given = given.ok_or("vars is required")?;
    for (name, value) in &given.0 {
        let head = name
            .chars()
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        let tail = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !head || !tail {
            return Err("vars: names must be letters, digits and _".to_owned());
        }
        if value.contains('\0') {
            return Err(format!("vars: {name} must not hold NUL"));
        }
    }
    Ok(given)
}

fn absolute(given: Option<String>) -> Result<String, String> {
    let path = given.ok_or("path is required")?;
    let up = path.split('/').any(|part| part == "..");
    if !path.starts_with('/') || path.contains('\0') || up || path.len() > PATH_BYTES_MAX {
        return Err("path must be absolute, without NUL or `..`".to_owned());
    }
    Ok(path)
}

fn relative(path: &str) -> Result<(), String> {
    let up = path.split('/').any(|part| part == "..");
    if path.is_empty() || path.starts_with('/') || path.contains('\0') || up {
        return Err("relativePath must be relative, without NUL or `..`".to_owned());
    }
    Ok(())
}
