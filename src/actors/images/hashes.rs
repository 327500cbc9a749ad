//! What stands for a manifest: its JSON, the server's content hash, the keys of its steps, and the
//! cache keys that the published clients compute (contract section 13.1).
//!
//! Each producer hashes its own spelling of the same JSON, so there is one tree and one writer with
//! three spellings. Nothing compares a client's key with the server's hash.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::manifest::{BASE_NAMES, Manifest, Step, Vars};

/// How JSON is spelt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// Members in the order they came, text as it is (JavaScript's `JSON.stringify`).
    AsGiven,
    /// Members sorted, nothing but ASCII (Python's `json.dumps` with `sort_keys`).
    SortedAscii,
    /// Members below `args` sorted, `<`, `>` and `&` escaped (Go's `json.Marshal`).
    Server,
}

/// A JSON value whose members have an order.
enum Node<'a> {
    Text(&'a str),
    Number(i64),
    List(Vec<Node<'a>>),
    /// A structure of the server's, which writes its members in its own order.
    Struct(Vec<(&'a str, Node<'a>)>),
    Map(Vec<(&'a str, Node<'a>)>),
}

impl Step {
    fn node(&self) -> Node<'_> {
        let args = match self {
            Self::AptInstall(packages) | Self::PipInstall(packages) => {
                vec![("packages", texts(packages))]
            }
            Self::Run(commands) => vec![("commands", texts(commands))],
            Self::Env(Vars(vars)) => {
                let vars = vars.iter();
                let members = vars.map(|(name, value)| (name.as_str(), Node::Text(value)));
                vec![("vars", Node::Map(members.collect()))]
            }
            Self::Workdir(path) => vec![("path", Node::Text(path))],
            Self::AddFile {
                path,
                content,
                encoding,
            } => {
                let mut args = vec![("path", Node::Text(path)), ("content", Node::Text(content))];
                args.extend(encoding.iter().map(|one| ("encoding", Node::Text(one))));
                args
            }
            Self::AddDir { path, files } => {
                let files = files.iter().map(|file| {
                    Node::Map(vec![
                        ("relativePath", Node::Text(&file.relative_path)),
                        ("content", Node::Text(&file.content)),
                    ])
                });
                vec![
                    ("path", Node::Text(path)),
                    ("files", Node::List(files.collect())),
                ]
            }
        };
        Node::Struct(vec![
            ("type", Node::Text(self.kind())),
            ("args", Node::Map(args)),
        ])
    }
}

fn texts(all: &[String]) -> Node<'_> {
    Node::List(all.iter().map(|one| Node::Text(one)).collect())
}

impl Manifest {
    fn content(&self) -> Vec<(&'static str, Node<'_>)> {
        let steps = self.steps.iter().map(Step::node).collect();
        vec![
            ("base", Node::Text(&self.base)),
            ("steps", Node::List(steps)),
        ]
    }

    /// The manifest as JSON, members in the order they came.
    pub fn to_json(&self) -> String {
        let mut members = self.content();
        members.extend(self.name.iter().map(|name| ("name", Node::Text(name))));
        for (name, mb) in [
            ("builderMemoryMB", self.builder_memory_mb),
            ("runtimeMemoryMB", self.runtime_memory_mb),
        ] {
            members.extend(mb.map(|mb| (name, Node::Number(mb))));
        }
        Node::Struct(members).spelt(Spelling::AsGiven)
    }

    /// The server's hash: equal for equal base and steps, whatever name and sizes.
    pub fn content_hash(&self) -> String {
        sha256(&Node::Struct(self.content()).spelt(Spelling::Server))
    }

    /// What the published clients compute for it: TypeScript, then Python. (Python 0.5.2 hashes the
    /// whole manifest, in which it has nothing but base and steps.)
    pub fn client_cache_keys(&self) -> [String; 2] {
        [Spelling::AsGiven, Spelling::SortedAscii]
            .map(|spelling| sha256(&Node::Struct(self.content()).spelt(spelling)))
    }

    /// For each step, what its result depends on: the base and the steps up to it. Without any step,
    /// what the bare base depends on.
    pub fn layer_keys(&self) -> Vec<String> {
        let base = match BASE_NAMES.contains(&self.base.as_str()) {
            true => "base",
            false => &self.base,
        };
        let mut key = sha256(&format!("layer-1\n{base}"));
        if self.steps.is_empty() {
            return vec![key];
        }
        let keys = self.steps.iter().map(|step| {
            key = sha256(&format!("{key}\n{}", step.node().spelt(Spelling::Server)));
            key.clone()
        });
        keys.collect()
    }
}

fn sha256(text: &str) -> String {
    hex::encode(Sha256::digest(text))
}

impl Node<'_> {
    fn spelt(&self, spelling: Spelling) -> String {
        let mut text = String::new();
        self.write(&mut text, spelling);
        text
    }

    fn write(&self, out: &mut String, spelling: Spelling) {
        match self {
            Self::Text(text) => write_text(out, text, spelling),
            Self::Number(number) => {
                // A `String` takes everything.
                let _ = write!(out, "{number}");
            }
            Self::List(items) => {
                out.push('[');
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    item.write(out, spelling);
                }
                out.push(']');
            }
            Self::Struct(members) => {
                write_members(out, members, spelling, spelling == Spelling::SortedAscii);
            }
            Self::Map(members) => {
                write_members(out, members, spelling, spelling != Spelling::AsGiven);
            }
        }
    }
}

fn write_members(out: &mut String, members: &[(&str, Node<'_>)], spelling: Spelling, sorted: bool) {
    let mut members: Vec<_> = members.iter().collect();
    if sorted {
        members.sort_by_key(|(name, _)| *name);
    }
    out.push('{');
    for (at, (name, value)) in members.into_iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        write_text(out, name, spelling);
        out.push(':');
        value.write(out, spelling);
    }
    out.push('}');
}

fn write_text(out: &mut String, text: &str, spelling: Spelling) {
    out.push('"');
    for c in text.chars() {
        let escape = match (c, spelling) {
            ('"', _) => Some("\\\""),
            ('\\', _) => Some("\\\\"),
            ('\n', _) => Some("\\n"),
            ('\r', _) => Some("\\r"),
            ('\t', _) => Some("\\t"),
            ('\u{8}', _) => Some("\\b"),
            ('\u{c}', _) => Some("\\f"),
            ('<', Spelling::Server) => Some("\\u003c"),
            ('>', Spelling::Server) => Some("\\u003e"),
            ('&', Spelling::Server) => Some("\\u0026"),
            _ => None,
        };
        let hidden = c < ' ' || (spelling == Spelling::SortedAscii && c > '~');
        match escape {
            Some(escape) => out.push_str(escape),
            None if hidden => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // A `String` takes everything.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            None => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
#[path = "hashes_tests.rs"]
mod tests;
