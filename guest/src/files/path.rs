//! Paths as clients write them, made absolute and plain.

use std::path::{Component, Path, PathBuf};

use tonic::Status;

/// Where relative paths start.
const HOME: &str = "/home/sandbox";
/// Longest path, in bytes: the kernel's own limit.
const PATH_BYTES_MAX: usize = 4095;

/// An absolute path without `.`, `..` or double slashes. `..` is taken as text: `/a/link/..` is
/// `/a`, wherever the link leads, and above `/` there is nothing.
pub fn resolve(path: &str) -> Result<PathBuf, Status> {
    if path.is_empty() {
        return Err(Status::invalid_argument("path is required"));
    }
    if path.contains('\0') {
        return Err(Status::invalid_argument("a path can't hold a NUL byte"));
    }
    let mut resolved = PathBuf::from("/");
    for component in Path::new(HOME).join(path).components() {
        match component {
            Component::Normal(name) => resolved.push(name),
            Component::ParentDir => drop(resolved.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if resolved.as_os_str().len() > PATH_BYTES_MAX {
        return Err(Status::invalid_argument(
            "the path is longer than 4095 bytes",
        ));
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what clients write and where it leads, by table.
    #[test]
    fn resolves() {
        for (written, meant) in [
            ("/", "/"),
            ("//..//.", "/"),
            ("/home/../..", "/"),
            ("a.txt", "/home/sandbox/a.txt"),
            ("./a/../b", "/home/sandbox/b"),
            ("../../../etc", "/etc"),
            (".", "/home/sandbox"),
            ("/a//b/", "/a/b"),
            ("/odd name\nü", "/odd name\nü"),
        ] {
            assert_eq!(resolve(written).unwrap(), Path::new(meant), "{written:?}");
        }
        for refused in ["", "a\0b", &"x/".repeat(3000)] {
            assert!(resolve(refused).is_err(), "{refused:?}");
        }
    }
}
