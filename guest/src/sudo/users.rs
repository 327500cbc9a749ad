//! Users and groups from the sandbox's `/etc`: a static program has no name service.

use std::fs::File;
use std::io::Read;

/// Most bytes read of a database: 4 MiB.
const DATABASE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// One line of the user database, with the groups the user is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
    pub shell: String,
}

/// Looks up a name, or `#` and a number. Root needs no database.
pub fn find(user: &str) -> Option<User> {
    if matches!(user, "root" | "#0") {
        return Some(root());
    }
    find_in(user, &database("/etc/passwd"), &database("/etc/group"))
}

/// Root, as everywhere.
fn root() -> User {
    let shell = ["/bin/bash", "/bin/sh"]
        .into_iter()
        .find(|shell| std::fs::exists(shell).unwrap_or(false));
    User {
        name: "root".into(),
        uid: 0,
        gid: 0,
        groups: vec![0],
        home: "/root".into(),
        shell: shell.unwrap_or("/bin/sh").into(),
    }
}

fn database(path: &str) -> String {
    let mut bytes = Vec::new();
    // A missing database has no users.
    let _ = File::open(path).map(|file| file.take(DATABASE_BYTES_MAX).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn find_in(user: &str, passwd: &str, group: &str) -> Option<User> {
    let number = user
        .strip_prefix('#')
        .and_then(|number| number.parse::<u32>().ok());
    let found = passwd.lines().find_map(|line| {
        let user_line = user_of(line)?;
        let wanted = number.map_or(user_line.name == user, |uid| user_line.uid == uid);
        wanted.then_some(user_line)
    });
    // A number needs no entry.
    let unnamed = || {
        number.map(|uid| User {
            name: format!("#{uid}"),
            uid,
            gid: uid,
            groups: Vec::new(),
            home: "/".into(),
            shell: "/bin/sh".into(),
        })
    };
    let mut found = found.or_else(unnamed)?;
    found.groups = group
        .lines()
        .filter_map(|line| membership(line, &found.name))
        .collect();
    Some(found)
}

fn user_of(line: &str) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, shell] = fields.as_slice() else {
        return None;
    };
    Some(User {
        name: (*name).to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        groups: Vec::new(),
        home: (*home).to_owned(),
        shell: if shell.is_empty() {
            "/bin/sh".into()
        } else {
            (*shell).to_owned()
        },
    })
}

/// The group's id when `user` is one of its members.
fn membership(line: &str, user: &str) -> Option<u32> {
    let fields: Vec<&str> = line.split(':').collect();
    let [_, _, gid, members] = fields.as_slice() else {
        return None;
    };
    members
        .split(',')
        .any(|member| member == user)
        .then(|| gid.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: names, numbers, groups, and lines that are no users.
    #[test]
    fn lookups() {
        let passwd = "broken\nwww:x:33:33:www:/var/www:/usr/sbin/nologin\nx:x:-1:0::/:\nsandbox:x:1000:1000::/home/sandbox:\n";
        let group = "www:x:33:\nvideo:x:44:sandbox,www\nbad:x:y:www\n";
        let www = find_in("www", passwd, group).unwrap();
        assert_eq!(
            (www.uid, www.gid, www.groups.as_slice()),
            (33, 33, &[44][..])
        );
        assert_eq!(find_in("#33", passwd, group), Some(www));
        assert_eq!(find_in("sandbox", passwd, group).unwrap().shell, "/bin/sh");
        assert_eq!(find_in("#7", passwd, group).unwrap().gid, 7);
        for missing in ["x", "broken", "nobody", "#", "#-1"] {
            assert_eq!(find_in(missing, passwd, group), None, "{missing}");
        }
    }
}
