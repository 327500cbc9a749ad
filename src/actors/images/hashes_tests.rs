//! Hashes against what the published clients really computed.

use super::super::manifest::{Manifest, ManifestBody};

/// What `@opencomputer/sdk` 0.12.4 sends for the image of the last vectors.
const ALL: &str = r#"{"base":"base","steps":[{"type":"apt_install","args":{"packages":["curl","jq"]}},{"type":"pip_install","args":{"packages":["requests"]}},{"type":"run","args":{"commands":["echo \"a\" > /tmp/x && true","echo <é>&\u2028😀\u007f\t\u0001"]}},{"type":"env","args":{"vars":{"Z":"last","A_B":"über"}}},{"type":"workdir","args":{"path":"/workspace/ü"}},{"type":"add_file","args":{"path":"/etc/x/y.txt","content":"aMOpbGxvCg==","encoding":"base64"}},{"type":"add_dir","args":{"path":"/opt/d","files":[{"relativePath":"t.txt","content":"aGk="}]}}]}"#;

fn read(json: &str) -> Manifest {
    let body: ManifestBody = serde_json::from_str(json).expect("JSON");
    Manifest::check(body).expect("a manifest")
}

/// Goal: the keys are those that the clients compute for the same image. Method: vectors printed by
/// `cacheKey()` of 0.12.4 from npm and `cache_key()` of 0.5.2, 0.6.9 and 1.1.0 from PyPI (which agree).
#[test]
fn cache_keys_are_those_of_the_published_clients() {
    let check = |json: &str, typescript: &str, python: &str| {
        assert_eq!(read(json).client_cache_keys(), [typescript, python]);
    };
    let empty = "485f603ddf675cfc9b285fed0d9d5e85c4c09c66e8cb4fc0cc0720acc08874ef";
    check(r#"{"base":"base","steps":[]}"#, empty, empty);
    check(
        r#"{"base":"base","steps":[{"type":"apt_install","args":{"packages":["curl"]}}]}"#,
        "d6856c1efc670fe83d0b5dca1ea512a600287e2d52c9da97ad41f7e3e1a65e8f",
        "76022298215157fd20e50e6aeffbf8b3c910abb77ac9f93e2bbcaced5840e898",
    );
    let with_memory = ALL.replace(r#"]}}]}"#, r#"]}}],"builderMemoryMB":8192,"name":"x"}"#);
    for json in [ALL, with_memory.as_str()] {
        check(
            json,
            "51878a7b45adeeaa79acec54a8ea105ca2ed099e71c16a26b247b00cc1a1608e",
            "73be2c0179676b758f0dbb1577dd6f96aa0f98377c0352bf745bc6ef457b5082",
        );
    }
}

/// Goal: a manifest is kept as it was sent, order and all.
#[test]
fn a_manifest_reads_back_as_it_was_sent() {
    let sent = ALL
        .replace("\\u2028", "\u{2028}")
        .replace("\\u007f", "\u{7f}");
    assert_eq!(read(ALL).to_json(), sent);
    let flat = r#"{"steps":[{"type":"workdir","path":"/x"}],"name":"n","runtimeMemoryMB":2048}"#;
    let full = r#"{"base":"base","steps":[{"type":"workdir","args":{"path":"/x"}}],"name":"n","runtimeMemoryMB":2048}"#;
    assert_eq!(read(flat).to_json(), full);
}

/// Goal: the server's hash depends on base and steps alone; a step's key on the steps before it too.
#[test]
fn hashes_depend_on_what_is_built() {
    let run = |commands: &str| format!(r#"{{"type":"run","args":{{"commands":["{commands}"]}}}}"#);
    let image = |steps: &[String], more: &str| {
        read(&format!(
            r#"{{"base":"base","steps":[{}]{more}}}"#,
            steps.join(",")
        ))
    };
    let (one, two) = (
        image(&[run("a"), run("b")], ""),
        image(&[run("a"), run("c")], ""),
    );
    assert_ne!(one.content_hash(), two.content_hash());
    let named = image(&[run("a"), run("b")], r#","name":"n","builderMemoryMB":1"#);
    assert_eq!(one.content_hash(), named.content_hash());
    let (first, second) = (one.layer_keys(), two.layer_keys());
    assert_eq!(first[0], second[0]);
    assert_ne!(first[1], second[1]);
    let swapped = image(&[run("b"), run("a")], "").layer_keys();
    assert!(swapped.iter().all(|key| !first.contains(key)));
    let bare = |base: &str| read(&format!(r#"{{"base":"{base}"}}"#)).layer_keys();
    assert_eq!(bare("ubuntu"), bare("base"));
    assert_ne!(bare("other"), bare("base"));
    // Members of arguments are sorted, so that every client's order gives the same.
    let vars = |vars: &str| {
        let step = format!(r#"{{"type":"env","args":{{"vars":{{{vars}}}}}}}"#);
        image(&[step], "").content_hash()
    };
    assert_eq!(vars(r#""A":"1","B":"<&>""#), vars(r#""B":"<&>","A":"1""#));
}

/// Goal: what can't be built is refused before anything exists, with the step's number.
#[test]
fn bad_manifests_are_refused_by_step() {
    let refused = |step: &str| {
        let json = format!(r#"{{"steps":[{{"type":"workdir","path":"/ok"}},{step}]}}"#);
        let body: ManifestBody = serde_json::from_str(&json).expect("JSON");
        Manifest::check(body).expect_err("refused").to_string()
    };
    for (step, why) in [
        (r#"{}"#, "type is required"),
        (r#"{"type":"copy"}"#, "unknown type copy"),
        (r#"{"type":"apt_install"}"#, "packages is required"),
        (
            r#"{"type":"pip_install","packages":[""]}"#,
            "packages must be",
        ),
        (
            r#"{"type":"run","args":{"commands":[]}}"#,
            "commands must be",
        ),
        (
            r#"{"type":"run","args":{"commands":["a\u0000"]}}"#,
            "commands must be",
        ),
        (r#"{"type":"env","vars":{"1A":"x"}}"#, "vars: names"),
        (r#"{"type":"env","vars":{"A":"\u0000"}}"#, "vars: A must"),
        (
            r#"{"type":"workdir","path":"rel"}"#,
            "path must be absolute",
        ),
        (
            r#"{"type":"workdir","path":"/a/../b"}"#,
            "path must be absolute",
        ),
        (r#"{"type":"add_file","path":"/a"}"#, "content is required"),
        (
            r#"{"type":"add_file","path":"/a","content":"?","encoding":"base64"}"#,
            "not base64",
        ),
        (
            r#"{"type":"add_file","path":"/a","content":"x","encoding":"gzip"}"#,
            "encoding must",
        ),
        (
            r#"{"type":"add_dir","path":"/a","files":[{"relativePath":"../x","content":""}]}"#,
            "relativePath",
        ),
        (
            r#"{"type":"add_dir","path":"/a","files":[{"relativePath":"/x","content":""}]}"#,
            "relativePath",
        ),
    ] {
        let told = refused(step);
        assert!(
            told.starts_with("image step 2: ") && told.contains(why),
            "{step}: {told}"
        );
    }
    let many = vec![r#"{"type":"workdir","path":"/ok"}"#; 101].join(",");
    let body: ManifestBody =
        serde_json::from_str(&format!(r#"{{"steps":[{many}]}}"#)).expect("JSON");
    assert!(Manifest::check(body).is_err());
    let plain = r#"{"steps":[{"type":"add_file","path":"/a","content":"text"}]}"#;
    assert_eq!(read(plain).steps.len(), 1, "plain text needs no encoding");
}
